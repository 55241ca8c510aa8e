"""A pytest plugin: an account at an emulator for each test, and a check that the test leaves nothing in it.

pytest loads it by itself, in every run of every project beside which this package is installed. So it imports
nothing but pytest; the emulator and the client come with the first test that uses a fixture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cortecs_async import AsyncCortecs
    from cortecs_async.emulator import Emulator

EMULATOR = "cortecs_emulator"
CLIENT = "cortecs_client"
FAULT = "cortecs_fault"

_MARKERS = {
    f"{EMULATOR}(**options)": (
        "the test gets an emulated account, as the fixture of that name gives it; options are those of "
        "cortecs_async.emulator.Emulator, and allow_leaks (False, 'stopped' or True), leak_grace (seconds), "
        "allow_unmet_faults."
    ),
    f"{CLIENT}(**options)": "options of the AsyncCortecs that the fixture of that name gives.",
    f"{FAULT}(kind, **options)": (
        "something that goes wrong in the emulated account of the test, with the arguments of "
        "cortecs_async.emulator.Fault; several are taken from the top down."
    ),
}

_HAS_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes the markers known."""
    for marker, meaning in _MARKERS.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """A marked test gets the emulator though it does not name the fixture.

    It may well not need to name it, because its program finds the emulator through the environment. Without
    it, that program would find the service, and rent GPUs.
    """
    if not collector.istestfunction(obj, name):
        return
    own: Any = getattr(obj, "pytestmark", [])
    names = {mark.name for mark in (own if isinstance(own, list) else [own])}
    if names & {EMULATOR, FAULT} or _is_marked(collector):
        pytest.mark.usefixtures(EMULATOR)(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """No marked test runs without the emulator, however the marker came to it."""
    if _is_marked(item) and EMULATOR not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"this test is marked {EMULATOR} or {FAULT} and does not use the fixture {EMULATOR}: give the "
            f"test function an argument of that name, or @pytest.mark.usefixtures({EMULATOR!r})",
            pytrace=False,
        )


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Notes for the fixture below that the test has failed by itself."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed or hasattr(report, "wasxfail"):
        item.stash[_HAS_FAILED] = True


@pytest.fixture
def cortecs_emulator(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    """An emulated cortecs account, free of charge, served on a free port; the environment points to it.

    A test that leaves an instance in it fails. `@pytest.mark.cortecs_emulator(...)` sets it up.
    """
    with _helpful_without_extras():
        from ._test_accounts import open_account  # noqa: PLC0415  (see the top)
    item: pytest.Item = request.node
    item.stash[_HAS_FAILED] = False
    with open_account(item, tmp_path_factory.mktemp("cortecs")) as account:
        yield account.emulator
        complaint = account.complaint()
    if complaint and item.stash[_HAS_FAILED]:
        # Shown below the failure, which it may well be a consequence of.
        item.add_report_section("teardown", "cortecs", complaint)
    elif complaint:
        pytest.fail(complaint, pytrace=False)


@pytest.fixture
def cortecs_client(request: pytest.FixtureRequest, cortecs_emulator: Emulator) -> Iterator[AsyncCortecs]:
    """An AsyncCortecs on the account of `cortecs_emulator`, for whatever event loop the test has.

    It is closed after the test. `@pytest.mark.cortecs_client(...)` takes arguments of AsyncCortecs.
    """
    from ._test_accounts import close_client, make_client  # noqa: PLC0415  (the emulator has loaded it)

    client = make_client(request.node, cortecs_emulator)
    yield client
    close_client(client)


def _is_marked(node: pytest.Collector | pytest.Item) -> bool:
    return any(node.get_closest_marker(name) for name in (EMULATOR, FAULT))


@contextmanager
def _helpful_without_extras() -> Generator[None]:
    try:
        yield
    except ImportError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        pytest.fail(
            "the fixtures of cortecs_async need starlette and uvicorn: pip install 'cortecs-async[testing]'",
            pytrace=False,
        )
