"""The history of a world. Times are in seconds of virtual time."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

from attrs import define, field

from cortecs_async import errors

from .data import Lease, StartSpec

# The owner of an instance: the index of a machine, or this index for the other user, who has no journal.
OTHER_USER = -1


@define(eq=False)
class LeaseHistory:
    """The history of a lease. For `acquire`, the body is the time until `release`.

    Attributes:
        has_released: Whether `release` returned for its handle.
        used_at: The time when its body last used the instance.
        hung_at: The time since which its body blocked the event loop.
        hung_until: The time until which its body blocked the event loop.
        turns: The times when it had waited for capacity and got its turn.
        problems: Violations, unless another machine may use its instance.
        said: The warnings logged by its tasks.
    """

    process: int
    machine: int
    plan: Lease
    entered_at: float
    body_at: float | None = None
    body_ended_at: float | None = None
    left_at: float = math.inf
    instance_id: str | None = None
    body_error: BaseException | None = None
    exit_error: BaseException | None = None
    has_released: bool = False
    used_at: float = -math.inf
    hung_at: float = -math.inf
    hung_until: float = -math.inf
    turns: list[float] = field(factory=list)
    problems: list[str] = field(factory=list)
    said: list[str] = field(factory=list)

    @property
    def name(self) -> str:
        return f"the lease of process {self.process} at {self.entered_at:g} s"

    @property
    def may_leave_instance(self) -> bool:
        """Whether it may leave an instance: it was not exited, or its exception reports one."""
        return math.isinf(self.left_at) or reports_a_leftover(self.exit_error)


def reports_a_leftover(error: BaseException | None) -> bool:
    """Return whether an exception says that an instance may still be billed."""
    if error is None:
        return False
    if isinstance(error, errors.TeardownError | errors.AmbiguousStartError):
        return True
    # "If one still does [appear], the reaper releases it".
    return any(word in f"{error} {notes(error)}" for word in ("BILLED", "still does", "appears later"))


def notes(error: BaseException | None) -> str:
    return " ".join(getattr(error, "__notes__", ()))


@define(eq=False)
class SentStart:
    """A request to start an instance, or one that a killed process was about to send.

    Attributes:
        lease: The lease that sent it.
        after: The time from which an earlier list could no longer be its baseline.
        at: The time when it was sent.
        context_length: The requested context length, which is a tag. None without a tag.
        hardware: The requested hardware type. None for the model's own, or for any.
        ended_at: The time when the client had the response or gave up. Infinite while in progress.
        was_given_up: Whether the client closed the connection before its timeout, because a cancelled lease
            had found an instance.
        response: "ok" if it names the instance, "refused" if nothing was started. None without a usable
            response.
        instance_id: The instance it started.
        executed_at: The time when the instance was started.
    """

    lease: LeaseHistory
    after: float
    at: float
    context_length: int | None = None
    hardware: str | None = None
    ended_at: float = math.inf
    was_given_up: bool = False
    response: Literal["ok", "refused"] | None = None
    instance_id: str | None = None
    executed_at: float = math.inf


@define(eq=False)
class Intent:
    """A promise recorded before a start request.

    Attributes:
        key: The key of the promise.
        closed_at: The time when it was recorded that nothing was started. Infinite if it was not.
    """

    lease: LeaseHistory
    at: float
    key: str = ""
    closed_at: float = math.inf


@define(eq=False)
class ForeignInstance:
    """An instance of the other user.

    Attributes:
        appeared_at: The times when it was started and restarted.
        status: The status set by the user.
    """

    instance_id: str
    spec: StartSpec
    appeared_at: list[float]
    status: Literal["running", "stopped", "deleted"] = "running"


@define
class Touch:
    """A request to stop, restart, or delete an instance."""

    at: float
    machine: int
    route: str
    instance_id: str


@define
class Outcome:
    """The result of a world.

    Attributes:
        problems: Violations of the promise.
        tally: The number of occurrences of each event.
    """

    problems: list[str] = field(factory=list)
    tally: Counter[str] = field(factory=Counter)
