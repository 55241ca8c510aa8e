"""Suggestions for a mistyped name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from .. import _hints

# Minimum similarity (0 to 1), and the largest distance from the best match.
_LEAST, _WORSE = 0.6, 0.1


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most like a name, the best first. Upper and lower case are alike."""
    likeness = {each: SequenceMatcher(None, name.lower(), each.lower()).ratio() for each in known}
    best = max(likeness.values(), default=0.0)
    similar = [each for each, value in likeness.items() if value >= max(_LEAST, best - _WORSE)]
    return sorted(similar, key=lambda each: -likeness[each])


def did_you_mean(names: Sequence[str]) -> str:
    """Return the sentence that suggests these names, after a space. Empty without names."""
    return f" {_hints.did_you_mean(names)}" if names else ""
