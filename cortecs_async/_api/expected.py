"""Instances this client just started or restarted, which readings may not show yet."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container

import anyio
from attrs import define, field

from .domain import Instance

# A new instance can be missing, and a restarted one can look stopped, for this many times
# `PollPolicy.settle`: reading lags behind writing by an undocumented time.
VISIBILITY_FACTOR = 6


@define
class ExpectedInstances:
    """The instances a client recently started or restarted."""

    # By id, the oldest first: until when readings may be outdated, the instance, and whether it was stopped
    # before.
    _expected: OrderedDict[str, tuple[float, Instance, bool]] = field(factory=OrderedDict)
    # The ones that a reading has shown to be active.
    _seen: set[str] = field(factory=set)

    def add(self, instance: Instance, until: float, *, was_stopped: bool) -> None:
        """Record that an instance was started or restarted.

        Until `until`, in seconds of `anyio.current_time`, readings may be older than the start request.
        """
        self.discard(instance.instance_id)  # so that it moves to the end
        self._expected[instance.instance_id] = (until, instance, was_stopped)
        # Only the first ones, not all: thousands may be expected at the same time.
        now = anyio.current_time()
        while self._expected:
            oldest, (visible_at, _, _) = next(iter(self._expected.items()))
            if visible_at > now:
                break
            self.discard(oldest)

    def discard(self, *instance_ids: str) -> None:
        """Record that instances were stopped or deleted, which readings may show from now on."""
        for instance_id in instance_ids:
            self._expected.pop(instance_id, None)
            self._seen.discard(instance_id)

    def note_active(self, instance_id: str) -> None:
        """Record that a reading has shown an instance to be active."""
        if instance_id in self._expected:
            self._seen.add(instance_id)

    def visible_at(self, instance_id: str) -> float:
        """Return until when an instance may be invisible; minus infinity once a reading has shown it."""
        if instance_id in self._seen or instance_id not in self._expected:
            return -math.inf
        return self._expected[instance_id][0]

    def not_visible(self, existing: Container[str]) -> list[Instance]:
        """Return the started instances that are not visible yet and not in `existing`."""
        now = anyio.current_time()
        return [
            instance
            for key, (_, instance, was_stopped) in self._expected.items()
            if not was_stopped and self.visible_at(key) > now and key not in existing
        ]

    def may_be_outdated(self, instance_id: str, reading: Instance | None, now: float) -> bool:
        """Return whether a reading may be older than the request that started or restarted the instance.

        A missing instance can be outdated even after another reading has shown it: one replica may lag behind
        another.
        """
        if instance_id not in self._expected:
            return False
        until, _, was_stopped = self._expected[instance_id]
        return now < until and (reading is None or (was_stopped and instance_id not in self._seen))
