"""The time between two polls."""

from __future__ import annotations

from attrs import define

from .._poll_policy import PollPolicy
from .domain import Instance, Progress

# A larger number of steps is treated as an error in the service.
_MAX_STEPS = 10_000


def poll_interval(elapsed: float, policy: PollPolicy, *, distance: float | None = None) -> float:
    """Return the seconds between two polls, after `elapsed` seconds of waiting.

    `distance` is the number of seconds between now and the expected end of the wait, before or after it. The
    closer the end, the shorter the interval. It is never longer than without `distance`. Pass None if the end
    is unknown.
    """
    scale = elapsed if distance is None else min(elapsed, distance)
    return min(max(policy.min_interval, policy.growth * scale), policy.max_interval)


def pause_after(interval: float, seconds: float) -> float:
    """Return the pause after a request that took `seconds`, so that requests begin `interval` seconds apart.

    So the time until a change is noticed depends less on the distance to the service. If the service is slow,
    the pause is still half of the interval. This is only for polls of one instance: lists for many waits are
    expensive, so the pause after a list is the whole interval.
    """
    return max(interval - seconds, interval / 2)


@define
class StepTimes:
    """The times at which startup steps were first seen, to estimate when the instance will be running.

    It is undocumented what a step is and whether all steps take the same time. So only the interval between
    polls depends on this, within the limits of the policy.
    """

    _first: tuple[int, float] | None = None  # a step, and when it was first seen
    _last: tuple[int, float] | None = None
    _count: int = 0

    def record(self, instance: Instance | None, now: float) -> None:
        """Record the step in a reading made at `now`."""
        if instance is None or instance.is_usable:
            self._first = self._last = None
            return
        leading = Progress(instance=instance, elapsed=0.0).leading
        if not 0 <= leading.current_step <= leading.num_steps <= _MAX_STEPS:
            self._first = self._last = None
            return
        self._count = leading.num_steps
        if self._last is None or leading.current_step < self._last[0]:
            self._first = self._last = (leading.current_step, now)
        elif leading.current_step > self._last[0]:
            self._last = (leading.current_step, now)

    def distance(self, now: float) -> float | None:
        """Return the seconds between now and the expected end, or None before two steps were seen."""
        if self._first is None or self._last is None or self._first[0] == self._last[0]:
            return None
        step, seen_at = self._last
        seconds_per_step = (seen_at - self._first[1]) / (step - self._first[0])
        # The instance is running when the last step begins or when it ends.
        steps_left = 1 if step == self._count else self._count - step
        return abs(seen_at + seconds_per_step * steps_left - now)
