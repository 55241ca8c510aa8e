"""Limit the parallel requests to an endpoint, and find the best limit. Pure: no clock, no I/O.

More parallel requests mean more answers per second, up to a point that depends on the model, the hardware and
the texts. `AdaptiveLimit` doubles the limit while that pays off. Then it keeps the best one, and now and then
probes a slightly higher or lower one. A rejection (429, or 503 while the endpoint is up) lowers it by 30 %.
"""

from __future__ import annotations

import enum
import math

from attrs import define
from typing_extensions import override

from .._aio.synchronization import exponential

# The throughput that makes an increase worth keeping, relative to before: of a doubling, and of a small one.
_DOUBLING_GAIN = 1.2
_SMALL_GAIN = 1.05

# The throughput that a decrease must keep.
_TOLERATED_LOSS = 0.98

# The factors of a decrease after a rejection, and of a probe.
_DECREASE = 0.7
_PROBE_STEP = 1.25

# Windows between two probes, doubled after each probe that did not pay off.
_MIN_PROBE_INTERVAL = 4
_MAX_PROBE_INTERVAL = 64

# Seconds between two decreases, at least.
_MIN_DECREASE_INTERVAL = 1.0

# Up to this limit, only higher ones are probed.
_LOW_LIMIT = 8

# Answers in a window, at least.
_MIN_WINDOW = 16


class ConcurrencyLimit:
    """A fixed limit of parallel requests, at least 1."""

    def __init__(self, value: int) -> None:
        self.value = value

    def record_answer(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        """Record that a request of the size `work`, in any unit, was answered.

        Unless `is_full`, the limit was not in use, and the answer says nothing about it.
        """

    def record_rejection(self, now: float, began: float) -> None:
        """Record that a request was rejected because there were too many."""


class _Phase(enum.Enum):
    GROW = "grow"
    HOLD = "hold"
    PROBE = "probe"


@define
class _Window:
    """Answers since the limit was set."""

    since: float
    began: float | None = None  # the first answer to a request that was sent under this limit
    count: int = 0
    work: float = 0.0
    latency: float = 0.0

    def rate(self, now: float) -> float:
        return self.work / max(now - (self.since if self.began is None else self.began), 1e-9)


@define
class _Measurement:
    limit: int
    rate: float
    latency: float


class AdaptiveLimit(ConcurrencyLimit):
    """A limit that adapts to the endpoint."""

    def __init__(self, *, initial: int = 32, highest: int = 1024) -> None:
        super().__init__(min(initial, highest))
        self._highest = highest
        self._phase = _Phase.GROW
        self._window: _Window | None = None
        self._best: _Measurement | None = None
        self._failed_probes = 0  # in a row
        self._held_windows = 0
        self._probes_upward = True
        self._lowered_at = float("-inf")
        self._latency = 0.0
        self._rejected_value = math.inf

    @override
    def record_answer(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        window = self._window
        if window is None or not is_full:
            self._window = _Window(since=now)
            return
        if window.began is None:
            # Skip the answers to requests that were sent under another limit.
            if began >= window.since:
                window.began = now
            return
        self._latency += (now - began - self._latency) / 8
        window.count += 1
        window.work += work
        window.latency += now - began
        if window.count >= max(self.value, min(_MIN_WINDOW, 4 * self.value)):
            measured = _Measurement(self.value, window.rate(now), window.latency / window.count)
            self._window = _Window(since=now, began=now)
            self._reconsider(now, measured)

    @override
    def record_rejection(self, now: float, began: float) -> None:
        # Requests sent before the last decrease say nothing about the present limit. And immediate rejections
        # come so fast that several may have the same cause.
        if began >= self._lowered_at and now - self._lowered_at >= max(_MIN_DECREASE_INTERVAL, self._latency):
            self._lowered_at = now
            self._best = None
            self._rejected_value = self.value
            self._probes_upward = False
            self._hold(now, int(self.value * _DECREASE))

    def _reconsider(self, now: float, measured: _Measurement) -> None:
        best = self._best
        if best is None:
            self._best = measured
            if self._phase is _Phase.GROW:
                self._set(now, self.value * 2)
        elif self._phase is _Phase.GROW:
            if measured.rate < best.rate * _DOUBLING_GAIN:
                # The server is saturated: answers only take longer.
                self._best = measured if measured.rate >= best.rate * _SMALL_GAIN else best
                self._hold(now, self._best.limit)
            else:
                self._best = measured
                self._grow(now)
        elif self._phase is _Phase.PROBE:
            self._end_probe(now, measured, best)
        else:
            self._continue_hold(now, measured, best)

    def _grow(self, now: float) -> None:
        if self.value < self._highest:
            self._set(now, self.value * 2)
        else:
            self._phase = _Phase.HOLD

    def _continue_hold(self, now: float, measured: _Measurement, best: _Measurement) -> None:
        if measured.latency > 2 * best.latency and measured.rate < 0.9 * best.rate:
            # The server has become slower, and so its best limit is lower.
            self._best = None
            self._hold(now, int(self.value * _DECREASE))
            return
        # An average, because the length of the texts varies.
        self._best = _Measurement(
            self.value, (best.rate + measured.rate) / 2, (best.latency + measured.latency) / 2
        )
        self._held_windows += 1
        interval = exponential(self._failed_probes, first=_MIN_PROBE_INTERVAL, limit=_MAX_PROBE_INTERVAL)
        if self._held_windows >= interval:
            self._phase = _Phase.PROBE
            self._probes_upward = not self._probes_upward or self.value <= _LOW_LIMIT
            step = int(self.value * _PROBE_STEP) + 1 if self._probes_upward else int(self.value / _PROBE_STEP)
            self._set(now, step)

    def _end_probe(self, now: float, measured: _Measurement, best: _Measurement) -> None:
        required = _SMALL_GAIN if self._probes_upward else _TOLERATED_LOSS
        if measured.limit == best.limit or measured.rate < best.rate * required:
            self._failed_probes += 1
            self._hold(now, best.limit)
            return
        self._best = measured
        self._failed_probes = 0
        if self._probes_upward and self.value * 2 <= self._rejected_value:
            # The server can handle more than before: grow as at the beginning.
            self._phase = _Phase.GROW
            self._grow(now)
        else:
            # Probe in the same direction again.
            self._probes_upward = not self._probes_upward
            self._hold(now, measured.limit)

    def _hold(self, now: float, value: int) -> None:
        self._phase = _Phase.HOLD
        self._held_windows = 0
        self._set(now, value)

    def _set(self, now: float, value: int) -> None:
        value = max(1, min(value, self._highest))
        if value != self.value:
            self.value = value
            self._window = _Window(since=now)
