"""Test the reaper and its parent's side where something breaks: lines, locks, processes, the collector."""

from __future__ import annotations

import gc
import importlib.util
import json
import marshal
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from _processes import until
from _promises import BASELINE, created, state_of
from _reapers import SilentProcess, StubReaper, stub_reapers
from _world import HARDWARE, MODEL, SYSTEM, World, client_of

from cortecs_async._aio import clock, eventloop
from cortecs_async._aio.clock import SteadyClock
from cortecs_async._aio.eventloop import LoopBinding
from cortecs_async._aio.threads import in_background
from cortecs_async._client.wiring import Wiring
from cortecs_async._environment import import_path
from cortecs_async._errors import GuardError
from cortecs_async._recovery import reaper as _reaper
from cortecs_async._recovery import reaper_process as _reaper_process
from cortecs_async._recovery.journal import JournalFile
from cortecs_async._recovery.pipe import ParentPipe, encode_messages
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.reaper import Reaper
from cortecs_async._recovery.reaper_check import check_reaper
from cortecs_async._recovery.reaper_process import ReaperProcess
from cortecs_async._recovery.records import JournalState, Record, encode, fold
from cortecs_async._recovery.store import PromiseStore
from cortecs_async.emulator import serve_emulator

SECONDS = 20.0
"""Longer than anything here takes, unless it hangs."""


def in_time(work: Callable[[], object]) -> None:
    """Run `work` in a thread, and fail if it hangs."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive()


# --- the state of the reaper --------------------------------------------------------------------------------


class Watched(dict[str, Promise]):
    """The promises of a reaper. It may be used only while the lock is held."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock

    def _check(self) -> None:
        assert self._lock._is_owned()

    def values(self) -> Any:
        self._check()
        return super().values()

    def __setitem__(self, key: str, promise: Promise) -> None:
        self._check()
        super().__setitem__(key, promise)

    def pop(self, *arguments: Any) -> Any:
        self._check()
        return super().pop(*arguments)


def test_the_state_is_changed_and_iterated_only_under_the_lock() -> None:
    reported: list[str] = []

    def work(
        _: JournalState, promises: Sequence[Promise], __: Any, report: Callable[[Record], None], *___: Any
    ) -> None:
        for promise in promises:
            report({"kind": "GONE", "entry": promise.key})
            reported.append(promise.key)

    acknowledged: list[Record] = []
    reaper = Reaper(acknowledged.append, work)
    reaper.state.promises = Watched(reaper._lock)
    reaper.receive({**created("e1", expires_at=0.0), "number": 1})
    for number in range(2, 30):  # unused baselines are dropped: that iterates the promises
        reaper.receive({**BASELINE, "baseline": f"b{number}", "number": number})
    assert [each["ack"] for each in acknowledged] == [*range(1, 30)]
    assert reaper.next_due() is not None
    reaper.recover_due()
    for thread in list(reaper._workers.values()):
        thread.join()
    assert reported == ["e1"]


def test_certificates_that_were_deleted_since_the_reaper_got_the_account_are_still_used(
    tmp_path: Path,
) -> None:
    used: list[str] = []

    def work(_: Any, __: Any, accounts: dict[str, Record], *___: Any) -> None:
        used.append(Path(accounts["a1"]["environment"]["cafile"]).read_text())

    (tmp_path / "authority.pem").write_text("certificates")
    account = {"environment": {"cafile": str(tmp_path / "authority.pem")}}
    reaper = Reaper(lambda _: None, work)
    reaper.receive({"kind": "ARM", "account": "a1", "sealed": account, "number": 1})
    reaper.receive({**created("e1"), "number": 2})
    (tmp_path / "authority.pem").unlink()
    reaper.recover_after_parent()
    assert used == ["certificates"]
    os.close(reaper._certificates.popitem()[1])


def test_a_promise_whose_thread_failed_is_fulfilled_after_the_parents_death() -> None:
    begun: list[list[str]] = []

    def work(_: Any, promises: Sequence[Promise], *__: Any) -> None:
        begun.append([promise.key for promise in promises])

    reaper = Reaper(lambda _: None, work)
    reaper.receive({**created("e1"), "number": 1})
    reaper.receive({"kind": "ABANDONED", "entry": "e1", "number": 2})
    reaper.recover_due()
    for thread in list(reaper._workers.values()):
        thread.join()
    reaper.recover_due()
    assert begun == [["e1"]]  # not again at once
    reaper.recover_after_parent()
    assert begun == [["e1"], ["e1"]]


def test_a_promise_whose_thread_failed_is_tried_again_a_minute_later() -> None:
    now = [100.0]
    begun: list[float] = []

    def work(*_: Any) -> None:
        begun.append(now[0])

    reaper = Reaper(lambda _: None, work, wall_clock=lambda: now[0])
    reaper.receive({**created("e1"), "number": 1})
    reaper.receive({"kind": "ABANDONED", "entry": "e1", "number": 2})
    for now[0] in (100.0, 159.0, 161.0):
        reaper.recover_due()
        for thread in list(reaper._workers.values()):
            thread.join()
    assert begun == [100.0, 161.0]
    assert reaper.next_due() == 221.0


def test_a_reaper_that_inherits_ignored_signals_waits_for_its_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr("cortecs_async._recovery.reaper.signal.signal", handlers.__setitem__)
    _reaper._set_signals()
    assert handlers[signal.SIGCHLD] == signal.SIG_DFL


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "ARM", "account": "a1", "number": 1},
        {"kind": "ARM", "account": "a1", "number": 1, "sealed": "nested"},
        {"kind": "JOURNAL", "number": 1},
        {"kind": ["HELLO"], "number": 1},
        {"number": 1},
    ],
    ids=["no settings", "nested", "no path", "odd kind", "no kind"],
)
def test_a_bad_message_does_not_end_the_reaper(message: Record) -> None:
    sent: list[Record] = []
    reaper = Reaper(sent.append)
    reaper.receive(message)
    assert sent == []
    reaper.receive({"kind": "JOURNAL", "journal": None, "number": 2})
    assert sent == []  # an acknowledgment is for all messages before it
    reaper.receive({"kind": "BYE", "number": 0})
    assert reaper.has_bye


# --- the pipe to the parent ---------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    source, target = os.pipe()
    yield source, target
    for fd in (source, target):
        try:
            os.close(fd)
        except OSError:
            continue


def test_long_lines_of_several_threads_do_not_mix_and_do_not_block(pipe: tuple[int, int]) -> None:
    source, target = pipe
    parent = ParentPipe(target)
    sent = [
        [{"action": {"thread": thread, "line": line, "text": "x" * 9_000}} for line in range(20)]
        for thread in range(4)
    ]

    def send(messages: list[Record]) -> None:
        for message in messages:
            parent.send(message)

    threads = [threading.Thread(target=send, args=(messages,), daemon=True) for messages in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)  # although nothing was read
    os.set_blocking(source, False)
    data = os.read(source, 1 << 20)
    while parent.flush():
        data += os.read(source, 1 << 20)
    data += os.read(source, 1 << 20)
    received = [json.loads(line) for line in data.splitlines()]
    assert len(received) == 80
    for messages in sent:
        assert [each for each in received if each in messages] == messages


def test_a_dead_parent_is_no_error(pipe: tuple[int, int]) -> None:
    source, target = pipe
    os.close(source)
    parent = ParentPipe(target)
    parent.send({"ack": 1})
    assert not parent.flush()


def test_messages_that_are_read_at_once_get_one_acknowledgment(pipe: tuple[int, int]) -> None:
    source, stdout = pipe
    stdin, target = os.pipe()
    messages = [{"kind": "JOURNAL", "journal": "", "number": number} for number in range(1, 4)]
    os.write(target, encode_messages([*messages, {"kind": "BYE", "number": 4}]))
    _reaper.serve(stdin, stdout)
    assert os.read(source, 1 << 16) == b'{"ack":4}\n'
    os.close(target)
    os.close(stdin)


def test_a_failed_release_is_tried_again_although_the_parent_sends_nothing(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reaper, "_RETRY_DELAY", 0.0)
    monkeypatch.setattr(_reaper, "_MAX_WAIT", 0.01)
    stdin, target = os.pipe()
    attempts: list[str] = []
    is_waiting = threading.Event()
    readable = _reaper._readable

    def note(fds: list[int], seconds: float | None) -> list[int]:
        if attempts:
            is_waiting.set()
        return readable(fds, seconds)

    def reap(
        _: JournalState, promises: Sequence[Promise], __: Any, report: Callable[[Record], None], *___: Any
    ) -> None:
        attempts.extend(promise.key for promise in promises)
        is_waiting.wait(SECONDS)  # until the reaper has decided how long to wait
        if len(attempts) == 2:
            report({"kind": "GONE", "entry": "e1"})
            os.write(target, encode_messages([{"kind": "BYE", "number": 0}]))

    monkeypatch.setattr(_reaper, "_readable", note)
    os.write(target, encode_messages([{**created("e1", expires_at=0.0), "number": 1}]))
    thread = threading.Thread(target=_reaper.serve, args=(stdin, pipe[1], reap), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert attempts == ["e1", "e1"]
    assert not thread.is_alive()
    os.close(target)
    os.close(stdin)


def test_a_worker_that_ends_while_the_wait_is_decided_is_not_missed(pipe: tuple[int, int]) -> None:
    class Ending(Reaper):
        has_ended = False

        @property
        def is_working(self) -> bool:
            return not self.has_ended

        def next_due(self) -> float | None:
            self.has_ended = True  # and sets a time right after this one was read
            return None

    assert _reaper._wait(Ending(lambda _: None), ParentPipe(pipe[1]), now=0.0) == _reaper._MAX_WAIT


def test_lines_that_cannot_be_read_are_skipped_by_the_reaper(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, stdout = pipe
    stdin, target = os.pipe()
    noise = (
        b'\xff\x00\n[1]\nab\n{"kind": 7}\n'
        + marshal.dumps([1]).hex().encode()
        + b"\n"
        + b"5" * 50_000
        + b"\n"
    )
    os.set_blocking(target, False)
    thread = threading.Thread(target=_reaper.serve, args=(stdin, stdout), daemon=True)
    thread.start()
    os.write(target, noise[:60_000])
    os.set_blocking(target, True)
    os.write(target, noise[60_000:] + encode_messages([{"kind": "BYE", "number": 7}]))
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert os.read(source, 1 << 16) == b'{"ack":7}\n'
    os.close(target)
    os.close(stdin)


# --- the parent's side --------------------------------------------------------------------------------------

NOISE = r"""
import marshal, os, sys
for line in sys.stdin.buffer:
    number = marshal.loads(bytes.fromhex(line.decode()))["number"]
    os.write(1, b'\xff\x00\n{"ack": "x"}\n{"ack": null}\n{"action": 5}\n{"rehearsed": 1}\nnull\n[1]\nhello\n')
    os.write(1, b'{"ack": %d}\n' % number)
"""


class Listener:
    """A reaper process, and what it reported."""

    def __init__(self) -> None:
        self.deaths: list[bool] = []
        self.process = ReaperProcess(lambda: self.deaths.append(True), lambda _: None, lambda *_: None)


@pytest.mark.smoke
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("last", [b"", b'{"ack": 1'], ids=["whole", "torn"])
async def test_noise_does_not_end_the_listener_and_death_is_told(
    monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    monkeypatch.setattr(
        _reaper_process, "BOOTSTRAP", f"{NOISE}\n    os.write(1, {last!r})\n    if number == 2: break"
    )
    listener = Listener()
    listener.process.start()
    if not last:
        listener.process.handshake()
        assert listener.process.is_running
        listener.process.send([created("e1")])
    else:
        listener.process.handshake()
        listener.process._process.kill()  # type: ignore[union-attr]
    await until(lambda: listener.deaths)
    assert listener.deaths == [True]
    assert not listener.process.is_running
    listener.process.kill()


def test_it_counts_as_running_only_after_the_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", SilentProcess)
    process = ReaperProcess(lambda: None, lambda _: None, lambda *_: None)
    process.start()
    assert not process.is_running
    process.kill()


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("not here")


@pytest.mark.parametrize("place", ["subprocess.Popen", "threading.Thread", "encode_messages"])
def test_a_start_of_the_reaper_that_fails_in_any_way_leaves_no_half_reaper(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", SilentProcess)
    monkeypatch.setattr(f"cortecs_async._recovery.reaper_process.{place}", fails)
    store = PromiseStore(tmp_path, journal=False, guard=True)
    store.join()
    store.put(created("e1"))
    store.commit()  # raises nothing
    assert store.reaper_problem is not None
    assert "not here" in store.reaper_problem or "RuntimeError" in store.reaper_problem
    assert not store._reaper.is_running


def test_a_journal_that_fails_in_any_way_is_a_problem_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(JournalFile, "create", fails)
    store = PromiseStore(tmp_path, journal=True, guard=False)
    store.join()
    store.put(created("e1"))
    store.commit()
    assert store.journal_problem == "not here"


@pytest.mark.sockets
def test_a_reaper_starts_from_a_removed_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    monkeypatch.setattr(sys, "path", ["", "here", b"/bytes", tmp_path, 7, *sys.path])
    removed.rmdir()
    assert import_path()[:2] == ["/bytes", str(tmp_path)]
    check_reaper()


def test_the_standard_library_stays_first_on_the_path_of_a_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/library"])
    reaper = Reaper(lambda _: None)
    assert reaper._apply({"kind": "HELLO", "path": ["/app", "/library", "/packages"]})
    assert sys.path == ["/library", "/app", "/packages"]


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_reaper_works_beside_modules_named_as_those_of_the_standard_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in filter(importlib.util.find_spec, sys.stdlib_module_names):  # those of this system
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} of the app')")
    with serve_emulator(step_seconds=0.01) as emulator:
        async with client_of(emulator, guard="required") as client:
            await client.user.balance()  # imports what the client needs
            monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
            async with client.instance(MODEL, HARDWARE):
                pass


@pytest.mark.parametrize("sign", ["frozen", "oxidized", "no executable"])
def test_a_frozen_program_says_what_it_lacks_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    if sign == "no executable":
        monkeypatch.setattr(sys, "executable", None)
    else:
        monkeypatch.setattr(sys, sign, True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", fails)
    with pytest.raises(GuardError, match="without a Python interpreter") as caught:
        ReaperProcess(lambda: None, lambda _: None, lambda *_: None).start()
    assert ("PyInstaller" in str(caught.value)) is (sign != "no executable")


# --- locks --------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_reaper_may_be_started_by_a_fork_that_runs_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent's `subprocess` does."""
    start = subprocess.Popen

    def fork_first(*arguments: Any, **options: Any) -> Any:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", fork_first)
    in_time(check_reaper)


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    return stub_reapers(monkeypatch)


@pytest.mark.parametrize("options", [{"journal": "auto"}, {}], ids=["journal", "nothing"])
async def test_a_lease_can_be_collected_while_its_thread_holds_every_lock_of_the_store(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(Wiring, "system", SYSTEM._replace(in_background=in_background))
    monkeypatch.setattr(LoopBinding, "call_soon", lambda *_: False)  # as if the event loop had ended
    async with world(**options) as (_, client):
        promises = client._wiring.promises
        store = promises.store
        lease = client.instance(MODEL, HARDWARE)
        await lease.__aenter__()
        cycle: list[Any] = [lease]
        cycle.append(cycle)
        del lease, cycle
        store.commit()
        with store._commit_lock, store._clients_lock:
            in_time(gc.collect)
        assert [record["kind"] for record in store._queue] in (["ABANDONED"], [])
        await promises.flush()
        assert [each.abandoned for each in store.state.promises.values()] == [True]


def test_work_in_the_background_needs_no_lock_of_the_threading_module() -> None:
    done = threading.Event()
    worker = threading.Thread(target=lambda: in_background(done.set), daemon=True)
    worker.start()
    worker.join(SECONDS)
    assert done.wait(SECONDS)
    done.clear()
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        in_background(done.set)
        assert done.wait(SECONDS)


def test_a_record_that_is_queued_during_a_commit_is_not_counted_as_committed(tmp_path: Path) -> None:
    store = PromiseStore(tmp_path, journal=False, guard=False)
    store.join()
    apply = store.state.apply

    def apply_and_put(record: Record) -> bool:
        assert store.queued > store.committed
        assert store.is_open("e1")
        return apply(record)

    store.state.apply = apply_and_put  # type: ignore[method-assign]
    store.put(created("e1"))
    store.commit()
    assert store.queued == store.committed == 1
    with store._commit_lock:
        store.put(created("e2"))
        store.commit(wait=False)
    assert (store.queued, store.committed) == (2, 1)


# --- clocks -------------------------------------------------------------------------------------------------


class Clocks:
    """A wall clock and a clock that counts suspended time, both at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.boot = 1_000_000.0, 50.0
        monkeypatch.setattr("cortecs_async._aio.clock.time.time", lambda: self.wall)
        monkeypatch.setattr("cortecs_async._aio.clock.boottime", lambda: self.boot)

    def step(self, *, boot: float = 0.0, wall: float | None = None) -> None:
        self.boot += boot
        self.wall += boot if wall is None else wall


def test_the_reapers_clock_counts_suspended_time_and_ignores_that_the_wall_clock_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks(monkeypatch)
    steady = SteadyClock()
    assert steady() == 1_000_000.0
    clocks.step(boot=100.0)
    clocks.step(wall=-7200.0)
    assert steady() == 1_000_100.0
    # A record of now, by the wall clock, is of now by this clock too.
    message = {"kind": "CREATED", "at": clocks.wall, "expires_at": clocks.wall + 60.0, "goal": "gone"}
    assert _reaper._by_clock(message, steady) == {**message, "at": 1_000_100.0, "expires_at": 1_000_160.0}
    idle = {"kind": "IDLE", "entry": "e1", "idle_at": clocks.wall + 60.0}
    assert _reaper._by_clock(idle, steady) == {**idle, "idle_at": 1_000_160.0}
    assert _reaper._by_clock({"kind": "X", "expires_at": None}, steady) == {"kind": "X", "expires_at": None}


def test_a_suspension_is_counted_and_the_jitter_between_two_clocks_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = Clocks(monkeypatch)
    monkeypatch.setattr("cortecs_async._aio.clock.time.monotonic", lambda: 7.0)
    suspended = clock._Suspension()
    assert suspended() == 0.0
    clocks.step(boot=1e-4)
    assert suspended() == 0.0
    clocks.step(boot=300.0)
    assert suspended() == pytest.approx(300.0)
    clocks.step(boot=-1e-4)
    assert suspended() == pytest.approx(300.0001)


def test_the_reapers_loop_counts_suspended_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventloop, "_MAX_SELECT", 0.05)
    moments = iter([0.0, 0.0, 0.0])
    monkeypatch.setattr(eventloop, "boottime", lambda: next(moments, 500.0))
    monkeypatch.setattr(eventloop, "suspended", lambda: 500.0)  # which must not be counted twice
    times: list[float] = []

    async def sleep() -> None:
        await anyio.sleep(400.0)  # over as soon as the machine wakes
        times.extend([anyio.current_time(), eventloop.current_time()])

    anyio.run(sleep, backend_options={"loop_factory": eventloop.BoottimeEventLoop})
    assert times == [500.0, 500.0]


# --- idle instances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires_at", "idle_at", "due"), [(None, 50.0, 50.0), (40.0, 50.0, 40.0), (60.0, 50.0, 50.0)]
)
def test_a_living_parents_promise_is_due_at_the_earlier_limit(
    expires_at: float | None, idle_at: float, due: float
) -> None:
    clock = [0.0]
    reaper = Reaper(lambda _: None, lambda *_: None, lambda: clock[0])
    for number, message in enumerate([created(expires_at=expires_at), idle_message(idle_at)]):
        reaper.receive({**message, "number": number})
    assert reaper.next_due() == due + _reaper.GRACE
    # Activity moves it.
    reaper.receive({**idle_message(1000.0), "number": 3})
    assert reaper.next_due() == (1000.0 if expires_at is None else expires_at) + _reaper.GRACE


def test_an_idle_time_is_acknowledged_and_says_nothing_about_other_promises() -> None:
    sent: list[Record] = []
    reaper = Reaper(sent.append, lambda *_: None)
    for number, message in enumerate([idle_message(0.0), created("e2"), idle_message("soon")]):
        reaper.receive({**message, "number": number})
    assert [each["ack"] for each in sent] == [0, 1]
    assert reaper.next_due() is None


def test_an_idle_time_ends_no_instance_that_was_handed_over_or_whose_owner_is_dead() -> None:
    state = state_of(created(expires_at=900.0), {"kind": "HELD", "entry": "e1"}, idle_message(5.0))
    (promise,) = state.promises.values()
    assert promise.due_at(owner_lives=True) == promise.due_at(owner_lives=False) == 900.0
    assert "IDLE" not in {each["kind"] for each in state.snapshot()}
    assert state.idle_times() == [idle_message(5.0)]


@pytest.mark.parametrize("expires_at", [None, 900.0])
def test_a_kept_instance_is_idle_until_its_block_ends_or_its_owner_dies(expires_at: float | None) -> None:
    messages = [created(expires_at=expires_at), {"kind": "HELD", "entry": "e1", "watched": True}]
    state = state_of(*messages, idle_message(5.0))
    (promise,) = state.promises.values()
    assert promise.due_at(owner_lives=True) == 5.0
    assert promise.is_idle_first
    # A new reaper gets all of it. A journal, which other processes read, has only the limit.
    again = state_of(*state.snapshot(), *state.idle_times())
    assert again.promises["e1"].due_at(owner_lives=True) == 5.0
    written = fold(encode([{"kind": "OWNER", "format": 1}, *state.snapshot()]))
    assert [*written.promises] == ([] if expires_at is None else ["e1"])
    for end in ({"kind": "HELD", "entry": "e1"}, {"kind": "ORPHANED"}):
        state = state_of(*messages, idle_message(5.0), end, idle_message(6.0))
        dues = [(each.due_at(owner_lives=True), each.is_idle_first) for each in state.promises.values()]
        assert dues == ([] if expires_at is None else [(expires_at, False)])
        assert not dues or state.promises["e1"].due_at(owner_lives=False) == expires_at


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe cannot be set")
def test_a_reaper_that_was_paused_first_reads_all_messages() -> None:
    fcntl = pytest.importorskip("fcntl")
    source, sink = os.pipe()
    said, says = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 1 << 19)
    now = time.time()
    padding = [{"kind": "NOTE", "text": "x" * 1000}] * 200  # more than it reads at once
    messages = [created(), idle_message(now - 100.0), *padding, idle_message(now + 900.0), {"kind": "BYE"}]
    os.write(sink, encode_messages({**each, "number": number} for number, each in enumerate(messages)))
    reaped: list[Promise] = []
    _reaper.serve(source, says, lambda _, promises, *__: reaped.extend(promises))
    assert reaped == []
    for fd in (source, sink, said, says):
        os.close(fd)


def idle_message(idle_at: Any) -> Record:
    return {"kind": "IDLE", "entry": "e1", "idle_at": idle_at}
