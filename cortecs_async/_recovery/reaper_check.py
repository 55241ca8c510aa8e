"""Check that a reaper can run here and reach the service, for `client.diagnose`."""

from __future__ import annotations

import queue

from .._errors import GuardError
from .._secrets import Secret
from .reaper_process import ReaperProcess
from .store import fork_lock

# Seconds for a check of whether a reaper can reach the service.
_CHECK_TIMEOUT = 15.0


def check_reaper(sealed: Secret | None = None) -> None:
    """Start a reaper without promises, wait for its response, and end it. Blocks.

    With the description of an account, it must also connect to the service of this account.

    Raises:
        GuardError: if no reaper can run here, or it cannot reach the service.
    """
    problems: queue.SimpleQueue[str] = queue.SimpleQueue()
    reaper = ReaperProcess(lambda: None, lambda _: None, lambda _, problem: problems.put(problem))
    with fork_lock():
        reaper.start()
    try:
        reaper.handshake()
        if sealed is None:
            return
        reaper.send([{"kind": "ARM", "account": "checked", "sealed": sealed}])
        problem = problems.get(timeout=_CHECK_TIMEOUT)
    except queue.Empty:
        problem = f"it did not connect within {_CHECK_TIMEOUT:g} s"
    finally:
        reaper.shutdown()
    if problem:
        raise GuardError(f"it cannot reach the service: {problem}")
