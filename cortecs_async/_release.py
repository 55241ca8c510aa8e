"""Handing back what a lease holds: find it if need be, tear it down, and close its entry in the books."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Literal

import anyio
from attrs import define

from ._api.instances import Instances, Origin
from ._api.teardown import Goal, Teardown
from ._errors import AmbiguousStartError, ClientClosedError, CortecsError, TeardownError
from ._recovery.promises import Keeper
from ._start import Start, State
from ._starts import Starter

OnExit = Literal["delete", "stop", "keep"]


def goal_of(on_exit: OnExit, origin: Origin) -> Goal | None:
    """What a lease owes at its end. An instance that was there before is left as it was found."""
    match origin:
        case Origin.FOUND:
            return None
        case Origin.RESTARTED:
            return None if on_exit == "keep" else Goal.STOPPED
        case Origin.STARTED:
            return {"delete": Goal.GONE, "stop": Goal.STOPPED, "keep": None}[on_exit]


class _Step(enum.Enum):
    FIND = enum.auto()
    TEAR_DOWN = enum.auto()
    CLOSE = enum.auto()
    DONE = enum.auto()


@define(eq=False)
class Holding:
    """What a lease holds, and so owes.

    Attributes:
        instance_id: None as long as no instance is known.
        origin: Where it came from.
        key: Its entry in the books; None when nothing is owed.
        start: The start that made it, or may have.
    """

    instance_id: str | None = None
    origin: Origin = Origin.STARTED
    key: str | None = None
    start: Start | None = None

    @property
    def name(self) -> str:
        """What it is, for people."""
        if self.instance_id is not None:
            return f"instance {self.instance_id}"
        return f"a start of {self.start.args.hf_name}" if self.start is not None else "nothing"

    @property
    def billed_from(self) -> float | None:
        """When its start was sent, in seconds of `anyio.current_time`; None for what was there before."""
        return self.start.sent_at if self.origin is Origin.STARTED and self.start is not None else None

    @property
    def open_key(self) -> str | None:
        """The entry that stands for all this."""
        return self.key or (self.start.key if self.start is not None else None)

    def may_hold_something(self) -> bool:
        """Whether there is an instance, or may be."""
        if self.instance_id is not None:
            return True
        return self.start is not None and self.start.state in {State.SENT, State.UNKNOWN}


def _nothing() -> None:
    """Nobody wants to know."""


@define(eq=False)
class Release:
    """One release; can be taken up again after an interruption, with the same deadline.

    Attributes:
        instances: Where the requests of the teardown go, unretried.
        starter: Finds what a start without an answer has made.
        keeper: The books.
        holding: What to hand back.
        on_exit: What becomes of it.
        deadline: In seconds of `anyio.current_time`.
        settle: Seconds after its start in which an instance that is missing may just not be readable yet.
        on_work: Called before something is found or torn down, again after an interruption. Must not raise.
    """

    instances: Instances
    starter: Starter
    keeper: Keeper
    holding: Holding
    on_exit: OnExit
    deadline: float
    settle: float = 0.0
    on_work: Callable[[], None] = _nothing
    failure: CortecsError | None = None
    _teardown: Teardown | None = None
    _step: _Step = _Step.FIND

    @property
    def goal(self) -> Goal | None:
        """Where it ends; None when nothing is owed."""
        return None if self.holding.instance_id is None else goal_of(self.on_exit, self.holding.origin)

    @property
    def stopped_at(self) -> float | None:
        """When the instance was last told to stop, in seconds of `anyio.current_time`."""
        return None if self._teardown is None else self._teardown.stopped_at

    async def run(self) -> None:
        """Works until it is done or its time is up; what could not be done is in `failure`."""
        if self.goal is not None or self.holding.instance_id is None:
            self.on_work()
        if self._step is _Step.FIND:
            await self._find()
            self._step = _Step.TEAR_DOWN
        if self._step is _Step.TEAR_DOWN:
            await self._tear_down()
            self._step = _Step.CLOSE
        if self._step is _Step.CLOSE:
            self._close()
            self._step = _Step.DONE
        # A journal that is a little behind does no harm: what is gone is looked up in vain.
        await self.keeper.settle_anyhow()

    async def _find(self) -> None:
        start = self.holding.start
        if start is None or start.state not in {State.SENT, State.UNKNOWN}:
            return
        with anyio.CancelScope(deadline=self.deadline) as time:
            try:
                await self.starter.resolve(start, eager=True)
            except (AmbiguousStartError, ClientClosedError) as error:
                self.failure = error
        if time.cancelled_caught:
            self.failure = CortecsError(
                f"whether a start of {start.args.hf_name} made an instance could not be told in time. IT MAY "
                "BE BILLED: the reaper goes on looking, and `python -m cortecs_async sweep` does."
            )
        if self.failure is not None:
            start.no_longer_unknown(State.GIVEN_UP)

    async def _tear_down(self) -> None:
        goal, instance_id = self.goal, self.holding.instance_id
        if goal is None or instance_id is None:
            return
        began = self.holding.billed_from
        if self._teardown is None:
            self._teardown = Teardown(
                instances=self.instances,
                instance_id=instance_id,
                goal=goal,
                deadline=self.deadline,
                settled_at=-math.inf if began is None else began + self.settle,
            )
        self.instances.releasing.add(instance_id)
        try:
            await self._teardown.run()
        except TeardownError as error:
            self.failure = error
        finally:
            self.instances.releasing.discard(instance_id)

    def _close(self) -> None:
        key = self.holding.open_key
        if key is None:
            return
        if self.failure is None:
            if self.goal is Goal.GONE and self.holding.instance_id is not None:
                self.instances.claims.ids.discard(self.holding.instance_id)
            # An instance that stays on purpose was handed over when the block began.
            if self.goal is not None or self.holding.instance_id is None:
                self.keeper.done(key)
        elif not isinstance(self.failure, AmbiguousStartError):
            self.keeper.abandoned(key)
