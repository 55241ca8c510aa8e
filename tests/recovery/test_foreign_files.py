"""Test which files in the journal's directory are used, removed, and left alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from _evidence import PROXY_PAGE, process
from _grids import BACKENDS, alternating, grid
from _promises import BASELINE, OWNER, created, intent
from _world import HARDWARE, MODEL, World, emulated_wall_clock

from cortecs_async import AsyncCortecs, errors
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.journal import JournalFile, orphaned_journals, try_lock
from cortecs_async._recovery.records import Record, encode
from cortecs_async.emulator import Emulator, Fault

NAME = f"{7:032x}.jsonl"
GONE: Record = {"kind": "GONE", "entry": "e1"}
DONE = encode([OWNER, BASELINE, intent(), created(), GONE])
NEWER: Record = {**OWNER, "format": 2}

# Contents of a file with the name of a journal, none of which has an open promise.
NOT_UNDERSTOOD = {
    "empty": b"",
    "data of the user": b'{"prompt": "Hello"}\n{"prompt": "World"}\n',
    "text": b"This is not a journal.\n",
    "one line without its end": b"text",
    "no owner": encode([BASELINE, intent(), GONE]),
    "an owner without a format": encode([{"kind": "OWNER"}, BASELINE]),
    "a newer format": encode([NEWER, BASELINE, intent(), GONE]),
    "a format of words": encode([{**OWNER, "format": "one"}]),
    "an unknown record": encode([OWNER, {"kind": "SONG"}]),
    "an invalid record": encode([OWNER, {"kind": "INTENT", "entry": "e1"}]),
    "an empty line": DONE + b"\n",
    "a list": DONE + b"[]\n",
    "zeros": b"\0" * 4096,
    "zeros in place of the owner": b"\0" * len(encode([OWNER])) + encode([BASELINE]),
    "zeros between records": encode([OWNER, BASELINE])[:-5] + b"\0" * 512 + b'x"}\n' + encode([GONE]),
    "a text at the end": DONE + b"text",
}

UNDERSTOOD = {
    "only an owner": encode([OWNER]),
    "whole": DONE,
    "a torn record": DONE + b'{"kind":"SEEN","ent',
    "a torn brace": DONE + b"{",
    "zeros at the end": DONE + b"\0" * 4096,
    "a torn record and zeros": DONE + b'{"kind":"SEEN","ent' + b"\0" * 512,
}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def names_in(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


def make_writable(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def replace_by_link(directory: Path, target: Path) -> None:
    directory.rename(target)
    directory.symlink_to(target)


def contents(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir() if each.is_file()}


@pytest.fixture
def prepared(journals: Path) -> Path:
    """Return the directory of the journals, which exists."""
    JournalFile.create(journals, []).remove()
    return journals


async def sweep(client: AsyncCortecs) -> None:
    assert await client.sweep() == ()


async def lease(client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE):
        pass


@grid(work=[sweep, lease], content=NOT_UNDERSTOOD, anyio_backend=BACKENDS)
async def test_a_file_that_is_not_understood_is_kept_and_named(
    world: World,
    prepared: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
    work: Callable[[AsyncCortecs], Awaitable[None]],
) -> None:
    (prepared / NAME).write_bytes(NOT_UNDERSTOOD[content])
    async with world(journal="auto") as (_, client):
        await work(client)
        await work(client)
    assert contents(prepared) == {NAME: NOT_UNDERSTOOD[content]}
    (warning,) = warnings(caplog)
    assert warning.startswith(f"Ignoring {NAME} in {prepared}: ")


@grid(work=[sweep, lease], content=UNDERSTOOD, anyio_backend=BACKENDS)
async def test_a_journal_without_promises_is_removed_if_all_of_it_is_understood(
    world: World,
    prepared: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
    work: Callable[[AsyncCortecs], Awaitable[None]],
) -> None:
    (prepared / NAME).write_bytes(UNDERSTOOD[content])
    async with world(journal="auto") as (_, client):
        await work(client)
    assert contents(prepared) == {}
    assert warnings(caplog) == []


async def test_only_exact_names_and_regular_files_of_this_user_are_used(
    world: World, prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [
        "notes.jsonl",
        f"{7:031x}.jsonl",
        f"{7:033x}.jsonl",
        f"{0xA:032X}.jsonl",
        f"{NAME}.bak",
        "old.new",
    ]
    for name in (*names, ".hidden"):
        (prepared / name).write_bytes(DONE)
        os.utime(prepared / name, (0, 0))
    outside = tmp_path / "data.jsonl"
    outside.write_bytes(DONE)
    special = {f"{1:032x}.jsonl", f"{2:032x}.jsonl", f"{3:032x}.jsonl", f"{4:032x}.new", f"{5:032x}.new"}
    os.mkfifo(prepared / f"{1:032x}.jsonl")
    link(prepared / f"{2:032x}.jsonl", outside)
    link(prepared / f"{3:032x}.jsonl", prepared)
    os.mkfifo(prepared / f"{4:032x}.new")
    link(prepared / f"{5:032x}.new", outside)
    os.utime(outside, (0, 0))
    before = names_in(prepared)
    async with world(journal="auto") as (emu, client):
        for _ in range(2):
            assert await client.sweep() == ()
            assert await client.orphans() == ()
            assert await client.owners() == {}
            assert all(each.ok for each in await client.diagnose())
            await lease(client)
        assert emu.existing == ()
    assert names_in(prepared) == before
    assert outside.read_bytes() == DONE
    text = "\n".join(warnings(caplog))
    assert all(text.count(name) > 0 for name in (*names, *special)), text
    assert ".hidden" not in text
    assert len(warnings(caplog)) == 1 + len(special)


async def test_a_warning_does_not_name_thousands_of_files(
    world: World, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(25):
        (prepared / f"data-{number:02}.jsonl").touch()
    async with world(journal="auto"):
        pass
    (warning,) = warnings(caplog)
    assert "data-09.jsonl and 15 more in " in warning
    assert "data-10" not in warning


@pytest.mark.parametrize("unlike", ["text", "a newer format", "an unknown record", "zeros between records"])
def test_an_old_draft_that_is_not_understood_is_kept(
    prepared: Path, caplog: pytest.LogCaptureFixture, unlike: str
) -> None:
    draft = prepared / f"{1:032x}.new"
    draft.write_bytes(NOT_UNDERSTOOD[unlike])
    os.utime(draft, (0, 0))
    assert list(orphaned_journals(prepared)) == []
    assert draft.exists()
    assert warnings(caplog) == [f"Ignoring {draft.name} in {prepared}: not a journal file"]


@alternating("command", ["open", "orphans", "owners", "diagnose", "list"])
async def test_what_only_reads_changes_no_file(world: World, prepared: Path, command: str) -> None:
    async with world() as (emu, _):
        common = {
            "account": fingerprint(emu.api_base_url, emu.client_id),
            "api": emu.api_base_url,
            "at": emulated_wall_clock() - 3600.0,
        }
        leased = emu.start_instance(MODEL, HARDWARE)
        for number, records in enumerate([
            [OWNER],
            [OWNER, BASELINE, intent(), GONE],
            [OWNER, created(), GONE],
            [OWNER, {**created(), **common, "instance_id": leased}],
            [OWNER, BASELINE, {**intent(), **common}],
        ]):  # fmt: skip
            (prepared / f"{number:032x}.jsonl").write_bytes(encode(records) + b'{"kind":"SE')
        (prepared / f"{9:032x}.new").touch()
        for name in names_in(prepared):
            os.utime(prepared / name, (0, 0))
        before = contents(prepared)
        async with AsyncCortecs(
            emu.client_id,
            emu.client_secret,
            api_base_url=emu.api_base_url,
            http_client=emu.http_client(),
            guard="off",
        ) as other:
            if command == "orphans":
                assert {each.state for each in await other.orphans()} >= {"found"}
            elif command == "owners":
                assert {each.kind for each in (await other.owners()).values()} == {"orphan"}
            elif command == "diagnose":
                await other.diagnose()
            elif command == "list":
                await other.instances.list()
        assert contents(prepared) == before
        assert emu.existing == (leased,)


async def test_orphans_does_not_look_like_an_owner(world: World, prepared: Path) -> None:
    async with world(journal="auto") as (emu, client):
        account = {"account": fingerprint(emu.api_base_url, emu.client_id), "api": emu.api_base_url}
        # It is not listed, so it is requested by its id.
        (prepared / NAME).write_bytes(encode([OWNER, {**created(), **account}]))
        emu.add_fault(Fault("delay", route="get", seconds=5.0, times=None))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.orphans)
            await anyio.sleep(1.0)
            assert emu.requests[-1].route == "get"
            locked = try_lock(prepared / NAME)
            assert locked is not None
            locked.close()


@pytest.mark.parametrize(
    "broken", ["no owner", "an unknown record", "zeros between records", "a text at the end"]
)
async def test_promises_that_can_be_read_are_kept_and_the_file_stays(
    world: World, prepared: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    async with world(journal="auto") as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        account = {"account": fingerprint(emu.api_base_url, emu.client_id), "api": emu.api_base_url}
        promise = encode([{**created("e2"), **account, "instance_id": mine}])
        data = NOT_UNDERSTOOD[broken]
        end = data.rfind(b"\n") + 1
        (prepared / NAME).write_bytes(data[:end] + promise + data[end:])
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()
        assert await client.sweep() == ()
    assert (prepared / NAME).read_bytes().startswith(data[:end] + promise + data[end:])
    assert any(NAME in each for each in warnings(caplog))


async def test_a_record_after_a_torn_line_can_be_read(world: World, prepared: Path) -> None:
    async with world(journal="auto") as (emu, client):
        account = {"account": fingerprint(emu.api_base_url, emu.client_id), "api": emu.api_base_url}
        promise = {**created(), **account, "instance_id": emu.start_instance(MODEL, HARDWARE)}
        data = encode([OWNER, promise])
        (prepared / NAME).write_bytes(data + b'{"kind":"SEEN","entry":"e')
        emu.add_fault(Fault("status", route="delete", status=500, times=None))
        assert [each.state for each in await client.sweep(timeout=10.0)] == ["left"]
        assert (prepared / NAME).read_bytes() == data
        emu.clear_faults()
        assert [each.state for each in await client.sweep()] == ["released"]
    assert contents(prepared) == {}


class TestNewerFormat:
    @staticmethod
    def write(emu: Emulator, journals: Path, *records: Record) -> bytes:
        common = {
            "account": fingerprint(emu.api_base_url, emu.client_id),
            "api": emu.api_base_url,
            "at": emulated_wall_clock(),
        }
        data = encode([NEWER, {"kind": "SONG", "text": ["la"]}, *({**each, **common} for each in records)])
        (journals / NAME).write_bytes(data)
        return data

    async def test_its_instances_are_reported_and_not_touched(
        self, world: World, prepared: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with world(journal="auto") as (emu, client):
            theirs = emu.start_instance(MODEL, HARDWARE)
            data = self.write(emu, prepared, {**created(), "instance_id": theirs}, BASELINE, intent("e2"))
            for _ in range(2):
                for found in (await client.orphans(), await client.sweep()):
                    states = [(each.state, each.instance_id, each.owner) for each in found]
                    assert states == [
                        ("newer", theirs, "host, process 7"),
                        ("newer", None, "host, process 7"),
                    ]
            assert emu.billing == (theirs,)
        assert contents(prepared) == {NAME: data}
        (warning,) = warnings(caplog)
        assert NAME in warning
        assert "format 2" in warning

    async def test_one_of_a_living_process_is_not_reported(self, world: World, prepared: Path) -> None:
        async with world(journal="auto") as (emu, client):
            self.write(emu, prepared, created())
            living = try_lock(prepared / NAME)
            assert living is not None
            assert await client.orphans() == await client.sweep() == ()
            living.close()

    @alternating("how", ["created", "unknown kind", "ambiguous"])
    async def test_no_start_takes_its_instances(self, world: World, prepared: Path, how: str) -> None:
        async with world() as (emu, _), process(emu, prepared) as mine:

            async def start_theirs() -> None:
                await anyio.sleep(1.0)
                theirs.append(emu.start_instance(MODEL, HARDWARE))
                self.write(
                    emu,
                    prepared,
                    {
                        "created": {**created(), "instance_id": theirs[0]},
                        "unknown kind": {"kind": "LEASED", "instance_id": theirs[0]},
                        "ambiguous": {"kind": "AMBIGUOUS", "entry": "e", "candidates": [theirs[0]]},
                    }[how],
                )

            theirs: list[str] = []
            emu.add_fault(Fault("status", route="start", status=500, body=PROXY_PAGE))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(start_theirs)
                # The only candidate is theirs, so the start is sent again.
                async with mine.client.instance(MODEL, HARDWARE) as inst:
                    assert inst.instance_id != theirs[0]
            assert emu.billing == (theirs[0],)


async def test_a_directory_that_is_refused_is_an_error_of_what_needs_it(
    world: World, state_dir: Path, journals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_writable(state_dir)
    async with world(journal="auto") as (emu, client):
        for call in (client.sweep, client.orphans, client.owners):
            with pytest.raises(errors.JournalError, match="CORTECS_STATE_DIR"):
                await call()
        assert await client.instances.list() == ()
        await lease(client)
        assert len(emu.ledger) == 1
    (warning,) = warnings(caplog)
    assert "other users can write" in warning
    assert "CORTECS_STATE_DIR" in warning
    async with world(journal="required") as (emu, client):
        with pytest.raises(errors.JournalError, match=r"other users can write .* CORTECS_STATE_DIR"):
            await lease(client)
        assert emu.ledger == ()
    assert names_in(state_dir) == set()


async def test_a_link_in_place_of_the_directory_is_not_followed(
    world: World, prepared: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    replace_by_link(prepared, data)
    (data / NAME).write_bytes(DONE)
    async with world(journal="auto") as (_, client):
        with pytest.raises(errors.JournalError, match="journal is not a directory"):
            await client.sweep()
        await lease(client)
    assert contents(data) == {NAME: DONE}
