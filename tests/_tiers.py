"""Holds the default tier to what it promises: `pytest --check-tiers`, which `nox -s nightly` runs.

A test of that tier opens no socket, starts no process, does not sleep, and takes at most two seconds. A test
marked `smoke` may do the first three. A plugin checks this, not the tests, so that a busy machine fails none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Generator

import pytest

REAL = ("sockets", "smoke")
"""Tests with one of these marks run on real time."""

TIERS = ("sockets", "proofs", "oracle", "nightly")
"""Marks of the other tiers."""

MOST_SECONDS = 2.0

# The audit events of what reaches out of the process. The socket pair of an event loop raises none of them.
OUTSIDE = frozenset({
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "socket.bind",
    "socket.connect",
    "subprocess.Popen",
    "time.sleep",
})  # fmt: skip


def is_real(item: pytest.Item) -> bool:
    """Whether a test needs the world outside its process."""
    return any(item.get_closest_marker(name) for name in REAL)


def complaint(marks: Collection[str], events: Collection[str], seconds: float) -> str | None:
    """Why a test belongs to another tier; None when it does not.

    Args:
        marks: The names of its marks.
        events: The names of the audit events during the test and its fixtures.
        seconds: The processor time of the test itself.
    """
    if not {*TIERS}.isdisjoint(marks):
        return None
    if seconds > MOST_SECONDS:
        return f"it takes {seconds:.1f} s of processor time: mark it `proofs`, or make it cheaper"
    outside = sorted(OUTSIDE.intersection(events))
    if outside and {*REAL}.isdisjoint(marks):
        return f"mark it `sockets`: {', '.join(outside)}"
    return None


class TierCheck:
    """Fails tests of the default tier that belong to another one."""

    def __init__(self) -> None:
        self._events: set[str] = set()
        sys.addaudithook(lambda event, _: self._events.add(event))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        """Forgets what the tests before it have done."""
        self._events.clear()
        yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Runs a test, and judges it."""
        began = time.process_time()
        yield
        seconds = time.process_time() - began
        if found := complaint({mark.name for mark in item.iter_markers()}, self._events, seconds):
            pytest.fail(found, pytrace=False)
