"""Test which rows of a grid the default tier runs."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import trio
from _grids import alternating, covering, grid, on_one_backend


@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 7, 4, 3), (5,), (1, 1, 6)])
@pytest.mark.parametrize("strength", [1, 2])
def test_every_combination_is_in_a_chosen_row(sizes: tuple[int, ...], strength: int) -> None:
    rows = list(itertools.product(*map(range, sizes)))
    strength = min(strength, len(sizes))

    chosen = covering(rows, strength)

    for places in itertools.combinations(range(len(sizes)), strength):
        seen = {tuple(row[place] for place in places) for row in chosen}
        assert seen == set(itertools.product(*(range(sizes[place]) for place in places)))


def test_covering_rows_are_few() -> None:
    rows = list(itertools.product(range(4), range(4), range(4), range(4)))
    assert len(covering(rows, 2)) <= 24
    assert len(covering(rows, 1)) == 4


def test_a_short_axis_takes_turns() -> None:
    chosen = covering(list(itertools.product(range(20), range(2), range(2))), 1)
    assert Counter(row[1:] for row in chosen) == dict.fromkeys(itertools.product(range(2), range(2)), 5)


def test_the_other_rows_are_marked_nightly() -> None:
    mark = grid(strength=1, letter="ab", number=(1, 2, 3)).mark
    names, params = mark.args
    assert names == ("letter", "number")
    assert [each.values for each in params] == list(itertools.product("ab", (1, 2, 3)))
    assert sum(not each.marks for each in params) == 3


def test_rows_run_on_one_backend_in_turn() -> None:
    assert alternating("letter", "abc").args[1] == [("a", "asyncio"), ("b", "trio"), ("c", "asyncio")]
    assert alternating("letter,number", [("a", 1)]).args[1] == [("a", 1, "asyncio")]


@alternating("wanted", ["asyncio", "trio"])
async def test_a_row_runs_on_its_own_backend(wanted: str) -> None:
    assert trio.lowlevel.in_trio_run() is (wanted == "trio")


@on_one_backend
async def test_on_one_backend_runs_once(request: pytest.FixtureRequest) -> None:
    assert request.node.name == "test_on_one_backend_runs_once[asyncio]"
