"""Test that a rehearsal is left out only if its record shows that it would succeed again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from _processes import until
from _reapers import StubReaper, sealed, stub_reapers
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async._environment import Environment, Proxy
from cortecs_async._recovery import rehearsal_record as _record
from cortecs_async._recovery.reaper_process import ReaperProcess
from cortecs_async._recovery.records import Record
from cortecs_async._recovery.rehearsal_record import (
    identity_of,
    invalidate_record,
    is_recorded,
    used_files,
    write_record,
)
from cortecs_async._secrets import Secret
from cortecs_async.emulator import Emulator

IDENTITY = "0123"
ANOTHER = "0456"
"""An identity whose record is in the same file."""


class Scene:
    """A module in a folder on the import path, before another folder."""

    def __init__(self, path: Path) -> None:
        self.records = path / "state" / "rehearsals"
        self.first, self.second = path / "first", path / "second"
        self.module = self.second / "stack.py"
        self.first.mkdir()
        self.second.mkdir()
        self.module.write_text("whole")
        (self.first / "app.py").touch()

    @property
    def file(self) -> Path:
        return self.records / "rehearsal-0"

    def write(self, *, since: float | None = None, identity: str = IDENTITY) -> None:
        folders = [str(self.first), str(self.second)]
        used = {"paths": [str(self.module)], "folders": folders, "names": ["stack", "optional"]}
        write_record(self.records, identity, used, time.time() if since is None else since)

    @property
    def is_recorded(self) -> bool:
        return is_recorded(self.records, IDENTITY)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    # The files are new. Only one test is about that.
    monkeypatch.setattr(_record, "_CLOCK_TOLERANCE", -60_000_000_000)
    (tmp_path / "state").mkdir(mode=0o700)
    return Scene(tmp_path)


def test_without_a_change_a_rehearsal_counts_again(scene: Scene) -> None:
    assert not scene.is_recorded
    scene.write()
    assert scene.is_recorded
    (scene.first / "output.txt").touch()
    (scene.first / "app.py").write_text("another module")
    assert scene.is_recorded
    assert scene.file.stat().st_mode & 0o777 == 0o600


def rewrite(scene: Scene) -> None:
    status = scene.module.stat()
    scene.module.write_text("other")
    os.utime(scene.module, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(scene: Scene) -> None:
    shutil.copy2(scene.module, scene.first / "new")
    (scene.first / "new").rename(scene.module)


def link(scene: Scene) -> None:
    scene.file.rename(scene.records / "elsewhere")
    scene.file.symlink_to("elsewhere")


CHANGES: dict[str, Callable[[Scene], object]] = {
    "rewritten": rewrite,
    "replaced": replace,
    "longer": lambda scene: scene.module.write_text("whole and more"),
    "removed": lambda scene: scene.module.unlink(),
    "hidden": lambda scene: (scene.first / "stack.py").touch(),
    "hidden by a package": lambda scene: (scene.first / "stack").mkdir(),
    "hidden by an extension": lambda scene: (scene.first / "stack.abi3.so").touch(),
    "an optional module appears": lambda scene: (scene.second / "optional.py").touch(),
    "a folder disappears": lambda scene: shutil.rmtree(scene.first),
    "another identity": lambda scene: scene.write(identity=ANOTHER),
    "failed since": lambda scene: invalidate_record(scene.records, IDENTITY),
    "record removed": lambda scene: scene.file.unlink(),
    "cut off": lambda scene: os.truncate(scene.file, scene.file.stat().st_size - 9),
    "without a body": lambda scene: os.truncate(scene.file, 40),
    "empty": lambda scene: os.truncate(scene.file, 0),
    "zeros": lambda scene: scene.file.write_bytes(bytes(scene.file.stat().st_size)),
    "noise": lambda scene: scene.file.write_bytes(b"\xff\x00\n\xfe"),
    "edited": lambda scene: scene.file.write_bytes(scene.file.read_bytes().replace(b"optional", b"another1")),
    "a link": link,
    "writable by others": lambda scene: scene.records.chmod(0o777),
    "of another type": lambda scene: forge(scene, []),
    "without a field": lambda scene: forge(scene, {"since": time.time()}),
    "with odd fields": lambda scene: forge(scene, {**read(scene), "since": "now"}),
    "checks no file": lambda scene: forge(scene, {**read(scene), "paths": []}),
}


def read(scene: Scene) -> Record:
    record: Record = json.loads(scene.file.read_bytes().partition(b"\n")[2])
    return record


def forge(scene: Scene, content: Any) -> None:
    body = json.dumps(content).encode()
    scene.file.write_bytes(_record._header(IDENTITY, body) + b"\n" + body)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_any_change_it_does_not_count(scene: Scene, change: Callable[[Scene], object]) -> None:
    scene.write()
    assert scene.is_recorded
    change(scene)
    assert not scene.is_recorded


@pytest.mark.parametrize("age", [24 * 3600.0 + 1.0, -60.0], ids=["old", "from the future"])
def test_a_record_counts_for_a_day(scene: Scene, age: float) -> None:
    scene.write(since=time.time() - age)
    assert scene.file.exists() or age > 0.0
    assert not scene.is_recorded


def test_a_file_that_may_have_changed_since_it_was_used_is_not_recorded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_record, "_CLOCK_TOLERANCE", 1_000_000_000)
    scene.write()
    assert not scene.file.exists()


def test_a_file_that_is_gone_is_not_recorded(scene: Scene) -> None:
    scene.module.unlink()
    scene.write()
    assert not scene.file.exists()


def test_a_folder_that_appears_may_contain_another_module(scene: Scene) -> None:
    shutil.rmtree(scene.first)
    scene.write()
    assert scene.is_recorded
    scene.first.mkdir()
    assert not scene.is_recorded


def test_a_failure_invalidates_the_record_without_a_new_file(scene: Scene) -> None:
    invalidate_record(scene.records, IDENTITY)
    assert not scene.records.exists()
    scene.write()
    (scene.records / "rehearsal-0.new").mkdir()  # as on a full disk, nothing can be created
    invalidate_record(scene.records, IDENTITY)
    assert not scene.is_recorded


def test_what_is_not_a_record_is_not_replaced(scene: Scene) -> None:
    scene.file.mkdir(parents=True)
    scene.write()
    assert scene.file.is_dir()
    assert [each.name for each in scene.records.iterdir()] == ["rehearsal-0"]


def test_an_identity_depends_on_all_settings_and_on_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(environment: Environment | None = None, *path: str, **more: str) -> str:
        return identity_of(json.loads(sealed(environment=environment, **more).reveal()), list(path))

    def proxy(url: str) -> Environment:
        return Environment(proxies={"https": Proxy("HTTPS_PROXY", Secret(url))})

    identities = [
        identity(),
        identity(None, "/app"),
        identity(api_base_url="https://another.test/v1"),
        identity(proxy("http://one:password@proxy.test:3128")),
        identity(proxy("http://proxy.test:3129")),
        identity(proxy("socks5://proxy.test:3128")),
        identity(Environment(cafile="/a.pem")),
        identity(Environment(cafile="/b.pem")),
        identity(Environment(capath="/a.pem")),
    ]
    assert len({*identities}) == len(identities)
    assert identity(proxy("http://proxy.test:3128")) == identities[3]
    for name, value in {"executable": "/another", "version": "4"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value)
            assert identity() not in identities
    for name in ("LD_LIBRARY_PATH", "LANG", "LC_ALL"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "/another")
            assert identity() not in identities


@pytest.mark.skipif(sys.platform != "linux", reason="lists the files of a process")
def test_the_files_are_those_of_modules_libraries_and_certificates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "python.zip"), *sys.path])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one" / "0123abcd.0").touch()
    (tmp_path / "one" / "4567abcd.0").symlink_to("gone")
    (tmp_path / "one" / "authority.pem").touch()  # OpenSSL does not find it by this name
    # An environment that is upgraded in place: only the link changes.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    environment = Environment(cafile="/authority.pem", capath=":".join(folders))
    used = used_files(json.loads(sealed(environment=environment).reveal()), ["absent", "json.absent"])
    assert used is not None
    assert {anyio.__file__, str(Path(anyio.__file__).parent), json.__file__} <= {*used["paths"]}
    assert {"/authority.pem", *folders, sys.executable} <= {*used["paths"]}
    assert [each for each in used["paths"] if each.startswith(folders[0])] == [
        folders[0],
        f"{folders[0]}/0123abcd.0",
    ]
    assert str(tmp_path / "python.zip") in used["folders"]
    assert str(Path(sys._base_executable).resolve()) in used["paths"]  # type: ignore[attr-defined]
    assert {"absent", "anyio", "json"} <= {*used["names"]}
    assert "json.absent" not in used["names"]
    assert str(Path(anyio.__file__).parent.parent) in used["folders"]
    monkeypatch.setattr(_record, "_MAPS", str(tmp_path / "maps"))
    assert used_files(json.loads(sealed().reveal()), []) is None
    (tmp_path / "maps").write_text("7f-7e r-xp 0 08:01 7 /usr/lib/libssl.so.3 (deleted)\n")
    assert used_files(json.loads(sealed().reveal()), []) is None


# --- the reaper ---------------------------------------------------------------------------------------------


class Told:
    """A reaper process, and the outcomes of its rehearsals."""

    def __init__(self, records: Path | None) -> None:
        self.outcomes: list[str] = []
        self.process = ReaperProcess(
            lambda: None, lambda _: None, lambda _, problem: self.outcomes.append(problem), records
        )
        self.process.start()
        self.process.handshake()

    async def arm(self, url: str, *, is_direct: bool) -> str:
        self.outcomes.clear()
        message = {"kind": "ARM", "account": "a1", "sealed": sealed(url), "is_direct": is_direct}
        self.process.send([message])
        await until(lambda: self.outcomes)
        assert self.process.rehearsed("a1") == self.outcomes[0]
        return self.outcomes[0]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Callable[..., Told]]:
    started: list[Told] = []

    def start(*, has_records: bool = True) -> Told:
        started.append(Told(tmp_path / "state" / "rehearsals" if has_records else None))
        return started[-1]

    yield start
    for each in started:
        each.process.shutdown()


@pytest.mark.sockets
@pytest.mark.skipif(sys.platform != "linux", reason="lists the files of a process")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_reaper_connects_unless_it_has_and_its_client_does(
    told: Callable[..., Told], tmp_path: Path
) -> None:
    connections: list[int] = []

    async def count(stream: anyio.abc.SocketStream) -> None:
        connections.append(1)
        await stream.aclose()

    async def num_connections(reaper: Told, *, is_direct: bool) -> int:
        connections.clear()
        assert await reaper.arm(url, is_direct=is_direct) == ""
        return len(connections)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/v1"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, count)
        # The first rehearsals may write bytecode, and so change the folders of the packages.
        while not (tmp_path / "state").exists():
            assert await num_connections(told(), is_direct=True) == 1
        reaper = told()
        assert await num_connections(reaper, is_direct=True) == 0
        assert await num_connections(reaper, is_direct=False) == 1
        assert await num_connections(told(has_records=False), is_direct=True) == 1
        tasks.cancel_scope.cancel()
    # This fails, and so the record counts for nothing.
    assert "cannot connect" in await reaper.arm(url, is_direct=False)
    assert "cannot connect" in await reaper.arm(url, is_direct=True)


# --- the client ---------------------------------------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    return stub_reapers(monkeypatch)


async def test_a_client_with_its_own_http_client_does_not_connect_like_its_reaper(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(guard="auto") as (_, client), client.instance(MODEL, HARDWARE):
        (armed,) = (each for each in reapers[-1].sent if each["kind"] == "ARM")
    assert armed["is_direct"] is False


@pytest.mark.parametrize(("journal", "folders"), [("auto", ["rehearsals"]), ("off", [])])
async def test_without_a_journal_no_record_is_written(
    journals: Path, reapers: list[StubReaper], journal: Any, folders: list[str]
) -> None:
    async with client_of(Emulator(), guard="auto", journal=journal) as client:
        folder = client._wiring.promises.store.rehearsal_folder
        assert [each.name for each in (folder,) if each is not None] == folders
        assert client._wiring.promises._is_direct


async def test_a_client_on_aiohttp_connects_like_its_reaper() -> None:
    pytest.importorskip("aiohttp")
    async with client_of(Emulator(), transport="aiohttp") as client:
        assert client._wiring.promises._is_direct


async def test_a_client_does_not_rely_on_what_another_client_of_its_account_shows(
    journals: Path, reapers: list[StubReaper], monkeypatch: pytest.MonkeyPatch
) -> None:
    emu = Emulator()
    async with emu.http_client() as http, client_of(emu, guard="auto", http_client=http) as own:
        store = own._wiring.promises.store

        def armed(*, is_direct: bool, proxy: str | None = None) -> bool:
            proxies = {} if proxy is None else {"https": Proxy("HTTPS_PROXY", Secret(proxy))}
            description = sealed(environment=Environment(proxies=proxies))
            store.put({"kind": "ARM", "account": "a1", "sealed": description, "is_direct": is_direct})
            store.commit()
            return bool(store._credential_records["a1"]["is_direct"])

        # Each of them may start an instance, and the reaper has the network of the last one.
        assert armed(is_direct=True)
        assert armed(is_direct=True)
        assert not armed(is_direct=True, proxy="http://proxy.test:3128")
        assert not armed(is_direct=False)
        assert not armed(is_direct=True)
