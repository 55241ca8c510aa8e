"""Suggestions for a mistyped name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Minimum similarity (0 to 1), and maximum distance from the best match.
_LEAST, _WORSE = 0.62, 0.1


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names most similar to a name, best first. Case is ignored."""
    from difflib import SequenceMatcher  # noqa: PLC0415  (only for a mistake)

    likeness = {each: SequenceMatcher(None, name.lower(), each.lower()).ratio() for each in known}
    best = max(likeness.values(), default=0.0)
    similar = [each for each, value in likeness.items() if value >= max(_LEAST, best - _WORSE)]
    return sorted(similar, key=lambda each: -likeness[each])


def did_you_mean(names: Sequence[str]) -> str:
    """Return a space and the sentence that suggests these names, or an empty string without names."""
    from .. import _hints  # noqa: PLC0415  (only for a mistake)

    return f" {_hints.did_you_mean(names)}" if names else ""
