"""The pytest plugin, in separate runs of pytest; its fixtures on both backends of anyio's plugin."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from _examples import files_of
from _world import MODEL

pytestmark = pytest.mark.sockets
pytest_plugins = ["pytester"]

PLUGIN = "cortecs_async.integrations.pytest_plugin"
# An installed package has the entry point, a source tree on the path does not.
LOADED = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
# The nox session `plugins` installs other plugins for async tests; tests/ecosystem tests those.
OPTIONS = [*([] if LOADED else ["-p", PLUGIN]), "-pno:asyncio", "-pno:trio", "-Werror", "-oanyio_mode=auto"]

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"

HEAD = f"""
import asyncio, os, subprocess, sys, unittest
import anyio, pytest
from cortecs_async import AsyncCortecs, errors
from cortecs_async.emulator import Emulator, Fault

MODEL = {MODEL!r}
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run tests given as source; async ones run on both of anyio's backends."""

    def run(source: str, *arguments: str, **outcomes: int) -> pytest.RunResult:
        pytester.makepyfile(HEAD + source)
        result = pytester.runpytest_inprocess(*OPTIONS, *arguments)
        result.assert_outcomes(**outcomes)
        return result

    return run


def test_a_program_finds_the_emulator_in_the_environment(run: Run) -> None:
    run(
        """
async def program():
    async with AsyncCortecs() as client, client.instance(MODEL) as inst:
        return inst.openai_kwargs()

async def test_async(cortecs_emulator: Emulator):
    kwargs = await program()
    assert kwargs["api_key"] == cortecs_emulator.api_key
    assert kwargs["base_url"].startswith(cortecs_emulator.root_url)
    assert [entry.status for entry in cortecs_emulator.ledger] == ["deleted"]

def test_sync(cortecs_emulator):
    asyncio.run(program())
    assert len(cortecs_emulator.ledger) == 1

def test_another_process(cortecs_emulator):
    program = "import anyio, cortecs_async as c; anyio.run(c.AsyncCortecs().user.balance)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert [request.route for request in cortecs_emulator.requests] == ["token", "balance"]

@pytest.mark.cortecs_emulator
def test_marked():
    asyncio.run(program())

@pytest.mark.cortecs_fault("drop", route="token")
def test_marked_with_a_fault():
    asyncio.run(program())

@pytest.mark.usefixtures("cortecs_emulator")
class Case(unittest.TestCase):
    def test_case(self):
        asyncio.run(program())
""",
        passed=7,
    )


def test_a_client_for_any_event_loop(run: Run) -> None:
    run(
        """
async def test_a_lease(cortecs_client: AsyncCortecs, cortecs_emulator: Emulator):
    async with cortecs_client.instance(MODEL) as inst:
        assert cortecs_emulator.billing == (inst.instance_id,)
    assert cortecs_emulator.existing == ()

async def test_closed_by_the_test(cortecs_client):
    async with cortecs_client as client:
        await client.user.balance()

def test_in_a_loop_of_the_test(cortecs_client):
    async def main():
        return await cortecs_client.user.balance()
    assert asyncio.run(main()).current_balance == 1000

def test_unused(cortecs_client):
    pass

@pytest.fixture
async def inst(cortecs_client):
    async with cortecs_client.instance(MODEL) as inst:
        yield inst

async def test_an_instance_that_a_fixture_ends(inst, cortecs_emulator):
    assert cortecs_emulator.billing == (inst.instance_id,)

@pytest.mark.cortecs_client(guard="required", journal="required", max_retries=0)
async def test_with_reaper_and_journal(cortecs_client):
    async with cortecs_client.instance(MODEL):
        assert await cortecs_client.owners()
        assert os.listdir(os.environ["CORTECS_STATE_DIR"])
""",
        passed=10,
    )


def test_each_test_has_an_account_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", "the real one")
    run(
        """
seen = []

@pytest.mark.parametrize("number", range(2))
def test_it(cortecs_emulator, number, tmp_path):
    assert cortecs_emulator.ledger == () and not os.listdir(tmp_path)
    cortecs_emulator.delete_instance(cortecs_emulator.start_instance(MODEL))
    seen.append((cortecs_emulator.root_url, os.environ["CORTECS_STATE_DIR"]))
    assert os.environ["CORTECS_API_KEY"] == cortecs_emulator.api_key

def test_after_them():
    assert os.environ["CORTECS_API_KEY"] == "the real one" and "CORTECS_CLIENT_SECRET" not in os.environ
    assert len({root for root, _ in seen}) == len({state for _, state in seen}) == 2
""",
        passed=3,
    )


LEAK = """
async def test_leak(cortecs_client):
    await cortecs_client.instances.start(MODEL, "NVIDIA_H100_1", num_workers=2)
"""


def test_a_passing_test_that_leaves_an_instance_fails(run: Run) -> None:
    result = run(LEAK, passed=2, errors=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.duration < 5  # no grace period, because there is no reaper
    text = str(result.stdout)
    assert re.search(
        r"1 instance left behind by test_\w+\.py::test_leak\[asyncio\]:\n"
        r"  instance-10001 \(meta-llama/Llama-3.1-8B-Instruct on NVIDIA_H100_1, 2 workers\): running, billed "
        r"for \d\.\d s so far, and still billed at 6\.00 EUR per hour\n",
        text,
    )
    assert "allow_leaks=True" in text


def test_a_failed_test_shows_its_leaks_below_the_failure(run: Run) -> None:
    result = run(LEAK + "    assert 1 == 2\n", failed=2)
    text = str(result.stdout)
    assert (
        text.index("assert 1 == 2") < text.index("Captured cortecs teardown") < text.index("left behind by")
    )


@pytest.mark.parametrize(
    ("marker", "ends", "passes"),
    [
        ("allow_leaks=True", "", True),
        ("allow_leaks='stopped'", "", False),
        ("allow_leaks='stopped'", "cortecs_emulator.stop_instance(instance_id)", True),
        ("", "cortecs_emulator.stop_instance(instance_id)", False),
        ("", "cortecs_emulator.delete_instance(instance_id)", True),
    ],
)
def test_which_leaks_are_allowed(run: Run, marker: str, ends: str, *, passes: bool) -> None:
    result = run(
        f"""
@pytest.mark.cortecs_emulator({marker})
def test_it(cortecs_emulator):
    instance_id = cortecs_emulator.start_instance(MODEL)
    {ends}
""",
        passed=1,
        errors=int(not passes),
    )
    assert ("no longer billed, but not deleted" in str(result.stdout)) is ("stop" in ends and not passes)


@pytest.mark.parametrize("mark", ["pytest.mark.xfail", "pytest.mark.xfail(strict=True)"])
def test_a_test_that_is_expected_to_fail_may_leave_an_instance(run: Run, mark: str) -> None:
    run(f"@{mark}{LEAK}    assert 1 == 2\n", xfailed=2)


def test_the_check_waits_for_the_reaper_of_a_killed_program(run: Run) -> None:
    program = (
        "import asyncio, os\\nfrom cortecs_async import AsyncCortecs\\n"
        "async def main():\\n"
        "    async with AsyncCortecs(guard='required') as client:\\n"
        "        async with client.instance('meta-llama/Llama-3.1-8B-Instruct'):\\n"
        "            os._exit(3)\\n"
        "asyncio.run(main())\\n"
    )
    run(
        f"""
emulators = []

@pytest.mark.cortecs_emulator(leak_grace="1m")
def test_it(cortecs_emulator):
    assert subprocess.run([sys.executable, "-c", "{program}"]).returncode == 3
    assert len(cortecs_emulator.billing) == 1
    emulators.append(cortecs_emulator)

def test_the_reaper_has_confirmed_the_deletion():
    routes = [request.route for request in emulators[0].requests if request.status < 300]
    assert routes[-2:] == ["delete", "list"]
""",
        passed=2,
    )


def test_the_grace_period_ends(run: Run) -> None:
    # The process of the test holds the instance and never releases it.
    result = run(
        """
@pytest.mark.cortecs_emulator(leak_grace=0.1)
@pytest.mark.cortecs_client(journal="required")
async def test_it(cortecs_client):
    kept.append(cortecs_client.instance(MODEL))
    await kept[-1].__aenter__()

kept = []
""",
        passed=2,
        errors=2,
    )
    result.stdout.fnmatch_lines(["*left behind by*"])


def test_faults_occur_from_the_top_down(run: Run) -> None:
    run(
        """
fault = pytest.mark.cortecs_fault
pytestmark = [fault("status", status=500), fault("status", status=501)]

async def statuses(client):
    for _ in range(9):
        with anyio.move_on_after(5):
            try:
                await client.models.list()
            except errors.APIStatusError as error:
                yield error.status_code

@pytest.mark.cortecs_client(max_retries=0)
@pytest.mark.cortecs_fault("status", status=502)
class TestIt:
    @pytest.mark.cortecs_fault("status", status=503, times=2)
    @pytest.mark.cortecs_fault("status", status=504)
    async def test_it(self, cortecs_client, cortecs_emulator):
        assert [status async for status in statuses(cortecs_client)] == [500, 501, 502, 503, 503, 504]
        assert cortecs_emulator.unmet_faults == ()
""",
        passed=2,
    )


def test_a_fault_that_matched_no_request_fails_the_test(run: Run) -> None:
    result = run(
        """
@pytest.mark.cortecs_fault("drop", route="start", when="after", times=2)
async def test_unmet(cortecs_client, cortecs_emulator):
    cortecs_emulator.add_fault(Fault("status", status=503, headers={"a": "b"}))
    cortecs_emulator.add_fault(Fault("delay", skip=9))
    await cortecs_client.models.list()

@pytest.mark.cortecs_fault("drop", route="start")
async def test_failed():
    assert 1 == 2

@pytest.mark.cortecs_emulator(allow_unmet_faults=True)
@pytest.mark.cortecs_fault("drop", route="start")
async def test_allowed():
    pass

@pytest.mark.cortecs_fault("drop", route="start")
async def test_cleared(cortecs_emulator):
    cortecs_emulator.clear_faults()
""",
        "-k",
        "asyncio",
        passed=3,
        errors=1,
        failed=1,
        deselected=4,
    )
    result.stdout.fnmatch_lines(
        [
            "2 faults of test_*::test_unmet?asyncio? did not match any request:",
            "  Fault('drop', route='start', when='after', times=2)",
            "  Fault('delay', skip=9)",
            "*allow_unmet_faults=True*",
        ]
    )


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        (
            "cortecs_emulator(step_secs=1)",
            "*cortecs_emulator: unknown option step_secs. Valid options are *step_seconds*",
        ),
        ("cortecs_emulator(root_url='x')", "*cortecs_emulator: unknown option root_url. Valid options are *"),
        ("cortecs_emulator(1)", "*cortecs_emulator: only keyword arguments are allowed, not 1"),
        ("cortecs_emulator(num_steps=0)", "*cortecs_emulator: 'num_steps' must be >= 1: 0"),
        (
            "cortecs_emulator(capacity={'X': 1})",
            "*cortecs_emulator: Unknown hardware type 'X' in capacity (known: *",
        ),
        ("cortecs_emulator(models='a')", "*cortecs_emulator: Invalid model name 'a' in models *"),
        ("cortecs_emulator(allow_leaks='all')", "*allow_leaks must be False, 'stopped', or True, not 'all'"),
        (
            "cortecs_emulator(leak_grace='1h30')",
            '*cortecs_emulator: leak_grace "1h30" is invalid (examples: 90s, *',
        ),
        ("cortecs_fault()", "*cortecs_fault: *missing 1 required positional argument*"),
        ("cortecs_fault('drip')", "*cortecs_fault: 'kind' must be in ('drop', *"),
        ("cortecs_fault('drop', route='begin')", "*cortecs_fault: 'route' must be in *"),
        (
            "cortecs_client(http_client=None)",
            "*cortecs_client: unknown option http_client. Valid options are *guard*",
        ),
        ("cortecs_client(guard='maybe')", "*cortecs_client: guard must be one of auto, *"),
    ],
)
def test_an_invalid_marker_is_explained(run: Run, marker: str, complaint: str) -> None:
    result = run(f"@pytest.mark.{marker}\ndef test_it(cortecs_client): pass\n", errors=1)
    result.stdout.fnmatch_lines([complaint])
    result.stdout.no_fnmatch_line("*During handling*")


def test_no_marked_test_runs_without_the_emulator(run: Run) -> None:
    # No hook of pytest can add a fixture to the methods of such a class.
    result = run(
        """
@pytest.mark.cortecs_emulator
class Case(unittest.TestCase):
    def test_case(self):
        raise AssertionError("this would have rented a GPU")
""",
        errors=1,
    )
    result.stdout.fnmatch_lines(["*@pytest.mark.usefixtures('cortecs_emulator')"])


def test_markers_and_fixtures_are_listed(pytester: pytest.Pytester) -> None:
    markers = str(pytester.runpytest_inprocess(*OPTIONS, "--markers").stdout)
    assert all(f"@pytest.mark.cortecs_{name}(" in markers for name in ("emulator", "client", "fault"))
    fixtures = str(pytester.runpytest_inprocess(*OPTIONS, "--fixtures").stdout)
    assert re.search(r"cortecs_emulator -- .*\n    An emulated Cortecs account", fixtures)
    assert re.search(r"cortecs_client -- .*\n    An `AsyncCortecs`", fixtures)


@pytest.fixture
def run_apart(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run a file of tests in a separate process, without the plugins that happen to be installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(source: str, *arguments: str, conftest: str = "") -> pytest.RunResult:
        pytester.makepyfile(source)
        pytester.makeconftest(conftest)
        return pytester.runpytest_subprocess("-p", PLUGIN, "-W", "error", *arguments)

    return run


def test_with_xdist(run_apart: Callable[..., Any]) -> None:
    source = """
@pytest.mark.parametrize("number", range(4))
async def test_it(cortecs_client, number):
    async with cortecs_client.instance(MODEL): pass

async def test_leak(cortecs_client):
    await cortecs_client.instances.start(MODEL)
    assert 1 == 2
"""
    result = run_apart(
        HEAD + source,
        *("-p", "anyio.pytest_plugin", "-o", "anyio_mode=auto", "-p", "xdist.plugin", "-n", "2"),
    )
    result.assert_outcomes(passed=8, failed=2)
    result.stdout.fnmatch_lines(["*Captured cortecs teardown*", "*left behind by*"])


def test_a_run_without_fixtures_imports_nothing(run_apart: Callable[..., Any]) -> None:
    conftest = """
import sys
def pytest_sessionfinish():
    assert "cortecs_async.integrations.pytest_plugin" in sys.modules
    found = {"httpx", "starlette", "uvicorn", "attrs", "cortecs_async._client", "cortecs_async.emulator"}
    print("loaded:", sorted(found & sys.modules.keys()))
"""
    result = run_apart("def test_it(): pass", "-s", conftest=conftest)
    result.stdout.fnmatch_lines(["*loaded: [[][]]*"])


@pytest.mark.parametrize("absent", ["starlette", "uvicorn", "httpx"])
def test_without_the_extra(run_apart: Callable[..., Any], absent: str) -> None:
    conftest = f"""
import sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "{absent}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent)
"""
    result = run_apart("def test_other(): pass\ndef test_it(cortecs_client): pass", conftest=conftest)
    result.assert_outcomes(passed=1, errors=1)
    hint = "*need starlette and uvicorn: python -m pip install *?testing?'*"
    # httpx is not part of the extra: the package itself needs it.
    result.stdout.fnmatch_lines([hint if absent != "httpx" else "*No module named 'httpx'*"])


# `nox -s plugins` installs what these need.
OF_PLUGINS = {"test_weather_pytest_httpx.py"}


def test_every_block_of_the_page_runs_as_it_stands(pytester: pytest.Pytester) -> None:
    for name, text in files_of(PAGE).items():
        if name not in OF_PLUGINS:
            pytester.path.joinpath(name).write_text(text)
    result = pytester.runpytest_inprocess(*OPTIONS)
    # The page shows the report of the leak; here it occurs on two backends.
    result.assert_outcomes(passed=25, errors=2)
    shown = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert shown
    said = [re.sub(r"\[asyncio\]|_{2,} ?", "", line).strip() for line in result.outlines]
    seconds = re.compile(r"\d\.\d s")
    for line in shown[1].splitlines():
        assert seconds.sub("1.0 s", line.strip()) in [seconds.sub("1.0 s", each).strip() for each in said]


def test_the_package_registers_the_plugin() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'\n[project.entry-points.pytest11]\ncortecs = "{PLUGIN}"\n' in pyproject.read_text()
