"""Check the rules of the default tier with `pytest --check-tiers`, as `nox -s nightly` does.

A test in the default tier does not open a socket, start a process, or sleep, and takes at most two seconds of
processor time. A test marked `smoke` may do the first three. The check is off by default, so that a busy
machine does not fail a test.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Generator

import pytest

REAL = ("sockets", "smoke")
"""Tests with one of these marks can leave the process and run on real time."""

TIERS = ("sockets", "proofs", "oracle", "nightly")
"""A test with one of these marks is not in the default tier."""

MOST_SECONDS = 2.0

# Audit events that a test in the default tier must not raise. An event loop's socket pair does not raise any
# of them.
OUTSIDE = frozenset({
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.sendmsg",
    "socket.sendto",
    "subprocess.Popen",
    "time.sleep",
})  # fmt: skip


def is_real(item: pytest.Item) -> bool:
    """Whether a test uses real sockets, processes, or signals."""
    return any(item.get_closest_marker(name) for name in REAL)


def violation(marks: Collection[str], events: Collection[str], busy: float, waited: float) -> str | None:
    """Explain why a test belongs to another tier, or return None if it does not.

    Args:
        marks: The names of the test's marks.
        events: The names of the audit events that the test and its fixtures raised.
        busy: Their processor time in seconds.
        waited: The rest of their time in seconds.
    """
    if not {*TIERS}.isdisjoint(marks):
        return None
    if busy > MOST_SECONDS:
        return f"it takes {busy:.1f} s of processor time: make it cheaper, or mark it `proofs`"
    if not {*REAL}.isdisjoint(marks):
        return None
    if outside := sorted(OUTSIDE.intersection(events)):
        return f"it uses {', '.join(outside)}: run it in process (see `world`), or mark it `sockets`"
    if waited > MOST_SECONDS:
        return f"it waits for {waited:.1f} s: use virtual time, or mark it `sockets`"
    return None


class TierCheck:
    """A pytest plugin that fails a default-tier test if it belongs to another tier."""

    def __init__(self) -> None:
        self._events: set[str] = set()
        self._began = self._busy_before = 0.0
        sys.addaudithook(lambda event, _: self._events.add(event))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        """Discard the earlier tests."""
        self._events.clear()
        self._began, self._busy_before = time.monotonic(), time.process_time()
        yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Fail the test if it belongs to another tier. This runs at its end, so that its fixtures count."""
        yield
        busy = time.process_time() - self._busy_before
        waited = time.monotonic() - self._began - busy
        if found := violation({mark.name for mark in item.iter_markers()}, self._events, busy, waited):
            pytest.fail(found, pytrace=False)
