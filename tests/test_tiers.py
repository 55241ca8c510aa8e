"""Test the check of the tiers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from _tiers import MOST_SECONDS, complaint

SLOW = MOST_SECONDS + 0.1


@pytest.mark.parametrize(
    ("marks", "events", "seconds", "expected"),
    [
        ([], [], 0.1, None),
        ([], ["open", "import", "socket.__new__"], 0.1, None),
        ([], ["open", "socket.connect"], 0.1, "mark it `sockets`: socket.connect"),
        (
            ["parametrize"],
            ["subprocess.Popen", "os.fork"],
            0.1,
            "mark it `sockets`: os.fork, subprocess.Popen",
        ),
        ([], ["time.sleep"], 0.1, "mark it `sockets`: time.sleep"),
        (["smoke"], ["socket.connect"], 0.1, None),
        (["smoke"], ["socket.connect"], SLOW, "it takes 2.1 s"),
        ([], [], SLOW, "it takes 2.1 s"),
        (["sockets"], ["socket.connect"], SLOW, None),
        (["nightly"], [], SLOW, None),
    ],
)
def test_complaints(
    marks: Collection[str], events: Collection[str], seconds: float, expected: str | None
) -> None:
    found = complaint(marks, events, seconds)
    assert found == expected or (found is not None and expected is not None and found.startswith(expected))


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

def test_pure():
    socket.socketpair()

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
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "test_it.py::test_with_a_socket - Failed: mark it `sockets`: socket.bind" in done.stdout
