"""Grids of parameters: the default tier runs a part that finds almost as much, `nightly` runs the rest.

Most defects show with one value, or with two together (Kuhn, Wallace and Gallo, "Software fault interactions
and implications for software testing", 2004). So the default tier has few rows, and each pair of values is in
one of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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


def alternating(
    names: str, rows: Iterable[Any], *, ids: Callable[[Any], object] = lambda value: None
) -> pytest.MarkDecorator:
    """Parametrizes an async test whose backend does not matter: each row runs on one, in turn.

    Args:
        names: The parameters, separated by commas.
        rows: The value of each row, or a tuple of them when there is more than one name.
        ids: What stands for a value in the name of the test, as pytest has it.
    """
    several = "," in names
    return pytest.mark.parametrize(
        f"{names},anyio_backend",
        [
            (*(row if several else (row,)), backend)
            for row, backend in zip(rows, itertools.cycle(BACKENDS), strict=False)
        ],
        ids=lambda value: value if value in BACKENDS else ids(value),
        indirect=["anyio_backend"],
    )


on_one_backend = pytest.mark.parametrize("anyio_backend", BACKENDS[:1], indirect=True)
"""For an async test whose backend does not matter."""


def first(number: int, values: Iterable[Any]) -> list[Any]:
    """The values for a parameter, of which those behind the first few are marked `nightly`."""
    every = list(values)
    return [*every[:number], *(pytest.param(value, marks=pytest.mark.nightly) for value in every[number:])]


def covering(rows: Sequence[tuple[int, ...]], strength: int) -> set[tuple[int, ...]]:
    """Few of the rows that together have every combination of `strength` values, chosen greedily.

    Of rows that bring as much, the one is taken whose values were seen least, alone and in pairs. So a short
    axis, such as the backend, takes turns.
    """

    def combinations(row: tuple[int, ...], size: int = strength) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(row), size))

    def seen_before(row: tuple[int, ...]) -> int:
        return sum(seen[each] for size in (1, 2) for each in combinations(row, size))

    missing = set[tuple[tuple[int, int], ...]]().union(*map(combinations, rows))
    chosen: set[tuple[int, ...]] = set()
    seen = Counter[tuple[tuple[int, int], ...]]()
    while missing:
        best = max(rows, key=lambda row: (len(combinations(row) & missing), -seen_before(row)))
        chosen.add(best)
        seen.update(combinations(best, 1) | combinations(best, 2))
        missing -= combinations(best)
    return chosen
