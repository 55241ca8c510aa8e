"""Dask: a cluster of two workers with processes of their own, and drivers that lease for it."""

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
    """The environment of the workers."""
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
async def test_tasks_of_ones_own() -> None:
    names = {"__name__": "__main__"}
    # The function, without what makes it a task of Ray's.
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
        await _fleets.do_work_of_ones_own(spread)
        await _fleets.lose_a_worker(spread, tmp_path)
        await _fleets.lose_an_instance(spread)
        await _fleets.fail_in_a_task(spread)


@pytest.mark.usefixtures("_machines")
async def test_a_cancelled_driver_leaves_nothing(tmp_path: Path) -> None:
    async with workers() as (_, client):
        await _fleets.run_out_of_time(partial(fan_out, dask=client), tmp_path)
    async with workers() as (_, client):
        await _fleets.cancel(partial(fan_out, dask=client), tmp_path)


@pytest.mark.usefixtures("_machines")
async def test_a_killed_driver_leaves_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    async with workers() as (cluster, _):
        program = _fleets.block_of("integrations.dask")
        await _fleets.kill_the_driver(
            program, tmp_path, DASK_SCHEDULER_ADDRESS=cluster.scheduler_address, HOME=str(tmp_path)
        )
