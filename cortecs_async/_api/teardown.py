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


class Seen(enum.Enum):
    """What is known of the instance."""

    LIVE = enum.auto()
    STOPPING = enum.auto()
    STOPPED = enum.auto()
    DELETED = enum.auto()
    GONE = enum.auto()
    UNSURE = enum.auto()


class Deed(enum.Enum):
    """What to do next."""

    STOP = enum.auto()
    AWAIT_STOP = enum.auto()
    DELETE = enum.auto()
    VERIFY = enum.auto()
    READ = enum.auto()
    NOTHING = enum.auto()


def next_deed(goal: Goal, seen: Seen) -> Deed:
    """The next step from what is known towards the goal."""
    match seen:
        case Seen.LIVE:
            return Deed.STOP
        case Seen.STOPPING:
            return Deed.AWAIT_STOP
        case Seen.STOPPED:
            return Deed.NOTHING if goal is Goal.STOPPED else Deed.DELETE
        case Seen.DELETED:
            return Deed.VERIFY
        case Seen.GONE:
            return Deed.NOTHING
        case Seen.UNSURE:
            return Deed.READ


def interpret(instance: Instance | None, *, stop_refused: bool) -> Seen:
    """What a reading means. After a refused stop, a status that is not "stopped" may still be as good."""
    if instance is None or instance.status.lower() == "deleted":
        return Seen.GONE
    if instance.status == "stopped":
        return Seen.STOPPED
    if not stop_refused:
        return Seen.LIVE
    return Seen.STOPPED if instance.status.lower() in TERMINAL_STATUSES else Seen.STOPPING


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
    seen: Seen = Seen.LIVE
    settled_at: float = -math.inf
    did_something: bool = False
    stopped_at: float | None = None
    stop_refused: bool = False
    troubles: int = 0
    last_trouble: Exception | None = None

    async def run(self) -> None:
        """Works until the goal is verified.

        Raises:
            TeardownError: when it is not by the deadline.
        """
        with anyio.CancelScope(deadline=self.deadline):
            while (deed := next_deed(self.goal, self.seen)) is not Deed.NOTHING:
                try:
                    self.seen = await self._perform(deed)
                except (BadRequestError, ConflictError, NotFoundError) as refusal:
                    # Already stopped, already gone, or not yet: the state decides, not the refusal.
                    self.stop_refused = deed is Deed.STOP
                    await self._recover(deed, refusal)
                except ClientClosedError as error:
                    self.last_trouble = error  # the caller's http_client: nothing can be asked any more
                    break
                except Exception as error:  # noqa: BLE001  (a credential provider's or a transport's own)
                    await self._recover(deed, error)
            else:
                return
        raise TeardownError(
            f"instance {self.instance_id} could not be {'deleted' if self.goal is Goal.GONE else 'stopped'} "
            f"in time (last seen: {self.seen.name.lower()}; last trouble: {self.last_trouble or 'none'}). "
            "IT MAY STILL BE BILLED: stop it with client.instances.stop() or on cortecs.ai.",
            instance_id=self.instance_id,
        )

    async def _perform(self, deed: Deed) -> Seen:  # noqa: PLR0911  (each deed has its outcomes)
        instance_id, poller = self.instance_id, self.instances.poller
        match deed:
            case Deed.STOP:
                answer = await self.instances.stop(instance_id)
                self.stopped_at = anyio.current_time()
                self.did_something = True
                # A delete proves that it was stopped; where there will be none, it has to be read.
                settled = self.goal is Goal.GONE and _is_at_rest(answer)
                return Seen.STOPPED if settled else Seen.STOPPING
            case Deed.AWAIT_STOP:
                with anyio.move_on_after(_PATIENCE):
                    found = await wait_until(poller, instance_id, _is_at_rest)
                    return interpret(found, stop_refused=True)
                self.stop_refused = False
                return Seen.LIVE
            case Deed.DELETE:
                await self.instances.delete(instance_id)
                self.did_something = True
                return Seen.DELETED
            case Deed.VERIFY:
                with anyio.move_on_after(_PATIENCE):
                    await wait_until(poller, instance_id, _is_gone, trust_list=True)
                    return Seen.GONE
                return Seen.UNSURE
            case Deed.READ | Deed.NOTHING:
                reading = await poller.next(poller.subscribe(instance_id))
                unseen = reading is None and self.stopped_at is None
                if unseen and anyio.current_time() < self.settled_at:
                    await anyio.sleep(_LAG)
                    return Seen.LIVE
                return interpret(reading, stop_refused=self.stop_refused)

    async def _recover(self, deed: Deed, error: Exception) -> None:
        self.seen = Seen.UNSURE
        self.last_trouble = error
        # The first refusal is the ordinary "already stopped": it costs no pause.
        pause = min(0.25 * 2.0 ** min(self.troubles, 10), _MAX_PAUSE) if self.troubles else 0.0
        self.troubles += 1
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is not None:
            # Honoured, but not to the end: an instance that is billed is asked about more than once.
            pause = max(pause, min(asked, (self.deadline - anyio.current_time()) / 3))
        log(
            Event.LEASE_TEARDOWN_RETRY,
            "instance %s: %s: %s",
            self.instance_id,
            deed.name.lower(),
            error,
            instance_id=self.instance_id,
            step=deed.name.lower(),
            wait=pause,
            error_type=type(error).__name__,
            request_id=getattr(error, "request_id", None),
        )
        await anyio.sleep(pause)


def _is_at_rest(instance: Instance | None) -> bool:
    return instance is None or instance.status.lower() in TERMINAL_STATUSES


def _is_gone(instance: Instance | None) -> bool:
    return interpret(instance, stop_refused=False) is Seen.GONE
