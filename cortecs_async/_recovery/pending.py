"""Promises of dead processes to fulfill, and the outcome of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from attrs import define, frozen

from .._aio.eventloop import current_time
from .journal import catch_up
from .promise import Promise
from .records import JournalState, Record

# Seconds after a start request in which a missing instance may only be not visible yet.
_VISIBILITY_TIME = 60.0

# Seconds until `OtherProcesses` reads the journal again, which can have thousands of promises.
_READ_INTERVAL = 1.0

RecoveryState = Literal["released", "gone", "ambiguous", "left", "unsettled"]


@frozen(kw_only=True)
class RecoveryResult:
    """The outcome of one promise.

    state: `released`: by this run. `gone`: the instance no longer existed, or the start request did not
        create one. `ambiguous`: no instance was touched. `left`: the service did not release the instance in
        time. `unsettled`: the instance was not seen but may still appear.
        instance_id: The instance, if it is known.
        candidates: The possible instances, if ambiguous.
    """

    state: RecoveryState
    instance_id: str | None = None
    candidates: tuple[str, ...] = ()


@define(eq=False)
class OtherProcesses:
    """The records of other processes about the promises `keys`, in the journal at `path`."""

    state: JournalState
    path: Path
    keys: Collection[str]
    _read_at: float = -math.inf

    def catch_up(self, *, now: bool = False) -> None:
        """Apply these records to the state. Without `now`, they may be a second old."""
        time = current_time()
        if now or time >= self._read_at + _READ_INTERVAL:
            self._read_at = time
            catch_up(self.state, self.path, self.keys)


@frozen(eq=False)
class PendingPromise:
    """A promise to fulfill.

    Attributes:
        state: The journal state that contains it.
        report: Records changes to it.
        catch_up: Applies the records of other processes to the state.
    """

    state: JournalState
    promise: Promise
    report: Callable[[Record], object]
    catch_up: Callable[[], object] = lambda: None

    def is_open(self) -> bool:
        """Return whether no other process has fulfilled the promise, as of a second ago."""
        self.catch_up()
        return self.promise.key in self.state.promises

    def record_gone(self) -> None:
        """Record that the promise is fulfilled."""
        self.report({"kind": "GONE", "entry": self.promise.key})


def invisible_for(promise: Promise, now: float) -> float:
    """Return the seconds for which a promise's instance may still be missing because it is new."""
    return 0.0 if promise.seen else max(_VISIBILITY_TIME - age_of(promise, now), 0.0)


def age_of(promise: Promise, now: float) -> float:
    """Return the seconds since the request of a promise. `now` is Unix time by this machine's clock."""
    return max(now - promise.at, 0.0)
