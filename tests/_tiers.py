"""Check the rules of the default tier: `pytest --check-tiers`, which `nox -s nightly` runs.

A test of the default tier opens no socket, starts no process, does not sleep, and takes at most two seconds
of processor time. A test marked `smoke` may do the first three. The check is off by default, so that a busy
machine does not fail a test.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Generator

import pytest

REAL = ("sockets", "smoke")
"""Tests with one of these marks may leave the process, and run on real time."""

TIERS = ("sockets", "proofs", "oracle", "nightly")
"""A test with one of these marks is not in the default tier."""

MOST_SECONDS = 2.0

# Audit events that a test of the default tier must not raise. The socket pair of an event loop raises none of
# them.
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
    """Whether a test uses real sockets, processes or signals."""
    return any(item.get_closest_marker(name) for name in REAL)


def complaint(marks: Collection[str], events: Collection[str], seconds: float) -> str | None:
    """Explain why a test belongs to another tier; None if it does not.

    Args:
        marks: The names of the test's marks.
        events: The names of the audit events that the test and its fixtures raised.
        seconds: The processor time of the test without its fixtures.
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
    """A pytest plugin that fails a test of the default tier if it belongs to another tier."""

    def __init__(self) -> None:
        self._events: set[str] = set()
        sys.addaudithook(lambda event, _: self._events.add(event))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        """Forget the events of earlier tests."""
        self._events.clear()
        yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Run the test, and fail it if it belongs to another tier."""
        began = time.process_time()
        yield
        seconds = time.process_time() - began
        if found := complaint({mark.name for mark in item.iter_markers()}, self._events, seconds):
            pytest.fail(found, pytrace=False)
