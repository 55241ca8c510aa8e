"""Grids of parameters: the default tier runs a part that finds almost as much, `nightly` runs the rest.

Most defects show with one value, or with two together (Kuhn, Wallace and Gallo, "Software fault interactions
and implications for software testing", 2004). So the default tier has few rows, and each pair of values is in
one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

BACKENDS = ("asyncio", "trio")


def grid(*, strength: int = 2, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test with a grid, and marks `nightly` what the rest of it covers.

    Args:
        strength: How many values are seen together: with 1 each value is in some row, with 2 each pair.
        **axes: The values of each parameter. `anyio_backend=BACKENDS` makes the backend one of them, so that
            the other values need not be tried on both.
    """
    values = [list(axis) for axis in axes.values()]
    rows = list(itertools.product(*(range(len(axis)) for axis in values)))
    chosen = covering(rows, min(strength, len(values)))
    return pytest.mark.parametrize(
        tuple(axes),
        [
            pytest.param(
                *(axis[index] for axis, index in zip(values, row, strict=True)),
                marks=[] if row in chosen else [pytest.mark.nightly],
            )
            for row in rows
        ],
        indirect=[name for name in axes if name == "anyio_backend"],
    )


def first(number: int, values: Iterable[Any]) -> list[Any]:
    """The values for a parameter, of which those behind the first few are marked `nightly`."""
    every = list(values)
    return [*every[:number], *(pytest.param(value, marks=pytest.mark.nightly) for value in every[number:])]


def covering(rows: Sequence[tuple[int, ...]], strength: int) -> set[tuple[int, ...]]:
    """Few of the rows that together have every combination of `strength` values, chosen greedily."""

    def combinations(row: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(row), strength))

    missing = set[tuple[tuple[int, int], ...]]().union(*map(combinations, rows))
    chosen: set[tuple[int, ...]] = set()
    while missing:
        best = max(rows, key=lambda row: len(combinations(row) & missing))
        chosen.add(best)
        missing -= combinations(best)
    return chosen
