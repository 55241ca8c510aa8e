"""Test who owns each instance by the journals, which are only read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from _world import HARDWARE, MODEL, World

from cortecs_async import errors
from cortecs_async._recovery import journal as _journal
from cortecs_async._recovery import locks
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.journal import JournalFile, is_owned, orphaned_journals, read_journals, try_lock
from cortecs_async._recovery.records import Record
from cortecs_async.emulator import Emulator
from cortecs_async.types import Owner

EPOCH = 1_735_689_600.0
ME = f"{socket.gethostname()}, process {os.getpid()}"


def journal_of(emu: Emulator, directory: Path, *records: dict[str, Any], pid: int = 7) -> JournalFile:
    """Write a journal as a process does. Its owner is dead once you `close` it."""
    common = {
        "account": fingerprint(emu.api_base_url, emu.client_id),
        "api": emu.api_base_url,
        "at": 1000.0,
        "args": {},
        "goal": "gone",
    }
    owner = {"kind": "OWNER", "format": 1, "host": "host", "pid": pid, "at": 0.0}
    return JournalFile.create(directory, [owner, *({**common, **record} for record in records)])


def created(instance_id: str, key: str = "e1", **more: Any) -> dict[str, Any]:
    return {"kind": "CREATED", "entry": key, "instance_id": instance_id, **more}


def paths(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def snapshot(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in paths(directory)}


async def test_a_lease_is_mine_until_it_ends(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=1.0) as (emu, client):
        assert await client.owners() == {}
        asked = EPOCH + anyio.current_time()
        async with client.instance(MODEL, HARDWARE, max_lifetime=600) as inst:
            (path,) = paths(journals)
            before, requests = path.read_bytes(), len(emu.requests)
            expected = Owner(kind="mine", owner=ME, started_at=asked, expires_at=asked + 600)
            assert await client.owners() == {inst.instance_id: expected}
            assert path.read_bytes() == before
            assert len(emu.requests) == requests
        assert await client.owners() == {}


async def test_a_lease_of_another_client_of_this_process_is_mine_too(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        async with world(client_id=emu.client_id, journal="off", http_client=None) as (_, other):
            async with client.instance(MODEL, HARDWARE) as inst:
                found = await other.owners()
                assert [(name, each.kind) for name, each in found.items()] == [(inst.instance_id, "mine")]


async def test_journals_of_living_and_dead_processes(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        living = journal_of(emu, journals, created("a", expires_at=5000.0), pid=1)
        journal_of(emu, journals, created("b"), pid=2).close()
        journal_of(emu, journals, created("elsewhere", api="https://other.test/v1"), pid=3).close()
        taken_over = journal_of(emu, journals, created("c"), {"kind": "ORPHANED"}, pid=4)  # by its reaper
        before = snapshot(journals)
        assert await client.owners() == {
            "a": Owner(kind="process", owner="host, process 1", started_at=1000.0, expires_at=5000.0),
            "b": Owner(kind="orphan", owner="host, process 2", started_at=1000.0),
            "c": Owner(kind="orphan", owner="host, process 4", started_at=1000.0),
        }
        assert snapshot(journals) == before
        # The locks are as they were.
        assert [is_owned(path) for path in paths(journals)].count(True) == 2
        living.remove()
        taken_over.remove()
        assert emu.requests == ()


async def test_an_acquired_instance_is_held_until_it_is_released(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=1.0) as (_emu, client):
        handle = await client.acquire(MODEL, HARDWARE, max_lifetime=600)
        (owner,) = (await client.owners()).values()
        assert (owner.kind, owner.owner, owner.expires_at) == ("held", ME, handle.expires_at)
        await client.release(handle)
        assert await client.owners() == {}


async def test_an_instance_that_a_dead_process_acquired_is_held_until_it_expires(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        until = EPOCH + anyio.current_time() + 60
        journal_of(emu, journals, created("a", expires_at=until), {"kind": "HELD", "entry": "e1"}).close()
        assert (await client.owners())["a"].kind == "held"
        await anyio.sleep(61)
        assert (await client.owners())["a"].kind == "orphan"


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [("held", "dead", "orphan"), ("dead", "held", "orphan"), ("dead", "living", "process")],
)
async def test_of_several_owners_the_one_that_acts_first_is_reported(
    world: World, journals: Path, first: str, second: str, kind: str
) -> None:
    until = EPOCH + anyio.current_time() + 60
    async with world(journal="auto") as (emu, client):
        for number, state in enumerate((first, second)):
            records = [created("a", expires_at=until)]
            if state == "held":
                records.append({"kind": "HELD", "entry": "e1"})
            file = journal_of(emu, journals, *records, pid=number)
            if state != "living":
                file.close()
        assert (await client.owners())["a"].kind == kind


async def test_without_journals_only_own_instances_have_owners(world: World, journals: Path) -> None:
    async with world() as (emu, client):
        journal_of(emu, journals, created("a")).close()
        assert await client.owners() == {}
        async with client.instance(MODEL, HARDWARE) as inst:
            assert list(await client.owners()) == [inst.instance_id]


async def test_another_state_directory_is_not_read(world: World, journals: Path, tmp_path: Path) -> None:
    async with world(journal="auto") as (emu, client):
        async with world(client_id=emu.client_id, journal="auto", state_dir=tmp_path) as (_, other):
            async with other.instance(MODEL, HARDWARE) as inst:
                assert list(await other.owners()) == [inst.instance_id]
                assert await client.owners() == {}


@pytest.mark.parametrize("journal", ["auto", "off"])
async def test_an_instance_that_this_process_abandoned_is_an_orphan(
    world: World, journals: Path, journal: str
) -> None:
    async with world(journal=journal) as (emu, client):
        await client.instances.list()  # and with it the account
        promises = client._wiring.promises
        key = promises.record_created(None, emu.start_instance(MODEL, HARDWARE), goal="gone")
        await promises.flush(strict=True)
        assert [each.kind for each in (await client.owners()).values()] == ["mine"]
        promises.record_abandoned(key)
        await promises.flush(strict=True)
        assert [each.kind for each in (await client.owners()).values()] == ["orphan"]
        assert [each.state for each in await client.sweep()] == ["released"]
        await promises.flush(strict=True)
        assert await client.owners() == {}


async def test_an_instance_that_a_living_process_abandoned_is_an_orphan(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        living = journal_of(emu, journals, created("a"), {"kind": "ABANDONED", "entry": "e1"})
        assert (await client.owners())["a"].kind == "orphan"
        living.remove()


async def test_a_closed_client_raises(world: World) -> None:
    async with world() as (_emu, client):
        await client.aclose()
        with pytest.raises(errors.ClientClosedError):
            await client.owners()


class TestSharedLocks:
    """`is_owned` takes a shared lock for a moment. A sweep must not skip the journal because of it."""

    def test_a_sweep_waits_for_a_shared_lock(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fcntl = pytest.importorskip("fcntl")
        JournalFile.create(tmp_path, []).close()
        (path,) = tmp_path.iterdir()
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(file, fcntl.LOCK_UN))
            ((locked, _),) = orphaned_journals(tmp_path)
        locked.close()

    def test_a_shared_lock_that_stays_is_not_waited_for_forever(self, tmp_path: Path) -> None:
        fcntl = pytest.importorskip("fcntl")
        JournalFile.create(tmp_path, []).close()
        (path,) = tmp_path.iterdir()
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            assert try_lock(path) is None

    def test_sweeps_get_the_lock_despite_many_shared_locks(self, tmp_path: Path) -> None:
        JournalFile.create(tmp_path, []).close()
        (path,) = tmp_path.iterdir()
        over = threading.Event()

        def check() -> None:
            while not over.is_set():
                is_owned(path)

        threads = [threading.Thread(target=check) for _ in range(2)]
        for each in threads:
            each.start()
        try:
            for _ in range(200):
                locked = try_lock(path)
                assert locked is not None
                locked.close()
        finally:
            over.set()
            for each in threads:
                each.join()

    def test_a_child_that_is_forked_meanwhile_does_not_keep_the_shared_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        JournalFile.create(tmp_path, []).close()
        (path,) = tmp_path.iterdir()
        lock = locks.lock
        copies: list[int] = []

        def forked(fd: int, *, shared: bool) -> None:
            assert shared
            lock(fd, shared=True)
            copies.append(os.dup(fd))

        monkeypatch.setattr(_journal, "lock", forked)
        assert is_owned(path) is False
        monkeypatch.undo()
        locked = try_lock(path)
        assert locked is not None
        locked.close()
        for each in copies:
            os.close(each)

    def test_an_owner_that_rewrites_its_journal_meanwhile_still_owns_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owned = JournalFile.create(tmp_path, [])
        is_at = _journal._is_at
        rewrites: Iterator[list[Record]] = iter([[]])

        def late(fd: int, path: Path) -> bool:
            for records in rewrites:
                owned.rewrite(records)
            return is_at(fd, path)

        monkeypatch.setattr(_journal, "_is_at", late)
        assert is_owned(owned.path) is True
        owned.remove()

    def test_a_journal_that_does_not_exist_has_no_owner(self, tmp_path: Path) -> None:
        assert is_owned(tmp_path / "none.jsonl") is None


@pytest.mark.sockets
async def test_a_real_process_that_is_killed(world: World, state_dir: Path) -> None:
    program = """
import sys
from pathlib import Path
from cortecs_async._recovery.journal import JournalFile
records = [
    {"kind": "OWNER", "format": 1, "id": "x", "host": "there", "pid": 99, "at": 0.0},
    {"kind": "CREATED", "entry": "1", "account": "a", "api": sys.argv[2], "at": 5.0, "args": {},
     "instance_id": "i", "goal": "gone", "expires_at": None},
]
file = JournalFile.create(Path(sys.argv[1]), records)
print("written", flush=True)
sys.stdin.read()
"""
    async with world(journal="auto") as (emu, client):
        with subprocess.Popen(  # noqa: ASYNC220  (nothing else runs on this loop)
            [sys.executable, "-c", program, str(state_dir / "journal"), emu.api_base_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            assert await client.owners() == {
                "i": Owner(kind="process", owner="there, process 99", started_at=5.0)
            }
            process.kill()
        assert (await client.owners())["i"].kind == "orphan"
    assert len(list(read_journals(state_dir / "journal"))) == 1
