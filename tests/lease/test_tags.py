"""Test `tag_starts=True`: each start asks for a slightly smaller context length, which tells it apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _evidence import Process, open_promises, process
from _grids import BACKENDS, alternating, grid
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import AsyncCortecs, errors
from cortecs_async._api.domain import InstanceArgs
from cortecs_async._lease.tags import StartTags
from cortecs_async.emulator import Emulator, Fault

LENGTH = 16_000


class _Models:
    """Models that must not be requested."""

    async def get(self, model_id: str) -> Any:
        raise AssertionError(model_id)


def sent_lengths(emu: Emulator) -> list[int | None]:
    """Return the context lengths of all starts that the emulator has carried out."""
    with emu._lock:
        instances = [*emu._account.instances.values(), *emu._account.deleted.values()]
    return [each.args.context_length for each in sorted(instances, key=lambda each: each.number)]


def seed(client: AsyncCortecs, number: int) -> None:
    """Make the tags of a client the same in every run."""
    client._wiring._services.starter._rng.seed(number)


@pytest.mark.parametrize("length", [101, 102, 199, 200, 201, 1_000, 8_192, 32_000, 131_072])
async def test_a_tag_is_less_than_a_percent_and_more_than_nothing(length: int) -> None:
    tags = StartTags(_Models(), random.Random(1), enabled=True)  # type: ignore[arg-type]
    lengths = set()
    for _ in range(300):
        tag = await tags.new_tag(InstanceArgs(model_id="m", context_length=length))
        assert tag is not None
        assert 0.99 * length < tag < length
        lengths.add(tag)
    # All that are possible, or most of them.
    assert len(lengths) >= min(300, round(length / 100)) / 2


@pytest.mark.parametrize("length", [1, 50, 99, 100])
async def test_a_short_context_gets_no_tag(length: int) -> None:
    tags = StartTags(_Models(), random.Random(1), enabled=True)  # type: ignore[arg-type]
    assert await tags.new_tag(InstanceArgs(model_id="m", context_length=length)) is None


async def test_without_the_option_there_is_no_tag(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE, context_length=LENGTH):
            assert sent_lengths(emu) == [LENGTH]
        assert "model" not in [each.route for each in emu.requests]


async def test_the_tag_is_in_the_intent_before_the_start_is_sent(world: World, journals: Path) -> None:
    async with world(tag_starts=True, journal="required") as (emu, client):
        seed(client, 1)
        promised: list[tuple[Any, int | None]] = []
        exchange = emu.exchange

        async def note(call: Any) -> Any:
            if call.path.endswith("/instances/start"):
                (promise,) = open_promises(journals)
                promised.append((promise.args["context_length"], promise.tag))
                assert json.loads(call.body)["context_length"] == promise.tag
            return await exchange(call)

        emu.exchange = note  # type: ignore[method-assign]
        for _ in range(3):
            async with client.instance(MODEL, HARDWARE, context_length=LENGTH) as inst:
                assert inst.instance.instance_args.context_length == sent_lengths(emu)[-1]
        assert promised == [(LENGTH, length) for length in sent_lengths(emu)]
        assert all(length is not None and 0.99 * LENGTH < length < LENGTH for length in sent_lengths(emu))
        assert len(set(sent_lengths(emu))) > 1


@pytest.mark.parametrize("hardware", [HARDWARE, None])
async def test_without_a_length_the_default_of_the_model_is_lowered(
    world: World, hardware: str | None
) -> None:
    async with world(tag_starts=True) as (emu, client):
        for _ in range(3):
            async with client.instance(MODEL, hardware):
                pass
        lengths = sent_lengths(emu)
        assert all(length is not None and 0.99 * 32_000 < length < 32_000 for length in lengths)
        # The model is read once.
        assert [each.route for each in emu.requests].count("model") == 1


async def test_a_model_with_a_short_maximum_is_not_exceeded(world: World) -> None:
    async with world(tag_starts=True, models={"org/short": {HARDWARE: 4_096}}) as (emu, client):
        async with client.instance("org/short", HARDWARE):
            (length,) = sent_lengths(emu)
            assert length is not None
            assert 0.99 * 4_096 < length < 4_096


@alternating(
    "fault",
    [
        {"kind": "status", "status": 404},
        {"kind": "status", "status": 403},
        {"kind": "garbage", "times": None},
        {"kind": "garbage", "body": {"model": 7}, "times": None},
        {"kind": "status", "status": 500, "times": None},
    ],
    ids=lambda fault: f"{fault['kind']}-{fault.get('status')}" if isinstance(fault, dict) else None,
)
async def test_a_model_that_cannot_be_read_is_started_without_a_tag(
    world: World, fault: dict[str, Any]
) -> None:
    async with world(tag_starts=True) as (emu, client):
        emu.add_fault(Fault(route="model", **fault))
        async with client.instance(MODEL, HARDWARE):
            assert sent_lengths(emu) == [32_000]
        emu.clear_faults()
        async with client.instance(MODEL, HARDWARE):
            # It is asked again next time.
            assert sent_lengths(emu)[1] != 32_000
        assert emu.existing == ()


@grid(anyio_backend=BACKENDS, colleague=["tagged", "plain", "none"], order=[1, -1])
async def test_equal_lost_starts_of_several_people_each_get_their_own(
    world: World, journals: Path, tmp_path: Path, colleague: str, order: int
) -> None:
    async with world() as (emu, _), AsyncExitStack() as stack:
        # On machines of their own, so none can read the journals of the others.
        people = [
            await stack.enter_async_context(
                process(emu, tmp_path / str(number), tag_starts=colleague == "tagged" or number < 2)
            )
            for number in range(2 + (colleague != "none"))
        ]
        for number, each in enumerate(people):
            seed(each.client, number)
        emu.add_fault(Fault("drop", route="start", when="after", times=2))
        found: list[tuple[int | None, str]] = []

        async def lease(person: Process, *, plain: bool) -> None:
            await anyio.sleep(1.0 if plain else 0.0)
            async with person.client.instance(MODEL, HARDWARE, context_length=LENGTH) as inst:
                (promise,) = (each for each in person.promises if each.instance_id == inst.instance_id)
                assert (promise.tag or LENGTH) == inst.instance.instance_args.context_length
                found.append((promise.tag, inst.instance_id))
                await anyio.sleep(60.0)

        async with anyio.create_task_group() as tasks:
            for number, each in list(enumerate(people))[::order]:

                async def run(each: Process = each, number: int = number) -> None:
                    await lease(each, plain=number == 2)

                tasks.start_soon(run)
        ids = [instance_id for _, instance_id in found]
        assert len(ids) == len(set(ids)) == len(people)
        assert len(emu.ledger) == len(people)
        assert emu.existing == ()


async def test_equal_tags_are_ambiguous_and_nothing_is_touched(
    world: World, journals: Path, tmp_path: Path
) -> None:
    async with (
        world() as (emu, _),
        process(emu, tmp_path / "one", tag_starts=True) as one,
        process(emu, tmp_path / "two", tag_starts=True) as two,
    ):
        for each in (one, two):
            seed(each.client, 1)
        emu.add_fault(Fault("drop", route="start", when="after", times=2))

        async def lease(person: Process) -> None:
            with pytest.raises(errors.AmbiguousStartError) as caught:
                async with person.client.instance(MODEL, HARDWARE, context_length=LENGTH):
                    pytest.fail("entered")
            assert caught.value.candidates == emu.existing

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease, one)
            tasks.start_soon(lease, two)
        assert len(emu.billing) == len(emu.ledger) == 2
        assert len(set(sent_lengths(emu))) == 1


@pytest.mark.parametrize("tagged", [True, False])
async def test_only_a_tag_tells_a_colleague_apart(world: World, journals: Path, *, tagged: bool) -> None:
    async with world(tag_starts=tagged) as (emu, client), anyio.create_task_group() as tasks:
        emu.add_fault(Fault("drop", route="start", when="after"))

        async def colleague() -> None:
            await anyio.sleep(1.0)
            emu.start_instance(MODEL, HARDWARE, context_length=LENGTH)

        tasks.start_soon(colleague)
        if tagged:
            async with client.instance(MODEL, HARDWARE, context_length=LENGTH) as inst:
                assert emu.billing[0] == inst.instance_id
                assert len(emu.billing) == 2
            assert len(emu.existing) == 1
        else:
            with pytest.raises(errors.AmbiguousStartError):
                async with client.instance(MODEL, HARDWARE, context_length=LENGTH):
                    pytest.fail("entered")


async def test_an_instance_without_the_tag_is_not_taken(world: World) -> None:
    async with world(tag_starts=True) as (emu, client), anyio.create_task_group() as tasks:
        emu.add_fault(Fault("drop", route="start", when="before"))
        theirs: list[str] = []

        async def colleague() -> None:
            await anyio.sleep(1.0)
            theirs.append(emu.start_instance(MODEL, HARDWARE, context_length=LENGTH))

        tasks.start_soon(colleague)
        async with client.instance(MODEL, HARDWARE, context_length=LENGTH) as inst:
            assert emu.billing == (*theirs, inst.instance_id)
        assert list(emu.existing) == theirs


@pytest.mark.parametrize("tagged", [True, False])
async def test_the_reaper_and_sweep_know_the_tag(world: World, journals: Path, *, tagged: bool) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals, tag_starts=True) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("drop", route="start", when="after" if tagged else "before"))
        tasks.start_soon(mine.start_and_die)
        await anyio.sleep(1.0)
        theirs = [emu.start_instance(MODEL, HARDWARE) for _ in range(2)]
        mine.kill()
        await anyio.sleep(10.0)
        expected = "released" if tagged else "ambiguous"
        assert [each.state for each in await later.client.sweep()] == [expected]
        assert list(emu.existing) == theirs
        tasks.cancel_scope.cancel()


class _Rewritten(httpx.AsyncBaseTransport):
    """A service whose instances show another context length than the one that was sent."""

    def __init__(self, inner: httpx.AsyncBaseTransport, shown: Callable[[int], int | None]) -> None:
        self.inner = inner
        self.shown = shown

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if "/instances" not in request.url.path:
            return response
        data = json.loads(await response.aread())
        for each in [data.get("instance"), *data.get("instances", [])]:
            if isinstance(each, dict) and "instance_args" in each:
                args = each["instance_args"]
                args["context_length"] = self.shown(args["context_length"])
        headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        return httpx.Response(response.status_code, headers=headers, json=data)


CONVERT: dict[str, Callable[[int], int | None]] = {
    "rounded up": lambda length: -(-length // 1_000) * 1_000,
    "the default": lambda _: LENGTH,
    "null": lambda _: None,
}


@pytest.mark.parametrize(
    ("shown", "lost"), [("rounded up", False), ("the default", False), ("null", False), ("null", True)]
)
async def test_a_service_that_does_not_return_the_tag_is_noted_once(
    world: World, journals: Path, shown: str, caplog: pytest.LogCaptureFixture, *, lost: bool
) -> None:
    async with (
        world() as (emu, _),
        httpx.AsyncClient(transport=_Rewritten(emu.transport(), CONVERT[shown])) as http,
        client_of(emu, http_client=http, guard="off", journal="auto", tag_starts=True) as client,
    ):
        if lost:
            emu.add_fault(Fault("drop", route="start", when="after"))
        for _ in range(4):
            async with client.instance(MODEL, HARDWARE, context_length=LENGTH) as inst:
                assert emu.billing == (inst.instance_id,)
        assert caplog.text.count("no longer tags its start requests") == 1
        # The first, and the one that showed that it is of no use.
        tagged = [length for length in sent_lengths(emu) if length != LENGTH]
        assert len(tagged) == 1 + lost
        assert len(emu.ledger) == 4
        assert emu.existing == ()


@grid(anyio_backend=BACKENDS, shown=["rounded up", "the default"], max_retries=[0, 5])
async def test_a_tag_that_is_not_returned_proves_nothing_once_that_is_known(
    world: World, journals: Path, shown: str, max_retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        world() as (emu, _),
        httpx.AsyncClient(transport=_Rewritten(emu.transport(), CONVERT[shown])) as http,
        client_of(
            emu, http_client=http, guard="off", journal="auto", tag_starts=True, max_retries=max_retries
        ) as client,
    ):
        emu.add_fault(Fault("drop", route="start", when="after"))
        if max_retries:
            async with client.instance(MODEL, HARDWARE, context_length=LENGTH) as inst:
                (_first, second) = emu.billing
                assert inst.instance_id == second
            # The response to the second start showed it, so the first one's instance could be told.
            assert emu.existing == ()
        else:
            with pytest.raises(errors.TransportError):
                async with client.instance(MODEL, HARDWARE, context_length=LENGTH):
                    pytest.fail("entered")
            # It may be the instance of a colleague whose start was equal but for the tag.
            (orphan,) = await client.sweep(timeout=400.0)
            assert (orphan.state, orphan.candidates) == ("ambiguous", emu.billing)
            assert len(emu.billing) == 1
        assert "If it appears later" in caplog.text


async def test_a_tag_that_is_not_returned_is_forgotten_for_all_starts_of_the_client(
    world: World, journals: Path
) -> None:
    async with (
        world() as (emu, _),
        httpx.AsyncClient(transport=_Rewritten(emu.transport(), CONVERT["the default"])) as http,
        client_of(emu, http_client=http, guard="off", journal="auto", tag_starts=True) as client,
    ):
        # The response to the other start, sent at the same time, shows that tags are not returned.
        emu.add_fault(Fault("drop", route="start", when="after", skip=1))

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE, context_length=LENGTH):
                await anyio.sleep(30.0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease)
            tasks.start_soon(lease)
        assert len(emu.ledger) == 2
        assert all(length != LENGTH for length in sent_lengths(emu))
        assert emu.existing == ()
    assert open_promises(journals) == []


async def test_a_tag_that_proves_useless_while_its_start_waits_is_not_sent(
    world: World, journals: Path
) -> None:
    async with (
        world() as (emu, _),
        httpx.AsyncClient(transport=_Rewritten(emu.transport(), CONVERT["the default"])) as http,
        client_of(emu, http_client=http, guard="off", journal="auto", tag_starts=True) as client,
    ):
        emu.add_fault(Fault("delay", route="start", seconds=3.0))
        emu.add_fault(Fault("drop", route="start", when="after", skip=1))
        # The second lease has its tag, and waits for its baseline.
        emu.add_fault(Fault("delay", route="list", seconds=2.0, skip=1))

        async def lease(delay: float) -> None:
            await anyio.sleep(delay)
            async with client.instance(MODEL, HARDWARE, context_length=LENGTH):
                await anyio.sleep(30.0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease, 0.0)
            tasks.start_soon(lease, 2.0)
        assert [length == LENGTH for length in sent_lengths(emu)] == [False, True]
        assert len(emu.ledger) == 2
        assert emu.existing == ()
    assert open_promises(journals) == []


async def test_a_tag_is_chosen_before_the_baseline_is_read(world: World) -> None:
    """Reading the model may take a while, in which a colleague starts an equal instance."""
    async with world(tag_starts=True) as (emu, client), anyio.create_task_group() as tasks:
        emu.add_fault(Fault("status", route="model", status=500, times=2))
        emu.add_fault(Fault("drop", route="start", when="before"))

        async def colleague() -> None:
            while "model" not in [each.route for each in emu.requests]:  # noqa: ASYNC110  (it has no event)
                await anyio.sleep(0.001)
            emu.start_instance(MODEL, HARDWARE)

        tasks.start_soon(colleague)
        async with client.instance(MODEL, HARDWARE) as inst:
            sent = [each.route for each in emu.requests if each.route in {"model", "list", "start"}]
            assert sent[:5] == ["model", "model", "model", "list", "start"]
            theirs = emu.billing[0]
            assert inst.instance_id != theirs
        assert emu.existing == (theirs,)
