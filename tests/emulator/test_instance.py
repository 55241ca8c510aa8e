"""The state of an instance, on a clock that the test sets."""

from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import Emulator

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


def steps(instance: dict[str, Any]) -> list[int | None]:
    return [
        None if worker["init_progress"] is None else worker["init_progress"]["current_step"]
        for worker in instance["worker_statuses"]
    ]


async def test_an_instance_goes_through_its_steps(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(step_seconds=10.0)
    started = (await http.start()).json()["instance"]
    assert started["instance_status"] == {"status": "pending", "started_at": None, "stopped_at": None}
    assert started["base_url"] is None
    seen = []
    instance: dict[str, Any] = {}
    for now in (0.0, 9.9, 10.0, 20.0, 30.0, 39.9, 40.0, 1000.0):
        clock.now = now
        instance = await http.instance(started["instance_id"])
        seen.append((now, instance["instance_status"]["status"], *steps(instance)))
    assert seen == [
        (0.0, "pending", 1),
        (9.9, "pending", 1),
        (10.0, "pending", 2),
        (20.0, "pending", 3),
        (30.0, "pending", 4),
        (39.9, "pending", 4),
        (40.0, "running", 5),
        (1000.0, "running", 5),
    ]
    assert instance["base_url"] == "http://localhost/inference/instance-10001/v1"
    # A clock that is not the machine's starts in 2025, so that a test always sees the same dates.
    assert instance["instance_status"]["started_at"] == "2025-01-01T00:00:40Z"
    assert instance["worker_statuses"] == [
        {"init_progress": {"current_step": 5, "num_steps": 5, "description": "Running"}}
    ]


async def test_every_further_worker_lags_one_step(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(step_seconds=10.0)
    instance_id = (await http.start(num_workers=3)).json()["instance"]["instance_id"]
    seen = {}
    for now in (0.0, 20.0, 40.0, 50.0, 60.0):
        clock.now = now
        instance = await http.instance(instance_id)
        seen[now] = (instance["instance_status"]["status"], steps(instance))
    assert seen == {
        0.0: ("pending", [1, 1, 1]),
        20.0: ("pending", [3, 2, 1]),
        40.0: ("running", [5, 4, 3]),
        50.0: ("running", [5, 5, 4]),
        60.0: ("running", [5, 5, 5]),
    }


@pytest.mark.parametrize("step_seconds", [0.1, 0.3, 1 / 3, 0.7])
async def test_no_step_is_late_by_a_rounding_error(
    step_seconds: float, clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(step_seconds=step_seconds, num_steps=60)
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    seen = []
    for _ in range(60):
        seen += steps(await http.instance(instance_id))
        clock.now += step_seconds
    assert seen == list(range(1, 61))


@pytest.mark.parametrize("options", [{"step_seconds": 0.0}, {"num_steps": 1}])
async def test_without_steps_it_runs_at_once(options: dict[str, Any], emulate: Callable[..., Any]) -> None:
    http = emulate(**options)
    instance = (await http.start(num_workers=2)).json()["instance"]
    assert instance["instance_status"]["status"] == "running"
    assert instance["base_url"] is not None


async def test_steps_have_words(clock: Any, emulate: Callable[..., Any]) -> None:
    for num_steps in (5, 7):
        http = emulate(num_steps=num_steps, step_seconds=1.0)
        begun = clock.now
        instance_id = (await http.start()).json()["instance"]["instance_id"]
        words = []
        for step in range(num_steps):
            clock.now = begun + step
            instance = await http.instance(instance_id)
            words.append(instance["worker_statuses"][0]["init_progress"]["description"])
        assert words[-1] == "Running"
        assert len(set(words)) == num_steps
        assert all(words)


async def test_a_stopped_instance_has_no_progress(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    instance_id = (await http.start(num_workers=2)).json()["instance"]["instance_id"]
    clock.now = 7.0
    answer = await http.api("POST", "/instances/stop", json={"instance_id": instance_id})
    assert answer.status_code == 200
    stopped = answer.json()["instance"]
    assert stopped["instance_status"] == {
        "status": "stopped",
        "started_at": "2025-01-01T00:00:04Z",
        "stopped_at": "2025-01-01T00:00:07Z",
    }
    assert stopped["worker_statuses"] == [{"init_progress": None}, {"init_progress": None}]
    assert stopped["base_url"] is None
    assert await http.instance(instance_id) == stopped


async def test_a_pending_instance_can_be_stopped(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    clock.now = 2.0
    answer = await http.api("POST", "/instances/stop", json={"instance_id": instance_id})
    # It was never running, and later it still was not.
    clock.now = 100.0
    for instance in (answer.json()["instance"], await http.instance(instance_id)):
        assert instance["instance_status"]["status"] == "stopped"
        assert instance["instance_status"]["started_at"] is None


async def test_a_stop_can_take_its_time(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(stop_seconds=5.0, step_seconds=2.0)
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    clock.now = 5.0
    stopping = (await http.api("POST", "/instances/stop", json={"instance_id": instance_id})).json()[
        "instance"
    ]
    assert stopping["instance_status"]["status"] == "stopping"
    assert stopping["instance_status"]["stopped_at"] is None
    clock.now = 9.9
    # A stop freezes the provisioning, or the instance would become running while it stops.
    assert steps(await http.instance(instance_id)) == [3]
    assert http.emulator.billing == (instance_id,)
    again = await http.api("POST", "/instances/stop", json={"instance_id": instance_id})
    assert (again.status_code, again.json()) == (
        400,
        {"message": f"Instance {instance_id} is already stopping."},
    )
    early = await http.api("DELETE", f"/instances/{instance_id}")
    assert early.status_code == 400
    clock.now = 10.0
    instance = await http.instance(instance_id)
    assert instance["instance_status"]["status"] == "stopped"
    assert instance["instance_status"]["stopped_at"] == "2025-01-01T00:00:10Z"
    assert http.emulator.billing == ()
    assert (await http.api("DELETE", f"/instances/{instance_id}")).status_code == 200


async def test_a_restart_starts_a_new_run(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    clock.now = 50.0
    http.emulator.stop_instance(instance_id)
    clock.now = 100.0
    answer = await http.api("POST", "/instances/restart", json={"instance_id": instance_id})
    assert answer.status_code == 202
    restarted = answer.json()["instance"]
    assert restarted["instance_status"] == {"status": "pending", "started_at": None, "stopped_at": None}
    assert steps(restarted) == [1]
    clock.now = 104.0
    running = await http.instance(instance_id)
    assert running["instance_status"]["status"] == "running"
    assert running["instance_status"]["started_at"] == "2025-01-01T00:01:44Z"


async def test_polling_changes_nothing(clock: Any, emulate: Callable[..., Any]) -> None:
    watched, unwatched = emulate(), emulate()
    ids = {http.emulator.start_instance(LLAMA) for http in (watched, unwatched)}
    assert ids == {"instance-10001"}
    for tenth in range(100):
        clock.now = tenth / 10
        await watched.instance("instance-10001")
    assert await watched.instance("instance-10001") == await unwatched.instance("instance-10001")


def test_an_instance_can_vanish_in_any_state(clock: Any) -> None:
    emulator = Emulator(clock=clock, stop_seconds=10.0)
    pending, stopping = emulator.start_instance(LLAMA), emulator.start_instance(LLAMA)
    clock.now = 60.0
    emulator.stop_instance(stopping)
    clock.now = 62.0
    for instance_id in (pending, stopping):
        emulator.delete_instance(instance_id)
    clock.now = 1000.0
    assert emulator.existing == ()
    assert [
        (entry.status, entry.stopped_at, entry.deleted_at, entry.seconds) for entry in emulator.ledger
    ] == [
        ("deleted", 62.0, 62.0, 62.0),
        ("deleted", 62.0, 62.0, 62.0),
    ]
