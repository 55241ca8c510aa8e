"""Worlds as data, so that hypothesis can draw, shrink, and print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from attrs import evolve, frozen
from hypothesis import strategies as st

from cortecs_async.emulator import Fault

T = TypeVar("T")

Backend = Literal["asyncio", "trio"]

# Settings and defaults of the client, from which the time limits below follow.
REQUEST_TIMEOUT = 30.0
ADOPTION_WINDOW = 60.0

HARDWARE = ("NVIDIA_L40S_1", "NVIDIA_H100_1", "NVIDIA_L4_1")
EIGHT_B, SEVEN_B = "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.3"


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
        after: Seconds from the beginning of the cancelled work.
        method: A cancel scope, or on asyncio `asyncio.timeout` or `task.cancel()`. trio always uses a scope.
        again: Pauses, each followed by another `task.cancel()`.
    """

    after: float
    method: Literal["scope", "timeout", "task"] = "scope"
    again: tuple[float, ...] = ()


@frozen
class Lease:
    """A lease. A list of leases forms an outline.

    Attributes:
        depth: 0 for a lease of the program itself. More for a lease in the body of an earlier lease.
        parallel: Run in parallel with the previous lease of the same depth, instead of after it.
        spec: The arguments of the start.
        on_exit: The argument of the lease. None for `acquire`, whose body is the time until `release`.
        max_lifetime: The argument of `acquire`, in seconds. Without it, the handle is always released.
        releases: Whether the caller releases the handle of `acquire`.
        start_timeout: The argument of the lease, in seconds.
        teardown_timeout: The argument of the lease, in seconds.
        delay: Seconds that the caller waits before it enters the lease.
        sleep_before: Seconds of the body before the inner leases.
        sleep_after: Seconds of the body after the inner leases.
        fails: Whether the body raises an exception at its end.
        handled: Whether the caller catches the exceptions of the lease.
        attempts: How many times the caller enters it, 20 s apart, while the service has no capacity.
        cancel: Cancels only this lease.
        hardware: The allowed hardware types in order of preference, or `("cheapest",)`. Empty for the one of
            `spec`.
        max_price_per_hour: The argument of the lease.
        capacity_timeout: The argument of the lease, in seconds.
        ready: The argument of the lease.
        idle_timeout: The argument of `instance`, in seconds.
        use: How the body uses the instance while it sleeps: `touch`, calls of `map`, or not at all.
        use_interval: Seconds between two touches, or of a call of `map`.
        hangs: Seconds for which the body blocks the event loop of its process, after `sleep_before`.
        project: The argument of the lease.
    """

    depth: int = 0
    parallel: bool = False
    spec: StartSpec = StartSpec()
    on_exit: Literal["delete", "stop", "keep"] | None = "delete"
    max_lifetime: float | None = None
    releases: bool = True
    start_timeout: float = 900.0
    teardown_timeout: float = 120.0
    delay: float = 0.0
    sleep_before: float = 0.0
    sleep_after: float = 0.0
    fails: bool = False
    handled: bool = True
    attempts: int = 1
    cancel: Cancel | None = None
    hardware: tuple[str, ...] = ()
    max_price_per_hour: float | None = None
    capacity_timeout: float | None = None
    ready: Literal["status", "models", "answer"] = "status"
    idle_timeout: float | None = None
    use: Literal["touch", "map", "nothing"] = "nothing"
    use_interval: float = 5.0
    hangs: float = 0.0
    project: str | None = None

    @property
    def hardware_type_id(self) -> str | tuple[str, ...] | None:
        """The argument of the lease."""
        return "cheapest" if self.hardware == ("cheapest",) else self.hardware or self.spec.hardware


@frozen
class Process:
    """A process with one client.

    Attributes:
        leases: Its leases.
        machine: The index of its machine.
        begins_at: The time when it begins, in seconds.
        cancel: Cancels the program.
        cancels_client: Whether the cancellation also reaches the client's own block.
        native: Whether parallel leases on asyncio (from Python 3.13) use `asyncio.TaskGroup`, not anyio's.
        guard: Whether it has a reaper.
        tag_starts: The argument of the client.
    """

    leases: tuple[Lease, ...]
    machine: int = 0
    begins_at: float = 0.0
    cancel: Cancel | None = None
    cancels_client: bool = False
    native: bool = False
    guard: bool = True
    tag_starts: bool = False


@frozen
class Kill:
    """A kill of a process, of its reaper, of both, or of a machine with all its processes and reapers.

    Attributes:
        what: The target. "both" kills the reaper a moment before its process.
        process: The index of the process, modulo their number. For a machine, a process on it.
        step: Kill before or after this number of requests and writes by the process or, for "reaper", by its
            reaper. None to use `after`.
        after: Seconds from the beginning of the process, or from the awaited event.
        waits_for: A start without a response ("unresolved"), or a rejected one; a process that waits for
            capacity; or one that probes its endpoint.
    """

    what: Literal["process", "reaper", "both", "machine"] = "process"
    process: int = 0
    step: int | None = None
    after: float = 0.0
    waits_for: Literal["unresolved", "refusal", "waiting", "probe"] | None = None


@frozen
class Sweep:
    """A process that runs `sweep`.

    Attributes:
        machine: The index of the machine.
        at: The time when it begins, in seconds.
        killed_after: Seconds until it is killed. None if it is not.
        force: The argument of `sweep`.
    """

    machine: int = 0
    at: float = 0.0
    killed_after: float | None = None
    force: bool = False


@frozen
class Outage:
    """A time, in seconds, during which no request succeeds.

    "busy" responds with 503 and HTML, "cut" closes the connection, "refused" refuses connections, and
    "silent" never responds. In these four cases, requests have no effect. With "lost", they have an effect,
    and only the response is lost.
    """

    begins_at: float
    duration: float
    kind: Literal["busy", "cut", "refused", "silent", "lost"] = "busy"


@frozen
class Shortage:
    """A time, in seconds, during which there is no capacity, or the list of what is available is wrong.

    "none" lists nothing and rejects starts, "listed" lists what it rejects, and "hidden" lists nothing but
    accepts starts.

    Attributes:
        hardware: The hardware type, or None for all.
    """

    begins_at: float
    duration: float
    kind: Literal["none", "listed", "hidden"] = "none"
    hardware: str | None = None


@frozen
class ForeignAction:
    """Another user of the account, on a machine without journals, starts or changes an instance.

    Attributes:
        after: Seconds from the beginning, or from the awaited event.
        kind: "start" uses the arguments of one of the leases. The others change the user's own instances.
        target: The index of the lease, or of the user's instance, modulo their number.
        waits_for: Do nothing until a process has a start whose response is lost or late ("unresolved"), a
            start was rejected, or a process was killed.
    """

    after: float
    kind: Literal["start", "stop", "restart", "delete"] = "start"
    target: int = 0
    waits_for: Literal["unresolved", "refusal", "kill"] | None = None


@frozen
class Service:
    """The options of the emulator, and for how many hardware types it shows prices."""

    step_seconds: float = 1.0
    stop_seconds: float = 0.0
    token_lifetime: float = 3600.0
    unknown_status: int = 400
    num_workers_in_args: bool = True
    capacity: int | None = None
    list_lag: tuple[float, ...] = (0.0,)
    get_lag: tuple[float, ...] = (0.0,)
    hide_stopped: bool = False
    clock_skew: float = 0.0
    date_header: bool = True
    started_at: str = "running"
    status_words: tuple[tuple[str, str], ...] = ()
    error_body: str = "message"
    entries: tuple[Any, ...] = ()
    endpoint_lag: float = 0.0
    prices: Literal["all", "some", "none"] = "all"


@frozen
class World:
    """A world.

    Attributes:
        processes: The processes.
        kills: The kills.
        sweeps: Sweeps during the run. Another one follows on each machine at the end.
        foreign: The actions of another user during the run.
        faults: The faults of the service.
        outages: The outages of the service.
        shortages: The times without capacity.
        clocks: For each machine, the seconds by which its clock is ahead.
        rotated_at: The time when the client secret is replaced, in seconds, or None. Tokens stay valid.
        pause_before_sweep: Seconds from the end of the processes and reapers to the last sweeps.
        service: The options of the emulator.
        seed: The seed of the jitter.
    """

    processes: tuple[Process, ...]
    kills: tuple[Kill, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    foreign: tuple[ForeignAction, ...] = ()
    faults: tuple[Fault, ...] = ()
    outages: tuple[Outage, ...] = ()
    shortages: tuple[Shortage, ...] = ()
    clocks: tuple[float, ...] = (0.0, 0.0)
    rotated_at: float | None = None
    pause_before_sweep: float = 500.0
    service: Service = Service()
    seed: int = 0


# --- strategies ---------------------------------------------------------------------------------------------


def _seconds(most: float) -> st.SearchStrategy[float]:
    # Not at the exact moment of a timeout, where the order of events is undefined.
    return st.integers(0, int(most * 4)).map(lambda number: number / 4 + 0.07 if number else 0.0)


def _one_in(number: int, strategy: st.SearchStrategy[T]) -> st.SearchStrategy[T | None]:
    return st.integers(1, number).flatmap(lambda drawn: strategy if drawn == number else st.none())


def _several(strategy: st.SearchStrategy[T], counts: Sequence[int]) -> st.SearchStrategy[tuple[T, ...]]:
    # Lists from hypothesis are mostly short.
    return st.sampled_from(counts).flatmap(lambda count: st.tuples(*[strategy] * count))


_routes = st.sampled_from(
    [*["start"] * 8, "list", "list", "get", "stop", "delete", "token", "hardware_types", None]
)
_whens = st.sampled_from(["after", "after", "before"])
_times: dict[str, st.SearchStrategy[Any]] = {
    "skip": st.sampled_from([0, 0, 0, 1, 2, 4]),
    "times": st.sampled_from([1, 1, 1, 2, 3, 8, None]),
}
_PAGE = "<!doctype html><title>Bad gateway</title>"
_faults: st.SearchStrategy[Fault] = st.one_of(
    st.builds(Fault, kind=st.just("drop"), route=_routes, when=_whens, **_times),
    # A gateway responds with HTML, whatever happened to the request. The service itself may do the same.
    st.builds(
        Fault,
        kind=st.just("status"),
        route=_routes,
        when=_whens,
        status=st.sampled_from([500, 502, 503, 504, 408]),
        body=st.just(_PAGE),
        **_times,
    ),
    # A response in the API's own format means that nothing happened, except for these two.
    st.builds(
        Fault,
        kind=st.just("status"),
        route=_routes,
        when=_whens,
        status=st.sampled_from([500, 504]),
        body=st.sampled_from([None, {"error": "internal"}]),
        **_times,
    ),
    st.builds(
        Fault,
        kind=st.just("status"),
        route=_routes,
        status=st.sampled_from([503, 503, 503, 502, 409, 403, 404]),
        body=st.sampled_from([None, {"error": "no capacity"}, {"error": {"message": "no capacity"}}]),
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
    st.builds(
        Fault,
        kind=st.just("delay"),
        route=st.just("start"),
        when=_whens,
        seconds=_seconds(120),
        **_times,
    ),
    st.builds(
        Fault,
        kind=st.just("late"),
        route=st.sampled_from([*["start"] * 6, "stop", "delete"]),
        seconds=_seconds(8) | _seconds(40) | _seconds(200),
        skip=_times["skip"],
        times=st.sampled_from([1, 1, 2]),
    ),
    # A single empty reading. More of them would mean a service that no longer exists.
    st.builds(
        Fault,
        kind=st.just("omit"),
        route=st.sampled_from(["list", "get", None]),
        skip=st.integers(0, 12),
        times=st.just(1),
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


# The arguments of a lease that most stories leave out.
_capabilities: dict[str, st.SearchStrategy[Any]] = {
    "hardware": st.sampled_from([
        *((), HARDWARE[:2], HARDWARE[:0:-1], HARDWARE),
        *(("cheapest",), ("cheapest",)),
    ]),
    "max_price_per_hour": st.sampled_from([None, None, None, 1.0, 2.5, 100.0]),
    "capacity_timeout": st.sampled_from([None, 30.07, 100.07, 600.07]),
    "ready": st.sampled_from(["status", "models", "answer"]),
    "idle_timeout": st.sampled_from([None, None, 20.07, 45.07]),
    "use": st.sampled_from(["touch", "map", "nothing"]),
    "use_interval": st.sampled_from([1.0, 5.0, 13.0, 30.0]),
    "hangs": st.sampled_from([0.0, 0.0, 0.0, 30.0, 150.0]),
    "project": st.sampled_from([None, "one", "two"]),
}  # fmt: skip


def _leases(
    kinds: Sequence[StartSpec], arguments: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[Lease]:
    return st.builds(
        Lease,
        **arguments,
        depth=st.sampled_from([0, 0, 1, 2, 3]),
        parallel=st.booleans(),
        spec=st.sampled_from(kinds),
        on_exit=st.sampled_from(["delete", "delete", "delete", "stop", "keep", None]),
        max_lifetime=st.sampled_from([None, 90.07, 400.07]),
        releases=st.booleans(),
        start_timeout=st.sampled_from([900.0, 900.0, 120.0, 40.0, 10.0]),
        teardown_timeout=st.sampled_from([120.0, 120.0, 600.0, 20.0, 5.0]),
        delay=st.just(0.0) | _seconds(5) | _seconds(60),
        sleep_before=_seconds(5) | _seconds(60),
        sleep_after=_seconds(5) | _seconds(60),
        fails=st.sampled_from([False, False, False, True]),
        handled=st.sampled_from([True, True, False]),
        attempts=st.sampled_from([1, 4]),
        cancel=_one_in(5, _lease_cancels),
    )


def _processes(
    kinds: Sequence[StartSpec], arguments: dict[str, st.SearchStrategy[Any]] | None = None
) -> st.SearchStrategy[Process]:
    return st.builds(
        Process,
        leases=_several(_leases(kinds, arguments or {}), [1, 1, 2, 3]),
        machine=st.sampled_from([0, 0, 0, 0, 0, 1]),
        begins_at=st.just(0.0) | _seconds(3) | _seconds(60),
        cancel=_one_in(4, _cancels),
        cancels_client=st.booleans(),
        native=st.booleans(),
        guard=st.sampled_from([True, True, True, False]),
        tag_starts=st.sampled_from([False, False, True]),
    )


def _groups(**arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Process, ...]]:
    # Few specs, because only identical starts can be confused.
    return st.lists(_specs, min_size=1, max_size=2).flatmap(
        lambda kinds: _several(_processes(kinds, arguments), [1, 1, 2, 3])
    )


_kills = st.builds(
    Kill,
    what=st.sampled_from(["process", "process", "process", "reaper", "both", "machine"]),
    process=st.integers(0, 2),
    step=st.none() | st.none() | st.integers(1, 16) | st.integers(1, 60),
    after=_seconds(20) | _seconds(150),
    waits_for=st.sampled_from([None, "unresolved", "refusal"]),
)

_services = st.builds(
    Service,
    step_seconds=st.sampled_from([0.0, 0.3, 2.0, 12.0]),
    stop_seconds=st.sampled_from([0.0, 0.0, 1.3, 14.0]),
    token_lifetime=st.sampled_from([3600.0, 3600.0, 45.0]),
    unknown_status=st.sampled_from([400, 404]),
    num_workers_in_args=st.booleans(),
    capacity=st.sampled_from([None, None, None, 2]),
    list_lag=st.sampled_from([(0.0,), (0.0,), (0.0,), (1.0,), (3.0,), (0.0, 3.0), (15.0,), (0.0, 0.0, 15.0)]),
    get_lag=st.sampled_from([(0.0,), (0.0,), (0.0,), (0.0, 2.0), (3.0,), (15.0,)]),
    hide_stopped=st.sampled_from([False, False, False, True]),
    clock_skew=st.sampled_from([0.0, 0.0, -600.0, 400.0, 86_400.0]),
    date_header=st.sampled_from([True, True, True, False]),
    started_at=st.sampled_from([
        *("running", "running", "running", "accepted", "initialized"),
        *("first_running", "constant", "none", "local_time"),
    ]),
    status_words=st.sampled_from([
        (), (), (), (("stopping", "terminating"),), (("pending", "initializing"), ("stopping", "STOPPING")),
    ]),
    error_body=st.sampled_from(["message", "message", "error", "openai"]),
    entries=st.sampled_from([
        (), (), (),
        ({"instance_id": "odd-1", "instance_args": None, "instance_status": None},),
        ("odd",),
        ({"instance_id": None}, {"instance_id": "odd-2", "instance_args": {"context_length": "8192"}}),
    ]),
)  # fmt: skip

_sweeps = st.builds(
    Sweep,
    machine=st.sampled_from([0, 0, 1]),
    at=_seconds(150),
    killed_after=_one_in(4, _seconds(10)),
    force=st.booleans(),
)

_foreign = st.builds(
    ForeignAction,
    after=_seconds(8) | _seconds(40) | _seconds(150),
    kind=st.sampled_from(["start", "start", "start", "start", "stop", "restart", "delete"]),
    target=st.integers(0, 5),
    waits_for=st.sampled_from([None, "unresolved", "refusal", "kill"]),
)

_outages = st.builds(
    Outage,
    begins_at=_seconds(60),
    duration=_seconds(60) | _seconds(400),
    kind=st.sampled_from(["busy", "cut", "refused", "silent", "lost"]),
)


def _worlds(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[World]:
    """Return a strategy for worlds, some of whose fields are drawn from fewer values."""
    every: dict[str, st.SearchStrategy[Any]] = {
        "processes": _groups(),
        "kills": _several(_kills, [0, 0, 1, 1, 2]),
        "sweeps": _several(_sweeps, [0, 0, 0, 1, 2]),
        "foreign": _several(_foreign, [0, 0, 1, 2, 4]),
        "faults": _several(_faults, [0, 1, 1, 2, 2, 3]),
        "outages": _several(_outages, [0, 0, 0, 0, 1]),
        "clocks": st.sampled_from([(0.0, 0.0), (0.0, 0.0), (360.0, -360.0), (-3600.0, 86_400.0)]),
        "pause_before_sweep": st.sampled_from([500.0, 500.0, 5000.0]),
        "service": _services,
        "seed": st.integers(0, 3),
    }
    return st.builds(World, **{**every, **fields})


_lost_starts = st.builds(
    Fault,
    kind=st.sampled_from(["drop", "drop", "garbage", "delay"]),
    route=st.just("start"),
    when=st.just("after"),
    seconds=_seconds(40),
    times=st.sampled_from([1, 2, 3, 8]),
)
_late_starts = st.builds(
    Fault,
    kind=st.sampled_from(["late", "late", "delay"]),
    route=st.just("start"),
    seconds=_seconds(40) | _seconds(200),
    times=st.sampled_from([1, 1, 2]),
)
_omissions = st.builds(
    Fault, kind=st.just("omit"), route=st.just("get"), skip=st.integers(0, 8), times=st.just(1)
)
_refusals = st.builds(
    Fault,
    kind=st.just("status"),
    route=st.just("start"),
    status=st.sampled_from([503, 503, 409, 403]),
    times=st.sampled_from([1, 3, 8, None]),
)
_foreign_after_kill = st.builds(
    ForeignAction, after=_seconds(8) | _seconds(150), target=st.integers(0, 5), waits_for=st.just("kill")
)
_foreign_after_refusal = st.builds(
    ForeignAction, after=_seconds(8), target=st.integers(0, 5), waits_for=st.just("refusal")
)
_kills_after_refusal = st.builds(
    Kill,
    what=st.sampled_from(["process", "process", "machine"]),
    process=st.integers(0, 2),
    after=_seconds(20),
    waits_for=st.just("refusal"),
)

_shortages = st.builds(
    Shortage,
    begins_at=st.just(0.0) | _seconds(60),
    duration=_seconds(60) | _seconds(400),
    kind=st.sampled_from(["none", "none", "none", "listed", "hidden"]),
    hardware=st.sampled_from([None, None, *HARDWARE]),
)
_endpoint_routes = st.sampled_from(["v1_models", "chat"])
_endpoint_faults: st.SearchStrategy[Fault] = st.one_of(
    st.builds(
        Fault,
        kind=st.just("status"),
        route=_endpoint_routes,
        status=st.sampled_from([502, 502, 503, 500, 429, 404, 400, 401, 403]),
        body=st.sampled_from([None, None, _PAGE]),
        times=st.sampled_from([1, 3, 8, None]),
    ),
    st.builds(
        Fault,
        kind=st.sampled_from(["drop", "truncate", "garbage"]),
        route=_endpoint_routes,
        times=st.sampled_from([1, 3, None]),
    ),
    st.builds(
        Fault,
        kind=st.just("delay"),
        route=_endpoint_routes,
        seconds=_seconds(40) | _seconds(200),
        times=st.sampled_from([1, 3]),
    ),
)
_catalog_faults = st.builds(
    Fault,
    kind=st.sampled_from(["drop", "status", "garbage", "delay"]),
    route=st.sampled_from(["available", "available", "hardware_types", "model"]),
    status=st.sampled_from([502, 503, 500, 404, 429]),
    seconds=_seconds(40),
    **_times,
)
_kills_midway = st.builds(
    Kill,
    what=st.sampled_from(["process", "process", "reaper", "both", "machine"]),
    process=st.integers(0, 2),
    step=st.none() | st.integers(1, 60),
    after=_seconds(8) | _seconds(60),
    waits_for=st.sampled_from(["waiting", "waiting", "probe", "probe", None]),
)
_services_for_capabilities = st.builds(
    evolve,
    _services,
    endpoint_lag=st.sampled_from([0.0, 0.0, 5.0, 40.0]),
    prices=st.sampled_from(["all", "all", "all", "some", "none"]),
)

# Rare coincidences: rejections, a kill, and an identical start by the other user; identical starts by several
# processes whose responses are lost at the same time; starts that are carried out or listed late; and reapers
# whose credentials are rejected; and the
# arguments of `_capabilities`, all of them or some.
stories: dict[str, st.SearchStrategy[World]] = {
    "any": _worlds(),
    "refusals": _worlds(
        faults=_several(_refusals, [1]),
        kills=_several(_kills_after_refusal, [0, 1, 1]),
        foreign=_several(_foreign_after_kill | _foreign_after_refusal, [1, 2]),
    ),
    "twins": _worlds(
        processes=_specs.flatmap(lambda kind: _several(_processes([kind]), [2, 3, 3])),
        faults=st.tuples(_lost_starts, _faults),
    ),
    "late": _worlds(faults=st.tuples(_late_starts, _faults)),
    "rotated": _worlds(
        kills=_several(_kills, [1, 1, 2]),
        faults=_several(_lost_starts, [0, 0, 1]),
        outages=st.just(()),
        # Otherwise, a process could not release its instances.
        service=_services.map(lambda service: evolve(service, token_lifetime=36_000.0)),
        rotated_at=_seconds(20) | _seconds(150),
    ),
    # Single empty readings, at a time when the instance may be gone.
    "readings": _worlds(
        faults=_several(_omissions, [1, 2]),
        kills=st.just(()),
        outages=st.just(()),
        service=_services.map(lambda service: evolve(service, hide_stopped=True)),
    ),
    "capabilities": _worlds(
        processes=_groups(**_capabilities),
        kills=_several(_kills | _kills_midway, [0, 0, 1, 1]),
        faults=_several(_faults | _endpoint_faults | _catalog_faults, [0, 1, 1, 2, 3]),
        shortages=_several(_shortages, [0, 0, 1, 2]),
        service=_services_for_capabilities,
    ),
    "waiting": _worlds(
        processes=_groups(
            **{name: _capabilities[name] for name in ("hardware", "max_price_per_hour", "project")},
            capacity_timeout=st.sampled_from([30.07, 600.07, 600.07]),
        ),
        kills=_several(_kills_midway, [0, 1, 1]),
        faults=_several(_lost_starts | _refusals | _catalog_faults, [0, 1, 1]),
        shortages=_several(_shortages, [1, 2, 3]),
    ),
    "idle": _worlds(
        processes=_groups(
            **{name: _capabilities[name] for name in ("use", "use_interval", "hangs", "project")},
            idle_timeout=st.sampled_from([20.07, 45.07]),
        ),
        faults=_several(_faults, [0, 0, 1]),
    ),
}

worlds: st.SearchStrategy[World] = st.sampled_from(
    [
        *["any"] * 3,
        "refusals",
        "twins",
        "late",
        "rotated",
        *["capabilities"] * 3,
        *["waiting"] * 2,
        *["idle"] * 2,
    ]
).flatmap(stories.__getitem__)
