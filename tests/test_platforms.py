"""Systems other than Linux: what Windows and macOS lack is taken away here."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from _command_line import environment
from _world import HARDWARE, MODEL, World

from cortecs_async._aio import clock
from cortecs_async._batch import output, reader
from cortecs_async._cli.child_process import ChildProcess
from cortecs_async._client import diagnosis
from cortecs_async._environment import Environment
from cortecs_async._recovery import promises, reaper_check
from cortecs_async.errors import ConfigurationError, GuardError, JournalError

CHECKS = Path(__file__).with_name("platforms.py")


@pytest.mark.sockets
def test_without_what_windows_lacks_everything_but_leases_works(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", CHECKS, "--pretend-windows"],
        env=environment(None, tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    _, _, auto, required, run, *_ = done.stdout.splitlines()
    assert auto == (
        "The reaper does not run on Windows, so nothing would release the instance if this program is "
        "killed. Nothing was started. Run the program in WSL, or accept this risk with "
        'AsyncCortecs(guard="off").'
    )
    # No advice that the caller has ruled out.
    assert required == auto.replace(', or accept this risk with AsyncCortecs(guard="off")', "")
    assert run == f"cortecs-async run: {required}"


class TestWindows:
    @pytest.fixture(autouse=True)
    def windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Not `sys.platform` itself, which trio reads too.
        for module in (promises, reaper_check, diagnosis, output):
            monkeypatch.setattr(module, "sys", SimpleNamespace(platform="win32"))

    @pytest.mark.parametrize("guard", ["auto", "required"])
    async def test_a_lease_sends_nothing(self, world: World, guard: str) -> None:
        async with world(guard=guard) as (emu, client):
            for enter in (
                client.instance(MODEL, HARDWARE).__aenter__,
                lambda: client.acquire(MODEL, HARDWARE),
            ):
                with pytest.raises(GuardError, match="The reaper does not run on Windows"):
                    await enter()
            assert emu.requests == ()

    async def test_a_journal_that_is_required(self, world: World) -> None:
        async with world(guard="off", journal="required") as (emu, client):
            with pytest.raises(JournalError, match="file locks are not supported on Windows"):
                await client.acquire(MODEL, HARDWARE)
            assert emu.requests == ()

    async def test_a_lease_whose_caller_accepts_the_risk(self, world: World) -> None:
        async with world(guard="off", journal="auto") as (emu, client):
            async with client.instance(MODEL, HARDWARE) as inst:
                assert inst.base_url
            assert emu.existing == ()
            assert inst.receipt.seconds

    async def test_what_starts_nothing_needs_no_reaper(self, world: World) -> None:
        async with world(guard="required", journal="auto") as (_, client):
            instance = await client.instances.start(MODEL, HARDWARE)
            async with client.attach(instance.instance_id) as attached:
                assert attached.base_url
            assert (await client.owners(), await client.orphans(), await client.sweep()) == ({}, (), ())

    async def test_diagnose_names_what_is_missing(self, world: World) -> None:
        async with world(guard="auto", journal="auto") as (_, client):
            findings = {each.name: each for each in await client.diagnose()}
        assert findings["reaper"].detail == "the reaper does not run on Windows"
        assert findings["journal"].detail == "file locks are not supported on Windows; use WSL"
        assert not findings["reaper"].ok
        assert not findings["journal"].ok

    def test_a_batch(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="Batches do not run on Windows, because"):
            output.Output(tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()


class TestMacOS:
    def test_dev_fd_shares_the_position(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On macOS, opening /dev/fd/N is `dup`."""
        file = (tmp_path / "in.jsonl").open("wb+", buffering=0)
        file.write(b"line\n")
        path = Path(f"/dev/fd/{file.fileno()}")
        monkeypatch.setattr("os.open", lambda *_: os.dup(file.fileno()))
        for _ in range(2):
            with reader.open_regular_file(path, "in.jsonl") as opened:
                assert opened.read() == b"line\n"
        file.close()

    def test_certificates_are_read_from_their_beginning(self, tmp_path: Path) -> None:
        with (tmp_path / "certificates.pem").open("wb+") as file:
            file.write(b"no certificate")
            file.flush()
            with pytest.raises(ConfigurationError, match="contains no certificate"):
                Environment(cafile=f"/dev/fd/{file.fileno()}").tls_context()
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0

    def test_space_is_allocated_without_posix_fallocate(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("os.posix_fallocate", raising=False)
        size = len(output._ZEROS) + 8
        with (tmp_path / "table").open("wb") as file:
            output._allocate(file.fileno(), size)
        assert (tmp_path / "table").read_bytes() == bytes(size)

    @pytest.mark.parametrize(
        ("system", "name"), [("darwin", "CLOCK_MONOTONIC_RAW"), ("linux", "CLOCK_BOOTTIME")]
    )
    def test_the_clock_counts_sleep(self, system: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.platform", system)
        assert runpy.run_path(clock.__file__)["_BOOTTIME"] == getattr(time, name)

    def test_the_monotonic_clock_replaces_the_one_since_boot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clock, "_BOOTTIME", None)
        monkeypatch.setattr("time.monotonic", lambda: 7.0)
        assert clock.boottime() == 7.0

    @pytest.mark.sockets
    async def test_a_command_is_waited_for_without_waitid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("os.waitid", raising=False)
        async with ChildProcess([sys.executable, "-c", "exit(3)"], os.environ) as child:
            assert await child.wait() == 3
        with anyio.move_on_after(0.2):
            async with ChildProcess(
                [sys.executable, "-c", "import time; time.sleep(60)"], os.environ
            ) as child:
                await child.wait()
        assert child._process is not None
        assert child._process.returncode == -15
