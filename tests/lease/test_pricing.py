"""Test limits in time and money, and the receipt."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import anyio.to_thread
import pytest
from _grids import alternating
from _world import HARDWARE, MODEL, World

from cortecs_async import errors
from cortecs_async._api.billing import intervals_begun
from cortecs_async._api.catalog import HardwareType
from cortecs_async._api.domain import InstanceArgs
from cortecs_async._batch.report import total_cost
from cortecs_async._lease.pricing import Price, read_price, receipt, seconds_for
from cortecs_async.emulator import Fault

PER_MINUTE = InstanceArgs(model_id="m", billing_interval="per_minute", num_workers=2)
PER_HOUR = InstanceArgs(model_id="m", billing_interval="per_hour")
PRICE = Price(per_minute=0.05, currency="EUR")


class TestArithmetic:
    @pytest.mark.parametrize(
        ("seconds", "interval", "expected"),
        [
            (0.0, "per_minute", 1),
            (59.9, "per_minute", 1),
            (60.0, "per_minute", 1),
            (60.1, "per_minute", 2),
            (3600.0, "per_hour", 1),
            (3601.0, "per_hour", 2),
            (61.0, None, 2),
        ],
    )
    def test_every_interval_begun_is_billed(
        self, seconds: float, interval: str | None, expected: int
    ) -> None:
        assert intervals_begun(seconds, interval) == expected

    def test_every_worker_is_billed(self) -> None:
        assert receipt("i", 61.0, PER_MINUTE, PRICE).cost == pytest.approx(2 * 0.05 * 2)
        assert receipt("i", 61.0, PER_HOUR, PRICE).cost == pytest.approx(60 * 0.05)

    def test_a_receipt_is_rounded_as_the_bill_and_the_ledger_are(self) -> None:
        fifteen = receipt("i", 870.0, InstanceArgs(model_id="m"), Price(per_minute=0.015, currency="EUR"))
        assert (fifteen.cost, str(fifteen)) == (0.225, "870 s, billed as 15 minutes, about 0.23 EUR")
        assert total_cost([fifteen, fifteen, fifteen]) == 0.675

    def test_a_budget_lasts_as_long_as_its_intervals_but_for_a_reserve(self) -> None:
        seconds = seconds_for(1.0, PRICE, PER_MINUTE)
        assert 590 <= seconds < 600
        cost = receipt("i", seconds, PER_MINUTE, PRICE).cost
        assert cost is not None
        assert cost <= 1.0

    def test_a_budget_below_one_interval_is_refused(self) -> None:
        with pytest.raises(errors.InvalidArgumentError, match="is less than one billing interval"):
            seconds_for(2.9, PRICE, PER_HOUR)

    @pytest.mark.parametrize(
        ("info", "expected"),
        [
            ({"price_per_minute": 0.05, "price_per_hour": 3.0, "currency": "EUR"}, (0.05, 3.0)),
            ({"price_per_minute": 0.05, "price_per_hour": 2.4}, (0.05, 2.4)),
            ({"per_hour": 3}, (0.05, 3.0)),
            ({"pricePerMinute": 0.05}, (0.05, 3.0)),
            ({"PRICE_PER_HOUR": 3.0}, (0.05, 3.0)),
            ({"currency": 7, "hourly": 3.0}, (0.05, 3.0)),
            ({"hourly-rate": 3.0, "name": "L40S", "spot": False}, (0.05, 3.0)),
            ({"EUR/hour": 3.0, "currency": "eur"}, (0.05, 3.0)),
            ({"usd_per_hour": 3.0, "currency": ""}, (0.05, 3.0)),
            ({"eur_per_hour": 3.0, "usd_per_hour": 3.3, "currency": "EUR"}, (0.05, 3.0)),
            ({"price_per_minute": None, "price_per_hour": 3.0}, (0.05, 3.0)),
            # Cents
            ({"cents_per_minute": 5.4}, (0.054, 3.24)),
            ({"ct_per_hour": 300}, (0.05, 3.0)),
            ({"price_cent_per_minute": 5, "price_per_minute": 0.05}, (0.05, 3.0)),
            ({"priceInCentsPerMinute": 5}, (0.05, 3.0)),
            ({"eur_cents_per_minute": 5, "price_per_hour": 2.4}, (0.05, 2.4)),
            ({"cents_per_minute": 5.4, "price_per_minute": 5.4}, None),
            ({"cents_per_minute": 5.4, "currency": "ct"}, None),
            ({"price_per_minute": 5.4, "unit": "cents"}, None),
            ({"price_per_minute": 5.4, "in_cents": True}, None),
            ({"price_per_minute": 5.4, "currency": "euro cent"}, None),
            # Prices of something else
            ({"price_per_minute": 0.05, "setup_price_per_minute": 9.0}, (0.05, 3.0)),
            ({"price_per_gpu_hour": 3.0}, None),
            ({"tokens_per_minute": 60000}, None),
            ({"price_per_million_tokens_per_hour": 3.0}, None),
            ({"discount_per_hour": 3.0}, None),
            ({"included_minutes": 3.0}, None),
            ({"min_price": 3.0, "price_per_min": 3.0}, None),
            ({"price_per_day": 3.0}, None),
            ({"price_per_minute_hour": 3.0}, None),
            ({"usd_per_hour": 3.0, "currency": "EUR"}, None),
            ({"price": 3.0}, None),
            ({"": 3.0, "per": 3.0, "_": 3.0}, None),
            # Prices that disagree
            ({"minute_a": 1.0, "minute_b": 2.0}, None),
            ({"price_per_minute": 1.0, "cost_per_minute": 2.0}, None),
            ({"price_per_minute": 0.0, "price_per_hour": 3.0}, None),
            ({"price_per_minute": 1.0, "price_per_hour": 0}, None),
            # A price that may not be set
            ({"minute": 0.0}, None),
            ({"price_per_minute": 0, "price_per_hour": 0}, None),
            ({"price_per_hour": 5e-324}, None),
            # Other values
            ({"per_minute": "0.05"}, None),
            ({"per_minute": True}, None),
            ({"per_minute": float("nan")}, None),
            ({"per_minute": float("inf")}, None),
            ({"per_minute": 10**400}, None),
            ({"per_minute": -1.0}, None),
            ({"per_minute": {"amount": 0.05, "currency": "EUR"}}, None),
            ({"per_minute": [0.05]}, None),
            ({}, None),
        ],
        ids=repr,
    )
    def test_prices_are_read_liberally_but_never_guessed(
        self, info: dict[str, Any], expected: tuple[float, float] | None
    ) -> None:
        price = read_price(HardwareType(hardware_type_id="h", price_info=info))
        if expected is None:
            assert price is None
        else:
            assert price is not None
            assert (price.per_minute, price.per_hour) == pytest.approx(expected)

    def test_a_price_of_one_interval_can_be_clear_without_the_other(self) -> None:
        info = {"price_per_minute": 1.0, "cost_per_minute": 2.0, "price_per_hour": 3.0}
        hardware = HardwareType(hardware_type_id="h", price_info=info)
        assert hardware.price_per_minute is None
        assert hardware.price_per_hour == 3.0

    def test_hourly_billing_counts_by_the_hourly_price(self) -> None:
        price = Price(per_minute=0.05, per_hour=2.4)
        assert receipt("i", 61.0, PER_HOUR, price).cost == pytest.approx(2.4)
        assert receipt("i", 61.0, PER_MINUTE, price).cost == pytest.approx(2 * 0.05 * 2)
        assert 7190 <= seconds_for(4.9, price, PER_HOUR) < 7200

    def test_the_currency(self) -> None:
        assert HardwareType(hardware_type_id="h", price_info={"currency": "EUR"}).currency == "EUR"
        assert HardwareType(hardware_type_id="h", price_info={"currency": 7}).currency == ""

    def test_a_receipt_reads_like_one(self) -> None:
        assert str(receipt("i", 61.4, PER_MINUTE, PRICE)) == (
            "61 s, billed as 2 minutes for 2 workers, about 0.20 EUR"
        )
        assert str(receipt("i", 5.0, PER_HOUR, None)) == "5 s, billed as 1 hour, at an unknown price"


async def test_the_block_ends_when_its_lifetime_is_up(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client):
        start = anyio.current_time()
        with pytest.raises(errors.LeaseExpiredError, match="max_lifetime=100 s") as caught:
            async with client.instance(MODEL, HARDWARE, max_lifetime=100):
                await anyio.sleep(10_000)
        assert isinstance(caught.value, TimeoutError)
        assert anyio.current_time() - start == pytest.approx(100, abs=2)
        assert emu.existing == ()


async def test_the_lifetime_counts_the_time_for_which_the_machine_is_suspended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [50.0]
    for module in ("state", "start_state"):
        monkeypatch.setattr(f"cortecs_async._lease.{module}.suspended", lambda: seconds[0])
    async with world() as (emu, client):
        began = anyio.current_time()
        with pytest.raises(errors.LeaseExpiredError, match="max_lifetime=1000 s"):
            async with client.instance(MODEL, HARDWARE, max_lifetime=1000) as inst:
                await anyio.sleep(100.0)
                seconds[0] += 950.0
                await anyio.sleep(10_000)
        assert 100.0 < anyio.current_time() - began < 120.0
        assert 1050.0 < inst.receipt.seconds < 1070.0
        assert emu.existing == ()


@alternating("on_loss", ["cancel", "ignore"])
async def test_the_block_ends_before_it_costs_more(world: World, on_loss: Any) -> None:
    async with world(step_seconds=1.0) as (emu, client):
        price = emu.start_instance(MODEL, HARDWARE)
        (entry,) = emu.ledger
        a_minute = entry.cost
        emu.delete_instance(price)
        with pytest.raises(errors.LeaseExpiredError, match="max_cost"):
            async with client.instance(
                MODEL, HARDWARE, num_workers=2, max_cost=7.5 * a_minute * 2, on_loss=on_loss
            ) as inst:
                await anyio.sleep(10_000)
        assert emu.existing == ()
        assert emu.ledger[-1].cost == pytest.approx(7 * a_minute * 2)
        assert inst.receipt.cost == pytest.approx(7 * a_minute * 2)


async def test_the_shorter_of_the_two_counts(world: World) -> None:
    async with world() as (_emu, client):
        with pytest.raises(errors.LeaseExpiredError, match="max_lifetime"):
            async with client.instance(MODEL, HARDWARE, max_lifetime=20, max_cost=100):
                await anyio.sleep(10_000)


async def test_a_lifetime_that_ends_while_it_starts(world: World) -> None:
    async with world(step_seconds=100.0) as (emu, client):
        with pytest.raises(errors.LeaseExpiredError, match="before it was running") as caught:
            async with client.instance(MODEL, HARDWARE, max_lifetime=50):
                pytest.fail("entered")
        assert str(caught.value).endswith("Increase max_lifetime, or try another hardware type.")
        assert emu.existing == ()


@alternating("on_exit", ["keep", "stop", "delete"])
async def test_an_expired_instance_is_not_billed_whatever_on_exit_says(world: World, on_exit: Any) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseExpiredError):
            async with client.instance(MODEL, HARDWARE, max_lifetime=50, on_exit=on_exit):
                await anyio.sleep(10_000)
        assert emu.billing == ()


async def test_max_cost_also_counts_while_a_start_hangs(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=1000.0))
        with pytest.raises(errors.LeaseExpiredError):
            async with client.instance(MODEL, HARDWARE, max_cost=0.06):  # one minute costs 0.05
                pytest.fail("entered")
        assert emu.ledger[0].cost <= 0.06


async def test_max_lifetime_also_counts_while_a_start_hangs(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=29.0))
        with pytest.raises(errors.LeaseExpiredError, match="max_lifetime=5 s was reached before"):
            async with client.instance(MODEL, HARDWARE, max_lifetime=5.0):
                pytest.fail("entered")
        assert emu.ledger[0].seconds < 5.0 + 8.0


@pytest.mark.parametrize("max_connections", [1, 2])
async def test_a_price_list_that_hangs_takes_no_slot_of_the_starts(
    world: World, max_connections: int
) -> None:
    async with world(max_connections=max_connections) as (emu, client):
        emu.add_fault(Fault("delay", route="hardware_types", seconds=1000.0, times=None))
        began = anyio.current_time()
        ended: list[float] = []

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                ended.append(anyio.current_time() - began)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(lease)
        assert max(ended) < 6.0


async def test_the_expiry_of_an_inner_lease_does_not_end_a_kept_instance(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseExpiredError) as caught:
            async with client.instance(MODEL, HARDWARE, on_exit="keep") as kept:
                async with client.instance(MODEL, HARDWARE, max_lifetime=50):
                    await anyio.sleep(10_000)
        assert caught.value.instance_id != kept.instance_id
        assert emu.billing == (kept.instance_id,)


async def test_an_expired_instance_is_not_billed_if_the_block_raises_its_own_error(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(RuntimeError, match="its own"):
            async with client.instance(MODEL, HARDWARE, max_lifetime=50, on_exit="keep"):
                try:
                    await anyio.sleep(10_000)
                finally:
                    raise RuntimeError("its own")
        assert emu.billing == ()


@alternating("price_info", [{"tier": "gold"}, {"price_per_minute": 0.0, "currency": "EUR"}])
async def test_an_unknown_price_is_told_before_anything_is_started(
    world: World, price_info: dict[str, Any]
) -> None:
    async with world() as (emu, client):
        body = {"hardware_types": [{"hardware_type_id": HARDWARE, "price_info": price_info}]}
        emu.add_fault(Fault("status", route="hardware_types", status=200, body=body))
        with pytest.raises(errors.PriceUnknownError, match="max_lifetime"):
            async with client.instance(MODEL, HARDWARE, max_cost=10):
                pytest.fail("entered")
        assert emu.ledger == ()


async def test_the_price_of_the_models_recommended_hardware(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseExpiredError):
            async with client.instance(MODEL, max_cost=1):
                await anyio.sleep_forever()
        assert 0 < emu.total_cost <= 1


async def test_too_small_a_budget_is_told_before_anything_is_started(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.InvalidArgumentError, match="max_cost"):
            async with client.instance(MODEL, HARDWARE, billing_interval="per_hour", max_cost=0.01):
                pytest.fail("entered")
        assert emu.ledger == ()


@alternating(
    "arguments",
    [
        {"max_lifetime": 0},
        {"max_lifetime": -1},
        {"max_lifetime": "2 hours"},
        {"max_cost": 0},
        {"max_cost": -5},
        {"max_cost": "5 EUR"},
        {"max_cost": float("inf")},
        {"max_cost": True},
        {"on_loss": "shrug"},
    ],
)
async def test_bad_budgets_are_refused_at_once(world: World, arguments: dict[str, Any]) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.InvalidArgumentError):
            client.instance(MODEL, HARDWARE, **arguments)
        assert emu.requests == ()


@alternating("in_args", [True, False])
async def test_the_receipt_agrees_with_the_bill(
    world: World,
    *,
    in_args: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="cortecs_async.lease")
    async with world(step_seconds=1.0, num_workers_in_args=in_args) as (emu, client):
        async with client.instance(MODEL, HARDWARE, num_workers=3) as inst:
            assert inst.cost_so_far == pytest.approx(emu.total_cost)
            await anyio.sleep(130)
            assert inst.cost_so_far == pytest.approx(emu.total_cost)
            assert await anyio.to_thread.run_sync(lambda: inst.receipt.num_workers) == 3
        (entry,) = emu.ledger
        assert inst.receipt.cost == pytest.approx(entry.cost)
        assert inst.receipt.seconds == pytest.approx(entry.seconds, abs=0.5)
        assert inst.receipt.currency == "EUR"
        assert inst.cost_so_far == inst.receipt.cost
    assert str(inst.receipt) in caplog.text


async def test_a_price_list_that_hangs_delays_no_lease_and_no_close(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        emu.add_fault(Fault("delay", route="hardware_types", seconds=100.0, times=None))
        for _ in range(2):
            start = anyio.current_time()
            async with client.instance(MODEL, HARDWARE) as inst:
                assert anyio.current_time() - start < 1.0
                assert inst.cost_so_far is None
            assert inst.receipt.cost is None
            assert inst.receipt.intervals == 1
        assert emu.existing == ()
        start = anyio.current_time()
    assert anyio.current_time() - start < 1.0


async def test_a_price_list_that_hangs_counts_towards_start_timeout(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="hardware_types", seconds=100.0, times=None))
        start = anyio.current_time()
        with pytest.raises(errors.RequestTimeoutError, match="Nothing was started"):
            async with client.instance(MODEL, HARDWARE, max_cost=5, start_timeout=20):
                pytest.fail("entered")
        assert anyio.current_time() - start == pytest.approx(20.0)


@alternating("options", [{}, {"max_cost": 5}])
async def test_leases_read_the_price_list_once(world: World, options: dict[str, Any]) -> None:
    async with world() as (emu, client):

        async def lease() -> None:
            async with client.instance(MODEL, **options) as inst:
                await anyio.sleep(30.0)
                assert inst.cost_so_far is not None

        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(lease)
        await lease()
        routes = [each.route for each in emu.requests]
        assert routes.count("hardware_types") == 1
        # The recommended hardware may change.
        assert routes.count("model") == (2 if options else 0)
