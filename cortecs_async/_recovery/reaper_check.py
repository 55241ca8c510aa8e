"""Check that a reaper can run here (for a lease) and reach the service (for `client.diagnose`)."""

from __future__ import annotations

import queue
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from .._config import ProtectionMode
from .._errors import GuardError, JournalError
from .._platform import NO_LOCKS
from .._secrets import Secret
from .reaper_process import ReaperProcess
from .store import PromiseStore, fork_lock

# Seconds for a check of whether a reaper can reach the service.
_CHECK_TIMEOUT = 15.0

# Seconds for which a start request waits for a required reaper to connect to the service, in two attempts.
_REHEARSAL_TIMEOUT = 20.0

# Seconds for which a start request waits if the reaper is not required, so that any warning comes first.
_REHEARSAL_PAUSE = 1.0


def check_platform(guard: ProtectionMode, journal: ProtectionMode) -> None:
    """Raise an error on Windows, where nothing would release the instance of a killed process.

    Raises:
        GuardError: On Windows, unless the reaper is off.
        JournalError: On Windows, if the journal is required.
    """
    if sys.platform == "win32":
        if guard != "off":
            accept = ', or accept this risk with AsyncCortecs(guard="off")' if guard == "auto" else ""
            raise GuardError(
                "The reaper does not run on Windows, so nothing would release the instance if this program "
                f"is killed. Nothing was started. Run the program in WSL{accept}."
            )
        if journal == "required":
            raise JournalError(f"The journal cannot be written: {NO_LOCKS}. Nothing was started.")


def check_reaper(sealed: Secret | None = None, records: Path | None = None) -> None:
    """Start a reaper without promises, wait for its response, and stop it again. Blocks.

    With the description of an account, the reaper must also connect to the account's service. The record in
    the folder `records` is not sufficient, but it is replaced, unless there is no such folder: a check does
    not create files where no lease has.

    Raises:
        GuardError: If no reaper can run here, or it cannot reach the service.
    """
    problems: queue.SimpleQueue[str] = queue.SimpleQueue()
    if records is not None and not records.is_dir():
        records = None
    reaper = ReaperProcess(lambda: None, lambda _: None, lambda _, problem: problems.put(problem), records)
    with fork_lock():
        reaper.start()
    try:
        reaper.handshake()
        if sealed is None:
            return
        reaper.send([{"kind": "ARM", "account": "checked", "sealed": sealed}])
        problem = problems.get(timeout=_CHECK_TIMEOUT)
    except queue.Empty:
        problem = f"no connection within {_CHECK_TIMEOUT:g} s"
    finally:
        reaper.shutdown()
    if problem:
        raise GuardError(f"the reaper cannot reach the service: {problem}")


async def prove_reaper(
    store: PromiseStore,
    account: str,
    rehearse_again: Callable[[], Awaitable[None]],
    *,
    is_required: bool,
) -> str:
    """Wait until the reaper has connected to the service of an account. Return the problem, if any.

    After a failure, a required reaper tries once more, because the service may have been down. By now, the
    client has reached it.
    """
    if not is_required:
        return await _await_rehearsal(store, account, _REHEARSAL_PAUSE) or ""
    if await _await_rehearsal(store, account, _REHEARSAL_TIMEOUT) == "":
        return ""
    await rehearse_again()
    problem = await _await_rehearsal(store, account, _REHEARSAL_TIMEOUT)
    return f"no connection within {_REHEARSAL_TIMEOUT:g} s" if problem is None else problem


async def _await_rehearsal(store: PromiseStore, account: str, timeout: float) -> str | None:
    """Wait until the reaper's rehearsal has an outcome. Return it, or None after `timeout` seconds."""
    with anyio.move_on_after(timeout):
        await store.rehearsals.wait_for(lambda: store.rehearsed(account) is not None)
    return store.rehearsed(account)
