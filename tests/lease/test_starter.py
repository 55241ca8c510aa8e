"""Test that the instance of a start whose response is lost is found, and no other is taken for it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _evidence import open_promises, process
from _grids import BACKENDS, alternating, grid
from _world import HARDWARE, MODEL, World, emulated_wall_clock
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortecs_async import AsyncCortecs, RetryPolicy, errors
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.matching import Ambiguous, Contested, UnresolvedStart, fits, match_start
from cortecs_async._api.teardown import Teardown
from cortecs_async._recovery.journal import JournalFile, read_journals
from cortecs_async._recovery.promises import Promises
from cortecs_async._recovery.store import PromiseStore
from cortecs_async.emulator import Emulator, Fault

OTHER_HARDWARE = "NVIDIA_L40S_1"

# An error in JSON would be a rejection: nothing was started.
PROXY_PAGE = "<html><body>The proxy received no valid response.</body></html>"


def routes(emu: Emulator) -> list[str | None]:
    return [record.route for record in emu.requests]


def left_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


# --- judging ------------------------------------------------------------------------------------------------


def instance(number: int, hardware: str | None = HARDWARE, **more: Any) -> Instance:
    args = {"model_id": "m", "hardware_type_id": hardware, "billing_interval": "per_minute", **more}
    return Instance(
        instance_id=f"i-{number}",
        instance_args=InstanceArgs(**args),
        instance_status=InstanceStatus(status="x"),
    )


def unknown(hardware: str | None = HARDWARE, baseline: set[str] | None = None) -> UnresolvedStart:
    args = InstanceArgs(model_id="m", hardware_type_id=hardware, billing_interval="per_minute")
    return UnresolvedStart(args=args, baseline=frozenset(baseline or ()))


class TestJudging:
    def test_the_one_new_instance_is_its_own(self) -> None:
        mine = unknown(baseline={"i-1"})
        assert match_start(mine, [mine], [instance(1), instance(2)]) == instance(2)

    def test_nothing_new_is_nothing(self) -> None:
        mine = unknown(baseline={"i-1"})
        assert match_start(mine, [mine], [instance(1), instance(2, OTHER_HARDWARE)]) is None

    def test_two_for_one_cannot_be_told_apart(self) -> None:
        mine = unknown()
        assert match_start(mine, [mine], [instance(1), instance(2)]) == Ambiguous(("i-1", "i-2"))

    def test_as_many_as_starts_are_all_given_each_to_one(self) -> None:
        starts = [unknown() for _ in range(5)]
        instances = [instance(number) for number in range(5)]
        given_ = [match_start(start, starts, instances) for start in starts]
        assert sorted(each.instance_id for each in given_ if isinstance(each, Instance)) == [
            f"i-{number}" for number in range(5)
        ]

    def test_fewer_than_starts_leave_some_with_nothing_yet(self) -> None:
        starts = [unknown(), unknown()]
        assert [match_start(start, starts, [instance(1)]) for start in starts] == [instance(1), None]

    def test_who_could_have_two_takes_the_one_that_the_other_cannot(self) -> None:
        anything, exact = unknown(None), unknown(HARDWARE)
        instances = [instance(1, HARDWARE), instance(2, OTHER_HARDWARE)]
        for starts in itertools.permutations([anything, exact]):
            assert match_start(anything, starts, instances) == instance(2, OTHER_HARDWARE)
            assert match_start(exact, starts, instances) == instance(1, HARDWARE)

    def test_an_instance_that_only_one_start_can_have_created_is_that_of_this_start(self) -> None:
        # The second was there before the later start. The earlier one comes first, and both fit the first.
        earlier = unknown()
        later = evolve(unknown(baseline={"i-2"}), order=(False, 1.0, ""))
        instances = [instance(1), instance(2)]
        for starts in itertools.permutations([earlier, later]):
            assert match_start(earlier, starts, instances) == instance(2)
            assert match_start(later, starts, instances) == instance(1)

    def test_of_two_starts_the_one_with_fewer_defaults_comes_first(self) -> None:
        # What the other one creates later may have other hardware.
        exact, anything = evolve(unknown(HARDWARE), order=(False, 2.0, "")), unknown(None)
        for starts in itertools.permutations([anything, exact]):
            assert match_start(exact, starts, [instance(1)]) == instance(1)
            assert match_start(anything, starts, [instance(1)]) is None

    def test_a_start_of_one_worker_comes_before_one_of_several(self) -> None:
        # The service may not return the number, and then it is read as 1.
        one = evolve(unknown(), order=(False, 2.0, ""))
        several = evolve(unknown(), args=evolve(unknown().args, num_workers=2))
        assert match_start(one, [several, one], [instance(1)]) == instance(1)
        assert match_start(several, [several, one], [instance(1)]) is None

    def test_one_too_many_spoils_it_for_all_that_are_involved(self) -> None:
        anything, exact = unknown(None), unknown(HARDWARE)
        instances = [instance(1, HARDWARE), instance(2, HARDWARE), instance(3, OTHER_HARDWARE)]
        for mine in (anything, exact):
            assert isinstance(match_start(mine, [anything, exact], instances), Ambiguous)

    def test_but_not_for_the_others(self) -> None:
        one, other = unknown(HARDWARE), unknown(OTHER_HARDWARE)
        instances = [instance(1), instance(2), instance(3, OTHER_HARDWARE)]
        assert isinstance(match_start(one, [one, other], instances), Ambiguous)
        assert match_start(other, [one, other], instances) == instance(3, OTHER_HARDWARE)

    @given(
        st.lists(
            st.builds(
                unknown,
                st.sampled_from([None, HARDWARE, OTHER_HARDWARE]),
                st.sets(st.sampled_from(["i-0", "i-1", "i-2"])),
            ),
            min_size=1,
            max_size=4,
        ),
        st.lists(st.sampled_from([None, HARDWARE, OTHER_HARDWARE]), max_size=4),
    )
    @settings(max_examples=300)
    @example(
        [unknown(HARDWARE, {"i-0"}), unknown(None, {"i-1"}), unknown(None, {"i-2"})], [None, None, HARDWARE]
    )
    def test_nothing_is_given_twice_or_to_whom_it_does_not_fit(
        self, starts: list[UnresolvedStart], hardware: list[str | None]
    ) -> None:
        instances = [instance(number, each) for number, each in enumerate(hardware)]
        verdicts = [match_start(start, starts, instances) for start in starts]
        taken = [each.instance_id for each in verdicts if isinstance(each, Instance)]
        assert len(taken) == len(set(taken))
        for start, verdict in zip(starts, verdicts, strict=True):
            if isinstance(verdict, Instance):
                assert start.fits(verdict)
            elif isinstance(verdict, Ambiguous):
                assert verdict.candidates or len(starts) > 1
        # If an instance is matched to no start, all starts that it fits are ambiguous.
        for each in instances:
            if each.instance_id not in taken:
                doubts = [
                    isinstance(v, Ambiguous) for s, v in zip(starts, verdicts, strict=True) if s.fits(each)
                ]
                assert all(doubts)

    @pytest.mark.parametrize(
        ("stamp", "confirmed"),
        [
            (None, None),
            (-121.0, False),  # before the baseline, so someone else has restarted it
            (-119.0, True),
            (0.0, True),
            (1799.0, True),
            (1801.0, False),  # started later
            (2121.0, None),  # the service's clock is not there yet
            (-29 * 86400.0, False),
            (-31 * 86400.0, None),  # a constant
        ],
    )
    @pytest.mark.parametrize("service_at", [1_735_689_600.0, None])
    def test_a_timestamp_counts_only_if_it_can_be_one(
        self, stamp: float | None, service_at: float | None, *, confirmed: bool | None
    ) -> None:
        mine = evolve(unknown(), service_at=service_at)
        started_at = None if stamp is None else datetime.fromtimestamp(1_735_689_600.0 + stamp, UTC)
        stamped = evolve(instance(1), instance_status=InstanceStatus(status="x", started_at=started_at))
        listed_at = 1_735_689_600.0 + 2000.0
        expected = None if service_at is None else confirmed
        assert mine.is_confirmed_by(stamped, listed_at) is expected
        found = match_start(mine, [mine], [stamped], listed_at=listed_at)
        assert found == (None if expected is False else stamped)
        # Evidence against one instance says nothing about another.
        assert isinstance(
            match_start(mine, [mine], [stamped, instance(2)], listed_at=listed_at), Ambiguous
        ) is (expected is not False)

    def test_a_tag_is_proof_and_other_tags_are_proof_to_the_contrary(self) -> None:
        plain = unknown()
        tagged = evolve(plain, args=evolve(plain.args, context_length=1000), tag=990)
        with_tag, without, other = (
            instance(n, context_length=size) for n, size in enumerate((990, 1000, 995))
        )
        assert match_start(tagged, [tagged], [with_tag, without, other]) == with_tag
        # Even while an equal start is in progress.
        assert match_start(tagged, [tagged], [with_tag, without], in_progress=[plain]) == with_tag
        assert match_start(plain, [plain, tagged], [with_tag, other]) == other
        assert match_start(plain, [plain], [with_tag], in_progress=[tagged]) is None
        assert match_start(tagged, [tagged], [other]) is None

    def test_an_equal_tag_is_no_proof(self) -> None:
        args = evolve(unknown().args, context_length=1000)
        one, other = (evolve(unknown(), args=args, tag=990, order=(False, at, "")) for at in (1.0, 2.0))
        both = [instance(1, context_length=990), instance(2, context_length=990)]
        assert [match_start(each, [one, other], both) for each in (one, other)] == both
        assert [match_start(each, [one, other], both[:1]) for each in (one, other)] == [both[0], None]
        assert match_start(one, [one], both) == Ambiguous(("i-1", "i-2"))
        assert match_start(one, [one], both[:1], in_progress=[other]) == Contested(("i-1",))

    @pytest.mark.parametrize(("age", "is_explained"), [(299.0, True), (301.0, False), (86_400.0, False)])
    def test_a_start_of_long_ago_explains_no_new_instance(self, age: float, *, is_explained: bool) -> None:
        old = evolve(unknown(), order=(False, 0.0, ""))
        mine = evolve(unknown(), order=(False, age, ""))
        both = [instance(1), instance(2)]
        expected = both[1] if is_explained else Ambiguous(("i-1", "i-2"))
        assert match_start(mine, [old, mine], both) == expected
        # It was there before the later start, so the old one can have created it.
        later = evolve(mine, baseline=frozenset({"i-1"}))
        assert match_start(later, [old, later], both) == both[1]

    @pytest.mark.parametrize(
        ("sent", "actual", "expected"),
        [
            ({}, {}, True),
            ({"hardware_type_id": None}, {"hardware_type_id": "whatever"}, True),
            ({"hardware_type_id": "A"}, {"hardware_type_id": None}, True),
            ({"hardware_type_id": "A"}, {"hardware_type_id": "B"}, False),
            ({"context_length": 8192}, {"context_length": 8192}, True),
            ({"context_length": 8192}, {"context_length": 4096}, False),
            ({"billing_interval": "per_hour"}, {"billing_interval": "per_minute"}, False),
            ({"num_workers": 4}, {"num_workers": 4}, True),
            ({"num_workers": 4}, {}, True),  # absent from every documented answer, and read as 1
            ({"num_workers": 1}, {"num_workers": 4}, False),
            ({"model_id": "n"}, {}, False),
        ],
    )
    def test_what_was_left_out_fits_anything(
        self, sent: dict[str, Any], actual: dict[str, Any], *, expected: bool
    ) -> None:
        base = {"model_id": "m"}
        assert fits(InstanceArgs(**{**base, **actual}), InstanceArgs(**{**base, **sent})) is expected


# --- starting -----------------------------------------------------------------------------------------------

LOST_AFTER: dict[str, dict[str, Any]] = {
    "no answer": {"kind": "drop", "when": "after"},
    "truncated answer": {"kind": "truncate"},
    "garbage": {"kind": "garbage"},
    "no valid id": {"kind": "garbage", "body": {"instance": {"instance_id": 7}}},
    "no instance": {"kind": "garbage", "body": {"message": "started"}},
    **{
        str(status): {"kind": "status", "when": "after", "status": status, "body": PROXY_PAGE}
        for status in (500, 502, 503, 504, 408)
    },
    **{f"{status}, JSON": {"kind": "status", "when": "after", "status": status} for status in (500, 504)},
    "late answer": {"kind": "delay", "when": "after", "seconds": 40.0},
    "late request": {"kind": "delay", "when": "before", "seconds": 40.0},
    "very late request": {"kind": "delay", "when": "before", "seconds": 80.0},
}

LOST_BEFORE: dict[str, dict[str, Any]] = {
    "no request": {"kind": "drop", "when": "before"},
    "500": {"kind": "status", "when": "before", "status": 500},
    "502": {"kind": "status", "when": "before", "status": 502, "body": PROXY_PAGE},
}


@grid(anyio_backend=BACKENDS, hardware=[HARDWARE, None], lost=LOST_AFTER)
async def test_the_block_runs_as_if_nothing_had_happened(
    world: World, journals: Path, lost: str, hardware: str | None
) -> None:
    async with world(journal="required") as (emu, client):
        emu.add_fault(Fault(route="start", **LOST_AFTER[lost]))
        foreign = emu.start_instance(MODEL, HARDWARE)
        async with client.instance(MODEL, hardware, num_workers=2) as inst:
            assert inst.instance.is_usable
            assert emu.billing == (foreign, inst.instance_id)
        assert emu.existing == (foreign,)
        assert len(emu.ledger) == 2
        assert routes(emu).count("start") == 1
    assert left_in(journals) == []


@pytest.mark.parametrize("lost", LOST_BEFORE)
async def test_what_did_nothing_is_sent_again_once_that_is_known(world: World, lost: str) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault(route="start", times=2, **LOST_BEFORE[lost]))
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.ledger) == 1
        assert emu.existing == ()
        assert routes(emu).count("start") == 3


async def test_after_as_many_tries_as_were_asked_for_it_is_an_error(world: World) -> None:
    async with world(max_retries=1) as (emu, client):
        emu.add_fault(Fault("drop", route="start", times=None))
        with pytest.raises(errors.TransportError) as caught:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert caught.value.outcome_unknown
        assert "no instance has appeared yet" in caught.value.__notes__[0]
        assert routes(emu).count("start") == 2
        assert emu.ledger == ()


async def test_no_capacity_is_told_without_trying_again(world: World) -> None:
    async with world(capacity={HARDWARE: 0}) as (emu, client):
        start = anyio.current_time()
        with pytest.raises(errors.ServiceUnavailableError):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert anyio.current_time() - start < 15
        assert routes(emu).count("start") == 1


async def test_a_start_is_looked_for_until_the_service_can_be_asked(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        emu.add_fault(Fault("status", route="list", status=503, skip=1, times=12))
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_several_lost_starts_with_equal_arguments_each_get_their_own(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after", times=5))
        found: list[str] = []

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE) as inst:
                found.append(inst.instance_id)
                await anyio.sleep(60)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(lease)
        assert len(set(found)) == 8
        assert len(emu.ledger) == 8
        assert emu.existing == ()


async def test_some_lost_before_and_some_after(world: World) -> None:
    async with world() as (emu, client):
        for number in range(6):
            emu.add_fault(Fault("drop", route="start", when="after" if number % 2 else "before"))
        found: list[str] = []

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE) as inst:
                found.append(inst.instance_id)

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(lease)
        assert len(set(found)) == 6
        assert len(emu.ledger) == 6
        assert emu.existing == ()


async def test_an_equal_instance_of_another_user_makes_it_ambiguous_and_is_not_touched(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))

        async def others() -> None:
            while not emu.ledger:  # noqa: ASYNC110  (it has no event)
                await anyio.sleep(0.1)
            emu.start_instance(MODEL, HARDWARE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            with pytest.raises(errors.AmbiguousStartError) as caught:
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert caught.value.candidates == emu.existing
        assert len(emu.billing) == 2
        assert not {"stop", "delete"} & set(routes(emu))
        mine, foreign = emu.existing
    # It stays in the journal and is reported until the user decides.
    async with world(journal="auto") as (_, _client):
        pass
    async with AsyncCortecs(
        emu.client_id,
        emu.client_secret,
        api_base_url=emu.api_base_url,
        http_client=client._wiring.http._transport.connections.pools[0].client.__class__(
            transport=emu.transport()
        ),
        guard="off",
    ) as later:
        (orphan,) = await later.sweep()
        assert orphan.state == "ambiguous"
        assert orphan.candidates == (mine, foreign)
        assert emu.billing == (mine, foreign)
        await later.instances.stop(mine)
        await later.instances.delete(mine)
        assert [each.state for each in await later.sweep()] == ["ambiguous"]
        emu.delete_instance(foreign)
        # In the first minute, they may not be visible yet.
        assert [each.state for each in await later.sweep()] == ["ambiguous"]
        await anyio.sleep(60.0)
        assert [each.state for each in await later.sweep()] == ["gone"]
    assert left_in(journals) == []
    await later._wiring.http._transport.connections.pools[0].client.aclose()


@asynccontextmanager
async def another_process(
    emu: Emulator, journals: Path, *, client_id: str | None = None
) -> AsyncIterator[Any]:
    """Return a client with a promise store of its own, as in another process of this machine."""
    async with (
        httpx.AsyncClient(transport=emu.transport()) as http,
        AsyncCortecs(
            emu.client_id,
            emu.client_secret,
            api_base_url=emu.api_base_url,
            http_client=http,
            guard="off",
        ) as other,
    ):
        other._wiring.promises.store = PromiseStore(journals, journal=True, guard=False)
        yield other


async def test_a_lost_start_does_not_take_what_another_process_starts_meanwhile(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client), another_process(emu, journals) as other:
        emu.add_fault(Fault("drop", route="start", when="before"))
        ended: list[float] = []

        async def lease() -> None:
            await anyio.sleep(3.0)
            async with other.instance(MODEL, HARDWARE):
                await anyio.sleep(200)
                ended.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease)
            async with client.instance(MODEL, HARDWARE) as inst:
                mine = inst.instance_id
                assert len(emu.billing) == 2
            assert mine not in emu.billing
            assert len(emu.billing) == 1
        assert ended
        assert emu.existing == ()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_two_processes_that_lose_equal_starts_at_once_share_what_they_find(
    world: World, journals: Path, when: Any
) -> None:
    async with world(journal="auto") as (emu, client), another_process(emu, journals) as other:
        emu.add_fault(Fault("drop", route="start", when="after"))
        emu.add_fault(Fault("drop", route="start", when=when))
        found: list[str] = []

        async def lease(which: AsyncCortecs) -> None:
            async with which.instance(MODEL, HARDWARE) as inst:
                found.append(inst.instance_id)
                await anyio.sleep(200)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease, client)
            tasks.start_soon(lease, other)
        assert len(set(found)) == 2
        assert len(emu.ledger) == 2
        assert emu.existing == ()


async def test_another_client_id_of_the_same_account_counts_as_well(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        theirs = emu.start_instance(MODEL, HARDWARE)
        emu.delete_instance(theirs)
        emu.add_fault(Fault("drop", route="start", when="before"))
        common = {"account": "under another name", "api": emu.api_base_url, "at": emulated_wall_clock()}
        living: JournalFile | None = None

        async def start() -> None:
            nonlocal living
            await anyio.sleep(3.0)
            record = {"kind": "CREATED", "entry": "e1", **common, "args": {}, "goal": "gone"}
            foreign = emu.start_instance(MODEL, HARDWARE)
            living = JournalFile.create(journals, [{**record, "instance_id": foreign}])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            async with client.instance(MODEL, HARDWARE):
                assert len(emu.billing) == 2
        assert len(emu.billing) == 1
        assert living is not None
        living.remove()


async def test_a_lost_start_that_is_released_is_no_riddle_for_its_neighbour(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after", times=2))
        reached = False

        async def neighbour() -> None:
            nonlocal reached
            async with client.instance(MODEL, HARDWARE):
                reached = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(neighbour)
            with anyio.move_on_after(9.0):
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert reached
        assert emu.existing == ()


async def test_a_plain_start_of_the_same_client_is_not_taken_for_a_lost_one(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="before", times=1))
        emu.add_fault(Fault("delay", route="start", when="after", seconds=5.0, times=1))

        async def plain() -> None:
            await anyio.sleep(1.0)
            await client.instances.start(MODEL, HARDWARE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(plain)
            async with client.instance(MODEL, HARDWARE) as inst:
                mine = inst.instance_id
        assert len(emu.billing) == 1
        assert mine not in emu.billing


async def test_a_plain_start_that_the_baseline_does_not_show_is_not_taken_for_a_lost_one(
    world: World,
) -> None:
    async with world() as (emu, client):
        # Before the first lease, so that no promise is kept yet.
        plain = await client.instances.start(MODEL, HARDWARE)
        emu.add_fault(Fault("omit", route="list"))
        emu.add_fault(Fault("drop", route="start", when="before"))
        async with client.instance(MODEL, HARDWARE) as inst:
            assert emu.billing == (plain.instance_id, inst.instance_id)
        assert emu.unmet_faults == ()
        assert emu.billing == (plain.instance_id,)


@alternating("skip", [36, 37, 38, 39])
async def test_the_last_list_after_a_time_out_does_not_decide_that_nothing_was_started(
    world: World, skip: int
) -> None:
    """The search takes a minute, in the end with five seconds between two lists."""
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=300.0))
        emu.add_fault(Fault("omit", route="list", skip=skip))
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.ledger) == 1
        assert emu.existing == ()


@grid(anyio_backend=BACKENDS, lag=[(0, 12), (12, 0), (0, 60), (60, 0), (0, 0, 30)])
async def test_the_last_list_alone_does_not_decide_that_nothing_was_started(
    world: World, lag: tuple[float, ...]
) -> None:
    """Of several replicas, one lags for longer than the search takes."""
    async with world(list_lag=lag) as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.ledger) == 1
        assert emu.existing == ()


@alternating("times", [60, 70])
async def test_when_lists_fail_for_long_the_search_waits_until_they_agree(world: World, times: int) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        emu.add_fault(Fault("status", route="list", status=500, skip=1, times=times))
        async with client.instance(MODEL, HARDWARE):
            assert len(emu.ledger) == 1
            assert anyio.current_time() > 80.0
        assert emu.existing == ()


# --- releasing ----------------------------------------------------------------------------------------------


@grid(anyio_backend=BACKENDS, lost=["no answer", "500"], after=[0.1, 1.0, 5.0, 9.0])
async def test_cancelled_while_it_is_looked_for_it_is_found_and_released(
    world: World, lost: str, after: float
) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault(route="start", **LOST_AFTER[lost]))
        with anyio.move_on_after(after) as scope:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert scope.cancelled_caught
        assert len(emu.ledger) == 1
        assert emu.existing == ()


@grid(anyio_backend=BACKENDS, lag=[(1.0, 0.6), (3.0, 2.4), (5.0, 3.0)], after=[0.2, 2.0])
async def test_cancelled_while_it_is_looked_for_it_does_not_take_the_first_that_is_listed(
    world: World, lag: tuple[float, float], after: float
) -> None:
    list_lag, gap = lag
    async with world(list_lag=list_lag) as (emu, client):
        await client.user.balance()
        await anyio.sleep(100.0)
        # Not in the baseline, and listed before the other one.
        theirs = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(gap)
        emu.add_fault(Fault("drop", route="start", when="after"))
        with anyio.move_on_after(after):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        await anyio.sleep(60.0)
        assert theirs in emu.billing
        assert len(emu.ledger) == 2


async def test_cancelled_while_it_is_looked_for_in_vain(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="before"))
        start = anyio.current_time()
        with anyio.move_on_after(1.0):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert anyio.current_time() - start < 12
        assert emu.ledger == ()
        assert routes(emu).count("start") == 1
    # It may still appear.
    ((_, state),) = read_journals(journals)
    (promise,) = state.promises.values()
    assert promise.abandoned
    assert promise.instance_id is None


async def test_the_time_to_start_is_up_while_it_is_looked_for(world: World) -> None:
    async with world(retry_policy=RetryPolicy(adoption_window=600)) as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        with pytest.raises(errors.RequestTimeoutError, match="searches for its instance"):
            async with client.instance(MODEL, HARDWARE, start_timeout=20):
                pytest.fail("entered")
        assert len(emu.ledger) == 1
        assert emu.existing == ()


@grid(
    anyio_backend=BACKENDS,
    lags=[(0.0, 15.0), (0.0, 0.0, 15.0), (0.0, 15.0, 15.0), (0.0, 0.0, 0.0, 15.0)],
    outage=[False, True],
)
async def test_the_time_to_start_is_up_and_one_list_more_does_not_decide(
    world: World, lags: tuple[float, ...], *, outage: bool
) -> None:
    async with world(list_lag=lags, get_lag=15.0) as (emu, client):
        await client.user.balance()
        # The replica that lags behind shows it, and not the new one.
        deleted = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(30.0)
        emu.delete_instance(deleted)
        emu.add_fault(Fault("drop", route="start", when="after"))
        if outage:
            emu.add_fault(Fault("delay", route="list", when="before", skip=1, seconds=9.5))
        with pytest.raises((errors.AmbiguousStartError, errors.RequestTimeoutError)):
            async with client.instance(MODEL, HARDWARE, start_timeout=10):
                pytest.fail("entered")
        assert len(emu.ledger) == 2
        assert not [each.path for each in emu.requests if each.method != "GET" and deleted in each.path]


@grid(
    anyio_backend=BACKENDS,
    lags=[(0.0, 15.0), (15.0, 0.0), (0.0, 0.0, 15.0), (0.0, 15.0, 15.0), (15.0, 0.0, 0.0)],
    when=["before", "after"],
)
async def test_a_replica_that_still_shows_a_deleted_instance_delays_the_decision(
    world: World, journals: Path, lags: tuple[float, ...], when: Any
) -> None:
    async with world(list_lag=lags, get_lag=15.0, journal="auto") as (emu, client):
        await client.user.balance()
        deleted = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(30.0)
        emu.delete_instance(deleted)
        emu.add_fault(Fault("drop", route="start", when=when))
        began = anyio.current_time()
        async with client.instance(MODEL, HARDWARE) as inst:
            assert inst.instance_id != deleted
            assert anyio.current_time() - began < 45.0
        assert len(emu.ledger) == 2
        assert emu.existing == ()
        assert not [each.path for each in emu.requests if each.method != "GET" and deleted in each.path]


async def test_what_cannot_be_found_out_in_time_stays_in_the_journal(
    world: World, journals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        emu.add_fault(Fault("drop", route="list", skip=1, times=None))
        with pytest.raises(errors.RequestTimeoutError) as caught:
            async with client.instance(MODEL, HARDWARE, start_timeout=60, teardown_timeout=60):
                pytest.fail("entered")
        assert "MAY BE BILLED" in caught.value.__notes__[0]
        assert "MAY BE BILLED" in caplog.text
        emu.clear_faults()
        # Its own process has given up on it, and so it may be swept while that lives.
        (orphan,) = await client.sweep()
        assert orphan.state == "released"
        assert emu.existing == ()
    assert left_in(journals) == []


async def test_every_attempt_of_a_start_knows_what_exists_just_before_it(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="start", status=429, headers={"Retry-After": "5"}, times=7))
        async with client.instance(MODEL, HARDWARE):
            sent = [record.route for record in emu.requests if record.route in {"list", "start"}]
    assert sent[: 2 * 8] == ["list", "start"] * 8
    assert len(emu.ledger) == 1


async def test_a_baseline_that_was_dropped_is_recorded_again(world: World) -> None:
    async with world() as (emu, client):
        foreign = (await client.instances.start(MODEL, HARDWARE)).instance_id
        emu.add_fault(Fault("status", route="start", status=402))
        with pytest.raises(errors.InsufficientBalanceError):
            async with client.instance(MODEL, HARDWARE):
                pass
        promises = client._wiring.promises
        for _ in range(20):  # of other clients of this process
            promises.baseline(())
        await promises.flush(strict=True)
        async with client.instance(MODEL, HARDWARE):
            asked = [record.route for record in emu.requests]
            assert asked.count("list") == 1  # the same, of a moment ago
            book = promises.store.state
            assert [book.baseline_of(entry) for entry in book.promises.values()] == [frozenset({foreign})]


# --- earlier starts that may still appear -------------------------------------------------------------------


@alternating("seconds", [30.0, 60.0, 100.0])
async def test_the_error_says_that_an_earlier_start_may_still_appear(
    world: World, journals: Path, seconds: float
) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("late", route="start", seconds=seconds))
        emu.add_fault(Fault("status", route="start", status=402))
        with pytest.raises(errors.InsufficientBalanceError) as caught:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert any("appears later" in note for note in caught.value.__notes__)
        assert emu.ledger == ()
        assert [each.state for each in await client.sweep()] == ["released"]
        assert len(emu.ledger) == 1
        assert emu.existing == ()
    assert left_in(journals) == []


async def test_an_earlier_start_that_appears_is_not_given_to_another_lease(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("late", route="start", seconds=40.0))
        async with client.instance(MODEL, HARDWARE) as one:
            await anyio.sleep(60.0)
            first = (set(emu.billing) - {one.instance_id}).pop()
            async with client.instance(MODEL, HARDWARE) as two:
                assert len({first, one.instance_id, two.instance_id}) == 3
        assert len(emu.ledger) == 3
        assert emu.existing == ()
    assert left_in(journals) == []


@alternating("ends", [38.5, 39.5])
async def test_an_earlier_start_does_not_take_the_first_that_is_listed(
    world: World, journals: Path, ends: float
) -> None:
    async with world(journal="auto", list_lag=3.0) as (emu, client):
        emu.add_fault(Fault("late", route="start", seconds=40.0))
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep_until(38.0)
            theirs = emu.start_instance(MODEL, HARDWARE)
            await anyio.sleep_until(ends)
        # Its own deletion was confirmed after three seconds. Then the list showed only one of the two.
        assert len(emu.ledger) == 3
        assert theirs in emu.billing


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_interrupted_release_goes_on_with_the_instance_of_an_earlier_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a reaper and a journal, nothing else would release it."""
    interrupted: list[str] = []
    run = Teardown.run

    async def interrupted_once(self: Teardown) -> None:
        if self.instance_id != inst.instance_id and not interrupted:
            interrupted.append(self.instance_id)
            raise asyncio.CancelledError
        await run(self)

    async with world() as (emu, client):
        emu.add_fault(Fault("late", route="start", seconds=20.0))
        monkeypatch.setattr(Teardown, "run", interrupted_once)
        with suppress(asyncio.CancelledError):
            async with client.instance(MODEL, HARDWARE) as inst:
                await anyio.sleep(30.0)
        assert interrupted
        assert len(emu.ledger) == 2
        assert emu.existing == ()


async def test_a_lost_start_of_another_lease_comes_before_one_that_has_not_appeared(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="before"))
        emu.add_fault(Fault("drop", route="start", when="after", skip=1))
        async with client.instance(MODEL, HARDWARE) as one:
            async with client.instance(MODEL, HARDWARE) as two:
                assert set(emu.billing) == {one.instance_id, two.instance_id}
                assert len(emu.ledger) == 2
        assert emu.existing == ()
        assert [each.state for each in await client.sweep()] == ["gone"]
    assert left_in(journals) == []


# --- a restart that was refused -----------------------------------------------------------------------------

RESTART_REFUSALS: dict[str, dict[str, Any]] = {
    "402": {"status": 402},
    "503": {"status": 503},
    "503, Retry-After": {"status": 503, "headers": {"Retry-After": "20"}},
}


@grid(anyio_backend=BACKENDS, refusal=RESTART_REFUSALS, killed=[False, True])
async def test_an_instance_whose_restart_was_refused_is_not_stopped_when_a_colleague_restarts_it(
    world: World, journals: Path, refusal: str, *, killed: bool
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        twin = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(twin)
        emu.add_fault(Fault("status", route="restart", times=None, **RESTART_REFUSALS[refusal]))

        async def colleague() -> None:
            while "restart" not in routes(emu):  # noqa: ASYNC110  (it has no event)
                await anyio.sleep(0.01)
            emu.restart_instance(twin)

        tasks.start_soon(colleague)
        with pytest.raises(errors.APIStatusError):
            async with mine.client.instance(MODEL, HARDWARE, reuse=True):
                pytest.fail("entered")
        assert open_promises(journals) == []
        await anyio.sleep(1.0)
        if killed:
            await mine.reap(mine.kill())
            assert await later.client.sweep() == ()
        assert emu.billing == (twin,)
        assert not {"stop", "delete", "start"} & set(routes(emu))


@grid(anyio_backend=BACKENDS, refusal=["503", "503, Retry-After"], how=["killed", "cancelled"])
async def test_a_lease_that_ends_between_two_refused_restarts_does_not_stop_the_instance(
    world: World, journals: Path, refusal: str, how: str
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        twin = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(twin)
        emu.add_fault(Fault("status", route="restart", times=None, **RESTART_REFUSALS[refusal]))
        tasks.start_soon(mine.start_and_die, {"reuse": True})
        while "restart" not in routes(emu):  # noqa: ASYNC110  (it has no event)
            await anyio.sleep(0.001)
        await anyio.sleep(0.001)
        emu.restart_instance(twin)
        if how == "killed":
            await mine.reap(mine.kill())
        else:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10.0)
        with anyio.CancelScope(shield=True):
            await later.client.sweep()
        assert emu.billing == (twin,)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["no journal", "closed"])
async def test_a_restart_that_was_not_sent_again_does_not_stop_the_instance(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The first attempt was rejected, and before the second one, a colleague restarts the instance."""
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
    ):
        twin = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(twin)
        emu.add_fault(Fault("status", route="restart", status=503))
        flush, attempts = Promises.flush, 0

        async def fail(self: Promises, *, strict: bool = False) -> None:
            nonlocal attempts
            attempts += strict  # before it is sent; the end of a promise needs no strictness
            if strict and attempts == 2:
                emu.restart_instance(twin)
                if how == "no journal":
                    raise errors.JournalError("the disk is full")
                raise GeneratorExit  # as when the coroutine is closed
            await flush(self, strict=strict)

        monkeypatch.setattr(Promises, "flush", fail)
        with pytest.raises(errors.JournalError if how == "no journal" else GeneratorExit):
            async with mine.client.instance(MODEL, HARDWARE, reuse=True):
                pytest.fail("entered")
        monkeypatch.setattr(Promises, "flush", flush)
        assert attempts == 2
        assert open_promises(journals) == []
        await mine.reap(mine.kill())
        assert await later.client.sweep() == ()
        assert emu.billing == (twin,)
        assert "stop" not in routes(emu)


@pytest.mark.parametrize("has_timestamps", [False, True])
async def test_after_a_suspension_an_instance_is_adopted_only_if_its_timestamp_confirms_it(
    world: World, monkeypatch: pytest.MonkeyPatch, *, has_timestamps: bool
) -> None:
    seconds = [0.0]
    for module in ("start_state", "start_search"):
        monkeypatch.setattr(f"cortecs_async._lease.{module}.suspended", lambda: seconds[0])
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after" if has_timestamps else "before"))
        if not has_timestamps:
            monkeypatch.setattr(UnresolvedStart, "is_confirmed_by", lambda *_: None)  # no timestamps

        async def suspend() -> None:
            await anyio.sleep(2.0)
            seconds[0] = 600.0
            if not has_timestamps:
                emu.start_instance(MODEL, HARDWARE)  # a colleague's

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(suspend)
            if has_timestamps:
                async with client.instance(MODEL, HARDWARE):
                    assert len(emu.billing) == 1
                assert emu.existing == ()
            else:
                with pytest.raises(errors.AmbiguousStartError):
                    async with client.instance(MODEL, HARDWARE):
                        pytest.fail("entered")
                assert len(emu.billing) == 1
