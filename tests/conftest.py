"""Fixtures of all tests: an event loop on virtual time, on both backends, and a clean environment.

Async tests need no mark (`anyio_mode = "auto"`). Each runs twice, on asyncio and on trio, with a new clock
that jumps whenever every task waits. Tests marked `sockets` or `smoke` run on real time instead. To run a
test on one backend only, skip on `anyio_backend_name`, or override `anyio_backend` in the test's module.
"""

from __future__ import annotations

import inspect
import logging
import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
import trio.testing
from _tiers import TierCheck, is_real
from _virtual_time import VirtualTimeLoop
from _world import SYSTEM, in_the_loop
from hypothesis import HealthCheck, settings

import cortecs_async
from cortecs_async import AsyncCortecs
from cortecs_async._aio import threads as _threads
from cortecs_async._client.wiring import Wiring
from cortecs_async.emulator import Emulator, serve_emulator

# No deadline, because the machine may be slow. Derandomized, so that every run tries the same examples.
# Without the health check, because it rejects every async test: `anyio_backend` has the scope of a test, so
# that each test has its own clock. The examples of a test share its fixtures, and on trio its clock.
settings.register_profile(
    "cortecs_async",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("cortecs_async")
# Hypothesis also tries the constants in the project's imported modules. Without this, the examples of a test
# would depend on the tests before it.
pytest.MonkeyPatch().setattr(
    "hypothesis.internal.conjecture.providers.is_local_module_file", lambda _: False, raising=False
)

# Environment variables that affect the client, the OpenAI client or the HTTP libraries.
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
    # Tests that you name on the command line run, whatever their tier.
    # pytest 8 does not read our settings, so it selects no tier.
    is_default = [config.option.markexpr] == config.getini("addopts")[-1:]
    if is_default and config.args and all("::" in each for each in config.args):
        config.option.markexpr = ""


def pytest_report_header() -> list[str]:
    # `pytest` tests the installed package, `python -m pytest` the working tree.
    found = [f"cortecs_async: {Path(cortecs_async.__file__).parent}"]
    if collect_ignore:
        found.append("oracle tests are left out: `nox -s oracle` installs what they need")
    return found


@pytest.fixture(autouse=True, scope="session")
def _signals_reach_children() -> None:
    """Restore the signals that background shells (SIGINT) and `nohup` (SIGHUP) ignore in child processes."""
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
    """The state directory of this test. It is created with the first journal."""
    return _states / uuid.uuid4().hex[:8]  # short, because the path of a socket must be short


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    """Hide the credentials, addresses, proxies, profiles and journals of the machine from the tests."""
    for name in list(os.environ):
        if name.upper().startswith(_AMBIENT_PREFIXES) or name.upper() in _AMBIENT_NAMES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CORTECS_STATE_DIR", str(state_dir))
    # For subprocesses too: no profile, and a keyring that the package does not use.
    monkeypatch.setenv("CORTECS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")


@pytest.fixture(autouse=True)
def _no_packages_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log no warnings about a missing inference API key, whichever packages are installed."""
    for module in ("wiring", "diagnosis"):
        monkeypatch.setattr(f"cortecs_async._client.{module}.uses_inference", lambda: False)


@pytest.fixture(autouse=True)
def _repeatable_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the random pauses before retries, and the order of trio's tasks, the same in every run."""
    seeded = SimpleNamespace(Random=lambda: random.Random(0))
    monkeypatch.setattr("cortecs_async._http.client.random", seeded)
    monkeypatch.setattr("cortecs_async._lease.capacity.random", seeded)
    monkeypatch.setattr("cortecs_async._batch.outcome._rng", random.Random(0))
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    trio._core._run._r.seed(0)


@pytest.fixture(autouse=True)
def _restore_loggers() -> Iterator[None]:
    """Restore the loggers, which the command line configures when it runs in process."""
    loggers = [logging.getLogger(name) for name in ("cortecs_async", "cortecs_async.guard")]
    before = [(each.level, each.handlers[:], each.propagate) for each in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return the backend of an async test, with virtual time unless it is marked `sockets` or `smoke`."""
    if is_real(request.node):
        return request.param, {}
    if request.param == "trio":
        return request.param, {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return request.param, {"loop_factory": VirtualTimeLoop}


# `nox -s oracle` installs the packages that these tests need.
ORACLES = [
    "emulator/test_openapi.py",
    "emulator/test_vendor_client.py",
    "emulator/test_vendor_examples.py",
    "emulator/test_vendor_package.py",
    "test_migrating.py",
]
collect_ignore = [] if find_spec("cortecs_py") and find_spec("schemathesis") else ORACLES

EMULATOR_OPTIONS = frozenset(inspect.signature(Emulator).parameters)


@pytest.fixture
def world() -> Callable[..., AbstractAsyncContextManager[tuple[Emulator, AsyncCortecs]]]:
    """Open an emulator on the test's clock, and a client, in process: `async with world() as (emu, client)`.

    Options that the emulator accepts go to the emulator, and all others to the client.
    """

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
        emulator_options = {name: options.pop(name) for name in EMULATOR_OPTIONS & options.keys()}
        emulator = Emulator(**{"clock": anyio.current_time, **emulator_options})
        defaults = {
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
            "api_base_url": emulator.api_base_url,
            # Virtual time does not wait for threads and child processes.
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
    """Run the file work of batches in the event loop, because virtual time does not wait for threads."""

    async def inline(work: Callable[[], Any], *, abandon: bool = False) -> Any:
        return await in_the_loop(work)

    monkeypatch.setattr(_threads, "run_in_thread", inline)


@pytest.fixture
def journals(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> Path:
    """Return the directory of the journals. Clients use the emulator's clock, and write without threads."""
    monkeypatch.setattr(Wiring, "system", SYSTEM)
    return state_dir / "journal"
