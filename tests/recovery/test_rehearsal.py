"""Test that a reaper checks that it can connect to the service, before anything is started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from _processes import is_reaper, read, until
from _reapers import StubReaper, sealed, stub_reapers
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, errors
from cortecs_async._environment import Environment, Proxy
from cortecs_async._platform import os as platform_os
from cortecs_async._recovery import recover as _recover
from cortecs_async._recovery.reaper_process import ReaperProcess
from cortecs_async._recovery.records import Record
from cortecs_async._recovery.rehearsal import Rehearsals, import_lock
from cortecs_async._secrets import Secret
from cortecs_async.emulator import Emulator


def account(api_base_url: str, environment: Environment | None = None) -> Record:
    """Return the message with an account that has these proxies and certificates."""
    return {"kind": "ARM", "account": "a1", "sealed": sealed(api_base_url, environment)}


# --- what a start does with the outcome ---------------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    return stub_reapers(monkeypatch)


@pytest.fixture
def world(world: World) -> World:
    """Clients that have their reapers before the first lease, so that the tests can prepare them."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
        async with world(**options) as (emu, client):
            assert client._wiring.promises.uses_reaper
            yield emu, client

    return opened


@pytest.mark.parametrize("outcome", ["NO_PROXY cannot be read", None], ids=["failed", "silent"])
async def test_nothing_starts_without_a_required_reaper_that_reaches_the_service(
    world: World, journals: Path, reapers: list[StubReaper], outcome: str | None
) -> None:
    async with world(guard="required", journal="required") as (emu, client):
        # Twice: at the first time, the service may have been down.
        reapers[-1].outcomes += [outcome, outcome]
        problem = outcome or "no connection within 20 s"
        with pytest.raises(errors.GuardError, match=rf"cannot reach the service: {problem}\. Nothing was"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert emu.ledger == ()
        assert not client._wiring.promises.store.state.promises
        assert reapers[-1].kinds.count("ARM") == 2


async def test_a_reaper_that_reaches_the_service_at_the_second_time_is_as_good(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(guard="required") as (emu, client):
        reapers[-1].outcomes.append("the service is down")
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.billing) == 1
            async with client.instance(MODEL, HARDWARE):
                assert reapers[-1].kinds.count("ARM") == 2


async def test_many_starts_wait_for_one_outcome(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    refused: list[errors.GuardError] = []
    async with world(guard="required") as (emu, client):
        reapers[-1].outcomes += [None, None]

        async def start() -> None:
            with pytest.raises(errors.GuardError) as caught:
                await client.instance(MODEL, HARDWARE).__aenter__()
            refused.append(caught.value)

        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(start)
        assert anyio.current_time() - began < 45.0
        assert len(refused) == 20
        assert emu.ledger == ()


@pytest.mark.parametrize("outcome", ["NO_PROXY cannot be read", None], ids=["failed", "silent"])
async def test_a_reaper_that_is_not_required_delays_a_start_by_a_second_at_most(
    world: World, journals: Path, reapers: list[StubReaper], outcome: str | None
) -> None:
    async with world(guard="auto") as (emu, client):
        reapers[-1].outcomes += [outcome] * 9
        began = anyio.current_time()
        async with client.instance(MODEL, HARDWARE):
            (start,) = (each for each in emu.requests if each.route == "start")
        assert start.at - began == pytest.approx(0.0 if outcome else 1.0, abs=0.1)


async def test_a_start_is_sent_at_the_moment_when_the_reaper_has_connected(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(guard="auto") as (emu, client), anyio.create_task_group() as tasks:
        reapers[-1].outcomes.append(None)
        await client.user.balance()
        account = client._wiring.promises.account
        began = anyio.current_time()

        async def rehearse() -> None:
            await anyio.sleep(0.123)
            reapers[-1].rehearse(account, "")

        tasks.start_soon(rehearse)
        async with client.instance(MODEL, HARDWARE):
            (start,) = (each for each in emu.requests if each.route == "start")
        assert start.at - began == pytest.approx(0.123)


def test_a_warning_tells_once_that_the_reaper_cannot_reach_the_service(
    journals: Path, reapers: list[StubReaper], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from cortecs_async._recovery.store import PromiseStore  # noqa: PLC0415  (after it was patched)

    store = PromiseStore(tmp_path, journal=False, guard=True)
    for problem in ("ALL_PROXY cannot be used", "ALL_PROXY cannot be used", "", "SSL_CERT_FILE is missing"):
        store._on_rehearsed("a1", problem)
    assert [each.levelname for each in caplog.records] == ["WARNING", "WARNING"]
    assert "cannot reach the service: ALL_PROXY cannot be used. If this process" in caplog.text


async def test_the_reaper_uses_what_its_client_read_although_both_have_moved_since(
    world: World,
    journals: Path,
    reapers: list[StubReaper],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = {"SSL_CERT_FILE": "ca.pem", "SSL_CERT_DIR": "one:two", "no_proxy": "a.test"}
    for name, value in {**variables, "HTTPS_PROXY": "proxy.test"}.items():
        monkeypatch.setenv(name, value)
    # Its own client, so that it reads no certificates here.
    async with world(guard="auto") as (_, client):
        monkeypatch.chdir("/")
        monkeypatch.setenv("SSL_CERT_FILE", "/another")
        async with client.instance(MODEL, HARDWARE):
            (armed,) = (each for each in reapers[-1].sent if each["kind"] == "ARM")
    assert json.loads(armed["sealed"].reveal())["environment"] == {
        "proxies": {"https": ["HTTPS_PROXY", "http://proxy.test"]},
        "no_proxy": ["a.test"],
        "cafile": str(tmp_path / "ca.pem"),
        "capath": f"{tmp_path / 'one'}:{tmp_path / 'two'}",
    }


def test_a_removed_working_directory_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    shutil.rmtree(tmp_path / "removed")
    monkeypatch.setenv("SSL_CERT_FILE", "ca.pem")
    assert Environment.read().cafile == "ca.pem"


# --- the rehearsal itself -----------------------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    monkeypatch.setattr(_recover, "_CONNECT_TIMEOUT", 1.0)


async def rehearse(message: Record) -> str:
    settings = json.loads(message["sealed"].reveal())
    return await anyio.to_thread.run_sync(_recover.rehearse, settings)


@pytest.mark.smoke
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_open_connection_is_enough_and_nothing_is_sent() -> None:
    received: list[bytes] = []

    async def never_answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                received.append(await stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                received.append(b"")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, never_answer)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        assert await rehearse(account(f"http://127.0.0.1:{port}/v1")) == ""
        await until(lambda: received)
        tasks.cancel_scope.cancel()
    assert received == [b""]
    problem = await rehearse(account(f"http://127.0.0.1:{port}/v1"))
    assert problem.startswith(f"cannot connect to http://127.0.0.1:{port}/v1 (connection refused)")
    assert all(name in problem for name in ("http_client=", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"))


@pytest.mark.sockets
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_proxy_must_let_it_through(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def refuse(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            asked.append((await stream.receive()).split(b"\r\n")[0])
            await stream.send(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, refuse)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        proxy = Proxy("HTTPS_PROXY", Secret(f"http://someone:passw0rd@127.0.0.1:{port}"))
        problem = await rehearse(account("https://service.test/v1", Environment(proxies={"https": proxy})))
        tasks.cancel_scope.cancel()
    assert "407 Proxy Authentication Required" in problem
    assert "passw0rd" not in problem
    assert set(asked) == {b"CONNECT service.test:443 HTTP/1.1"}


class Told:
    """The messages of a reaper process to its parent."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str]] = []
        self.deaths: list[bool] = []
        self.process = ReaperProcess(lambda: self.deaths.append(True), lambda _: None, self._rehearsed)

    def _rehearsed(self, name: str, problem: str) -> None:
        self.outcomes.append((name, problem))


@pytest.fixture
def told() -> Iterator[Told]:
    """Start a reaper process."""
    told = Told()
    told.process.start()
    told.process.handshake()
    yield told
    told.process.shutdown()


@pytest.mark.sockets
@pytest.mark.parametrize("hangs", [False, True], ids=["ends", "hangs"])
def test_stopping_a_reaper_is_over_when_it_has_ended(
    told: Told, monkeypatch: pytest.MonkeyPatch, *, hangs: bool
) -> None:
    process, wait = told.process._process, subprocess.Popen.wait
    timeouts: list[float | None] = []
    assert process is not None

    def note(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        timeouts.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", note)
    if hangs:
        monkeypatch.setattr("cortecs_async._recovery.reaper_process._EXIT_TIMEOUT", 0.1)
        os.kill(process.pid, signal.SIGSTOP)
    told.process.shutdown()
    assert process.returncode == (-signal.SIGKILL if hangs else 0)
    # With a timeout, Python checks again and again, in growing steps.
    assert set(timeouts) == {None}
    assert told.deaths == []


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_reaper_tells_what_is_wrong_with_its_environment(told: Told, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    told.process.send([account("https://service.test/v1", Environment(cafile=str(missing)))])
    assert told.process.rehearsed("a1") in {None, *(problem for _, problem in told.outcomes)}
    await until(lambda: told.outcomes)
    ((name, problem),) = told.outcomes
    assert name == "a1"
    assert "SSL_CERT_FILE" in problem
    assert told.process.rehearsed("a1") == problem


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_reaper_stays_small_and_leaves_no_child(told: Told) -> None:
    process = told.process._process
    assert process is not None
    before = resident_kb(process.pid)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        for _ in range(2):
            told.outcomes.clear()
            told.process.send([account(f"http://127.0.0.1:{port}/v1")])
            await until(lambda: told.outcomes)
            assert told.outcomes == [("a1", "")]
    assert resident_kb(process.pid) < before + 2_000
    assert read(process.pid, f"task/{process.pid}/children") == b""
    assert is_reaper(process.pid)


def resident_kb(pid: int) -> int:
    (line,) = (line for line in read(pid, "status").splitlines() if line.startswith(b"VmRSS"))
    return int(line.split()[1])


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_rehearsal_that_breaks_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Record] = []
    rehearsals = Rehearsals(sent.append, closed_in_child=())

    def end(problem_of: Callable[[Record], str]) -> str:
        monkeypatch.setattr("cortecs_async._recovery.rehearsal._problem_of", problem_of)
        rehearsals.begin("a1", {}, 7)
        (fd,) = rehearsals.fds
        rehearsals.end(fd)
        assert rehearsals.fds == []
        assert {**sent[-1], "problem": ""} == {"rehearsed": "a1", "number": 7, "problem": ""}
        return str(sent.pop()["problem"])

    assert end(lambda _: "") == ""
    assert end(lambda _: "no way") == "no way"
    assert "without a result (exit status 3)" in end(lambda _: os._exit(3))


def test_a_child_whose_outcome_is_lost_does_not_end_the_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Record] = []
    rehearsals = Rehearsals(sent.append, closed_in_child=())

    def no_child(*_: Any) -> Any:
        raise ChildProcessError

    monkeypatch.setattr(platform_os, "fork", lambda: 999_999_999)
    monkeypatch.setattr(platform_os, "waitpid", no_child)
    monkeypatch.setattr(platform_os, "kill", no_child)
    rehearsals.begin("a1", {}, 7)
    (fd,) = rehearsals.fds
    rehearsals.cancel()
    rehearsals.end(fd)
    assert "exited without a result (exit status unknown)" in sent[-1]["problem"]


def test_at_most_two_rehearsals_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Record] = []
    rehearsals = Rehearsals(sent.append, closed_in_child=())
    monkeypatch.setattr(platform_os, "fork", lambda: 999_999_999)
    monkeypatch.setattr(platform_os, "waitpid", lambda *_: (0, 0))
    for number in range(5):
        rehearsals.begin(f"a{number}", {}, number)
    while rehearsals.fds:
        assert len(rehearsals.fds) <= 2
        rehearsals.end(rehearsals.fds[0])
    assert [each["number"] for each in sent] == [0, 1, 2, 3, 4]


def test_a_fork_that_fails_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Record] = []
    opened: list[int] = []
    pipe = platform_os.pipe

    def note() -> tuple[int, int]:
        opened.extend(ends := pipe())
        return ends

    def no_process() -> int:
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(platform_os, "pipe", note)
    monkeypatch.setattr(platform_os, "fork", no_process)
    Rehearsals(sent.append, closed_in_child=()).begin("a1", {}, 1)
    assert "too many processes" in sent[-1]["problem"]
    assert len(opened) == 2
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_the_reaper_forks_no_child_while_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[bool] = []

    def fork() -> int:
        forked.append(import_lock.locked())
        return 999_999_999

    monkeypatch.setattr(platform_os, "fork", fork)
    rehearsals = Rehearsals(lambda _: None, closed_in_child=())
    rehearsals.begin("a1", {}, 1)
    assert forked == [True]
    (fd,) = rehearsals.fds
    os.close(fd)


def test_an_import_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from cortecs_async._recovery.rehearsal import _problem_of  # noqa: PLC0415

    def fail(_: Record) -> str:
        raise ImportError("No module named 'h11'")

    monkeypatch.setattr(_recover, "rehearse", fail)
    assert _problem_of({}) == "failed to import the HTTP client (ImportError: No module named 'h11')"


WITHOUT_ENVIRONMENT = """
import sys
from cortecs_async._recovery.recover import preload
preload()
class Deleted:
    def find_spec(self, name, *_):
        raise ImportError(name)
sys.meta_path.insert(0, Deleted())
from cortecs_async._api.wire import decode_instances
print(len(decode_instances({"instances": [{"instance_id": "i-1"}, 5]}).unreadable))
"""


@pytest.mark.smoke
def test_undocumented_data_needs_no_module_that_no_rehearsal_has_imported() -> None:
    command = [sys.executable, "-c", WITHOUT_ENVIRONMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["2"], "")
