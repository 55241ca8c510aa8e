"""Holds the default tier to what it promises: `pytest --check-tiers`, which `nox -s nightly` runs.

A test of that tier opens no socket, starts no process, does not sleep, and takes at most two seconds. A test
marked `smoke` may do the first three. A plugin checks this, not the tests, so that a busy machine fails none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

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


class TierCheck:
    """Fails tests of the default tier that belong to another one."""

    def __init__(self) -> None:
        self._events: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, _: tuple[Any, ...]) -> None:
        if event in OUTSIDE:
            self._events.append(event)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Runs a test, with what its fixtures did before it counted as well."""
        began = time.process_time()
        yield
        seconds = time.process_time() - began
        if any(item.get_closest_marker(tier) for tier in TIERS):
            return
        if seconds > MOST_SECONDS:
            pytest.fail(f"it takes {seconds:.1f} s of processor time: mark it `proofs`", pytrace=False)
        if self._events and not is_real(item):
            pytest.fail(f"mark it `sockets`: {', '.join(sorted(set(self._events)))}", pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        """Forgets what the tests before it have done."""
        self._events.clear()
        yield
