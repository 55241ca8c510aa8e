"""The content of lists and of requests for one instance. It can lag behind the account's true state."""

from collections.abc import Iterable

import attrs

from cortecs_async.emulator._instance import EPSILON, Instance


@attrs.define
class Replicas:
    """Servers that respond in turn, each with its own lag in seconds."""

    lags: tuple[float, ...]
    answers: int = 0
    """The number of responses so far."""

    def view_time(self, now: float) -> float:
        """Count a response and return the time of the state that it shows."""
        lag = self.lags[self.answers % len(self.lags)]
        self.answers += 1
        return now - lag


def as_of(instance: Instance, at: float) -> Instance | None:
    """Return an instance as it was at an earlier time, or None if it did not exist then."""
    if instance.deleted_at is not None and instance.deleted_at <= at + EPSILON:
        return None
    runs = [run for run in instance.runs if run.started_at <= at + EPSILON]
    if not runs:
        return None
    requested_at = runs[-1].stop_requested_at
    if requested_at is not None and requested_at > at + EPSILON:
        runs[-1] = attrs.evolve(runs[-1], stop_requested_at=None, stopped_at=None)
    return attrs.evolve(instance, runs=tuple(runs), deleted_at=None)


def all_as_of(existing: Iterable[Instance], deleted: dict[str, Instance], at: float) -> list[Instance]:
    """Return the instances that existed at an earlier time, oldest first.

    Args:
        existing: The instances that exist now.
        deleted: The deleted instances, in the order of their deletion.
        at: The earlier time.
    """
    views = [view for instance in existing if (view := as_of(instance, at)) is not None]
    for instance in reversed(deleted.values()):
        if instance.deleted_at is not None and instance.deleted_at <= at:
            break
        if (view := as_of(instance, at)) is not None:
            views.append(view)
    views.sort(key=lambda view: view.number)
    return views
