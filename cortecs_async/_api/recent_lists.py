"""`RecentLists`: the instances shown by the lists of the last few seconds, and whether the lists agree."""

from __future__ import annotations

import math

from attrs import define, field

from .domain import Instance
from .listing import Listing

# The number of consecutive lists that must show an instance, and for how many seconds they may disagree: a
# lagging replica still shows deleted instances and does not show started ones yet.
_MIN_LISTS, _MAX_LAG = 4, 60.0


@define
class _Listed:
    """The first and last time an instance was listed, and the latest run of lists that show it."""

    instance: Instance
    first: float
    last: float
    since: float
    count: int = 1


@define
class RecentLists:
    """The instances shown by the lists of the last few seconds. A single list may be incomplete.

    Attributes:
        span: Seconds for which an instance is kept after lists no longer show it.
        began: The time the first list was added, in seconds of `anyio.current_time`.
    """

    span: float
    began: float = math.inf
    _newest: float = -math.inf
    _listed: dict[str, _Listed] = field(factory=dict)

    def add(self, instances: Listing[Instance], now: float) -> Listing[Instance]:
        """Add a list. Return it together with the instances that other lists have shown recently."""
        self.began = min(self.began, now)
        previous, self._newest = self._newest, now
        for each in instances:
            listed = self._listed.setdefault(each.instance_id, _Listed(each, now, now, now, 0))
            if listed.last < previous:
                listed.since, listed.count = now, 0
            listed.instance, listed.last, listed.count = each, now, listed.count + 1
        self._listed = {key: value for key, value in self._listed.items() if now - value.last < self.span}
        kept = (listed.instance for listed in self._listed.values())
        return Listing(kept, unreadable=instances.unreadable, date=instances.date)

    def first_listed_at(self, instance: Instance) -> float:
        """Return the time at which a list first showed an instance."""
        return self._listed[instance.instance_id].first

    def agree_on(self, *instance_ids: str, seconds: float) -> bool:
        """Return whether the last lists, several of them and for `seconds`, all show these instances.

        After a minute, it no longer matters if some lists do not show them.
        """
        found = [self._listed[each] for each in instance_ids if each in self._listed]
        return all(
            (each.last == self._newest and each.last - each.since >= seconds and each.count >= _MIN_LISTS)
            or each.last - each.first >= _MAX_LAG
            for each in found
        )
