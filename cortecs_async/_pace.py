"""How soon to look again at an instance that is waited for. Pure: the time is handed in."""

from __future__ import annotations

from attrs import define

from ._config import PollPolicy
from ._domain import Instance, Progress

# Numbers beyond are none of steps.
_MOST_STEPS = 10_000


def poll_interval(elapsed: float, policy: PollPolicy, *, distance: float | None = None) -> float:
    """Seconds until the next look.

    Args:
        elapsed: Seconds waited so far.
        policy: The limits.
        distance: Seconds between now and the time at which the end is expected, before or after it: the
            nearer, the sooner; None when nothing is expected. Never later than without it.
    """
    reach = elapsed if distance is None else min(elapsed, distance)
    return min(max(policy.min_interval, policy.growth * reach), policy.max_interval)


@define
class Steps:
    """When the steps of a start were seen, and when they let its end be expected.

    What a step is, and that they take equally long, is not documented: so nothing but the pace of looking
    depends on it, and that within its limits.
    """

    _first: tuple[int, float] | None = None  # a step, and when it was seen first
    _last: tuple[int, float] | None = None
    _count: int = 0

    def note(self, instance: Instance | None, now: float) -> None:
        """Takes a reading made at `now`."""
        if instance is None or instance.is_usable:
            self._first = self._last = None
            return
        leading = Progress(instance=instance, elapsed=0.0).leading
        if not 0 <= leading.current_step <= leading.num_steps <= _MOST_STEPS:
            self._first = self._last = None
            return
        self._count = leading.num_steps
        if self._last is None or leading.current_step < self._last[0]:
            self._first = self._last = (leading.current_step, now)
        elif leading.current_step > self._last[0]:
            self._last = (leading.current_step, now)

    def distance(self, now: float) -> float | None:
        """Seconds between now and the expected end; None before two steps were seen."""
        if self._first is None or self._last is None or self._first[0] == self._last[0]:
            return None
        done, seen = self._last
        each = (seen - self._first[1]) / (done - self._first[0])
        # It runs with the last step, or with its end.
        left = max(self._count - done, 1 if done == self._count else 0)
        return abs(seen + each * left - now)
