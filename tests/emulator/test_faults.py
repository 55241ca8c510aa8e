"""Faults in process, on virtual time: the effect on the account, and what the caller receives."""

from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from _grids import alternating

from cortecs_async.emulator import Emulator, Fault

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"
DROPPED = "Server disconnected without sending a response."
CUT = "peer closed connection without sending complete message body"


@alternating("when", ["before", "after"])
async def test_a_drop_loses_the_response_and_with_before_the_action_too(
    when: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("drop", "start", when))
    with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
        await http.start()
    assert len(http.emulator.ledger) == (when == "after")
    record = http.emulator.requests[-1]
    assert (record.route, record.status, record.fault) == ("start", None, "drop")
    assert (await http.start()).status_code == 202


async def test_unmet_faults_are_listed() -> None:
    emulator = Emulator()
    late, other = Fault("drop", "models", skip=1), Fault("drop", "start", times=None)
    emulator.add_fault(late)
    emulator.add_fault(other)
    async with emulator.http_client() as http:
        await http.get(f"{emulator.api_base_url}/models/")
        assert emulator.unmet_faults == (late, other)
        with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
            await http.get(f"{emulator.api_base_url}/models/")
    assert emulator.unmet_faults == (other,)
    emulator.clear_faults()
    assert emulator.unmet_faults == ()


@alternating("when", ["before", "after"])
async def test_a_status_replaces_the_answer(when: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", "start", when, status=429, headers={"Retry-After": "7"}))
    answer = await http.start()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json() == {"message": "Emulated fault: status 429."}
    assert len(http.emulator.ledger) == (when == "after")
    assert (http.emulator.requests[-1].status, http.emulator.requests[-1].fault) == (429, "status")


@alternating(
    "body,content,content_type",
    [
        ("Bad gateway", b"Bad gateway", "text/plain; charset=utf-8"),
        (b"\xff\x00", b"\xff\x00", "text/plain; charset=utf-8"),
        ({"error": "down"}, b'{"error": "down"}', "application/json"),
        ([], b"[]", "application/json"),
        ("", b"", "text/plain; charset=utf-8"),
    ],
)
async def test_the_body_of_a_fault(
    body: Any, content: bytes, content_type: str, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    kinds: list[tuple[Any, int]] = [("status", 502), ("garbage", 200)]
    for kind, status in kinds:
        http.emulator.add_fault(Fault(kind, "list", status=502, body=body))
        answer = await http.api("GET", "/instances/")
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (
            status,
            content,
            content_type,
        )


async def test_headers_of_a_fault_override_its_defaults(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", "list", body="<p>", headers={"Content-Type": "text/html"}))
    answer = await http.api("GET", "/instances/")
    assert answer.headers.get_list("content-type") == ["text/html"]


async def test_garbage_comes_after_the_action(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("garbage", "start", "before"))
    answer = await http.start()
    assert answer.status_code == 200
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()
    assert len(http.emulator.ledger) == 1


async def test_a_truncated_response_comes_after_the_action(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("truncate", "start", "before"))
    with pytest.raises(httpx.RemoteProtocolError, match=CUT):
        await http.start()
    assert len(http.emulator.ledger) == 1
    assert (http.emulator.requests[-1].status, http.emulator.requests[-1].fault) == (202, "truncate")


async def test_half_of_a_truncated_answer_can_be_read(emulate: Callable[..., Any]) -> None:
    http = emulate()
    token = await http.token()
    http.emulator.add_fault(Fault("truncate", "hardware_types"))
    received = b""
    async with (
        httpx.AsyncClient(transport=http.emulator.transport()) as client,
        client.stream(
            "GET",
            f"{http.emulator.api_base_url}/hardware-types/",
            headers={"Authorization": f"Bearer {token}"},
        ) as answer,
    ):
        length = int(answer.headers["content-length"])
        with pytest.raises(
            httpx.RemoteProtocolError, match=rf"received {length // 2} bytes, expected {length}"
        ):
            async for piece in answer.aiter_raw():
                received += piece
    assert len(received) == length // 2


@alternating("when", ["before", "after"])
async def test_a_delay_makes_the_answer_late(when: Any) -> None:
    emulator = Emulator(clock=anyio.current_time)
    emulator.add_fault(Fault("delay", "token", when, seconds=30.0))
    begun = anyio.current_time()
    async with httpx.AsyncClient(transport=emulator.transport(), timeout=60.0) as client:
        answer = await client.get(f"{emulator.api_base_url}/models/")
        assert anyio.current_time() == begun
        answer = await client.post(f"{emulator.api_base_url}/oauth2/token", json={})
    assert answer.status_code == 400
    assert anyio.current_time() == pytest.approx(begun + 30.0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_read_timeout_ends_the_wait_but_not_the_action(when: Any) -> None:
    emulator = Emulator(clock=anyio.current_time, balance=1.0)
    async with httpx.AsyncClient(transport=emulator.transport(), timeout=5.0) as client:
        credentials = {
            "grant_type": "client_credentials",
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
        }
        token = (await client.post(f"{emulator.api_base_url}/oauth2/token", json=credentials)).json()[
            "access_token"
        ]
        emulator.add_fault(Fault("delay", "start", when, seconds=20.0))
        begun = anyio.current_time()
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                f"{emulator.api_base_url}/instances/start",
                headers={"Authorization": f"Bearer {token}"},
                json={"model_id": LLAMA},
            )
        assert anyio.current_time() == pytest.approx(begun + 5.0)
    # The service does not notice that the caller disconnected: the instance still starts when it is due.
    assert len(emulator.existing) == (when == "after")
    await anyio.sleep(14.9)
    assert len(emulator.existing) == (when == "after")
    await anyio.sleep(100.0)
    assert len(emulator.existing) == 1
    assert emulator.ledger[0].started_at == pytest.approx(begun + (0.0 if when == "after" else 20.0))
    assert emulator.requests[-1].status is None


async def test_delayed_requests_are_processed_in_the_order_of_their_times() -> None:
    emulator = Emulator(clock=anyio.current_time)
    http = httpx.AsyncClient(transport=emulator.transport())
    credentials = {
        "grant_type": "client_credentials",
        "client_id": emulator.client_id,
        "client_secret": emulator.client_secret,
    }
    token = (await http.post(f"{emulator.api_base_url}/oauth2/token", json=credentials)).json()[
        "access_token"
    ]
    begun = anyio.current_time()
    for seconds, model in ((30.0, LLAMA), (20.0, "microsoft--phi-4")):
        emulator.add_fault(Fault("delay", "start", seconds=seconds))
        with anyio.move_on_after(1.0):
            await http.post(
                f"{emulator.api_base_url}/instances/start",
                headers={"Authorization": f"Bearer {token}"},
                json={"model_id": model},
            )
    await anyio.sleep(60.0)
    assert [entry.model_id for entry in emulator.ledger] == ["microsoft--phi-4", LLAMA]
    # The second request came a second later.
    assert [entry.started_at - begun for entry in emulator.ledger] == pytest.approx([21.0, 30.0])


async def test_a_caller_cancelled_after_the_action_never_reads_the_response() -> None:
    scope = anyio.CancelScope()

    def cancelling() -> float:
        # The clock is read in the middle of the action, where nothing can be cancelled.
        scope.cancel()
        return 0.0

    emulator = Emulator(clock=cancelling)
    answers = []
    with scope:
        async with httpx.AsyncClient(transport=emulator.transport()) as client:
            answers.append(await client.get(f"{emulator.api_base_url}/models/"))
    assert scope.cancelled_caught
    assert answers == []
    assert [record.status for record in emulator.requests] == [200]


async def test_a_caller_cancelled_before_never_sends(emulate: Callable[..., Any]) -> None:
    http = emulate()
    await http.token()
    await http.api("GET", "/instances/")
    before = len(http.emulator.requests)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await http.start()
    assert scope.cancelled_caught
    assert len(http.emulator.requests) == before


@alternating("route", ["token", "list", "get", "stop", "delete", "stop_all", "delete_all", "models"])
async def test_a_fault_affects_its_own_route_only(route: str, emulate: Callable[..., Any]) -> None:
    http = emulate()
    first, second = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    http.emulator.add_fault(Fault("status", route, status=418, times=None))
    headers = {"Authorization": "Bearer none"}
    answers = {
        "token": await http.api("POST", "/oauth2/token", headers={}, json={}),
        "list": await http.api("GET", "/instances/", headers=headers),
        "get": await http.api("GET", f"/instances/{first}", headers=headers),
        "stop": await http.api("POST", "/instances/stop", headers=headers, json={"instance_id": first}),
        "delete": await http.api("DELETE", f"/instances/{second}", headers=headers),
        "stop_all": await http.api("POST", "/instances/stop-all", headers=headers),
        "delete_all": await http.api("DELETE", "/instances/delete-all", headers=headers),
        "models": await http.api("GET", "/models/", headers={}),
    }
    assert [name for name, answer in answers.items() if answer.status_code == 418] == [route]


async def statuses(http: Any, count: int) -> list[int]:
    headers = {"Authorization": "Bearer none"}
    return [(await http.api("GET", "/instances/", headers=headers)).status_code for _ in range(count)]


async def test_times_and_skip(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", "list", status=500, skip=1, times=2))
    await http.api("GET", "/models/", headers={})
    assert await statuses(http, 5) == [401, 500, 500, 401, 401]


async def test_faults_follow_each_other(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", "list", status=500))
    http.emulator.add_fault(Fault("status", status=502, times=2))
    http.emulator.add_fault(Fault("status", "list", status=504, skip=4))
    assert await statuses(http, 6) == [500, 502, 502, 401, 504, 401]


async def test_for_ever_until_cleared(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", status=503, times=None))
    assert await statuses(http, 4) == [503] * 4
    http.emulator.clear_faults()
    assert await statuses(http, 2) == [401] * 2


async def test_inference_faults_speak_like_openai(emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.add_fault(Fault("status", "v1_models", status=429))
    answer = await http.infer("instance-10001", "/models")
    assert answer.json() == {
        "error": {
            "message": "Emulated fault: status 429.",
            "type": "rate_limit_error",
            "param": None,
            "code": None,
        }
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "explode"},
        {"kind": "drop", "route": "nowhere"},
        {"kind": "drop", "when": "during"},
        {"kind": "drop", "times": 0},
        {"kind": "drop", "skip": -1},
        {"kind": "status", "status": 99},
        {"kind": "status", "status": 600},
        {"kind": "delay", "seconds": -1.0},
        {"kind": "crash", "route": "list"},
    ],
)
def test_an_invalid_fault_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Fault(**wrong)


@alternating("fault", ["drop", "hang", "garbage"])
async def test_the_endpoint_of_a_new_instance_can_fail(fault: Any) -> None:
    emulator = Emulator(endpoint_lag=20.0, endpoint_fault=fault, step_seconds=10.0, clock=anyio.current_time)
    instance_id = emulator.start_instance(LLAMA)

    async with emulator.http_client() as http:

        async def infer(number: str) -> httpx.Response:
            url = f"{emulator.root_url}/inference/{number}/v1/models"
            headers = {"Authorization": f"Bearer {emulator.api_key}"}
            return await http.get(url, headers=headers, timeout=None)

        assert (await infer(instance_id)).status_code == 503  # not running
        await anyio.sleep(41)
        if fault == "garbage":
            answer = await infer(instance_id)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        else:
            with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
                await infer(instance_id)
            # A caller without a timeout waits until the server starts.
            assert anyio.current_time() == pytest.approx(60 if fault == "hang" else 41)
        await anyio.sleep(20)
        assert (await infer(instance_id)).status_code == 200
        assert (await infer("instance-1")).status_code == 404
