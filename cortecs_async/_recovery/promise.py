"""A promise to release an instance, kept in the journal and by the reaper."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING:
    from typing import Any


class Promise:
    """The promise to release an instance, or to find the one a start request created and release it.

    Attributes:
        key: The name of the promise in the journal.
        account: Fingerprint of the base URL and client id with which it can be fulfilled.
        api: The base URL, for people.
        args: The arguments sent, without any left to the service. They are empty for a restart.
        at: Unix time in seconds, just before the request was sent.
        baseline: Name of the set of ids that existed before the start request, or None without one.
        service_at: The time when the baseline was fetched, by the service's clock, as Unix time in seconds,
            or None if the service does not send dates.
        tag: The context length sent to tag the start request, or None without a tag.
        instance_id: The id, or None until the response arrives or the instance is found.
        goal: "gone" or "stopped".
        expires_at: Unix time in seconds at which the instance is released, even if its owner lives, or None
            if it never expires.
        idle_at: Unix time in seconds at which the instance is released, unless its owner announces more
            activity, or None. Only a reaper whose parent lives acts on it. It is never in a journal, where
            it would be stale: `sweep` would delete an instance that is in use.
        held: The instance was handed over (`acquire`). It is released at `expires_at`, not before.
        is_watched: The instance was handed over, but until the end of its block, `idle_at` counts. Another
            process never sees such a promise without a limit: for it, only the holder releases the instance.
        seen: A reading has shown the instance, so it does not count as missing because it is new.
        unanswered: The start request is unresolved: its response was lost or does not show whether it worked.
        abandoned: Its process gave up on the search for the instance or on its release.
        candidates: Ids of instances, one of which may be ours. Only a person can decide.
        bill: The known fields of the lease's line in the cost ledger (see `cost_lines`).
    """

    def __init__(self, key: str, account: str, api: str, args: dict[str, Any], at: float) -> None:
        self.key: str = key
        self.account: str = account
        self.api: str = api
        self.args: dict[str, Any] = args
        self.at: float = at
        self.baseline: str | None = None
        self.service_at: float | None = None
        self.tag: int | None = None
        self.instance_id: str | None = None
        self.goal: str = "gone"
        self.expires_at: float | None = None
        self.idle_at: float | None = None
        self.held: bool = False
        self.is_watched: bool = False
        self.seen: bool = False
        self.unanswered: bool = False
        self.abandoned: bool = False
        self.candidates: tuple[str, ...] = ()
        self.bill: dict[str, Any] = {}

    def due_at(self, *, owner_lives: bool, grace: float = 0.0) -> float | None:
        """Return the Unix time after which another process should fulfill the promise, if any.

        For `grace` seconds after `expires_at` or `idle_at`, a living owner can still release the instance
        itself.
        """
        if self.candidates:
            return None
        if not owner_lives:
            return self.expires_at if self.held else 0.0
        if self.abandoned:
            return 0.0
        limits = [self.expires_at, self._idle_at]
        ends = [each for each in limits if each is not None and self.instance_id is not None]
        return min(ends) + grace if ends else None

    @property
    def _idle_at(self) -> float | None:
        return None if self.held and not self.is_watched else self.idle_at

    @property
    def is_idle_first(self) -> bool:
        """Whether `idle_at` comes before `expires_at`, so that it ends an instance whose owner lives."""
        if (idle_at := self._idle_at) is None:
            return False
        return self.expires_at is None or idle_at <= self.expires_at

    def is_due(self, now: float, *, owner_lives: bool, grace: float = 0.0) -> bool:
        """Return whether another process should fulfill the promise at a Unix time."""
        due_at = self.due_at(owner_lives=owner_lives, grace=grace)
        return due_at is not None and now >= due_at

    def needs_recovery(self, now: float) -> bool:
        """Return whether `sweep` or a person must act, given that the owner is dead."""
        return bool(self.candidates) or self.abandoned or self.is_due(now, owner_lives=False)
