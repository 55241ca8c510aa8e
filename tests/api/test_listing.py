"""Test `Listing`, a tuple with two attributes, what lists return and log, and when several lists agree."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
from _scripted import Answer, Service, instance

from cortecs_async import AsyncCortecs
from cortecs_async._api.listing import read_date
from cortecs_async._api.recent_lists import RecentLists
from cortecs_async._api.wire import decode_instances
from cortecs_async._errors import CortecsError, DecodeError, NotFoundError
from cortecs_async.types import HardwareType, Listing, UnreadableEntry

ODD = UnreadableEntry(entry_id="odd", problem="at $, expected an object, but got null")
SENT = "Tue, 15 Nov 1994 08:12:31 GMT"
SENT_AT = 784887151.0


class TestListing:
    def test_it_is_a_tuple(self) -> None:
        listing = Listing("ab", unreadable=[ODD], date=1.5)
        assert isinstance(listing, tuple)
        assert hash(listing) == hash(("a", "b"))
        assert (len(listing), listing[1], listing.index("b"), [*listing]) == (2, "b", 1, ["a", "b"])
        assert listing.unreadable == (ODD,)
        assert listing.date == 1.5
        assert listing == ("a", "b")

    def test_by_default_everything_was_read(self) -> None:
        assert Listing() == ()
        assert not Listing()
        assert Listing().unreadable == ()
        assert Listing().date is None

    def test_a_part_is_a_plain_tuple(self) -> None:
        listing = Listing("ab", unreadable=[ODD])
        assert type(listing[:]) is tuple
        assert type(listing + ("c",)) is tuple  # noqa: RUF005

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_copy_has_the_attributes(self, protocol: int) -> None:
        hardware = HardwareType(hardware_type_id="X", price_info={"per_hour": 3.0})
        listing = Listing([hardware], unreadable=[ODD], date=1.5)
        unpickled = pickle.loads(pickle.dumps(listing, protocol))  # noqa: S301
        for found in (unpickled, copy.copy(listing), copy.deepcopy(listing)):
            assert type(found) is Listing
            assert found.unreadable == (ODD,)
            assert found.date == 1.5
            assert found == (hardware,)

    def test_the_repr_shows_what_cannot_be_read(self) -> None:
        assert repr(Listing("a", date=1.5)) == "('a',)"
        assert repr(Listing("a", unreadable=[ODD], date=1.5)) == (
            "Listing(('a',), unreadable=(UnreadableEntry(entry_id='odd', "
            "problem='at $, expected an object, but got null'),))"
        )


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (SENT, SENT_AT),
        ("Tuesday, 15-Nov-94 08:12:31 GMT", SENT_AT),
        ("Tue Nov 15 08:12:31 1994", SENT_AT),
        ("15 Nov 1994 10:12:31 +0200", SENT_AT),
        ("Tue, 15 Nov 1994 08:12:31 -0000", SENT_AT),
        (None, None),
        ("", None),
        ("now", None),
        ("1994-11-15T08:12:31Z", None),
        ("784887151", None),
        ("Tue, 40 Nov 1994 08:12:31 GMT", None),
        ("Tue, 15 Nov 1994 99:99:99 GMT", None),
        ("Tue, 15 Nov 99999999999999999999 08:12:31 GMT", None),
        ("Tue, 15 Nov 1994 08:12:31 +999999999999999999", None),
        (b"Tue, 15 Nov 1994 08:12:31 GMT", None),
        (784887151, None),
    ],
    ids=repr,
)
def test_a_date_is_read_liberally(header: Any, expected: float | None) -> None:
    assert read_date(header) == expected


List = Callable[[AsyncCortecs], Awaitable[Listing[Any]]]
MODELS = {"models": [{"model_id": "a"}, {"model_id": "b", "creator": 5}, {"name": "c"}]}
HARDWARE = {"hardware_types": [{"hardware_type_id": "a"}, {"hardware_type_id": "b", "price_info": 5}, 7]}
INSTANCES = {
    "instances": [
        instance("instance-1"),
        {**instance("instance-2"), "instance_args": None},
        {**instance("instance-3"), "instance_id": None},
    ]
}
LISTS: list[tuple[str, Any, List]] = [
    ("/instances/", INSTANCES, lambda client: client.instances.list()),
    ("/instances/", INSTANCES, lambda client: client.instances.list_now()),
    ("/instances/", INSTANCES, lambda client: client.instances.read_all()),
    ("/models/", MODELS, lambda client: client.models.list()),
    ("/hardware-types/", HARDWARE, lambda client: client.hardware_types.list()),
    ("/hardware-types/", HARDWARE, lambda client: client.hardware_types.list_once()),
    ("/hardware-types/available", HARDWARE, lambda client: client.hardware_types.list_available()),
]


@pytest.mark.parametrize(("path", "body", "read"), LISTS)
async def test_each_list_has_its_unreadable_entries_and_its_date(path: str, body: Any, read: List) -> None:
    service = Service()
    service.on("GET", path, Answer(json=body, headers={"date": SENT}), Answer(json=body))
    async with service.client() as client:
        listing = await read(client)
        assert len(listing) == 1
        assert [each.entry_id for each in listing.unreadable] == [
            "instance-2" if path == "/instances/" else "b",
            None,
        ]
        assert listing.date == SENT_AT
        assert (await read(client)).date is None


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [each for each in caplog.records if vars(each)["cortecs_event"] == "http.unreadable_entry"]
    assert all(each.levelno == logging.WARNING for each in records)
    return [each.getMessage() for each in records]


async def test_an_unreadable_instance_is_logged_once_per_client(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.on("GET", "/instances/", Answer(json=INSTANCES))
    start = "Skipping an entry that could not be parsed in GET /instances/ (id:"
    expected = [
        f"{start} 'instance-2'): at $.instance_args, a field is null or missing",
        f"{start} None): at $.instance_id, a field is null or missing",
    ]
    async with service.client() as client:
        await client.instances.list()
        assert logged(caplog) == expected
        await client.instances.list_now()
        await client.instances.read_all()
        await client.with_options(timeout=5.0).instances.list()
        async for _ in client.instances.watch("instance-1"):
            break
        assert logged(caplog) == expected
        # Only a new one is logged, also when it is at the place of another.
        service.on("GET", "/instances/", Answer(json={"instances": [None, {"instance_id": "instance-9"}]}))
        await client.instances.list()
        assert len(logged(caplog)) == 4
    async with service.client() as client:
        await client.instances.list()
    assert len(logged(caplog)) == 6


async def test_unreadable_models_and_hardware_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    for path, body, _ in LISTS:
        service.on("GET", path, Answer(json=body))
    async with service.client() as client:
        for _ in range(2):
            for endpoints in (client, client.with_options(timeout=5.0)):
                await endpoints.models.list()
                await endpoints.hardware_types.list_available()
                await endpoints.hardware_types.list()
    texts = logged(caplog)
    assert [text.partition(":")[0] for text in texts] == [
        "Skipping an entry that could not be parsed in GET /models/ (id",
        "Skipping an entry that could not be parsed in GET /models/ (id",
        "Skipping an entry that could not be parsed in GET /hardware-types/available (id",
        "Skipping an entry that could not be parsed in GET /hardware-types/available (id",
    ]


@pytest.mark.parametrize("body", [None, [], {}, {"instances": None}, {"instances": {"a": 1}}, "x"], ids=repr)
async def test_what_is_no_list_is_still_an_error(body: Any) -> None:
    service = Service()
    service.on("GET", "/instances/", Answer(json=body))
    async with service.client() as client:
        with pytest.raises(DecodeError):
            await client.instances.list()


LOST = Answer(failure=httpx.ReadError)
UNREADABLE = {"instances": [{"instance_id": "instance-1", "instance_status": "?"}]}


async def test_an_unreadable_instance_was_not_deleted() -> None:
    service = Service()
    service.on("DELETE", "/instances/instance-1", LOST, Answer(status=404))
    service.on("GET", "/instances/", Answer(json=UNREADABLE))
    async with service.client() as client:
        start = anyio.current_time()
        with pytest.raises(NotFoundError):
            await client.instances.delete("instance-1")
        assert anyio.current_time() - start < 30.0


async def test_an_instance_is_deleted_once_readings_agree_that_it_is_missing() -> None:
    service = Service()
    service.on("DELETE", "/instances/instance-1", LOST, Answer(status=404))
    service.on("GET", "/instances/", Answer(json={"instances": []}))
    async with service.client() as client:
        await client.instances.delete("instance-1")
    assert service.routes[2:] == ["GET /instances/", *["GET /instances/instance-1", "GET /instances/"] * 3]
    assert service.times[-1] - service.times[-2 * 3] == pytest.approx(5.0)


async def test_an_unreadable_instance_is_not_taken_for_stopped() -> None:
    service = Service()
    service.on("POST", "/instances/stop", LOST, Answer(status=404))
    service.on("GET", "/instances/", Answer(json=UNREADABLE))
    async with service.client() as client:
        with pytest.raises(NotFoundError):
            await client.instances.stop("instance-1")


async def test_ensure_does_not_replace_an_instance_that_became_unreadable() -> None:
    service = Service()
    stopped = instance("instance-1", status="stopped")
    service.on("GET", "/models/org--model", Answer(json={"model": {}}))
    service.on("GET", "/instances/", Answer(json={"instances": [stopped]}), Answer(json=UNREADABLE))
    service.on("POST", "/instances/restart", Answer(status=404))
    async with service.client() as client:
        with pytest.raises(NotFoundError):
            await client.instances.ensure("org--model", "NVIDIA_H100_1")
    assert service.routes[-1] == "GET /instances/"
    assert "POST /instances/start" not in service.routes


async def test_a_start_whose_response_is_odd_but_for_the_id_is_not_repeated() -> None:
    service = Service()
    odd = {**instance("mine", "pending"), "instance_args": None}
    service.on("GET", "/instances/", Answer(json={"instances": []}), Answer(json={"instances": [odd]}))
    service.on("POST", "/instances/start", Answer(json={"instance": odd}))
    async with service.client(guard="off", journal="off") as client:
        started = await client.instances.start("org/model", context_length=8192)
        assert (started.instance_id, started.instance_args.context_length) == ("mine", 8192)
        with pytest.raises(CortecsError, match="mine"):
            async with client.instance("org/model", start_timeout=20, teardown_timeout=5):
                pytest.fail("entered")
    assert service.routes.count("POST /instances/start") == 2
    assert "POST /instances/stop" in service.routes


# --- several lists ------------------------------------------------------------------------------------------

ONE = decode_instances({"instances": [instance("one")]})
NONE = decode_instances({"instances": []})


def lists(*shows: tuple[float, bool]) -> RecentLists:
    """Return lists at these times that show the instance or lack it."""
    recent = RecentLists(30.0)
    for at, is_shown in shows:
        recent.add(ONE if is_shown else NONE, at)
    return recent


@pytest.mark.parametrize(
    ("times", "agree"),
    [
        ([0.0], False),
        ([0.0, 5.0], False),
        ([0.0, 5.0, 10.0], False),
        ([0.0, 5.0, 10.0, 15.0], True),
        ([0.0, 1.0, 2.0, 3.0], False),
        ([0.0, 1.0, 2.0, 3.0, 5.0], True),
    ],
)
def test_lists_agree_after_several_in_a_row(times: list[float], *, agree: bool) -> None:
    assert lists(*((at, True) for at in times)).agree_on("one", seconds=5.0) == agree


def test_a_list_without_the_instance_begins_the_count_again() -> None:
    shown = [(float(at), True) for at in range(10)]
    assert lists(*shown).agree_on("one", seconds=5.0)
    assert not lists(*shown, (10.0, False)).agree_on("one", seconds=5.0)
    assert not lists(*shown, (10.0, False), *((at + 11, True) for at, _ in shown[:5])).agree_on(
        "one", seconds=5.0
    )
    assert lists(*shown, (10.0, False), *((at + 11, True) for at, _ in shown[:6])).agree_on(
        "one", seconds=5.0
    )


def test_lists_that_disagree_for_a_minute_count_all_the_same() -> None:
    shown = [(float(at), at % 2 == 0) for at in range(61)]
    assert lists(*shown).agree_on("one", seconds=5.0)
    assert not lists(*shown[:-1]).agree_on("one", seconds=5.0)


def test_a_list_keeps_for_a_while_what_others_have_shown() -> None:
    recent = lists((0.0, True))
    assert [each.instance_id for each in recent.add(NONE, 29.0)] == ["one"]
    assert recent.add(NONE, 30.0) == ()
