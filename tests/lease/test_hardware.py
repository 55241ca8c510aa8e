"""Test the choice of hardware: by preference, by price, and after refused start requests."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from _world import HARDWARE, MODEL, World

from cortecs_async import errors
from cortecs_async._api.catalog import HardwareConfig, Model
from cortecs_async._lease.hardware import Selection, choose_hardware
from cortecs_async._lease.options import start_options
from cortecs_async._lease.pricing import Price
from cortecs_async._recovery.promises import Promises
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.types import Telemetry

L4, L40S, L40S_2, H100 = "NVIDIA_L4_1", "NVIDIA_L40S_1", "NVIDIA_L40S_2", "NVIDIA_H100_1"
PRICES = {L4: 0.015, L40S: 0.03, L40S_2: 0.06, H100: 0.05}
LENGTHS = {L4: 16384, L40S: 131072, L40S_2: 131072, H100: 131072}


def model_of(lengths: Mapping[str, int | None]) -> Model:
    return Model(
        model_id="org--name",
        recommended_config=L40S,
        hardware_configs={
            each: HardwareConfig(
                hardware_type_id=each, params={} if length is None else {"--max-model-len": length}
            )
            for each, length in lengths.items()
        },
    )


def choose(
    hardware: str | list[str] | None,
    *,
    context_length: int | None = None,
    num_workers: int = 1,
    billing_interval: Any = "per_minute",
    prices: Mapping[str, Price | None] | None = None,
    lengths: Mapping[str, int | None] = LENGTHS,
    **options: Any,
) -> Selection:
    known = {each: Price(per_minute=price, currency="EUR") for each, price in PRICES.items()}
    checked = start_options(*("org/name", hardware, context_length, num_workers, billing_interval), **options)
    return choose_hardware(checked, model_of(lengths), {**known, **(prices or {})}.get)


class TestChoice:
    def test_a_list_keeps_its_order(self) -> None:
        assert choose([H100, L4]).names == [H100, L4]

    def test_the_cheapest_comes_first_and_equal_prices_keep_the_order_of_the_model(self) -> None:
        assert choose("cheapest").names == [L4, L40S, H100, L40S_2]
        same = dict.fromkeys(PRICES, Price(per_minute=0.05))
        assert choose("cheapest", prices=same).names == list(LENGTHS)

    def test_the_price_is_that_of_the_billing_interval(self) -> None:
        by_the_hour = {L4: Price(per_minute=0.015, per_hour=9.0)}
        assert choose("cheapest", prices=by_the_hour).names[0] == L4
        assert choose("cheapest", prices=by_the_hour, billing_interval="per_hour").names[-1] == L4

    def test_hardware_that_does_not_fit_is_left_out(self) -> None:
        selection = choose(["NVIDIA_X_1", L4, H100], context_length=32000)
        assert selection.names == [H100]
        assert selection.passed == {
            "NVIDIA_X_1": "does not run org/name",
            L4: "supports at most 16384 tokens",
        }

    def test_an_unknown_context_fits(self) -> None:
        assert choose([L4], context_length=10**6, lengths={L4: None}).names == [L4]
        assert choose([L4, H100], lengths={}).names == [L4, H100]

    def test_nothing_fits(self) -> None:
        with pytest.raises(errors.InvalidArgumentError) as caught:
            choose(["NVIDIA_X_1", L4], context_length=32000)
        assert str(caught.value) == (
            "No allowed hardware type can be used for org/name. NVIDIA_X_1 does not run org/name; "
            "NVIDIA_L4_1 supports at most 16384 tokens. org/name runs on "
            f"{', '.join(LENGTHS)}. Nothing was started. Allow other hardware types, or "
            "change the limits."
        )

    def test_the_ceiling_is_for_all_workers_together(self) -> None:
        assert choose([H100, L40S], max_price_per_hour=3.0).names == [H100, L40S]
        assert choose([H100, L40S], max_price_per_hour=2.99).names == [L40S]
        assert choose([H100, L40S], max_price_per_hour=3.6, num_workers=2).names == [L40S]
        with pytest.raises(
            errors.InvalidArgumentError, match="costs 6 EUR per hour, more than max_price_per_"
        ):
            choose([H100], max_price_per_hour=5, num_workers=2)

    def test_hardware_that_max_cost_does_not_cover_is_left_out(self) -> None:
        assert choose([H100, L40S], max_cost=0.04).names == [L40S]
        with pytest.raises(
            errors.InvalidArgumentError, match=r"per billing interval, more than max_cost=0\.01"
        ):
            choose([H100, L40S], max_cost=0.01)

    def test_unknown_prices(self) -> None:
        unknown = {L40S: None}
        assert choose([L40S, H100], prices=unknown).names == [L40S, H100]
        assert choose([L40S, H100], prices=unknown, max_price_per_hour=9).names == [H100]
        assert choose([L40S, H100], prices=unknown, max_cost=9).names == [H100]
        with pytest.raises(
            errors.PriceUnknownError, match=r"^max_price_per_hour needs a price.*NVIDIA_H100_1 costs"
        ):
            choose([L40S, H100], prices=unknown, max_price_per_hour=1)
        with pytest.raises(
            errors.PriceUnknownError, match=r"^max_cost needs a price.* for NVIDIA_L40S_1\. Nothing"
        ):
            choose([L40S], prices=unknown, max_cost=1)

    def test_the_cheapest_is_not_known_without_all_prices(self) -> None:
        with pytest.raises(errors.PriceUnknownError, match=r"^'cheapest' needs a price"):
            choose("cheapest", prices={L40S_2: None})
        # Hardware that does not fit needs none.
        assert choose("cheapest", prices={L4: None}, context_length=32000).names[0] == L40S

    def test_a_service_that_does_not_say_what_the_model_runs_on(self) -> None:
        with pytest.raises(errors.InvalidArgumentError, match="does not say what hardware org/name runs on"):
            choose("cheapest", lengths={})

    def test_available_hardware_is_tried_first(self) -> None:
        selection = choose([H100, L40S, L4])
        assert [each.hardware_type_id for each in selection.in_order()] == [H100, L40S, L4]
        selection.begin_round([L4, L40S])
        assert [each.hardware_type_id for each in selection.in_order()] == [L40S, L4, H100]

    @pytest.mark.parametrize(
        ("hardware", "available", "taken", "expected"),
        [
            ([H100, L40S], None, H100, "first choice"),
            ([H100, L40S], [L40S], L40S, "second choice: NVIDIA_H100_1 was not available"),
            (["NVIDIA_X_1", L40S], None, L40S, "second choice: NVIDIA_X_1 does not run org/name"),
            ("cheapest", None, L4, "cheapest of 4"),
            ("cheapest", [L4, H100], L4, "cheapest of 2 available"),
            ("cheapest", [H100], H100, "only usable type available"),
            (None, [L40S], L40S, ""),
        ],
    )
    def test_the_reason(self, hardware: Any, available: list[str] | None, taken: str, expected: str) -> None:
        selection = choose(hardware)
        selection.begin_round(available)
        assert selection.reason(taken) == expected
        selection.waited = 90.0
        assert selection.reason(taken) == ", ".join(
            filter(None, [expected, "after waiting 1m30s for capacity"])
        )

    def test_the_model_is_checked_first(self) -> None:
        client: Any = object()  # as for a `SharedInstance(client, MODEL)`
        with pytest.raises(errors.InvalidArgumentError, match=r"^model_id must be a string, not object$"):
            start_options(client, MODEL, None, 1, "per_minute")


class TestLeases:
    async def test_without_a_choice_the_requests_stay_the_same(self, world: World) -> None:
        async with world() as (emu, client):
            async with client.instance(MODEL, HARDWARE) as inst:
                assert inst.receipt.hardware_type_id == HARDWARE
                assert inst.receipt.hardware_reason == ""
            plain = starting(emu)
        assert plain == ["token", "list", "start"]
        async with world() as (emu, client):
            async with client.instance(MODEL, [HARDWARE], capacity_timeout=60) as inst:
                assert inst.receipt.hardware_reason == ""
            assert starting(emu) == plain

    async def test_the_requests_of_a_choice(self, world: World) -> None:
        async with world() as (emu, client):
            async with client.instance(MODEL, [H100, L40S]):
                pass
            assert starting(emu) == ["model", "available", "token", "list", "start"]
        async with world() as (emu, client):
            async with client.instance(MODEL, "cheapest", max_price_per_hour=3):
                pass
            assert starting(emu) == ["model", "hardware_types", "available", "token", "list", "start"]
        async with world() as (emu, client):
            async with client.instance(MODEL, H100, max_price_per_hour=3):
                pass
            assert starting(emu) == ["hardware_types", "token", "list", "start"]

    async def test_unavailable_hardware_is_skipped_without_a_start_request(self, world: World) -> None:
        async with (
            world(capacity={H100: 0}) as (emu, client),
            client.instance(MODEL, [H100, L40S]) as inst,
        ):
            assert inst.receipt.hardware_type_id == L40S
            assert inst.receipt.hardware_reason == "second choice: NVIDIA_H100_1 was not available"
            assert "on NVIDIA_L40S_1 (second choice" in str(inst.receipt)
            assert [each.status for each in emu.requests if each.route == "start"] == [202]

    async def test_listed_but_refused(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with world(available_lag=60, journal="off") as (emu, client):
            emu.set_capacity(H100, 0)
            began = anyio.current_time()
            async with client.instance(MODEL, [H100, L40S]) as inst:
                assert inst.receipt.hardware_reason == "second choice: NVIDIA_H100_1 had no capacity"
            starts = [each for each in emu.requests if each.route == "start"]
            assert [each.status for each in starts] == [503, 202]
            assert starts[1].at - began < 0.1, "no retry policy before the next one"
        assert "Using NVIDIA_L40S_1 for meta-llama/Llama-3.1-8B-Instruct: second choice" in caplog.text

    async def test_not_listed_but_there(self, world: World) -> None:
        async with world(capacity={H100: 0, L40S: 0}, available_lag=60) as (emu, client):
            emu.set_capacity(L40S, 1)
            async with client.instance(MODEL, [H100, L40S]) as inst:
                assert inst.receipt.hardware_type_id == L40S

    async def test_the_list_of_available_hardware_is_not_required(self, world: World) -> None:
        async with world() as (emu, client):
            emu.add_fault(Fault("status", route="available", status=500, times=None))
            async with client.instance(MODEL, "cheapest") as inst:
                assert inst.receipt.hardware_reason == "cheapest of 4"

    async def test_all_are_refused(self, world: World) -> None:
        async with world(capacity={H100: 0, L40S: 0}) as (emu, client):
            with pytest.raises(
                errors.ServiceUnavailableError, match="No capacity: 1 x NVIDIA_L40S_1"
            ) as caught:
                async with client.instance(MODEL, [H100, "NVIDIA_H100_4", L40S]):
                    pass
            (note,) = caught.value.__notes__
            assert "NVIDIA_H100_4 does not run" in note
            assert (
                "NVIDIA_H100_1 was refused with 503 No capacity: 1 x NVIDIA_H100_1 requested, 0 free" in note
            )
            assert "NVIDIA_L40S_1 was refused with 503" in note
            assert emu.ledger == ()

    @pytest.mark.parametrize("status", [400, 404, 409, 422])
    async def test_a_rejection_that_may_concern_the_hardware(self, world: World, status: int) -> None:
        async with world() as (emu, client):
            emu.add_fault(Fault("status", route="start", status=status, body={"message": "Not on this."}))
            async with client.instance(MODEL, [H100, L40S]) as inst:
                assert inst.receipt.hardware_reason == "second choice: NVIDIA_H100_1 was rejected"

    @pytest.mark.parametrize("status", [401, 402, 403, 429])
    async def test_a_rejection_of_the_account(self, world: World, status: int) -> None:
        async with world(max_retries=0) as (emu, client):
            second = Fault("drop", route="start", text=L40S)
            emu.add_fault(second)
            emu.add_fault(Fault("status", route="start", status=status, body={"message": "No."}, times=None))
            with pytest.raises(errors.APIStatusError) as caught:
                async with client.instance(MODEL, [H100, L40S], capacity_timeout=60):
                    pass
            assert caught.value.status_code == status
            assert emu.unmet_faults == (second,), "the second one was never tried"

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("drop", route="start"),
            Fault("status", route="start", status=500),
            Fault("status", route="start", status=503, body="<html>Service Unavailable"),
            Fault("garbage", route="start"),
            Fault("status", route="start", status=404, body="<html>Not Found"),
        ],
        ids=lambda fault: f"{fault.kind}-{fault.status}",
    )
    async def test_nothing_is_tried_after_an_unknown_outcome(self, world: World, fault: Fault) -> None:
        async with world(capacity={H100: 1}, max_retries=0) as (emu, client):
            emu.add_fault(fault)
            try:
                async with client.instance(MODEL, [H100, L40S]) as inst:
                    assert inst.receipt.hardware_type_id == H100
            except errors.CortecsError:
                pass
            assert L40S not in {entry.hardware_type_id for entry in emu.ledger}
            assert emu.existing == ()

    async def test_a_refusal_after_an_unknown_outcome_is_not_certain(self, world: World) -> None:
        async with world(available_lag=600) as (emu, client):
            emu.set_capacity(H100, 0)
            emu.add_fault(Fault("drop", route="start"))
            with pytest.raises(errors.ServiceUnavailableError, match="NVIDIA_H100_1 requested"):
                async with client.instance(MODEL, [H100, L40S], start_timeout=3600, capacity_timeout=3600):
                    pass
            assert [each.route for each in emu.requests].count("start") == 2
            assert emu.ledger == ()

    async def test_the_note_after_an_unknown_outcome(self, world: World) -> None:
        async with world(available_lag=600, max_retries=0) as (emu, client):
            emu.set_capacity(H100, 0)
            emu.add_fault(Fault("drop", route="start", text=L40S))
            with pytest.raises(errors.TransportError) as caught:
                async with client.instance(MODEL, [H100, L40S, L4]):
                    pass
            assert caught.value.outcome_unknown
            assert caught.value.__notes__[0].startswith(
                "cortecs_async: Other hardware types: NVIDIA_H100_1 was refused with 503"
            )

    async def test_reuse_looks_for_all_candidates_before_anything_is_started(self, world: World) -> None:
        async with world(capacity={H100: 0}) as (emu, client):
            existing = emu.start_instance(MODEL, L40S)
            async with client.instance(MODEL, [H100, L40S], reuse=True) as inst:
                assert inst.instance_id == existing
                assert inst.receipt.hardware_reason == "reused"
            assert [each.route for each in emu.requests].count("start") == 0
            async with client.instance(MODEL, [H100, L4], reuse=True) as inst:
                assert inst.receipt.hardware_type_id == L4

    async def test_the_lifetime_is_that_of_the_hardware_that_is_used(self, world: World) -> None:
        async with world(available_lag=600, step_seconds=0.0) as (emu, client):
            emu.set_capacity(L40S, 0)
            with pytest.raises(errors.LeaseExpiredError):
                async with client.instance(MODEL, [L40S, H100], max_cost=0.15) as inst:
                    began = anyio.current_time()
                    assert inst.receipt.hardware_type_id == H100
                    await anyio.sleep_forever()
            assert math.isclose(anyio.current_time() - began, 175, abs_tol=2), "0.15 EUR are 3 min on it"

    async def test_the_lifetime_of_a_refused_start_does_not_count(self, world: World) -> None:
        async with world(available_lag=600) as (emu, client):
            emu.set_capacity(H100, 0)
            emu.add_fault(Fault("delay", route="start", seconds=28))
            emu.add_fault(Fault("delay", route="list", seconds=3, times=None))
            async with client.instance(MODEL, [H100, L40S], max_lifetime=30) as inst:
                assert inst.receipt.hardware_type_id == L40S
        async with world() as (emu, client):
            slow = Fault("status", route="start", status=429, headers={"retry-after": "40"})
            emu.add_fault(slow)
            async with client.instance(MODEL, L40S, max_lifetime=30) as inst:
                assert inst.receipt.seconds < 10

    async def test_a_restart_without_capacity(self, world: World) -> None:
        async with world() as (emu, client):
            stopped = emu.start_instance(MODEL, L40S)
            await anyio.sleep(30)
            emu.stop_instance(stopped)
            await anyio.sleep(60)
            emu.set_capacity(L40S, 0)
            with pytest.raises(errors.ServiceUnavailableError, match="/instances/restart returned 503"):
                async with client.instance(MODEL, L40S, reuse=True):
                    pass
            async with client.instance(MODEL, [L40S, H100], reuse=True) as inst:
                assert inst.instance_id != stopped
                assert inst.receipt.hardware_reason.startswith("second choice: NVIDIA_L40S_1 ")
            assert emu.existing == (stopped,)

    async def test_after_a_restart_with_an_unknown_outcome_nothing_is_started(self, world: World) -> None:
        async with world(max_retries=1) as (emu, client):
            stopped = emu.start_instance(MODEL, L40S)
            await anyio.sleep(30)
            emu.stop_instance(stopped)
            await anyio.sleep(60)
            emu.set_capacity(L40S, 0)
            emu.add_fault(Fault("drop", route="restart"))
            with pytest.raises(errors.CortecsError):
                async with client.instance(MODEL, [L40S, H100], reuse=True):
                    pass
            assert [each.route for each in emu.requests].count("start") == 0
            assert emu.existing == (stopped,)

    async def test_a_part_of_an_id(self, world: World) -> None:
        async with world() as (emu, client):
            for hardware in (["H100", L4], [L4, H100.lower()]):
                with pytest.raises(
                    errors.InvalidArgumentError,
                    match=r"^There is no hardware type (H100|nvidia_h100_1)\. Did you mean NVIDIA_H100_1\?",
                ):
                    async with client.instance(MODEL, hardware):
                        pass
            assert emu.ledger == ()

    async def test_a_ceiling_without_a_choice(self, world: World) -> None:
        async with world() as (emu, client):
            with pytest.raises(
                errors.InvalidArgumentError, match=r"NVIDIA_L40S_1 costs 1\.8 EUR per hour, more"
            ):
                async with client.instance(MODEL, max_price_per_hour=1):
                    pass
        async with world() as (emu, client):
            emu.set_price_info(L40S, {"price": "on request"})
            with pytest.raises(errors.PriceUnknownError, match="max_price_per_hour needs a price"):
                async with client.instance(MODEL, L40S, max_price_per_hour=1):
                    pass
            with pytest.raises(errors.PriceUnknownError, match="'cheapest' needs a price"):
                async with client.instance(MODEL, "cheapest"):
                    pass
            assert [each.route for each in emu.requests].count("start") == 0

    async def test_an_unknown_model(self, world: World) -> None:
        async with world() as (_, client):
            with pytest.raises(errors.BadRequestError, match="There is no model org/nothing"):
                async with client.instance("org/nothing", "cheapest"):
                    pass

    async def test_acquire(self, world: World) -> None:
        async with world(capacity={H100: 0}) as (emu, client):
            handle = await client.acquire(MODEL, [H100, L40S], max_lifetime=600)
            assert [entry.hardware_type_id for entry in emu.ledger] == [L40S]
            await client.release(handle)

    async def test_telemetry(self, world: World) -> None:
        seen: list[tuple[str | None, str]] = []

        class Recorded(Telemetry):
            def end(self, phase: Any, lease: Any, begun: Any, end: Any) -> None:
                if phase == "lease":
                    seen.append((lease.hardware_type_id, lease.hardware_reason))

        async with world(telemetry=Recorded()) as (_, client), client.instance(MODEL, "cheapest"):
            pass
        assert seen == [(L4, "cheapest of 4 available")]

    @pytest.mark.parametrize("hardware", ["cheapest", [H100, L40S]])
    async def test_a_plain_start_says_what_accepts_a_list(self, world: World, hardware: Any) -> None:
        async with world() as (emu, client):
            for start in (client.instances.start, client.instances.ensure):
                with pytest.raises(
                    errors.InvalidArgumentError, match=r"client\.instance, acquire, and run_batch"
                ):
                    await start(MODEL, hardware)
            assert emu.requests == ()

    async def test_refused_intents_are_closed_before_the_next_one(
        self, world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events: list[str] = []
        record, close = Promises.record_intent, Promises.close

        async def record_intent(self: Promises, *args: Any, **options: Any) -> str:
            events.append("intent")
            return await record(self, *args, **options)

        async def closed(self: Promises, key: str) -> None:
            await close(self, key)
            events.append("closed")

        monkeypatch.setattr(Promises, "record_intent", record_intent)
        monkeypatch.setattr(Promises, "close", closed)
        async with world(journal="required", available_lag=60) as (emu, client):
            emu.set_capacity(H100, 0)
            async with client.instance(MODEL, [H100, L40S]):
                assert events == ["intent", "closed", "intent"]


def starting(emu: Emulator) -> list[str]:
    """Return the routes up to the first start request."""
    routes = [str(each.route) for each in emu.requests]
    return routes[: routes.index("start") + 1]
