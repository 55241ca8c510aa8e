"""Limit the parallel requests to an endpoint, and find the best limit. No clock, no I/O."""

from __future__ import annotations

from typing_extensions import override

# The share of rejections that lowers the limit. Random rejections stay below it, and an overloaded server
# rejects nearly all requests above its own limit.
_REJECTED_SHARE = 0.3

# Minimum seconds between two decreases.
_DECREASE_INTERVAL = 1.0

# The throughput is measured over windows. A window takes at least this many seconds and has at least this
# many outcomes, or four times the limit if that is less, but never fewer than the limit.
_MIN_OUTCOMES = 32
_MIN_SECONDS = 0.05

# The maximum of new connections in one increase, and of windows between two trials.
_MAX_STEP = 512
_MAX_PAUSE = 32

# A trial multiplies the limit by at most `_FAST` if a window takes up to a second, by at most `_GROWTH` if it
# takes longer, and by at most `_QUICK` if even a short window has more than four outcomes per slot, because
# opening many connections then takes longer than the answers. After a failed trial, `_HIGHER` and `_LOWER`
# take turns.
_FAST = 16.0
_GROWTH = 2.0
_QUICK = 4.0
_HIGHER = 1.25
_LOWER = 0.8

# A trial pays off if the new throughput is at least the old one times its factor to this power: doubling the
# limit must raise the throughput by 23%, and a limit of 80% may lower it by 6%.
_GAIN = 0.3


class ConcurrencyLimit:
    """A fixed limit of parallel requests, at least 1."""

    def __init__(self, value: int) -> None:
        self.value = value

    def record_answer(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        """Record an answer of size `work`, in any unit, to a request sent at `began`.

        `is_full` means that about as many requests as the limit allows were in flight.
        """

    def record_rejection(self, now: float, began: float) -> None:
        """Record that a request sent at `began` failed, perhaps because there were too many."""


class AdaptiveLimit(ConcurrencyLimit):
    """A limit that tries different values, each for one window, and keeps the ones that pay off.

    After a failed trial, it returns to the proven value and waits before the next trial. Too many rejections
    lower the proven value.
    """

    def __init__(self, *, initial: int = 32, highest: int = 1024) -> None:
        super().__init__(min(initial, highest))
        self._highest, self._is_in_use = highest, True
        self._lowered_at = self._changed_at = float("-inf")
        self._restart(None)
        self._accept(0.0, _FAST)

    def _restart(self, now: float | None) -> None:
        self._since: float | None = now
        self._outcomes = self._rejected = 0
        self._work = 0.0

    def _accept(self, rate: float, factor: float) -> None:
        self._proven, self._rate, self._factor = self.value, rate, factor
        self._failed_trials = self._pause = 0

    @override
    def record_answer(self, now: float, began: float, work: float, *, is_full: bool) -> None:
        # A higher limit is in use from the first answer to a request sent after the change, because the
        # connections are open by then. A lower one is in use once all earlier requests are answered.
        is_new = began >= self._changed_at
        self._is_in_use = is_new or (self._is_in_use and self.value >= self._proven)
        if is_full and self._is_in_use:
            self._work += work
            self._record(now, began)
        else:
            self._restart(now)

    @override
    def record_rejection(self, now: float, began: float) -> None:
        if began >= self._changed_at:
            self._rejected += 1
            self._record(now, began)

    def _record(self, now: float, began: float) -> None:
        self._since = began if self._since is None else self._since
        self._outcomes += 1
        size, seconds = max(self.value, min(_MIN_OUTCOMES, 4 * self.value)), max(now - self._since, 1e-9)
        is_rejected = self._rejected >= _REJECTED_SHARE * max(self._outcomes, size)
        if is_rejected or (self._outcomes >= size and seconds >= _MIN_SECONDS):
            accepted_share, rate = 1 - self._rejected / self._outcomes, self._work / seconds
            growth = _GROWTH if seconds > 1.0 else _FAST if self._outcomes <= 4 * self.value else _QUICK
            self._restart(now)
            if self.value != self._proven:
                self._end_trial(now, None if is_rejected else rate, growth)
            elif is_rejected:
                self._decrease(now, accepted_share)
            else:
                self._rate = (self._rate + rate) / 2 if self._rate else rate
                self._pause -= 1
                if self._pause <= 0:
                    self._try(now, growth)

    def _end_trial(self, now: float, rate: float | None, growth: float) -> None:
        if rate is not None and rate >= self._rate * (self.value / self._proven) ** _GAIN:
            self._accept(rate, self._factor**2 if self._factor > 1 else _LOWER)
            self._try(now, growth)
        else:
            self._failed_trials += 1
            self._pause = min(2**self._failed_trials, _MAX_PAUSE)
            self._factor = _LOWER if self._factor == _HIGHER else _HIGHER
            self._set(now, self._proven)

    def _decrease(self, now: float, accepted_share: float) -> None:
        if now - self._lowered_at >= _DECREASE_INTERVAL:
            self._lowered_at = now
            self._set(now, int(self.value * max(0.5, accepted_share)))
            self._accept(0.0, _FAST)  # to return quickly, because the cause may be temporary

    def _try(self, now: float, growth: float) -> None:
        self._factor = min(self._factor, growth)
        self._set(now, int(self._proven * self._factor) + (self._factor > 1))
        if self.value == self._proven:  # the lowest or the highest value
            self._factor = _LOWER if self._factor > 1 else _HIGHER

    def _set(self, now: float, value: int) -> None:
        self.value = max(1, min(value, self.value + _MAX_STEP, self._highest))
        self._changed_at, self._is_in_use = now, False
        self._restart(now)
