"""The reaper uses the proxies and trusts the certificates of its parent, on real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import certifi
import pytest
from _processes import PROC, Program, until
from _world import HARDWARE, MODEL

from cortecs_async import AsyncCortecs, Credentials
from cortecs_async._recovery.accounts import settings_of
from cortecs_async._recovery.reaper_process import _ENVIRONMENT
from cortecs_async._recovery.records import Record
from cortecs_async.emulator import Emulator, serve_emulator
from cortecs_async.errors import TransportError


def on_sockets(test: Any) -> Any:
    """Mark a test that uses processes and sockets."""
    for mark in (
        pytest.mark.sockets,
        pytest.mark.skipif(not (PROC / "self" / "stat").exists(), reason="reads /proc"),
        pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    ):
        test = mark(test)
    return test


NAME = "cortecs.test"

PROGRAM = f"""
import anyio
from cortecs_async import AsyncCortecs, Credentials

async def main():
    async with AsyncCortecs(guard="required") as client:
        async with client.instance("{MODEL}", "{HARDWARE}"):
            print("body", flush=True)
            await anyio.sleep(60)

anyio.run(main)
"""


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Connect a connection to a port of this machine."""
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        except OSError:
            pass  # the program was killed
        finally:
            target.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(copy(reader, inner_writer))
        tasks.create_task(copy(inner_reader, writer))


@asynccontextmanager
async def served(authority: Any) -> AsyncIterator[tuple[Emulator, int, int, list[bytes]]]:
    """Serve an emulator over TLS.

    Yield the emulator, its port for TLS, the port of a proxy to it, and what the proxy was asked for.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, "localhost").configure_cert(context)
    asked: list[bytes] = []
    async with serve_emulator(step_seconds=0.0) as emulator:
        plain_port = int(emulator.root_url.rpartition(":")[2])

        async def end_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await forward(reader, writer, plain_port)

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, OSError):
                writer.close()  # the program was killed before it asked
                return
            asked.append(head.split(b"\r\n")[0])
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await forward(reader, writer, tls_port)

        tls = await asyncio.start_server(end_tls, "127.0.0.1", ssl=context)
        proxy = await asyncio.start_server(connect, "127.0.0.1")
        tls_port, proxy_port = (each.sockets[0].getsockname()[1] for each in (tls, proxy))
        try:
            yield emulator, tls_port, proxy_port, asked
        finally:
            tls.close()
            proxy.close()


@pytest.fixture
def authority() -> Any:
    return pytest.importorskip("trustme").CA()


def test_the_reaper_gets_the_environment_of_its_parent(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:passw0rd@proxy.test:3128")
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    client = AsyncCortecs("a", "b", api_base_url=f"https://{NAME}/v1", journal="off")
    client._closed = True
    promises = client._wiring.promises
    sent: list[Record] = []
    monkeypatch.setattr(promises.store, "put", sent.append)
    promises._credentials = Credentials(client_id="a", client_secret="b")
    promises._put_credentials()
    assert "passw0rd" not in repr(sent)
    settings = settings_of(json.loads(sent[0]["sealed"].reveal()))
    assert settings.environment == client._settings.environment
    assert settings.proxy is not None
    assert not any("proxy" in name.lower() or name.startswith("SSL") for name in _ENVIRONMENT)


@on_sockets
async def test_a_killed_program_with_its_own_authority_and_proxy_leaves_nothing(
    authority: Any, tmp_path: Path, state_dir: Path
) -> None:
    (tmp_path / "certificates").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "certificates" / "authority.pem"))
    async with served(authority) as (emulator, _, proxy_port, asked):
        environment = {
            "CORTECS_API_BASE_URL": f"https://{NAME}/api/v1",
            "CORTECS_CLIENT_ID": emulator.client_id,
            "CORTECS_CLIENT_SECRET": emulator.client_secret,
            "CORTECS_STATE_DIR": str(state_dir),
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy_port}",
            "NO_PROXY": "localhost,127.0.0.0/8,::1/128",
            # Relative to the working directory, which is not that of the reaper.
            "SSL_CERT_FILE": "certificates/authority.pem",
        }
        log = tmp_path / "log"
        with Program(PROGRAM, env=environment, log=log, cwd=tmp_path) as program:
            await until(lambda: program.has_printed("body") or program.has_ended)
            assert program.has_printed("body"), program.output
            assert len(emulator.existing) == 1
            before = len(asked)
            # A temporary file may be gone by the time the reaper needs it.
            (tmp_path / "certificates" / "authority.pem").unlink()
            program.send(signal.SIGKILL)
            await until(lambda: not emulator.existing)
            await until(lambda: not program.has_left_a_reaper)
        assert len(asked) > before
        assert set(asked) == {f"CONNECT {NAME}:443 HTTP/1.1".encode()}


@on_sockets
async def test_certificates_of_the_environment_count_on_this_machine_too(
    authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    async with served(authority) as (emulator, tls_port, proxy_port, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy_port}")
        options: dict[str, Any] = {
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
            "api_base_url": f"https://localhost:{tls_port}/api/v1",
            "max_retries": 0,
        }
        async with AsyncCortecs(**options) as client:
            with pytest.raises(TransportError, match="certificate not trusted"):
                await client.models.list()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        for transport in ("httpx", "aiohttp"):
            async with AsyncCortecs(**options, transport=transport) as client:
                assert len(await client.models.list()) > 0
        assert asked == []
