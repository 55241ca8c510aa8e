"""Fleets on a Ray cluster of two machines (raylets) on this one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import _fleets
import pytest
import ray
from _processes import is_alive, reapers_of, until
from _world import MODEL
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cortecs_async import AsyncCortecs
from cortecs_async.integrations.ray import fan_out

pytestmark = pytest.mark.sockets

# Without the dashboard and monitors, which keep a busy machine from starting in time.
BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}

# Two chunks in parallel on each of two machines.
spread = partial(fan_out, ray_options={"num_cpus": 1})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with worker_environment():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **BARE})
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@contextmanager
def worker_environment() -> Iterator[None]:
    """Set the environment of the machines, which the driver does not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OPENAI_API_KEY", "emulator-key")
        yield


@pytest.mark.usefixtures("cluster")
async def test_every_request_once_on_both_machines() -> None:
    raylets = {parent for _, parent in await _fleets.answer_all(spread)}
    assert len(raylets) == 2


@pytest.mark.usefixtures("cluster")
async def test_custom_work() -> None:
    await _fleets.run_custom_work(spread)


@pytest.mark.usefixtures("cluster")
async def test_a_killed_worker_loses_and_repeats_nothing(tmp_path: Path) -> None:
    await _fleets.lose_a_worker(spread, tmp_path)


@pytest.mark.usefixtures("cluster")
async def test_the_other_instance_does_the_work_of_a_stopped_one() -> None:
    await _fleets.lose_an_instance(spread)


@pytest.mark.usefixtures("cluster")
async def test_an_exception_in_a_task_ends_everything() -> None:
    await _fleets.raise_in_work(spread)


@pytest.mark.usefixtures("cluster")
async def test_results_that_cannot_be_sent_are_errors_of_their_items() -> None:
    await _fleets.return_nonsense(spread)


@pytest.mark.usefixtures("cluster")
async def test_a_cancelled_driver_cancels_its_tasks_and_leaves_nothing(tmp_path: Path) -> None:
    await _fleets.cancel(spread, tmp_path)
    await until((tmp_path / "cancelled").exists, _fleets.TIMEOUT)


@pytest.mark.usefixtures("cluster")
async def test_a_time_out_leaves_nothing(tmp_path: Path) -> None:
    await _fleets.time_out(spread, tmp_path)


async def test_a_killed_driver_leaves_nothing_and_the_next_continues(
    cluster: Cluster, tmp_path: Path
) -> None:
    program = _fleets.block_of("integrations.ray")
    await _fleets.kill_the_driver(program, tmp_path, **driver_environment(cluster))


async def test_custom_tasks(cluster: Cluster, tmp_path: Path) -> None:
    program = _fleets.block_of("@ray.remote")
    await _fleets.run_custom_tasks(program, tmp_path, **driver_environment(cluster))


def driver_environment(cluster: Cluster) -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return {**settings, "HOME": os.environ["HOME"], "RAY_ADDRESS": cluster.address}


async def test_a_lost_machine_loses_and_repeats_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with worker_environment():
        node = cluster.add_node(num_cpus=2)
    on_node = NodeAffinitySchedulingStrategy(node.node_id, soft=True)
    await _fleets.lose_a_worker(
        partial(fan_out, ray_options={"scheduling_strategy": on_node}),
        tmp_path,
        kill_it=lambda _: cluster.remove_node(node, allow_graceful=False),
    )


class Holder:
    """An actor that holds an instance, which the page advises against."""

    def __init__(self, env: dict[str, str]) -> None:
        os.environ.update(env)

    async def pid(self) -> int:
        return os.getpid()

    async def hold(self) -> None:
        async with AsyncCortecs() as client, client.instance(MODEL):
            await asyncio.sleep(_fleets.TIMEOUT)


@pytest.fixture
async def held(cluster: Cluster, state_dir: Path) -> AsyncIterator[tuple[Any, Any, Any, Any, int]]:
    """Yield an emulator, a client, an actor that holds an instance, its task, and its reaper."""
    async with _fleets.service() as (emulator, client):
        env = {**emulator.env(), "CORTECS_STATE_DIR": str(state_dir)}
        actor = ray.remote(Holder).remote(env)
        task = actor.hold.remote()
        await until(lambda: any(entry.status == "running" for entry in emulator.ledger), _fleets.TIMEOUT)
        (reaper,) = reapers_of(await actor.pid.remote())
        yield emulator, client, actor, task, reaper


async def test_a_cancelled_task_of_an_actor_releases(held: tuple[Any, Any, Any, Any, int]) -> None:
    emulator, _, _, task, _ = held
    ray.cancel(task)
    await until(lambda: not emulator.existing, _fleets.TIMEOUT)


async def test_a_forced_kill_of_an_actor_kills_its_reaper_and_sweep_releases(
    held: tuple[Any, Any, Any, Any, int],
) -> None:
    emulator, client, actor, _, reaper = held
    ray.kill(actor)
    await until(lambda: not is_alive(reaper), _fleets.TIMEOUT)
    assert len(emulator.billing) == 1
    (released,) = await client.sweep()
    assert released.state == "released"
    assert emulator.existing == ()


def test_rays_logs_do_not_contain_the_key(cluster: Cluster) -> None:
    logs = Path(cluster.head_node.get_session_dir_path()) / "logs"
    found = [path.name for path in logs.rglob("*") if path.is_file() and b"emulator-key" in path.read_bytes()]
    assert found == []
