"""Promises of dead processes that are to be fulfilled, and the outcome of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from attrs import frozen

from .records import JournalState, Promise, Record

# Seconds after the request of a start in which a missing instance may just not be visible yet.
_VISIBILITY_TIME = 60.0

RecoveryState = Literal["released", "gone", "ambiguous", "left", "unsettled"]


@frozen(kw_only=True)
class RecoveryResult:
    """The outcome of one promise.

    Attributes:
        state: `released`: by this run. `gone`: it no longer existed, or the start created none. `ambiguous`:
            nothing was touched. `left`: the service did not release it in time. `unsettled`: it was not
            seen, but may still appear.
        instance_id: The instance, if it is known.
        candidates: Instances that it may be, if ambiguous.
    """

    state: RecoveryState
    instance_id: str | None = None
    candidates: tuple[str, ...] = ()


@frozen(eq=False)
class PendingPromise:
    """A promise to fulfill, the journal state that contains it, and a function that records changes to it."""

    state: JournalState
    promise: Promise
    report: Callable[[Record], object]

    def record_gone(self) -> None:
        """Record that the promise is fulfilled."""
        self.report({"kind": "GONE", "entry": self.promise.key})


def invisible_for(promise: Promise, now: float) -> float:
    """Return for how many seconds the instance of a promise may still be missing because it is new."""
    return 0.0 if promise.seen else max(_VISIBILITY_TIME - age_of(promise, now), 0.0)


def age_of(promise: Promise, now: float) -> float:
    """Return the seconds since the request of a promise; `now` is Unix time by the clock of this machine."""
    return max(now - promise.at, 0.0)
