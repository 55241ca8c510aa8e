"""Simulate random programs under random faults, on virtual time, and check the promise.

A program is data (`Program`), so that hypothesis can draw, shrink and print it. `simulate` runs a program
against the emulator on a fresh event loop, waits, runs `sweep` with a second client, and checks the result.
Each violation is a line of `Outcome.problems`.

The simulation leaves out only what no client can decide. The service has no tags. If a request to start an
instance is lost before it has an effect, and another user starts a matching instance between the client's
baseline and the end of its search, the client cannot know that the instance is not its own. The other user of
these programs starts matching instances at any other time, also while the client looks for an instance that
its lost request did start (`Simulation.is_decidable`).
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

# Settings and defaults of the client, from which the time limits below follow.
REQUEST_TIMEOUT = 30.0
ADOPTION_WINDOW = 60.0
PRICE_TIMEOUT = 10.0
SWEEP_TIMEOUT = 300.0
# Seconds of virtual time that file work and the order of events may add to a limit.
SLACK = 1.0
# More turns of the event loop than this without any virtual time in between are a busy loop.
MAX_TURNS = 3000

# The Unix time of the emulator at virtual time zero.
EPOCH = 1_735_689_600.0

EIGHT_B, SEVEN_B = "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"


# --- programs -----------------------------------------------------------------------------------------------


@frozen
class StartSpec:
    """The arguments of a start. Without hardware, it matches any."""

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
        after: Seconds from the beginning of what it cancels.
        method: A cancel scope, or on asyncio `asyncio.timeout` or `task.cancel()`. trio always uses a scope.
        again: Pauses, each followed by another `task.cancel()`.
    """

    after: float
    method: Literal["scope", "timeout", "task"] = "scope"
    again: tuple[float, ...] = ()


@frozen
class Lease:
    """A lease. A list of leases reads as an outline.

    Attributes:
        depth: 0 for a lease of the program itself, more for one in the body of an earlier lease.
        parallel: Run in parallel with the previous lease of the same depth, instead of after it.
        spec: What to start.
        on_exit: The argument of the lease.
        start_timeout: The argument of the lease, in seconds.
        teardown_timeout: The argument of the lease, in seconds.
        delay: Seconds that the caller waits before it enters the lease.
        sleep_before: Seconds of the body before the inner leases.
        sleep_after: Seconds of the body after the inner leases.
        fails: Whether the body raises an exception at its end.
        handled: Whether the caller catches the exceptions of the lease.
        cancel: Cancels only this lease.
    """

    depth: int = 0
    parallel: bool = False
    spec: StartSpec = StartSpec()
    on_exit: Literal["delete", "stop"] = "delete"
    start_timeout: float = 900.0
    teardown_timeout: float = 120.0
    delay: float = 0.0
    sleep_before: float = 0.0
    sleep_after: float = 0.0
    fails: bool = False
    handled: bool = True
    cancel: Cancel | None = None


@frozen
class Outage:
    """A time, in seconds, during which no request succeeds.

    "busy" responds with 503, "cut" closes the connection, "refused" refuses connections, and "silent" never
    responds. In these four, requests have no effect. In "lost", they do, and only the response is lost.
    """

    begins_at: float
    duration: float
    kind: Literal["busy", "cut", "refused", "silent", "lost"] = "busy"


@frozen
class ForeignStart:
    """Another user of the account starts an instance with the arguments of one of the leases.

    Attributes:
        after: Seconds from the beginning of the program.
        lease: The index of the lease, modulo the number of leases.
        while_unresolved: Wait until a lease has a start whose response is lost or late.
    """

    after: float
    lease: int = 0
    while_unresolved: bool = False


@frozen
class Service:
    """The options of the emulator."""

    step_seconds: float = 1.0
    stop_seconds: float = 0.0
    token_lifetime: float = 3600.0
    unknown_status: int = 400
    num_workers_in_args: bool = True
    capacity: int | None = None


@frozen
class Program:
    """A program.

    Attributes:
        leases: Its leases.
        faults: The faults of the service.
        outages: The outages of the service.
        foreign_starts: What another user starts meanwhile.
        cancel: Cancels the program.
        killed_after: Seconds until its process is killed; None if it is not.
        cancels_client: Whether the cancellation also reaches the client's own block.
        native: Whether parallel leases on asyncio, from Python 3.13, use `asyncio.TaskGroup`, not anyio's.
        pause_before_sweep: Seconds from its end to the sweep.
        service: The options of the emulator.
        seed: The seed of the jitter.
    """

    leases: tuple[Lease, ...]
    faults: tuple[Fault, ...] = ()
    outages: tuple[Outage, ...] = ()
    foreign_starts: tuple[ForeignStart, ...] = ()
    cancel: Cancel | None = None
    killed_after: float | None = None
    cancels_client: bool = False
    native: bool = False
    pause_before_sweep: float = 100.0
    service: Service = Service()
    seed: int = 0


def _seconds(most: float) -> st.SearchStrategy[float]:
    # Not at the very moment of a timeout, where the order of events is undefined.
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
# 4xx responses come before the request has an effect: a client trusts a refusal.
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
    # The client looks for the instance of a timed-out start for another minute.
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
    method=st.sampled_from(["scope", "timeout", "task"]),
    again=st.lists(_seconds(0.5) | _seconds(20), max_size=2).map(tuple),
)
_lease_cancels = st.builds(
    Cancel, after=_seconds(60) | _seconds(200), method=st.sampled_from(["scope", "timeout"])
)

_specs = st.builds(
    StartSpec,
    model=st.sampled_from([EIGHT_B, EIGHT_B, SEVEN_B]),
    hardware=st.sampled_from([None, "NVIDIA_H100_1", "NVIDIA_L4_1"]),
    workers=st.sampled_from([1, 1, 2]),
)


def _leases(kinds: Sequence[StartSpec]) -> st.SearchStrategy[Lease]:
    return st.builds(
        Lease,
        depth=st.sampled_from([0, 0, 1, 2, 3]),
        parallel=st.booleans(),
        spec=st.sampled_from(kinds),
        on_exit=st.sampled_from(["delete", "delete", "stop"]),
        start_timeout=st.sampled_from([900.0, 900.0, 120.0, 40.0, 10.0]),
        teardown_timeout=st.sampled_from([120.0, 120.0, 600.0, 20.0, 5.0]),
        delay=st.just(0.0) | _seconds(5) | _seconds(60),
        sleep_before=_seconds(5) | _seconds(60),
        sleep_after=_seconds(5) | _seconds(60),
        fails=st.sampled_from([False, False, False, True]),
        handled=st.sampled_from([True, True, False]),
        cancel=_one_in(5, _lease_cancels),
    )


# Few specs, because equal starts are the ones that can be confused.
_outlines: st.SearchStrategy[tuple[Lease, ...]] = st.lists(_specs, min_size=1, max_size=2).flatmap(
    lambda kinds: st.lists(_leases(kinds), min_size=1, max_size=4).map(tuple)
)

programs: st.SearchStrategy[Program] = st.builds(
    Program,
    leases=_outlines,
    faults=st.lists(_faults, max_size=5).map(tuple),
    outages=st.lists(
        st.builds(
            Outage,
            begins_at=_seconds(60),
            duration=_seconds(60) | _seconds(400),
            kind=st.sampled_from(["busy", "cut", "refused", "silent", "lost"]),
        ),
        max_size=1,
    ).map(tuple),
    foreign_starts=st.lists(
        st.builds(
            ForeignStart,
            after=_seconds(60),
            lease=st.integers(0, 3),
            while_unresolved=st.sampled_from([True, True, False]),
        ),
        max_size=3,
    ).map(tuple),
    cancel=_one_in(3, _cancels),
    killed_after=_one_in(6, _seconds(20) | _seconds(150)),
    cancels_client=st.booleans(),
    native=st.booleans(),
    pause_before_sweep=st.sampled_from([100.0, 100.0, 5000.0]),
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


# --- what is recorded ---------------------------------------------------------------------------------------


class BodyError(Exception):
    """The exception of a body that fails."""


@define(eq=False)
class SentStart:
    """A request to start an instance.

    Attributes:
        lease: The number of the lease that sent it.
        at: When it was sent.
        ended_at: When the client had the response or gave up; None while the request is under way.
        response: "ok" if it names the instance, "refused" for a 4xx; None without a usable response.
        instance_id: The instance that it started.
        executed_at: When the instance was started.
    """

    lease: int
    at: float
    ended_at: float | None = None
    response: Literal["ok", "refused"] | None = None
    instance_id: str | None = None
    executed_at: float = math.inf

    @property
    def is_too_late(self) -> bool:
        """Whether the service executed it after the client had stopped looking for its instance."""
        return self.ended_at is not None and self.executed_at > self.ended_at + ADOPTION_WINDOW


@define(eq=False)
class LeaseHistory:
    """What happened to a lease, and when, in seconds of virtual time."""

    number: int
    plan: Lease
    entered_at: float
    body_at: float | None = None
    body_ended_at: float | None = None
    left_at: float = math.inf
    instance_id: str | None = None
    body_error: BaseException | None = None
    exit_error: BaseException | None = None

    @property
    def may_leave_instance(self) -> bool:
        """Whether it may leave an instance: it was not exited, or its exception says so."""
        return math.isinf(self.left_at) or _reports_a_leftover(self.exit_error)


def _reports_a_leftover(error: BaseException | None) -> bool:
    """Return whether an exception says that an instance may still be billed."""
    if error is None:
        return False
    if isinstance(error, errors.TeardownError | errors.AmbiguousStartError):
        return True
    return "BILLED" in f"{error} {_notes(error)}"


@define
class Outcome:
    """The result of a program.

    Attributes:
        problems: Violations of the promise.
        tally: What happened how often.
    """

    problems: list[str] = field(factory=list)
    tally: Counter[str] = field(factory=Counter)


# --- the network --------------------------------------------------------------------------------------------

# The number of the lease that sends a request. Tasks inherit it, also those of the client.
_lease_number: contextvars.ContextVar[int] = contextvars.ContextVar("_lease_number", default=-1)

_HEADER = "x-simulated-start"


class Network(httpx.AsyncBaseTransport):
    """The network between client and emulator: records each start, and has outages."""

    def __init__(self, emulator: Emulator, outages: Sequence[Outage]) -> None:
        self.outages = outages
        self.is_down = False
        self.starts: list[SentStart] = []
        self._inner = emulator.transport()
        self._handle: Callable[[Request, Match, float], Response] = emulator._handle
        setattr(emulator, "_handle", self._record_creation)  # noqa: B010  (a method, as mypy sees it)

    def _record_creation(self, request: Request, match: Match, now: float) -> Response:
        response = self._handle(request, match, now)
        if _HEADER in request.headers and response.status < 300:
            sent = self.starts[int(request.headers[_HEADER])]
            sent.instance_id, sent.executed_at = _instance_id(response.body), now
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/instances/start"):
            return await self._start(request)
        return await self._forward(request)

    async def _start(self, request: httpx.Request) -> httpx.Response:
        request.headers[_HEADER] = str(len(self.starts))
        sent = SentStart(_lease_number.get(), anyio.current_time())
        self.starts.append(sent)
        try:
            response = await self._forward(request)
            body = await response.aread()
        finally:
            sent.ended_at = anyio.current_time()
        if response.is_success:
            sent.response = "ok" if _instance_id(body) else None
        elif 400 <= response.status_code < 500 and response.status_code != 408:
            sent.response = "refused"
        return httpx.Response(response.status_code, headers=response.headers, content=body)

    async def _forward(self, request: httpx.Request) -> httpx.Response:
        if self.is_down:
            await anyio.sleep_forever()
        now = anyio.current_time()
        outage = next((each for each in self.outages if 0 <= now - each.begins_at < each.duration), None)
        match outage.kind if outage else None:
            case "busy":
                return httpx.Response(503, request=request)
            case "cut":
                raise httpx.RemoteProtocolError("cut", request=request)
            case "refused":
                raise httpx.ConnectError("refused", request=request)
            case "silent":
                await anyio.sleep_forever()
            case "lost":
                await self._inner.handle_async_request(request)
                raise httpx.RemoteProtocolError("cut", request=request)
        return await self._inner.handle_async_request(request)


def _instance_id(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["instance"]["instance_id"])
    except (ValueError, TypeError, LookupError):
        return None


# --- the simulation -----------------------------------------------------------------------------------------


class FailingTelemetry(Telemetry):
    """Telemetry that raises an exception half of the time, which must not change anything."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        self._raise_sometimes()

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        self._raise_sometimes()

    def retry(self, retry: RequestRetry) -> None:
        self._raise_sometimes()

    def _raise_sometimes(self) -> None:
        if self._rng.random() < 0.5:
            raise ZeroDivisionError("telemetry is broken")


@define(eq=False)
class _Node:
    number: int
    plan: Lease
    groups: list[list[_Node]] = field(factory=list)


def _outline(leases: Sequence[Lease]) -> list[list[_Node]]:
    """Return groups of parallel leases. The groups run one after another."""
    roots: list[list[_Node]] = []
    path: list[list[list[_Node]]] = [roots]
    for number, plan in enumerate(leases):
        depth = min(plan.depth, len(path) - 1)
        groups = path[depth]
        node = _Node(number, plan)
        if plan.parallel and groups:
            groups[-1].append(node)
        else:
            groups.append([node])
        path[depth + 1 :] = [node.groups]
    return roots


def _has_siblings(groups: Sequence[Sequence[_Node]]) -> bool:
    return any(len(group) > 1 or _has_siblings(group[0].groups) for group in groups)


class Simulation:
    """A run of a program."""

    def __init__(self, backend: Backend, program: Program, state: Path) -> None:
        self.backend = backend
        self.program = program
        self.outcome = Outcome()
        self.detector = _BusyLoopDetector()
        self.histories: list[LeaseHistory] = []
        self.foreign_ids: set[str] = set()
        self.orphans: tuple[Orphan, ...] = ()
        self.killed_at = math.inf
        self.state = state
        self._task: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None
        self._roots = _outline(program.leases)
        self._cancelled_at: float | None = None
        self._continued_at: float | None = None
        self._end: BaseException | None = None
        self._ended_at = math.inf
        # Created in the event loop, which has the clock.
        self.emulator: Emulator
        self.network: Network

    @property
    def was_killed(self) -> bool:
        """Whether the process was killed."""
        return not math.isinf(self.killed_at)

    def problem(self, text: str) -> None:
        """Record a violation."""
        self.outcome.problems.append(text)

    async def run(self) -> None:
        """Run the program and check the result."""
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
        self.network = Network(self.emulator, program.outages)
        async with httpx.AsyncClient(transport=self.network, trust_env=False) as http:
            client = self._client(http)
            async with anyio.create_task_group() as tasks:
                for foreign in program.foreign_starts:
                    tasks.start_soon(self._start_foreign, foreign)
                if program.killed_after is not None:
                    tasks.start_soon(self._kill, program.killed_after)
                await self._run_program(client)
                tasks.cancel_scope.cancel()
            await client.aclose()
            self._ended_at = anyio.current_time()
            await self._sweep(http)
        Checker(self).check()

    async def _kill(self, after: float) -> None:
        """Simulate a kill: copy the journal, send nothing more, and end the program."""
        await anyio.sleep(after)
        self.killed_at = anyio.current_time()
        self.network.is_down = True
        copy = self.state.with_name("copy")
        if self.state.exists():
            shutil.copytree(self.state, copy)
        self.state = copy
        # Its requests do not reach the emulator any more, so how the program ends does not matter.
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
            telemetry=FailingTelemetry(self.program.seed),
        )
        client._wiring.http._rng = random.Random(self.program.seed)
        client._wiring._services.starter._rng = random.Random(self.program.seed)
        return client

    async def _sweep(self, http: httpx.AsyncClient) -> None:
        self.emulator.clear_faults()
        self.network.outages, self.network.is_down = (), False
        await anyio.sleep(self.program.pause_before_sweep)
        _forget_stores()  # as in a new process
        began = anyio.current_time()
        async with self._client(http) as client:
            self.orphans = await client.sweep(timeout=SWEEP_TIMEOUT)
        if anyio.current_time() - began > SWEEP_TIMEOUT + REQUEST_TIMEOUT:
            self.problem("the sweep took longer than its timeout")

    # -- the program

    async def _run_program(self, client: AsyncCortecs) -> None:
        if self.backend == "asyncio":
            await self._run_as_task(client)
            return
        try:
            # Inside: the scope removes the cancellations from a group, and only the rest is an Exception.
            with anyio.CancelScope() as self._scope:
                await self._with_cancel(client)
        except Exception as error:  # noqa: BLE001  (checked at the end)
            self._end = error

    async def _run_as_task(self, client: AsyncCortecs) -> None:
        task = self._task = asyncio.ensure_future(self._with_cancel(client))
        cancel = self.program.cancel
        if cancel is not None and cancel.method == "task":
            for pause in (cancel.after, *cancel.again):
                await asyncio.wait([task], timeout=pause)
                if not task.done():
                    self._record_cancel()
                    task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            self._end = task.exception()

    async def _with_cancel(self, client: AsyncCortecs) -> None:
        cancel = self.program.cancel
        if cancel is None or (cancel.method == "task" and self.backend == "asyncio"):
            await self._with_client(client)
        else:
            await self._run_cancelled(cancel, lambda: self._with_client(client), self._record_cancel)

    def _record_cancel(self) -> None:
        if self._cancelled_at is None:
            self._cancelled_at = anyio.current_time()

    async def _with_client(self, client: AsyncCortecs) -> None:
        if self.program.cancels_client:
            async with client:
                await self._run_groups(client, self._roots)
        else:
            await self._run_groups(client, self._roots)
        at = anyio.current_time()
        await anyio.lowlevel.checkpoint()
        # A cancelled program does not get here.
        self._continued_at = at

    async def _run_cancelled(
        self,
        cancel: Cancel,
        body: Callable[[], Awaitable[None]],
        on_cancelled: Callable[[], None],
        inside: Sequence[Sequence[_Node]] = (),
    ) -> None:
        """Run `body`, cancel it after a while unless it has ended, and catch the cancellation.

        A scope of anyio around an `asyncio.timeout` around a task group of anyio does not catch its own
        cancellation, whatever the tasks do. Parallel leases therefore use scopes only.
        """
        if cancel.method == "timeout" and self.backend == "asyncio" and not _has_siblings(inside):
            limit = asyncio.timeout(cancel.after)
            try:
                async with limit:
                    await body()
            except TimeoutError as error:
                if not limit.expired() or type(error) is not TimeoutError:
                    raise
            if limit.expired():
                on_cancelled()
            return
        with anyio.move_on_after(cancel.after) as scope:
            await body()
        if scope.cancelled_caught:
            on_cancelled()

    async def _run_groups(self, client: AsyncCortecs, groups: Sequence[Sequence[_Node]]) -> None:
        for group in groups:
            if len(group) == 1:
                await self._caller(client, group[0])
            elif self.program.native and self.backend == "asyncio" and sys.version_info >= (3, 13):
                # Before 3.13, a failed group leaves its task marked as cancelled, which disturbs anyio.
                async with asyncio.TaskGroup() as native:
                    for node in group:
                        native.create_task(self._caller(client, node))
            else:
                async with anyio.create_task_group() as tasks:
                    for node in group:
                        tasks.start_soon(self._caller, client, node)

    async def _caller(self, client: AsyncCortecs, node: _Node) -> None:
        await anyio.sleep(node.plan.delay)
        cancel = node.plan.cancel
        try:
            if cancel is None:
                await self._lease(client, node)
            else:
                armed_at = anyio.current_time()
                await self._run_cancelled(
                    cancel,
                    lambda: self._lease(client, node),
                    lambda: self._check_cancelled(node, armed_at),
                    inside=node.groups,
                )
        except Exception:
            if not node.plan.handled:
                raise

    async def _lease(self, client: AsyncCortecs, node: _Node) -> None:
        plan = node.plan
        history = LeaseHistory(node.number, plan, anyio.current_time())
        self.histories.append(history)
        outer = _lease_number.set(node.number)
        lease = client.instance(
            plan.spec.model,
            plan.spec.hardware,
            num_workers=plan.spec.workers,
            on_exit=plan.on_exit,
            start_timeout=plan.start_timeout,
            teardown_timeout=plan.teardown_timeout,
        )
        try:
            async with lease:
                try:
                    await self._body(client, node, history, lease)
                except BaseException as error:
                    history.body_error = error
                    raise
                finally:
                    history.body_ended_at = anyio.current_time()
        except BaseException as error:
            history.exit_error = error
            raise
        finally:
            history.left_at = anyio.current_time()
            _lease_number.reset(outer)

    async def _body(
        self, client: AsyncCortecs, node: _Node, history: LeaseHistory, lease: InstanceLease
    ) -> None:
        history.body_at, history.instance_id = anyio.current_time(), lease.instance_id
        if lease.instance_id not in self.emulator.billing:
            self.problem(f"lease {node.number}: its body began without a running instance")
        await anyio.sleep(node.plan.sleep_before)
        await self._run_groups(client, node.groups)
        await anyio.sleep(node.plan.sleep_after)
        if lease.instance_id not in self.emulator.billing:
            self.problem(f"lease {node.number}: its instance ended before its body")
        if node.plan.fails:
            raise BodyError(node.number)

    def _check_cancelled(self, node: _Node, armed_at: float) -> None:
        assert node.plan.cancel is not None
        if self.was_killed:
            return
        limit = armed_at + node.plan.cancel.after + _most_seconds_after_cancel(node)
        if (late := anyio.current_time() - limit) > 0:
            self.problem(f"lease {node.number} ended {late:g} s too late after its cancellation")

    # -- the other user

    async def _start_foreign(self, foreign: ForeignStart) -> None:
        await anyio.sleep(foreign.after)
        # After a kill, the starts of the process stay unresolved until the sweep, also those never sent.
        spec = self.program.leases[foreign.lease % len(self.program.leases)].spec
        while not self.is_decidable(spec.model_id, while_unresolved=foreign.while_unresolved):
            if not foreign.while_unresolved or self.was_killed:
                return
            await anyio.sleep(0.7)
        try:
            instance_id = self.emulator.start_instance(spec.model, spec.hardware, num_workers=spec.workers)
        except ValueError:
            return  # no capacity
        except Exception as refusal:  # noqa: BLE001  (any error of the emulator)
            self.problem(f"the other user could not start an instance: {refusal!r}")
            return
        self.foreign_ids.add(instance_id)

    def is_decidable(self, model_id: str, *, while_unresolved: bool = False) -> bool:
        """Return whether a client can decide about an instance that another user starts now.

        It cannot if a lease of the model has begun whose instance does not exist yet: if its start is lost,
        there is one instance, and one start that matches it.

        Args:
            model_id: The model.
            while_unresolved: Require that there is an instance that its lease does not know yet.
        """
        if self.was_killed:
            return False
        is_unresolved = False
        for history in self.histories:
            if history.plan.spec.model_id != model_id:
                continue
            last = next(
                (each for each in reversed(self.network.starts) if each.lease == history.number), None
            )
            has_left = not math.isinf(history.left_at)
            if last is None or last.response == "refused":
                if not has_left:
                    return False
            elif last.response is None:
                if last.instance_id is None:
                    return False
                is_unresolved = is_unresolved or not has_left
        return is_unresolved or not while_unresolved


def _most_seconds_after_cancel(node: _Node) -> float:
    """Return the most seconds from the cancellation of a lease to its end: a start, then the releases."""
    inner = max((_most_seconds_after_cancel(each) for group in node.groups for each in group), default=0.0)
    return inner + REQUEST_TIMEOUT + node.plan.teardown_timeout + SLACK


def _most_seconds(groups: Sequence[Sequence[_Node]]) -> float:
    """Return the most seconds that groups take."""
    return sum(max(_most_seconds_of(node) for node in group) for group in groups)


def _most_seconds_of(node: _Node) -> float:
    plan = node.plan
    return (
        plan.delay
        + plan.start_timeout
        + REQUEST_TIMEOUT
        + PRICE_TIMEOUT
        + plan.sleep_before
        + _most_seconds(node.groups)
        + plan.sleep_after
        + plan.teardown_timeout
        + SLACK
    )


# --- the checks ---------------------------------------------------------------------------------------------

# The errors that a lease may raise before its body because of the service.
_START_ERRORS = (errors.RequestError, errors.StartTimeoutError, errors.AmbiguousStartError)


class Checker:
    """Checks a run after its end."""

    def __init__(self, run: Simulation) -> None:
        self._run = run
        self._program = run.program
        self._starts = run.network.starts
        self._created = {
            each.instance_id: each for each in run.network.starts if each.instance_id is not None
        }
        self._ledger = {each.instance_id: each for each in run.emulator.ledger}
        self._ambiguous: set[str] = set()

    def check(self) -> None:
        """Record all violations."""
        run = self._run
        if set(self._ledger) != set(self._created) | run.foreign_ids:
            run.problem("the emulator has instances that no program and no colleague started")
        self._check_ambiguity()
        self._check_foreign()
        for history in run.histories:
            if history.left_at <= run.killed_at:
                self._check_exception(history)
                self._check_timeouts(history)
        self._check_own_instances()
        self._check_duplicates()
        if not run.was_killed:
            self._check_clean_exits()
            self._check_end()
        run.outcome.tally.update(
            {
                "with faults": bool(self._program.faults or self._program.outages),
                "bodies": sum(each.body_at is not None for each in run.histories),
                "starts without a response": sum(each.response is None for each in self._starts),
            }
        )

    def _check_ambiguity(self) -> None:
        """Check that starts are ambiguous only if another user has started the same model.

        The instance of the other user need not be a candidate. With three instances and two starts, of which
        one matches only one instance, even that match is not proven.
        """
        run = self._run
        exit_errors = [each.exit_error for each in run.histories]
        ambiguities = [each.candidates for each in run.orphans if each.state == "ambiguous"]
        ambiguities += [
            each.candidates for each in exit_errors if isinstance(each, errors.AmbiguousStartError)
        ]
        foreign_models = {self._ledger[instance_id].model_id for instance_id in run.foreign_ids}
        for candidates in ambiguities:
            self._ambiguous.update(candidates)
            if not foreign_models & {self._ledger[instance_id].model_id for instance_id in candidates}:
                given_up = [
                    each.number
                    for each in run.histories
                    if "it is unknown whether a start" in _notes(each.exit_error)
                ]
                run.problem(f"ambiguous without another user: {candidates}; given up: {given_up}")
        for orphan in run.orphans:
            if orphan.state not in {"released", "gone", "ambiguous"}:
                run.problem(f"the sweep left {orphan.instance_id} as {orphan.state}")

    def _check_foreign(self) -> None:
        for instance_id in self._run.foreign_ids:
            if self._ledger[instance_id].status not in {"pending", "running"}:
                self._run.problem(f"{instance_id} is another user's, and {self._ledger[instance_id].status}")

    def _check_exception(self, history: LeaseHistory) -> None:
        """Check the exception that the lease raised."""
        raised, body_error = history.exit_error, history.body_error
        cancelled = asyncio.CancelledError if self._run.backend == "asyncio" else trio.Cancelled
        if math.isinf(history.left_at):
            problem = "was never exited"
        elif history.body_at is None:
            problem = "" if isinstance(raised, (cancelled, *_START_ERRORS)) else "failed to start"
        elif isinstance(body_error, Exception):
            problem = "" if raised is body_error else f"had {body_error!r} in its body"
        elif body_error is not None:
            problem = "" if isinstance(raised, cancelled) or raised is body_error else "was cancelled"
        elif isinstance(raised, errors.TeardownError):
            elapsed = history.left_at - (history.body_ended_at or 0.0)
            problem = "" if elapsed > history.plan.teardown_timeout - SLACK else "gave up too early"
        else:
            problem = "" if raised is None or isinstance(raised, cancelled) else "finished"
        if problem:
            self._run.problem(f"lease {history.number} {problem}, and raised {raised!r}")

    def _check_timeouts(self, history: LeaseHistory) -> None:
        plan, name = history.plan, f"lease {history.number}"
        start = plan.start_timeout + REQUEST_TIMEOUT + PRICE_TIMEOUT + SLACK
        if history.body_at is None:
            late = history.left_at - history.entered_at - start - plan.teardown_timeout
        else:
            late = max(
                history.body_at - history.entered_at - start,
                history.left_at - (history.body_ended_at or math.inf) - plan.teardown_timeout - SLACK,
            )
        if late > 0:
            self._run.problem(f"{name}: it took {late:g} s longer than its timeouts allow")

    def _check_clean_exits(self) -> None:
        """Check that instances are released when their leases end, unless the exception says otherwise."""
        for history in self._run.histories:
            if history.instance_id is None or history.may_leave_instance:
                continue
            self._check_released(history, history.instance_id, goal=history.plan.on_exit)
        for cluster in _overlapping(self._run.histories):
            if len(cluster) > 1 or cluster[0].instance_id is not None or cluster[0].may_leave_instance:
                continue
            for instance_id in self._created_by(cluster):
                self._check_released(cluster[0], instance_id, goal="delete")

    def _check_released(
        self, history: LeaseHistory, instance_id: str, *, goal: Literal["delete", "stop"]
    ) -> None:
        entry = self._ledger[instance_id]
        ended_at = entry.stopped_at if goal == "stop" else entry.deleted_at
        if ended_at is None or ended_at > history.left_at:
            self._run.problem(f"lease {history.number}: it ended before {instance_id} did, without an error")

    def _created_by(self, histories: Sequence[LeaseHistory]) -> list[str]:
        """Return the instances that these leases started, except those that no client could find."""
        numbers = {each.number for each in histories}
        return [
            instance_id
            for instance_id, sent in self._created.items()
            if sent.lease in numbers and not sent.is_too_late
        ]

    def _check_own_instances(self) -> None:
        """Check that all instances of the program are released at the end."""
        run = self._run
        entered = {each.instance_id: each for each in run.histories if each.instance_id is not None}
        for instance_id, sent in self._created.items():
            status = self._ledger[instance_id].status
            history = entered.get(instance_id)
            expected = ["stopped" if history is not None and history.plan.on_exit == "stop" else "deleted"]
            if run.was_killed and self._program.leases[sent.lease].on_exit == "stop":
                expected = ["stopped", "deleted"]  # deleted if it was killed before the body
            if status not in expected and instance_id not in self._ambiguous and not sent.is_too_late:
                run.problem(f"{instance_id} is ours, and {status} at the end, not {expected[0]}")
        if not self._ambiguous and (left := sorted(each.name for each in run.state.rglob("*.*"))):
            run.problem(f"promises remain in the journal: {left}")

    def _check_duplicates(self) -> None:
        """Check that each lease started one instance, and that no two leases have the same one.

        Two leases that look for equal instances at the same time may get each other's, which is correct. So
        leases that overlap are checked together.
        """
        run = self._run
        held = [each.instance_id for each in run.histories if each.instance_id is not None]
        if len(held) != len(set(held)):
            run.problem(f"an instance has two leases: {held}")
        if foreign := run.foreign_ids & set(held):
            run.problem(f"leases have instances of another user: {sorted(foreign)}")
        for cluster in _overlapping(run.histories):
            created = self._created_by(cluster)
            if len(created) > len(cluster):
                run.problem(f"leases {[each.number for each in cluster]} started {created}")
            sole = cluster[0]
            if len(cluster) == 1 and sole.instance_id is not None and created != [sole.instance_id]:
                run.problem(f"lease {sole.number} started {created} and had {sole.instance_id}")

    def _check_end(self) -> None:
        run = self._run
        if run._ended_at > _most_seconds(run._roots) + SLACK:
            run.problem(f"the program took {run._ended_at:g} s")
        if isinstance(run._end, BaseException) and not isinstance(run._end, Exception):
            run.problem(f"the program ended with {run._end!r}")
        cancel, cancelled_at = self._program.cancel, run._cancelled_at
        if cancel is None or cancelled_at is None:
            return
        limit = max((_most_seconds_after_cancel(node) for group in run._roots for node in group), default=0.0)
        # Before 3.13, a cancellation during the release after a body's exception is only a note on it.
        is_only_noted = any(
            "was received while the instance was being released" in _notes(each.exit_error)
            for each in run.histories
        )
        if is_only_noted and sys.version_info < (3, 13):
            return
        if run._ended_at > cancelled_at + limit + SLACK:
            run.problem(f"the program ended {run._ended_at - cancelled_at:g} s after its cancellation")
        if run._continued_at is not None and run._continued_at > cancelled_at:
            run.problem("the program continued after its cancellation")


def _notes(error: BaseException | None) -> str:
    return " ".join(getattr(error, "__notes__", ()))


def _overlapping(histories: Sequence[LeaseHistory]) -> list[list[LeaseHistory]]:
    """Group the leases of a model whose times overlap, directly or through others."""
    clusters: list[list[LeaseHistory]] = []
    for model_id in sorted({each.plan.spec.model_id for each in histories}):
        until = -math.inf
        same = [each for each in histories if each.plan.spec.model_id == model_id]
        for history in sorted(same, key=lambda each: each.entered_at):
            if history.entered_at > until:
                clusters.append([])
            clusters[-1].append(history)
            until = max(until, math.inf if history.may_leave_instance else history.left_at)
    return clusters


# --- running ------------------------------------------------------------------------------------------------


def simulate(backend: Backend, program: Program) -> Outcome:
    """Run a program on a fresh event loop, inside `virtual_world`."""
    folder = Path(tempfile.mkdtemp(prefix="simulation"))
    run = Simulation(backend, program, folder / "state")
    error_log = _ErrorLog()
    logger = logging.getLogger("cortecs_async")
    logger.addHandler(error_log)
    try:
        if backend == "trio":
            trio._core._run._r.seed(program.seed)
            clock = trio.testing.MockClock(autojump_threshold=0)
            # `anyio.run` did not pass options to trio before 4.14.
            trio.run(run.run, clock=clock, instruments=[_DetectingInstrument(clock, run.detector)])
        else:
            anyio.run(run.run, backend_options={"loop_factory": lambda: _DetectingLoop(run.detector)})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (a stray cancellation must not reach hypothesis)
        traceback.print_exception(error)
        run.problem(f"the run ended with {error!r}")
    finally:
        logger.removeHandler(error_log)
        _forget_stores()
        shutil.rmtree(folder, ignore_errors=True)
    run.outcome.problems += error_log.texts
    if run.detector.has_detected:
        run.problem("a busy loop: no virtual time passed")
    return run.outcome


class _BusyLoopDetector:
    """Detects a busy loop, so that its clock can be advanced, and its deadlines end it."""

    def __init__(self) -> None:
        self.has_detected = False
        self._instant = -1.0
        self._turns = 0

    def is_due(self, now: float) -> bool:
        """Return whether to advance the clock; called at every turn."""
        self._turns = self._turns + 1 if now == self._instant else 0
        self._instant = now
        if self._turns < MAX_TURNS:
            return False
        self.has_detected = True
        return True


class _DetectingLoop(VirtualTimeLoop):
    def __init__(self, detector: _BusyLoopDetector) -> None:
        self._detector = detector
        super().__init__()

    def _run_once(self) -> None:
        if self._detector.is_due(self._virtual_selector.now):
            self._virtual_selector.now += 1.0
        super()._run_once()  # type: ignore[misc]  # unknown to typeshed


class _DetectingInstrument(trio.abc.Instrument):
    def __init__(self, clock: trio.testing.MockClock, detector: _BusyLoopDetector) -> None:
        self._clock = clock
        self._detector = detector

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._detector.is_due(self._clock.current_time()):
            self._clock.jump(1.0)


class _ErrorLog(logging.Handler):
    """Collects what the client logs as an error: unexpected exceptions. Expected ones are `critical`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.ERROR:
            self.texts.append(f"logged: {record.getMessage()} {record.exc_info}")


def _forget_stores() -> None:
    _store._stores.clear()


class _WithoutSync:
    """The module `os`, with an `fsync` that does nothing."""

    def fsync(self, fd: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


async def _run_inline(work: Callable[[], T], /) -> T:
    """Run blocking work in the event loop, because virtual time does not wait for threads.

    Like a thread, it cannot be cancelled.
    """
    await anyio.lowlevel.checkpoint()
    try:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.001)
    finally:
        result = work()
    return result


@contextmanager
def virtual_world() -> Iterator[None]:
    """Patch the client: files without threads and sync, the emulator's clock, and deterministic trio."""
    logger = logging.getLogger("cortecs_async")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wiring, "system", System(lambda: EPOCH + anyio.current_time(), _run_inline))
        patch.setattr("cortecs_async._recovery.journal.os", _WithoutSync())
        patch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(logger, "level", logging.ERROR)
        patch.setattr(logger, "propagate", False)
        for name in list(os.environ):
            if name.startswith("CORTECS_"):
                patch.delenv(name)
        yield
