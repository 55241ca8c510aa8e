"""The books of a process: what goes wrong with a journal or a reaper, and what then holds."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from _promises import created
from _world import HARDWARE, MODEL, World, client_of, emulated_wall_clock

from cortecs_async import AsyncCortecs, Credentials, errors
from cortecs_async._recovery.journal import JournalFile, read_journals
from cortecs_async._recovery.reaper import GRACE, Reaper
from cortecs_async._recovery.records import JournalState, Promise, Record
from cortecs_async._recovery.recover import reap
from cortecs_async._recovery.store import PromiseStore, store_for
from cortecs_async.emulator import Emulator, serve_emulator

# --- the journal --------------------------------------------------------------------------------------------


async def test_every_step_of_a_lease_is_in_the_journal_before_it_counts(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        seen: list[tuple[str, bool | None]] = []

        def look() -> bool | None:
            """None: nothing is owed. Else whether the id is known."""
            entries = [entry for _, book in read_journals(journals) for entry in book.promises.values()]
            return entries[0].instance_id is not None if entries else None

        exchange = emu.exchange

        async def note(call: Any) -> Any:
            seen.append((call.path.rpartition("/")[2], look()))
            return await exchange(call)

        emu.exchange = note  # type: ignore[method-assign]
        async with client.instance(MODEL, HARDWARE):
            assert look() is True
        assert look() is None
        told = dict(reversed(seen))
        assert told["start"] is False
        assert told["stop"] is True
        assert seen[-1] == ("", True)  # the list that verifies
    assert list(read_journals(journals)) == []


async def test_a_hundred_promises_at_once_share_their_syncs(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    fsync = os.fsync

    def count(fd: int) -> None:
        syncs.append(fd)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", count)
    async with world(journal="required", step_seconds=0.0, capacity={HARDWARE: 100}) as (emu, client):
        done = anyio.Event()

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                await done.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(lease)
            await anyio.sleep(30)
            assert len(emu.billing) == 100
            done.set()
        assert emu.existing == ()
    assert len(syncs) < 10
    assert list(read_journals(journals)) == []


def break_disk(monkeypatch: pytest.MonkeyPatch, how: str, state_dir: Path) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC if how == "full" else errno.EROFS, how)

    if how == "no directory":
        state_dir.write_text("a file stands here")
    elif how == "full":
        monkeypatch.setattr("cortecs_async._recovery.journal._write", refuse)
    elif how == "no locks":
        monkeypatch.setattr("cortecs_async._recovery.journal.fcntl", None)
    else:
        monkeypatch.setattr("cortecs_async._recovery.journal._write_whole", refuse)


@pytest.mark.parametrize("how", ["full", "read-only", "no directory", "no locks"])
async def test_without_a_disk_a_warning_and_on_we_go(
    world: World,
    journals: Path,
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    break_disk(monkeypatch, how, state_dir)
    async with world(journal="auto") as (emu, client):
        for _ in range(3):
            async with client.instance(MODEL, HARDWARE):
                pass
        assert emu.existing == ()
        assert len(emu.ledger) == 3
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("how", ["full", "read-only", "no directory", "no locks"])
async def test_without_a_disk_an_error_where_one_is_required(
    world: World, journals: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    break_disk(monkeypatch, how, state_dir)
    async with world(journal="required") as (emu, client):
        with pytest.raises(errors.JournalError, match="Nothing was started"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert emu.ledger == ()


async def test_a_disk_that_was_full_for_a_while_is_caught_up_with(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(journal="auto") as (_emu, client), AsyncExitStack() as leases:
        first = await leases.enter_async_context(client.instance(MODEL, HARDWARE))
        with monkeypatch.context() as patch:
            break_disk(patch, "full", Path())
            second = await leases.enter_async_context(client.instance(MODEL, HARDWARE))
        third = await leases.enter_async_context(client.instance(MODEL, HARDWARE))
        ((_, book),) = read_journals(journals)
        known = {entry.instance_id for entry in book.promises.values()}
        assert known == {first.instance_id, second.instance_id, third.instance_id}


def test_it_does_not_grow_without_bound(tmp_path: Path) -> None:
    book = PromiseStore(tmp_path, journal=True, guard=False)
    book.join()
    book.put(created("stays"))
    largest = 0
    for number in range(3_000):
        book.put(created(f"e{number}"))
        book.put({"kind": "GONE", "entry": f"e{number}"})
        if number % 100 == 0:
            book.commit()
            ((path, _),) = read_journals(tmp_path)
            largest = max(largest, path.stat().st_size)
    assert largest < 400_000
    book.put({"kind": "GONE", "entry": "stays"})
    book.release()
    assert list(tmp_path.iterdir()) == []


def test_books_are_one_a_directory_and_not_shared_beyond(tmp_path: Path) -> None:
    one = store_for(tmp_path, journal=True, guard=False)
    assert store_for(tmp_path, journal=True, guard=False) is one
    assert store_for(tmp_path, journal=False, guard=False) is not one
    assert store_for(tmp_path / "other", journal=True, guard=False) is not one


def test_a_forked_child_owes_nothing_of_its_parents(tmp_path: Path) -> None:
    book = PromiseStore(tmp_path, journal=True, guard=False)
    book.join()
    book.put(created("e1"))
    book.commit()
    journal = book._journal
    assert journal is not None
    # As in the child: its copy of the descriptor closes, and the parent's lock holds.
    copy = JournalFile(journal.path, os.dup(journal._fd))
    book._journal = copy
    book.after_fork()
    assert book.book.promises == {}
    assert [b.promises.keys() for _, b in read_journals(tmp_path)] == [{"e1"}]
    journal.remove()


async def test_a_client_says_at_start_that_there_is_something_to_sweep(
    world: World, journals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="cortecs_async.guard")
    api = Emulator().api_base_url
    JournalFile.create(journals, [created("e1", api=api), created("e2", api=api)]).close()
    JournalFile.create(journals, [created("e1", api=api), {"kind": "GONE", "entry": "e1"}]).close()
    async with world(journal="auto"):
        pass
    (record,) = caplog.records
    assert "Instances or starts of dead processes: 2. " in record.message
    assert "Run `cortecs-async sweep` or client.sweep()" in record.message
    assert len(list(read_journals(journals))) == 1  # what owed nothing was removed
    caplog.clear()
    async with world(journal="off"):
        pass
    assert not caplog.records


async def test_what_its_sweep_could_not_release_is_no_reason_to_warn(
    world: World, journals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="cortecs_async.guard")
    elsewhere = created("e1", api="https://other.test/v1")
    JournalFile.create(journals, [elsewhere]).close()
    async with world(journal="auto") as (emu, client):
        until = emulated_wall_clock() + 60
        held = created("e1", api=emu.api_base_url, expires_at=until)
        JournalFile.create(journals, [held, {"kind": "HELD", "entry": "e1"}]).close()
        async with world(journal="auto"):
            assert not caplog.records
        await client.instances.list()
        account = client._wiring.promises.account
        await anyio.sleep(61)
        async with world(journal="auto"):
            (record,) = caplog.records
        assert "Instances or starts of dead processes: 1. " in record.message
        book = client._wiring.promises.journal_states
        assert (book.orphans(emu.api_base_url, ""), book.orphans(emu.api_base_url, account)) == (1, 0)
    assert len(list(read_journals(journals))) == 2


async def test_bad_modes_are_refused(world: World) -> None:
    for name in ("guard", "journal"):
        with pytest.raises(errors.ConfigurationError, match=name):
            async with world(**{name: "perhaps"}):
                pytest.fail("entered")


# --- the reaper, in this process ----------------------------------------------------------------------------


class Told:
    """A reaper that notes what it says and what it was given to do."""

    def __init__(self) -> None:
        self.said: list[Record] = []
        self.worked: list[str] = []
        self.now = 0.0
        self.reaper = Reaper(self.said.append, self.work, lambda: self.now)

    def work(
        self,
        book: JournalState,
        entries: Any,
        accounts: dict[str, Record],
        report: Callable[[Record], None],
        journal: Path | None,
    ) -> None:
        for entry in entries:
            self.worked.append(entry.key)
            report({"kind": "GONE", "entry": entry.key})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr("cortecs_async._recovery.reaper._SETTLE", 0.0)
    return Told()


class TestReaper:
    def test_it_answers_only_what_it_understood(self, told: Told) -> None:
        told.reaper.receive({**created("e1"), "number": 1})
        told.reaper.receive({"kind": "SONG", "number": 2})
        told.reaper.receive({"kind": "CREATED", "entry": "e2", "number": 3})
        told.reaper.receive({"kind": "BYE", "number": 4})
        assert told.said == [{"ack": 1}, {"ack": 4}]
        assert told.reaper.has_bye

    def test_as_long_as_its_parent_lives_it_waits(self, told: Told) -> None:
        told.reaper.receive({**created("e1"), "number": 1})
        assert told.reaper.next_due() is None
        told.reaper.start_due_work()
        assert told.worked == []

    def test_it_ends_what_is_past_its_time_though_its_parent_lives(self, told: Told) -> None:
        """The event loop is blocked."""
        told.reaper.receive({**created("e1", expires_at=2000.0), "number": 1})
        told.reaper.receive({**created("e2"), "number": 2})
        assert told.reaper.next_due() == 2000.0 + GRACE
        told.now = 2000.0 + GRACE - 1
        told.reaper.start_due_work()
        assert told.worked == []
        told.now = 2000.0 + GRACE
        told.reaper.start_due_work()
        self.join(told)
        assert told.worked == ["e1"]
        assert told.said[-1] == {"deed": {"kind": "GONE", "entry": "e1"}}
        assert told.reaper.next_due() is None

    def test_after_its_parents_death_it_keeps_everything_and_removes_the_journal(
        self, told: Told, tmp_path: Path
    ) -> None:
        journal = JournalFile.create(tmp_path, [created("e1"), created("e2")])
        told.reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
        told.reaper.receive({**created("e1"), "number": 2})
        told.reaper.receive({**created("e2"), "number": 3})
        journal.close()
        told.reaper.finish_after_parent()
        assert told.worked == ["e1", "e2"]
        assert list(tmp_path.iterdir()) == []

    def test_what_it_cannot_keep_stays_in_the_journal(self, tmp_path: Path, told: Told) -> None:
        journal = JournalFile.create(tmp_path, [created("e1")])
        reaper = Reaper(told.said.append, lambda *_: None)
        reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
        reaper.receive({**created("e1"), "number": 2})
        journal.close()
        reaper.finish_after_parent()
        assert [book.promises.keys() for _, book in read_journals(tmp_path)] == [{"e1"}]

    def test_without_a_journal_it_works_from_memory(self, told: Told) -> None:
        told.reaper.receive({"kind": "JOURNAL", "journal": None, "number": 1})
        told.reaper.receive({**created("e1"), "number": 2})
        told.reaper.finish_after_parent()
        assert told.worked == ["e1"]

    @staticmethod
    def join(told: Told) -> None:
        for thread in told.reaper._threads:
            thread.join()


def test_an_entry_of_a_book_has_what_a_reaper_needs() -> None:
    assert set(Promise.__slots__) >= {"instance_id", "goal", "expires_at", "baseline", "args", "account"}


# --- the guard ----------------------------------------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No reaper is left, nor the thread that listens to it."""
    before = threading.active_count()
    yield
    for thread in threading.enumerate():
        if thread.name == "cortecs-guard":
            thread.join(10)
    assert not [each for each in threading.enumerate() if each.name == "cortecs-guard"]
    assert threading.active_count() <= before + 8  # anyio keeps its own


@pytest.mark.sockets
@pytest.mark.parametrize("cause", ["no such program", "it dies at once", "it is frozen"])
async def test_without_a_reaper_a_warning_or_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reapers: None, cause: str
) -> None:
    if cause == "it is frozen":
        monkeypatch.setattr("sys.frozen", True, raising=False)
    elif cause == "it dies at once":
        monkeypatch.setattr("cortecs_async._recovery.reaper_process.BOOTSTRAP", "raise SystemExit")
    else:
        monkeypatch.setattr("cortecs_async._recovery.reaper_process.sys.executable", "/nowhere/python")
    async with serve_emulator(step_seconds=0.0) as emu:
        options: dict[str, Any] = {"api_base_url": emu.api_base_url}
        async with AsyncCortecs(emu.client_id, emu.client_secret, **options) as client:
            async with client.instance(MODEL, HARDWARE):
                assert len(emu.billing) == 1
            assert emu.existing == ()
        assert "no reaper" in caplog.text
        async with AsyncCortecs(emu.client_id, emu.client_secret, **options, guard="required") as client:
            with pytest.raises(errors.GuardError, match="Nothing was started"):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert len(emu.ledger) == 1


@pytest.mark.sockets
async def test_the_reapers_work(reapers: None, state_dir: Path) -> None:
    """In this process, where it can be looked at; tests/recovery/test_crash.py has it in its own."""
    async with serve_emulator(step_seconds=0.0) as emu:
        foreign, mine, lost = (emu.start_instance(MODEL, HARDWARE) for _ in range(3))
        sealed = {
            "api_base_url": emu.api_base_url,
            "client_id": emu.client_id,
            "client_secret": emu.client_secret,
            "headers": {"X-Team": "night"},
            "timeout": 30.0,
        }
        book = JournalState()
        args = {"model_id": MODEL.replace("/", "--"), "hardware_type_id": HARDWARE, "num_workers": 1}
        known = {"account": "a1", "api": emu.api_base_url, "at": time.time(), "args": args}
        for record in (
            {"kind": "BASELINE", "baseline": "b1", "ids": [foreign]},
            {"kind": "INTENT", "entry": "e1", **known, "baseline": "b1"},
            {**created("e2"), **known, "instance_id": mine},
            {**created("e3"), **known, "instance_id": foreign, "account": "a2"},
            {**created("e4"), **known, "instance_id": foreign, "account": "a3"},
        ):
            assert book.apply(record)
        deeds: list[Record] = []

        def report(record: Record) -> None:
            deeds.append(record)
            book.apply(record)

        accounts: dict[str, Any] = {"a1": sealed, "a3": {**sealed, "timeout": "nonsense"}}
        entries = list(book.promises.values())
        await anyio.to_thread.run_sync(
            reap, book, entries, accounts, report, state_dir / "journal" / "own.jsonl"
        )
        assert emu.existing == (foreign,)
        assert lost in str(deeds)
        # Of one account it has no credentials, and of one no good ones: that is nobody else's trouble.
        assert book.promises.keys() == {"e3", "e4"}
        assert any("giving up" in str(each) for each in deeds)


@pytest.mark.sockets
async def test_new_credentials_reach_the_reaper_at_once(reapers: None) -> None:
    async with serve_emulator(step_seconds=0.0) as emu:
        async with (
            client_of(emu) as client,
            client.instance(MODEL, HARDWARE),
        ):
            promises = client._wiring.promises
            promises.remember_credentials(Credentials(client_id=emu.client_id, client_secret="another"))
            with anyio.fail_after(10):
                while promises.journal_states.done < promises.journal_states.queued:  # noqa: ASYNC110  (it has no event)
                    await anyio.sleep(0.01)
            (armed,) = promises.journal_states._armed.values()
            assert "another" in armed["sealed"].reveal()
            assert "another" not in repr(armed)


async def test_a_directory_that_was_cleared_is_written_anew(world: World, journals: Path) -> None:
    async with world(journal="required") as (_emu, client):
        async with client.instance(MODEL, HARDWARE) as first:
            shutil.rmtree(journals)
            async with client.instance(MODEL, HARDWARE) as second:
                ((_, book),) = read_journals(journals)
                ids = {entry.instance_id for entry in book.promises.values()}
                assert ids == {first.instance_id, second.instance_id}
    assert list(read_journals(journals)) == []


@pytest.mark.sockets
async def test_one_reaper_serves_all_clients_of_a_process(reapers: None) -> None:
    async with serve_emulator(step_seconds=0.0) as emu:
        one, other = (client_of(emu) for _ in range(2))
        async with one, other, one.instance(MODEL, HARDWARE), other.instance(MODEL, HARDWARE):
            assert one._wiring.promises.journal_states is other._wiring.promises.journal_states
            guard = one._wiring.promises.journal_states._guard
            assert guard.is_running
            assert guard.pid is not None
        assert not guard.is_running
        assert emu.existing == ()
