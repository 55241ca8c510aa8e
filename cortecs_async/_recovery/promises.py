"""A client's side of the books: promises in the words of a lease, and waits until they are kept safe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import attrs

from .._aio.threads import System
from .._api.domain import InstanceArgs
from .._api.matching import UnresolvedStart
from .._config import Mode, Settings
from .._errors import GuardError, JournalError
from .._logging import Event, log
from .._secrets import Credentials, Secret
from .claims import ForeignClaims, claims_of_others, unresolved_start_of
from .records import Record
from .store import PromiseStore, store_for

T = TypeVar("T")


def fingerprint(api_base_url: str, client_id: str) -> str:
    """A name for an account that tells nothing about it."""
    return hashlib.sha256(f"{api_base_url}\n{client_id}".encode()).hexdigest()[:16]


def state_directory(given: str | os.PathLike[str] | None) -> Path:
    """Where state lies: the argument, else CORTECS_STATE_DIR, else the user's state directory."""
    chosen = given or os.environ.get("CORTECS_STATE_DIR", "").strip()
    if chosen:
        return Path(chosen).absolute()
    import platformdirs  # noqa: PLC0415  (slow, and not needed by every program)

    return Path(platformdirs.user_state_path("cortecs_async"))


class Promises:
    """Makes the promises of one client.

    Args:
        settings: What the reaper needs to reach the service.
        journal: Whether there must be a journal.
        guard: Whether there must be a reaper.
        directory: The state directory.
        system: The clock and the threads to use.

    Attributes:
        system: The clock and the threads in use.
    """

    def __init__(
        self, settings: Settings, *, journal: Mode, guard: Mode, directory: Path, system: System
    ) -> None:
        self._settings = settings
        self.system: System = system
        self._journal: Mode = journal
        self._guard: Mode = guard
        self._store = store_for(
            directory, journal=journal != "off", guard=guard != "off", wall_clock=system.wall_clock
        )
        self._account = ""
        self._credentials: Credentials | None = None
        self._turn: anyio.Lock | None = None
        self._joined: int | None = None
        self._own: set[str] = set()

    @property
    def account(self) -> str:
        """Fingerprint of the account; empty before the first token."""
        return self._account

    @property
    def api(self) -> str:
        """The base URL of the service."""
        return self._settings.api_base_url

    @property
    def directory(self) -> Path:
        """Where the journals lie."""
        return self._store.directory

    @property
    def reads_journals(self) -> bool:
        """Whether journals are of any concern here."""
        return self._journal != "off"

    @property
    def has_guard(self) -> bool:
        """Whether this client has a reaper, when it needs one."""
        return self._guard != "off"

    def remember_credentials(self, credentials: Credentials) -> None:
        """Takes the credentials that a token is fetched with: the reaper must have the newest."""
        if credentials == self._credentials:
            return
        self._credentials = credentials
        self._account = fingerprint(self._settings.api_base_url, credentials.client_id)
        if self._joined is not None:
            self._arm()
            # The old ones may be revoked before the next promise is made.
            self._commit_soon()

    def baseline(self, ids: Iterable[str]) -> str:
        """Notes which ids exist; the name stands for them."""
        self._join()
        name = self._store.new_name()
        self._store.put({"kind": "BASELINE", "baseline": name, "ids": sorted(ids)})
        return name

    def has_baseline(self, name: str) -> bool:
        """Whether a name that `baseline` gave still stands for something."""
        return self._store.has_baseline(name)

    async def record_intent(self, args: InstanceArgs, baseline: str) -> str:
        """Promises to find what the coming start makes. When this returns, journal and reaper know.

        Raises:
            JournalError: when there must be a journal and is none.
            GuardError: when there must be a reaper and is none.
        """
        self._join()
        key = self._store.new_name()
        self._own.add(key)
        self._store.put({
            "kind": "INTENT",
            **self._common(key),
            "args": _written(args),
            "baseline": baseline,
        })  # fmt: skip
        try:
            await self.flush(strict=True)
        except BaseException:
            self.record_gone(key)
            raise
        return key

    def record_created(
        self, key: str | None, instance_id: str, *, goal: str, expires_at: float | None = None
    ) -> str:
        """Promises that an instance goes; `key` is that of its intent, where there was one."""
        self._join()
        key = key or self._store.new_name()
        self._own.add(key)
        self._store.put({
            "kind": "CREATED",
            **self._common(key),
            "args": {},
            "instance_id": instance_id,
            "goal": goal,
            "expires_at": expires_at,
        })  # fmt: skip
        return key

    def record_handed_over(self, key: str) -> None:
        """Somebody else answers for it from now on, except for its time limit."""
        self._store.put({"kind": "HELD", "entry": key})

    def record_gone(self, key: str) -> None:
        """The promise is kept, or there was nothing to keep."""
        self._own.discard(key)
        self._store.put({"kind": "GONE", "entry": key})

    def unknown(self, key: str) -> UnresolvedStart:
        """A start of which an intent tells, as everybody who looks for its instance sees it."""
        return unresolved_start_of(self._store.book, self._store.book.promises[key])

    def record_unanswered(self, key: str) -> None:
        """A start has got no answer, and its instance is looked for."""
        self._store.put({"kind": "UNANSWERED", "entry": key})

    def record_abandoned(self, key: str) -> None:
        """This process has given up: the reaper's, or `sweep`'s."""
        self._store.put({"kind": "ABANDONED", "entry": key})

    def abandon(self, key: str | None) -> bool:
        """`abandoned` where nothing can be awaited; False when there is nothing to give up."""
        if key is None or not self._store.is_open(key):
            return False
        self.record_abandoned(key)
        self._commit_soon()
        return True

    def _commit_soon(self) -> None:
        if self._journal == "off" and self._guard == "off":
            self._store.commit()
            return
        with contextlib.suppress(RuntimeError):  # at the interpreter's end: the end of the pipe will do
            threading.Thread(target=self._store.commit, name="cortecs-books", daemon=True).start()

    def record_ambiguous(self, key: str, candidates: Iterable[str]) -> None:
        """Which instance is meant cannot be told."""
        self._store.put({"kind": "AMBIGUOUS", "entry": key, "candidates": list(candidates)})

    async def flush(self, *, strict: bool = False) -> None:
        """Wait until every promise so far is in the journal and known to the reaper.

        Args:
            strict: Raise if a required journal or reaper is not available.

        Raises:
            JournalError: if a journal is required and cannot be written.
            GuardError: if a reaper is required and none is running.
        """
        reach = self._store.queued
        if self._turn is None:
            self._turn = anyio.Lock()
        async with self._turn:
            if self._store.done < reach:
                await self._off_loop(self._store.commit)
        if not strict:
            return
        problem = self._store.journal_problem
        if self._journal == "required" and problem:
            raise JournalError(
                f"the journal in {self._store.directory} cannot be written: {problem}. Nothing was started. "
                "state_dir= or CORTECS_STATE_DIR puts it elsewhere."
            )
        problem = self._store.guard_problem
        if self._guard == "required" and problem:
            raise GuardError(f"there is no reaper: {problem}. Nothing was started.")

    async def foreign_claims(self) -> ForeignClaims:
        """What other clients and processes have promised on this account."""
        # What this client has closed must not count as somebody else's.
        await self.flush()
        others = await self._off_loop(self._store.others)
        return claims_of_others(self.api, self._store.book, self._own, others, self.system.wall_clock())

    async def report_orphans(self) -> None:
        """Says in one line of the log that there is something to sweep."""
        if not self.reads_journals:
            return
        # Another service's, or another account's, this client's `sweep` could not release.
        count = await self._off_loop(lambda: self._store.orphans(self.api, self._account))
        if count:
            log(Event.GUARD_ORPHANS, count=count)

    def key_of(self, instance_id: str) -> str | None:
        """The entry of an instance that this process has promised."""
        return self._store.key_of(instance_id)

    @property
    def journal_states(self) -> PromiseStore:
        """The books of the process."""
        return self._store

    async def aclose(self) -> None:
        """The client is closed and has no lease any more."""
        if self._joined is not None:
            await self._off_loop(self._close)

    def _close(self) -> None:
        joined, self._joined = self._joined, None
        if joined == self._store.generation:
            self._store.release()

    async def _off_loop(self, work: Callable[[], T]) -> T:
        # In memory alone, nothing blocks.
        is_in_memory = self._journal == "off" and self._guard == "off"
        return work() if is_in_memory else await self.system.off_loop(work)

    def _join(self) -> None:
        # Again in a forked child, whose books are empty and whose reaper knows no credentials.
        if self._joined != self._store.generation:
            self._joined = self._store.join()
            self._arm()

    def _arm(self) -> None:
        if self._guard == "off" or self._credentials is None:
            return
        sealed = json.dumps({
            "api_base_url": self._settings.api_base_url,
            "client_id": self._credentials.client_id,
            "client_secret": self._credentials.client_secret.reveal(),
            "headers": dict(self._settings.headers),
            "timeout": self._settings.timeout,
        })  # fmt: skip
        # Sealed until it goes into the pipe: a traceback may show what stands in the queue.
        self._store.put({"kind": "ARM", "account": self._account, "sealed": Secret(sealed)})

    def _common(self, key: str) -> Record:
        return {
            "entry": key,
            "account": self._account,
            "api": self._settings.api_base_url,
            "at": self.system.wall_clock(),
        }


def _written(args: InstanceArgs) -> dict[str, Any]:
    return {name: value for name, value in attrs.asdict(args).items() if value is not None}
