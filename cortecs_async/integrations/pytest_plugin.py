"""A pytest plugin: an emulated account for each test, and a check that no instance is left in it.

pytest loads this plugin in every run wherever this package is installed, so the plugin imports only pytest.
The first test that uses a fixture imports the emulator and the client.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ._markers import CLIENT, EMULATOR, FAULT

if TYPE_CHECKING:
    from cortecs_async import AsyncCortecs
    from cortecs_async.emulator import Emulator

_MARKERS = {
    f"{EMULATOR}(**options)": (
        "give the test an emulated account, like the fixture of the same name; options are the "
        "arguments of cortecs_async.emulator.Emulator plus allow_leaks (False, 'stopped', or True), "
        "leak_grace (a duration), and allow_unmet_faults."
    ),
    f"{CLIENT}(**options)": "set options of the AsyncCortecs returned by the fixture of the same name.",
    f"{FAULT}(kind, **options)": (
        "inject a fault into the test's emulated account, with the arguments of "
        "cortecs_async.emulator.Fault; several faults occur in order, from top to bottom."
    ),
}

_HAS_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    for marker, description in _MARKERS.items():
        config.addinivalue_line("markers", f"{marker}: {description}")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Give a marked test the emulator even if it does not request the fixture.

    The test does not need to request the fixture, because its program finds the emulator through the
    environment. Without the emulator, that program would find the real service and rent GPUs.
    """
    if not collector.istestfunction(obj, name):
        return
    marks: Any = getattr(obj, "pytestmark", [])
    names = {mark.name for mark in (marks if isinstance(marks, list) else [marks])}
    if names & {EMULATOR, FAULT} or _is_marked(collector):
        pytest.mark.usefixtures(EMULATOR)(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a marked test that would run without the emulator."""
    if _is_marked(item) and EMULATOR not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"this test is marked {EMULATOR} or {FAULT} but does not use the fixture {EMULATOR}: add an "
            f"argument of that name to the test function, or @pytest.mark.usefixtures({EMULATOR!r})",
            pytrace=False,
        )


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Record for `cortecs_emulator` whether the test itself failed."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed or hasattr(report, "wasxfail"):
        item.stash[_HAS_FAILED] = True


@pytest.fixture
def cortecs_emulator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    """An emulated Cortecs account, free of charge. The test's environment variables point to it.

    A test that leaves an instance behind fails. Set options with `@pytest.mark.cortecs_emulator(...)`.
    """
    try:
        from ._test_accounts import open_account  # noqa: PLC0415  (see the module's docstring)
    except ImportError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        from .._extras import install_command  # noqa: PLC0415  (needed only here)

        pytest.fail(
            f"the fixtures of cortecs_async need starlette and uvicorn: {install_command('testing')}",
            pytrace=False,
        )
    item: pytest.Item = request.node
    item.stash[_HAS_FAILED] = False
    with open_account(item, tmp_path_factory.mktemp("cortecs")) as account:
        yield account.emulator
        problems = account.find_problems()
    if problems and item.stash[_HAS_FAILED]:
        # Show the problems below the failure, which may have caused them.
        item.add_report_section("teardown", "cortecs", problems)
    elif problems:
        pytest.fail(problems, pytrace=False)


@pytest.fixture
def cortecs_client(request: pytest.FixtureRequest, cortecs_emulator: Emulator) -> Iterator[AsyncCortecs]:
    """An `AsyncCortecs` for the account of `cortecs_emulator`, in the test's event loop.

    The client is closed after the test. Set options with `@pytest.mark.cortecs_client(...)`.
    """
    from ._test_accounts import close_client, make_client  # noqa: PLC0415  (see the module's docstring)

    client = make_client(request.node, cortecs_emulator)
    yield client
    close_client(client)


def _is_marked(node: pytest.Collector | pytest.Item) -> bool:
    return any(node.get_closest_marker(name) for name in (EMULATOR, FAULT))
