"""Test the check of the tiers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from _tiers import MOST_SECONDS, violation

SLOW = MOST_SECONDS + 0.1


@pytest.mark.parametrize(
    ("marks", "events", "busy", "waited", "expected"),
    [
        ([], [], 0.1, 0.1, None),
        ([], ["open", "import", "socket.__new__"], 0.1, 0.1, None),
        ([], ["open", "socket.connect"], 0.1, 0.1, "it uses socket.connect"),
        (["parametrize"], ["subprocess.Popen", "os.fork"], 0.1, 0.1, "it uses os.fork, subprocess.Popen"),
        ([], ["time.sleep"], 0.1, 0.1, "it uses time.sleep"),
        ([], [], SLOW, 0.1, "it takes 2.1 s"),
        ([], [], 0.1, SLOW, "it waits for 2.1 s"),
        (["smoke"], ["socket.connect"], 0.1, SLOW, None),
        (["smoke"], ["socket.connect"], SLOW, 0.1, "it takes 2.1 s"),
        (["sockets"], ["socket.connect"], SLOW, SLOW, None),
        (["nightly"], [], SLOW, SLOW, None),
    ],
)
def test_a_violation_names_its_reason(
    marks: Collection[str], events: Collection[str], busy: float, waited: float, expected: str | None
) -> None:
    found = violation(marks, events, busy, waited)
    assert found == expected if expected is None else (found or "").startswith(expected)


CONFTEST = """
from _tiers import TierCheck

def pytest_configure(config):
    config.pluginmanager.register(TierCheck())
"""

TESTS = """
import socket

import pytest

@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server

@pytest.fixture
def closed_late():
    yield
    socket.create_server(("127.0.0.1", 0)).close()

def test_pure():
    socket.socketpair()

def test_with_a_socket_at_its_end(closed_late):
    pass

def test_with_a_socket(server):
    pass

@pytest.mark.sockets
def test_with_a_socket_and_the_mark(server):
    pass
"""


@pytest.mark.sockets
def test_pytest_fails_a_test_of_the_wrong_tier(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", str(tmp_path)],
        env={"PYTHONPATH": ":".join(sys.path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "4 passed, 2 errors" in done.stdout, done.stdout
    for name in ("test_with_a_socket", "test_with_a_socket_at_its_end"):
        assert f"test_it.py::{name} - Failed: it uses socket.bind" in done.stdout
