"""Fleets on a Dask cluster of two workers, each in its own process."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import _fleets
import pytest
from _world import MODEL
from distributed import Client, LocalCluster

from cortecs_async.integrations.dask import fan_out

pytestmark = pytest.mark.sockets


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def _machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of the workers."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OPENAI_API_KEY", "emulator-key")


@asynccontextmanager
async def workers() -> AsyncIterator[tuple[LocalCluster, Client]]:
    async with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        yield cluster, client


@pytest.mark.usefixtures("_machines")
async def test_custom_tasks() -> None:
    names = {"__name__": "__main__"}
    # The function, without the decorator that makes it a Ray task.
    function = _fleets.block_of("@ray.remote").partition("@ray.remote")[2].partition("async def")[0]
    exec(f"from openai import OpenAI\n{function}", names)  # noqa: S102
    ask, questions = names["ask"], ["Why is the sky blue?", "Why is grass green?"]
    async with workers() as (_, cluster), _fleets.service() as (emulator, client):
        async with client.instance(MODEL) as inst:
            first, second = await cluster.gather(cluster.map(ask, [inst.handle] * len(questions), questions))
        assert emulator.existing == ()
    assert questions[0] in first
    assert questions[1] in second


@pytest.mark.usefixtures("_machines")
async def test_a_fleet(tmp_path: Path) -> None:
    async with workers() as (_, client):
        spread = partial(fan_out, dask=client)
        assert len(await _fleets.answer_all(spread)) > 1
        await _fleets.run_custom_work(spread)
        await _fleets.lose_a_worker(spread, tmp_path)
        await _fleets.lose_an_instance(spread)
        await _fleets.raise_in_work(spread)
        await _fleets.return_nonsense(spread)


@pytest.mark.usefixtures("_machines")
async def test_a_cancelled_driver_leaves_nothing(tmp_path: Path) -> None:
    async with workers() as (_, client):
        await _fleets.time_out(partial(fan_out, dask=client), tmp_path)
    async with workers() as (_, client):
        await _fleets.cancel(partial(fan_out, dask=client), tmp_path)


@pytest.mark.usefixtures("_machines")
async def test_a_killed_driver_leaves_nothing_and_the_next_continues(tmp_path: Path) -> None:
    async with workers() as (cluster, _):
        program = _fleets.block_of("integrations.dask")
        await _fleets.kill_the_driver(
            program, tmp_path, DASK_SCHEDULER_ADDRESS=cluster.scheduler_address, HOME=str(tmp_path)
        )
