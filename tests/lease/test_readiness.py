"""Test `ready=`: when an instance counts as ready, and what its endpoint can answer until then."""

from __future__ import annotations

import json
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from _grids import BACKENDS, alternating, grid
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import ConfigurationError, Progress, errors
from cortecs_async._http.endpoint import EndpointReply
from cortecs_async._http.messages import Failure, FailureKind
from cortecs_async._lease.readiness import Attempt, Verdict, assess
from cortecs_async.emulator import Emulator, Fault, _account, _instance
from cortecs_async.errors import StartTimeoutError
from cortecs_async.types import Ready

KEY = "emulator-key"
# Seconds from the start request until the status is running.
RUNNING = 8.0
INFERENCE = {"v1_models", "chat", "embeddings"}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", KEY)


def emulated(world: World, **options: Any) -> Any:
    return world(**{"step_seconds": RUNNING / 4, **options})


def inference(emu: Emulator) -> list[str | None]:
    return [each.route for each in emu.requests if each.route in INFERENCE]


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= level]


def refusal(route: str, status: int = 400, **options: Any) -> Fault:
    return Fault("status", route=route, status=status, body={"error": {"message": "No."}}, **options)


@grid(
    case=[("status", []), ("models", ["v1_models"]), ("answer", ["chat"])],
    anyio_backend=BACKENDS,
)
async def test_an_endpoint_that_answers_at_once_costs_one_request(
    world: World, case: tuple[Ready, list[str]]
) -> None:
    ready, expected = case
    async with emulated(world) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            pass
        plain = [each.route for each in emu.requests if each.route not in {"token", "hardware_types"}]
        before = len(emu.requests)
        await anyio.sleep(2)  # the list of the first lease is its baseline, too
        async with client.instance(MODEL, HARDWARE, ready=ready):
            assert inference(emu) == expected
        ours = [each.route for each in emu.requests[before:] if each.route not in INFERENCE]
        assert ours == plain


@grid(ready=["models", "answer"], fault=["502", "drop", "hang", "garbage"], anyio_backend=BACKENDS)
async def test_the_block_begins_when_the_endpoint_answers(world: World, ready: Ready, fault: str) -> None:
    async with emulated(world, endpoint_lag=100.0, endpoint_fault=fault) as (emu, client):
        async with client.instance(MODEL, HARDWARE, ready=ready):
            waited = anyio.current_time()
        assert emu.existing == ()
    late = waited - RUNNING - 100
    # A hanging endpoint is noticed when its last request times out.
    assert 0 <= late <= (100 if fault == "hang" else 5)
    assert len(inference(emu)) <= 60


async def test_the_timeout_of_an_attempt_grows(world: World) -> None:
    async with emulated(world, endpoint_lag=2000.0, endpoint_fault="hang") as (emu, client):
        with pytest.raises(StartTimeoutError, match=r"The last result was: no response within 300 s\. "):
            async with client.instance(MODEL, HARDWARE, ready="answer"):
                pass
        times = [each.at for each in emu.requests if each.route == "chat"]
    timeouts = [3, 6, 12, 24, 48, 96, 192, 300]
    assert len(times) == len(timeouts) + 1
    for begin, end, timeout in zip(times, times[1:], timeouts, strict=False):
        assert timeout < end - begin <= timeout + 6


@alternating("header,least,most", [("20", 20, 25), ("100000", 120, 125)])
async def test_retry_after_is_honored_up_to_a_limit(
    world: World, header: str, least: float, most: float
) -> None:
    async with emulated(world) as (emu, client):
        emu.add_fault(Fault("status", route="chat", status=429, headers={"retry-after": header}))
        async with client.instance(MODEL, HARDWARE, ready="answer"):
            assert least <= anyio.current_time() - RUNNING <= most


@grid(status=[401, 403], ready=["models", "answer"], anyio_backend=BACKENDS)
async def test_a_rejected_key_is_an_error_at_once(
    world: World, caplog: pytest.LogCaptureFixture, status: int, ready: Ready
) -> None:
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    async with emulated(world) as (emu, client):
        for route in ("chat", "v1_models"):
            body = {"error": {"message": f"Unknown key {KEY}."}}
            emu.add_fault(Fault("status", route=route, status=status, body=body))
        with pytest.raises(ConfigurationError) as caught:
            async with client.instance(MODEL, HARDWARE, ready=ready):
                pytest.fail("entered")
        assert anyio.current_time() < RUNNING + 5
        assert len(inference(emu)) == 1
        assert emu.existing == ()
    assert "rejected the inference API key from CORTECS_API_KEY" in str(caught.value)
    assert "Unknown key ***" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text


@alternating("status", [400, 401, 403, 404, 500, 503, 307])
async def test_the_page_of_a_proxy_is_no_evidence(world: World, status: int) -> None:
    async with emulated(world) as (emu, client):
        emu.add_fault(Fault("status", route="chat", status=status, body="<html>", times=3))
        async with client.instance(MODEL, HARDWARE, ready="answer"):
            assert inference(emu) == ["chat"] * 4


async def test_a_model_that_refuses_chats_may_embed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with emulated(world) as (emu, client):
        emu.add_fault(refusal("chat", times=None))
        emu.add_fault(Fault("status", route="embeddings", status=503))
        async with client.instance(MODEL, HARDWARE, ready="answer"):
            assert inference(emu) == ["chat", "embeddings"] * 2
    assert messages(caplog) == []


@alternating("status", [400, 404, 405, 422, 501])
async def test_a_model_that_refuses_all_test_requests_is_ready_once_it_is_listed(
    world: World, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with emulated(world) as (emu, client):
        emu.add_fault(refusal("chat", status, times=None))
        emu.add_fault(refusal("embeddings", status, times=None))
        emu.add_fault(Fault("drop", route="v1_models"))
        async with client.instance(MODEL, HARDWARE, ready="answer"):
            assert inference(emu) == ["chat", "embeddings", "v1_models"] * 2
    (warning,) = messages(caplog)
    assert "lists its models but rejects test requests" in warning
    assert f"({status} " in warning
    assert ": No)" in warning


async def test_a_gateway_that_knows_no_path_is_not_ready(world: World) -> None:
    async with emulated(world) as (emu, client):
        for route in INFERENCE:
            emu.add_fault(refusal(route, 404, times=20))
        async with client.instance(MODEL, HARDWARE, ready="answer"):
            assert len(inference(emu)) == 61
        emu.add_fault(Fault("garbage", route="v1_models", body={"object": "list", "data": []}))
        async with client.instance(MODEL, HARDWARE, ready="models"):
            assert len(inference(emu)) == 63


async def test_without_a_key_the_status_decides(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORTECS_API_KEY")
    seen: list[Progress] = []
    async with emulated(world) as (emu, client):
        for _ in range(2):
            async with client.instance(MODEL, HARDWARE, ready="answer", on_progress=seen.append):
                pass
        assert inference(emu) == []
    (warning,) = messages(caplog)  # once for each client
    assert warning.startswith("No inference API key.")
    assert warning.endswith("not tested before use. To hide this warning, pass ready='status'.")
    assert seen[-1].is_complete


@grid(case=["timeout", "lifetime", "cost"], anyio_backend=BACKENDS)
async def test_an_endpoint_that_never_answers(world: World, case: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "timeout": {"start_timeout": 100},
        "lifetime": {"max_lifetime": 100},
        "cost": {"max_cost": 0.1},  # two minutes, minus a reserve
    }
    async with emulated(world, endpoint_lag=10_000.0) as (emu, client):
        error = StartTimeoutError if case == "timeout" else errors.LeaseExpiredError
        with pytest.raises(error) as caught:
            async with client.instance(MODEL, HARDWARE, ready="answer", **options[case]):
                pytest.fail("entered")
        assert caught.value.instance_id == emu.ledger[0].instance_id
        assert emu.existing == ()
        assert 95 <= anyio.current_time() <= 125
    text = str(caught.value)
    assert "The last result was: 502 Bad Gateway. " in text
    assert {
        "timeout": "did not answer within start_timeout=100 s.",
        "lifetime": "reached max_lifetime=100 s before its endpoint answered.",
        "cost": "Increase max_cost.",
    }[case] in text


@grid(
    case=["deleted", "stopped"],
    fault=["502", "hang"],
    ready=["models", "answer"],
    anyio_backend=BACKENDS,
)
async def test_an_instance_that_dies_ends_the_wait(world: World, case: str, fault: str, ready: Ready) -> None:
    async with (
        emulated(world, endpoint_lag=10_000.0, endpoint_fault=fault) as (emu, client),
        anyio.create_task_group() as tasks,
    ):

        async def end() -> None:
            await anyio.sleep(60)
            (instance_id,) = emu.existing
            (emu.delete_instance if case == "deleted" else emu.stop_instance)(instance_id)

        tasks.start_soon(end)
        error = errors.InstanceGoneError if case == "deleted" else errors.StartFailedError
        with pytest.raises(error, match="before its endpoint answered"):
            async with client.instance(MODEL, HARDWARE, ready=ready):
                pytest.fail("entered")
        assert 60 <= anyio.current_time() <= 90
        assert emu.existing == ()


async def test_one_odd_answer_about_the_instance_is_not_believed(world: World) -> None:
    async with emulated(world, endpoint_lag=60.0) as (emu, client):
        emu.add_fault(Fault("omit", route="get", skip=20))
        async with client.instance(MODEL, HARDWARE, ready="answer"):
            assert anyio.current_time() >= RUNNING + 60
        assert emu.unmet_faults == ()


@grid(fault=["502", "drop", "hang", "garbage"], anyio_backend=BACKENDS)
async def test_a_cancellation_releases_the_instance(world: World, fault: str) -> None:
    async with emulated(world, endpoint_lag=10_000.0, endpoint_fault=fault) as (emu, client):
        for seconds in (RUNNING, RUNNING + 0.1, RUNNING + 40.3):
            with anyio.move_on_after(seconds) as scope:
                async with client.instance(MODEL, HARDWARE, ready="answer"):
                    pytest.fail("entered")
            assert scope.cancelled_caught
            assert emu.existing == ()
        sent = len(inference(emu))
        await anyio.sleep(100)
        assert len(inference(emu)) == sent


@types.coroutine
def closed_after(seconds: float, coroutine: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
    """Run a coroutine and close it, as the garbage collector does, when it wakes after this time."""
    resume: Callable[[], Any] = partial(coroutine.send, None)
    while anyio.current_time() < seconds:
        try:
            value = yield resume()
            resume = partial(coroutine.send, value)
        except BaseException as error:  # noqa: BLE001  (a cancellation for the coroutine)
            resume = partial(coroutine.throw, error)
    coroutine.close()


@grid(fault=["502", "drop", "garbage"], anyio_backend=BACKENDS)
async def test_a_closed_coroutine_leaves_nothing_behind(
    world: World, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    async with emulated(world, endpoint_lag=10_000.0, endpoint_fault=fault) as (emu, client):
        lease = client.instance(MODEL, HARDWARE, ready="answer")
        await closed_after(20.0, lease.__aenter__())
        sent = len(inference(emu))
        await anyio.sleep(100)
        assert len(inference(emu)) == sent > 0
        assert emu.existing == ()
    assert [each for each in messages(caplog) if "did not end normally" not in each] == []


async def test_progress_shows_the_test(world: World) -> None:
    seen: list[Progress] = []
    async with emulated(world, endpoint_lag=30.0) as (_, client):
        async with client.instance(MODEL, HARDWARE, ready="answer", on_progress=seen.append):
            pass
    *starting, running, failing, ready = seen
    assert {each.probe for each in starting} == {None}
    assert (running.probe, running.description) == ("", "waiting for the endpoint to answer")
    assert failing.probe == "502 Bad Gateway"
    assert str(failing) == (
        f"{failing.instance.instance_id} running, waiting for the endpoint to answer (502 Bad Gateway), 8s"
    )
    assert (ready.probe, ready.description) == (None, "Running")
    assert [each.is_complete for each in seen[-3:]] == [False, False, True]
    assert [each.fraction for each in seen[-3:]] == [0.8, 0.8, 1.0]
    assert ready.elapsed >= 38


@grid(probe=["", "502 Bad Gateway", None], is_async=[True, False], anyio_backend=BACKENDS)
async def test_what_on_progress_raises_comes_out(world: World, probe: str | None, *, is_async: bool) -> None:
    problem = KeyError("mine")

    def fail(progress: Progress) -> Any:
        if progress.probe == probe and progress.instance.is_usable:
            raise problem

    async def fail_later(progress: Progress) -> None:
        await anyio.sleep(1)
        fail(progress)

    async with emulated(world, endpoint_lag=30.0) as (emu, client):
        callback = fail_later if is_async else fail
        with pytest.raises(KeyError) as caught:
            async with client.instance(MODEL, HARDWARE, ready="answer", on_progress=callback):
                pytest.fail("entered")
        assert caught.value is problem
        assert emu.existing == ()


@grid(probe=["", "502 Bad Gateway"], anyio_backend=BACKENDS)
async def test_a_callback_that_hangs_does_not_outlive_the_timeout(world: World, probe: str) -> None:
    async def hang(progress: Progress) -> None:
        if progress.probe == probe:
            await anyio.sleep_forever()

    async with emulated(world, endpoint_lag=300.0) as (emu, client):
        with pytest.raises(StartTimeoutError):
            async with client.instance(MODEL, HARDWARE, ready="answer", on_progress=hang, start_timeout=50):
                pytest.fail("entered")
        assert anyio.current_time() < 60
        assert emu.existing == ()


async def test_acquire_and_attach_test_the_endpoint(world: World) -> None:
    async with emulated(world, endpoint_lag=30.0) as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE, ready="models", max_lifetime=3600)
        assert anyio.current_time() >= RUNNING + 30
        async with client.attach(handle.instance_id, ready="answer"):
            assert inference(emu)[-1] == "chat"
        emu.add_fault(refusal("chat", 401))
        with pytest.raises(ConfigurationError):
            async with client.attach(handle.instance_id, ready="answer"):
                pytest.fail("entered")
        assert emu.billing == (handle.instance_id,)
        await client.release(handle)


@grid(
    message=["a@b.example", "x" * 5000, "two\nlines", "[31mred", f"{KEY}"],
    anyio_backend=BACKENDS,
)
async def test_the_words_of_the_endpoint_are_shown_safely(world: World, message: str) -> None:
    async with emulated(world) as (emu, client):
        emu.add_fault(Fault("status", route="chat", status=500, body={"message": message}, times=None))
        with pytest.raises(StartTimeoutError) as caught:
            async with client.instance(MODEL, HARDWARE, ready="answer", start_timeout=20):
                pytest.fail("entered")
    text = str(caught.value)
    assert "500 Internal Server Error: " in text
    assert text.isprintable()
    assert len(text) < 600
    assert KEY not in text


async def test_the_token_stays_with_the_service() -> None:
    emu = Emulator(clock=anyio.current_time, step_seconds=1.0)
    seen: list[httpx.Request] = []

    async def record(request: httpx.Request) -> None:
        seen.append(request)

    async with (
        httpx.AsyncClient(
            transport=emu.transport(), event_hooks={"request": [record]}, headers={"x-mine": "yes"}
        ) as http,
        client_of(
            emu, http_client=http, guard="off", journal="off", default_headers={"x-tenant": "secret"}
        ) as client,
        client.instance(MODEL, HARDWARE, ready="answer") as inst,
    ):
        pass
    (sent,) = [each for each in seen if str(each.url).startswith(inst.base_url)]
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert "x-tenant" not in sent.headers
    # The caller's own client adds its own.
    assert sent.headers["x-mine"] == "yes"
    body = json.loads(sent.content)
    assert (body["model"], body["max_tokens"]) == (MODEL, 1)


async def test_a_hook_of_the_callers_client_may_read_the_response(world: World) -> None:
    emu = Emulator(clock=anyio.current_time, step_seconds=1.0)

    async def read(response: httpx.Response) -> None:
        await response.aread()

    async with (
        httpx.AsyncClient(transport=emu.transport(), event_hooks={"response": [read]}) as http,
        client_of(emu, http_client=http, guard="off", journal="off") as client,
        client.instance(MODEL, HARDWARE, ready="answer"),
    ):
        assert inference(emu) == ["chat"]


async def test_a_response_that_is_too_large_is_no_answer(world: World) -> None:
    async with emulated(world) as (emu, client):
        emu.add_fault(Fault("garbage", route="chat", body={"choices": [{"text": "x" * (1 << 20)}]}))
        seen: list[Progress] = []
        async with client.instance(MODEL, HARDWARE, ready="answer", on_progress=seen.append):
            assert len(inference(emu)) == 2
    assert seen[-2].probe == "a response with a body that is larger than 1 MiB"


async def test_whatever_a_transport_raises_is_a_failed_attempt() -> None:
    emu = Emulator(clock=anyio.current_time, step_seconds=1.0)
    failures: list[Exception] = [ValueError("odd"), httpx.ConnectError("no"), OSError(111, "refused")]

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "/inference/" in request.url.path and failures:
                raise failures.pop()
            return await emu.transport().handle_async_request(request)

    seen: list[Progress] = []
    async with (
        httpx.AsyncClient(transport=Transport()) as http,
        client_of(emu, http_client=http, guard="off", journal="off") as client,
        client.instance(MODEL, HARDWARE, ready="answer", on_progress=seen.append),
    ):
        pass
    assert [each.probe for each in seen[-4:]] == [
        "connection refused",
        "ConnectError: no",
        "ValueError: odd",
        None,
    ]


def reply(status: int, body: object = None, **options: Any) -> EndpointReply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return EndpointReply(status=status, body=content, **options)


CHAT, MODELS = "/chat/completions", "/models"
ANSWER: dict[str, Any] = {
    "choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "length"}]
}
ERROR: dict[str, Any] = {"error": {"message": "No."}}


NO_ANSWERS: tuple[object, ...] = (
    *(b"", b"{", b"<html>", b"\xff", b"[" * 100_000, None, 3, [], "ok", {}),
    *({"choices": []}, {"choices": [{}]}, {"choices": "x"}, ERROR, {**ANSWER, **ERROR}),
    {"data": [{"id": "org/model"}]},
)
NO_MODELS: tuple[object, ...] = ([], None, "x", {})


@pytest.mark.parametrize(
    ("outcome", "path", "verdict"),
    [
        (reply(200, ANSWER), CHAT, Verdict.READY),
        (reply(200, {"choices": [{"text": ""}]}), CHAT, Verdict.READY),
        (reply(200, {"data": [{"embedding": [0.5]}]}), "/embeddings", Verdict.READY),
        (reply(200, {"data": [{"id": "org/model"}]}), MODELS, Verdict.READY),
        *((reply(200, body), CHAT, Verdict.NOT_READY) for body in NO_ANSWERS),
        *((reply(200, {"data": data}), MODELS, Verdict.NOT_READY) for data in NO_MODELS),
        (reply(200, {"data": [{"embedding": []}]}), "/embeddings", Verdict.NOT_READY),
        (reply(204, b""), CHAT, Verdict.NOT_READY),
        *((reply(status, ERROR), CHAT, Verdict.KEY_REJECTED) for status in (401, 403)),
        *((reply(status, b"<html>"), CHAT, Verdict.NOT_READY) for status in (400, 401, 403, 404)),
        *((reply(status, b"no"), CHAT, Verdict.NOT_READY) for status in (401, 404)),
        *((reply(status, {}), CHAT, Verdict.NOT_READY) for status in (401, 404)),
        *((reply(status, {"detail": "Not Found"}), CHAT, Verdict.REFUSED) for status in (400, 404, 405, 422)),
        *((reply(status, ERROR), CHAT, Verdict.NOT_READY) for status in (302, 408, 413, 429, 500, 502, 503)),
        *((Failure(kind=kind), CHAT, Verdict.NOT_READY) for kind in FailureKind),
    ],
)
def test_what_a_response_says(outcome: EndpointReply | Failure, path: str, verdict: Verdict) -> None:
    assert assess(outcome, path).verdict is verdict


def test_what_an_attempt_keeps_of_a_response() -> None:
    assert assess(reply(503, b"", retry_after=7.0, reason="Busy."), CHAT) == Attempt(
        Verdict.NOT_READY, "503 Service Unavailable: Busy", 7.0
    )
    assert assess(Failure(kind=FailureKind.TIMED_OUT, detail="late"), CHAT) == Attempt(
        Verdict.NOT_READY, "late", timed_out=True
    )


async def test_a_base_url_that_changes_is_followed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _instance.instance_json

    def moving(instance: Any, now: float, settings: Any, root_url: str) -> dict[str, Any]:
        data = original(instance, now, settings, root_url)
        if data["base_url"] is not None and now < RUNNING + 30:
            data["base_url"] = f"{root_url}/elsewhere/v1"
        return data

    monkeypatch.setattr(_account, "instance_json", moving)
    async with emulated(world) as (emu, client):
        async with client.instance(MODEL, HARDWARE, ready="answer") as inst:
            assert inst.base_url == f"{emu.root_url}/inference/{inst.instance_id}/v1"
            assert inference(emu) == ["chat"]
            assert RUNNING + 30 <= anyio.current_time() < RUNNING + 50
        assert emu.existing == ()


async def test_an_error_with_status_200_does_not_reveal_the_key(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="cortecs_async")
    shown: list[str | None] = []
    async with emulated(world) as (emu, client):
        body = {"error": {"message": f"Unknown key\n{KEY}." + "x" * 1000}}
        emu.add_fault(Fault("status", route="chat", status=200, body=body, times=None))
        with pytest.raises(StartTimeoutError, match=r"an error: Unknown key \*\*\*") as caught:
            async with client.instance(
                MODEL,
                HARDWARE,
                ready="answer",
                start_timeout=60,
                on_progress=lambda each: shown.append(each.probe),
            ):
                pass
    assert KEY not in f"{caught.value} {caplog.text} {shown}"
    assert len(str(caught.value)) < 600
