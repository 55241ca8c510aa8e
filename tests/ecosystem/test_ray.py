"""Ray: a cluster of two machines (raylets) on this one, and drivers that lease for it."""

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

# Without what only people look at, and what would keep a busy machine from starting in time.
BARE = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}

# Two chunks at once on each of two machines.
spread = partial(fan_out, ray_options={"num_cpus": 1})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with machines_environment():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **BARE})
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@contextmanager
def machines_environment() -> Iterator[None]:
    """What machines are started with, and the driver has not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OPENAI_API_KEY", "emulator-key")
        yield


@pytest.mark.usefixtures("cluster")
async def test_every_request_once_on_both_machines() -> None:
    raylets = {parent for _, parent in await _fleets.answer_all(spread)}
    assert len(raylets) == 2


@pytest.mark.usefixtures("cluster")
async def test_work_of_ones_own() -> None:
    await _fleets.do_work_of_ones_own(spread)


@pytest.mark.usefixtures("cluster")
async def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    await _fleets.lose_a_worker(spread, tmp_path)


@pytest.mark.usefixtures("cluster")
async def test_a_stopped_instance_leaves_its_work_to_the_other() -> None:
    await _fleets.lose_an_instance(spread)


@pytest.mark.usefixtures("cluster")
async def test_a_mistake_in_a_task_ends_everything() -> None:
    await _fleets.fail_in_a_task(spread)


@pytest.mark.usefixtures("cluster")
async def test_a_cancelled_driver_cancels_its_tasks_and_leaves_nothing(tmp_path: Path) -> None:
    await _fleets.cancel(spread, tmp_path)
    await until((tmp_path / "cancelled").exists, _fleets.PATIENCE)


@pytest.mark.usefixtures("cluster")
async def test_a_time_out_leaves_nothing(tmp_path: Path) -> None:
    await _fleets.run_out_of_time(spread, tmp_path)


async def test_a_killed_driver_leaves_nothing_and_the_next_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    program = _fleets.block_of("integrations.ray")
    await _fleets.kill_the_driver(program, tmp_path, **drivers_environment(cluster))


async def test_tasks_of_ones_own(cluster: Cluster, tmp_path: Path) -> None:
    program = _fleets.block_of("@ray.remote")
    await _fleets.run_tasks_of_ones_own(program, tmp_path, **drivers_environment(cluster))


def drivers_environment(cluster: Cluster) -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return {**settings, "HOME": os.environ["HOME"], "RAY_ADDRESS": cluster.address}


async def test_a_lost_machine_loses_and_doubles_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with machines_environment():
        doomed = cluster.add_node(num_cpus=2)
    on_it = NodeAffinitySchedulingStrategy(doomed.node_id, soft=True)
    await _fleets.lose_a_worker(
        partial(fan_out, ray_options={"scheduling_strategy": on_it}),
        tmp_path,
        kill_it=lambda _: cluster.remove_node(doomed, allow_graceful=False),
    )


class Holder:
    """Holds an instance in an actor, which the page advises against."""

    def __init__(self, env: dict[str, str]) -> None:
        os.environ.update(env)

    async def pid(self) -> int:
        return os.getpid()

    async def hold(self) -> None:
        async with AsyncCortecs() as client, client.instance(MODEL):
            await asyncio.sleep(_fleets.PATIENCE)


@pytest.fixture
async def held(cluster: Cluster, state_dir: Path) -> AsyncIterator[tuple[Any, Any, Any, Any, int]]:
    """A service, a client, an actor that holds an instance, its task, and its reaper."""
    async with _fleets.service() as (emulator, client):
        env = {**emulator.env(), "CORTECS_STATE_DIR": str(state_dir)}
        actor = ray.remote(Holder).remote(env)
        task = actor.hold.remote()
        await until(lambda: any(entry.status == "running" for entry in emulator.ledger), _fleets.PATIENCE)
        (reaper,) = reapers_of(await actor.pid.remote())
        yield emulator, client, actor, task, reaper


async def test_a_cancelled_task_of_an_actor_hands_back(held: tuple[Any, Any, Any, Any, int]) -> None:
    emulator, _, _, task, _ = held
    ray.cancel(task)
    await until(lambda: not emulator.existing, _fleets.PATIENCE)


async def test_a_forced_kill_of_an_actor_takes_its_reaper_along_and_sweep_finishes(
    held: tuple[Any, Any, Any, Any, int],
) -> None:
    emulator, client, actor, _, reaper = held
    ray.kill(actor)
    await until(lambda: not is_alive(reaper), _fleets.PATIENCE)
    assert len(emulator.billing) == 1
    (released,) = await client.sweep()
    assert released.state == "released"
    assert emulator.existing == ()


def test_the_key_is_in_none_of_rays_logs(cluster: Cluster) -> None:
    logs = Path(cluster.head_node.get_session_dir_path()) / "logs"
    found = [path.name for path in logs.rglob("*") if path.is_file() and b"emulator-key" in path.read_bytes()]
    assert found == []
