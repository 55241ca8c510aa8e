"""The bill: started intervals, workers, runs, balance and capacity."""

from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import Emulator, LedgerEntry

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"
L40S = 0.03  # euro a minute and worker in the emulator's catalog


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(0.0, 1), (0.5, 1), (60.0, 1), (60.1, 2), (120.0, 2), (3600.0, 60), (3601.0, 61)]
)
def test_begun_minutes_are_billed(seconds: float, minutes: int, clock: Any) -> None:
    emulator = Emulator(clock=clock)
    emulator.start_instance(LLAMA, "NVIDIA_L40S_1")
    clock.now = seconds
    assert emulator.total_cost == pytest.approx(minutes * L40S)
    assert emulator.ledger[0].seconds == seconds


@pytest.mark.parametrize(("seconds", "hours"), [(0.0, 1), (60.0, 1), (3600.0, 1), (3600.5, 2)])
def test_begun_hours_are_billed(seconds: float, hours: int, clock: Any) -> None:
    emulator = Emulator(clock=clock)
    emulator.start_instance(LLAMA, "NVIDIA_L40S_1", billing_interval="per_hour")
    clock.now = seconds
    assert emulator.total_cost == pytest.approx(hours * 60 * L40S)


def test_every_worker_is_billed(clock: Any) -> None:
    emulator = Emulator(clock=clock)
    emulator.start_instance(LLAMA, "NVIDIA_L40S_2", num_workers=3)
    clock.now = 61.0
    # Two minutes x three workers, each a set of two GPUs at twice the price of one.
    assert emulator.total_cost == pytest.approx(2 * 3 * 2 * L40S)


def test_a_stop_ends_the_bill_when_it_is_complete(clock: Any) -> None:
    emulator = Emulator(clock=clock, stop_seconds=30.0)
    instance_id = emulator.start_instance(LLAMA)
    clock.now = 50.0
    emulator.stop_instance(instance_id)
    clock.now = 70.0
    assert list(emulator.billing) == [instance_id]
    assert emulator.ledger[0].stopped_at is None
    clock.now = 10_000.0
    assert list(emulator.billing) == []
    assert emulator.total_cost == pytest.approx(2 * L40S)
    assert emulator.ledger == (
        LedgerEntry(
            instance_id="instance-10001",
            model_id=LLAMA,
            hardware_type_id="NVIDIA_L40S_1",
            num_workers=1,
            billing_interval="per_minute",
            started_at=0.0,
            stopped_at=80.0,
            deleted_at=None,
            status="stopped",
            seconds=80.0,
            cost=0.06,
            price_per_hour=1.8,
        ),
    )


async def test_every_run_is_billed_on_its_own(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    emulator = http.emulator
    instance_id = emulator.start_instance(LLAMA)
    for run in range(3):
        clock.now = run * 1000.0 + 10.0
        emulator.stop_instance(instance_id)
        if run < 2:
            clock.now = (run + 1) * 1000.0
            assert (
                await http.api("POST", "/instances/restart", json={"instance_id": instance_id})
            ).status_code == 202
            assert emulator.billing == (instance_id,)
    (entry,) = emulator.ledger
    # Three started minutes for thirty seconds.
    assert (entry.cost, entry.seconds) == (pytest.approx(3 * L40S), 30.0)
    assert (entry.started_at, entry.stopped_at) == (0.0, 2010.0)


def test_the_ledger_remembers_the_deleted(clock: Any) -> None:
    emulator = Emulator(clock=clock)
    first, second = emulator.start_instance(LLAMA), emulator.start_instance("microsoft/phi-4", num_workers=2)
    clock.now = 5.0
    emulator.delete_instance(first)
    clock.now = 500.0
    assert emulator.existing == (second,)
    assert [(entry.instance_id, entry.status) for entry in emulator.ledger] == [
        (first, "deleted"),
        (second, "running"),
    ]
    costs = [entry.cost for entry in emulator.ledger]
    assert costs == pytest.approx([L40S, 9 * 2 * L40S])
    assert emulator.total_cost == pytest.approx(sum(costs))
    # Ids are never reused.
    assert emulator.start_instance(LLAMA) == "instance-10003"


async def test_the_balance_goes_down_and_starts_are_rejected_without_one(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(balance=0.06, currency="USD")
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    assert (await http.api("GET", "/user/balance")).json() == {"current_balance": 0.03, "currency": "USD"}
    clock.now = 61.0
    assert http.emulator.balance_now == 0.0
    refused = await http.start()
    assert (refused.status_code, refused.json()) == (402, {"message": "The balance is used up."})
    # Running instances keep running, and the balance goes below zero.
    clock.now = 121.0
    assert http.emulator.billing == (instance_id,)
    assert (await http.api("GET", "/user/balance")).json()["current_balance"] == -0.03
    http.emulator.stop_instance(instance_id)
    again = await http.api("POST", "/instances/restart", json={"instance_id": instance_id})
    assert again.status_code == 402
    assert len(http.emulator.ledger) == 1
    assert http.emulator.billing == ()


async def test_capacity_is_taken_by_workers_until_the_stop_is_complete(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(capacity={"NVIDIA_L40S_1": 3}, stop_seconds=10.0)

    async def available() -> bool:
        answer = await http.api("GET", "/hardware-types/available", headers={})
        return "NVIDIA_L40S_1" in [
            hardware["hardware_type_id"] for hardware in answer.json()["hardware_types"]
        ]

    first = (await http.start(num_workers=2)).json()["instance"]["instance_id"]
    refused = await http.start(num_workers=2)
    assert refused.status_code == 503
    assert refused.json() == {"message": "No capacity: 2 x NVIDIA_L40S_1 requested, 1 free."}
    assert await available()
    assert (await http.start()).status_code == 202
    assert not await available()
    # Other hardware is not affected.
    assert (await http.start(hardware_type_id="NVIDIA_H100_1")).status_code == 202
    http.emulator.stop_instance(first)
    assert (await http.start()).status_code == 503
    clock.now = 10.0
    assert await available()
    assert (await http.start(num_workers=2)).status_code == 202
    again = await http.api("POST", "/instances/restart", json={"instance_id": first})
    assert again.status_code == 503
    assert len(http.emulator.ledger) == 4


def test_capacity_must_name_known_hardware() -> None:
    with pytest.raises(ValueError, match="GPU_9000"):
        Emulator(capacity={"GPU_9000": 1})
    with pytest.raises(ValueError, match="negative"):
        Emulator(capacity={"NVIDIA_L40S_1": -1})


async def test_capacity_can_change_and_the_list_of_it_can_lag(
    emulate: Callable[..., Any], clock: Any
) -> None:
    http = emulate(available_lag=10.0)
    emulator = http.emulator

    async def available() -> set[str]:
        found = (await http.api("GET", "/hardware-types/available")).json()["hardware_types"]
        return {each["hardware_type_id"] for each in found}

    clock.now = 100.0
    emulator.set_capacity("NVIDIA_L40S_1", 1)
    instance_id = emulator.start_instance(LLAMA, "NVIDIA_L40S_1")
    assert "NVIDIA_L40S_1" in await available()
    with pytest.raises(ValueError, match="No capacity"):
        emulator.start_instance(LLAMA, "NVIDIA_L40S_1")
    clock.now = 111.0
    assert "NVIDIA_L40S_1" not in await available()
    emulator.delete_instance(instance_id)
    assert "NVIDIA_L40S_1" not in await available()
    clock.now = 122.0
    assert "NVIDIA_L40S_1" in await available()
    with pytest.raises(ValueError, match="Unknown hardware type"):
        emulator.set_capacity("GPU_9000", 1)


async def test_prices_can_be_anything(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.set_price_info("NVIDIA_L40S_1", {"price": "on request"})
    found = (await http.api("GET", "/hardware-types/")).json()["hardware_types"]
    shown = {each["hardware_type_id"]: each["price_info"] for each in found}
    assert shown["NVIDIA_L40S_1"] == {"price": "on request"}
    assert shown["NVIDIA_H100_1"]["price_per_minute"] == 0.05
    with pytest.raises(ValueError, match="Unknown hardware type"):
        http.emulator.set_price_info("GPU_9000", {})
