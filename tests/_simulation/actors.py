"""Processes and reapers of a world, which can be killed at any step."""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
import httpx
from anyio.abc import TaskGroup
from attrs import define

from cortecs_async import AsyncCortecs
from cortecs_async._errors import ClientClosedError, GuardError
from cortecs_async._recovery import reaper as _reaper
from cortecs_async._recovery.journal import JournalFile, try_lock
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.reaper_process import _ACTION_KINDS, revealed
from cortecs_async._recovery.records import Record
from cortecs_async._recovery.recover import reap_account

from .data import Kill, Process
from .network import Network, current_lease

if TYPE_CHECKING:
    from .run import Simulation

T = TypeVar("T")

# The Unix time of the emulator at virtual time zero.
EPOCH = 1_735_689_600.0

# The running process or reaper. All tasks inherit it, including the client's tasks.
current_actor: contextvars.ContextVar[Actor] = contextvars.ContextVar("current_actor")


@define(eq=False)
class Machine:
    """A machine with its disk and clock.

    Attributes:
        state: The state directory, which survives a kill.
        clock: Seconds by which its clock is ahead.
    """

    index: int
    state: Path
    clock: float


class Actor:
    """A process, a reaper, or a sweep.

    Attributes:
        killed_at: The time when it was killed. Infinite if it was not.
        steps: The number of steps so far: requests, responses, and writes before and after.
        network: Its connections.
        asked: The number of its requests for what is available.
        probed: The number of its requests to endpoints.
    """

    def __init__(self, world: Simulation, machine: Machine, kills: Iterable[Kill] = ()) -> None:
        self.world = world
        self.machine = machine
        self.killed_at = math.inf
        self.steps = 0
        self.network = Network(world, self)
        self.asked = self.probed = 0
        self._hung_until = -math.inf
        self._kills = [kill for kill in kills if kill.step is not None]

    @property
    def is_alive(self) -> bool:
        return math.isinf(self.killed_at)

    def step(self) -> None:
        """Count a step and perform all kills that are due."""
        if not self.is_alive:
            return
        self.steps += 1
        for kill in self._kills:
            if kill.step == self.steps:
                self.world.kill(kill)

    @property
    def is_hanging(self) -> bool:
        return self.is_alive and anyio.current_time() < self._hung_until

    def hang(self, seconds: float) -> None:
        """Block its event loop: from now on, nothing that it does has an effect."""
        self._hung_until = max(self._hung_until, anyio.current_time() + seconds)

    async def unblocked(self) -> None:
        """Wait until its event loop is not blocked, or it was killed."""
        while self.is_hanging:  # noqa: ASYNC110
            await anyio.sleep(min(self._hung_until - anyio.current_time(), 1.0))

    def kill(self) -> None:
        """End it without running any of its own code."""
        if self.is_alive:
            self.killed_at = anyio.current_time()
            self._end()

    def _end(self) -> None:
        """Stop its tasks."""


def wall_clock() -> float:
    """Return the Unix time of the current actor's machine."""
    return EPOCH + anyio.current_time() + current_actor.get().machine.clock


async def run_inline(work: Callable[[], T], /) -> T:
    """Run blocking work in the event loop, because virtual time does not wait for threads.

    Like a thread, it cannot be cancelled.
    """
    actor = current_actor.get()
    actor.step()
    await anyio.lowlevel.checkpoint()
    try:
        with anyio.CancelScope(shield=True):
            await actor.unblocked()
            await anyio.sleep(0.001)
    finally:
        if not actor.is_alive:
            raise ClientClosedError("the process was killed")
        result = work()
        actor.step()
    return result


def run_in_background(work: Callable[[], object]) -> None:
    """Run blocking work of the current actor, at once unless its event loop is blocked."""
    actor = current_actor.get()

    async def run_later() -> None:
        await actor.unblocked()
        if actor.is_alive:
            work()

    if actor.is_hanging:
        actor.world.tasks.start_soon(run_later)
    else:
        work()


class ProcessActor(Actor):
    """A process with a client.

    Attributes:
        reapers: Its reapers so far. Only the last one can be alive.
    """

    def __init__(self, world: Simulation, index: int, plan: Process, kills: Sequence[Kill]) -> None:
        own = [kill for kill in kills if kill.what != "reaper"]
        super().__init__(world, world.machines[plan.machine % len(world.machines)], own)
        self.index = index
        self.plan = plan
        self.reapers: list[WorldReaper] = []
        self.reaper_kills = [kill for kill in kills if kill.what == "reaper"]
        self.cancel: Callable[[], object] = lambda: None
        self._client: AsyncCortecs | None = None
        self._http: httpx.AsyncClient | None = None

    @property
    def has_begun(self) -> bool:
        return self._client is not None

    def make_client(self, **options: Any) -> AsyncCortecs:
        """Create its client. Must be called with it as the current actor."""
        self._http = httpx.AsyncClient(transport=self.network, trust_env=False)
        self._client = self.world.make_client(self._http, self.machine, **options)
        return self._client

    async def aclose(self) -> None:
        """Close its client, which a kill may interrupt."""
        if self._client is not None:
            with contextlib.suppress(ClientClosedError):
                await self._client.aclose()

    def _end(self) -> None:
        if self._client is not None and self._http is not None:
            # Code that catches the cancellation can no longer do anything.
            self._http._state = httpx._client.ClientState.CLOSED
            store = self._client._wiring.promises.store
            if store._journal is not None:
                store._journal.close()
                store._journal = None
            store.commit = store.leave = _do_nothing  # type: ignore[method-assign]
            store.foreign_states = _no_states  # type: ignore[method-assign]
        if self.reapers:
            self.reapers[-1].see_end()
        self.cancel()


def _do_nothing(**_: bool) -> None:
    """Do nothing, in place of writing."""


def _no_states(*_: Any, **__: Any) -> list[Any]:
    return []


class WorldReaper(Actor):
    """A reaper on virtual time that makes the same decisions as the real one."""

    def __init__(self, parent: ProcessActor, send: Callable[[Record], None], serial: int) -> None:
        super().__init__(parent.world, parent.machine, parent.reaper_kills if serial == 0 else ())
        self.parent = parent
        self.reaper = _reaper.Reaper(send, _reap_nothing, wall_clock)
        self.is_done = False
        self.has_unlocked_journal = False
        self._sees_end = False
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._locked: JournalFile | None = None

    def receive(self, message: Record) -> None:
        """Receive a message from the parent."""
        self.step()
        if self.is_alive:
            self.reaper.receive(message)
            self._changed.set()

    def see_end(self) -> None:
        """See the end of the pipe."""
        self._sees_end = True
        self._changed.set()

    async def serve(self) -> None:
        """Do the same as `reaper.serve`."""
        current_actor.set(self)
        current_lease.set(None)
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    await self._serve(tasks)
        finally:
            self.is_done = True

    async def _serve(self, tasks: TaskGroup) -> None:
        reaper = self.reaper
        while not reaper.has_bye:
            if self._sees_end:
                break
            due = reaper.next_due()
            with anyio.move_on_after(math.inf if due is None else max(due - wall_clock(), 0.0)):
                await self._changed.wait()
            self._changed = anyio.Event()
            if late := reaper.take_due(wall_clock(), threading.current_thread()):
                tasks.start_soon(self._reap, late)
        else:
            return
        await self._recover_after_parent()

    async def _recover_after_parent(self) -> None:
        reaper = self.reaper
        reaper._send = _reaper._discard
        try:
            path = reaper._journal_path()
            self._locked = try_lock(path) if path is not None else None
            pending = reaper._not_begun()
            if reaper.state.promises:
                self._report({"kind": "ORPHANED"})
            if pending:
                await self._reap(pending)
        except BaseException:
            self._unlock()
            raise
        # Unlike the real reaper, it does not wait for work that it began while its parent lived. So a `sweep`
        # works on the same promises, as a real one does if it gets the journal's lock before the reaper.
        locked, self._locked = self._locked, None
        if locked is None and path is not None:
            locked = try_lock(path)
        if locked is not None:
            locked.retire(reaper.state)

    def _unlock(self) -> None:
        locked, self._locked = self._locked, None
        if locked is not None:
            locked.close()

    def _unlock_journal(self) -> None:
        self.has_unlocked_journal = True
        self._unlock()

    async def _reap(self, promises: Sequence[Promise]) -> None:
        reaper = self.reaper
        async with anyio.create_task_group() as tasks:
            for account in {promise.account for promise in promises} & reaper.accounts.keys():
                mine = [promise for promise in promises if promise.account == account]
                tasks.start_soon(self._reap_account, mine, reaper.accounts[account])

    async def _reap_account(self, promises: Sequence[Promise], account: Record) -> None:
        reaper = self.reaper
        async with httpx.AsyncClient(transport=self.network, trust_env=False) as http:
            await reap_account(
                *(reaper.state, promises, account, self._report, reaper._journal_path()),
                unlock_journal=self._unlock_journal,
                http_client=http,
                wall_clock=wall_clock,
            )

    def _report(self, record: Record) -> None:
        self.step()
        if self.is_alive:
            self.reaper._report(record)

    def _end(self) -> None:
        self._unlock()
        self._scope.cancel()
        self.is_done = True
        self.world.tasks.start_soon(self.parent_sees_death)

    async def parent_sees_death(self) -> None:
        """Notify the parent of the reaper's death, as its listening thread does."""
        current_actor.set(self.parent)
        await anyio.sleep(0.01)
        if self.parent.is_alive:
            self.reaper._send({"dead": True})


def _reap_nothing(*_: Any) -> None:
    raise AssertionError("the world reaps on its own")


class WorldReaperProcess:
    """Replaces `ReaperProcess`: the parent's side of a `WorldReaper`."""

    def __init__(self, on_death: Callable[[], None], on_action: Callable[[Record], None], *_: object) -> None:
        self._on_death = on_death
        self._on_action = on_action
        self._child: WorldReaper | None = None
        self._last_sent = self._last_acknowledged = 0

    @property
    def is_running(self) -> bool:
        return self._child is not None and not self._child.is_done

    def start(self) -> None:
        parent = current_actor.get()
        assert isinstance(parent, ProcessActor)
        self.kill()

        def receive(message: Record) -> None:
            if self._child is child and parent.is_alive:
                self._receive(message)

        child = self._child = WorldReaper(parent, receive, len(parent.reapers))
        parent.reapers.append(child)
        self._last_sent = self._last_acknowledged = 0
        parent.world.tasks.start_soon(child.serve)

    def handshake(self) -> None:
        """Do nothing, because the reaper shares the interpreter."""

    def send(self, messages: Iterable[Record]) -> None:
        child = self._child
        if child is None:
            raise GuardError("the reaper is not running")
        for message in messages:
            self._last_sent += 1
            child.receive({**revealed(message), "number": self._last_sent})
            if self._last_acknowledged < self._last_sent:
                self._child = None
                child.kill()
                raise GuardError("the reaper did not respond")

    def rehearsed(self, _: str) -> str:
        return ""

    def shutdown(self) -> None:
        self._leave(lambda child: child.receive({"kind": "BYE", "number": 0}))

    def detach(self) -> None:
        self._leave(WorldReaper.see_end)

    def kill(self) -> None:
        self._leave(WorldReaper.kill)

    def _leave(self, how: Callable[[WorldReaper], None]) -> None:
        child, self._child = self._child, None
        if child is not None:
            how(child)

    def _receive(self, message: Record) -> None:
        if "dead" in message:
            self._on_death()
        elif "action" in message:
            if message["action"]["kind"] in _ACTION_KINDS:
                self._on_action(json.loads(json.dumps(message["action"])))
        else:
            self._last_acknowledged = int(message["ack"])
