"""Stop and delete one instance, repeating the requests until the service confirms it.

`next_action` chooses the next action from the last observed state of the instance. `Teardown.run` performs
it, and repeats this until a reading shows that the goal is reached. A response alone is never trusted: a lost
response may hide a success, and it is undocumented how the service responds to `stop` for a pending or
stopped instance.

A reading may be outdated, because reading lags behind writing and replicas may disagree. So an instance
counts as gone only after an accepted delete, or when readings several seconds apart agree and another request
was sent between them. The same is true for "stopped" if the goal is to stop the instance and the service did
not accept a stop request.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import anyio
from attrs import define, field

from .._aio.synchronization import Backoff
from .._errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConflictError,
    DecodeError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    TeardownError,
)
from .._logging import Event, log
from .domain import Instance
from .instances import Instances
from .subscription import ABSENCE_SPAN
from .waiting import has_ended, wait_until

# Seconds after which an accepted stop or delete request that had no effect is sent again.
_EFFECT_TIMEOUT = 10.0

# Seconds after an accepted stop for which a missing instance counts as invisible if none of our deletes could
# have deleted it: it existed when it was stopped.
_SINCE_STOP = 60.0

# Seconds before another stop is sent for a new instance that is not visible yet.
_INVISIBLE_PAUSE = 1.0

# Seconds between attempts at the same action: the first pause and the longest, after failures and after 429.
_FAILURE_PAUSES, _RATE_LIMIT_PAUSES = (0.5, 10.0), (0.25, 1.0)

# Statuses, in lower case, of an instance that is not stopped yet. "stopping" is undocumented. Any other
# undocumented status may mean "stopped": the delete shows whether it does.
_NOT_STOPPED = frozenset({"pending", "running", "stopping"})


class Goal(enum.Enum):
    """The state in which a teardown ends."""

    STOPPED = "stopped"
    GONE = "gone"


class ObservedState(enum.Enum):
    """The known state of the instance."""

    LIVE = enum.auto()  # pending, running, or not known yet
    STOPPING = enum.auto()  # a stop request was accepted, or was refused although it is not stopped yet
    STOPPED = enum.auto()
    DELETED = enum.auto()  # a delete was accepted, but not confirmed yet
    UNCONFIRMED = enum.auto()  # the last reading says that it is stopped or gone, but may be outdated
    GONE = enum.auto()
    UNSURE = enum.auto()  # the last request failed


class Action(enum.Enum):
    """The next step of a teardown."""

    STOP = enum.auto()
    AWAIT_STOP = enum.auto()
    DELETE = enum.auto()
    VERIFY = enum.auto()  # that it is gone
    READ = enum.auto()
    NOTHING = enum.auto()


def next_action(goal: Goal, state: ObservedState) -> Action:
    """Return the next step toward the goal."""
    match state:
        case ObservedState.LIVE | ObservedState.UNCONFIRMED:
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


def interpret(instance: Instance, goal: Goal, *, stop_refused: bool) -> ObservedState:
    """Return what a reading of an existing instance says about the state.

    After a refused stop, any terminal status counts as stopped. An unknown status also does if a delete
    follows. Before that, only "stopped" counts.
    """
    if instance.status.lower() == "deleted":
        return ObservedState.GONE
    if instance.status.lower() == "stopped":
        return ObservedState.STOPPED
    if not stop_refused:
        return ObservedState.LIVE
    return ObservedState.STOPPED if is_stopped(instance, goal) else ObservedState.STOPPING


def is_stopped(instance: Instance | None, goal: Goal) -> bool:
    """Return whether a reading after a stop request shows that the next step can begin."""
    if has_ended(instance):
        return True
    # A delete fails unless the instance is stopped. Without a delete, an unknown status proves nothing.
    return goal is Goal.GONE and instance is not None and instance.status.lower() not in _NOT_STOPPED


@define
class Teardown:
    """A single teardown. `run` can be called again after an interruption, with the same deadline.

    Attributes:
        instances: Sends the requests, without retries: the teardown has its own.
        deadline: In seconds of `anyio.current_time`.
        is_wanted: Called before each step. The teardown ends once it returns False.
        state: The last observed state.
        visible_at: The time, on the same clock, until which readings may be older than the request that
            started or restarted the instance, unless one has shown that it is active.
        inactive_since: The time, on the same clock, since which all readings are without the instance or, if
            the goal is to stop it, show it stopped.
        seems_gone: Whether it was missing from the last of these readings.
        asked_again: Whether a stop or delete request was sent since then.
        delete_accepted: Whether the service accepted a delete.
        may_be_deleted: Whether a delete was accepted or has an unknown outcome.
        may_be_stopped: Whether a stop request was accepted or has an unknown outcome.
        repeats_delete: Whether the last confirmation sends a delete request instead of a stop request.
        has_acted: Whether the service accepted a stop or delete request.
        stopped_at: The time the service last accepted a stop request, on the same clock.
        stop_refused: Whether the last stop was refused.
        delete_refused: Whether the last delete was refused.
        loss: How the instance was lost before any request of this teardown, such as 'disappeared', or None if
            it was not lost.
    """

    instances: Instances
    instance_id: str
    goal: Goal
    deadline: float
    is_wanted: Callable[[], bool] = lambda: True
    state: ObservedState = ObservedState.LIVE
    visible_at: float = -math.inf
    inactive_since: float | None = None
    seems_gone: bool = False
    asked_again: bool = False
    delete_accepted: bool = False
    may_be_deleted: bool = False
    repeats_delete: bool = False
    may_be_stopped: bool = False
    _was_maybe_stopped: bool = False
    has_acted: bool = False
    stopped_at: float | None = None
    stop_refused: bool = False
    delete_refused: bool = False
    loss: str | None = None
    last_error: Exception | None = None
    # The pauses after failures of each action since its last success, and after 429.
    _backoffs: defaultdict[Action, Backoff] = field(factory=lambda: defaultdict(_new_backoff))
    _rate_limit_backoff: Backoff = field(factory=lambda: Backoff(*_RATE_LIMIT_PAUSES))

    async def run(self) -> None:
        """Stop or delete the instance. Return once the service confirms it, or `is_wanted` returns False.

        Raises:
            TeardownError: if the goal was not confirmed by the deadline.
        """
        with anyio.CancelScope(deadline=self.deadline):
            while (action := next_action(self.goal, self.state)) is not Action.NOTHING and self.is_wanted():
                try:
                    self.state = await self._perform(action)
                    self._backoffs.pop(action, None)
                    self._rate_limit_backoff.reset()
                except RateLimitError as error:
                    # The service did nothing, so the state is the same, and this is not a failure.
                    self._note_rejection(action, error)
                    await self._pause(action, error, self._rate_limit_backoff.next())
                except (BadRequestError, ConflictError, NotFoundError) as refusal:
                    # Already stopped, already gone, or not ready for it yet: the next reading shows which.
                    self.stop_refused = action is Action.STOP
                    self._note_rejection(action, refusal)
                    self.delete_refused = self.delete_refused or action is Action.DELETE
                    asks = action in {Action.STOP, Action.DELETE}
                    # A conflict means that it exists, unless an accepted stop causes the conflict.
                    is_conflict = isinstance(refusal, ConflictError) and self.stopped_at is None
                    if asks and not (is_conflict and self.seems_gone):
                        self.asked_again = True
                    await self._recover(action, refusal, is_expected=asks and self.inactive_since is not None)
                except DecodeError as error:
                    await self._recover(action, error)
                    if action is not Action.DELETE:
                        self.state = self._after_unreadable(action)
                except ClientClosedError as error:
                    self.last_error = error  # the user closed `http_client`: no request can be sent
                    break
                except Exception as error:  # noqa: BLE001  (a credential provider's or a transport's own)
                    await self._recover(action, error)
                    self._note_failure(action, outcome_unknown=getattr(error, "outcome_unknown", True))
            else:
                return
        raise self.error("Stop it with client.instances.stop()")

    def error(self, advice: str) -> TeardownError:
        """Return the error of a teardown that did not reach its goal. `advice` is its last sentence."""
        if isinstance(self.last_error, (AuthenticationError, PermissionDeniedError)):
            advice = "If the client secret was replaced, run `cortecs-async sweep` with the new one"
        cause = f" Last error: {f'{self.last_error}'.rstrip('.')}." if self.last_error else ""
        return TeardownError(
            f"Instance {self.instance_id} could not be {'deleted' if self.goal is Goal.GONE else 'stopped'} "
            f"in time (last state: {self.state.name.lower()}).{cause} IT MAY STILL BE BILLED. {advice}.",
            instance_id=self.instance_id,
        )

    async def _perform(self, action: Action) -> ObservedState:  # noqa: PLR0911  (each action has its outcomes)
        instance_id, poller = self.instance_id, self.instances.poller
        match action:
            case Action.STOP:
                # Even if this is interrupted.
                self._was_maybe_stopped, self.may_be_stopped = self.may_be_stopped, True
                instance = await self.instances.stop(instance_id)
                self._stop_was_accepted()
                # The response is enough if a delete follows, which fails unless the instance is stopped.
                is_enough = self.goal is Goal.GONE and is_stopped(instance, self.goal)
                return ObservedState.STOPPED if is_enough else ObservedState.STOPPING
            case Action.AWAIT_STOP:
                with anyio.move_on_after(_EFFECT_TIMEOUT):
                    is_stopped_then = partial(is_stopped, goal=self.goal)
                    reading = await wait_until(poller, instance_id, is_stopped_then, absence=0.0)
                    if reading is None and self.goal is Goal.GONE:
                        # It may just be invisible. The delete fails unless it is stopped.
                        return ObservedState.STOPPED
                    return await self._assess(reading, stop_refused=True)
                self.stop_refused = False
                # The service may have another word for "stopped". The delete fails unless it is stopped.
                can_delete = self.goal is Goal.GONE and self.stopped_at is not None
                return ObservedState.STOPPED if can_delete else ObservedState.LIVE
            case Action.DELETE:
                await self._delete()
                return ObservedState.DELETED
            case Action.VERIFY:
                with anyio.move_on_after(_EFFECT_TIMEOUT):
                    await wait_until(poller, instance_id, _is_gone, trust_list=True)
                    return ObservedState.GONE
                return ObservedState.UNSURE
            case Action.READ | Action.NOTHING:
                with anyio.move_on_after(_EFFECT_TIMEOUT):
                    reading = await poller.next(poller.subscribe(instance_id, absence=0.0))
                    return await self._assess(reading, stop_refused=self.stop_refused)
                return self._after_unreadable(action)

    async def _delete(self) -> None:
        may_be_deleted, self.may_be_deleted = self.may_be_deleted, True  # even if this is interrupted
        try:
            await self.instances.delete(self.instance_id)
        except Exception as error:
            if not getattr(error, "outcome_unknown", True):
                self.may_be_deleted = may_be_deleted
            raise
        self.has_acted = self.delete_accepted = True

    async def _assess(self, reading: Instance | None, *, stop_refused: bool) -> ObservedState:
        """Return what a reading says about the state, or how to continue if it proves nothing."""
        if self.may_be_stopped:
            self.loss = None
        elif not (self.has_acted or self.may_be_deleted):
            # The service refused every request, which agrees with a reading that it has ended.
            self.loss = _loss(reading) if self.asked_again or self.stop_refused else None
        if reading is None:
            return ObservedState.GONE if self.delete_accepted else await self._confirm(ObservedState.GONE)
        if not has_ended(reading):
            self.visible_at = -math.inf
        state = interpret(reading, self.goal, stop_refused=stop_refused)
        if state is ObservedState.STOPPED and self.goal is Goal.STOPPED and self.stopped_at is None:
            # It may have been stopped before a restart that this reading does not show yet.
            return await self._confirm(state)
        self.inactive_since = None
        return state

    async def _confirm(self, state: ObservedState) -> ObservedState:
        """Return `state` once readings seconds apart agree and another request was sent between them."""
        now = anyio.current_time()
        self.seems_gone = state is ObservedState.GONE
        if self.inactive_since is None:
            self.inactive_since, self.asked_again = now, False
        agree_at = self.inactive_since + ABSENCE_SPAN - 1e-6  # the sum of the pauses may be slightly less
        if self.goal is Goal.GONE and self.stopped_at is not None and not self.may_be_deleted:
            agree_at = max(agree_at, self.stopped_at + _SINCE_STOP)
        if self.asked_again and now >= max(agree_at, self.visible_at):
            return state
        await anyio.sleep(_INVISIBLE_PAUSE if now < self.visible_at else ABSENCE_SPAN)
        # If the delete came too early or did not arrive, lists may hide the stopped instance, but a delete
        # finds it. Delete and stop requests alternate, because the responses to deletes may be lost.
        is_lost = self.may_be_deleted and self.stopped_at is not None and not self.repeats_delete
        self.repeats_delete = self.delete_refused or is_lost
        return ObservedState.STOPPED if self.repeats_delete else ObservedState.UNCONFIRMED

    def _stop_was_accepted(self) -> None:
        self.stopped_at = anyio.current_time()
        self.has_acted = self.asked_again = True
        self.loss = None

    def _after_unreadable(self, action: Action) -> ObservedState:
        """Return the state after a response whose description of the instance cannot be parsed."""
        if action is Action.STOP:
            self._stop_was_accepted()
        if self.stopped_at is None:
            return ObservedState.LIVE
        # The delete shows whether it is stopped.
        return ObservedState.STOPPED if self.goal is Goal.GONE else ObservedState.UNSURE

    def _note_rejection(self, action: Action, rejection: APIStatusError) -> None:
        # HTML comes from a proxy, which may have forwarded the request.
        if action is Action.STOP and rejection.has_json_body:
            self.may_be_stopped = self._was_maybe_stopped

    def _note_failure(self, action: Action, *, outcome_unknown: bool) -> None:
        if action is Action.DELETE:
            self.delete_refused = False
            if not outcome_unknown:
                self.state = ObservedState.STOPPED  # nothing was deleted

    async def _recover(self, action: Action, error: Exception, *, is_expected: bool = False) -> None:
        self.state = ObservedState.UNSURE
        # The first failure is usually the refusal "already stopped", which does not need a pause.
        needs_pause = self.last_error is not None and not is_expected
        await self._pause(action, error, self._backoffs[action].next() if needs_pause else 0.0)

    async def _pause(self, action: Action, error: Exception, pause: float) -> None:
        self.last_error = error
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        if retry_after is not None:
            # Leave time for more attempts: the instance is billed until it is stopped.
            pause = max(pause, min(retry_after, (self.deadline - anyio.current_time()) / 3))
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


def _new_backoff() -> Backoff:
    return Backoff(*_FAILURE_PAUSES)


def _loss(reading: Instance | None) -> str | None:
    if not has_ended(reading):
        return None
    return "disappeared" if reading is None else f"became {reading.status!r}"


def _is_gone(instance: Instance | None) -> bool:
    return instance is None or instance.status.lower() == "deleted"
