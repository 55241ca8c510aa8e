"""The billing rule: each worker is billed for every interval that starts."""

from __future__ import annotations

import math

_INTERVAL_SECONDS = {"per_minute": 60.0, "per_hour": 3600.0}


def interval_seconds(billing_interval: str | None) -> float:
    return _INTERVAL_SECONDS.get(billing_interval or "", 60.0)


def intervals_begun(seconds: float, billing_interval: str | None) -> int:
    return max(1, math.ceil(seconds / interval_seconds(billing_interval) - 1e-9))


def cost_of(intervals: int, interval_price: float) -> float:
    """Return the cost of intervals. Rounded, so that it is the same wherever it is shown or added up."""
    return round(intervals * interval_price, 6)
