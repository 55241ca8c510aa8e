"""Random lives under random faults, on virtual time: the programs, the world they run in, and what must hold.

A program is data (`Program`), so that hypothesis can draw it, shrink it, and print it for a test of its own.
`simulate` runs one against the emulator on a fresh event loop, lets the dust settle, has a second client
`sweep`, and judges what is left. Whatever does not hold is a line of `Outcome.problems`.

What no client can decide is kept out, and nothing else: the service has no tags, so when a start is lost
*before* the deed, a fitting instance that somebody else starts between the client's look at what exists and
the end of its search cannot be told from its own. The neighbour of these programs starts fitting instances at
any other time, also while a start whose deed was done is being looked for (`Simulation.is_decidable`).
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio.testing
from _virtual_time import VirtualTimeLoop
from attrs import define, field, frozen
from hypothesis import strategies as st

from cortecs_async import AsyncCortecs, InstanceLease, errors
from cortecs_async._aio.threads import System
from cortecs_async._client.wiring import Wiring
from cortecs_async._recovery import store as _store
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.emulator._messages import Request, Response
from cortecs_async.emulator._routing import Match
from cortecs_async.types import LeaseInfo, Orphan, PhaseEnd, RequestRetry, Telemetry

T = TypeVar("T")

Backend = Literal["asyncio", "trio"]

# What the client is told or has as a default, and what the bounds below are made of.
REQUEST_TIMEOUT = 30.0
ADOPTION_WINDOW = 60.0
PRICE_PATIENCE = 10.0
SWEEP_TIMEOUT = 300.0
# Seconds of virtual time that file work and the order of events may add to a bound.
SLACK = 1.0
# More turns of the event loop than these at one instant of virtual time are a busy loop.
MOST_TURNS = 3000

# The emulator's date for the time zero of a clock that is not the machine's.
EPOCH = 1_735_689_600.0

EIGHT_B, SEVEN_B = "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"


# --- programs -----------------------------------------------------------------------------------------------


@frozen
class Wanted:
    """The arguments of a start; one that names no hardware fits any."""

    model: str = EIGHT_B
    hardware: str | None = None
    workers: int = 1

    @property
    def model_id(self) -> str:
        return self.model.replace("/", "--")


@frozen
class Cancel:
    """A cancellation.

    Attributes:
        after: Seconds from where it is armed.
        way: On asyncio also `asyncio.timeout`, or `task.cancel()`; trio has scopes only.
        again: `task.cancel()` once more, after each of these pauses.
    """

    after: float
    way: Literal["scope", "timeout", "task"] = "scope"
    again: tuple[float, ...] = ()


@frozen
class Lease:
    """One lease. The list of them reads as an outline.

    Attributes:
        depth: 0 for one of the program itself, more for one in the body of a lease before it.
        beside: At the same time as its predecessor of the same depth, instead of after it.
        wanted: What to start.
        on_exit: What becomes of it.
        start_timeout: Seconds.
        teardown_timeout: Seconds.
        before: Seconds that its caller waits before it enters.
        first: Seconds of its body before the leases inside it.
        last: Seconds of its body after them.
        fails: Whether its body raises in the end.
        handled: Whether its caller catches what comes out of it.
        cancel: Cancels this lease alone.
    """

    depth: int = 0
    beside: bool = False
    wanted: Wanted = Wanted()
    on_exit: Literal["delete", "stop"] = "delete"
    start_timeout: float = 900.0
    teardown_timeout: float = 120.0
    before: float = 0.0
    first: float = 0.0
    last: float = 0.0
    fails: bool = False
    handled: bool = True
    cancel: Cancel | None = None


@frozen
class Outage:
    """The whole service is away for a while.

    `busy` answers 503, `cut` hangs up, `refused` lets nobody connect, `silent` never answers: all four do
    nothing. `deaf` does what it is asked and hangs up.
    """

    begins: float
    lasts: float
    kind: Literal["busy", "cut", "refused", "silent", "deaf"] = "busy"


@frozen
class Visit:
    """Somebody else on the account starts what one of the leases starts, or something like it.

    Attributes:
        after: Seconds from the beginning of the program.
        like: Which lease's arguments; counted around.
        waits: Waits for a start whose answer is lost or late, to come into the middle of it.
    """

    after: float
    like: int = 0
    waits: bool = False


@frozen
class Service:
    """How the emulator behaves."""

    step_seconds: float = 1.0
    stop_seconds: float = 0.0
    token_lifetime: float = 3600.0
    unknown_status: int = 400
    num_workers_in_args: bool = True
    capacity: int | None = None


@frozen
class Program:
    """All of a run, as data.

    Attributes:
        leases: What it leases.
        faults: What goes wrong.
        outages: When everything does.
        visits: What somebody else starts meanwhile.
        cancel: Cancels the program.
        dies_after: Seconds until its process is killed; None to let it live.
        closes_inside: Whether the client's own block is cancelled with it, or is left afterwards.
        native: On asyncio, from Python 3.13, an `asyncio.TaskGroup` for what runs side by side, not anyio's.
        rest: Seconds from its end to the sweep.
        service: The emulator.
        seed: Of the jitter.
    """

    leases: tuple[Lease, ...]
    faults: tuple[Fault, ...] = ()
    outages: tuple[Outage, ...] = ()
    visits: tuple[Visit, ...] = ()
    cancel: Cancel | None = None
    dies_after: float | None = None
    closes_inside: bool = False
    native: bool = False
    rest: float = 100.0
    service: Service = Service()
    seed: int = 0


def _seconds(most: float) -> st.SearchStrategy[float]:
    # Never a round figure: what happens at the very time at which a time-out strikes is anybody's guess.
    return st.integers(0, int(most * 4)).map(lambda number: number / 4 + 0.07 if number else 0.0)


def _one_in(number: int, strategy: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    return st.integers(1, number).flatmap(lambda drawn: strategy if drawn == number else st.none())


_routes = st.sampled_from(
    ["start", "start", "start", "start", "list", "get", "stop", "delete", "token", "hardware_types", None]
)
_whens = st.sampled_from(["after", "after", "before"])
_times: dict[str, st.SearchStrategy[Any]] = {
    "skip": st.sampled_from([0, 0, 1, 2, 3, 5]),
    "times": st.sampled_from([1, 1, 1, 2, 3, 8, None]),
}
# A refusal is the truth here (`before`): of a service that says no and does it, nothing can be known.
_faults: st.SearchStrategy[Fault] = st.one_of(
    st.builds(Fault, kind=st.just("drop"), route=_routes, when=_whens, **_times),
    st.builds(
        Fault,
        kind=st.just("status"),
        route=_routes,
        when=_whens,
        status=st.sampled_from([500, 502, 503, 504, 408]),
        **_times,
    ),
    st.builds(Fault, kind=st.just("status"), route=_routes, status=st.just(401), **_times),
    st.builds(
        Fault,
        kind=st.just("status"),
        route=_routes,
        status=st.just(429),
        headers=st.sampled_from([{}, {"retry-after": "1"}, {"retry-after": "20"}, {"retry-after": "150"}]),
        **_times,
    ),
    st.builds(Fault, kind=st.just("garbage"), route=_routes, body=st.sampled_from([None, {}, []]), **_times),
    st.builds(Fault, kind=st.just("truncate"), route=_routes, **_times),
    st.builds(Fault, kind=st.just("delay"), route=_routes, when=_whens, seconds=_seconds(40), **_times),
    # A timed-out start is looked for for a minute more.
    st.builds(
        Fault,
        kind=st.just("delay"),
        route=st.just("start"),
        when=_whens,
        seconds=_seconds(REQUEST_TIMEOUT + ADOPTION_WINDOW - 1.0),
        **_times,
    ),
)

_cancels = st.builds(
    Cancel,
    after=_seconds(60) | _seconds(400),
    way=st.sampled_from(["scope", "timeout", "task"]),
    again=st.lists(_seconds(0.5) | _seconds(20), max_size=2).map(tuple),
)
_lease_cancels = st.builds(
    Cancel, after=_seconds(60) | _seconds(200), way=st.sampled_from(["scope", "timeout"])
)

_wanted = st.builds(
    Wanted,
    model=st.sampled_from([EIGHT_B, EIGHT_B, SEVEN_B]),
    hardware=st.sampled_from([None, "NVIDIA_H100_1", "NVIDIA_L4_1"]),
    workers=st.sampled_from([1, 1, 2]),
)


def _leases(kinds: Sequence[Wanted]) -> st.SearchStrategy[Lease]:
    return st.builds(
        Lease,
        depth=st.sampled_from([0, 0, 1, 2, 3]),
        beside=st.booleans(),
        wanted=st.sampled_from(kinds),
        on_exit=st.sampled_from(["delete", "delete", "stop"]),
        start_timeout=st.sampled_from([900.0, 900.0, 120.0, 40.0, 10.0]),
        teardown_timeout=st.sampled_from([120.0, 120.0, 600.0, 20.0, 5.0]),
        before=st.just(0.0) | _seconds(5) | _seconds(60),
        first=_seconds(5) | _seconds(60),
        last=_seconds(5) | _seconds(60),
        fails=st.sampled_from([False, False, False, True]),
        handled=st.sampled_from([True, True, False]),
        cancel=_one_in(5, _lease_cancels),
    )


# Few kinds: what wants the same can be mixed up.
_outlines: st.SearchStrategy[tuple[Lease, ...]] = st.lists(_wanted, min_size=1, max_size=2).flatmap(
    lambda kinds: st.lists(_leases(kinds), min_size=1, max_size=4).map(tuple)
)

programs: st.SearchStrategy[Program] = st.builds(
    Program,
    leases=_outlines,
    faults=st.lists(_faults, max_size=5).map(tuple),
    outages=st.lists(
        st.builds(
            Outage,
            begins=_seconds(60),
            lasts=_seconds(60) | _seconds(400),
            kind=st.sampled_from(["busy", "cut", "refused", "silent", "deaf"]),
        ),
        max_size=1,
    ).map(tuple),
    visits=st.lists(
        st.builds(
            Visit, after=_seconds(60), like=st.integers(0, 3), waits=st.sampled_from([True, True, False])
        ),
        max_size=3,
    ).map(tuple),
    cancel=_one_in(3, _cancels),
    dies_after=_one_in(6, _seconds(20) | _seconds(150)),
    closes_inside=st.booleans(),
    native=st.booleans(),
    rest=st.sampled_from([100.0, 100.0, 5000.0]),
    service=st.builds(
        Service,
        step_seconds=st.sampled_from([0.0, 0.3, 2.0, 12.0]),
        stop_seconds=st.sampled_from([0.0, 0.0, 1.3, 14.0]),
        token_lifetime=st.sampled_from([3600.0, 3600.0, 45.0]),
        unknown_status=st.sampled_from([400, 404]),
        num_workers_in_args=st.booleans(),
        capacity=st.sampled_from([None, None, None, 2]),
    ),
    seed=st.integers(0, 3),
)


# --- what is noted ------------------------------------------------------------------------------------------


class Problem(Exception):  # noqa: N818  (a user's exception, no error of ours)
    """What a body raises."""


@define(eq=False)
class Sent:
    """One request of a start, as it was on the wire.

    Attributes:
        lease: Whose.
        at: When it was sent.
        over_at: When the client had its answer, or hung up; None while it is under way.
        answer: `ok` for one that tells the instance, `refused` for a 4xx; None for none, or none of use.
        instance_id: What it made.
        done_at: When.
    """

    lease: int
    at: float
    over_at: float | None = None
    answer: Literal["ok", "refused"] | None = None
    instance_id: str | None = None
    done_at: float = math.inf

    @property
    def is_beyond_search(self) -> bool:
        """Done later than any client looks for it, which is the service's doing."""
        return self.over_at is not None and self.done_at > self.over_at + ADOPTION_WINDOW


@define(eq=False)
class Life:
    """What became of one lease, in seconds of virtual time."""

    number: int
    plan: Lease
    entered_at: float
    body_at: float | None = None
    body_ended_at: float | None = None
    left_at: float = math.inf
    instance_id: str | None = None
    raised: BaseException | None = None
    out: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether what it started may show itself after it was left: its end says so."""
        return math.isinf(self.left_at) or _admits_a_leftover(self.out)


def _admits_a_leftover(error: BaseException | None) -> bool:
    """Whether an exception says that something may still be billed."""
    if error is None:
        return False
    if isinstance(error, errors.TeardownError | errors.AmbiguousStartError):
        return True
    text = f"{error} {' '.join(getattr(error, '__notes__', ()))}"
    return "BILLED" in text


@define
class Outcome:
    """How a program went.

    Attributes:
        problems: What should have held and did not.
        tally: What it had, for figures.
    """

    problems: list[str] = field(factory=list)
    tally: Counter[str] = field(factory=Counter)


# --- the wire -----------------------------------------------------------------------------------------------

# The lease that a request is of. Tasks inherit it, also those that the client makes.
_lease_number: contextvars.ContextVar[int] = contextvars.ContextVar("_lease_number", default=-1)

_MARK = "x-simulated-start"


class Wire(httpx.AsyncBaseTransport):
    """Between the client and the emulator: notes what becomes of each start, and has outages."""

    def __init__(self, emulator: Emulator, outages: Sequence[Outage]) -> None:
        self.outages = outages
        self.is_cut = False
        self.starts: list[Sent] = []
        self._inner = emulator.transport()
        self._handle: Callable[[Request, Match, float], Response] = emulator._handle
        setattr(emulator, "_handle", self._note_deed)  # noqa: B010  (a method, as mypy sees it)

    def _note_deed(self, request: Request, match: Match, now: float) -> Response:
        response = self._handle(request, match, now)
        if _MARK in request.headers and response.status < 300:
            sent = self.starts[int(request.headers[_MARK])]
            sent.instance_id, sent.done_at = _instance_id(response.body), now
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/instances/start"):
            return await self._start(request)
        return await self._pass_on(request)

    async def _start(self, request: httpx.Request) -> httpx.Response:
        request.headers[_MARK] = str(len(self.starts))
        sent = Sent(_lease_number.get(), anyio.current_time())
        self.starts.append(sent)
        try:
            response = await self._pass_on(request)
            body = await response.aread()
        finally:
            sent.over_at = anyio.current_time()
        if response.is_success:
            sent.answer = "ok" if _instance_id(body) else None
        elif 400 <= response.status_code < 500 and response.status_code != 408:
            sent.answer = "refused"
        return httpx.Response(response.status_code, headers=response.headers, content=body)

    async def _pass_on(self, request: httpx.Request) -> httpx.Response:
        if self.is_cut:
            await anyio.sleep_forever()
        now = anyio.current_time()
        outage = next((each for each in self.outages if 0 <= now - each.begins < each.lasts), None)
        match outage.kind if outage else None:
            case "busy":
                return httpx.Response(503, request=request)
            case "cut":
                raise httpx.RemoteProtocolError("cut", request=request)
            case "refused":
                raise httpx.ConnectError("refused", request=request)
            case "silent":
                await anyio.sleep_forever()
            case "deaf":
                await self._inner.handle_async_request(request)
                raise httpx.RemoteProtocolError("cut", request=request)
        return await self._inner.handle_async_request(request)


def _instance_id(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["instance"]["instance_id"])
    except (ValueError, TypeError, LookupError):
        return None


# --- the run ------------------------------------------------------------------------------------------------


class Unreliable(Telemetry):
    """Raises half of the time: nothing that is judged may depend on it."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        self._perhaps()

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        self._perhaps()

    def retry(self, retry: RequestRetry) -> None:
        self._perhaps()

    def _perhaps(self) -> None:
        if self._rng.random() < 0.5:
            raise ZeroDivisionError("telemetry is broken")


@define(eq=False)
class _Node:
    number: int
    plan: Lease
    groups: list[list[_Node]] = field(factory=list)


def _outline(leases: Sequence[Lease]) -> list[list[_Node]]:
    """Groups of what runs side by side, one after another."""
    roots: list[list[_Node]] = []
    path: list[list[list[_Node]]] = [roots]
    for number, plan in enumerate(leases):
        depth = min(plan.depth, len(path) - 1)
        groups = path[depth]
        node = _Node(number, plan)
        if plan.beside and groups:
            groups[-1].append(node)
        else:
            groups.append([node])
        path[depth + 1 :] = [node.groups]
    return roots


def _has_siblings(groups: Sequence[Sequence[_Node]]) -> bool:
    return any(len(group) > 1 or _has_siblings(group[0].groups) for group in groups)


class Simulation:
    """One run of one program."""

    def __init__(self, backend: Backend, program: Program, state: Path) -> None:
        self.backend = backend
        self.program = program
        self.outcome = Outcome()
        self.brake = _Brake()
        self.lives: list[Life] = []
        self.foreign: dict[str, float] = {}
        self.amid = 0
        self.orphans: tuple[Orphan, ...] = ()
        self.died_at = math.inf
        self.state = state
        self._task: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None
        self._roots = _outline(program.leases)
        self._cancelled_at: float | None = None
        self._went_on_at: float | None = None
        self._end: BaseException | None = None
        self._ended_at = math.inf
        # Made where the clock is.
        self.emulator: Emulator
        self.wire: Wire

    @property
    def has_died(self) -> bool:
        """Whether its process was killed."""
        return not math.isinf(self.died_at)

    def problem(self, text: str) -> None:
        """Something does not hold."""
        self.outcome.problems.append(text)

    async def run(self) -> None:
        """Runs and judges it."""
        program, service = self.program, self.program.service
        hardware = ("NVIDIA_H100_1", "NVIDIA_L4_1", "NVIDIA_L40S_1")
        self.emulator = Emulator(
            clock=anyio.current_time,
            step_seconds=service.step_seconds,
            stop_seconds=service.stop_seconds,
            token_lifetime=service.token_lifetime,
            unknown_status=service.unknown_status,
            num_workers_in_args=service.num_workers_in_args,
            capacity=None if service.capacity is None else dict.fromkeys(hardware, service.capacity),
        )
        for fault in program.faults:
            self.emulator.add_fault(fault)
        self.wire = Wire(self.emulator, program.outages)
        async with httpx.AsyncClient(transport=self.wire, trust_env=False) as http:
            client = self._client(http)
            async with anyio.create_task_group() as tasks:
                for visit in program.visits:
                    tasks.start_soon(self._visit, visit)
                if program.dies_after is not None:
                    tasks.start_soon(self._die, program.dies_after)
                await self._run_program(client)
                tasks.cancel_scope.cancel()
            await client.aclose()
            self._ended_at = anyio.current_time()
            await self._sweep(http)
        Verdict(self).judge()

    async def _die(self, after: float) -> None:
        """What a killed process has sent, it has sent, and its journal stays as it is. It says no more."""
        await anyio.sleep(after)
        self.died_at = anyio.current_time()
        self.wire.is_cut = True
        left = self.state.with_name("left")
        if self.state.exists():
            shutil.copytree(self.state, left)
        self.state = left
        # Nobody hears what it does until its time-outs are over.
        if self._task is not None:
            self._task.cancel()
        elif self._scope is not None:
            self._scope.cancel()

    def _client(self, http: httpx.AsyncClient) -> AsyncCortecs:
        client = AsyncCortecs(
            self.emulator.client_id,
            self.emulator.client_secret,
            api_base_url=self.emulator.api_base_url,
            http_client=http,
            timeout=REQUEST_TIMEOUT,
            guard="off",
            state_dir=self.state,
            telemetry=Unreliable(self.program.seed),
        )
        client._wiring.http._rng = random.Random(self.program.seed)
        client._wiring._services.starter._rng = random.Random(self.program.seed)
        return client

    async def _sweep(self, http: httpx.AsyncClient) -> None:
        self.emulator.clear_faults()
        self.wire.outages, self.wire.is_cut = (), False
        await anyio.sleep(self.program.rest)
        _forget_stores()  # as a new process has none
        began = anyio.current_time()
        async with self._client(http) as client:
            self.orphans = await client.sweep(timeout=SWEEP_TIMEOUT)
        if anyio.current_time() - began > SWEEP_TIMEOUT + REQUEST_TIMEOUT:
            self.problem("the sweep took longer than its time-out")

    # -- the program

    async def _run_program(self, client: AsyncCortecs) -> None:
        if self.backend == "asyncio":
            await self._run_as_task(client)
            return
        try:
            # Inside, because of a group with cancellations in it only what is left is an Exception.
            with anyio.CancelScope() as self._scope:
                await self._with_limit(client)
        except Exception as error:  # noqa: BLE001  (judged in the end)
            self._end = error

    async def _run_as_task(self, client: AsyncCortecs) -> None:
        task = self._task = asyncio.ensure_future(self._with_limit(client))
        cancel = self.program.cancel
        if cancel is not None and cancel.way == "task":
            for pause in (cancel.after, *cancel.again):
                await asyncio.wait([task], timeout=pause)
                if not task.done():
                    self._note_cancel()
                    task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            self._end = task.exception()

    async def _with_limit(self, client: AsyncCortecs) -> None:
        cancel = self.program.cancel
        if cancel is None or (cancel.way == "task" and self.backend == "asyncio"):
            await self._whole(client)
        else:
            await self._cancelled(cancel, lambda: self._whole(client), self._note_cancel)

    def _note_cancel(self) -> None:
        if self._cancelled_at is None:
            self._cancelled_at = anyio.current_time()

    async def _whole(self, client: AsyncCortecs) -> None:
        if self.program.closes_inside:
            async with client:
                await self._in_turn(client, self._roots)
        else:
            await self._in_turn(client, self._roots)
        at = anyio.current_time()
        await anyio.lowlevel.checkpoint()
        # Not reached by what was cancelled.
        self._went_on_at = at

    async def _cancelled(
        self,
        cancel: Cancel,
        body: Callable[[], Awaitable[None]],
        note: Callable[[], None],
        inside: Sequence[Sequence[_Node]] = (),
    ) -> None:
        """Runs what is cancelled after a while, unless it has ended; the cancellation goes no further.

        A scope of anyio's around an `asyncio.timeout` around a task group of anyio's lets a cancellation out
        that is its own, whatever the tasks do. So where something runs side by side, it is scopes only.
        """
        if cancel.way == "timeout" and self.backend == "asyncio" and not _has_siblings(inside):
            limit = asyncio.timeout(cancel.after)
            try:
                async with limit:
                    await body()
            except TimeoutError as error:
                if not limit.expired() or type(error) is not TimeoutError:
                    raise
            if limit.expired():
                note()
            return
        with anyio.move_on_after(cancel.after) as scope:
            await body()
        if scope.cancelled_caught:
            note()

    async def _in_turn(self, client: AsyncCortecs, groups: Sequence[Sequence[_Node]]) -> None:
        for group in groups:
            if len(group) == 1:
                await self._caller(client, group[0])
            elif self.program.native and self.backend == "asyncio" and sys.version_info >= (3, 13):
                # Before, a group that fails leaves its task counted as cancelled, which anyio's scopes mind.
                async with asyncio.TaskGroup() as native:
                    for node in group:
                        native.create_task(self._caller(client, node))
            else:
                async with anyio.create_task_group() as tasks:
                    for node in group:
                        tasks.start_soon(self._caller, client, node)

    async def _caller(self, client: AsyncCortecs, node: _Node) -> None:
        await anyio.sleep(node.plan.before)
        cancel = node.plan.cancel
        try:
            if cancel is None:
                await self._lease(client, node)
            else:
                armed_at = anyio.current_time()
                await self._cancelled(
                    cancel,
                    lambda: self._lease(client, node),
                    lambda: self._judge_cancelled(node, armed_at),
                    inside=node.groups,
                )
        except Exception:
            if not node.plan.handled:
                raise

    async def _lease(self, client: AsyncCortecs, node: _Node) -> None:
        plan = node.plan
        life = Life(node.number, plan, anyio.current_time())
        self.lives.append(life)
        outer = _lease_number.set(node.number)
        lease = client.instance(
            plan.wanted.model,
            plan.wanted.hardware,
            num_workers=plan.wanted.workers,
            on_exit=plan.on_exit,
            start_timeout=plan.start_timeout,
            teardown_timeout=plan.teardown_timeout,
        )
        try:
            async with lease:
                try:
                    await self._body(client, node, life, lease)
                except BaseException as error:
                    life.raised = error
                    raise
                finally:
                    life.body_ended_at = anyio.current_time()
        except BaseException as error:
            life.out = error
            raise
        finally:
            life.left_at = anyio.current_time()
            _lease_number.reset(outer)

    async def _body(self, client: AsyncCortecs, node: _Node, life: Life, lease: InstanceLease) -> None:
        life.body_at, life.instance_id = anyio.current_time(), lease.instance_id
        if lease.instance_id not in self.emulator.billing:
            self.problem(f"lease {node.number}: the body began without a running instance")
        await anyio.sleep(node.plan.first)
        await self._in_turn(client, node.groups)
        await anyio.sleep(node.plan.last)
        if lease.instance_id not in self.emulator.billing:
            self.problem(f"lease {node.number}: the instance ended before the body did")
        if node.plan.fails:
            raise Problem(node.number)

    def _judge_cancelled(self, node: _Node, armed_at: float) -> None:
        assert node.plan.cancel is not None
        if self.has_died:
            return
        limit = armed_at + node.plan.cancel.after + _end_bound(node)
        if anyio.current_time() > limit:
            self.problem(
                f"lease {node.number}: {anyio.current_time() - limit:g} s too long after its cancellation"
            )

    # -- the neighbour

    async def _visit(self, visit: Visit) -> None:
        await anyio.sleep(visit.after)
        # A dead process's starts are looked for until the sweep, also those that were never sent.
        wanted = self.program.leases[visit.like % len(self.program.leases)].wanted
        while not self.is_decidable(wanted.model_id, amid=visit.waits):
            if not visit.waits or self.has_died:
                return
            await anyio.sleep(0.7)
        try:
            instance_id = self.emulator.start_instance(
                wanted.model, wanted.hardware, num_workers=wanted.workers
            )
        except ValueError:
            return  # no capacity
        except Exception as refusal:  # noqa: BLE001  (the emulator's own, of whatever kind)
            self.problem(f"the neighbour was refused: {refusal!r}")
            return
        self.foreign[instance_id] = anyio.current_time()
        self.amid += self.is_decidable(wanted.model_id, amid=True)

    def is_decidable(self, model_id: str, *, amid: bool = False) -> bool:
        """Whether a fitting instance that somebody else starts now can be told from, or with, our own.

        So it is unless a lease of the model has begun whose instance is neither known nor made yet: should
        its start be lost, there would be one instance, and one start that fits it.

        Args:
            model_id: The model.
            amid: Only while an instance is there of which its lease does not know.
        """
        if self.has_died:
            return False
        is_amid = False
        for life in self.lives:
            if life.plan.wanted.model_id != model_id:
                continue
            last = next((each for each in reversed(self.wire.starts) if each.lease == life.number), None)
            has_left = not math.isinf(life.left_at)
            if last is None or last.answer == "refused":
                if not has_left:
                    return False
            elif last.answer is None:
                if last.instance_id is None:
                    return False
                is_amid = is_amid or not has_left
        return is_amid or not amid


def _end_bound(node: _Node) -> float:
    """Seconds from the cancellation of a lease to its end: a start that was sent, then the releases."""
    inner = max((_end_bound(each) for group in node.groups for each in group), default=0.0)
    return inner + REQUEST_TIMEOUT + node.plan.teardown_timeout + SLACK


def _bound(groups: Sequence[Sequence[_Node]]) -> float:
    """Seconds in which all of it ends."""
    return sum(max(_bound_of(node) for node in group) for group in groups)


def _bound_of(node: _Node) -> float:
    plan = node.plan
    return (
        plan.before
        + plan.start_timeout
        + REQUEST_TIMEOUT
        + PRICE_PATIENCE
        + plan.first
        + _bound(node.groups)
        + plan.last
        + plan.teardown_timeout
        + SLACK
    )


# --- what must hold -----------------------------------------------------------------------------------------

# What entering a lease may raise under faults of the service. Nothing here is lost, closed or misused.
_OF_A_START = (
    errors.RequestError,
    errors.StartTimeoutError,
    errors.AmbiguousStartError,
)


class Verdict:
    """Judges a run when all is over."""

    def __init__(self, run: Simulation) -> None:
        self._run = run
        self._program = run.program
        self._starts = run.wire.starts
        self._made = {each.instance_id: each for each in run.wire.starts if each.instance_id is not None}
        self._ledger = {each.instance_id: each for each in run.emulator.ledger}
        self._ambiguous: set[str] = set()

    def judge(self) -> None:
        """Notes what does not hold."""
        run = self._run
        if set(self._ledger) != set(self._made) | set(run.foreign):
            run.problem("the emulator has instances of nobody")
        self._judge_ambiguity()
        self._judge_foreign()
        for life in run.lives:
            if life.left_at <= run.died_at:
                self._judge_exit(life)
                self._judge_times(life)
        self._judge_ours()
        self._judge_doubles()
        if not run.has_died:
            self._judge_silence()
            self._judge_end()
        self._count()

    def _judge_ambiguity(self) -> None:
        """It takes somebody else's instance of the model, though not always among the candidates.

        With three instances and two starts, one of which can have made but one of them, even that one is not
        proven.
        """
        run = self._run
        said = [each.candidates for each in run.orphans if each.state == "ambiguous"]
        said += [
            life.out.candidates for life in run.lives if isinstance(life.out, errors.AmbiguousStartError)
        ]
        foreign_models = {self._ledger[instance_id].model_id for instance_id in run.foreign}
        for candidates in said:
            self._ambiguous.update(candidates)
            if not foreign_models & {self._ledger[instance_id].model_id for instance_id in candidates}:
                given_up = [
                    life.number for life in run.lives if "it is unknown whether a start" in _notes(life.out)
                ]
                run.problem(f"ambiguous without anybody else: {candidates}; given up: {given_up}")
        for orphan in run.orphans:
            if orphan.state not in {"released", "gone", "ambiguous"}:
                run.problem(f"the sweep left {orphan.instance_id} as {orphan.state}")

    def _judge_foreign(self) -> None:
        for instance_id in self._run.foreign:
            if self._ledger[instance_id].status not in {"pending", "running"}:
                self._run.problem(f"{instance_id} is somebody else's, and {self._ledger[instance_id].status}")

    def _judge_exit(self, life: Life) -> None:
        """The right exception comes out of the block."""
        out, raised = life.out, life.raised
        cancelled = asyncio.CancelledError if self._run.backend == "asyncio" else trio.Cancelled
        if math.isinf(life.left_at):
            verdict = "was never left"
        elif life.body_at is None:
            verdict = "" if isinstance(out, (cancelled, *_OF_A_START)) else "failed to start"
        elif isinstance(raised, Exception):
            verdict = "" if out is raised else f"raised {raised!r} in its body"
        elif raised is not None:
            verdict = "" if isinstance(out, cancelled) or out is raised else "was cancelled"
        elif isinstance(out, errors.TeardownError):
            patience = life.left_at - (life.body_ended_at or 0.0)
            verdict = "" if patience > life.plan.teardown_timeout - SLACK else "gave up too early"
        else:
            verdict = "" if out is None or isinstance(out, cancelled) else "finished"
        if verdict:
            self._run.problem(f"lease {life.number} {verdict}, and {out!r} came out")

    def _judge_times(self, life: Life) -> None:
        plan, name = life.plan, f"lease {life.number}"
        start = plan.start_timeout + REQUEST_TIMEOUT + PRICE_PATIENCE + SLACK
        if life.body_at is None:
            late = life.left_at - life.entered_at - start - plan.teardown_timeout
        else:
            late = max(
                life.body_at - life.entered_at - start,
                life.left_at - (life.body_ended_at or math.inf) - plan.teardown_timeout - SLACK,
            )
        if late > 0:
            self._run.problem(f"{name}: it took {late:g} s longer than its time-outs allow")

    def _judge_silence(self) -> None:
        """When a lease is left, and nothing says otherwise, its instance has got what it is owed."""
        for life in self._run.lives:
            if life.instance_id is None or life.is_open:
                continue
            self._judge_ended(life, life.instance_id, goal=life.plan.on_exit)
        for cluster in _clusters(self._run.lives):
            if len(cluster) > 1 or cluster[0].instance_id is not None or cluster[0].is_open:
                continue
            for instance_id in self._made_by(cluster):
                self._judge_ended(cluster[0], instance_id, goal="delete")

    def _judge_ended(self, life: Life, instance_id: str, *, goal: Literal["delete", "stop"]) -> None:
        entry = self._ledger[instance_id]
        ended_at = entry.stopped_at if goal == "stop" else entry.deleted_at
        if ended_at is None or ended_at > life.left_at:
            self._run.problem(f"lease {life.number}: it ended silently before {instance_id} did")

    def _made_by(self, lives: Sequence[Life]) -> list[str]:
        """Instances of these leases, as far as anybody could find them."""
        numbers = {life.number for life in lives}
        return [
            instance_id
            for instance_id, sent in self._made.items()
            if sent.lease in numbers and not sent.is_beyond_search
        ]

    def _judge_ours(self) -> None:
        """In the end nothing of ours is left that should not be."""
        run = self._run
        entered = {life.instance_id: life for life in run.lives if life.instance_id is not None}
        for instance_id, sent in self._made.items():
            status = self._ledger[instance_id].status
            life = entered.get(instance_id)
            wanted = ["stopped" if life is not None and life.plan.on_exit == "stop" else "deleted"]
            if run.has_died and self._program.leases[sent.lease].on_exit == "stop":
                wanted = ["stopped", "deleted"]  # the latter when it was killed before its body
            if status not in wanted and instance_id not in self._ambiguous and not sent.is_beyond_search:
                run.problem(f"{instance_id} is ours, and {status} in the end, not {wanted[0]}")
        if not self._ambiguous and (left := sorted(each.name for each in run.state.rglob("*.*"))):
            run.problem(f"promises are left in the books: {left}")

    def _judge_doubles(self) -> None:
        """No start is doubled, and no instance shared.

        Two leases that look for the same kind of instance at the same time may get each other's, which is as
        good. So leases that overlap are judged together.
        """
        run = self._run
        held = [life.instance_id for life in run.lives if life.instance_id is not None]
        if len(held) != len(set(held)):
            run.problem(f"an instance has two leases: {held}")
        if foreign := run.foreign.keys() & set(held):
            run.problem(f"leases have somebody else's instances: {sorted(foreign)}")
        for cluster in _clusters(run.lives):
            made = self._made_by(cluster)
            if len(made) > len(cluster):
                run.problem(f"leases {[life.number for life in cluster]} have made {made}")
            sole = cluster[0]
            if len(cluster) == 1 and sole.instance_id is not None and made != [sole.instance_id]:
                run.problem(f"lease {sole.number}: it made {made} and had {sole.instance_id}")

    def _judge_end(self) -> None:
        run = self._run
        if run._ended_at > _bound(run._roots) + SLACK:
            run.problem(f"the program took {run._ended_at:g} s")
        if isinstance(run._end, BaseException) and not isinstance(run._end, Exception):
            run.problem(f"the program ended with {run._end!r}")
        cancel, cancelled_at = self._program.cancel, run._cancelled_at
        if cancel is None or cancelled_at is None:
            return
        limit = max((_end_bound(node) for group in run._roots for node in group), default=0.0)
        # Before 3.13, a cancellation during the release after a body's exception is noted there, and no more.
        is_noted = any(
            "was received while the instance was being released" in _notes(life.out) for life in run.lives
        )
        if is_noted and sys.version_info < (3, 13):
            return
        if run._ended_at > cancelled_at + limit + SLACK:
            run.problem(f"the program ended {run._ended_at - cancelled_at:g} s after its cancellation")
        if run._went_on_at is not None and run._went_on_at > cancelled_at:
            run.problem("the program went on after its cancellation")

    # -- figures

    def _count(self) -> None:
        run, program, tally = self._run, self._program, self._run.outcome.tally
        unknown = [each for each in self._starts if each.answer is None]
        tally["programs"] += 1
        tally["killed"] += run.has_died
        tally["with faults"] += bool(program.faults or program.outages)
        tally["cancelled"] += run._cancelled_at is not None or any(
            life.out is not None and not isinstance(life.out, Exception) for life in run.lives
        )
        tally["leases"] += len(run.lives)
        tally["bodies"] += sum(life.body_at is not None for life in run.lives)
        tally["starts sent"] += len(self._starts)
        tally["starts carried out"] += len(self._made)
        tally["starts without an answer"] += len(unknown)
        tally["of these, carried out"] += sum(each.instance_id is not None for each in unknown)
        tally["adopted"] += sum(
            life.instance_id is not None and self._made[life.instance_id].answer is None
            for life in run.lives
            if life.instance_id in self._made
        )
        tally["beyond the search"] += sum(each.is_beyond_search for each in self._starts if each.instance_id)
        tally["teardowns given up"] += sum(isinstance(life.out, errors.TeardownError) for life in run.lives)
        tally["user exceptions"] += sum(isinstance(life.raised, Problem) for life in run.lives)
        tally["foreign"] += len(run.foreign)
        tally["foreign amid an unknown start"] += run.amid
        tally["ambiguous instances"] += len(self._ambiguous & self._made.keys())
        tally["ambiguous programs"] += bool(self._ambiguous)
        for orphan in run.orphans:
            tally[f"swept: {orphan.state}"] += 1
        tally["seconds"] += int(run._ended_at)
        tally["requests"] += len(run.emulator.requests)


def _notes(error: BaseException | None) -> str:
    return " ".join(getattr(error, "__notes__", ()))


def _clusters(lives: Sequence[Life]) -> list[list[Life]]:
    """Leases of one model whose times overlap, directly or by others."""
    clusters: list[list[Life]] = []
    for model_id in sorted({life.plan.wanted.model_id for life in lives}):
        until = -math.inf
        same = [life for life in lives if life.plan.wanted.model_id == model_id]
        for life in sorted(same, key=lambda each: each.entered_at):
            if life.entered_at > until:
                clusters.append([])
            clusters[-1].append(life)
            until = max(until, math.inf if life.is_open else life.left_at)
    return clusters


# --- the world ----------------------------------------------------------------------------------------------


def simulate(backend: Backend, program: Program) -> Outcome:
    """Runs a program on a fresh event loop; call it inside `virtual_world`."""
    folder = Path(tempfile.mkdtemp(prefix="simulation"))
    run = Simulation(backend, program, folder / "state")
    complaints = _Complaints()
    logger = logging.getLogger("cortecs_async")
    logger.addHandler(complaints)
    try:
        if backend == "trio":
            trio._core._run._r.seed(program.seed)
            clock = trio.testing.MockClock(autojump_threshold=0)
            # Not anyio's `run`, which passed no options on to trio before 4.14.
            trio.run(run.run, clock=clock, instruments=[_BrakeOfTrio(clock, run.brake)])
        else:
            anyio.run(run.run, backend_options={"loop_factory": lambda: _BrakedLoop(run.brake)})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (a cancellation that got lost is none of hypothesis's)
        traceback.print_exception(error)
        run.problem(f"the run ended with {error!r}")
    finally:
        logger.removeHandler(complaints)
        _forget_stores()
        shutil.rmtree(folder, ignore_errors=True)
    run.outcome.problems += complaints.texts
    if run.brake.has_acted:
        run.problem("a busy loop: no time has passed in it")
    return run.outcome


class _Brake:
    """Says when to let time pass in a busy loop, which so comes to its deadlines, and to its end."""

    def __init__(self) -> None:
        self.has_acted = False
        self._instant = -1.0
        self._turns = 0

    def is_due(self, now: float) -> bool:
        """Called at every turn."""
        self._turns = self._turns + 1 if now == self._instant else 0
        self._instant = now
        if self._turns < MOST_TURNS:
            return False
        self.has_acted = True
        return True


class _BrakedLoop(VirtualTimeLoop):
    def __init__(self, brake: _Brake) -> None:
        self._brake = brake
        super().__init__()

    def _run_once(self) -> None:
        if self._brake.is_due(self._virtual_selector.now):
            self._virtual_selector.now += 1.0
        super()._run_once()  # type: ignore[misc]  # unknown to typeshed


class _BrakeOfTrio(trio.abc.Instrument):
    def __init__(self, clock: trio.testing.MockClock, brake: _Brake) -> None:
        self._clock = clock
        self._brake = brake

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._brake.is_due(self._clock.current_time()):
            self._clock.jump(1.0)


class _Complaints(logging.Handler):
    """What the client logs as an error: an exception that it did not expect. It is `critical` on purpose."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.ERROR:
            self.texts.append(f"logged: {record.getMessage()} {record.exc_info}")


def _forget_stores() -> None:
    _store._stores.clear()


class _WithoutSync:
    """`os`, whose `fsync` takes no time."""

    def fsync(self, fd: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


async def _inline(work: Callable[[], T], /) -> T:
    """What blocks, in the loop: a thread would not stop its clock. As a thread, it cannot be cancelled."""
    await anyio.lowlevel.checkpoint()
    try:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.001)
    finally:
        result = work()
    return result


@contextmanager
def virtual_world() -> Iterator[None]:
    """Files without threads and sync, dates by the emulator's clock, and a trio without dice."""
    logger = logging.getLogger("cortecs_async")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wiring, "system", System(lambda: EPOCH + anyio.current_time(), _inline))
        patch.setattr("cortecs_async._recovery.journal.os", _WithoutSync())
        patch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(logger, "level", logging.ERROR)
        patch.setattr(logger, "propagate", False)
        for name in list(os.environ):
            if name.startswith("CORTECS_"):
                patch.delenv(name)
        yield
