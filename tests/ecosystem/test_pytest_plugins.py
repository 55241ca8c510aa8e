"""The fixtures of the pytest plugin with each plugin for async tests; `nox -s plugins` installs those.

Each of them would claim every async test of this suite, so each test here runs pytest in a process with one.
"""

from __future__ import annotations

from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from _examples import files_of

pytestmark = pytest.mark.sockets
pytest_plugins = ["pytester"]

# Fails if one of them is missing.
VERSIONS = {name: version(name) for name in ("pytest-asyncio", "pytest-httpx", "pytest-trio")}
# Before 0.24, there was only one scope.
HAS_LOOP_SCOPES = tuple(map(int, VERSIONS["pytest-asyncio"].split(".")[:2])) >= (0, 24)

PAGE = Path(__file__).parent.parent.parent / "docs" / "testing.md"
PLUGIN = "cortecs_async.integrations.pytest_plugin"

COMMON = ["-Werror"]
if not any(point.value == PLUGIN for point in entry_points(group="pytest11")):
    COMMON += ["-p", PLUGIN]
ASYNCIO = [*COMMON, "-pno:trio"]
if HAS_LOOP_SCOPES:
    ASYNCIO += ["-oasyncio_default_fixture_loop_scope=function"]
else:
    # It leaves a loop unclosed when a test calls asyncio.run, also without our plugin.
    ASYNCIO += ["-Wdefault::pytest.PytestUnraisableExceptionWarning"]
TRIO = [*COMMON, "-pno:asyncio"]
ANYIO = [*COMMON, "-pno:asyncio", "-pno:trio"]

TESTS = """
import asyncio
import pytest, pytest_asyncio
import trio.lowlevel
from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator

MODEL = "meta-llama/Llama-3.1-8B-Instruct"

{mark}
async def test_a_lease(cortecs_client: AsyncCortecs, cortecs_emulator: Emulator) -> None:
    async with cortecs_client.instance(MODEL) as inst:
        assert cortecs_emulator.billing == (inst.instance_id,)
    assert trio.lowlevel.in_trio_task() is {on_trio}

{fixture}
async def inst(cortecs_client):
    async with cortecs_client.instance(MODEL) as inst:
        yield inst

{mark}
async def test_an_async_fixture(inst, cortecs_emulator):
    assert cortecs_emulator.billing == (inst.instance_id,)

{mark}
async def test_a_client_of_the_program(cortecs_emulator):
    async with AsyncCortecs() as client, client.instance(MODEL):
        pass
    assert cortecs_emulator.existing == ()

{mark}
async def test_leak(cortecs_client):
    await cortecs_client.instances.start(MODEL)

def test_sync(cortecs_client):
    assert asyncio.run(cortecs_client.instances.list()) == ()

{mark}
@pytest.mark.cortecs_client(guard="required", journal="required")
async def test_a_reaper(cortecs_client):
    async with cortecs_client.instance(MODEL):
        pass

# Closing the client of the test before must not have affected the event loop of this one.
{mark}
async def test_the_next():
    pass
"""

STRICT = {"mark": "@pytest.mark.asyncio", "fixture": "@pytest_asyncio.fixture", "on_trio": False}
ONE_LOOP = {
    "mark": "@pytest.mark.asyncio(loop_scope='module')",
    "fixture": "@pytest_asyncio.fixture(loop_scope='module')",
    "on_trio": False,
}
BARE = {"mark": "", "fixture": "@pytest.fixture"}
RUNS: dict[str, tuple[list[str], dict[str, Any], int]] = {
    "pytest-asyncio, strict": ([*ASYNCIO], STRICT, 1),
    **({"pytest-asyncio, one loop for all": ([*ASYNCIO], ONE_LOOP, 1)} if HAS_LOOP_SCOPES else {}),
    "pytest-asyncio, auto": ([*ASYNCIO, "-oasyncio_mode=auto"], {**BARE, "on_trio": False}, 1),
    "pytest-trio": ([*TRIO, "-otrio_mode=true"], {**BARE, "on_trio": True}, 1),
    "anyio": (
        [*ANYIO, "-oanyio_mode=auto"],
        {**BARE, "on_trio": "('trio' in __import__('os').environ['PYTEST_CURRENT_TEST'].partition('[')[2])"},
        2,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_fixtures_work_with(name: str, pytester: pytest.Pytester) -> None:
    options, words, times = RUNS[name]
    pytester.makepyfile(TESTS.format(**words))
    result = pytester.runpytest_subprocess(*options)
    # A leak is an error of the teardown, beside a passed test.
    result.assert_outcomes(passed=6 * times + 1, errors=times)
    result.stdout.fnmatch_lines(["1 instance left behind by *::test_leak*"])


@pytest.mark.parametrize(
    "options",
    [[*ASYNCIO, "-oasyncio_mode=auto"], [*TRIO, "-otrio_mode=true"]],
    ids=["pytest-asyncio", "pytest-trio"],
)
def test_the_page_runs_as_it_stands_with(options: list[str], pytester: pytest.Pytester) -> None:
    for name, text in files_of(PAGE).items():
        pytester.path.joinpath(name).write_text(text)
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=14, errors=1)
