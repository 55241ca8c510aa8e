"""Find the requests that make a server fail. No clock, no I/O.

When a request makes the server stop, all others in flight fail with it, and none of these failures shows
which request caused it. So a failure counts against its request only if the server answered another request
that was in flight at that time, which shows that the server had not stopped. Requests that fail together with
all others twice become suspects. Suspects are tested with no other requests in flight: first in groups, and
each group that fails together is divided by eight, down to single requests.

Timeouts count the same way, except that a probe decides if all requests in flight timed out: a hanging server
does not answer the probe, and a merely slow one does. A hang that ends before the first timeout is not
noticed.

With n requests in flight, a request that always stops the server does so at most 2 + ceil(log8 n) + 2 times:
twice until it is a suspect, once in each group, and twice alone. This does not hold if requests in flight get
a 503 when the server stops. A 503 counts as a rejection, so the server may stop a few more times.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from attrs import define, field

from .format import Request
from .outcome import FailureReason

T = TypeVar("T")

# A request is a suspect after this many failures together with all others in flight.
_MAX_JOINT_FAILURES = 2

# A failed group is divided by this number.
_DIVISOR = 8

# Failures of a request on its own after which it gets an error line: if the server stopped, and if it kept
# running. After two joint failures, the second limit makes six attempts, as many as the default of
# `max_retries` allows.
_MAX_CRASHES = 2
_MAX_SOLO_FAILURES = 4

# Attempts without a connection, and rejections in tests, that do not count against a request. They are
# limited so that no request is retried forever.
_MAX_UNSENT = 16
_MAX_REJECTIONS = 16

# A request's own timeouts after which it gets an error line. The limit is low, because each timeout takes the
# full time of an attempt, and a model that did not finish once rarely finishes the next time.
_MAX_TIMEOUTS = 2

# Failures that a server may cause for all of its requests when it stops, while other servers behind the same
# URL continue.
_MAY_BE_CRASH = frozenset({FailureReason.LOST, FailureReason.UNAVAILABLE})

REJECTIONS = frozenset({FailureReason.RATE_LIMITED, FailureReason.UNAVAILABLE})


class NextStep(enum.Enum):
    RETRY = enum.auto()
    AWAIT_VERDICT = enum.auto()  # keep it until it is known whether others failed with it
    SUSPECT = enum.auto()  # test it with no other requests in flight
    SPLIT = enum.auto()  # test it again, in a smaller group
    TEST_AGAIN = enum.auto()
    GIVE_UP = enum.auto()  # write an error line


@define(eq=False)
class InFlight(Generic[T]):
    """The attempts in flight on one endpoint, and the failures that answers to other requests may explain.

    A verdict is a failure and whether it was joint, which means that all attempts in flight at that time
    ended without an answer. Each call takes amortized constant time.
    """

    _ticks: int = 0
    _attempts: OrderedDict[int, None] = field(factory=OrderedDict)  # by start tick, oldest first
    _failures: deque[tuple[int, T]] = field(factory=deque)  # without a verdict, oldest first

    def __len__(self) -> int:
        return len(self._attempts)

    @property
    def last(self) -> int:
        """The number of the last attempt, or a greater one that is not in use."""
        return self._ticks

    def begin(self) -> int:
        """Return a number for a new attempt."""
        self._ticks += 1
        self._attempts[self._ticks] = None
        return self._ticks

    def record_answer(self, attempt: int) -> Sequence[tuple[T, bool]]:
        """End an answered attempt, and return the verdicts that are now possible."""
        del self._attempts[attempt]
        if not self._failures:
            return ()
        verdicts: list[tuple[T, bool]] = []
        while self._failures and self._failures[-1][0] > attempt:
            verdicts.append((self._failures.pop()[1], False))
        return [*verdicts, *self._joint()]

    def record_failure(self, attempt: int, failure: T) -> Sequence[tuple[T, bool]]:
        """End a failed attempt, perhaps one of several, and return the verdicts that are now possible."""
        del self._attempts[attempt]
        self._ticks += 1
        self._failures.append((self._ticks, failure))
        return self._joint()

    def end(self, attempt: int) -> Sequence[tuple[T, bool]]:
        """End an attempt that does not show whether the server runs, and return the verdicts now possible."""
        del self._attempts[attempt]
        return self._joint()

    def cancel(self, attempt: int) -> None:
        """Remove an attempt that was interrupted because the instance is lost or no longer needed."""
        del self._attempts[attempt]

    def abandon(self) -> list[T]:
        """Return all failures that will not get a verdict because the instance is lost."""
        failures = [failure for _, failure in self._failures]
        self._failures.clear()
        return failures

    def _joint(self) -> list[tuple[T, bool]]:
        oldest = next(iter(self._attempts), math.inf)
        verdicts: list[tuple[T, bool]] = []
        while self._failures and self._failures[0][0] < oldest:
            verdicts.append((self._failures.popleft()[1], True))
        return verdicts


def is_suspect(request: Request) -> bool:
    return request.joint_failures >= _MAX_JOINT_FAILURES


def next_step(request: Request, reason: FailureReason, max_retries: int) -> NextStep:
    """Decide the next step for a request that failed among others, given the reason of its last failure."""
    if is_suspect(request) or request.unsent > _MAX_UNSENT:
        return NextStep.SUSPECT
    if request.timeouts >= _MAX_TIMEOUTS:
        return NextStep.GIVE_UP
    if reason is FailureReason.TIMED_OUT and request.timeouts + request.undecided >= _MAX_TIMEOUTS:
        return NextStep.AWAIT_VERDICT
    if request.own_failures > max_retries:
        return NextStep.SUSPECT if reason in _MAY_BE_CRASH else NextStep.GIVE_UP
    if request.own_failures + request.undecided > max_retries:
        return NextStep.AWAIT_VERDICT
    return NextStep.RETRY


def next_test_step(
    request: Request, reason: FailureReason, max_retries: int, *, alone: bool, is_own: bool, stayed_up: bool
) -> NextStep:
    """Decide the next step for a suspect that failed in a test, and update its counts.

    Args:
        request: The suspect. The failure is already counted, but not yet as a solo failure or a rejection.
        reason: The reason of the failure.
        max_retries: Own failures before the request gets an error line.
        alone: Whether no other request was in flight.
        is_own: Whether it is known that the endpoint did not stop.
        stayed_up: Whether the endpoint answered the first probe after the test.
    """
    if reason is FailureReason.NOT_SENT and request.unsent <= _MAX_UNSENT:
        return NextStep.TEST_AGAIN
    if stayed_up and reason in REJECTIONS and request.rejections < _MAX_REJECTIONS:
        request.rejections += 1
        return NextStep.RETRY
    is_timeout = reason is FailureReason.TIMED_OUT
    if (is_own or (is_timeout and (stayed_up or alone))) and reason not in _MAY_BE_CRASH:
        is_last_timeout = is_timeout and (alone or request.timeouts >= _MAX_TIMEOUTS)
        if is_last_timeout or (not is_timeout and request.own_failures > max_retries):
            return NextStep.GIVE_UP
        request.joint_failures = 0
        return NextStep.RETRY
    if not alone:
        return NextStep.SPLIT
    request.solo_failures += 1
    is_enough = request.solo_failures >= _MAX_CRASHES and (
        not stayed_up or request.failures > max_retries or request.solo_failures >= _MAX_SOLO_FAILURES
    )
    is_over = is_enough or reason is FailureReason.NOT_SENT
    return NextStep.GIVE_UP if is_over else NextStep.TEST_AGAIN


@define(eq=False)
class SuspectGroups:
    """The groups of suspects, tested one group at a time.

    Args:
        limit: Maximum requests in a group.

    Attributes:
        left: The suspects without a decision.
    """

    _limit: int
    left: dict[Request, None] = field(factory=dict)
    _groups: deque[list[Request]] = field(factory=deque)

    def add(self, suspects: Iterable[Request]) -> None:
        self.left.update(dict.fromkeys(suspects))
        self.split(list(self.left))

    def split(self, suspects: Sequence[Request]) -> None:
        """Test suspects in groups of an eighth, or alone if they are fewer than 16."""
        size = max(1, min(len(suspects) // _DIVISOR, self._limit))
        self._groups.extend([*suspects[at : at + size]] for at in range(0, len(suspects), size))

    def test_again(self, suspects: list[Request]) -> None:
        if suspects:
            self._groups.append(suspects)

    def next(self) -> list[Request] | None:
        return self._groups.popleft() if self._groups else None

    def decided(self, request: Request) -> None:
        del self.left[request]
