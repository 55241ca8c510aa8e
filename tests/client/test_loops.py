"""A client in another event loop than its own raises an error, and never waits forever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import AsyncCortecs, InstanceLease, errors
from cortecs_async._http.messages import Call
from cortecs_async.emulator import Emulator, Fault, serve_emulator


async def lease(client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE):
        pytest.fail("entered")


async def enter(client: AsyncCortecs) -> None:
    await client.__aenter__()  # the end of a block would raise the same error
    pytest.fail("entered")


async def watch(client: AsyncCortecs) -> None:
    async for _ in client.instances.watch("instance-10001"):
        pytest.fail("found")


CALLS: dict[str, Callable[[AsyncCortecs], Awaitable[Any]]] = {
    "enter": enter,
    "instance": lease,
    "acquire": lambda client: client.acquire(MODEL, HARDWARE),
    "release": lambda client: client.release("instance-10001"),
    "list": lambda client: client.instances.list(),
    "ensure": lambda client: client.instances.ensure(MODEL, HARDWARE),
    "wait_until_running": lambda client: client.instances.wait_until_running("instance-10001"),
    "watch": watch,
    "with_options": lambda client: client.with_options(timeout=1).models.list(),
    "request": lambda client: client.request("GET", "/models/"),
    "sweep": lambda client: client.sweep(),
    "owners": lambda client: client.owners(),
    "diagnose": lambda client: client.diagnose(),
    "aclose": lambda client: client.aclose(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_each_call_raises_at_once(world: World, name: str) -> None:
    async with world() as (emu, client):
        await client.instances.list()
        number, bound = len(emu.requests), client._wiring.http.loop._bound
        own, bound["loop"] = bound["loop"], object()
        # What another event loop would wait for in vain.
        client._wiring._leased.poller._has_leader = True
        await client.instances.ensure_locks[MODEL.replace("/", "--")].__aenter__()
        with pytest.raises(errors.ConfigurationError, match="different event loop"):
            await CALLS[name](client)
        assert len(emu.requests) == number
        # The client still works in its own event loop.
        bound["loop"] = own
        assert client._closed == (name == "aclose")
        assert not client._wiring.http._closed
        call = Call(method="GET", path="/models/", authenticated=False)
        assert (await client._wiring.http.request(call)).status == 200


@pytest.mark.parametrize("raised", [None, KeyError("mine")])
async def test_a_lease_that_is_left_in_another_loop_is_left_to_others(
    world: World, caplog: pytest.LogCaptureFixture, raised: KeyError | None
) -> None:
    async with world() as (_, client):
        bound = client._wiring.http.loop._bound
        inst = client.instance(MODEL, HARDWARE)
        await inst.__aenter__()
        ended = asyncio.new_event_loop()
        own, bound["loop"] = bound["loop"], ended
        if raised is None:
            with pytest.raises(errors.ConfigurationError, match="different event loop"):
                await inst.__aexit__(None, None, None)
        else:
            await inst.__aexit__(KeyError, raised, None)
            assert "Could not release instance instance-10001 here" in raised.__notes__[0]
        ended.close()
        bound["loop"] = own
        assert "Not released before the event loop ended" in caplog.text


@pytest.mark.sockets
def test_a_lease_that_is_left_in_another_thread_is_released_in_its_own_loop(tmp_path: Path) -> None:
    async def leave(inst: InstanceLease) -> None:
        with pytest.raises(errors.ConfigurationError, match="different event loop"):
            await inst.__aexit__(None, None, None)

    async def enter(emulator: Emulator) -> None:
        async with client_of(emulator, state_dir=tmp_path, guard="off") as client:
            inst = client.instance(MODEL)
            await inst.__aenter__()
            await anyio.to_thread.run_sync(asyncio.run, leave(inst))
        assert emulator.existing == ()

    with serve_emulator(step_seconds=0) as emulator:
        asyncio.run(enter(emulator))


@pytest.mark.sockets
@pytest.mark.parametrize("name", ["instance", "ensure", "wait_until_running", "enter"])
def test_in_a_second_thread(name: str, tmp_path: Path) -> None:
    """Another thread uses the client while a lease of the first one waits for a list that hangs."""
    raised: list[BaseException] = []

    def second(client: AsyncCortecs) -> None:
        try:
            asyncio.run(_awaited(CALLS[name](client)))
        except BaseException as error:  # noqa: BLE001  (checked below)
            raised.append(error)

    async def first(emulator: Emulator) -> None:
        async with client_of(emulator, state_dir=tmp_path, guard="off") as client:
            await client.user.balance()
            emulator.add_fault(Fault("delay", route="list", seconds=100.0))
            with anyio.move_on_after(30.0) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(lease, client)
                    await anyio.sleep(0.2)
                    thread = threading.Thread(target=second, args=(client,), daemon=True)
                    thread.start()
                    while thread.is_alive():  # noqa: ASYNC110  (a thread)
                        await anyio.sleep(0.02)
                    tasks.cancel_scope.cancel()
            assert not scope.cancelled_caught

    with serve_emulator() as emulator:
        asyncio.run(first(emulator))
    assert [type(each) for each in raised] == [errors.ConfigurationError]


@pytest.mark.sockets
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_in_a_second_run(backend: str, tmp_path: Path) -> None:
    with serve_emulator() as emulator:
        client = client_of(emulator, state_dir=tmp_path, guard="off")

        async def run(call: Callable[[AsyncCortecs], Awaitable[Any]]) -> Any:
            return await call(client)

        async def list_once(client: AsyncCortecs) -> None:
            await client.instances.list()
            # In another run they cannot be closed.
            for pool in client._wiring.http._transport.connections.pools:
                await pool.client.aclose()

        anyio.run(run, list_once, backend=backend)
        for name in ("enter", "list", "instance", "aclose"):
            with pytest.raises(errors.ConfigurationError, match="different event loop"):
                anyio.run(run, CALLS[name], backend=backend)


async def _awaited(call: Awaitable[Any]) -> Any:
    return await call
