"""How many requests at once an endpoint is best asked for. Pure: no clock, no I/O.

An LLM server works on many requests together: more of them at once means more answers a second, up to a
point that depends on the model, the hardware and the length of the texts, and that nobody knows beforehand.
So it is found by trying: the number doubles while that pays, and is then kept, with a look now and then
whether a little more or a little less would do better. What says that it is too much, a 429 or a 503, takes
a third off, but not more often than answers can come.
"""

from __future__ import annotations

import enum
import math
from typing import Protocol

from attrs import define

# A step up must bring so much more.
_WORTH_DOUBLING = 1.2
_WORTH_A_LITTLE = 1.05

# A step down may lose no more than this.
_AS_GOOD = 0.98

_LESS = 0.7
_STEP = 1.25

# Windows between two looks whether another number would do better; twice as many after each that did not.
_FIRST_PAUSE = 4
_LONGEST_PAUSE = 64

# Seconds between two steps down at the least.
_LEAST_PAUSE = 1.0

_FEW = 8

# Answers in a window at the least.
_FEWEST = 16


class ConcurrencyLimit(Protocol):
    """How many at once, now."""

    @property
    def value(self) -> int:
        """At least 1."""
        ...

    def answered(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        """A request was answered.

        Args:
            now: Seconds, of any clock.
            began: When it was sent, of the same.
            work: How much it was, in tokens or whatever is counted.
            is_full: Whether as many were under way as may be: otherwise it tells nothing of the limit.
        """
        ...

    def refused(self, now: float, began: float) -> None:
        """A request was refused because there are too many."""
        ...


@define
class FixedLimit:
    """A number that somebody has chosen."""

    value: int

    def answered(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        """Changes nothing."""

    def refused(self, now: float, began: float) -> None:
        """Changes nothing."""


class _Phase(enum.Enum):
    GROW = "grow"
    HOLD = "hold"
    PROBE = "probe"


@define
class _Window:
    """What was seen since a limit was set."""

    since: float
    began: float | None = None  # the first answer to a request that was sent under this limit
    count: int = 0
    work: float = 0.0
    latency: float = 0.0

    def rate(self, now: float) -> float:
        return self.work / max(now - (self.since if self.began is None else self.began), 1e-9)


@define
class _Seen:
    value: int
    rate: float
    latency: float


class AdaptiveLimit:
    """A limit that finds itself.

    Args:
        initial: Where to begin.
        highest: Never more than this.
    """

    def __init__(self, *, initial: int = 32, highest: int = 1024) -> None:
        self._highest = highest
        self._value = min(initial, highest)
        self._phase = _Phase.GROW
        self._window: _Window | None = None
        self._best: _Seen | None = None
        self._pause = _FIRST_PAUSE
        self._held = 0
        self._upward = True
        self._lowered_at = float("-inf")
        self._latency = 0.0
        self._refused = math.inf

    @property
    def value(self) -> int:
        """At least 1."""
        return self._value

    def answered(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        """See `Limit`."""
        window = self._window
        if window is None or not is_full:
            self._window = _Window(since=now)
            return
        if window.began is None:
            # Those before it were answered by a server that had another number of them.
            if began >= window.since:
                window.began = now
            return
        self._latency += (now - began - self._latency) / 8
        window.count += 1
        window.work += work
        window.latency += now - began
        if window.count >= max(self._value, min(_FEWEST, 4 * self._value)):
            seen = _Seen(self._value, window.rate(now), window.latency / window.count)
            self._window = _Window(since=now, began=now)
            self._judge(now, seen)

    def refused(self, now: float, began: float) -> None:
        """See `Limit`."""
        # Of those that were sent before the last step down, the answers say nothing of this limit; and those
        # that are refused at once come too fast to be told apart.
        if began >= self._lowered_at and now - self._lowered_at >= max(_LEAST_PAUSE, self._latency):
            self._lowered_at = now
            self._best = None
            self._refused = self._value
            self._upward = False
            self._hold(now, int(self._value * _LESS))

    def _judge(self, now: float, seen: _Seen) -> None:
        best = self._best
        if best is None:
            self._best = seen
            if self._phase is _Phase.GROW:
                self._set(now, self._value * 2)
            return
        if self._phase is _Phase.GROW:
            if seen.rate < best.rate * _WORTH_DOUBLING:
                # No more answers, only later ones.
                is_better = seen.rate >= best.rate * _WORTH_A_LITTLE
                self._best = seen if is_better else best
                self._hold(now, self._best.value)
            else:
                self._best = seen
                self._grow(now)
        elif self._phase is _Phase.PROBE:
            self._conclude(now, seen, best)
        else:
            self._keep(now, seen, best)

    def _grow(self, now: float) -> None:
        if self._value < self._highest:
            self._set(now, self._value * 2)
        else:
            self._phase = _Phase.HOLD

    def _keep(self, now: float, seen: _Seen, best: _Seen) -> None:
        if seen.latency > 2 * best.latency and seen.rate < 0.9 * best.rate:
            # The server has become slower: what it can do together is less than it was.
            self._best = None
            self._hold(now, int(self._value * _LESS))
            return
        # Texts are longer here and shorter there: what is best is what it was lately.
        self._best = _Seen(self._value, (best.rate + seen.rate) / 2, (best.latency + seen.latency) / 2)
        self._held += 1
        if self._held >= self._pause:
            self._phase = _Phase.PROBE
            # Not downwards where there is hardly anything below.
            self._upward = not self._upward or self._value <= _FEW
            self._set(now, int(self._value * _STEP) + 1 if self._upward else int(self._value / _STEP))

    def _conclude(self, now: float, seen: _Seen, best: _Seen) -> None:
        wanted = _WORTH_A_LITTLE if self._upward else _AS_GOOD
        if seen.value != best.value and seen.rate >= best.rate * wanted:
            self._best = seen
            self._pause = _FIRST_PAUSE
            if self._upward and self._value * 2 <= self._refused:
                # The server can do more than was known: as at the beginning.
                self._phase = _Phase.GROW
                self._grow(now)
            else:
                # It goes on in the direction that was better.
                self._upward = not self._upward
                self._hold(now, seen.value)
        else:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._hold(now, best.value)

    def _hold(self, now: float, value: int) -> None:
        self._phase = _Phase.HOLD
        self._held = 0
        self._set(now, value)

    def _set(self, now: float, value: int) -> None:
        value = max(1, min(value, self._highest))
        if value != self._value:
            self._value = value
            self._window = _Window(since=now)
