"""The emulator on real sockets."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from _grids import alternating, on_one_backend

from cortecs_async.emulator import Emulator, Fault, run_emulator, serve_emulator

pytestmark = pytest.mark.sockets

EVERYWHERE = "0.0.0.0"  # noqa: S104 - to be refused, but where it is meant
LLAMA = "meta-llama--Llama-3.1-8B-Instruct"


async def authorise(client: httpx.AsyncClient, emulator: Emulator) -> None:
    answer = await client.post(
        f"{emulator.api_base_url}/oauth2/token",
        json={
            "grant_type": "client_credentials",
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
        },
    )
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a change in the emulator's thread, which cannot set an event of this loop."""
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


def test_it_is_served_without_an_event_loop() -> None:
    with serve_emulator() as emulator, httpx.Client() as client:
        assert client.get(f"{emulator.api_base_url}/models/").status_code == 200
    with httpx.Client() as client, pytest.raises(httpx.ConnectError):
        client.get(f"{emulator.api_base_url}/models/")


def test_an_exception_passes_and_ends_it() -> None:
    with pytest.raises(KeyError, match="mine"), serve_emulator() as emulator:
        raise KeyError("mine")
    with httpx.Client() as client, pytest.raises(httpx.ConnectError):
        client.get(f"{emulator.api_base_url}/models/")


async def test_a_whole_life_over_sockets() -> None:
    async with (
        serve_emulator(step_seconds=0.0, client_id="somebody") as emulator,
        httpx.AsyncClient() as client,
    ):
        assert emulator.client_id == "somebody"
        base = emulator.api_base_url
        assert base.startswith("http://127.0.0.1:")
        await authorise(client, emulator)
        started = (await client.post(f"{base}/instances/start", json={"model_id": LLAMA})).json()["instance"]
        instance_id = started["instance_id"]
        assert emulator.billing == (instance_id,)
        assert started["base_url"].startswith(emulator.root_url)
        answer = await client.get(
            f"{started['base_url']}/models", headers={"Authorization": f"Bearer {emulator.api_key}"}
        )
        assert answer.json()["data"][0]["id"] == "meta-llama/Llama-3.1-8B-Instruct"
        assert (await client.get(f"{base}/instances", follow_redirects=True)).json()["instances"] == [started]
        await client.post(f"{base}/instances/stop", json={"instance_id": instance_id})
        assert (await client.delete(f"{base}/instances/{instance_id}")).status_code == 200
        assert emulator.existing == ()


@on_one_backend
async def test_dates_are_true_on_the_clock_of_the_machine() -> None:
    async with serve_emulator(step_seconds=0.0) as emulator, httpx.AsyncClient() as client:
        await authorise(client, emulator)
        answer = await client.post(f"{emulator.api_base_url}/instances/start", json={"model_id": LLAMA})
        started_at = answer.json()["instance"]["instance_status"]["started_at"]
    now = time.time()
    recent = {time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - ago)) for ago in range(5)}
    assert started_at in recent


@on_one_backend
async def test_every_response_has_one_date() -> None:
    async with serve_emulator() as emulator, httpx.AsyncClient() as client:
        emulator.add_fault(Fault("status", "models", status=502, body="<html>"))
        for status in (502, 200):
            answer = await client.get(f"{emulator.api_base_url}/models/")
            assert answer.status_code == status
            (date,) = answer.headers.get_list("date")
            assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 5
    async with serve_emulator(date_header=False) as emulator, httpx.AsyncClient() as client:
        assert "date" not in (await client.get(f"{emulator.api_base_url}/models/")).headers


@alternating("when", ["before", "after"])
async def test_a_drop_cuts_the_connection_without_an_answer(
    when: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_emulator() as emulator, httpx.AsyncClient() as client:
        await authorise(client, emulator)
        emulator.add_fault(Fault("drop", "start", when))
        with pytest.raises(httpx.RemoteProtocolError, match="Server disconnected without sending a response"):
            await client.post(f"{emulator.api_base_url}/instances/start", json={"model_id": LLAMA})
        assert len(emulator.ledger) == (when == "after")
        assert (await client.get(f"{emulator.api_base_url}/instances/")).status_code == 200
    # uvicorn logs an application that returns without a response, unless it knows of the cut.
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


@on_one_backend
async def test_a_dropped_socket_reads_nothing_at_all() -> None:
    async with serve_emulator() as emulator:
        emulator.add_fault(Fault("drop", "token", times=None))
        port = int(emulator.root_url.rpartition(":")[2])
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(
                b"POST /api/v1/oauth2/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
            )
            await stream.send(b"x" * 100_000)
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()


@alternating("path,route", [("/api/v1/hardware-types/", "hardware_types"), ("/api/v1/models/", "models")])
async def test_a_truncated_answer_has_its_full_length_and_half_its_body(path: str, route: str) -> None:
    async with serve_emulator() as emulator, httpx.AsyncClient(base_url=emulator.root_url) as client:
        whole = await client.get(path)
        emulator.add_fault(Fault("truncate", route))
        received = b""
        async with client.stream("GET", path) as answer:
            assert (answer.status_code, int(answer.headers["content-length"])) == (200, len(whole.content))
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                async for piece in answer.aiter_raw():
                    received += piece
        assert received == whole.content[: len(whole.content) // 2]
        assert (await client.get(path)).content == whole.content


@on_one_backend
async def test_the_other_faults() -> None:
    async with serve_emulator() as emulator, httpx.AsyncClient(base_url=emulator.root_url) as client:
        emulator.add_fault(Fault("status", "models", status=429, headers={"Retry-After": "2"}))
        emulator.add_fault(Fault("garbage", "models"))
        emulator.add_fault(Fault("delay", "models", seconds=0.05))
        refused = await client.get("/api/v1/models/")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        garbage = await client.get("/api/v1/models/")
        assert (garbage.status_code, garbage.text[:9]) == (200, "<!doctype")
        begun = time.monotonic()
        assert (await client.get("/api/v1/models/")).status_code == 200
        assert time.monotonic() - begun >= 0.05
        assert [record.fault for record in emulator.requests] == ["status", "garbage", "delay"]


@on_one_backend
async def test_a_delay_blocks_no_other_request() -> None:
    async with serve_emulator() as emulator, httpx.AsyncClient(base_url=emulator.root_url) as client:
        emulator.add_fault(Fault("delay", "models", seconds=60.0))
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/api/v1/models/")
            await until(lambda: len(emulator.requests) == 1)
            assert (await client.get("/api/v1/hardware-types/")).status_code == 200
            assert emulator.ledger == ()
            group.cancel_scope.cancel()


@on_one_backend
async def test_the_action_of_a_disconnected_caller_is_completed() -> None:
    async with serve_emulator() as emulator, httpx.AsyncClient() as client:
        await authorise(client, emulator)
        emulator.add_fault(Fault("delay", "start", seconds=0.1))
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                f"{emulator.api_base_url}/instances/start", json={"model_id": LLAMA}, timeout=0.03
            )
        assert emulator.ledger == ()
        await until(lambda: len(emulator.ledger) == 1)


STREAMED = {
    "model": LLAMA.replace("--", "/"),
    "messages": [{"role": "user", "content": "x"}],
    "stream": True,
    "max_tokens": 3,
}


@on_one_backend
async def test_a_stream_arrives_piece_by_piece() -> None:
    async with (
        serve_emulator(step_seconds=0.0, token_seconds=0.02) as emulator,
        httpx.AsyncClient() as client,
    ):
        instance_id = emulator.start_instance(LLAMA)
        began = time.monotonic()
        async with client.stream(
            "POST",
            f"{emulator.root_url}/inference/{instance_id}/v1/chat/completions",
            json=STREAMED,
            headers={"Authorization": f"Bearer {emulator.api_key}"},
        ) as answer:
            received = [_ async for _ in answer.aiter_raw()]
        took = time.monotonic() - began
    assert len(received) == 6
    assert took >= 0.1


@on_one_backend
async def test_the_first_piece_of_a_stream_does_not_wait_for_the_others() -> None:
    async with serve_emulator(step_seconds=0.0, token_seconds=3600.0) as emulator:
        path = f"/inference/{emulator.start_instance(LLAMA)}/v1/chat/completions"
        body = json.dumps(STREAMED)
        port = int(emulator.root_url.rpartition(":")[2])
        with anyio.fail_after(30):
            async with await anyio.connect_tcp("127.0.0.1", port) as peer:
                head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                key = f"content-type: application/json\r\nauthorization: Bearer {emulator.api_key}\r\n\r\n"
                await peer.send((head + key + body).encode())
                received = b""
                while b"data: " not in received:
                    received += await peer.receive()
    assert b"HTTP/1.1 200 OK" in received


async def test_leaving_is_prompt_with_everything_open() -> None:
    """Idle connections, a request in progress and a half-sent one: all are cut without waiting."""
    hung = []

    async def hang(client: httpx.AsyncClient) -> None:
        try:
            await client.get("/api/v1/models/", timeout=60.0)
        except httpx.HTTPError as error:
            hung.append(error)

    async with httpx.AsyncClient() as idle, httpx.AsyncClient() as busy, anyio.create_task_group() as group:
        async with serve_emulator() as emulator:
            idle.base_url = busy.base_url = httpx.URL(emulator.root_url)
            await idle.get("/api/v1/models/")
            emulator.add_fault(Fault("delay", "models", seconds=60.0))
            group.start_soon(hang, busy)
            half_sent = await anyio.connect_tcp("127.0.0.1", int(emulator.root_url.rpartition(":")[2]))
            await half_sent.send(b"GET /api/v1/mod")
            await until(lambda: len(emulator.requests) == 2)
            begun = time.monotonic()
        assert time.monotonic() - begun < 0.5
        await half_sent.aclose()
    assert len(hung) == 1


async def test_leaving_works_for_a_cancelled_caller() -> None:
    threads = threading.active_count()
    with anyio.CancelScope() as scope:
        async with serve_emulator() as emulator:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert threading.active_count() == threads
    with pytest.raises(httpx.ConnectError):
        await httpx.AsyncClient().get(emulator.root_url)


async def test_leaving_passes_an_exception_on() -> None:
    with pytest.raises(KeyError):
        async with serve_emulator():
            raise KeyError


async def test_it_answers_while_the_callers_loop_is_blocked() -> None:
    async with serve_emulator() as emulator:
        # A blocking call on the event loop's own thread: only another thread can answer it.
        answer = httpx.get(f"{emulator.api_base_url}/models/")  # noqa: ASYNC210
        assert answer.status_code == 200


async def test_an_emulator_can_be_served_again_elsewhere() -> None:
    emulator = Emulator()
    instance_id = emulator.start_instance(LLAMA)
    urls = []
    for _ in range(2):
        async with serve_emulator(emulator) as served, httpx.AsyncClient() as client:
            assert served is emulator
            urls.append(emulator.api_base_url)
            assert (await client.get(f"{emulator.api_base_url}/models/")).status_code == 200
    assert len(set(urls)) == 2
    assert emulator.existing == (instance_id,)


@alternating("host", [EVERYWHERE, "::", "", "192.0.2.1", "example.com"])
async def test_an_address_beyond_loopback_is_rejected(host: str) -> None:
    with pytest.raises(ValueError, match="allow_remote"):
        async with serve_emulator(host=host):
            pytest.fail("served")
    with pytest.raises(ValueError, match="allow_remote"):
        run_emulator(Emulator(), host=host, port=0, on_ready=lambda _: pytest.fail("served"))


async def test_beyond_loopback_can_be_meant() -> None:
    async with serve_emulator(host=EVERYWHERE, allow_remote=True) as emulator, httpx.AsyncClient() as client:
        port = emulator.root_url.rpartition(":")[2]
        assert (await client.get(f"http://127.0.0.1:{port}/api/v1/models/")).status_code == 200


@alternating("host", ["localhost", "127.0.0.1", "::1"])
async def test_loopback_addresses(host: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    async with serve_emulator(host=host) as emulator, httpx.AsyncClient() as client:
        assert (await client.get(f"{emulator.api_base_url}/models/")).status_code == 200


async def test_a_taken_port_is_an_error_of_the_caller() -> None:
    async with serve_emulator() as emulator:
        port = int(emulator.root_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with serve_emulator(port=port):
                pytest.fail("served")


async def test_options_are_rejected_with_an_existing_emulator() -> None:
    with pytest.raises(TypeError, match="emulator_kwargs"):
        async with serve_emulator(Emulator(), balance=5.0):
            pytest.fail("served")


async def test_a_server_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(coroutine: Any) -> None:
        coroutine.close()
        msg = "no loop to be had"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run", fail)
        with pytest.raises(RuntimeError, match="no loop"):
            async with serve_emulator():
                pytest.fail("served")


@on_one_backend
async def test_a_thousand_instances_are_no_burden() -> None:
    async with serve_emulator(num_steps=1) as emulator, httpx.AsyncClient() as client:
        await authorise(client, emulator)
        for _ in range(1000):
            emulator.start_instance(LLAMA)
        listed = await client.get(f"{emulator.api_base_url}/instances/")
        assert len(listed.json()["instances"]) == 1000


PROGRAM = """
from cortecs_async.emulator import Emulator, run_emulator

def ready(emulator):
    print(emulator.api_base_url, flush=True)

run_emulator(Emulator(), host="127.0.0.1", port=0, on_ready=ready)
print("returned", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_in_the_foreground_until_a_signal(number: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/models/").status_code == 200
        process.send_signal(number)
        assert process.stdout.read() == "returned\n"
    assert process.returncode == 0


def test_the_handlers_of_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ready = []

    def leave(emulator: Emulator) -> None:
        ready.append(emulator.root_url)
        signal.raise_signal(signal.SIGTERM)

    run_emulator(Emulator(), host="127.0.0.1", port=0, on_ready=leave)
    assert len(ready) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
