"""Test what a service may write differently: its dates, its words for statuses, and its errors."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import Fault

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


async def status(http: Any, instance_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await http.instance(instance_id))["instance_status"]
    return found


# Stamps


async def stamps(http: Any, clock: Any) -> list[tuple[float, str | None]]:
    """Start, stop and restart an instance with steps of 10 s, and return the changes of its stamp."""
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    seen: list[tuple[float, str | None]] = []
    for now in range(300):
        clock.now = float(now)
        if now in {100, 220}:
            http.emulator.stop_instance(instance_id)
        if now in {150, 250}:
            http.emulator.restart_instance(instance_id)
        stamp = (await status(http, instance_id))["started_at"]
        if not seen or seen[-1][1] != stamp:
            seen.append((clock.now, stamp))
    return seen


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [
        (
            "running",
            [
                (0.0, None),
                (40.0, "2025-01-01T00:00:40Z"),
                (150.0, None),
                (190.0, "2025-01-01T00:03:10Z"),
                (250.0, None),
                (290.0, "2025-01-01T00:04:50Z"),
            ],
        ),
        (
            "accepted",
            [
                (0.0, "2025-01-01T00:00:00Z"),
                (150.0, "2025-01-01T00:02:30Z"),
                (250.0, "2025-01-01T00:04:10Z"),
            ],
        ),
        (
            "initialized",
            [
                (0.0, None),
                (10.0, "2025-01-01T00:00:10Z"),
                (150.0, None),
                (160.0, "2025-01-01T00:02:40Z"),
                (250.0, None),
                (260.0, "2025-01-01T00:04:20Z"),
            ],
        ),
        ("first_running", [(0.0, None), (40.0, "2025-01-01T00:00:40Z")]),
        ("constant", [(0.0, "2020-01-01T00:00:00Z")]),
        ("none", [(0.0, None)]),
        (
            "local_time",
            [
                (0.0, None),
                (40.0, "2025-01-01T02:00:40Z"),
                (150.0, None),
                (190.0, "2025-01-01T02:03:10Z"),
                (250.0, None),
                (290.0, "2025-01-01T02:04:50Z"),
            ],
        ),
    ],
)
async def test_the_meanings_of_the_stamp(
    meaning: str, expected: list[Any], clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(started_at=meaning, step_seconds=10.0)
    assert await stamps(http, clock) == expected
    assert http.emulator.ledger[0].started_at == 0.0


async def test_the_first_run_that_was_running_counts(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(started_at="first_running", step_seconds=10.0, get_lag=[0.0, 100.0])
    instance_id = http.emulator.start_instance(LLAMA)
    clock.now = 39.0
    http.emulator.stop_instance(instance_id)
    clock.now = 50.0
    http.emulator.restart_instance(instance_id)
    seen = []
    for now in (89.0, 90.0, 149.0, 190.0):
        clock.now = now
        answers = [await http.api("GET", f"/instances/{instance_id}") for _ in range(2)]
        seen.append(
            [
                answer.json()["instance"]["instance_status"]["started_at"]
                if answer.status_code == 200
                else None
                for answer in answers
            ]
        )
    assert seen == [
        [None, None],
        ["2025-01-01T00:01:30Z", None],
        ["2025-01-01T00:01:30Z", None],
        ["2025-01-01T00:01:30Z", "2025-01-01T00:01:30Z"],
    ]


async def test_a_run_stopped_before_its_second_step_was_never_initialized(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(started_at="initialized", step_seconds=10.0)
    early, late = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    clock.now = 9.0
    http.emulator.stop_instance(early)
    clock.now = 11.0
    http.emulator.stop_instance(late)
    clock.now = 100.0
    assert (await status(http, early))["started_at"] is None
    assert (await status(http, late))["started_at"] == "2025-01-01T00:00:10Z"


@pytest.mark.parametrize("options", [{"step_seconds": 0.0}, {"num_steps": 1}])
@pytest.mark.parametrize("meaning", ["running", "accepted", "initialized", "first_running"])
async def test_without_steps_all_meanings_agree(
    meaning: str, options: dict[str, Any], clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(started_at=meaning, **options)
    clock.now = 5.0
    started = (await http.start()).json()["instance"]
    assert started["instance_status"]["started_at"] == "2025-01-01T00:00:05Z"


# The clock


@pytest.mark.parametrize(
    ("skew", "day", "time"),
    [
        (0.0, "Wed, 01 Jan 2025 00:00:50 GMT", "2025-01-01T00:00:50Z"),
        (600.0, "Wed, 01 Jan 2025 00:10:50 GMT", "2025-01-01T00:10:50Z"),
        (-600.0, "Tue, 31 Dec 2024 23:50:50 GMT", "2024-12-31T23:50:50Z"),
    ],
)
async def test_a_skewed_clock_moves_all_dates(
    skew: float, day: str, time: str, clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(clock_skew=skew, step_seconds=0.0)
    clock.now = 50.0
    answer = await http.start()
    instance_id = answer.json()["instance"]["instance_id"]
    assert answer.headers.get_list("date") == [day]
    http.emulator.stop_instance(instance_id)
    assert await status(http, instance_id) == {"status": "stopped", "started_at": time, "stopped_at": time}
    http.emulator.restart_instance(instance_id)
    body = {"model": LLAMA.replace("--", "/"), "messages": [{"role": "user", "content": "x"}]}
    created = (await http.infer(instance_id, "/chat/completions", body)).json()["created"]
    assert created == 1_735_689_650 + skew
    # The emulator's own records are on its own clock.
    assert http.emulator.ledger[0].started_at == 50.0
    assert {record.at for record in http.emulator.requests} == {50.0}


async def test_every_response_has_the_date(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    clock.now = 3661.0
    instance_id = http.emulator.start_instance(LLAMA)
    http.emulator.add_fault(Fault("status", "list", status=502, body="<html>"))
    http.emulator.add_fault(Fault("garbage", "list"))
    http.emulator.add_fault(Fault("status", "list", headers={"Date": "yesterday"}))
    answers = [
        await http.api("GET", "/instances/"),
        await http.api("GET", "/instances/"),
        await http.api("GET", "/instances/none"),
        await http.api("GET", "/nowhere"),
        await http.api("GET", "/instances"),
        await http.infer(instance_id, "/models"),
    ]
    assert [answer.status_code for answer in answers] == [502, 200, 400, 404, 307, 503]
    assert {answer.headers["date"] for answer in answers} == {"Wed, 01 Jan 2025 01:01:01 GMT"}
    assert (await http.api("GET", "/instances/")).headers.get_list("date") == ["yesterday"]


async def test_a_lagging_list_has_the_date_of_now(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(list_lag=30.0)
    http.emulator.start_instance(LLAMA)
    clock.now = 40.0
    answer = await http.api("GET", "/instances/")
    assert answer.headers["date"] == "Wed, 01 Jan 2025 00:00:40 GMT"
    (instance,) = answer.json()["instances"]
    assert instance["instance_status"]["started_at"] == "2025-01-01T00:00:04Z"


async def test_no_stamp_is_later_than_its_response(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(started_at="accepted")
    clock.now = 7.999_999_8
    answer = await http.start()
    assert answer.json()["instance"]["instance_status"]["started_at"] == "2025-01-01T00:00:07Z"
    assert answer.headers["date"] == "Wed, 01 Jan 2025 00:00:07 GMT"


async def test_the_date_can_be_left_out(emulate: Callable[..., Any]) -> None:
    assert "date" not in (await emulate(date_header=False).api("GET", "/models/", headers={})).headers


# Words for statuses


async def test_statuses_can_have_other_words(clock: Any, emulate: Callable[..., Any]) -> None:
    words = {"running": "RUNNING", "pending": "provisioning", "stopping": "terminating"}
    http = emulate(status_words=words, stop_seconds=2.0, hide_stopped=True)
    words["running"] = "changed"
    started = (await http.start()).json()["instance"]
    instance_id = started["instance_id"]
    seen = [started["instance_status"]["status"]]
    clock.now = 4.0
    instance = await http.instance(instance_id)
    seen.append(instance["instance_status"]["status"])
    assert instance["base_url"] is not None
    stopped = await http.api("POST", "/instances/stop", json={"instance_id": instance_id})
    seen.append(stopped.json()["instance"]["instance_status"]["status"])
    clock.now = 6.0
    seen.append((await status(http, instance_id))["status"])
    assert seen == ["provisioning", "RUNNING", "terminating", "stopped"]
    assert (await http.api("GET", "/instances/")).json() == {"instances": []}
    assert http.emulator.ledger[0].status == "stopped"


# Errors


@pytest.mark.parametrize(
    ("shape", "content_type", "body"),
    [
        ("message", "application/json", '{"message": "Instance <i> does not exist."}'),
        ("error", "application/json", '{"error": "Instance <i> does not exist."}'),
        (
            "openai",
            "application/json",
            (
                '{"error": {"message": "Instance <i> does not exist.", "type": "invalid_request_error", '
                '"param": null, "code": null}}'
            ),
        ),
        (
            "html",
            "text/html; charset=utf-8",
            "<!doctype html><title>Error 400</title><h1>Error 400</h1><p>Instance &lt;i&gt; does not exist.",
        ),
        ("empty", None, ""),
    ],
)
async def test_the_body_of_an_error(
    shape: str, content_type: str | None, body: str, emulate: Callable[..., Any]
) -> None:
    http = emulate(error_body=shape)
    answer = await http.api("GET", "/instances/<i>")
    assert (answer.status_code, answer.headers.get("content-type"), answer.text) == (400, content_type, body)
    refused = await http.api("GET", "/instances/", headers={})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    # A status fault without a body is an error of the API, too.
    http.emulator.add_fault(Fault("status", "list", status=599, headers={"Retry-After": "1"}))
    fault = await http.api("GET", "/instances/")
    assert (fault.status_code, fault.headers["retry-after"]) == (599, "1")
    assert fault.headers.get("content-type") == content_type
    assert ("Emulated fault: status 599." in fault.text) == bool(body)
    # Inference speaks as OpenAI does, whatever the API does.
    assert (await http.infer("instance-1", "/models")).json()["error"]["code"] == "instance_not_found"


async def test_text_that_looks_like_html_is_sent_as_html(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", "list", status=502, body="<html>Bad gateway"))
    answer = await http.api("GET", "/instances/")
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert answer.text == "<html>Bad gateway"


# The endpoint


async def test_an_endpoint_answers_later_than_its_instance_runs(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(endpoint_lag=20.0, step_seconds=10.0)
    instance_id = (await http.start()).json()["instance"]["instance_id"]

    async def probe(now: float) -> int:
        clock.now = now
        return int((await http.infer(instance_id, "/models")).status_code)

    assert [await probe(now) for now in (39.0, 40.0, 59.9, 60.0, 90.0)] == [503, 502, 502, 200, 200]
    http.emulator.stop_instance(instance_id)
    clock.now = 100.0
    http.emulator.restart_instance(instance_id)
    assert [await probe(now) for now in (139.0, 140.0, 159.0, 160.0)] == [503, 502, 502, 200]


async def test_the_502_of_an_endpoint_is_html(emulate: Callable[..., Any]) -> None:
    http = emulate(endpoint_lag=1.0, step_seconds=0.0, error_body="empty", answer_seconds=5.0)
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    assert (await status(http, instance_id))["status"] == "running"
    body = {"model": LLAMA.replace("--", "/"), "messages": [{"role": "user", "content": "x"}]}
    answer = await http.infer(instance_id, "/chat/completions", body)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert answer.text.startswith("<!doctype html>")
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    refused = await http.infer(instance_id, "/models", headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401
