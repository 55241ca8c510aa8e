"""Stopping and deleting one instance, and making sure of it.

What to do next is decided by a pure function from what was last seen; the loop around it does it, and does it
again until the goal has been *read* from the service, because no answer to a deed is trusted: a lost answer
may hide success, and what a `stop` of a pending or a stopped instance answers is undocumented.
"""

from __future__ import annotations

import enum
import math

import anyio
from attrs import define

from .._errors import (
    APIStatusError,
    BadRequestError,
    ClientClosedError,
    ConflictError,
    NotFoundError,
    TeardownError,
)
from .._logging import Event, log
from .domain import Instance
from .instances import Instances
from .waiting import TERMINAL_STATUSES, wait_until

# Seconds after which a stop or delete that was accepted, but shows no effect, is asked for again.
_PATIENCE = 10.0
_MAX_PAUSE = 10.0

# Seconds between two tries to stop an instance that cannot be read yet.
_LAG = 1.0


class Goal(enum.Enum):
    """Where a teardown ends."""

    STOPPED = "stopped"
    GONE = "gone"


class ObservedState(enum.Enum):
    """What is known of the instance."""

    LIVE = enum.auto()
    STOPPING = enum.auto()
    STOPPED = enum.auto()
    DELETED = enum.auto()
    GONE = enum.auto()
    UNSURE = enum.auto()


class Action(enum.Enum):
    """What to do next."""

    STOP = enum.auto()
    AWAIT_STOP = enum.auto()
    DELETE = enum.auto()
    VERIFY = enum.auto()
    READ = enum.auto()
    NOTHING = enum.auto()


def next_action(goal: Goal, seen: ObservedState) -> Action:
    """The next step from what is known towards the goal."""
    match seen:
        case ObservedState.LIVE:
            return Action.STOP
        case ObservedState.STOPPING:
            return Action.AWAIT_STOP
        case ObservedState.STOPPED:
            return Action.NOTHING if goal is Goal.STOPPED else Action.DELETE
        case ObservedState.DELETED:
            return Action.VERIFY
        case ObservedState.GONE:
            return Action.NOTHING
        case ObservedState.UNSURE:
            return Action.READ


def interpret(instance: Instance | None, *, stop_refused: bool) -> ObservedState:
    """What a reading means. After a refused stop, a status that is not "stopped" may still be as good."""
    if instance is None or instance.status.lower() == "deleted":
        return ObservedState.GONE
    if instance.status == "stopped":
        return ObservedState.STOPPED
    if not stop_refused:
        return ObservedState.LIVE
    return ObservedState.STOPPED if instance.status.lower() in TERMINAL_STATUSES else ObservedState.STOPPING


@define
class Teardown:
    """One teardown; can be taken up again after an interruption, with the same deadline.

    Attributes:
        instances: Where the requests go, unretried: this paces itself.
        instance_id: Which instance.
        goal: Where to stop.
        deadline: In seconds of `anyio.current_time`.
        settled_at: Until when "missing" is not believed of an instance that was started just before, on the
            same clock: the service's reading side may lag behind.
        did_something: Whether a stop or a delete of this one was accepted.
        stopped_at: When it was last asked to stop and said yes, on the same clock.
    """

    instances: Instances
    instance_id: str
    goal: Goal
    deadline: float
    seen: ObservedState = ObservedState.LIVE
    settled_at: float = -math.inf
    has_acted: bool = False
    stopped_at: float | None = None
    stop_refused: bool = False
    failures: int = 0
    last_error: Exception | None = None

    async def run(self) -> None:
        """Works until the goal is verified.

        Raises:
            TeardownError: when it is not by the deadline.
        """
        with anyio.CancelScope(deadline=self.deadline):
            while (deed := next_action(self.goal, self.seen)) is not Action.NOTHING:
                try:
                    self.seen = await self._perform(deed)
                except (BadRequestError, ConflictError, NotFoundError) as refusal:
                    # Already stopped, already gone, or not yet: the state decides, not the refusal.
                    self.stop_refused = deed is Action.STOP
                    await self._recover(deed, refusal)
                except ClientClosedError as error:
                    self.last_error = error  # the caller's http_client: nothing can be asked any more
                    break
                except Exception as error:  # noqa: BLE001  (a credential provider's or a transport's own)
                    await self._recover(deed, error)
            else:
                return
        raise TeardownError(
            f"instance {self.instance_id} could not be {'deleted' if self.goal is Goal.GONE else 'stopped'} "
            f"in time (last seen: {self.seen.name.lower()}; last trouble: {self.last_error or 'none'}). "
            "IT MAY STILL BE BILLED: stop it with client.instances.stop() or on cortecs.ai.",
            instance_id=self.instance_id,
        )

    async def _perform(self, action: Action) -> ObservedState:  # noqa: PLR0911  (each deed has its outcomes)
        instance_id, poller = self.instance_id, self.instances.poller
        match action:
            case Action.STOP:
                answer = await self.instances.stop(instance_id)
                self.stopped_at = anyio.current_time()
                self.has_acted = True
                # A delete proves that it was stopped; where there will be none, it has to be read.
                settled = self.goal is Goal.GONE and _is_at_rest(answer)
                return ObservedState.STOPPED if settled else ObservedState.STOPPING
            case Action.AWAIT_STOP:
                with anyio.move_on_after(_PATIENCE):
                    found = await wait_until(poller, instance_id, _is_at_rest)
                    return interpret(found, stop_refused=True)
                self.stop_refused = False
                return ObservedState.LIVE
            case Action.DELETE:
                await self.instances.delete(instance_id)
                self.has_acted = True
                return ObservedState.DELETED
            case Action.VERIFY:
                with anyio.move_on_after(_PATIENCE):
                    await wait_until(poller, instance_id, _is_gone, trust_list=True)
                    return ObservedState.GONE
                return ObservedState.UNSURE
            case Action.READ | Action.NOTHING:
                reading = await poller.next(poller.subscribe(instance_id))
                unseen = reading is None and self.stopped_at is None
                if unseen and anyio.current_time() < self.settled_at:
                    await anyio.sleep(_LAG)
                    return ObservedState.LIVE
                return interpret(reading, stop_refused=self.stop_refused)

    async def _recover(self, action: Action, error: Exception) -> None:
        self.seen = ObservedState.UNSURE
        self.last_error = error
        # The first refusal is the ordinary "already stopped": it costs no pause.
        pause = min(0.25 * 2.0 ** min(self.failures, 10), _MAX_PAUSE) if self.failures else 0.0
        self.failures += 1
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is not None:
            # Honoured, but not to the end: an instance that is billed is asked about more than once.
            pause = max(pause, min(asked, (self.deadline - anyio.current_time()) / 3))
        log(
            Event.LEASE_TEARDOWN_RETRY,
            instance_id=self.instance_id,
            step=action.name.lower(),
            wait=pause,
            error_type=type(error).__name__,
            request_id=getattr(error, "request_id", None),
            error=error,
        )
        await anyio.sleep(pause)


def _is_at_rest(instance: Instance | None) -> bool:
    return instance is None or instance.status.lower() in TERMINAL_STATUSES


def _is_gone(instance: Instance | None) -> bool:
    return interpret(instance, stop_refused=False) is ObservedState.GONE
