"""Grids of parameters: the default tier runs a few rows, and `nightly` runs the rest.

One value, or a pair of values, triggers most defects (Kuhn, Wallace, and Gallo, "Software fault interactions
and implications for software testing", 2004). So the default tier runs few rows, but enough of them to
include each pair of values.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

BACKENDS = ("asyncio", "trio")


def grid(*, strength: int = 2, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test with every combination of values. Mark the ones that add little as `nightly`.

    Args:
        strength: With 1, each value is in an unmarked row. With 2, each pair of values is.
        **axes: The values of each parameter. `anyio_backend=BACKENDS` makes the backend one of them, so that
            the test does not run every row on both backends.
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
    """Parametrize an async test whose backend does not matter. Backends take turns, one per row.

    Args:
        names: The parameters, separated by commas.
        rows: The value of each row, or a tuple of values if there is more than one name.
        ids: Returns the id for a value, as in `pytest.mark.parametrize`.
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
"""Runs an async test whose backend does not matter on asyncio only."""


def covering(rows: Sequence[tuple[int, ...]], strength: int) -> set[tuple[int, ...]]:
    """Greedily choose a few rows that together contain every combination of `strength` values.

    Among rows that add equally many combinations, choose the one whose values and pairs of values have
    occurred least so far. This makes a short axis, such as the backend, alternate.
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
