"""Test `async with client.instance(...)`: what it does, and that it leaves nothing behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _grids import BACKENDS, grid
from _scripted import instance
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, Progress, RetryPolicy, TeardownError, errors
from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Emulator, Fault


def replace_by_file(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    directory.write_text("a file stands here")


def routes(emu: Emulator) -> list[str | None]:
    return [record.route for record in emu.requests]


async def test_the_main_job(world: World) -> None:
    async with world(step_seconds=2.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE, context_length=8192) as inst:
            assert emu.billing == (inst.instance_id,)
            assert inst.base_url == f"http://localhost/inference/{inst.instance_id}/v1"
            assert inst.model == MODEL
            assert inst.instance.status == "running"
            assert inst.instance.instance_args.context_length == 8192
            assert inst.instance_id in repr(inst)
        assert emu.existing == ()
        (entry,) = emu.ledger
        assert entry.status == "deleted"
        assert entry.deleted_at is not None


async def test_the_clean_path_sends_no_more_than_it_must(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            at_entry = routes(emu)
        # The token; what exists already, to know what is new; the start; the price list, once a client; 4 s
        # of provisioning at 0.5 s a look; then stop, delete, and one list to see that it is gone.
        assert at_entry[:4] == ["token", "list", "start", "hardware_types"]
        assert set(at_entry[4:]) == {"get"}
        assert len(at_entry) <= 4 + 8
        assert routes(emu)[len(at_entry) :] == ["stop", "delete", "list"]


async def test_a_second_lease_needs_neither_token_nor_price_list(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            pass
        # What existed a moment ago tells the next lease as well.
        for pause, baseline in ((0.5, []), (1.5, ["list"])):
            await anyio.sleep(pause)
            before = len(emu.requests)
            async with client.instance(MODEL, HARDWARE):
                pass
            assert routes(emu)[before:] == [*baseline, "start", "stop", "delete", "list"]


async def test_a_stop_that_takes_its_time_is_waited_for(world: World) -> None:
    async with world(stop_seconds=7.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            pass
        assert emu.existing == ()


async def test_the_bodys_exception_comes_out_as_it_was(world: World) -> None:
    problem = KeyError("mine")
    async with world() as (emu, client):
        with pytest.raises(KeyError) as caught:
            async with client.instance(MODEL, HARDWARE):
                raise problem
        assert caught.value is problem
        assert not hasattr(problem, "__notes__")
        assert emu.existing == ()


async def test_fifty_leases_close_side_by_side(world: World) -> None:
    async with world(step_seconds=1.0, stop_seconds=3.0, capacity={HARDWARE: 50}) as (emu, client):
        # Waits share the list that is under way, so answers must take a moment, as those of any network.
        emu.add_fault(Fault("delay", seconds=0.05, times=None))
        ready = 0
        all_ready = anyio.Event()

        async def job() -> None:
            nonlocal ready
            async with client.instance(MODEL, HARDWARE):
                ready += 1
                if ready == 50:
                    all_ready.set()
                await all_ready.wait()

        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(job)
        assert anyio.current_time() - start < 15
        assert emu.existing == ()
        assert routes(emu).count("token") == 1
        assert routes(emu).count("list") < 20


# --- how it starts ------------------------------------------------------------------------------------------


async def test_progress_is_reported_step_by_step(world: World) -> None:
    seen: list[Progress] = []
    async with world(step_seconds=2.0) as (_emu, client):
        async with client.instance(MODEL, HARDWARE, num_workers=2, on_progress=seen.append):
            pass
    assert [progress.leading.current_step for progress in seen] == [1, 2, 3, 4, 5]
    assert [len(progress.workers) for progress in seen] == [2] * 5
    assert seen[0].fraction == 0.0
    assert seen[-1].fraction == 1.0
    assert sorted(progress.fraction for progress in seen) == [progress.fraction for progress in seen]
    assert 8.0 <= seen[-1].elapsed <= 8.8
    assert all(progress.description for progress in seen)


async def test_an_async_callback_is_awaited(world: World) -> None:
    seen: list[str] = []

    async def note(progress: Progress) -> None:
        await anyio.sleep(0.01)
        seen.append(progress.instance.status)

    async with world() as (_emu, client), client.instance(MODEL, HARDWARE, on_progress=note):
        assert seen[-1] == "running"


async def test_a_callback_that_raises_ends_the_start_and_the_instance(world: World) -> None:
    def refuse(progress: Progress) -> None:
        if progress.leading.current_step == 3:
            raise ZeroDivisionError

    async with world() as (emu, client):
        with pytest.raises(ZeroDivisionError):
            async with client.instance(MODEL, HARDWARE, on_progress=refuse):
                pytest.fail("entered")
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_a_start_that_takes_too_long_is_torn_down(world: World) -> None:
    async with world(step_seconds=100.0) as (emu, client):
        start = anyio.current_time()
        with pytest.raises(errors.StartTimeoutError, match="step 1 of 5") as caught:
            async with client.instance(MODEL, HARDWARE, start_timeout=30):
                pytest.fail("entered")
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.instance_id == emu.ledger[0].instance_id
        assert 30 <= anyio.current_time() - start < 35
        assert emu.existing == ()


@grid(anyio_backend=BACKENDS, route=["token", "start"], reuse=[False, True])
async def test_a_start_that_cannot_even_be_made_in_time(world: World, route: str, reuse: bool) -> None:  # noqa: FBT001
    async with world(retry_policy=RetryPolicy(max_retries=100, total_timeout=1000)) as (emu, client):
        emu.add_fault(Fault("status", route=route, status=429, times=None))
        start = anyio.current_time()
        with pytest.raises(errors.RequestTimeoutError, match="start_timeout=20 s") as caught:
            async with client.instance(MODEL, HARDWARE, start_timeout=20, reuse=reuse):
                pytest.fail("entered")
        assert anyio.current_time() - start == pytest.approx(20, abs=0.1)
        assert not caught.value.outcome_unknown
        assert emu.ledger == ()


async def test_an_answer_that_comes_after_the_deadline_still_counts(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=12.0))
        with pytest.raises(errors.RequestTimeoutError, match="searches for its instance") as caught:
            async with client.instance(MODEL, HARDWARE, start_timeout=10):
                pytest.fail("entered")
        assert caught.value.outcome_unknown
        (entry,) = emu.ledger
        assert entry.status == "deleted"
        assert entry.stopped_at == pytest.approx(12.0, abs=1.0)


@pytest.mark.parametrize("at", [1.0, 15.0])
async def test_an_instance_stopped_by_others_while_starting(world: World, at: float) -> None:
    async with world(step_seconds=10.0) as (emu, client):

        async def meddle() -> None:
            await anyio.sleep(at)
            emu.stop_instance(emu.existing[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meddle)
            with pytest.raises(errors.StartFailedError, match="'stopped'"):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert emu.existing == ()


async def test_an_instance_that_vanishes_while_starting(world: World) -> None:
    async with world(step_seconds=10.0) as (emu, client):

        async def meddle() -> None:
            await anyio.sleep(15)
            emu.delete_instance(emu.existing[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meddle)
            with pytest.raises(errors.InstanceGoneError):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")


@pytest.mark.parametrize(
    ("options", "arguments", "expected"),
    [
        ({}, {"model_id": "nobody/no-such-model"}, errors.BadRequestError),
        ({}, {"hardware_type_id": "ABACUS_1"}, errors.BadRequestError),
        ({}, {"context_length": 10**9}, errors.BadRequestError),
        ({"balance": 0.0}, {}, errors.InsufficientBalanceError),
        ({"capacity": {HARDWARE: 0}}, {}, errors.ServiceUnavailableError),
        ({"capacity": {HARDWARE: 3}}, {"num_workers": 4}, errors.ServiceUnavailableError),
    ],
)
async def test_a_refused_start_leaves_nothing(
    world: World, options: dict[str, Any], arguments: dict[str, Any], expected: type[Exception]
) -> None:
    async with world(**options) as (emu, client):
        with pytest.raises(expected):
            async with client.instance(**{"model_id": MODEL, "hardware_type_id": HARDWARE, **arguments}):
                pytest.fail("entered")
        assert emu.ledger == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_id": ""},
        {"model_id": "a/b/c"},
        {"model_id": None},
        {"hardware_type_id": ""},
        {"num_workers": 0},
        {"num_workers": 9},
        {"num_workers": True},
        {"num_workers": 1.5},
        {"billing_interval": "hourly"},
        {"context_length": -1},
        {"context_length": 0},
        {"start_timeout": 0},
        {"teardown_timeout": -1},
        {"on_exit": "explode"},
        {"on_progress": "loud"},
        {"reuse": "false"},
    ],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_bad_arguments_are_refused_before_any_request(world: World, arguments: dict[str, Any]) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.InvalidArgumentError) as caught:
            client.instance(**{"model_id": MODEL, "hardware_type_id": HARDWARE, **arguments})
        assert isinstance(caught.value, ValueError)
        assert emu.requests == ()


async def test_no_credentials_and_wrong_ones(world: World) -> None:
    async with world() as (emu, _client):
        http = httpx.AsyncClient(transport=emu.transport())
        async with http:
            client = AsyncCortecs(api_base_url=emu.api_base_url, http_client=http)
            with pytest.raises(errors.MissingCredentialsError, match="CORTECS_CLIENT_ID"):
                client.instance(MODEL, HARDWARE)
            await client.aclose()
        http = httpx.AsyncClient(transport=emu.transport())
        async with (
            http,
            AsyncCortecs("who", "knows", api_base_url=emu.api_base_url, http_client=http) as client,
        ):
            with pytest.raises(errors.AuthenticationError, match="CORTECS_CLIENT_SECRET"):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert emu.ledger == ()


# --- how it ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_exit", "status"), [("stop", "stopped"), ("keep", "running")])
async def test_on_exit(world: World, on_exit: Any, status: str) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE, on_exit=on_exit) as inst:
            pass
        assert (await client.instances.get(inst.instance_id)).status == status
        assert emu.existing == (inst.instance_id,)


FAULTS: dict[str, dict[str, Any]] = {
    "lost request": {"kind": "drop", "when": "before"},
    "lost answer": {"kind": "drop", "when": "after"},
    "500 before": {"kind": "status", "when": "before", "status": 500},
    "502 after": {"kind": "status", "when": "after", "status": 502, "body": "<title>Bad Gateway</title>"},
    "401": {"kind": "status", "when": "before", "status": 401},
    "409": {"kind": "status", "when": "before", "status": 409},
    "429": {"kind": "status", "when": "before", "status": 429, "headers": {"Retry-After": "2"}},
    "garbage": {"kind": "garbage", "when": "after"},
    "cut short": {"kind": "truncate", "when": "after"},
}


@grid(anyio_backend=BACKENDS, route=["stop", "delete", "list"], times=[1, 3, 20], fault=FAULTS)
async def test_teardown_gets_through_faults(world: World, route: str, times: int, fault: str) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE, teardown_timeout=600):
            emu.add_fault(Fault(route=route, times=times, **FAULTS[fault]))
        assert emu.existing == ()
        # The next reading shows that the instance is stopped. Its deletion is confirmed by a second delete.
        at_most = (
            {"stop": 1, "delete": 2, "list": times}[route] if FAULTS[fault]["when"] == "after" else times
        )
        met = min(times, at_most)
        assert sum(record.fault is not None for record in emu.requests) == met


async def test_after_a_delete_whose_response_cannot_be_read_the_instance_is_read(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            emu.add_fault(Fault("garbage", route="delete", times=None))
        assert emu.existing == ()
        assert sum(record.route == "delete" for record in emu.requests) == 2


async def test_teardown_gets_through_a_slow_service(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE, teardown_timeout=600):
            emu.add_fault(Fault("delay", when="before", times=3, seconds=100.0))
        assert emu.existing == ()


async def test_an_instance_that_was_stopped_or_deleted_meanwhile_is_no_problem(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            await client.instances.stop(inst.instance_id)
        async with client.instance(MODEL, HARDWARE) as inst:
            await client.instances.stop(inst.instance_id)
            await client.instances.delete(inst.instance_id)
        assert emu.existing == ()


async def test_a_teardown_that_cannot_succeed_says_what_may_still_be_billed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as (emu, client):
        with pytest.raises(TeardownError, match="MAY STILL BE BILLED") as caught:
            async with client.instance(MODEL, HARDWARE, teardown_timeout=60) as inst:
                emu.add_fault(Fault("status", status=500, times=None))
                start = anyio.current_time()
        assert caught.value.instance_id == inst.instance_id
        assert 60 <= anyio.current_time() - start < 61
    assert [record.levelno for record in caplog.records if inst.instance_id in record.message][
        -1
    ] == logging.CRITICAL


@pytest.mark.parametrize(
    ("journal", "until", "successor"),
    [
        ("auto", "the end", "`cortecs-async sweep` releases it"),
        ("auto", "the block", "Call `client.sweep()` in this process"),
        ("off", "never", "Call `client.sweep()` in this process"),
    ],
)
async def test_a_teardown_that_cannot_succeed_names_only_who_knows_of_the_instance(
    world: World, journals: Path, caplog: pytest.LogCaptureFixture, journal: str, until: str, successor: str
) -> None:
    """The journal can be written until then."""
    async with world(journal=journal) as (emu, client):
        with pytest.raises(TeardownError) as caught:
            async with client.instance(MODEL, HARDWARE, teardown_timeout=60):
                emu.add_fault(Fault("status", status=500, times=None))
                if until == "the block":
                    replace_by_file(journals)
        assert f"MAY STILL BE BILLED. {successor}" in str(caught.value)
        assert str(caught.value) in caplog.text


@pytest.mark.parametrize(
    ("guard", "problem", "successor"),
    [
        ("auto", None, "The reaper, a background process, releases it"),
        ("auto", "the reaper died repeatedly", "`cortecs-async sweep` releases it"),
        ("off", None, "`cortecs-async sweep` releases it"),
    ],
)
async def test_only_a_reaper_that_runs_is_said_to_release_an_instance(
    world: World, guard: str, problem: str | None, successor: str
) -> None:
    async with world(guard=guard, journal="auto") as (_, client):
        promises = client._wiring.promises
        promises.store.reaper_problem = problem
        assert promises.who_releases() == successor


async def test_a_failed_teardown_does_not_hide_the_bodys_exception(world: World) -> None:
    problem = KeyError("mine")
    async with world() as (emu, client):
        with pytest.raises(KeyError) as caught:
            async with client.instance(MODEL, HARDWARE, teardown_timeout=60) as inst:
                emu.add_fault(Fault("drop", times=None))
                raise problem
        assert caught.value is problem
        assert inst.instance_id in problem.__notes__[0]


async def test_a_failed_start_whose_teardown_fails_keeps_its_error(world: World) -> None:
    async with world(step_seconds=100) as (emu, client):
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        with pytest.raises(errors.StartTimeoutError) as caught:
            async with client.instance(MODEL, HARDWARE, start_timeout=5, teardown_timeout=30):
                pytest.fail("entered")
        assert emu.existing[0] in caught.value.__notes__[0]


async def test_a_client_closed_too_early_still_lets_leases_release(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            await client.aclose()
            with pytest.raises(errors.ClientClosedError):
                await client.instances.get(inst.instance_id)
        assert emu.existing == ()
        with pytest.raises(errors.ClientClosedError):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        with pytest.raises(errors.ClientClosedError):
            await client.instances.wait_until_running("instance-1")


# --- reuse --------------------------------------------------------------------------------------------------


async def test_reuse_leaves_a_running_instance_running(world: World) -> None:
    async with world() as (emu, client):
        found = emu.start_instance("meta-llama--Llama-3.1-8B-Instruct", HARDWARE)
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id == found
        assert emu.billing == (found,)
        assert "stop" not in routes(emu)


async def test_reuse_stops_again_what_it_restarted(world: World) -> None:
    async with world() as (emu, client):
        found = emu.start_instance("meta-llama--Llama-3.1-8B-Instruct", HARDWARE)
        emu.stop_instance(found)
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id == found
        assert emu.existing == (found,)
        assert emu.billing == ()


async def test_reuse_starts_and_deletes_its_own_where_there_is_none(world: World) -> None:
    async with world() as (emu, client):
        other = emu.start_instance("meta-llama--Llama-3.1-8B-Instruct", "NVIDIA_L40S_1")
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id != other
        assert emu.existing == (other,)


# --- the handle ---------------------------------------------------------------------------------------------


async def test_a_lease_serves_one_block_and_is_empty_before_it(world: World) -> None:
    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE)
        assert "meta-llama" in repr(lease)
        with pytest.raises(errors.InvalidArgumentError, match="async with"):
            _ = lease.instance_id
        async with lease:
            with pytest.raises(errors.InvalidArgumentError, match="running"):
                await lease.__aenter__()
        with pytest.raises(errors.InvalidArgumentError, match="ended"):
            await lease.__aenter__()
        assert len(emu.ledger) == 1


async def test_openai_kwargs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as (_emu, client), client.instance(MODEL, HARDWARE) as inst:
        with pytest.raises(errors.ConfigurationError, match="OPENAI_API_KEY"):
            inst.openai_kwargs()
        monkeypatch.setenv("OPENAI_API_KEY", "from-openai")
        assert inst.openai_kwargs() == {"base_url": inst.base_url, "api_key": "from-openai"}
        monkeypatch.setenv("CORTECS_API_KEY", "from-cortecs")
        assert inst.openai_kwargs()["api_key"] == "from-cortecs"
        assert inst.openai_kwargs(api_key="given")["api_key"] == "given"


EMPTY = Fault("status", route="list", status=200, body={"instances": []}, skip=1, times=4)


@pytest.mark.parametrize(
    "faults",
    [
        (Fault("status", route="get", status=404, times=4), EMPTY),
        # Then status checks fail until well after the settle time, when a 404 would count.
        (Fault("status", route="get", status=404), EMPTY, Fault("status", route="get", status=503, times=9)),
    ],
    ids=["for a while", "at first"],
)
async def test_a_new_instance_may_not_be_visible_yet(world: World, faults: tuple[Fault, ...]) -> None:
    async with world(step_seconds=4.0) as (emu, client):
        for fault in faults:
            emu.add_fault(fault)
        async with client.instance(MODEL, HARDWARE) as inst:
            assert inst.instance.is_usable
        assert len(emu.ledger) == 1


async def test_an_instance_that_vanishes_after_its_start_is_given_up_after_settle(
    world: World,
) -> None:
    async with world(step_seconds=10.0) as (emu, client):

        async def meddle() -> None:
            await anyio.sleep(1.0)
            emu.delete_instance(emu.existing[0])

        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meddle)
            with pytest.raises(errors.InstanceGoneError):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        # One replica of the service may lag behind another for a minute.
        assert 60.0 + 5.0 <= anyio.current_time() - began <= 60.0 + 3 * 5.0
        assert routes(emu)[-6:] == ["stop", "get", "list"] * 2
        assert routes(emu).count("stop") == 2


async def test_an_instance_that_stops_right_after_its_start_is_given_up_after_settle(world: World) -> None:
    async with world(step_seconds=10.0) as (emu, client):

        async def meddle() -> None:
            await anyio.sleep(1.0)
            emu.stop_instance(emu.existing[0])

        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meddle)
            with pytest.raises(errors.StartFailedError, match="its status is 'stopped'"):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        # Until then, the service may still show how it was before the start.
        assert 10.0 <= anyio.current_time() - began <= 10.0 + 3.0
        assert emu.existing == ()


async def test_an_accepted_stop_without_effect_is_sent_again(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            accepted = {"message": "Stopping.", "instance": instance(inst.instance_id, "running")}
            emu.add_fault(Fault("status", route="stop", status=200, body=accepted))
        assert [record.route for record in emu.requests].count("stop") == 2
        assert emu.existing == ()


async def test_a_release_that_times_out_is_left_to_the_reaper(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        with pytest.raises(errors.TeardownError):
            async with client.instance(MODEL, HARDWARE, teardown_timeout=30):
                emu.add_fault(Fault("status", route="stop", status=500, times=None))
        (entry,) = client._wiring.promises.store.abandoned()
        assert (entry.instance_id,) == emu.billing
    ((_, book),) = read_journals(journals)
    assert [each.abandoned for each in book.promises.values()] == [True]
