"""Test the virtual clock of the async tests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from _virtual_time import VirtualTimeLoop
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

SECOND = 1.0
HOUR = 3600.0
WEEK = 7 * 24 * HOUR
REAL_PAUSE = 0.02


@pytest.fixture
def fails_if_slow() -> Iterator[None]:
    """Fail a test that waits on real time. A busy machine may stall for seconds, but not for an hour."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20.0


@pytest.mark.usefixtures("fails_if_slow")
async def test_an_hour_passes_in_no_time() -> None:
    start = anyio.current_time()
    await anyio.sleep(HOUR)
    assert anyio.current_time() - start == HOUR


@pytest.mark.usefixtures("fails_if_slow")
async def test_a_week_passes_in_no_time() -> None:
    # asyncio waits for at most a day at a time.
    start = anyio.current_time()
    await anyio.sleep(WEEK)
    assert anyio.current_time() - start == pytest.approx(WEEK)


async def test_every_test_starts_at_zero() -> None:
    # The tests above have advanced their own clocks.
    assert anyio.current_time() == 0.0


async def test_computing_takes_no_virtual_time() -> None:
    start = anyio.current_time()
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert anyio.current_time() == start


async def test_timers_fire_in_order_and_on_time() -> None:
    start = anyio.current_time()
    fired: list[float] = []

    async def fire(delay: float) -> None:
        await anyio.sleep(delay)
        assert anyio.current_time() - start == pytest.approx(delay)
        fired.append(delay)

    delays = [30.0, 0.001, HOUR, 5.0, 0.3, 0.1 + 0.2, 86_401.0, 5.0]
    async with anyio.create_task_group() as tasks:
        for delay in delays:
            tasks.start_soon(fire, delay)

    assert fired == pytest.approx(sorted(delays))


async def test_fail_after_fires_at_its_deadline() -> None:
    start = anyio.current_time()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(90.0):
            await anyio.sleep(HOUR)
    assert anyio.current_time() - start == pytest.approx(90.0)


async def test_a_deadline_has_no_effect_after_its_block() -> None:
    start = anyio.current_time()
    with anyio.fail_after(HOUR):
        await anyio.sleep(SECOND)
    await anyio.sleep(SECOND)
    assert anyio.current_time() - start == pytest.approx(2.0)


async def test_the_clock_stands_still_while_a_task_can_run() -> None:
    seen: list[float] = []
    ready = anyio.Event()

    async def busy() -> None:
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
            seen.append(anyio.current_time())
        ready.set()

    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        with anyio.fail_after(0.001):
            await ready.wait()

    assert seen == [start] * 50


@given(delay=st.floats(min_value=0.0, max_value=WEEK))
async def test_hypothesis_runs_async_tests(delay: float) -> None:
    start = anyio.current_time()
    await anyio.sleep(delay)
    assert anyio.current_time() - start == pytest.approx(delay, abs=1e-6)


@pytest.mark.sockets
async def test_sockets_work() -> None:
    async def echo(stream: SocketStream) -> None:
        async with stream:
            await stream.send(await stream.receive())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"over the wire")
            assert await stream.receive() == b"over the wire"
        tasks.cancel_scope.cancel()


async def test_a_loop_without_timers_waits_for_a_thread() -> None:
    assert await anyio.to_thread.run_sync(os.getpid) == os.getpid()


@pytest.mark.sockets
async def test_a_test_marked_sockets_runs_on_real_time() -> None:
    real, loop = time.monotonic(), anyio.current_time()
    await anyio.sleep(REAL_PAUSE)
    # Half, because the two clocks are not read at the same moment.
    assert time.monotonic() - real >= REAL_PAUSE / 2
    assert anyio.current_time() - loop >= REAL_PAUSE / 2


def test_a_deadlock_is_an_error() -> None:
    def loop_factory() -> VirtualTimeLoop:
        return VirtualTimeLoop(deadlock_after=0.05)

    async def wait_forever() -> None:
        await anyio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock in virtual time"):
        anyio.run(wait_forever, backend_options={"loop_factory": loop_factory})


@pytest.mark.parametrize("timeout", [None, HOUR])
def test_a_thread_of_the_loop_is_no_deadlock_and_stops_the_clock(timeout: float | None) -> None:
    async def wait_for_a_thread() -> str:
        async with asyncio.timeout(timeout):
            result = await asyncio.get_running_loop().run_in_executor(None, _sleep)
        assert anyio.current_time() == 0.0
        await anyio.sleep(HOUR)
        assert anyio.current_time() == HOUR
        return result

    # Closing the loop also waits for its threads. Python 3.12 warns if that times out.
    assert anyio.run(wait_for_a_thread, backend_options={"loop_factory": VirtualTimeLoop}) == "done"


def _sleep() -> str:
    time.sleep(REAL_PAUSE)
    return "done"


AMBIENT = ["CORTECS_CLIENT_SECRET", "OPENAI_API_KEY", "HTTPS_PROXY", "https_proxy"]


@pytest.fixture(scope="module")
def dirty_environment() -> Iterator[None]:
    # The module's scope sets these before the fixture in conftest.py clears the environment.
    with pytest.MonkeyPatch.context() as patch:
        for name in AMBIENT:
            patch.setenv(name, "ambient")
        yield


@pytest.mark.usefixtures("dirty_environment")
def test_the_environment_is_cleared() -> None:
    assert not set(AMBIENT) & set(os.environ)


def test_backends_have_short_ids(
    request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    assert request.node.name.endswith(f"[{anyio_backend[0]}]")
