"""What is logged: the table of events, and that nothing is logged past it."""

from __future__ import annotations

import ast
import functools
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from _scripted import SECRET, TOKEN, Answer, Service, instance
from _world import HARDWARE, MODEL, World

import cortecs_async
from cortecs_async import CortecsError
from cortecs_async._logging import Event, log
from cortecs_async.emulator import Fault

PACKAGE = Path(cortecs_async.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "observability.md"

# The emulator is a program of its own, integrations have only what is public, the command line speaks to
# people, and the last two have nothing to tell.
APART = {"emulator", "integrations", "_cli", "_log.py", "__main__.py"}


@functools.cache
def scan() -> tuple[list[str], list[tuple[str, ast.Call]]]:
    """Return the modules that import `logging`, and every call of `log` with its location."""
    imports, calls = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] in APART:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names) if any(each.name == "logging" for each in names):
                    imports.append(str(name))
                case ast.ImportFrom(module="logging"):
                    imports.append(str(name))
                case ast.Call(func=ast.Name(id="log")):
                    calls.append((f"{name}:{node.lineno}", node))
    return imports, calls


def events_of(call: ast.Call) -> list[Event]:
    """Those that its first argument may be."""
    return [
        Event[node.attr]
        for node in ast.walk(call.args[0])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Event"
    ]


def placeholders(event: Event) -> set[str]:
    """Return the names of the values that the event's message shows."""
    return set(re.findall(r"%\((\w+)\)(?:\.\d)?[a-z]", event.message))


def values_for(event: Event, value: object) -> dict[str, Any]:
    """Return what a call of `log` for this event must give, with one value for all."""
    return dict.fromkeys({*event.fields, *placeholders(event)}, value)


def test_only_these_modules_know_of_logging() -> None:
    imports, _ = scan()
    assert set(imports) == {"_events.py", "_logging.py"}


def test_every_call_has_the_fields_and_the_placeholders_of_its_event() -> None:
    _, calls = scan()
    assert len(calls) > 30
    for where, call in calls:
        events = events_of(call)
        assert events, where
        assert len(call.args) == 1, where
        given = {keyword.arg for keyword in call.keywords} - {"exc_info"}
        assert all(given == values_for(event, None).keys() for event in events), where


def test_every_message_can_be_formatted() -> None:
    # `log` suppresses what a handler raises, so it would hide a message that cannot be formatted.
    for event in Event:
        names = placeholders(event)
        assert event.message.count("%") == len(names), event
        text = event.message % dict.fromkeys(names, 1)
        assert "%" not in text, event
        if "1. 1" not in text:  # whose last sentence is a value
            assert text.endswith(".") == (". " in text), event


def test_every_event_has_its_own_fields_in_its_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    for event in Event:
        caplog.clear()
        log(event, **values_for(event, 1))
        (record,) = caplog.records
        assert record.getMessage()
        extra = {name for name in vars(record) if name.startswith("cortecs_")}
        assert extra == {"cortecs_event", *(f"cortecs_{name}" for name in event.fields)}


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("value", [None, "text", "%s %(nothing)s", {}, (), Unprintable()])
def test_no_value_makes_a_call_raise(value: object, caplog: pytest.LogCaptureFixture) -> None:
    # The handler of `caplog` raises what it cannot format.
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    for event in Event:
        log(event, **values_for(event, value))
        log(event)


def test_every_event_is_used() -> None:
    _, calls = scan()
    assert {event for _, call in calls for event in events_of(call)} == set(Event)


def test_the_page_lists_the_events() -> None:
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([A-Z]+) \|(.*?)\|", PAGE.read_text(), re.MULTILINE)
    listed = {(name, level, tuple(re.findall(r"`(\w+)`", fields))) for name, level, fields in rows}
    assert listed == {(event.value, logging.getLevelName(event.level), event.fields) for event in Event}
    assert len(rows) == len(Event)


def told(caplog: pytest.LogCaptureFixture, event: Event) -> list[dict[str, Any]]:
    """The fields of each record of an event."""
    return [
        {name: vars(record)[f"cortecs_{name}"] for name in event.fields}
        for record in caplog.records
        if getattr(record, "cortecs_event", None) == event.value
    ]


async def test_the_life_of_a_lease(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    async with world(step_seconds=2.0) as (_emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            pass
    one = {"instance_id": inst.instance_id, "model": MODEL}
    (started,) = told(caplog, Event.LEASE_STARTED)
    assert started == {**one, "request_id": started["request_id"]}
    (running,) = told(caplog, Event.LEASE_RUNNING)
    assert running == {**one, "base_url": inst.base_url, "seconds": running["seconds"]}
    assert 8.0 <= running["seconds"] <= 9.0
    (ended,) = told(caplog, Event.LEASE_ENDED)
    receipt = inst.receipt
    assert ended == {
        **one,
        "goal": "gone",
        "seconds": receipt.seconds,
        "cost": receipt.cost,
        "currency": "EUR",
    }
    requests = told(caplog, Event.HTTP_REQUEST)
    (start,) = [each for each in requests if each["path"] == "/instances/start"]
    # What the service calls the request is in both places.
    assert start == {
        "method": "POST",
        "path": "/instances/start",
        "status": 202,
        "seconds": 0.0,
        "attempt": 1,
        "request_id": started["request_id"],
    }
    assert re.fullmatch(r"emulator-request-\d+", start["request_id"])
    assert len({each["request_id"] for each in requests}) == len(requests)


async def test_a_request_that_is_sent_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="list", status=503))
        emu.add_fault(Fault("drop", route="list"))
        await client.instances.list()
    first, second = told(caplog, Event.HTTP_RETRY)
    assert (first["status"], first["attempt"], first["path"]) == (503, 1, "/instances/")
    assert first["request_id"].startswith("emulator-request-")
    assert (second["status"], second["attempt"], second["request_id"]) == (None, 2, None)
    assert first["wait"] >= 0


def test_a_record_is_of_the_place_that_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cortecs_async")
    log(Event.GUARD_SWEEP, text="here")
    (record,) = caplog.records
    assert (record.name, record.funcName) == (
        "cortecs_async.guard",
        "test_a_record_is_of_the_place_that_logs",
    )


async def test_what_a_program_does_to_its_records_does_no_harm(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A factory with attributes of its own, and a filter that fails."""
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    make = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.request_id = record.instance_id = record.event = record.model = "the program's"
        return record

    def refuse(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    logging.setLogRecordFactory(factory)
    try:
        async with world() as (emu, client):
            async with client.instance(MODEL, HARDWARE):
                pass
            assert emu.existing == ()
            assert len(told(caplog, Event.LEASE_ENDED)) == 1
            logger = logging.getLogger("cortecs_async.lease")
            monkeypatch.setattr(logger, "filters", [refuse])
            async with client.instance(MODEL, HARDWARE):
                pass
            assert emu.existing == ()
    finally:
        logging.setLogRecordFactory(make)


async def test_no_field_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    both = f"{SECRET} and {TOKEN}"
    service = Service()
    headers = {"X-Request-Id": both}
    service.on("GET", "/instances/instance-1", Answer(json={"instance": instance()}, headers=headers))
    service.on("GET", "/user/balance", Answer(status=503, headers=headers))
    service.on("POST", "/instances/start", Answer(status=402, content=both.encode(), headers=headers))
    async with service.client() as client:
        await client.instances.get("instance-1")
        for call in (client.user.balance(), client.instances.start("a/b")):
            with pytest.raises(CortecsError):
                await call
    requests = told(caplog, Event.HTTP_REQUEST)
    assert any(each["request_id"] == "*** and ***" for each in requests)
    for record in caplog.records:
        assert SECRET not in repr(vars(record))
        assert TOKEN not in repr(vars(record))
