"""Test that the work for many leases grows as fast as their number, not faster.

The executed lines are counted, so these tests do not depend on the speed of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _promises import created, intent
from _reapers import StubReaper
from _work import Work, counted
from _world import MODEL, World, client_of, emulated_wall_clock

from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.listing import Listing
from cortecs_async._api.polling import Poller
from cortecs_async._poll_policy import PollPolicy
from cortecs_async._recovery.due import DueTimes
from cortecs_async._recovery.reaper import GRACE, Reaper
from cortecs_async._recovery.records import Record
from cortecs_async._recovery.store import PromiseStore
from cortecs_async.emulator import Emulator

# Numbers of leases. Lists of both lengths are checked for deep nesting, which short ones are not.
FEW, MANY = 60, 180


def check_linear(few: Work, many: Work) -> None:
    """Check the work for `MANY` leases, which is `MANY / FEW` times that for `FEW` if it grows linearly."""
    assert few.lines > 0
    assert many.lines / few.lines <= 1.05 * MANY / FEW


class WorkingReaper(StubReaper):
    """A reaper in this process, which receives each message as the real one does."""

    def __init__(self, on_death: Callable[[], None], *arguments: Any) -> None:
        super().__init__(on_death, *arguments)
        self.reaper = Reaper(lambda _: None, wall_clock=emulated_wall_clock)

    def send(self, messages: Iterable[Record]) -> None:
        messages = list(messages)
        super().send(messages)
        for message in messages:
            if message["kind"] != "ARM":
                self.reaper.receive({**message, "number": 0})
            self.reaper.next_due()


@pytest.mark.usefixtures("journals")
async def test_leases_with_a_reaper_a_journal_and_a_ledger(
    monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("the same work takes seconds to count")
    monkeypatch.setattr("cortecs_async._recovery.store.ReaperProcess", WorkingReaper)

    async def work_for(count: int) -> Work:
        emulator = Emulator(clock=anyio.current_time, step_seconds=1)
        all_running, running = anyio.Event(), 0

        async def lease() -> None:
            nonlocal running
            async with client.instance(MODEL, max_lifetime=3600):
                running += 1
                if running == count:
                    all_running.set()
                await all_running.wait()

        async with (
            httpx.AsyncClient(transport=emulator.transport()) as http,
            client_of(emulator, http_client=http, journal="required", guard="required") as client,
        ):
            async with client.instance(MODEL):
                """The first lease also imports and prepares what all share."""
            with counted() as work:
                async with anyio.create_task_group() as tasks:
                    for _ in range(count):
                        tasks.start_soon(lease)
        assert len(emulator.ledger) == count + 1
        assert not emulator.existing
        return work

    check_linear(await work_for(FEW), await work_for(MANY))


def test_the_reaper() -> None:
    def work_for(count: int) -> Work:
        reaper = Reaper(lambda _: None, wall_clock=lambda: 0.0)
        with counted() as work:
            for number in range(count):
                for message in (intent(f"e{number}"), created(f"e{number}", expires_at=1e6 + number)):
                    reaper.receive({**message, "number": 0})
                    assert reaper.next_due() is None or reaper.next_due() == 1e6 + GRACE
            for number in range(count):
                reaper.receive({"kind": "GONE", "entry": f"e{number}", "number": 0})
                next_due = 1e6 + number + 1 + GRACE
                assert reaper.next_due() == (None if number == count - 1 else next_due)
        return work

    check_linear(work_for(FEW), work_for(MANY))


def test_times_that_change_often_do_not_pile_up() -> None:
    times = DueTimes()
    times.set("first", 0.0)
    for moment in range(1, 10_000):
        times.set("active", float(moment))
    assert len(times._heap) < 200
    assert times.take(9_999.0) == ["first", "active"]
    assert times.earliest() is None


class Service:
    """Shows all instances as they are."""

    def __init__(self, count: int) -> None:
        self.ids = [f"i{number}" for number in range(count)]
        self.status = "pending"
        self.num_lists = 0

    async def read_one(self, instance_id: str) -> Instance:
        args, status = InstanceArgs(model_id=MODEL), InstanceStatus(status=self.status)
        return Instance(instance_id=instance_id, instance_args=args, instance_status=status)

    async def read_all(self) -> Listing[Instance]:
        self.num_lists += 1
        return Listing([await self.read_one(each) for each in self.ids])


async def test_waits_that_end_at_the_same_time() -> None:
    async def work_for(count: int) -> Work:
        service = Service(count)
        poller = Poller(service, PollPolicy())

        async def wait(instance_id: str) -> None:
            subscription = poller.subscribe(instance_id)
            while (await poller.next(subscription)).status != "running":  # type: ignore[union-attr]
                service.status = "running"

        with counted() as work:
            async with anyio.create_task_group() as tasks:
                for each in service.ids:
                    tasks.start_soon(wait, each)
        return work

    check_linear(await work_for(FEW), await work_for(MANY))


async def test_a_poll_is_the_baseline_of_the_next_starts(world: World) -> None:
    async with world(step_seconds=10) as (emu, client), anyio.create_task_group() as tasks:

        async def wait(instance_id: str) -> None:
            await client.instances.wait_until_running(instance_id)

        for _ in range(2):
            tasks.start_soon(wait, (await client.instances.start(MODEL)).instance_id)
        await anyio.sleep(0.1)
        num_lists = len([each for each in emu.requests if each.route == "list"])
        async with client.instance(MODEL, reuse=False) as inst:
            start = next(
                index for index, each in reversed([*enumerate(emu.requests)]) if each.route == "start"
            )
            lists = [each for each in emu.requests[:start] if each.route == "list"]
            assert len(lists) == num_lists == 1
            await client.instances.stop_all()
            assert inst.instance_id
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("length", "num_lists"), [(100, 100), (500, 11)])
async def test_a_long_list_is_followed_by_a_pause(length: int, num_lists: int) -> None:
    service = Service(length)
    poller = Poller(service, PollPolicy())

    async def wait(number: int) -> None:
        await anyio.sleep(number / 100)
        assert await poller.next(poller.subscribe(f"i{number}", trust_list=True)) is not None

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(wait, number)
    assert service.num_lists == num_lists


def test_a_baseline_is_dropped_once_the_instances_are_known(tmp_path: Path) -> None:
    store = PromiseStore(tmp_path, journal=False, guard=False)
    for number in range(100):
        store.put({"kind": "BASELINE", "baseline": f"b{number}", "ids": ["i"]})
        store.put(intent(f"e{number}", baseline=f"b{number}"))
        store.put(created(f"e{number}"))
    store.put(intent("open", baseline="b99"))
    store.commit()
    assert len(store.state.baselines) < 20
    assert "b99" in store.state.baselines
