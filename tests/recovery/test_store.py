"""Test the store of a process: what it does when its journal or its reaper fails."""

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
from typing import Any, NoReturn

import anyio
import anyio.to_thread
import pytest
from _promises import OWNER, created
from _world import HARDWARE, MODEL, World, client_of, emulated_wall_clock

from cortecs_async import AsyncCortecs, Credentials, errors
from cortecs_async._environment import Environment
from cortecs_async._recovery.journal import JournalFile, read_journals
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.reaper import GRACE, Reaper
from cortecs_async._recovery.records import JournalState, Record
from cortecs_async._recovery.recover import reap
from cortecs_async._recovery.store import PromiseStore, store_for
from cortecs_async.emulator import Emulator, serve_emulator

# --- the journal --------------------------------------------------------------------------------------------


async def test_every_step_of_a_lease_is_in_the_journal_before_it_counts(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        seen: list[tuple[str, bool | None]] = []

        def knows_id() -> bool | None:
            """Return whether the journal has the id of its promise, or None if it has no promise."""
            promises = [
                promise for _, state in read_journals(journals) for promise in state.promises.values()
            ]
            return promises[0].instance_id is not None if promises else None

        exchange = emu.exchange

        async def note(call: Any) -> Any:
            seen.append((call.path.rpartition("/")[2], knows_id()))
            return await exchange(call)

        emu.exchange = note  # type: ignore[method-assign]
        async with client.instance(MODEL, HARDWARE):
            assert knows_id() is True
        assert knows_id() is None
        first_seen = dict(reversed(seen))
        assert first_seen["start"] is False
        assert first_seen["stop"] is True
        assert seen[-1] == ("", True)  # the list that verifies
    assert list(read_journals(journals)) == []


async def test_a_hundred_promises_at_once_share_few_syncs(
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
        monkeypatch.setattr("cortecs_async._recovery.locks.fcntl", None)
    else:
        monkeypatch.setattr("cortecs_async._recovery.journal._write_whole", refuse)


@pytest.mark.parametrize("how", ["full", "read-only", "no directory", "no locks"])
async def test_without_a_disk_the_lease_runs_with_a_warning(
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
    assert caplog.text.count("Cannot write the journal") == 1


@pytest.mark.parametrize("how", ["full", "read-only", "no directory", "no locks"])
async def test_without_a_disk_a_required_journal_is_an_error(
    world: World, journals: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    break_disk(monkeypatch, how, state_dir)
    async with world(journal="required") as (emu, client):
        with pytest.raises(errors.JournalError, match="Nothing was started"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert emu.ledger == ()


async def test_an_error_without_a_text_is_a_missing_journal_all_the_same(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> NoReturn:
        raise OSError

    monkeypatch.setattr(JournalFile, "create", fail)
    async with world(journal="required") as (emu, client):
        with pytest.raises(errors.JournalError, match="Nothing was started"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert emu.ledger == ()


async def test_records_that_did_not_fit_on_a_full_disk_are_written_later(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(journal="auto") as (_emu, client), AsyncExitStack() as leases:
        first = await leases.enter_async_context(client.instance(MODEL, HARDWARE))
        with monkeypatch.context() as patch:
            break_disk(patch, "full", Path())
            second = await leases.enter_async_context(client.instance(MODEL, HARDWARE))
        third = await leases.enter_async_context(client.instance(MODEL, HARDWARE))
        ((_, state),) = read_journals(journals)
        known = {promise.instance_id for promise in state.promises.values()}
        assert known == {first.instance_id, second.instance_id, third.instance_id}


def test_the_journal_does_not_grow_without_bound(tmp_path: Path) -> None:
    store = PromiseStore(tmp_path, journal=True, guard=False)
    store.join()
    store.put(created("stays"))
    largest = 0
    for number in range(3_000):
        store.put(created(f"e{number}"))
        store.put({"kind": "GONE", "entry": f"e{number}"})
        if number % 100 == 0:
            store.commit()
            ((path, _),) = read_journals(tmp_path)
            largest = max(largest, path.stat().st_size)
    assert largest < 400_000
    store.put({"kind": "GONE", "entry": "stays"})
    store.leave()
    assert list(tmp_path.iterdir()) == []


def test_there_is_one_store_per_directory_and_options(tmp_path: Path) -> None:
    one = store_for(tmp_path, journal=True, guard=False)
    assert store_for(tmp_path, journal=True, guard=False) is one
    assert store_for(tmp_path, journal=False, guard=False) is not one
    assert store_for(tmp_path / "other", journal=True, guard=False) is not one


def test_a_forked_child_does_not_have_its_parents_promises(tmp_path: Path) -> None:
    store = PromiseStore(tmp_path, journal=True, guard=False)
    store.join()
    store.put(created("e1"))
    store.commit()
    journal = store._journal
    assert journal is not None
    # As in the child: its copy of the descriptor closes, and the parent's lock holds.
    copy = JournalFile(journal.path, os.dup(journal._fd))
    store._journal = copy
    store.after_fork()
    assert store.state.promises == {}
    assert [b.promises.keys() for _, b in read_journals(tmp_path)] == [{"e1"}]
    journal.remove()


async def test_a_client_warns_when_it_opens_that_there_is_something_to_sweep(
    world: World, journals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="cortecs_async.guard")
    api = Emulator().api_base_url
    JournalFile.create(journals, [created("e1", api=api), created("e2", api=api)]).close()
    JournalFile.create(journals, [OWNER, created("e1", api=api), {"kind": "GONE", "entry": "e1"}]).close()
    async with world(journal="auto"):
        pass
    (record,) = caplog.records
    assert "Dead processes left instances or unresolved starts behind: 2. " in record.message
    assert "Run `cortecs-async sweep` or client.sweep()" in record.message
    assert len(list(read_journals(journals))) == 2  # opening a client removes nothing
    caplog.clear()
    async with world(journal="off"):
        pass
    assert not caplog.records


async def test_a_client_does_not_warn_of_what_its_sweep_could_not_release(
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
        assert "Dead processes left instances or unresolved starts behind: 1. " in record.message
        store = client._wiring.promises.store
        assert store.count_orphans(emu.api_base_url, "") == 1
        assert store.count_orphans(emu.api_base_url, account) == 0
    assert len(list(read_journals(journals))) == 2


async def test_invalid_modes_are_errors(world: World) -> None:
    for name in ("guard", "journal"):
        with pytest.raises(errors.ConfigurationError, match=name):
            async with world(**{name: "perhaps"}):
                pytest.fail("entered")


# --- the reaper, in this process ----------------------------------------------------------------------------


class Harness:
    """A reaper, its answers, and the keys of the promises that it keeps."""

    def __init__(self) -> None:
        self.answers: list[Record] = []
        self.kept: list[str] = []
        self.now = 0.0
        self.reaper = Reaper(self.answers.append, self.reap, lambda: self.now)

    def reap(
        self,
        state: JournalState,
        promises: Any,
        accounts: dict[str, Record],
        report: Callable[[Record], None],
        journal: Path | None,
    ) -> None:
        for promise in promises:
            self.kept.append(promise.key)
            report({"kind": "GONE", "entry": promise.key})


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness()


class TestReaper:
    def test_it_acknowledges_only_what_it_understood(self, harness: Harness) -> None:
        harness.reaper.receive({**created("e1"), "number": 1})
        harness.reaper.receive({"kind": "SONG", "number": 2})
        harness.reaper.receive({"kind": "CREATED", "entry": "e2", "number": 3})
        harness.reaper.receive({"kind": "BYE", "number": 4})
        assert harness.answers == [{"ack": 1}]  # the last one would be for all before it
        assert harness.reaper.has_bye

    def test_it_waits_while_its_parent_lives(self, harness: Harness) -> None:
        harness.reaper.receive({**created("e1"), "number": 1})
        assert harness.reaper.next_due() is None
        harness.reaper.recover_due()
        assert harness.kept == []

    def test_it_releases_what_expired_though_its_parent_lives(self, harness: Harness) -> None:
        """As when the event loop is blocked."""
        harness.reaper.receive({**created("e1", expires_at=2000.0), "number": 1})
        harness.reaper.receive({**created("e2"), "number": 2})
        assert harness.reaper.next_due() == 2000.0 + GRACE
        harness.now = 2000.0 + GRACE - 1
        harness.reaper.recover_due()
        assert harness.kept == []
        harness.now = 2000.0 + GRACE
        harness.reaper.recover_due()
        self.join(harness)
        assert harness.kept == ["e1"]
        assert harness.answers[-1] == {"action": {"kind": "GONE", "entry": "e1"}}
        assert harness.reaper.next_due() is None

    def test_after_its_parents_death_it_keeps_all_promises_and_removes_the_journal(
        self, harness: Harness, tmp_path: Path
    ) -> None:
        journal = JournalFile.create(tmp_path, [OWNER, created("e1"), created("e2")])
        harness.reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
        harness.reaper.receive({**created("e1"), "number": 2})
        harness.reaper.receive({**created("e2"), "number": 3})
        journal.close()
        harness.reaper.recover_after_parent()
        assert harness.kept == ["e1", "e2"]
        assert list(tmp_path.iterdir()) == []

    def test_promises_that_it_cannot_keep_stay_in_the_journal(self, tmp_path: Path, harness: Harness) -> None:
        journal = JournalFile.create(tmp_path, [created("e1")])
        reaper = Reaper(harness.answers.append, lambda *_: None)
        reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
        reaper.receive({**created("e1"), "number": 2})
        journal.close()
        reaper.recover_after_parent()
        assert [state.promises.keys() for _, state in read_journals(tmp_path)] == [{"e1"}]

    def test_it_works_without_a_journal(self, harness: Harness) -> None:
        harness.reaper.receive({"kind": "JOURNAL", "journal": None, "number": 1})
        harness.reaper.receive({**created("e1"), "number": 2})
        harness.reaper.recover_after_parent()
        assert harness.kept == ["e1"]

    @staticmethod
    def join(harness: Harness) -> None:
        for thread in list(harness.reaper._workers.values()):
            thread.join()


def test_a_promise_has_what_a_reaper_needs() -> None:
    names = vars(Promise("key", "account", "api", {}, 0.0)).keys()
    assert names >= {"instance_id", "goal", "expires_at", "baseline", "args", "account"}


# --- the reaper process -------------------------------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check that no reaper and no thread that listens to it is left."""
    before = threading.active_count()
    yield
    for thread in threading.enumerate():
        if thread.name == "cortecs-reaper":
            thread.join(10)
    assert not [each for each in threading.enumerate() if each.name == "cortecs-reaper"]
    assert threading.active_count() <= before + 8  # anyio keeps its own


@pytest.mark.sockets
@pytest.mark.parametrize("cause", ["no such program", "it dies at once", "it is frozen"])
async def test_without_a_reaper_there_is_a_warning_or_an_error(
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
        assert "The reaper is not running" in caplog.text
        async with AsyncCortecs(emu.client_id, emu.client_secret, **options, guard="required") as client:
            with pytest.raises(errors.GuardError, match="Nothing was started"):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert len(emu.ledger) == 1


@pytest.mark.sockets
async def test_reap_in_this_process(reapers: None, state_dir: Path) -> None:
    """In this process, where its records can be seen. tests/recovery/test_crash.py runs it in its own."""
    async with serve_emulator(step_seconds=0.0) as emu:
        foreign, mine, unresolved = (emu.start_instance(MODEL, HARDWARE) for _ in range(3))
        sealed = {
            "api_base_url": emu.api_base_url,
            "client_id": emu.client_id,
            "client_secret": emu.client_secret,
            "headers": {"X-Team": "night"},
            "timeout": 30.0,
            "environment": Environment().to_data(),
        }
        state = JournalState()
        args = {"model_id": MODEL.replace("/", "--"), "hardware_type_id": HARDWARE, "num_workers": 1}
        known = {"account": "a1", "api": emu.api_base_url, "at": time.time(), "args": args}
        for record in (
            {"kind": "BASELINE", "baseline": "b1", "ids": [foreign]},
            {"kind": "INTENT", "entry": "e1", **known, "baseline": "b1"},
            {**created("e2"), **known, "instance_id": mine},
            {**created("e3"), **known, "instance_id": foreign, "account": "a2"},
            {**created("e4"), **known, "instance_id": foreign, "account": "a3"},
        ):
            assert state.apply(record)
        actions: list[Record] = []

        def report(record: Record) -> None:
            actions.append(record)
            state.apply(record)

        accounts: dict[str, Any] = {"a1": sealed, "a3": {**sealed, "timeout": "nonsense"}}
        promises = list(state.promises.values())
        await anyio.to_thread.run_sync(
            reap, state, promises, accounts, report, state_dir / "journal" / "own.jsonl"
        )
        assert emu.existing == (foreign,)
        assert unresolved in str(actions)
        # It has no credentials of one account, and invalid settings of another. Neither stops the third.
        assert state.promises.keys() == {"e3", "e4"}
        assert any("giving up" in str(each) for each in actions)


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
                while promises.store.committed < promises.store.queued:  # noqa: ASYNC110  (it has no event)
                    await anyio.sleep(0.01)
            (armed,) = promises.store._credential_records.values()
            assert "another" in armed["sealed"].reveal()
            assert "another" not in repr(armed)


async def test_a_journal_that_was_deleted_is_written_again(world: World, journals: Path) -> None:
    async with world(journal="required") as (_emu, client):
        async with client.instance(MODEL, HARDWARE) as first:
            shutil.rmtree(journals)
            async with client.instance(MODEL, HARDWARE) as second:
                ((_, state),) = read_journals(journals)
                ids = {promise.instance_id for promise in state.promises.values()}
                assert ids == {first.instance_id, second.instance_id}
    assert list(read_journals(journals)) == []


@pytest.mark.sockets
async def test_one_reaper_serves_all_clients_of_a_process(reapers: None) -> None:
    async with serve_emulator(step_seconds=0.0) as emu:
        one, other = (client_of(emu) for _ in range(2))
        async with one, other, one.instance(MODEL, HARDWARE), other.instance(MODEL, HARDWARE):
            assert one._wiring.promises.store is other._wiring.promises.store
            reaper = one._wiring.promises.store._reaper
            assert reaper.is_running
        assert not reaper.is_running
        assert emu.existing == ()
