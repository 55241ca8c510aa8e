"""Test the rules of evidence: what is ours is released, and nothing else is touched.

A start that was rejected or never sent leaves no promise. Equal starts of many processes each get their own
instance. The service's timestamps are evidence only if they are plausible. An instance that appears late is
released. An instance that was handed over is not touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio.testing
from _evidence import PROXY_PAGE, FakeReaper, Process, open_promises, process, reap
from _grids import BACKENDS, grid
from _promises import BASELINE, OWNER, created, intent, state_of
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL, SYSTEM, World, client_of, emulated_wall_clock

from cortecs_async import AsyncCortecs, PollPolicy, errors
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.matching import match_start
from cortecs_async._client.wiring import Wiring
from cortecs_async._lease.start_state import StartAttempt
from cortecs_async._lease.starter import Starter
from cortecs_async._recovery.claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from cortecs_async._recovery.journal import JournalFile, read_journals
from cortecs_async._recovery.records import Record, encode, fold
from cortecs_async.emulator import Emulator, Fault

# --- a start that was rejected or never sent ----------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[FakeReaper]:
    """Replace each new reaper, and collect the replacements."""
    fakes: list[FakeReaper] = []

    def create(*arguments: Any) -> FakeReaper:
        fakes.append(FakeReaper(*arguments))
        return fakes[-1]

    monkeypatch.setattr("cortecs_async._recovery.store.ReaperProcess", create)
    return fakes


class Notes:
    """What journal and reaper know when a start fails, before a release can write anything."""

    def __init__(self, journals: Path, reapers: list[FakeReaper], monkeypatch: pytest.MonkeyPatch) -> None:
        self.journals = journals
        self.reapers = reapers
        self.synced: dict[int, int] = {}  # the size of each file when it was last synced, by inode
        self.endings: list[BaseException] = []
        sync, start = os.fsync, Starter.start

        def note_sync(fd: int) -> None:
            sync(fd)
            status = os.fstat(fd)
            self.synced[status.st_ino] = status.st_size

        async def note_end(starter: Starter, attempt: StartAttempt) -> Any:
            try:
                return await start(starter, attempt)
            except BaseException as error:
                self.endings.append(error)
                self.check()
                raise

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(Starter, "start", note_end)

    def check(self) -> None:
        """Check that neither the disk nor the reaper has an open promise, and that this is durable."""
        for path in self.journals.glob("*.jsonl"):
            assert self.synced[path.stat().st_ino] == path.stat().st_size
        assert open_promises(self.journals) == []
        assert [each.promises for each in self.reapers] == [[] for _ in self.reapers]


@pytest.fixture
def notes(journals: Path, reapers: list[FakeReaper], monkeypatch: pytest.MonkeyPatch) -> Notes:
    return Notes(journals, reapers, monkeypatch)


REFUSALS: dict[str, tuple[dict[str, Any], type[errors.CortecsError]]] = {
    "402": ({"status": 402}, errors.InsufficientBalanceError),
    "403": ({"status": 403}, errors.PermissionDeniedError),
    "404": ({"status": 404}, errors.NotFoundError),
    "409": ({"status": 409}, errors.ConflictError),
    "422": ({"status": 422}, errors.APIStatusError),
    "429": ({"status": 429, "times": None}, errors.RateLimitError),
    "429 with Retry-After": (
        {"status": 429, "times": None, "headers": {"Retry-After": "70"}},
        errors.RateLimitError,
    ),
    "429 from a proxy": ({"status": 429, "times": None, "body": PROXY_PAGE}, errors.RateLimitError),
    "403 from a proxy": ({"status": 403, "body": PROXY_PAGE}, errors.PermissionDeniedError),
    "502 in JSON": ({"status": 502, "times": None, "body": {"error": "full"}}, errors.APIStatusError),
    "503 in JSON": ({"status": 503}, errors.ServiceUnavailableError),
    "503 with an error object": (
        {"status": 503, "body": {"error": {"message": "no capacity"}}},
        errors.ServiceUnavailableError,
    ),
}


async def leave_a_colleague_alone(emu: Emulator, left: Process, journals: Path) -> None:
    """Kill a process whose start was rejected, and check that no sweep takes an equal instance."""
    path = left.kill()
    theirs = emu.start_instance(MODEL, HARDWARE)
    await left.reap(path)
    async with process(emu, journals) as later:
        await anyio.sleep(10.0)
        assert await later.client.orphans() == ()
        assert await later.client.sweep() == ()
    assert emu.billing == (theirs,)


@grid(anyio_backend=BACKENDS, refusal=REFUSALS)
async def test_a_refused_start_leaves_no_promise(
    world: World, journals: Path, notes: Notes, refusal: str
) -> None:
    fault, error = REFUSALS[refusal]
    async with (
        world() as (emu, _),
        process(emu, journals, guard="auto") as mine,
    ):
        mine.store._uses_reaper = True
        emu.add_fault(Fault("status", route="start", **fault))
        with pytest.raises(error) as caught:
            async with mine.client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert notes.endings == [caught.value]
        assert not getattr(caught.value, "outcome_unknown", False)
        assert emu.ledger == ()
        await leave_a_colleague_alone(emu, mine, journals)


async def test_no_promise_is_open_while_a_program_waits_for_capacity(
    world: World, journals: Path, notes: Notes
) -> None:
    async with world() as (emu, _), process(emu, journals, guard="auto") as mine:
        mine.store._uses_reaper = True
        emu.add_fault(Fault("status", route="start", status=429, headers={"Retry-After": "30"}, times=3))

        async def kill_in_between() -> None:
            await anyio.sleep(45.0)
            notes.check()
            await leave_a_colleague_alone(emu, mine, journals)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_in_between)
            async with mine.client.instance(MODEL, HARDWARE, teardown_timeout=1.0):
                pytest.fail("entered")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_start_in_a_second_event_loop_leaves_no_promise(journals: Path, notes: Notes, backend: str) -> None:
    emu = Emulator(clock=lambda: 0.0)
    http = emu.http_client()
    client = client_of(emu, http_client=http, guard="auto", journal="required")

    async def refused() -> None:
        # The baseline of this start is recent enough for the next one.
        emu.add_fault(Fault("status", route="start", status=402))
        with pytest.raises(errors.InsufficientBalanceError):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")

    async def in_another_loop() -> None:
        with pytest.raises(errors.ConfigurationError, match="different event loop"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        notes.check()
        # Not `aclose`, which works only in the first event loop.
        client._closed = True
        await client._wiring.promises.aclose()
        await http.aclose()

    for work in (refused, in_another_loop):
        options: dict[str, Any] = (
            {"loop_factory": VirtualTimeLoop}
            if backend == "asyncio"
            else {"clock": trio.testing.MockClock(autojump_threshold=0)}
        )
        anyio.run(work, backend=backend, backend_options=options)
    assert [type(each) for each in notes.endings] == [errors.InsufficientBalanceError]
    assert emu.ledger == ()


async def test_a_start_with_a_closed_http_client_leaves_no_promise(
    world: World, journals: Path, notes: Notes
) -> None:
    async with world() as (emu, _):
        http = emu.http_client()
        async with client_of(emu, http_client=http, guard="auto", journal="required") as client:
            emu.add_fault(Fault("status", route="start", status=402))
            with pytest.raises(errors.InsufficientBalanceError):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
            await http.aclose()
            with pytest.raises(errors.ClientClosedError):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
            notes.check()
            assert len(notes.endings) == 2
            assert emu.ledger == ()


class SlowDisk:
    """File work that takes a second, before or after which the caller may be cancelled."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.is_slow = False

    async def __call__(self, work: Callable[[], Any], /) -> Any:
        await anyio.lowlevel.checkpoint()
        if self.is_slow and self.when == "before":
            await anyio.sleep(1.0)
        result = work()
        if self.is_slow and self.when == "after":
            await anyio.sleep(1.0)
        return result


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_start_that_is_cancelled_while_its_intent_is_written_leaves_no_promise(
    world: World, journals: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    disk = SlowDisk(when)
    monkeypatch.setattr(Wiring, "system", SYSTEM._replace(off_loop=disk))
    async with world(guard="auto", journal="required") as (emu, client):
        disk.is_slow = True
        with anyio.move_on_after(0.5) as scope:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert scope.cancelled_caught
        notes.check()
        assert len(notes.endings) == 1
        disk.is_slow = False
        assert "start" not in [each.route for each in emu.requests]


async def test_a_start_that_is_cancelled_while_its_refusal_is_recorded_leaves_no_promise(
    world: World, journals: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk("before")
    monkeypatch.setattr(Wiring, "system", SYSTEM._replace(off_loop=disk))
    async with world(guard="auto", journal="required") as (emu, client):
        disk.is_slow = True
        began = anyio.current_time()
        emu.add_fault(Fault("status", route="start", status=402))
        # Writing the intent takes one second, and recording the rejection another.
        with pytest.raises(errors.InsufficientBalanceError), anyio.fail_after(1.5):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        notes.check()
        assert anyio.current_time() - began >= 2.0
        assert len(notes.endings) == 1
        disk.is_slow = False
        assert emu.ledger == ()


async def test_a_start_whose_required_journal_fails_leaves_no_promise(
    world: World, journals: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(guard="auto", journal="required") as (emu, client):
        emu.add_fault(Fault("status", route="start", status=402))
        with pytest.raises(errors.InsufficientBalanceError):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")  # now there is a journal
        broken = [True]
        append = JournalFile.append

        def fail(self: JournalFile, records: list[Record], *, durable: bool) -> None:
            if broken:
                raise OSError("no space left on device")
            append(self, records, durable=durable)

        monkeypatch.setattr(JournalFile, "append", fail)
        monkeypatch.setattr(JournalFile, "rewrite", lambda self, _: fail(self, [], durable=True))
        with pytest.raises(errors.JournalError, match="Nothing was started"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        notes.check()
        assert len(notes.endings) == 2
        assert emu.ledger == ()
        broken.clear()
        await client._wiring.promises.flush()
        assert open_promises(journals) == []


class Stepped:
    """Awaits a coroutine, and closes it at the first await at which a condition is true."""

    def __init__(self, work: Any, is_enough: Callable[[], bool]) -> None:
        self.work = work
        self.is_enough = is_enough

    def __await__(self) -> Generator[Any, Any, None]:
        sent: Any = None
        while True:
            trap = self.work.send(sent)
            if self.is_enough():
                self.work.close()
                break
            sent = yield trap


async def test_a_start_whose_coroutine_is_closed_after_its_intent_leaves_no_promise(
    world: World, journals: Path, reapers: list[FakeReaper], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk("after")
    monkeypatch.setattr(Wiring, "system", SYSTEM._replace(off_loop=disk))
    async with world(guard="auto", journal="required") as (emu, client):
        disk.is_slow = True
        lease = client.instance(MODEL, HARDWARE)
        # The intent is on disk, but the request has not been sent.
        await Stepped(lease.__aenter__(), lambda: bool(open_promises(journals)))
        for thread in threading.enumerate():
            if thread.name == "cortecs-promises":
                thread.join(10)
        assert open_promises(journals) == []
        assert [each.promises for each in reapers] == [[]]
        assert "start" not in [each.route for each in emu.requests]
        disk.is_slow = False


async def test_an_instance_that_was_found_while_the_lease_was_cancelled_is_released(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk("after")
    monkeypatch.setattr(Wiring, "system", SYSTEM._replace(off_loop=disk))
    async with world(journal="auto") as (emu, client):
        found: list[bool] = []
        with anyio.CancelScope() as scope:
            record_created = client._wiring.promises.record_created

            def record(*args: Any, **kwargs: Any) -> str:
                found.append(True)
                disk.is_slow = True
                scope.cancel()
                return record_created(*args, **kwargs)

            monkeypatch.setattr(client._wiring.promises, "record_created", record)
            emu.add_fault(Fault("drop", route="start", when="after"))
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert found
        assert emu.existing == ()
        disk.is_slow = False
    assert open_promises(journals) == []


async def test_a_response_just_before_the_deadline_is_recorded_before_the_block_begins(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk("before")
    monkeypatch.setattr(Wiring, "system", SYSTEM._replace(off_loop=disk))
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        record_created = client._wiring.promises.record_created

        def record(*args: Any, **kwargs: Any) -> str:
            disk.is_slow = True
            return record_created(*args, **kwargs)

        monkeypatch.setattr(client._wiring.promises, "record_created", record)
        emu.add_fault(Fault("delay", route="start", when="after", seconds=9.8))
        async with client.instance(MODEL, HARDWARE, start_timeout=10.0) as inst:
            disk.is_slow = False
            assert [each.instance_id for each in open_promises(journals)] == [inst.instance_id]


# --- many processes with equal starts -----------------------------------------------------------------------

CROWD = 20
SELDOM = PollPolicy(min_interval=4.0)  # because each poll reads the journals of all


@grid(anyio_backend=BACKENDS, lag=[0.0, 1.0, 3.0])
async def test_equal_lost_starts_of_many_processes_each_get_their_own(
    world: World, journals: Path, lag: float
) -> None:
    async with world(list_lag=lag) as (emu, _), AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(process(emu, journals, poll_policy=SELDOM)) for _ in range(CROWD)
        ]
        emu.add_fault(Fault("drop", route="start", when="after", times=CROWD))
        theirs = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(lag)
        found: list[str] = []

        async def lease(which: AsyncCortecs, after: float) -> None:
            await anyio.sleep(after)
            async with which.instance(MODEL, HARDWARE) as inst:
                found.append(inst.instance_id)
                await anyio.sleep(100.0 - after)

        async with anyio.create_task_group() as tasks:
            for number, each in enumerate(crowd):
                tasks.start_soon(lease, each.client, number * 0.1)
        assert len(found) == len(set(found)) == CROWD
        assert len(emu.ledger) == CROWD + 1
        assert emu.existing == (theirs,)
    assert list(read_journals(journals)) == []


@grid(anyio_backend=BACKENDS, lag=[0.0, 1.0, 3.0], by=["sweep", "reapers", "late reapers"])
async def test_what_many_killed_processes_lost_is_released(
    world: World, journals: Path, lag: float, by: str
) -> None:
    count = CROWD if by == "sweep" else CROWD // 2  # each reaper reads the journals of all
    async with (
        world(list_lag=lag) as (emu, _),
        process(emu, journals) as later,
        AsyncExitStack() as stack,
        anyio.create_task_group() as tasks,
    ):
        crowd = [
            await stack.enter_async_context(process(emu, journals, poll_policy=SELDOM)) for _ in range(count)
        ]
        emu.add_fault(Fault("drop", route="start", when="after", times=count))
        theirs = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(lag)
        for each in crowd:
            tasks.start_soon(each.start_and_die)
        await anyio.sleep(0.7)
        assert len(emu.billing) == count + 1
        left = [each.kill() for each in crowd]
        if by == "late reapers":
            await anyio.sleep(30.0)
        if by == "sweep":
            swept = await later.client.sweep()
            assert [each.state for each in swept] == ["released"] * count
            assert len({each.instance_id for each in swept}) == count
        else:
            async with anyio.create_task_group() as reaping:
                for each, path in zip(crowd, left, strict=True):
                    reaping.start_soon(each.reap, path)
        assert emu.existing == (theirs,)
        assert await later.client.sweep() == ()
        tasks.cancel_scope.cancel()


async def test_some_are_killed_while_the_others_search(world: World, journals: Path) -> None:
    async with world(list_lag=1.0) as (emu, _), AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(process(emu, journals, poll_policy=SELDOM)) for _ in range(CROWD)
        ]
        emu.add_fault(Fault("drop", route="start", when="after", times=CROWD))
        found: list[str] = []

        async def lease(which: AsyncCortecs) -> None:
            async with which.instance(MODEL, HARDWARE) as inst:
                found.append(inst.instance_id)
                await anyio.sleep(100.0)

        async def die(each: Process, after: float) -> None:
            await anyio.sleep(after)
            await each.reap(each.kill())

        async with anyio.create_task_group() as dead:
            async with anyio.create_task_group() as living:
                for number, (lives, dies) in enumerate(zip(crowd[::2], crowd[1::2], strict=True)):
                    living.start_soon(lease, lives.client)
                    dead.start_soon(dies.start_and_die)
                    living.start_soon(die, dies, 1.0 + number / 2)
            dead.cancel_scope.cancel()
        assert len(found) == len(set(found)) == CROWD / 2
        assert len(emu.ledger) == CROWD
        assert emu.existing == ()


@pytest.mark.parametrize("by", ["lease", "sweep", "its reaper"])
async def test_only_one_process_decides_at_a_time(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    match = ForeignClaims.match
    locked: list[bool] = []

    def note(claims: ForeignClaims, *args: Any, **options: Any) -> Any:
        fd = os.open(journals, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            locked.append(True)
        else:
            locked.append(False)
        finally:
            os.close(fd)
        return match(claims, *args, **options)

    monkeypatch.setattr(ForeignClaims, "match", note)
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("drop", route="start", when="after"))
        if by == "lease":
            async with mine.client.instance(MODEL, HARDWARE):
                pass
        else:
            tasks.start_soon(mine.start_and_die)
            await anyio.sleep(0.3)
            path = mine.kill()
            locked.clear()
            await (later.client.sweep() if by == "sweep" else mine.reap(path))
            tasks.cancel_scope.cancel()
        assert emu.existing == ()
    # A lease first decides without the lock, because most decisions are to wait.
    assert locked[-1]
    assert by == "lease" or all(locked)


API = "https://api.test"  # of the records in _promises.py


def listed(instance_id: str) -> Instance:
    """Return an instance that fits `intent()`."""
    args = InstanceArgs(model_id=MODEL.replace("/", "--"), hardware_type_id=HARDWARE)
    return Instance(
        instance_id=instance_id, instance_args=args, instance_status=InstanceStatus(status="running")
    )


def test_a_claim_that_was_given_up_after_the_list_was_read_counts() -> None:
    mine = unresolved_start_of(state := state_of(BASELINE, intent()), state.promises["e1"])
    theirs = state_of(created("e2", instance_id="i-7"))
    earlier = collect_foreign_claims(API, [(theirs, ())])
    later = collect_foreign_claims(API, [])
    assert later.match(mine, [listed("i-7")], listed_at=None) == listed("i-7")
    assert later.with_earlier(earlier).match(mine, [listed("i-7")], listed_at=None) is None


@pytest.mark.parametrize("ending", [{"kind": "GONE"}, {"kind": "HELD"}])
def test_the_instance_of_a_closed_promise_stays_known(ending: Record) -> None:
    state = state_of(created("e2", instance_id="i-7"), {**ending, "entry": "e2"})
    assert state.promises == {}
    for each in (state, fold(encode(state.snapshot()))):
        assert collect_foreign_claims(API, [(each, ())]).ids == {"i-7"}


async def test_the_ids_of_another_service_are_no_claims(world: World, journals: Path) -> None:
    """Two emulators number their instances alike."""
    second_service = world(root_url="https://two.invalid")
    async with world() as (one, _), second_service as (two, _), process(one, journals) as mine:
        async with mine.client.instance(MODEL, HARDWARE) as first:
            pass
        two.add_fault(Fault("drop", route="start", when="after"))
        async with process(two, journals) as other, other.client.instance(MODEL, HARDWARE) as second:
            assert second.instance_id == first.instance_id
        assert two.existing == ()


@pytest.mark.parametrize("last", [{"kind": "ABANDONED", "entry": "e1"}, {"kind": "ORPHANED"}])
def test_starts_that_no_lease_waits_for_come_last(last: Record) -> None:
    old = state_of(BASELINE, intent(at=1000.0), last)
    # Soon after the old one, which can still have created a new instance.
    new = state_of(BASELINE, intent(at=1100.0), {"kind": "UNANSWERED", "entry": "e1"})
    starts = [unresolved_start_of(each, each.promises["e1"]) for each in (old, new)]
    outcomes = [match_start(start, starts, [listed("i-7")]) for start in starts]
    assert outcomes == [None, listed("i-7")]


class _HalfReadable(httpx.AsyncBaseTransport):
    """A service that writes the arguments of an instance only after a while."""

    def __init__(self, inner: httpx.AsyncBaseTransport, instance_id: str) -> None:
        self.inner = inner
        self.instance_id = instance_id
        self.is_readable = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if self.is_readable or not request.url.path.endswith("/instances/"):
            return response
        data = json.loads(await response.aread())
        for each in data["instances"]:
            if each["instance_id"] == self.instance_id:
                each["instance_args"] = None
        return httpx.Response(200, headers={"date": response.headers["date"]}, json=data)


async def test_an_instance_that_could_not_be_read_before_the_start_is_not_taken(
    world: World, journals: Path
) -> None:
    async with world() as (emu, _):
        theirs = emu.start_instance(MODEL, HARDWARE)
        transport = _HalfReadable(emu.transport(), theirs)
        async with (
            httpx.AsyncClient(transport=transport) as http,
            client_of(emu, http_client=http, guard="off", journal="auto") as client,
            anyio.create_task_group() as tasks,
        ):
            emu.add_fault(Fault("drop", route="start", when="before"))

            async def become_readable() -> None:
                await anyio.sleep(1.0)
                transport.is_readable = True

            tasks.start_soon(become_readable)
            async with client.instance(MODEL, HARDWARE) as inst:
                assert emu.billing == (theirs, inst.instance_id)
        assert emu.existing == (theirs,)


# --- timestamps ---------------------------------------------------------------------------------------------

STAMPS = ["running", "accepted", "initialized", "first_running", "constant", "none", "local_time"]


async def lose_a_start(emu: Emulator, mine: Process, tasks: Any, *, when: str = "after") -> Path | None:
    """Let a process lose the response to a start, and be killed. Return its journal."""
    emu.add_fault(Fault("drop", route="start", when="before" if when == "before" else "after"))
    tasks.start_soon(mine.start_and_die)
    await anyio.sleep(1.0)
    return mine.kill()


@grid(
    anyio_backend=BACKENDS,
    skew=[0.0, -600.0, 600.0],
    date=[True, False],
    stamp=STAMPS,
    by=["sweep", "its reaper"],
)
async def test_a_lost_start_is_found_whatever_the_timestamp_means(
    world: World, journals: Path, skew: float, stamp: Any, by: str, *, date: bool
) -> None:
    async with (
        world(clock_skew=skew, date_header=date, started_at=stamp) as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        await anyio.sleep(1000.0)  # no time is zero
        theirs = emu.start_instance(MODEL, HARDWARE)
        left = await lose_a_start(emu, mine, tasks)
        if by == "sweep":
            await anyio.sleep(30.0)
            assert [each.state for each in await later.client.orphans()] == ["found"]
            assert [each.state for each in await later.client.sweep()] == ["released"]
        else:
            await mine.reap(left)
        assert emu.existing == (theirs,)
        assert list(read_journals(journals)) == []
        tasks.cancel_scope.cancel()


@grid(anyio_backend=BACKENDS, skew=[0.0, -600.0, 600.0], date=[True, False], stamp=STAMPS)
async def test_a_lease_finds_its_lost_start_whatever_the_timestamp_means(
    world: World, journals: Path, skew: float, stamp: Any, *, date: bool
) -> None:
    async with world(clock_skew=skew, date_header=date, started_at=stamp, journal="auto") as (emu, client):
        await anyio.sleep(1000.0)
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.ledger) == 1
        assert emu.existing == ()


@grid(anyio_backend=BACKENDS, skew=[0.0, -600.0, 600.0], ours=[True, False], by=["sweep", "its reaper"])
async def test_a_hidden_instance_that_a_colleague_restarts_is_not_touched(
    world: World, journals: Path, skew: float, by: str, *, ours: bool
) -> None:
    async with (
        world(hide_stopped=True, started_at="first_running", clock_skew=skew) as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        twin = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(600.0)
        emu.stop_instance(twin)
        await anyio.sleep(3600.0)
        left = await lose_a_start(emu, mine, tasks, when="after" if ours else "before")
        emu.restart_instance(twin)
        if by == "sweep":
            await anyio.sleep(5.0)
            states = [each.state for each in await later.client.sweep()]
            assert states == ["released" if ours else "ambiguous"]
        else:
            await mine.reap(left)
        assert emu.billing == (twin,)
        # A second sweep changes nothing.
        assert [each.state for each in await later.client.sweep()] == ([] if ours else ["ambiguous"])
        assert emu.billing == emu.existing == (twin,)
        assert "restart" not in [each.route for each in emu.requests]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("ours", [True, False])
async def test_a_lease_does_not_take_a_hidden_instance_that_a_colleague_restarts(
    world: World, journals: Path, *, ours: bool
) -> None:
    async with world(hide_stopped=True, started_at="first_running", journal="auto") as (emu, client):
        twin = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(600.0)
        emu.stop_instance(twin)
        await anyio.sleep(3600.0)
        emu.add_fault(Fault("drop", route="start", when="after" if ours else "before"))

        async def restart() -> None:
            await anyio.sleep(1.0)
            emu.restart_instance(twin)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(restart)
            async with client.instance(MODEL, HARDWARE) as inst:
                assert inst.instance_id != twin
                assert set(emu.billing) == {twin, inst.instance_id}
        assert emu.existing == (twin,)


async def test_a_start_that_another_process_has_made_an_hour_later_is_not_ours(
    world: World, journals: Path
) -> None:
    async with (
        world(started_at="accepted") as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        await lose_a_start(emu, mine, tasks, when="before")
        await anyio.sleep(2400.0)
        theirs = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(10.0)
        assert [each.state for each in await later.client.sweep()] == ["ambiguous"]
        assert emu.billing == (theirs,)
        tasks.cancel_scope.cancel()


# --- what appears late --------------------------------------------------------------------------------------


@grid(anyio_backend=BACKENDS, seconds=[75.0, 100.0, 250.0], by=["sweep", "its reaper"])
async def test_a_lost_start_of_a_killed_process_that_is_carried_out_late_is_released(
    world: World, journals: Path, seconds: float, by: str
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("late", route="start", seconds=seconds))

        tasks.start_soon(mine.start_and_die)
        await anyio.sleep(2.0)
        left = mine.kill()
        if by == "sweep":
            assert [each.state for each in await later.client.sweep(timeout=30)] == ["unsettled"]
            assert [each.state for each in await later.client.orphans()] == ["unsettled"]
            assert [each.state for each in await later.client.sweep()] == ["released"]
        else:
            await mine.reap(left)
        assert anyio.current_time() >= seconds
        assert len(emu.ledger) == 1
        assert emu.existing == ()
        assert await later.client.sweep() == ()
        tasks.cancel_scope.cancel()


@grid(anyio_backend=BACKENDS, seconds=[75.0, 100.0, 250.0], by=["reaper", "release", "sweep"])
async def test_a_lease_that_started_again_does_not_leave_its_first_instance(
    world: World, journals: Path, seconds: float, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("late", route="start", seconds=seconds))
        async with mine.client.instance(MODEL, HARDWARE) as inst:
            second = inst.instance_id
            assert emu.billing == (second,)
            assert "appears later" in caplog.text
            (first,) = (each for each in mine.promises if each.instance_id is None)
            assert first.abandoned
            if by == "reaper":
                state = mine.store.state

                def report(record: Record) -> None:
                    mine.store.put(record)
                    mine.store.commit()

                tasks.start_soon(reap, emu, state, [state.promises[first.key]], report, mine.journal)
            await anyio.sleep(10.0 if by == "sweep" else seconds + 20.0)
            if by == "reaper":
                assert emu.billing == (second,)
                assert len(emu.ledger) == 2
        if by == "sweep":
            assert emu.existing == ()
            assert [each.state for each in await mine.client.sweep()] == ["released"]
        assert len(emu.ledger) == 2
        assert emu.existing == ()
        assert mine.store.state.promises == {}
    assert list(read_journals(journals)) == []


@pytest.mark.parametrize("lag", [12.0, 15.0, 40.0])
async def test_a_list_that_lags_more_than_the_search_leaves_nothing(
    world: World, journals: Path, lag: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(list_lag=lag, journal="auto") as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with client.instance(MODEL, HARDWARE) as inst:
            assert len(emu.billing) == 2
            assert "appears later" in caplog.text
            assert emu.billing[1] == inst.instance_id
            await anyio.sleep(60.0)
        assert len(emu.ledger) == 2
        assert emu.existing == ()
    assert list(read_journals(journals)) == []


@pytest.mark.parametrize("after", [0.0, 2.0, 20.0])
async def test_a_start_that_is_not_visible_for_long_is_released_all_the_same(
    world: World, journals: Path, after: float
) -> None:
    async with world(list_lag=15.0, get_lag=15.0, journal="auto") as (emu, client):
        with anyio.move_on_after(after + 0.001):
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep_forever()
        assert len(emu.ledger) == 1
        assert emu.existing == ()
        # A whole block, which begins when the instance is visible.
        async with client.instance(MODEL, HARDWARE) as inst:
            await anyio.sleep(after)
            assert emu.billing == (inst.instance_id,)
        assert emu.existing == ()
    assert list(read_journals(journals)) == []


@pytest.mark.parametrize("by", ["sweep", "its reaper"])
async def test_a_killed_start_that_is_not_visible_for_long_is_released_all_the_same(
    world: World, journals: Path, by: str
) -> None:
    async with (
        world(list_lag=15.0, get_lag=15.0) as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(mine.start_and_die)
        await anyio.sleep(2.0)
        left = mine.kill()
        if by == "sweep":
            assert [each.state for each in await later.client.sweep()] == ["released"]
        else:
            await mine.reap(left)
        assert emu.existing == ()
        assert await later.client.sweep() == ()
        tasks.cancel_scope.cancel()


async def test_a_reaper_waits_for_another_candidate(world: World, journals: Path) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("late", route="start", seconds=4.0))
        tasks.start_soon(mine.start_and_die)
        await anyio.sleep(1.0)
        path = mine.kill()

        async def colleague() -> None:
            await anyio.sleep(1.0)
            emu.start_instance(MODEL, HARDWARE)

        tasks.start_soon(colleague)
        await mine.reap(path)
        assert len(emu.billing) == 2
        (promise,) = open_promises(journals)
        assert promise.candidates == emu.billing
        tasks.cancel_scope.cancel()


# --- what is gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["omit", "garbage"])
async def test_one_reading_without_the_instance_does_not_end_a_block(world: World, kind: Any) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            for route in ("list", "get"):
                body: dict[str, Any] = {"instances": []} if route == "list" else {"message": "not found"}
                if kind == "omit":
                    emu.add_fault(Fault("omit", route=route, instance_id=inst.instance_id))
                else:
                    status = 200 if route == "list" else 404
                    emu.add_fault(Fault("status", route=route, status=status, body=body))
            await anyio.sleep(60.0)
            assert emu.unmet_faults == ()
        assert emu.existing == ()


@pytest.mark.parametrize("seconds", [1.0, 4.0])
async def test_one_reading_without_the_instance_does_not_end_a_watch(world: World, seconds: float) -> None:
    async with world(step_seconds=10.0) as (emu, client), anyio.create_task_group() as tasks:
        instance_id = emu.start_instance(MODEL, HARDWARE)
        seen: list[str] = []

        async def watch() -> None:
            seen.extend([each.status async for each in client.instances.watch(instance_id)])

        tasks.start_soon(watch)
        await anyio.sleep(20.0)
        emu.add_fault(Fault("omit", times=None))
        await anyio.sleep(seconds)
        emu.clear_faults()
        await anyio.sleep(100.0)
        assert seen == []  # it has not ended
        emu.delete_instance(instance_id)
    assert seen[-1] == "running"


@grid(anyio_backend=BACKENDS, seconds=[0.5, 4.0, 20.0], stop=[404, 400, 500])
async def test_a_release_is_not_done_because_the_instance_cannot_be_seen(
    world: World, seconds: float, stop: int
) -> None:
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep(100.0)
            # Nothing shows it for a while. The first stop is refused, and the others fail.
            emu.add_fault(Fault("status", route="stop", status=stop))
            emu.add_fault(Fault("status", route="stop", status=502, body=PROXY_PAGE, times=None))
            emu.add_fault(Fault("omit", times=None))

            async def recover() -> None:
                await anyio.sleep(seconds)
                emu.clear_faults()

            tasks.start_soon(recover)
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_a_stop_is_asked_again_before_an_instance_counts_as_gone(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep(100.0)
            # A replica that does not know the instance answers for six seconds.
            emu.add_fault(Fault("status", route="stop", status=404))
            emu.add_fault(Fault("omit", times=4))
        assert emu.existing == ()
        assert [each.route for each in emu.requests].count("stop") == 2


async def test_a_new_instance_that_nothing_shows_for_long_is_released(world: World) -> None:
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        emu.add_fault(Fault("status", route="stop", status=404, times=None))
        emu.add_fault(Fault("omit", skip=1, times=None))  # after the baseline

        async def recover() -> None:
            await anyio.sleep(30.0)
            emu.clear_faults()

        tasks.start_soon(recover)
        with anyio.move_on_after(0.2):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert len(emu.ledger) == 1
        assert emu.existing == ()


@pytest.mark.parametrize("by", ["sweep", "its reaper"])
async def test_no_single_list_closes_the_promise_of_a_dead_process(
    world: World, journals: Path, by: str
) -> None:
    async with (
        world(step_seconds=100.0) as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(mine.start_and_die)
        await anyio.sleep(70.0)
        path = mine.kill()
        emu.add_fault(Fault("status", route="stop", status=404))
        emu.add_fault(Fault("omit", times=3))
        if by == "sweep":
            assert [each.state for each in await later.client.sweep()] == ["released"]
        else:
            await mine.reap(path)
        assert emu.existing == ()
        tasks.cancel_scope.cancel()


@grid(dry_run=[True, False], missing=["a list", "all lists", "everything"], anyio_backend=BACKENDS)
async def test_no_list_alone_settles_an_ambiguous_start(
    world: World, journals: Path, missing: str, *, dry_run: bool
) -> None:
    """Every request by id shows the candidates, or they are too young to be visible."""
    async with world() as (emu, _), process(emu, journals) as later:
        await later.client.user.balance()  # the first token also says which account it is
        candidates = [emu.start_instance(MODEL, HARDWARE) for _ in range(2)]
        account = later.client._wiring.promises.account
        JournalFile.create(
            journals,
            [
                OWNER,
                BASELINE,
                intent(account=account, api=emu.api_base_url, at=emulated_wall_clock()),
                {"kind": "AMBIGUOUS", "entry": "e1", "candidates": candidates},
            ],
        ).close()
        if missing != "everything":
            await anyio.sleep(1000.0)
        emu.add_fault(Fault("omit", route="list", times=1 if missing == "a list" else None))
        if missing == "everything":
            emu.add_fault(Fault("omit", route="get", times=None))
        sweep = later.client.orphans if dry_run else later.client.sweep
        assert [each.state for each in await sweep()] == ["ambiguous"]
        assert emu.billing == tuple(candidates)
        assert list(read_journals(journals)) != []
        if missing == "everything":
            await anyio.sleep(60.0)
            assert [each.state for each in await sweep()] == ["gone"]


# --- instances that were handed over ------------------------------------------------------------------------


@grid(anyio_backend=BACKENDS, how=["acquire", "keep"], ends=[None, 3.0], dies=[True, False])
async def test_a_lost_start_never_takes_an_instance_that_another_process_keeps(
    world: World, journals: Path, how: str, ends: float | None, *, dies: bool
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        AsyncExitStack() as stack,
        anyio.create_task_group() as tasks,
    ):
        other = await stack.enter_async_context(process(emu, journals))
        emu.add_fault(Fault("drop", route="start", when="before"))
        entered: list[str] = []
        done = anyio.Event()

        async def lease() -> None:
            async with mine.client.instance(MODEL, HARDWARE, teardown_timeout=1.0) as inst:
                entered.append(inst.instance_id)
                await done.wait()

        async def keep() -> str:
            if how == "acquire":
                return (await other.client.acquire(MODEL, HARDWARE)).instance_id
            async with other.client.instance(MODEL, HARDWARE, on_exit="keep") as inst:
                return inst.instance_id

        tasks.start_soon(lease)
        await anyio.sleep(1.0)
        kept = await keep()
        if ends is not None:
            await stack.aclose()
        if dies:
            await mine.reap(mine.kill())
            assert await later.client.sweep() == ()
            tasks.cancel_scope.cancel()
        else:
            await anyio.sleep(60.0)
            assert entered
            assert entered != [kept]
            done.set()
            while len(emu.existing) > 1:  # noqa: ASYNC110  (it has no event)
                await anyio.sleep(1.0)
            # The first start may still appear.
            assert [each.state for each in await mine.client.sweep()] in ([], ["gone"])
        assert emu.billing == emu.existing == (kept,)


async def test_the_journal_that_names_a_kept_instance_is_removed_once_no_start_needs_it(
    world: World, journals: Path
) -> None:
    async with world() as (emu, _), process(emu, journals) as mine:
        async with process(emu, journals) as other:
            handle = await other.client.acquire(MODEL, HARDWARE)
        assert list(read_journals(journals)) == []
        emu.add_fault(Fault("drop", route="start", when="before", times=1))
        async with anyio.create_task_group() as tasks:

            async def lease() -> None:
                async with mine.client.instance(MODEL, HARDWARE):
                    pass

            tasks.start_soon(lease)
            await anyio.sleep(1.0)
            async with process(emu, journals) as other:
                await other.client.acquire(MODEL, HARDWARE)
            assert len(list(read_journals(journals))) == 2
        assert [each.state for each in await mine.client.sweep()] == ["gone"]
        assert await mine.client.sweep() == ()
        assert handle.instance_id in emu.billing
        assert len(emu.billing) == 2
    async with process(emu, journals):
        pass
    assert list(read_journals(journals)) == []
