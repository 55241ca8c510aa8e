"""Ctrl-C under `asyncio.run`, at every turn of the loop, on virtual time."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from _grids import grid
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL, World

from cortecs_async._aio import sigint as _interrupts


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """As `asyncio.run` does."""

    async def coroutine() -> None:
        await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(coroutine())


class Turns:
    """Presses Ctrl-C before what the event loop does as its number `at`, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, times: int) -> None:
        self.number = 0
        self.counts = False
        real = asyncio.Handle._run

        def turn(handle: asyncio.Handle) -> Any:
            if self.counts:
                self.number += 1
                # A task whose wake-up is lost is waited for without end.
                assert self.number < 20_000, "the loop spins"
                if self.number == at:
                    for _ in range(times):
                        interrupt()
            return real(handle)

        monkeypatch.setattr(asyncio.Handle, "_run", turn)


# Without a second of patience, the loop is taken to be blocked when two come between two of its turns.
# Each row interrupts every third turn, beginning with turn `at`.
@grid(strength=1, more=[(_interrupts.BLOCKED, 1), (0.0, 2)], at=[1, 2, 3])
def test_more_of_them_at_every_turn_of_a_release(
    world: World, monkeypatch: pytest.MonkeyPatch, more: tuple[float, int], at: int
) -> None:
    blocked, times = more
    monkeypatch.setattr(_interrupts, "BLOCKED", blocked)
    turns = at
    while at <= turns:
        with monkeypatch.context() as patch:
            turn = Turns(patch, at, times)
            left: list[tuple[str, ...]] = []

            async def main(turn: Turns = turn, left: list[tuple[str, ...]] = left) -> None:
                async with world(stop_seconds=3.0) as (emu, client):
                    try:
                        async with client.instance(MODEL, HARDWARE):
                            turn.counts = True
                            interrupt()
                            await anyio.sleep(10_000)
                    finally:
                        turn.counts = False
                        left.append(emu.existing)

            with pytest.raises(KeyboardInterrupt):
                run(main)
            assert left == [()], at
            turns = turn.number
        at += 3
    # It is a release of several requests that was interrupted at each of these.
    assert turns > 40
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_every_one_is_a_cancellation(world: World) -> None:
    """So clean-up of the body that hangs can be left as its body could."""
    left: list[str] = []

    async def main() -> None:
        async with world() as (emu, client):
            try:
                async with client.instance(MODEL, HARDWARE):
                    for number in range(5):
                        try:
                            interrupt()
                            await anyio.sleep(10_000)
                        except asyncio.CancelledError:
                            left.append(str(number))
                            if number == 4:
                                raise
            finally:
                assert emu.existing == ()
                left.append("released")

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert left == [*"01234", "released"]


def test_code_that_blocks_the_loop_is_still_reached(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []

    async def main() -> None:
        async with world() as (emu, client):
            try:
                async with client.instance(MODEL, HARDWARE):
                    interrupt()
                    interrupt()
                    passed.append("two at once are one")
                    monkeypatch.setattr(_interrupts, "BLOCKED", 0.0)
                    interrupt()
                    passed.append("never")
            finally:
                assert emu.existing == ()

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert passed == ["two at once are one"]


def test_it_is_taken_only_while_something_is_held(world: World) -> None:
    handlers: list[Any] = []

    async def main() -> None:
        async with world() as (_, client):
            handlers.append(signal.getsignal(signal.SIGINT))
            async with client.instance(MODEL, HARDWARE):
                handlers.append(signal.getsignal(signal.SIGINT))
                async with client.instance(MODEL, HARDWARE):
                    pass
                handlers.append(signal.getsignal(signal.SIGINT))
            handlers.append(signal.getsignal(signal.SIGINT))

    run(main)
    before, within, after_one, after = handlers
    assert before is after
    assert within == after_one != before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_programs_own_stays(world: World) -> None:
    received: list[int] = []

    async def main() -> None:
        async with world() as (_, client):
            mine = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
            async with client.instance(MODEL, HARDWARE):
                interrupt()
            # And one that is set in the block.
            signal.signal(signal.SIGINT, mine)
            async with client.instance(MODEL, HARDWARE):
                signal.signal(signal.SIGINT, lambda number, _: received.append(-number))
            interrupt()

    try:
        run(main)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert received == [signal.SIGINT, -signal.SIGINT]


def test_other_threads_keep_out_of_it(world: World) -> None:
    seen: list[Any] = []

    async def main() -> None:
        async with world() as (_, client), client.instance(MODEL, HARDWARE):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run, args=(main,))
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class TestALoopThatEndedUnderABlock:
    """The handler outlives it, as nobody lets go, and must harm nothing that comes later."""

    def leave_open(self, world: World) -> list[Any]:
        kept: list[Any] = []

        async def main() -> None:
            kept.append(world())
            _, client = await kept[0].__aenter__()
            kept.append(client.instance(MODEL, HARDWARE))
            await kept[1].__aenter__()

        run(main)
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        return kept

    def test_the_end_of_its_lease_gives_ctrl_c_back(self, world: World) -> None:
        kept = self.leave_open(world)
        kept.pop().__del__()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_ctrl_c_is_raised(self, world: World) -> None:
        kept = self.leave_open(world)
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        kept.clear()

    def test_the_run_after_the_next_is_as_any(self, world: World) -> None:
        kept = self.leave_open(world)
        handlers: list[Any] = []

        async def main() -> None:
            async with world() as (_, client), client.instance(MODEL, HARDWARE):
                if handlers:
                    kept.clear()  # the lease of old lets go only now
                handlers.append(signal.getsignal(signal.SIGINT))

        run(main)
        run(main)
        old, new = handlers
        assert old is signal.default_int_handler
        assert isinstance(new.__self__, _interrupts.SigintGuard)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
