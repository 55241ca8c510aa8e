"""Test `acquire`, `release` and `attach`."""

from __future__ import annotations

import pickle
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, InstanceHandle, errors
from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.emulator._emulator import _EPOCH


def another_client(emu: Emulator, **more: Any) -> AsyncCortecs:
    """Return a client as another process has it."""
    return AsyncCortecs(
        emu.client_id,
        emu.client_secret,
        api_base_url=emu.api_base_url,
        http_client=httpx.AsyncClient(transport=emu.transport()),
        guard="off",
        **more,
    )


async def test_what_one_process_acquires_another_releases(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        assert emu.billing == (handle.instance_id,)
        assert handle.base_url.endswith("/v1")
        assert handle.model == MODEL
        assert handle.openai_kwargs(api_key="k") == {"base_url": handle.base_url, "api_key": "k"}
    assert emu.billing == (handle.instance_id,)
    async with another_client(emu, journal="auto") as other:
        # Nobody's orphan: its holder answers for it.
        assert await other.sweep() == ()
        for _ in range(3):
            await other.release(handle)
            assert emu.existing == ()
    assert list(read_journals(journals)) == []
    await other._wiring.http._transport.connections.pools[0].client.aclose()


async def test_an_instance_that_is_found_after_its_lifetime_is_not_handed_over(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        emu.add_fault(Fault("status", route="list", status=500, skip=1, times=60))
        with pytest.raises(errors.LeaseExpiredError, match="was reached before the instance"):
            await client.acquire(MODEL, HARDWARE, max_lifetime=60)
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_an_instance_whose_lifetime_ended_while_the_machine_was_suspended_is_not_handed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    for module in ("state", "start_state"):
        monkeypatch.setattr(f"cortecs_async._lease.{module}.suspended", lambda: seconds[0])
    async with world(step_seconds=0.0) as (emu, client), anyio.create_task_group() as tasks:
        emu.add_fault(Fault("delay", route="start", when="after", seconds=5.0))

        async def suspend() -> None:
            await anyio.sleep(2.0)
            seconds[0] = 60.0

        tasks.start_soon(suspend)
        # It runs as soon as it is known, so nothing has to be waited for.
        with pytest.raises(errors.LeaseExpiredError, match="max_lifetime=60 s before it was running"):
            await client.acquire(MODEL, HARDWARE, max_lifetime=60)
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_a_lease_hands_out_its_handle_and_stays_its_owner(world: World, journals: Path) -> None:
    async with world() as (emu, client):
        began = _EPOCH + anyio.current_time()
        lease = client.instance(MODEL, max_lifetime=3600)
        with pytest.raises(errors.InvalidArgumentError, match="no instance yet"):
            _ = lease.handle
        async with lease as inst:
            handle = pickle.loads(pickle.dumps(inst.handle))  # noqa: S301  (our own)
            assert (handle.instance_id, handle.base_url, handle.model) == (
                inst.instance_id,
                inst.base_url,
                inst.model,
            )
            assert handle.account == client._wiring.promises.account != ""
            assert handle.expires_at == pytest.approx(began + 3600)
        assert emu.existing == ()
        await client.release(handle)


async def test_what_holds_connections_is_not_pickled(world: World) -> None:
    async with world() as (_, client), client.instance(MODEL) as inst:
        with pytest.raises(TypeError, match=r"Send `inst\.handle`"):
            pickle.dumps(inst)
        with pytest.raises(TypeError, match="Create one in each process"):
            pickle.dumps(client)


def test_a_handle_travels_as_json_and_as_a_pickle() -> None:
    handle = InstanceHandle(
        instance_id="i-1", base_url="https://host/v1", model=MODEL, account="a1", expires_at=5.0
    )
    assert InstanceHandle.from_json(handle.to_json()) == handle
    assert pickle.loads(pickle.dumps(handle)) == handle  # noqa: S301  (our own)
    for text in ["", "[]", "{}", '{"instance_id": "i-1"}', "nonsense"]:
        with pytest.raises(errors.InvalidArgumentError):
            InstanceHandle.from_json(text)


async def test_an_id_is_as_good_as_a_handle(world: World) -> None:
    async with world() as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        await client.release(handle.instance_id)
        assert emu.existing == ()
        await client.release("instance-99999")
        with pytest.raises(errors.InvalidArgumentError):
            await client.release("")
        with pytest.raises(errors.InvalidArgumentError):
            await client.release(None)  # type: ignore[arg-type]


BLIP = (Fault("omit", route="get"), Fault("omit", route="list"))


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        # The list before the release lacks it.
        ((Fault("omit", route="list"),), ["list", "stop", "delete", "list"]),
        # The same, and no stop or get knows it at first.
        (
            (Fault("omit", route="list"), Fault("status", route="stop", status=404), *BLIP),
            ["list", "stop", "get", "list", "stop", "delete", "list"],
        ),
        (
            (Fault("omit", route="list"), Fault("drop", route="delete")),
            ["list", "stop", "delete", "get", "delete", "list"],
        ),
    ],
)
async def test_one_list_without_the_instance_does_not_end_a_release(
    world: World, journals: Path, faults: tuple[Fault, ...], expected: list[str]
) -> None:
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        before = len(emu.requests)
        for fault in faults:
            emu.add_fault(fault)
        await client.release(handle)
        assert emu.existing == ()
        assert [each.route for each in emu.requests[before:]] == expected
        assert emu.unmet_faults == ()
    assert list(read_journals(journals)) == []


async def test_a_release_of_what_is_gone_takes_readings_that_agree(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        emu.delete_instance(handle.instance_id)
        before, began = len(emu.requests), anyio.current_time()
        await client.release(handle)
        assert anyio.current_time() - began == 5.0
        assert [each.route for each in emu.requests[before:]] == ["list", *(["stop", "get", "list"] * 2)]
    assert list(read_journals(journals)) == []


async def test_a_release_that_cannot_be_confirmed_stays_in_the_journal(world: World, journals: Path) -> None:
    """The service fails on every stop, and no reading shows the instance. It is billed all the time."""
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        emu.add_fault(Fault("omit", times=None))
        with pytest.raises(errors.TeardownError, match="MAY STILL BE BILLED"):
            await client.release(handle, teardown_timeout=60)
        ((_, state),) = read_journals(journals)
        assert [each.instance_id for each in state.promises.values()] == [handle.instance_id]
        emu.clear_faults()
        await client.release(handle)
        assert emu.existing == ()
    assert list(read_journals(journals)) == []


async def test_a_handle_of_another_account_is_not_taken_for_gone(world: World) -> None:
    async with world() as (_emu, client), world(client_id="somebody else") as (_, other):
        handle = await client.acquire(MODEL, HARDWARE)
        with pytest.raises(errors.InvalidArgumentError, match="different credentials"):
            await other.release(handle)
        await client.release(handle)


async def test_acquiring_fails_as_entering_does_and_leaves_nothing(world: World) -> None:
    async with world(step_seconds=100.0) as (emu, client):
        with pytest.raises(errors.StartTimeoutError):
            await client.acquire(MODEL, HARDWARE, start_timeout=5)
        assert emu.existing == ()
        with anyio.move_on_after(5) as scope:
            await client.acquire(MODEL, HARDWARE)
        assert scope.cancelled_caught
        assert emu.existing == ()
        with pytest.raises(errors.InvalidArgumentError):
            await client.acquire(MODEL, HARDWARE, max_lifetime=-1)


async def test_a_cancelled_release_still_releases(world: World) -> None:
    async with world(stop_seconds=20.0) as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        with anyio.move_on_after(5) as scope:
            await client.release(handle)
            await anyio.sleep(100)
        assert scope.cancelled_caught
        assert emu.existing == ()


async def test_a_release_that_cannot_be_done_says_so(world: World) -> None:
    async with world() as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        with pytest.raises(errors.TeardownError, match=handle.instance_id):
            await client.release(handle, teardown_timeout=30)


async def test_what_was_acquired_for_a_time_is_swept_after_it(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE, max_lifetime=600)
        assert handle.expires_at is not None
    # Its process and the reaper are dead.
    async with another_client(emu, journal="auto") as other:
        assert [each.state for each in await other.sweep()] == ["held"]
        assert emu.billing == (handle.instance_id,)
        await anyio.sleep(600)
        (orphan,) = await other.orphans()
        assert (orphan.state, orphan.instance_id) == ("found", handle.instance_id)
        assert emu.billing == (handle.instance_id,)
        assert [each.state for each in await other.sweep()] == ["released"]
        assert emu.existing == ()
    assert list(read_journals(journals)) == []
    await other._wiring.http._transport.connections.pools[0].client.aclose()


async def test_released_by_who_acquired_it_nothing_is_left_to_sweep(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE, max_lifetime=600)
        await client.release(handle)
        assert emu.existing == ()
    assert list(read_journals(journals)) == []


async def test_a_kept_instance_with_a_time_limit_is_swept_after_it(world: World, journals: Path) -> None:
    async with world(journal="required") as (emu, client):
        async with client.instance(MODEL, HARDWARE, on_exit="keep", max_lifetime=600) as inst:
            pass
        assert emu.billing == (inst.instance_id,)
    await anyio.sleep(700)
    async with another_client(emu, journal="auto") as other:
        assert [each.state for each in await other.sweep()] == ["released"]
    assert emu.existing == ()
    assert list(read_journals(journals)) == []
    await other._wiring.http._transport.connections.pools[0].client.aclose()


# --- attach -------------------------------------------------------------------------------------------------


async def test_attach_waits_and_leaves_as_it_found(world: World) -> None:
    async with world(step_seconds=5.0) as (emu, client):
        theirs = emu.start_instance(MODEL, HARDWARE)
        async with client.attach(theirs) as inst:
            assert inst.instance_id == theirs
            assert inst.model == MODEL
            assert inst.base_url
        assert emu.billing == (theirs,)
        with pytest.raises(KeyError):
            async with client.attach(theirs):
                raise KeyError
        with anyio.move_on_after(1):
            async with client.attach(theirs):
                await anyio.sleep(10)
        assert emu.billing == (theirs,)
        assert {record.route for record in emu.requests} == {"token", "get"}


async def test_attach_notices_a_loss(world: World) -> None:
    async with world() as (emu, client):
        theirs = emu.start_instance(MODEL, HARDWARE)
        with pytest.raises(errors.InstanceLostError):
            async with client.attach(theirs):
                emu.delete_instance(theirs)
                await anyio.sleep(1000)


@grid(strength=1, lag=[(0, 15), (15, 0), (0, 0, 15)], anyio_backend=BACKENDS)
async def test_attach_does_not_believe_one_replica_that_lags(world: World, lag: tuple[float, ...]) -> None:
    async with world(list_lag=lag, get_lag=lag) as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE, max_lifetime=300)
        async with AsyncExitStack() as stack:
            for _ in range(4):
                inst = await stack.enter_async_context(client.attach(handle.instance_id))
                assert inst.instance_id == handle.instance_id
        assert emu.billing == (handle.instance_id,)


async def test_attach_to_what_does_not_run_is_an_error(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.BadRequestError):
            async with client.attach("instance-99999"):
                pytest.fail("entered")
        stopped = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(stopped)
        with pytest.raises(errors.StartFailedError):
            async with client.attach(stopped):
                pytest.fail("entered")
        assert emu.existing == (stopped,)
        with pytest.raises(errors.InvalidArgumentError):
            client.attach("delete-all")


async def test_the_release_of_an_acquired_instance_is_promised_before_it_begins(
    world: World, journals: Path
) -> None:
    async with world(journal="required") as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        assert next(iter(read_journals(journals)))[1].promises == {}
        promised: list[str | None] = []
        exchange = emu.exchange

        async def note(call: Any) -> Any:
            if call.path.endswith("/instances/stop"):
                for _, book in read_journals(journals):
                    promised.extend(each.instance_id for each in book.promises.values())
            return await exchange(call)

        emu.exchange = note  # type: ignore[method-assign]
        await client.release(handle)
        assert promised == [handle.instance_id]
