"""The spans and metrics of leases."""

from __future__ import annotations

import itertools
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _closing import close_inside
from _examples import run_examples
from _scripted import SECRET, TOKEN, Answer, Service
from _world import HARDWARE, MODEL, World
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cortecs_async import CortecsError, TeardownError, errors
from cortecs_async._aio.eventloop import LoopBinding
from cortecs_async._extras import install_command
from cortecs_async._logging import Event
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.integrations.opentelemetry import OpenTelemetry

LINKED = "meta-llama--Llama-3.1-8B-Instruct"
PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


class Seen:
    """The OpenTelemetry SDK of a program, which keeps everything in memory."""

    def __init__(self, *processors: SpanProcessor) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider()
        for each in (*processors, SimpleSpanProcessor(self._exporter)):
            tracers.add_span_processor(each)
        self.telemetry = OpenTelemetry(tracers, MeterProvider([self._reader]))
        self.tracer = tracers.get_tracer("the program's own")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """Return the ended spans, the earliest first."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def attributes(self, name: str) -> dict[str, Any]:
        return dict(self.span(name).attributes or {})

    @property
    def tree(self) -> list[str]:
        """Return a line per span: indented by its depth, with its name, outcome and error."""

        def lines(parent: int | None, depth: int) -> list[str]:
            found = []
            for span in self.spans:
                if (span.parent.span_id if span.parent else None) != parent:
                    continue
                attributes = span.attributes or {}
                ended = [attributes.get("cortecs.outcome"), attributes.get("error.type")]
                said = " ".join(str(each) for each in ended if each is not None)
                found.append(f"{'  ' * depth}{span.name}: {said}")
                assert span.context is not None
                found += lines(span.context.span_id, depth + 1)
            return found

        return lines(None, 0)

    @property
    def metrics(self) -> dict[str, list[tuple[dict[str, Any], float, int]]]:
        """Return attributes, sum and count of every point of every metric."""
        found: dict[str, list[tuple[dict[str, Any], float, int]]] = {}
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        is_histogram = isinstance(point, HistogramDataPoint)
                        value = (point.sum, point.count) if is_histogram else (point.value, 1)  # type: ignore[union-attr]
                        found.setdefault(metric.name, []).append((dict(point.attributes or {}), *value))
        return found


@pytest.fixture
def seen() -> Seen:
    return Seen()


def tree(*lines: str) -> list[str]:
    """Expand `lease: ok` and so on to the lines of `Seen.tree`."""
    return [
        f"  cortecs.lease.{line}" if not line.startswith("lease") else f"cortecs.{line}" for line in lines
    ]


# --- spans --------------------------------------------------------------------------------------------------


async def test_a_lease(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        async with client.instance(MODEL, HARDWARE, num_workers=2) as inst:
            pass
    assert seen.tree == tree("lease: ok", "start: ok", "wait: ok", "body: ok", "teardown: ok")
    request_id = seen.attributes("cortecs.lease")["cortecs.start.request_id"]
    assert re.fullmatch(r"emulator-request-\d+", request_id)
    common = {
        "cortecs.operation": "instance",
        "cortecs.model": MODEL,
        "cortecs.hardware_type": HARDWARE,
        "cortecs.num_workers": 2,
        "cortecs.instance.id": inst.instance_id,
        "cortecs.instance.source": "started",
        "cortecs.start.request_id": request_id,
        "cortecs.outcome": "ok",
    }
    for phase in ("start", "wait", "body", "teardown"):
        assert seen.attributes(f"cortecs.lease.{phase}") == common
    assert seen.attributes("cortecs.lease") == {
        **common,
        "cortecs.cost": inst.receipt.cost,
        "cortecs.currency": "EUR",
    }
    assert {span.status.status_code for span in seen.spans} == {StatusCode.UNSET}
    assert {span.kind for span in seen.spans} == {trace.SpanKind.INTERNAL}
    scope = seen.span("cortecs.lease").instrumentation_scope
    assert scope is not None
    assert scope.name == "cortecs_async"
    assert scope.version


async def test_a_body_that_fails(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        with pytest.raises(KeyError):
            async with client.instance(MODEL, HARDWARE):
                raise KeyError("mine")
    assert seen.tree == tree(
        "lease: error KeyError", "start: ok", "wait: ok", "body: error KeyError", "teardown: ok"
    )
    body = seen.span("cortecs.lease.body")
    assert body.status.status_code is StatusCode.ERROR
    assert body.status.description == "KeyError: 'mine'"
    (event,) = body.events
    assert event.name == "exception"
    assert (event.attributes or {})["exception.message"] == "'mine'"
    lease = seen.span("cortecs.lease")
    assert lease.status.status_code is StatusCode.ERROR
    assert lease.events == ()


async def test_a_rejected_start(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        emu.add_fault(Fault("status", route="start", status=402))
        with pytest.raises(errors.InsufficientBalanceError) as caught:
            await client.instance(MODEL, HARDWARE).__aenter__()
    assert seen.tree == tree("lease: error InsufficientBalanceError", "start: error InsufficientBalanceError")
    attributes = seen.attributes("cortecs.lease.start")
    assert attributes["cortecs.start.request_id"] == caught.value.request_id
    assert "cortecs.instance.id" not in attributes


async def test_a_start_that_times_out(world: World, seen: Seen) -> None:
    async with world(step_seconds=100.0, telemetry=seen.telemetry) as (emu, client):
        with pytest.raises(errors.StartTimeoutError):
            await client.instance(MODEL, HARDWARE, start_timeout=5).__aenter__()
        assert emu.existing == ()
    assert seen.tree == tree(
        "lease: error StartTimeoutError", "start: ok", "wait: error StartTimeoutError", "teardown: ok"
    )
    assert seen.attributes("cortecs.lease")["cortecs.cost"] > 0


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (50.0, ["start: ok", "wait: ok", "body: cancelled", "teardown: ok"]),
        (2.0, ["start: ok", "wait: cancelled", "teardown: ok"]),
    ],
)
async def test_a_cancellation_is_not_an_error(
    world: World, seen: Seen, after: float, lines: list[str]
) -> None:
    async with world(step_seconds=1.0, telemetry=seen.telemetry) as (emu, client):
        with anyio.move_on_after(after):
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(1000)
        assert emu.existing == ()
    assert seen.tree == tree("lease: cancelled", *lines)
    assert {span.status.status_code for span in seen.spans} == {StatusCode.UNSET}


async def test_a_start_cancelled_while_it_is_sent(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=5.0))
        with anyio.move_on_after(2.0):
            await client.instance(MODEL, HARDWARE).__aenter__()
        assert emu.existing == ()
    assert seen.tree == tree("lease: cancelled", "start: cancelled", "teardown: ok")
    # The response is still read after the cancellation, and so the release knows the id.
    assert seen.attributes("cortecs.lease.teardown")["cortecs.instance.id"] == "instance-10001"


async def test_a_release_that_fails(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        with pytest.raises(TeardownError):
            async with client.instance(MODEL, HARDWARE, teardown_timeout=30):
                emu.add_fault(Fault("status", status=500, times=None))
    assert seen.tree == tree(
        "lease: error TeardownError", "start: ok", "wait: ok", "body: ok", "teardown: error TeardownError"
    )
    (event,) = seen.span("cortecs.lease.teardown").events
    assert "MAY STILL BE BILLED" in str((event.attributes or {})["exception.message"])


async def test_a_release_that_fails_after_a_cancellation(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        with anyio.move_on_after(50):
            async with client.instance(MODEL, HARDWARE, teardown_timeout=30):
                emu.add_fault(Fault("status", status=500, times=None))
                await anyio.sleep(1000)
    assert seen.tree[0] == "cortecs.lease: error TeardownError"
    assert seen.tree[3] == "  cortecs.lease.body: cancelled"


async def test_a_lost_instance(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        with pytest.raises(errors.InstanceLostError):
            async with client.instance(MODEL, HARDWARE) as inst:
                emu.stop_instance(inst.instance_id)
                await anyio.sleep(1000)
    lost = "error InstanceLostError"
    assert seen.tree == tree(f"lease: {lost}", "start: ok", "wait: ok", f"body: {lost}", "teardown: ok")


async def test_an_expired_lease(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        with pytest.raises(errors.LeaseExpiredError):
            async with client.instance(MODEL, HARDWARE, max_lifetime=60):
                await anyio.sleep(1000)
    expired = "error LeaseExpiredError"
    assert seen.tree == tree(f"lease: {expired}", "start: ok", "wait: ok", f"body: {expired}", "teardown: ok")


async def test_acquire_and_release(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE)
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert seen.tree == tree("lease: ok", "start: ok", "wait: ok")
        assert seen.attributes("cortecs.lease")["cortecs.operation"] == "acquire"
        assert "cortecs.cost" not in seen.attributes("cortecs.lease")
        await client.release(handle)
        assert emu.existing == ()
        assert seen.tree[3:] == ["cortecs.lease.teardown: ok"]
        assert seen.attributes("cortecs.lease.teardown") == {
            "cortecs.operation": "release",
            "cortecs.instance.id": handle.instance_id,
            "cortecs.outcome": "ok",
        }
        # One list without it proves nothing, so the second release is a teardown as well.
        await client.release(handle)
    assert seen.tree[3:] == ["cortecs.lease.teardown: ok"] * 2


async def test_an_instance_of_another_owner(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        found = emu.start_instance(LINKED, HARDWARE)
        async with client.attach(found) as inst:
            pass
        async with client.instance(MODEL, HARDWARE, reuse=True):
            pass
        assert emu.existing == (found,)
    assert seen.tree == tree("lease: ok", "start: ok", "wait: ok", "body: ok") * 2
    leases = [dict(span.attributes or {}) for span in seen.spans if span.name == "cortecs.lease"]
    assert [each["cortecs.operation"] for each in leases] == ["attach", "instance"]
    for each in leases:
        assert each["cortecs.instance.source"] == "found"
        assert each["cortecs.model"] == inst.model
        # Its owner pays for it, and is not billed twice.
        assert "cortecs.cost" not in each
    assert "cortecs.lease.cost" not in seen.metrics


async def test_exceptions_of_others_show_no_secrets(
    world: World, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, of_environment = "sk-passed-as-an-argument", "sk-of-the-environment"
    monkeypatch.setenv("OPENAI_API_KEY", of_environment)
    async with world(telemetry=seen.telemetry) as (emu, client):
        with pytest.raises(KeyError):
            async with client.instance(MODEL, HARDWARE) as inst:
                inst.openai_kwargs(api_key=passed)
                cause = ValueError(f"Incorrect API key provided: {passed}, {of_environment}")
                raise KeyError(f"logged in with {emu.client_secret}, {passed}") from cause
    shown = "".join(span.to_json() for span in seen.spans)
    assert "Incorrect API key provided: ***, ***" in shown
    assert "logged in with ***, ***" in shown
    assert not [each for each in (passed, of_environment, emu.client_secret) if each in shown]


class Mute(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_an_exception_without_a_text_ends_its_span(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_, client):
        with pytest.raises(Mute):
            async with client.instance(MODEL, HARDWARE):
                raise Mute
    assert seen.span("cortecs.lease.body").status.description == "Mute: (message not available)"


async def test_a_restarted_instance_and_a_kept_one(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        found = emu.start_instance(LINKED, HARDWARE)
        emu.stop_instance(found)
        async with client.instance(MODEL, HARDWARE, reuse=True):
            pass
        async with client.instance(MODEL, HARDWARE, on_exit="keep"):
            pass
    assert seen.tree == tree(
        *("lease: ok", "start: ok", "wait: ok", "body: ok", "teardown: ok"),
        *("lease: ok", "start: ok", "wait: ok", "body: ok"),
    )
    sources = [
        dict(span.attributes or {})["cortecs.instance.source"]
        for span in seen.spans
        if span.name == "cortecs.lease"
    ]
    assert sources == ["restarted", "started"]


async def test_a_lease_left_to_the_reaper(
    world: World, journals: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopBinding, "call_soon", lambda *_: False)
    async with world(journal="auto", telemetry=seen.telemetry) as (_emu, client):
        lease = client.instance(MODEL, HARDWARE, on_loss="ignore")
        await lease.__aenter__()
        close_inside(lease)
        await client.sweep()
    assert seen.tree[0] == "cortecs.lease: abandoned abandoned"
    assert seen.span("cortecs.lease").status.status_code is StatusCode.ERROR
    assert [value for _, value, _ in seen.metrics["cortecs.lease.active"]] == [0]


# --- the current span ---------------------------------------------------------------------------------------


def current() -> str:
    return getattr(trace.get_current_span(), "name", "")


async def test_the_body_span_is_current_in_the_block(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        with seen.tracer.start_as_current_span("job"):
            with pytest.raises(KeyError):
                async with client.instance(MODEL, HARDWARE):
                    assert current() == "cortecs.lease.body"
                    with seen.tracer.start_as_current_span("chat"):
                        pass

                    async def child() -> None:
                        with seen.tracer.start_as_current_span("chat in a task"):
                            await anyio.sleep(1)

                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(child)
                    raise KeyError
            assert current() == "job"
            with seen.tracer.start_as_current_span("afterwards"):
                pass
    assert [line.partition(":")[0] for line in seen.tree] == [
        "job",
        "  cortecs.lease",
        "    cortecs.lease.start",
        "    cortecs.lease.wait",
        "    cortecs.lease.body",
        "      chat",
        "      chat in a task",
        "    cortecs.lease.teardown",
        "  afterwards",
    ]
    assert current() == ""


@pytest.mark.parametrize("start_timeout", [2.0, 900.0])
async def test_requests_are_children_of_the_phase_that_sends_them(
    world: World, seen: Seen, start_timeout: float
) -> None:
    sent: list[tuple[str, str]] = []

    async def note(request: httpx.Request) -> None:
        sent.append((request.url.path.removeprefix("/api/v1"), current()))

    async with world(step_seconds=1.0, telemetry=seen.telemetry) as (_emu, client):
        client._wiring.http_client.event_hooks = {"request": [note]}  # type: ignore[union-attr]
        try:
            async with client.instance(MODEL, HARDWARE, start_timeout=start_timeout) as inst:
                await client.instances.list()
        except errors.StartTimeoutError:
            assert start_timeout == 2.0
        else:
            assert ("/instances/", "cortecs.lease.body") in sent
            assert (f"/instances/{inst.instance_id}", "cortecs.lease.wait") in sent
        assert current() == ""
    assert ("/instances/start", "cortecs.lease.start") in sent
    assert ("/instances/stop", "cortecs.lease.teardown") in sent
    assert "" not in {name for _, name in sent}


async def test_nested_leases(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        async with client.instance(MODEL, HARDWARE), client.instance(MODEL, HARDWARE):
            inner = trace.get_current_span()
        assert current() == ""
    bodies = [span.context for span in seen.spans if span.name == "cortecs.lease.body"]
    assert inner.get_span_context() == bodies[-1]
    # The second lease was entered in the body of the first.
    assert seen.tree[4] == "    cortecs.lease: ok"


# On trio, the task that enters a block must also leave it.
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


@pytest.fixture
def no_complaint(caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    caplog.set_level(logging.DEBUG, logger="opentelemetry")

    def check() -> None:
        assert [each for each in caplog.records if each.name.startswith("opentelemetry")] == []

    return check


@on_asyncio
async def test_a_block_left_in_another_task(
    world: World, seen: Seen, no_complaint: Callable[[], None]
) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        lease = client.instance(MODEL, HARDWARE)

        async def enter() -> None:
            await lease.__aenter__()

        async def leave() -> None:
            await lease.__aexit__(None, None, None)

        for step in (enter, leave):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)
        assert emu.existing == ()
        assert current() == ""
    assert seen.tree == tree("lease: ok", "start: ok", "wait: ok", "body: ok", "teardown: ok")
    no_complaint()


@on_asyncio
async def test_a_block_left_in_a_task_of_its_body(
    world: World, seen: Seen, no_complaint: Callable[[], None]
) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        lease = client.instance(MODEL, HARDWARE)
        await lease.__aenter__()

        async def leave() -> None:
            await lease.__aexit__(None, None, None)
            assert current() == ""

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
    no_complaint()


@pytest.mark.parametrize("order", [*itertools.permutations(range(3)), range(6)])
@on_asyncio
async def test_blocks_left_in_any_order(
    world: World, seen: Seen, order: Sequence[int], no_complaint: Callable[[], None]
) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        with seen.tracer.start_as_current_span("job"):
            leases = [client.instance(MODEL, HARDWARE) for _ in order]
            for lease in leases:
                await lease.__aenter__()
            for left, number in enumerate(order, 1):
                await leases[number].__aexit__(None, None, None)
                assert current() == ("job" if left == len(leases) else "cortecs.lease.body")
    assert current() == ""
    no_complaint()


async def test_a_context_attached_by_the_program_stays(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (_emu, client):
        async with client.instance(MODEL, HARDWARE):
            token = context.attach(context.set_value("mine", "here"))
        assert context.get_value("mine") == "here"
        context.detach(token)


# --- metrics ------------------------------------------------------------------------------------------------


async def test_metrics(world: World, seen: Seen) -> None:
    async with world(step_seconds=2.0, stop_seconds=3.0, telemetry=seen.telemetry) as (emu, client):
        emu.add_fault(Fault("status", route="token", status=503, times=2))
        emu.add_fault(Fault("drop", route="list"))
        receipts = []
        for seconds in (100.0, 200.0):
            async with client.instance(MODEL, HARDWARE) as inst:
                assert [value for _, value, _ in seen.metrics["cortecs.lease.active"]] == [1]
                await anyio.sleep(seconds)
            receipts.append(inst.receipt)
        with pytest.raises(KeyError):
            async with client.instance(MODEL, HARDWARE) as inst:
                raise KeyError
        receipts.append(inst.receipt)
        await client.release(await client.acquire(MODEL, HARDWARE))
    found = seen.metrics
    what = {"cortecs.model": MODEL, "cortecs.hardware_type": HARDWARE}
    leased = {**what, "cortecs.operation": "instance"}
    acquired = {**what, "cortecs.operation": "acquire"}
    ok, failed = {"cortecs.outcome": "ok"}, {"cortecs.outcome": "error", "error.type": "KeyError"}
    assert sorted(found.pop("cortecs.lease.active"), key=str) == [
        ({"cortecs.operation": "acquire"}, 0, 1),
        ({"cortecs.operation": "instance"}, 0, 1),
    ]
    assert found.pop("cortecs.lease.completed") == [
        ({**leased, **ok}, 2, 1),
        ({**leased, **failed}, 1, 1),
        ({**acquired, **ok}, 1, 1),
    ]
    # The cost of an acquired instance is not known.
    assert found.pop("cortecs.lease.cost") == [
        ({**leased, "cortecs.currency": "EUR"}, pytest.approx(sum(each.cost or 0 for each in receipts)), 1)
    ]
    durations = found.pop("cortecs.lease.duration")
    assert [(attributes, count) for attributes, _, count in durations] == [
        ({**leased, **ok}, 2),
        ({**leased, **failed}, 1),
        ({**acquired, **ok}, 1),
    ]
    assert 300 + 2 * (8 + 3) <= durations[0][1] <= 300 + 2 * (9 + 4) + 5
    starts = found.pop("cortecs.lease.time_to_running")
    source = {"cortecs.instance.source": "started"}
    assert [(attributes, count) for attributes, _, count in starts] == [
        ({**leased, **source}, 3),
        ({**acquired, **source}, 1),
    ]
    assert 3 * 8 <= starts[0][1] <= 3 * 9 + 5
    teardowns = found.pop("cortecs.lease.teardown.duration")
    assert [(attributes, count) for attributes, _, count in teardowns] == [
        ({**leased, **ok}, 3),
        ({"cortecs.operation": "release", **ok}, 1),
    ]
    assert 9 <= teardowns[0][1] <= 12
    assert found.pop("cortecs.request.retries") == [
        ({"http.request.method": "POST", "url.template": "/oauth2/token", "error.type": "503"}, 2, 1),
        ({"http.request.method": "GET", "url.template": "/instances/", "error.type": "lost"}, 1, 1),
    ]
    assert found == {}


async def test_units_and_buckets(world: World) -> None:
    reader = InMemoryMetricReader()
    telemetry = OpenTelemetry(meter_provider=MeterProvider([reader]))
    async with world(step_seconds=2.0, telemetry=telemetry) as (emu, client):
        emu.add_fault(Fault("drop", route="list"))
        async with client.instance(MODEL, HARDWARE):
            pass
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert {name: metric.unit for name, metric in metrics.items()} == {
        "cortecs.lease.time_to_running": "s",
        "cortecs.lease.duration": "s",
        "cortecs.lease.teardown.duration": "s",
        "cortecs.lease.active": "{lease}",
        "cortecs.lease.completed": "{lease}",
        "cortecs.lease.cost": "{currency}",
        "cortecs.request.retries": "{retry}",
    }
    (point,) = metrics["cortecs.lease.time_to_running"].data.data_points
    assert isinstance(point, HistogramDataPoint)
    assert 900.0 in point.explicit_bounds


# --- failures ---------------------------------------------------------------------------------------------


class Explosive(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise ZeroDivisionError

    def on_end(self, span: Any) -> None:
        raise ZeroDivisionError


async def test_a_broken_exporter_does_no_harm(world: World) -> None:
    seen = Seen(Explosive())
    async with world(telemetry=seen.telemetry) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            assert current() == ""
        assert emu.existing == ()
    assert seen.spans == []


class Failing(SpanProcessor):
    def on_end(self, span: Any) -> None:
        raise ZeroDivisionError


async def test_metrics_are_right_even_if_spans_fail(world: World) -> None:
    seen = Seen(Failing())
    async with world(telemetry=seen.telemetry) as (_emu, client):
        async with client.instance(MODEL, HARDWARE):
            assert current() == "cortecs.lease.body"
        assert current() == ""
    assert [value for _, value, _ in seen.metrics["cortecs.lease.active"]] == [0]
    assert [value for _, value, _ in seen.metrics["cortecs.lease.completed"]] == [1]


async def test_without_an_sdk_nothing_is_recorded(world: World) -> None:
    async with world(telemetry=OpenTelemetry()) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            assert not trace.get_current_span().is_recording()
        assert emu.existing == ()


async def test_no_secret_shows(seen: Seen) -> None:
    both = f"{SECRET} and {TOKEN}"
    service = Service()
    service.on(
        "GET", "/instances/", Answer(status=503, content=both.encode()), Answer(json={"instances": []})
    )
    headers = {"X-Request-Id": both}
    service.on("POST", "/instances/start", Answer(status=402, content=both.encode(), headers=headers))
    async with service.client(telemetry=seen.telemetry, guard="off", journal="off") as client:
        with pytest.raises(CortecsError):
            await client.instance("a/b").__aenter__()
    assert seen.tree[0].startswith("cortecs.lease: error")
    shown = " ".join(span.to_json() for span in seen.spans) + repr(seen.metrics)
    assert "*** and ***" in shown
    assert SECRET not in shown
    assert TOKEN not in shown


@pytest.mark.sockets
def test_without_the_package_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from cortecs_async import ConfigurationError
from cortecs_async.integrations.opentelemetry import OpenTelemetry
try:
    OpenTelemetry()
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert install_command("opentelemetry") in done.stdout, done.stderr


# --- the page -----------------------------------------------------------------------------------------------


async def test_the_page_lists_every_span_metric_and_attribute(world: World, seen: Seen) -> None:
    async with world(telemetry=seen.telemetry) as (emu, client):
        emu.add_fault(Fault("status", route="list", status=503))
        emu.add_fault(Fault("status", route="start", status=503))  # there is no capacity at first
        with pytest.raises(KeyError):
            async with client.instance(MODEL, [HARDWARE, "NVIDIA_H100_4"], capacity_timeout=60):
                raise KeyError
    text = PAGE.read_text()
    metrics = seen.metrics
    points = {name for found in metrics.values() for attributes, _, _ in found for name in attributes}
    attributes = {name for span in seen.spans for name in span.attributes or {}} | points
    names = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    names -= {event.value for event in Event}
    assert names == {span.name for span in seen.spans} | attributes | metrics.keys()


@pytest.mark.sockets
def test_every_example_of_the_page_runs(served: Emulator, capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("cortecs_async")
    try:
        run_examples(PAGE)
    finally:
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    assert served.existing == ()
    assert len(served.ledger) == 2
    shown = capfd.readouterr()
    records = [json.loads(line) for line in shown.err.splitlines() if line.startswith('{"time"')]
    assert "lease.ended" in {each.get("cortecs_event") for each in records}
    assert "cortecs.lease.ok:" in shown.out
    assert re.search(r"^40[04] emulator-request-\d+$", shown.out, re.MULTILINE)
