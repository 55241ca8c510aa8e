"""What every test gets: an event loop on virtual time, on both backends, and a clean environment.

Async tests need no mark (`anyio_mode = "auto"`). Each runs twice, on asyncio and on trio, with a fresh clock
that jumps whenever every task waits. A test marked `sockets` or `smoke` gets the same two loops on real time.
To run on one backend only, skip on `anyio_backend_name`, or override `anyio_backend` in the test's module.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio.testing
from _tiers import TierCheck, is_real
from _virtual_time import VirtualTimeLoop
from _world import emulated_wall_clock, in_the_loop
from hypothesis import HealthCheck, settings

import cortecs_async
from cortecs_async import AsyncCortecs
from cortecs_async._aio import threads as _threads
from cortecs_async._aio.threads import System
from cortecs_async._client.wiring import Wiring
from cortecs_async.emulator import Emulator, serve_emulator

# `anyio_backend` has a test's scope, so that no test sees another's clock, and async hypothesis tests depend
# on it: the health check would refuse them all. The price: whatever fixture such a test takes is shared by
# its examples (on trio the clock too, which runs on).
# A slow machine is no failure (deadline), and every run tries the same examples.
settings.register_profile(
    "cortecs_async",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("cortecs_async")

# Variables that change what the client, the OpenAI client or the HTTP stack does.
_AMBIENT_PREFIXES = ("CORTECS_", "OPENAI_", "SSL_CERT_")
_AMBIENT_NAMES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSLKEYLOGFILE"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--check-tiers",
        action="store_true",
        help="fail tests of the default tier that belong to another tier",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--check-tiers"):
        config.pluginmanager.register(TierCheck())
    # A test that you name runs, whatever its tier: deselecting it would only be confusing.
    # pytest 8 does not read our settings: it selects no tier.
    is_default = [config.option.markexpr] == config.getini("addopts")[-1:]
    if is_default and config.args and all("::" in each for each in config.args):
        config.option.markexpr = ""


def pytest_report_header() -> list[str]:
    # `pytest` tests what is installed, `python -m pytest` the tree.
    found = [f"cortecs_async: {Path(cortecs_async.__file__).parent}"]
    if collect_ignore:
        found.append("oracle tests are left out: `nox -s oracle` installs what they need")
    return found


@pytest.fixture(autouse=True, scope="session")
def _signals_reach_children() -> None:
    """A shell in the background has SIGINT ignored, `nohup` has SIGHUP, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def _states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def state_dir(_states: Path) -> Path:
    """Where the journals of this test lie; made when the first is written."""
    return _states / uuid.uuid4().hex[:8]  # short, because the address of a socket must be


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    """No credential, address, proxy or journal of the machine reaches a test."""
    for name in list(os.environ):
        if name.upper().startswith(_AMBIENT_PREFIXES) or name.upper() in _AMBIENT_NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CORTECS_STATE_DIR", str(state_dir))


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """The command line, run in process, takes the log for itself."""
    loggers = [logging.getLogger(name) for name in ("cortecs_async", "cortecs_async.guard")]
    before = [(each.level, each.handlers[:], each.propagate) for each in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The backend of an async test and its options: virtual time unless marked `sockets` or `smoke`."""
    if is_real(request.node):
        return request.param, {}
    if request.param == "trio":
        return request.param, {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return request.param, {"loop_factory": VirtualTimeLoop}


# These tests need third-party packages, which `nox -s oracle` installs.
ORACLES = ["emulator/test_openapi.py", "emulator/test_vendor_client.py", "test_migrating.py"]
collect_ignore = [] if find_spec("cortecs_py") and find_spec("schemathesis") else ORACLES

EMULATOR_OPTIONS = frozenset(inspect.signature(Emulator).parameters)


@pytest.fixture
def world() -> Callable[..., AbstractAsyncContextManager[tuple[Emulator, AsyncCortecs]]]:
    """`async with world() as (emu, client)`: an emulator on the clock of the test, and a client, in process.

    Options that the emulator knows are its own, the rest are the client's.
    """

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
        theirs = {name: options.pop(name) for name in EMULATOR_OPTIONS & options.keys()}
        emulator = Emulator(**{"clock": anyio.current_time, **theirs})
        defaults = {
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
            "api_base_url": emulator.api_base_url,
            # On virtual time nothing waits for threads and child processes.
            "guard": "off",
            "journal": "off",
        }
        async with (
            httpx.AsyncClient(transport=emulator.transport()) as http,
            AsyncCortecs(**{**defaults, "http_client": http, **options}) as client,
        ):
            yield emulator, client

    return opened


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Serve an emulator on its own port, and put its address and credentials into the environment."""
    with serve_emulator(step_seconds=0.01) as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture
def batch_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file work of batches runs in the loop: virtual time does not wait for threads."""

    async def inline(work: Callable[[], Any], *, abandon: bool = False) -> Any:
        await anyio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(_threads, "run_in_thread", inline)


@pytest.fixture
def journals(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> Path:
    """The directory of the journals. Clients use the emulator's clock, and write journals without threads."""
    monkeypatch.setattr(Wiring, "system", System(emulated_wall_clock, off_loop=in_the_loop))
    return state_dir / "journal"
