"""Test leases in async generators, in coroutines that are closed, and leases that are dropped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trio.testing
from _closing import leave, pause
from _grids import BACKENDS, grid
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import AsyncCortecs, InstanceLease, TeardownError
from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Emulator, Fault

Answers = AsyncGenerator[int, None]


class Resource:
    """Another resource of a generator. It must be released after the lease, which uses it."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.existing_at_exit: tuple[str, ...] | None = None

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        await anyio.sleep(0.1)
        self.existing_at_exit = self._emulator.existing


async def plain(client: AsyncCortecs, resource: Resource) -> Answers:
    async with resource, client.instance(MODEL, HARDWARE):
        for number in range(3):
            yield number


async def on_a_stack(client: AsyncCortecs, resource: Resource) -> Answers:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(resource)
        await stack.enter_async_context(client.instance(MODEL, HARDWARE))
        for number in range(3):
            yield number


async def in_a_context_manager(client: AsyncCortecs, resource: Resource) -> Answers:
    @contextlib.asynccontextmanager
    async def leased() -> AsyncIterator[InstanceLease]:
        async with client.instance(MODEL, HARDWARE) as inst:
            yield inst

    async with resource, leased():
        for number in range(3):
            yield number


GENERATORS = {each.__name__: each for each in (plain, on_a_stack, in_a_context_manager)}


async def use_aclosing(answers: Answers) -> None:
    async with contextlib.aclosing(answers):
        async for _ in answers:
            break


async def call_aclose(answers: Answers) -> None:
    await anext(answers)
    await answers.aclose()


async def throw(answers: Answers) -> None:
    await anext(answers)
    with contextlib.suppress(GeneratorExit):
        await answers.athrow(GeneratorExit())


async def close_in_another_task(answers: Answers) -> None:
    await anext(answers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answers.aclose)


CLOSINGS = {each.__name__: each for each in (use_aclosing, call_aclose, throw)}


@grid(anyio_backend=BACKENDS, generator=GENERATORS, closing=CLOSINGS)
async def test_a_generator_that_is_closed_releases_in_order(
    world: World, caplog: pytest.LogCaptureFixture, generator: str, closing: str
) -> None:
    async with world() as (emu, client):
        resource = Resource(emu)
        await CLOSINGS[closing](GENERATORS[generator](client, resource))
        assert len(emu.ledger) == 1
        assert resource.existing_at_exit == ()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_generator_that_another_task_closes_releases_too(
    world: World, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio does not allow a cancel scope to be closed in another task")
    async with world() as (emu, client):
        resource = Resource(emu)
        await close_in_another_task(plain(client, resource))
        assert resource.existing_at_exit == ()


@grid(anyio_backend=BACKENDS, generator=GENERATORS)
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's
async def test_a_break_releases_soon(
    world: World, anyio_backend_name: str, caplog: pytest.LogCaptureFixture, generator: str
) -> None:
    """The event loop closes the generator that the garbage collector finds."""
    async with world() as (emu, client):
        resource = Resource(emu)
        async for _ in GENERATORS[generator](client, resource):
            break
        gc.collect()
        await anyio.sleep(5)
        assert len(emu.ledger) == 1
        assert emu.existing == ()
        # trio cancels every other await of a generator that it closes.
        assert anyio_backend_name == "trio" or resource.existing_at_exit == ()
    assert "lease" not in caplog.text


def run_on(backend: str, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if backend == "asyncio":
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(main())
    else:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def open_client(emulator: Emulator, **options: Any) -> AsyncCortecs:
    """Return a client that is not closed at the end of its event loop."""
    http = httpx.AsyncClient(transport=emulator.transport())
    client = client_of(emulator, http_client=http, guard="off", **options)
    client._closed = True  # or it warns
    return client


@pytest.mark.parametrize("backend", BACKENDS)
# httpx uses generators, too.
@pytest.mark.filterwarnings("ignore:asynchronous generator .* was scheduled after:ResourceWarning")
def test_generators_that_the_event_loop_closes_at_its_end(
    caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    emu = Emulator(step_seconds=0)
    resource = Resource(emu)
    kept: list[Answers] = []

    async def main() -> None:
        kept.append(plain(open_client(emu, journal="off"), resource))
        await anext(kept[0])

    run_on(backend, main)
    assert len(emu.ledger) == 1
    assert emu.existing == ()
    assert backend == "trio" or resource.existing_at_exit == ()
    assert "lease" not in caplog.text


async def test_a_failed_release_is_raised_from_aclose(world: World) -> None:
    async with world() as (emu, client):

        async def answers() -> Answers:
            async with client.instance(MODEL, HARDWARE, teardown_timeout=5):
                yield 1

        generator = answers()
        await anext(generator)
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        with pytest.raises(TeardownError):
            await generator.aclose()
        emu.clear_faults()
        emu.delete_instance(emu.existing[0])


async def test_an_error_of_a_synchronous_generator_that_was_closed_is_like_any_other(
    world: World,
) -> None:
    def rows() -> Generator[int]:
        try:
            yield 1
        finally:
            raise ValueError("cannot close the file")

    async with world() as (emu, client):
        with pytest.raises(ValueError, match="cannot close") as caught:
            async with client.instance(MODEL, HARDWARE):
                generator = rows()
                next(generator)
                generator.close()
        assert isinstance(caught.value.__context__, GeneratorExit)
        assert emu.existing == ()


# --- Code that cannot await ---------------------------------------------------------------------------------


async def leave_in_a_scope(lease: InstanceLease) -> None:
    """Leave it with the RuntimeError that a cancel scope raises if it is closed in another task."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(lease)
        try:
            await pause()
        finally:
            raise RuntimeError("another task")


async def leave_in_a_context_manager(lease: InstanceLease) -> None:
    @contextlib.asynccontextmanager
    async def leased() -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(lease)
            yield

    async with leased():
        await pause()


COROUTINES = {each.__name__: each for each in (leave, leave_in_a_scope, leave_in_a_context_manager)}


def let_go(lease: InstanceLease, how: str) -> None:
    if how == "dropped":
        return
    coroutine = COROUTINES[how](lease)
    coroutine.send(None)
    expects_error = how == leave_in_a_scope.__name__
    with pytest.raises(RuntimeError, match="another task") if expects_error else contextlib.nullcontext():
        coroutine.close()


@grid(anyio_backend=BACKENDS, how=[*COROUTINES, "dropped"])
async def test_a_lease_that_cannot_be_awaited_is_released_in_the_background(
    world: World, journals: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with world(journal="auto") as (emu, client):
        lease = client.instance(MODEL, HARDWARE, on_loss="ignore")
        await lease.__aenter__()
        let_go(lease, how)
        del lease
        gc.collect()
        assert len(emu.billing) == 1
        # The client's block waits for it.
    assert len(emu.ledger) == 1
    assert emu.existing == ()
    assert list(read_journals(journals)) == []
    assert [each.levelname for each in caplog.records if "did not end normally" in each.message] == [
        "WARNING"
    ]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_that_is_closed_in_another_loop_does_not_wait_for_what_its_own_did_not_finish(
    state_dir: Path,
) -> None:
    emu = Emulator(step_seconds=0)
    client = open_client(emu, journal="off")

    async def main() -> None:
        await client.instance(MODEL, on_loss="ignore").__aenter__()
        gc.collect()

    async def close() -> None:
        async with asyncio.timeout(5):
            await client.aclose()

    loop = VirtualTimeLoop()
    loop.run_until_complete(main())
    client._wiring.http.loop.unbind()
    run_on("asyncio", close)
    assert len(client._wiring.http.unawaited._running) == 1
    # Its own finishes it when it runs again.
    client._wiring.http.loop.unbind()
    loop.run_until_complete(asyncio.sleep(100))
    loop.close()
    assert emu.existing == ()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lease_that_is_dropped_in_the_last_turn_of_its_event_loop_is_left_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = open_client(Emulator(step_seconds=0), journal="off")

    kept: list[InstanceLease] = []

    async def main() -> None:
        kept.append(client.instance(MODEL, on_loss="ignore"))
        await kept[0].__aenter__()

    loop = VirtualTimeLoop()
    task = loop.create_task(main())
    task.add_done_callback(lambda _: kept.clear())
    loop.run_until_complete(task)
    assert "Not released" not in caplog.text
    loop.close()
    gc.collect()
    assert "Not released before the event loop ended" in caplog.text


@pytest.mark.parametrize("how", [*COROUTINES, "dropped"])
@pytest.mark.parametrize(
    ("journal", "successor"),
    [("auto", "`cortecs-async sweep` releases it"), ("off", "Call `client.sweep()` in this process")],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_without_its_event_loop_it_is_left_to_others(
    state_dir: Path, caplog: pytest.LogCaptureFixture, how: str, journal: str, successor: str
) -> None:
    emu = Emulator(step_seconds=0)
    kept: list[InstanceLease] = []

    async def main() -> None:
        kept.append(open_client(emu, journal=journal, state_dir=state_dir).instance(MODEL, on_loss="ignore"))
        await kept[0].__aenter__()

    run_on("asyncio", main)
    let_go(kept.pop(), how)
    gc.collect()
    (critical,) = [each for each in caplog.records if each.levelno >= logging.CRITICAL]
    assert "Not released before the event loop ended" in critical.message
    assert successor in critical.message

    async def sweep() -> None:
        await open_client(emu, journal=journal, state_dir=state_dir).sweep()

    run_on("asyncio", sweep)
    assert emu.existing == ()
