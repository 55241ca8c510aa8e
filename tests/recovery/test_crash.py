"""Kill programs at every step of a lease, on real sockets, and check that none of their instances is left.

Each case has its own service and state directory. The service already has a foreign instance with the same
arguments, which must not be touched. A case mostly waits, so many run in parallel.

Set CORTECS_CRASH_REPORT=figures.json in the environment to write the figures to that file.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import statistics
import textwrap
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx
import pytest
from _processes import PROC, Program, is_alive, kill, read, state_of, until
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL

from cortecs_async import AsyncCortecs
from cortecs_async._aio.threads import System
from cortecs_async._client.wiring import Wiring
from cortecs_async._recovery import reaper as _reaper
from cortecs_async._recovery.ledger import CostLedger
from cortecs_async._recovery.pipe import encode_messages
from cortecs_async._recovery.records import Record
from cortecs_async.emulator import Emulator, Fault, LedgerEntry, RequestRecord, serve_emulator
from cortecs_async.emulator._emulator import _EPOCH

pytestmark = [
    pytest.mark.proofs,
    pytest.mark.sockets,
    pytest.mark.skipif(not (PROC / "self" / "stat").exists(), reason="reads /proc"),
]


# Seconds after the kill in which every instance must be deleted. The second number is for a start without a
# response, whose instance is attributed to it after ten seconds.
LIMIT, LOST_START_LIMIT = 10.0, 15.0

# Seconds for which a request is delayed. It must still be in progress at the kill, on a busy machine too.
HOLD = 1.0

TOO_LATE = "the kill came too late"

CONCURRENCY = 8

BACKENDS = ("asyncio", "trio")

# Route of each step, and the number of requests of the same route before it.
STEPS = {
    "token": ("token", 0),
    "baseline": ("list", 0),
    "start": ("start", 0),
    "prices": ("hardware_types", 0),
    "poll": ("get", 0),
    "stop": ("stop", 0),
    "delete": ("delete", 0),
    "verification": ("list", 1),
}

KILLS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
}

PROGRAM = """
import os, subprocess, sys, threading, time
sys.modules["click"] = None  # so that httpx does not import its command line, a fifth of the start-up time
import anyio
from cortecs_async import AsyncCortecs, PollPolicy

{prelude}

async def main():
    async with AsyncCortecs({client}) as client:
        async with client.instance("{model}", "{hardware}", {options}):
            print("body", flush=True)
{body}
    print("closed", flush=True)
{after}

anyio.run(main, backend=sys.argv[1])
"""

SLEEP = "await anyio.sleep(60)"


def program_of(
    body: str = "pass", *, prelude: str = "", client: str = "", options: str = "", after: str = "pass"
) -> str:
    """Return a program that leases an instance."""
    return PROGRAM.format(
        model=MODEL,
        hardware=HARDWARE,
        client=client,
        options=options,
        prelude=prelude,
        body=textwrap.indent(body, " " * 12),
        after=textwrap.indent(after, " " * 4),
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.frozen
class Row:
    """The result of one case.

    Attributes:
        case: Its name.
        left: Instances of the program that still exist.
        foreign_touched: Whether the foreign instance was stopped, deleted or restarted.
        seconds: From the kill, or from the sweep, until no instance of the program existed; None if none
            existed then.
        trouble: Any other problem; empty if there was none.
        limit: The most seconds.
    """

    case: str
    left: tuple[str, ...] = ()
    foreign_touched: bool = False
    seconds: float | None = None
    trouble: str = ""
    limit: float = LIMIT

    @property
    def is_good(self) -> bool:
        is_clean = not self.left and not self.foreign_touched and not self.trouble
        return is_clean and (self.seconds or 0.0) <= self.limit


Case = Callable[[], Awaitable[Row]]

FIGURES: dict[str, list[Row]] = {}


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    target = os.environ.get("CORTECS_CRASH_REPORT")
    yield
    if not target:
        return
    path = Path(target)
    # Each worker runs some of the tests.
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        path = path.with_suffix(f".{worker}{path.suffix}")
    path.write_text(json.dumps({test: figures_of(rows) for test, rows in FIGURES.items()}, indent=1) + "\n")


def figures_of(rows: list[Row]) -> dict[str, Any]:
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return {
        "cases": len(rows),
        "with_an_instance": len(seconds),
        "left": sum(bool(row.left) for row in rows),
        "foreign_touched": sum(row.foreign_touched for row in rows),
        "max_seconds": round(max(seconds, default=0.0), 2),
        "median_seconds": round(statistics.median(seconds or [0.0]), 2),
        "rows": [attrs.asdict(row) for row in rows],
    }


@attrs.frozen
class Scene:
    """A program, its service, and its state directory."""

    emu: Emulator
    program: Program
    foreign: str
    state: Path
    hold: Fault | None

    @property
    def ours(self) -> list[LedgerEntry]:
        """The instances that the program started."""
        return [entry for entry in self.emu.ledger if entry.instance_id != self.foreign]

    @property
    def left(self) -> tuple[str, ...]:
        """The ids of those that still exist."""
        return tuple(each for each in self.emu.existing if each != self.foreign)

    @property
    def is_foreign_touched(self) -> bool:
        (entry,) = (entry for entry in self.emu.ledger if entry.instance_id == self.foreign)
        return entry.stopped_at is not None or entry.status not in {"pending", "running"}

    @property
    def held(self) -> RequestRecord | None:
        """The request that is or was delayed."""
        return next((each for each in self.emu.requests if each.fault == "delay"), None)

    @property
    def journals(self) -> list[Path]:
        return sorted((self.state / "journal").glob("*"))

    @property
    def paid(self) -> list[str]:
        """The ids of the instances in the cost ledger, each of which must be there once."""
        leases = CostLedger(self.state / "costs").read(self.emu.api_base_url).leases
        return [each.instance_id for each in leases]

    async def until_held(self) -> None:
        await until(lambda: self.held or self.program.has_ended)

    async def until_body(self) -> None:
        await until(lambda: self.program.has_printed("body") or self.program.has_ended)

    async def until_over(self) -> str:
        """Wait until the program and its reaper have ended, and return what is wrong then."""
        try:
            await until(self._is_over)
        except TimeoutError:
            return "it does not end"
        if self.journals:
            return "a journal is left"
        if sorted(self.paid) != sorted(each.instance_id for each in self.ours):
            return f"the cost ledger has {self.paid}"
        return "it exited normally, so the kill missed it" if self.program.process.returncode == 0 else ""

    def _is_over(self) -> bool:
        if not self.program.has_ended or self.program.has_left_a_reaper:
            return False
        if self.hold is None or self.held is None or (self.hold.route, self.hold.when) != ("start", "before"):
            return True
        # The service carries out the delayed start, although nothing waits for it any more.
        return time.monotonic() >= self.held.at + self.hold.seconds

    def row(self, case: str, killed: float, trouble: str) -> Row:
        """Return the result after a kill at the time `killed`, on the clock of the service."""
        ends = [time.monotonic() if entry.deleted_at is None else entry.deleted_at for entry in self.ours]
        seconds = round(max(ends) - killed, 3) if ends and max(ends) > killed else None
        limit = LOST_START_LIMIT if self.hold is not None and self.hold.route == "start" else LIMIT
        row = Row(case, self.left, self.is_foreign_touched, seconds, trouble, limit)
        return row if row.is_good else attrs.evolve(row, trouble=f"{trouble}\n{self.program.output}")


@asynccontextmanager
async def scene(
    folder: Path, source: str, backend: str = "asyncio", hold: Fault | None = None, **options: Any
) -> AsyncIterator[Scene]:
    """Start a program, and end it at exit."""
    await anyio.Path(folder).mkdir()
    state = folder / "state"
    async with serve_emulator(step_seconds=0.02, **options) as emu:
        foreign = emu.start_instance(MODEL, HARDWARE)
        if hold is not None:
            emu.add_fault(hold)
        env = {**emu.env(), "CORTECS_STATE_DIR": str(state)}
        with Program(source, backend, env=env, log=folder / "output") as program:
            yield Scene(emu, program, foreign, state, hold)


def hold(step: str, when: Any, seconds: float = HOLD) -> Fault:
    route, before_it = STEPS[step]
    return Fault("delay", route=route, when=when, seconds=seconds, skip=before_it)


async def run_cases(test: str, cases: Iterable[Case]) -> None:
    """Run cases in parallel, and fail with the problems of all."""
    rows = FIGURES.setdefault(test, [])
    limiter = anyio.CapacityLimiter(CONCURRENCY)

    async def run(case: Case) -> None:
        async with limiter:
            try:
                rows.append(await case())
            except Exception:  # noqa: BLE001  (the other cases keep running)
                rows.append(Row(repr(case), trouble=traceback.format_exc()))

    async with anyio.create_task_group() as tasks:
        for case in cases:
            tasks.start_soon(run, case)
    bad = [row for row in rows if not row.is_good]
    assert not bad, "\n\n".join(map(str, bad))


async def send_others(program: Program, numbers: Sequence[signal.Signals]) -> None:
    """Send the signals after the first."""
    for number in numbers[1:]:
        await anyio.sleep(0.2)  # so that two signals do not merge
        program.send(number)


async def killed_at(folder: Path, backend: str, kill_name: str, step: str, when: str) -> Row:
    row = await killed_while_held(folder, backend, kill_name, step, when, HOLD)
    if row.trouble.startswith(TOO_LATE):
        # The machine was too busy.
        row = await killed_while_held(folder.with_suffix(".again"), backend, kill_name, step, when, 4 * HOLD)
    return row


async def killed_while_held(
    folder: Path, backend: str, kill_name: str, step: str, when: str, seconds: float
) -> Row:
    numbers = KILLS[kill_name]
    async with scene(folder, program_of(), backend, hold(step, when, seconds)) as it:
        await it.until_held()
        killed = time.monotonic()
        it.program.send(numbers[0])
        is_in_time = it.held is None or it.held.status is None
        await send_others(it.program, numbers)
        trouble = await it.until_over()
        is_late = any(entry.started_at > killed for entry in it.ours)
        if it.held is None:
            trouble = "it did not get that far"
        elif (step, when) == ("start", "before") and not is_late:
            trouble = "nothing was started late, so nothing had to be found"
        return it.row(
            f"{backend}: {kill_name} while {step} is held {when} its effect",
            killed,
            trouble if is_in_time else TOO_LATE,
        )


async def killed_in_the_body(folder: Path, backend: str, kill_name: str) -> Row:
    numbers = {**KILLS, "SIGHUP": (signal.SIGHUP,)}[kill_name]
    async with scene(folder, program_of(SLEEP), backend) as it:
        await it.until_body()
        killed = time.monotonic()
        it.program.send(numbers[0])
        await send_others(it.program, numbers)
        return it.row(f"{backend}: {kill_name} in the body", killed, await it.until_over())


async def exits_in_the_body(folder: Path, backend: str) -> Row:
    # It exits only after this test has seen its reaper.
    body = "while not os.path.exists(os.environ['CORTECS_STATE_DIR'] + '/go'):\n    await anyio.sleep(0.01)\n"
    async with scene(folder, program_of(body + "os._exit(1)"), backend) as it:
        await it.until_body()
        it.program.reapers()
        killed = time.monotonic()
        (it.state / "go").touch()
        return it.row(f"{backend}: os._exit in the body", killed, await it.until_over())


WHENS = ("before", "after")

Moment = tuple[str, str, str]


def moments(kill_names: Sequence[str]) -> Iterator[tuple[Moment, bool]]:
    """Yield each kill before and after each step, and whether only `nightly` runs it.

    The other tiers run SIGKILL at all of these moments, and each other kill once per step.
    """
    for row in itertools.product(kill_names, STEPS, WHENS):
        kill_name, step, when = row
        turn = kill_names.index(kill_name) + [*STEPS].index(step) + WHENS.index(when)
        yield row, kill_name != "SIGKILL" and turn % 2 == 1


def in_the_body(kill_names: Iterable[str]) -> Iterator[Callable[[Path, str], Awaitable[Row]]]:
    for kill_name in (*kill_names, "SIGHUP"):
        yield partial(killed_in_the_body, kill_name=kill_name)
    yield exits_in_the_body


@pytest.mark.parametrize("rest", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["most", "rest"])
@pytest.mark.parametrize(
    ("backend", "kill_names"),
    [("asyncio", tuple(KILLS)), ("trio", ("SIGKILL", "SIGINT"))],
    ids=["asyncio", "trio"],
)
async def test_killed_at_any_step_nothing_is_left(
    tmp_path: Path, backend: str, kill_names: tuple[str, ...], *, rest: bool
) -> None:
    places = (tmp_path / str(number) for number in itertools.count())
    cases: list[Case] = [
        partial(killed_at, next(places), backend, *moment)
        for moment, is_rest in moments(kill_names)
        if is_rest is rest
    ]
    if not rest:
        cases += [partial(case, next(places), backend) for case in in_the_body(kill_names)]
    await run_cases(f"killed at any step, {backend}", cases)


async def interrupted_group(folder: Path, backend: str) -> Row:
    """Press Ctrl-C in a terminal, and then kill the program while it tears down."""
    async with scene(folder, program_of(), backend, hold("stop", "before", 4 * HOLD)) as it:
        await it.until_held()
        reaper = it.program.reaper()
        it.program.send_all(signal.SIGINT)
        await anyio.sleep(0.2)
        is_the_same = it.program.reapers() == (reaper,)
        killed = time.monotonic()
        it.program.send(signal.SIGKILL)
        trouble = await it.until_over()
        case = f"{backend}: SIGINT to the process group, then SIGKILL"
        return it.row(case, killed, trouble if is_the_same else "its reaper did not survive")


async def hung_up(folder: Path, backend: str) -> Row:
    """Close the terminal."""
    async with scene(folder, program_of(SLEEP), backend) as it:
        await it.until_body()
        killed = time.monotonic()
        it.program.send_all(signal.SIGHUP)
        return it.row(f"{backend}: SIGHUP to the process group", killed, await it.until_over())


async def signalled_reaper(folder: Path, backend: str) -> Row:
    async with scene(folder, program_of(SLEEP), backend) as it:
        await it.until_body()
        reaper = it.program.reaper()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(reaper, number)
        await anyio.sleep(0.2)
        is_the_same = it.program.reapers() == (reaper,)
        killed = time.monotonic()
        it.program.send(signal.SIGKILL)
        trouble = await it.until_over()
        case = f"{backend}: signals to the reaper itself, then SIGKILL"
        return it.row(case, killed, trouble if is_the_same else "it did not survive")


async def test_the_reaper_survives_ctrl_c_and_the_end_of_the_terminal(tmp_path: Path) -> None:
    await run_cases(
        "signals to the process group",
        [
            partial(kind, tmp_path / f"{backend}-{kind.__name__}", backend)
            for backend in BACKENDS
            for kind in (interrupted_group, hung_up, signalled_reaper)
        ],
    )


# When each of these children starts, the pipe to the reaper is open.
FORKS = """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
child.start()
print("child", child.pid, flush=True)
pid = os.fork()
if pid == 0:
    time.sleep(120)
    os._exit(0)
print("child", pid, flush=True)
subprocess_child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], close_fds=False)
print("child", subprocess_child.pid, flush=True)
await anyio.sleep(60)
"""


async def forked(folder: Path, backend: str) -> Row:
    async with scene(folder, program_of(FORKS), backend) as it:
        try:
            await until(lambda: len(it.program.numbers("child")) == 3 or it.program.has_ended)
            killed = time.monotonic()
            it.program.send(signal.SIGKILL)
            trouble = await it.until_over()
            children = it.program.numbers("child")
            if len(children) != 3 or not all(map(is_alive, children)):
                trouble = "a child has not lived long enough to matter"
            return it.row(f"{backend}: SIGKILL, and children live on", killed, trouble)
        finally:
            for child in it.program.numbers("child"):
                kill(child)


async def test_surviving_children_do_not_hide_the_death_of_their_parent(tmp_path: Path) -> None:
    await run_cases(
        "children live on",
        [partial(forked, tmp_path / backend, backend) for backend in BACKENDS],
    )


# Prints the process id of each reaper once it knows everything: until then, the store holds its lock.
WATCH = """
from cortecs_async._recovery import store

def watch():
    seen = None
    while True:
        for each in list(store._stores.values()):
            with each._commit_lock:
                process = each._reaper._process
            pid = process and process.pid
            if pid not in (None, seen):
                seen = pid
                print("reaper", pid, flush=True)
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
"""


async def reaper_number(number: int, program: Program) -> int:
    """Return the process id of a program's first, second, ... reaper, once it knows everything."""
    await until(lambda: len(program.numbers("reaper")) >= number or program.has_ended)
    return program.numbers("reaper")[number - 1]


async def loses_two_reapers(folder: Path, backend: str, step: str | None) -> Row:
    """Kill two reapers of a program, one after the other, and then the program."""
    fault = hold(step, "after", 20 * HOLD) if step else None
    async with scene(folder, program_of(SLEEP, prelude=WATCH), backend, fault) as it:
        await (it.until_held() if step else it.until_body())
        kill(await reaper_number(1, it.program))
        kill(await reaper_number(2, it.program))
        third = await reaper_number(3, it.program)
        is_another = it.program.reapers() == (third,)
        killed = time.monotonic()
        it.program.send(signal.SIGKILL)
        trouble = await it.until_over()
        place = f"while {step} is held" if step else "in the body"
        case = f"{backend}: two reapers die {place}, then SIGKILL"
        return it.row(case, killed, trouble if is_another else "no third took their place")


async def test_a_reaper_that_dies_is_replaced(tmp_path: Path) -> None:
    await run_cases(
        "reapers die",
        [
            partial(loses_two_reapers, tmp_path / f"{backend}-{step}", backend, step)
            for backend in BACKENDS
            for step in ("start", None)
        ],
    )


async def closes(folder: Path, backend: str, *, lives_on: bool) -> None:
    source = program_of(after=SLEEP if lives_on else "pass")
    # The stop is delayed so that this test can see the reaper.
    async with scene(folder, source, backend, hold("stop", "before")) as it:
        await it.until_held()
        reaper = it.program.reaper()
        assert it.journals
        await until(lambda: it.program.has_printed("closed") if lives_on else it.program.has_ended)
        assert not is_alive(reaper)
        assert it.program.reapers() == ()
        assert it.journals == []
        assert it.left == ()
        assert it.program.has_ended is not lives_on
        if not lives_on:
            assert it.program.process.returncode == 0, it.program.output


async def test_without_a_client_there_is_no_reaper_and_no_journal(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        for backend, lives_on in itertools.product(BACKENDS, (False, True)):
            tasks.start_soon(partial(closes, tmp_path / f"{backend}-{lives_on}", backend, lives_on=lives_on))


async def kill_with_its_reaper(program: Program) -> None:
    """Stop the program first, so that it cannot start another reaper."""
    reaper = program.reaper()
    program.send(signal.SIGSTOP)
    await until(lambda: state_of(program.pid) == "T")
    kill(reaper)
    program.send(signal.SIGKILL)
    await until(lambda: program.has_ended and not is_alive(reaper))


async def swept(folder: Path, step: str, when: str) -> Row:
    is_late = (step, when) == ("start", "before")
    is_in_body = step == "body"
    # Long enough that no request is carried out before the sweep, except for the late start.
    fault = None if is_in_body else hold(step, when, HOLD if is_late else 20 * HOLD)
    async with scene(folder, program_of(SLEEP if is_in_body else "pass"), hold=fault) as it:
        await (it.until_body() if is_in_body else it.until_held())
        await kill_with_its_reaper(it.program)
        async with client_of(it.emu, it.state) as client:
            troubles = [] if is_late else await check_orphans(client, it)
            began = time.monotonic()
            troubles += await check_sweep(client, it)
        if await it.until_over() or it.journals:
            troubles.append("it has not ended, or has left a journal")
        place = "in the body" if is_in_body else f"while {step} is held {when} its effect"
        return it.row(f"asyncio: killed with its reaper {place}, then swept", began, "; ".join(troubles))


async def check_orphans(client: AsyncCortecs, it: Scene) -> list[str]:
    existing, asked = it.emu.existing, len(it.emu.requests)
    (orphan,) = await client.orphans()
    troubles = []
    (entry,) = it.ours
    if (orphan.state, orphan.instance_id) != ("found" if it.left else "gone", entry.instance_id):
        troubles.append(f"orphans() says {orphan}")
    requests = [each for each in it.emu.requests[asked:] if each.route not in {"token", "list", "get"}]
    if requests or it.emu.existing != existing or not it.journals:
        troubles.append(f"orphans() has changed something: {requests}")
    return troubles


async def check_sweep(client: AsyncCortecs, it: Scene) -> list[str]:
    is_billed = bool({*it.emu.billing} - {it.foreign})
    (orphan,) = await client.sweep()
    if orphan.instance_id != (it.ours[0].instance_id) or (is_billed and orphan.state != "released"):
        return [f"sweep() says {orphan}"]
    return [f"sweep() has left {it.journals}"] if it.journals else []


def client_of(emu: Emulator, state: Path, **options: Any) -> AsyncCortecs:
    return AsyncCortecs(
        emu.client_id, emu.client_secret, api_base_url=emu.api_base_url, state_dir=state, **options
    )


async def test_instances_of_a_program_killed_with_its_reaper_are_swept(tmp_path: Path) -> None:
    places = [
        ("start", "before"),
        ("start", "after"),
        ("poll", "before"),
        ("body", ""),
        ("stop", "before"),
        ("stop", "after"),
        ("delete", "before"),
        ("delete", "after"),
        ("verification", "before"),
    ]
    await run_cases(
        "killed with the reaper, then swept",
        [partial(swept, tmp_path / f"{step}-{when}", step, when) for step, when in places],
    )


@pytest.mark.parametrize("is_suspended", [False, True])
async def test_a_sweep_takes_over_from_a_reaper_whose_secret_was_rotated(
    tmp_path: Path, *, is_suspended: bool
) -> None:
    async with scene(tmp_path / "scene", program_of(SLEEP)) as it:
        await it.until_body()
        reaper = it.program.reaper()
        it.emu.rotate_secret("new")
        it.program.send(signal.SIGKILL)
        async with client_of(it.emu, it.state, guard="off") as client:
            with anyio.fail_after(LIMIT):
                # Before the reaper has the lock, it is only `found`.
                while [each.state for each in await client.orphans()] != ["releasing"]:  # noqa: ASYNC110
                    await anyio.sleep(0.1)
            assert [each.state for each in await client.sweep()] == ["releasing"]
            if is_suspended:
                os.kill(reaper, signal.SIGSTOP)
            assert it.left
            assert is_alive(reaper)
            assert [each.state for each in await client.sweep(force=True)] == ["released"]
            assert await client.orphans() == ()
        assert it.emu.existing == (it.foreign,)


@attrs.frozen
class Recording:
    """The journal of a program in its block, and the service that it used."""

    journal: bytes
    root_url: str
    foreign: str
    ours: str


async def record(folder: Path) -> Recording:
    async with scene(folder, program_of(SLEEP)) as it:
        await it.until_body()
        (path,) = it.journals
        return Recording(path.read_bytes(), it.emu.root_url, it.foreign, it.left[0])


@attrs.frozen
class Aftermath:
    """Sweeps a part of a recorded journal, as if its start had just been sent.

    The loop, the service and the wall clock are on virtual time.
    """

    recording: Recording
    sent_at: float

    @classmethod
    def of(cls, recording: Recording) -> Aftermath:
        (intent,) = (line for line in recording.journal.splitlines() if b'"INTENT"' in line)
        return cls(recording, float(json.loads(intent)["at"]))

    @property
    def durable(self) -> int:
        """Bytes of the journal that were on disk before the start was sent."""
        return self.recording.journal.index(b"\n", self.recording.journal.index(b'"INTENT"')) + 1

    async def sweep(self, data: bytes, state: Path, *, started: bool) -> tuple[str, tuple[str, ...]]:
        """Return the state of the orphan, and the instances that exist after the sweep."""
        began = anyio.current_time()

        def wall() -> float:
            return self.sent_at + clock() - began

        clock = asyncio.get_running_loop().time
        emu = Emulator(clock=lambda: wall() - _EPOCH, root_url=self.recording.root_url)
        ids = [emu.start_instance(MODEL, HARDWARE) for _ in range(1 + started)]
        assert ids == [self.recording.foreign, self.recording.ours][: 1 + started]
        folder = state / "journal"
        await anyio.Path(folder).mkdir(parents=True)
        await anyio.Path(folder / f"{0:032x}.jsonl").write_bytes(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Wiring, "system", System(wall))
            async with (
                httpx.AsyncClient(transport=emu.transport()) as http,
                client_of(emu, state, http_client=http) as client,
            ):
                states = [orphan.state for orphan in await client.sweep()]
        # The first record was on disk before the file had its name. Without it, the file is not removed.
        assert len(list(folder.iterdir())) == (b"\n" not in data)
        assert emu.billing == emu.existing
        return "".join(states), emu.existing


def on_virtual_time(work: Callable[[], Awaitable[None]]) -> None:
    anyio.run(work, backend_options={"loop_factory": VirtualTimeLoop})


# Inside a line, one cut is like the next, so only `nightly` cuts at every byte.
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_journal_cut_anywhere_by_a_power_loss_releases_the_start_and_nothing_else(
    tmp_path: Path, stride: int
) -> None:
    recording = anyio.run(record, tmp_path / "recorded")
    written, after = recording.journal, Aftermath.of(recording)
    ends = list(itertools.accumulate(map(len, written.splitlines(keepends=True))))
    assert len(ends) == 5

    async def sweep_all() -> None:
        for length in range(len(written) + 1):
            is_near_end = any(abs(length - end) <= 1 for end in ends)
            if length % stride and not is_near_end:
                continue
            tails = {"cut": b""}
            if is_near_end:
                # A file system may show space that was allocated but not written as zeros.
                tails["zeros"] = b"\0" * (len(written) - length)
            for name, tail in tails.items():
                outcome = await after.sweep(
                    written[:length] + tail, tmp_path / f"{name}-{length}", started=True
                )
                # No start is sent before the whole line is on disk, so the second instance is foreign too.
                expected = (
                    ("released", (recording.foreign,))
                    if length >= after.durable
                    else ("", (recording.foreign, recording.ours))
                )
                assert outcome == expected, (name, length)

    on_virtual_time(sweep_all)


def test_a_start_that_never_reached_the_service_is_given_up_after_five_minutes(tmp_path: Path) -> None:
    recording = anyio.run(record, tmp_path / "recorded")
    after = Aftermath.of(recording)

    async def sweep() -> None:
        began = anyio.current_time()
        data = recording.journal[: after.durable]
        assert await after.sweep(data, tmp_path / "swept", started=False) == ("gone", (recording.foreign,))
        assert 300.0 <= anyio.current_time() - began < 306.0

    on_virtual_time(sweep)


# Blocks the event loop until the test creates a file.
BLOCK = f"""
while not os.path.exists(os.environ["CORTECS_STATE_DIR"] + "/go"):
    time.sleep(0.02)
{SLEEP}
"""

# Shortens the grace period of a living parent.
SHORT_GRACE = """
from cortecs_async._recovery import reaper_process
reaper_process.BOOTSTRAP = reaper_process.BOOTSTRAP.replace(
    "\\nmain()", "\\nfrom cortecs_async._recovery import reaper\\nreaper.GRACE = 0.2\\nmain()"
)
"""


async def blocks(folder: Path, backend: str, option: str, error: str) -> None:
    # Its own release then believes sooner that such a new instance is deleted.
    poll_policy = "poll_policy=PollPolicy(settle=1.0)"
    source = program_of(BLOCK, prelude=SHORT_GRACE, client=poll_policy, options=f"{option}=3")
    async with scene(folder, source, backend) as it:
        await it.until_body()
        assert len(it.left) == 1, it.program.output
        await until(lambda: not it.left)
        (entry,) = it.ours
        assert entry.deleted_at is not None
        assert 3.0 <= entry.deleted_at - entry.started_at < 3.0 + LIMIT
        assert not it.program.has_ended
        (it.state / "go").touch()
        await until(lambda: it.program.has_ended)
        assert error in it.program.output
        assert it.program.reapers() == ()
        assert it.journals == []
        assert not it.is_foreign_touched


async def test_a_blocked_event_loop_does_not_outlast_its_limits(tmp_path: Path) -> None:
    limits = {"max_lifetime": "LeaseExpiredError", "idle_timeout": "LeaseIdleError"}
    async with anyio.create_task_group() as tasks:
        for option, error in limits.items():
            for backend in BACKENDS:
                tasks.start_soon(blocks, tmp_path / f"{option}-{backend}", backend, option, error)


def created(**more: Any) -> list[Record]:
    common = {"entry": "one", "account": "a", "api": "http://localhost", "at": 900.0}
    args = {"model_id": "m"}
    return [
        {"kind": "BASELINE", "baseline": "before", "ids": []},
        {"kind": "INTENT", **common, "args": args, "baseline": "before"},
        {"kind": "CREATED", **common, "args": args, "instance_id": "i", "goal": "gone", **more},
    ]


def test_the_reaper_wakes_by_itself_when_an_instance_of_a_silent_parent_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin, to_it = os.pipe()
    from_it, stdout = os.pipe()
    monkeypatch.setattr(_reaper, "GRACE", 0.2)
    worked = threading.Event()

    def work(book: Any, entries: Any, accounts: Any, report: Callable[[Record], None], journal: Any) -> None:
        report({"kind": "GONE", "entry": "one"})
        worked.set()

    thread = threading.Thread(target=_reaper.serve, args=(stdin, stdout, work))
    thread.start()
    try:
        messages = created(expires_at=time.time())
        os.write(to_it, encode_messages({**each, "number": number} for number, each in enumerate(messages)))
        assert worked.wait(20.0)
    finally:
        os.close(to_it)
        thread.join(20.0)
        for fd in (stdin, from_it, stdout):
            os.close(fd)
    assert not thread.is_alive()


async def test_neither_the_reaper_nor_the_journal_shows_a_secret(tmp_path: Path, backend: str) -> None:
    secret, key = "a-secret-of-the-test", "a-key-of-the-test"
    async with scene(tmp_path / "it", program_of(SLEEP), backend, client_secret=secret, api_key=key) as it:
        await it.until_body()
        secrets = [each.encode() for each in (secret, key, *it.emu._account.tokens)]
        assert len(secrets) > 2
        pid = it.program.pid
        assert all(each in read(pid, "environ") for each in secrets[:2])
        reaper = it.program.reaper()
        (journal,) = it.journals
        for shown in (read(reaper, "cmdline"), read(reaper, "environ"), journal.read_bytes()):
            assert shown
            assert [each for each in secrets if each in shown] == []
