"""Parse a price from `price_info`. Its keys are undocumented, so only ones with clear words are parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

Unit = Literal["minute", "hour"]

_UNITS: dict[str, Unit] = {"minute": "minute", "hour": "hour", "hourly": "hour"}
_CENTS = {"cent", "cents", "ct"}
_CURRENCIES = {"eur", "usd"}
_FILLERS = {"price", "cost", "rate", "per", "in"}

# In a text next to the prices, these words may mean that a price is not what its key says.
_DOUBTS = {*_CENTS, "unit", "units"}


def read_price(price_info: Mapping[str, Any], unit: Unit) -> float | None:
    """Return the price of one GPU set per minute or hour, or None if it is unclear.

    `HardwareType.price_per_minute` documents which keys are parsed.
    """
    prices: dict[Unit, list[float]] = {"minute": [], "hour": []}
    for key, value in price_info.items():
        if isinstance(value, (str, bool)):
            if not _DOUBTS.isdisjoint(re.findall("[a-z]+", f"{key} {value}".lower())):
                return None
        elif isinstance(value, (int, float)) and 0 <= value < 1e15:
            words = _words(key)
            if found := _unit(words, price_info.get("currency")):
                prices[found].append(value if _CENTS.isdisjoint(words) else value / 100)
    other: Unit = "minute" if unit == "hour" else "hour"
    if prices[unit]:
        price = _agreed(prices[unit], 1.0)
    else:
        price = _agreed(prices[other], 60.0 if unit == "hour" else 1 / 60)
    # A zero may stand for a price that is not set. A budget would then last forever.
    return price or None


def _words(key: str) -> list[str]:
    """Return the words of `price_per_minute`, `pricePerMinute`, `price-per-minute`, or `EUR/minute`."""
    return re.split(r"[\s_./-]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", key).strip().lower())


def _unit(words: list[str], currency: object) -> Unit | None:
    """Return the time unit of a price with these words, or None unless every word is clear."""
    units = [word for word in words if word in _UNITS]
    currencies = _CURRENCIES.intersection(words)
    if currency and isinstance(currency, str) and currencies - {currency.lower()}:
        return None
    is_clear = len(units) == 1 and _FILLERS | _CENTS | currencies >= {*words} - {*units}
    return _UNITS[units[0]] if is_clear else None


def _agreed(prices: list[float], factor: float) -> float | None:
    if not prices or not math.isclose(min(prices), max(prices), rel_tol=1e-6):
        return None
    return max(prices) * factor
