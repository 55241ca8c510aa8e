"""How long answers take, how many an instance works on in parallel, and how the others wait."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from _grids import alternating
from click.testing import CliRunner

from cortecs_async._cli import cli
from cortecs_async.emulator import Emulator, Fault, serve_emulator
from cortecs_async.emulator._messages import ApiError
from cortecs_async.emulator._queue import InferenceQueue

MODEL = "microsoft/phi-4"
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/completions": {"prompt": "Hello"},
    "/embeddings": {"input": "Hello"},
    "/responses": {"input": "Hello"},
    "/rerank": {"query": "Hello", "documents": ["Hello"]},
    "/score": {"text_1": "Hello", "text_2": "Hello"},
}


class Load:
    """Requests to one emulator, each with the time of its response."""

    def __init__(self, emulator: Emulator, client: httpx.AsyncClient) -> None:
        self.emulator = emulator
        self.client = client
        self.instance_id = emulator.start_instance(MODEL)
        self.back: list[tuple[float, int]] = []

    async def ask(
        self, path: str = "/chat/completions", instance_id: str | None = None, **more: Any
    ) -> httpx.Response:
        answer = await self.client.post(
            f"{self.emulator.root_url}/inference/{instance_id or self.instance_id}/v1{path}",
            headers={"Authorization": f"Bearer {self.emulator.api_key}"},
            json={"model": MODEL, **BODIES[path], **more},
        )
        self.back.append((round(anyio.current_time() - self.began, 6), answer.status_code))
        return answer

    began = 0.0


@asynccontextmanager
async def loaded(**options: Any) -> AsyncIterator[Load]:
    emulator = Emulator(clock=anyio.current_time, step_seconds=0.0, **options)
    async with httpx.AsyncClient(transport=emulator.transport(), timeout=1e6) as client:
        load = Load(emulator, client)
        load.began = anyio.current_time()
        yield load


@alternating("path", BODIES)
async def test_without_parallel_every_answer_takes_the_same_time(path: str) -> None:
    async with loaded(answer_seconds=3.0) as load:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(load.ask, path)
    assert load.back == [(3.0, 200)] * 20


async def test_errors_and_the_list_of_models_come_at_once() -> None:
    async with loaded(answer_seconds=3.0) as load:
        await load.ask(model="gpt-4")
        await load.ask(max_tokens=0)
        await load.client.get(f"{load.emulator.root_url}/inference/{load.instance_id}/v1/models")
        assert anyio.current_time() == load.began
    assert load.back == [(0.0, 404), (0.0, 400)]


async def test_a_stream_begins_after_answer_seconds() -> None:
    async with loaded(answer_seconds=3.0, token_seconds=1.0) as load:
        await load.ask(stream=True, max_tokens=1)
    # The role, one token, the finish reason, the end.
    assert load.back == [(6.0, 200)]


async def test_requests_beyond_parallel_wait_in_order() -> None:
    async with loaded(answer_seconds=2.0, parallel=3) as load:
        order: list[int] = []

        async def ask(number: int) -> None:
            await anyio.sleep(number / 100)
            await load.ask()
            order.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(7):
                tasks.start_soon(ask, number)
    assert order == list(range(7))
    assert load.back == [(time, 200) for time in (2.0, 2.01, 2.02, 4.0, 4.01, 4.02, 6.0)]


async def test_each_instance_has_its_own_queue() -> None:
    async with loaded(answer_seconds=2.0, parallel=1) as load:
        other = load.emulator.start_instance(MODEL, num_workers=2)
        async with anyio.create_task_group() as tasks:
            for instance_id in (load.instance_id, other, other):
                tasks.start_soon(load.ask, "/embeddings", instance_id)
    assert load.back == [(2.0, 200), (2.0, 200), (4.0, 200)]


async def test_a_request_beyond_the_queue_is_rejected() -> None:
    async with loaded(answer_seconds=2.0, parallel=2, queue=1) as load:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(load.ask)
            await anyio.sleep(1.0)
            refused = await load.ask()
            assert refused.headers["Retry-After"] == "1"
            assert refused.json()["error"] == {
                "message": "3 requests are in progress or queued.",
                "type": "rate_limit_error",
                "param": None,
                "code": "queue_full",
            }
            await anyio.sleep(1.0)
            await load.ask()
    assert load.back == [(1.0, 429), (2.0, 200), (2.0, 200), (4.0, 200), (4.0, 200)]


async def test_a_caller_that_disconnects_releases_its_slot() -> None:
    async with loaded(answer_seconds=2.0, parallel=1, queue=1) as load:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.ask)
            await anyio.sleep(0.5)
            with anyio.move_on_after(0.5):
                await load.ask()
            await load.ask()
    assert load.back == [(2.0, 200), (4.0, 200)]
    assert [record.status for record in load.emulator.requests] == [200, None, 200]


async def test_work_that_has_begun_is_completed() -> None:
    async with loaded(answer_seconds=2.0, parallel=1) as load:
        with anyio.move_on_after(0.5):
            await load.ask()
        await load.ask()
    assert load.back == [(4.0, 200)]


@pytest.mark.parametrize(("end", "status"), [("stop", 503), ("vanish", 404)])
async def test_waiting_callers_get_an_error_soon_after_the_instance_ends(end: str, status: int) -> None:
    async with loaded(answer_seconds=2.0, parallel=1) as load:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(load.ask)
            await anyio.sleep(3.0)
            {"stop": load.emulator.stop_instance, "vanish": load.emulator.delete_instance}[end](
                load.instance_id
            )
    assert load.back == [(2.0, 200), *[(4.0, status)] * 9]


async def test_a_crash_cuts_everything_in_flight_and_what_comes_until_the_server_is_up() -> None:
    async with loaded(answer_seconds=2.0, parallel=3) as load:
        other = load.emulator.start_instance(MODEL, num_workers=2)
        load.emulator.add_fault(Fault("crash", text="POISON", seconds=5.0, times=None))
        outcomes: dict[str, str | int] = {}

        async def ask(name: str, begin: float, instance_id: str | None = None) -> None:
            await anyio.sleep(begin)
            try:
                answer = await load.ask("/embeddings", instance_id, input=name)
            except httpx.RemoteProtocolError:
                outcomes[name] = "cut"
            else:
                outcomes[name] = answer.status_code

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "answered before", 0.0)
            tasks.start_soon(ask, "in flight", 1.0)
            tasks.start_soon(ask, "on the other", 1.0, other)
            tasks.start_soon(ask, "POISON", 2.5)
            tasks.start_soon(ask, "meanwhile", 7.0)
            tasks.start_soon(ask, "afterwards", 7.5)
    assert outcomes == {
        "answered before": 200,
        "in flight": "cut",
        "on the other": 200,
        "POISON": "cut",
        "meanwhile": "cut",
        "afterwards": 200,
    }
    assert [each.fault for each in load.emulator.requests if each.fault] == ["crash"]


async def test_a_crash_cuts_streams() -> None:
    async with loaded(token_seconds=1.0) as load:
        load.emulator.add_fault(Fault("crash", text="POISON"))

        async def crash() -> None:
            await anyio.sleep(1.5)
            with pytest.raises(httpx.RemoteProtocolError):
                await load.ask("/embeddings", input="POISON")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crash)
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await load.ask(stream=True, max_tokens=5)


async def test_a_delay_comes_on_top() -> None:
    async with loaded(answer_seconds=2.0, parallel=1) as load:
        load.emulator.add_fault(Fault("delay", "chat", "before", seconds=5.0))
        load.emulator.add_fault(Fault("delay", "chat", "after", seconds=5.0))
        await load.ask()
        await load.ask()
    assert load.back == [(7.0, 200), (14.0, 200)]


async def test_a_fault_before_the_action_takes_no_slot() -> None:
    async with loaded(answer_seconds=2.0, parallel=1, queue=0) as load:
        load.emulator.add_fault(Fault("status", "chat", status=502))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.ask)
            tasks.start_soon(load.ask)
    assert load.back == [(0.0, 502), (2.0, 200)]


def test_a_released_slot_goes_to_the_next_caller() -> None:
    queue = InferenceQueue(10.0, 1, 2)
    _, second, third = (queue.reserve(0.0) for _ in range(3))
    with pytest.raises(ApiError, match="3 requests"):
        queue.reserve(1.0)
    queue.release(second, 2.0)
    assert queue.reserve(3.0) is second
    queue.release(second, 4.0)
    queue.release(third, 5.0)
    assert queue.reserve(6.0).begins == 10.0
    assert queue.reserve(7.0).begins == 20.0


def test_a_released_slot_in_the_past_is_not_reused() -> None:
    queue = InferenceQueue(10.0, 1, None)
    _, second, third = (queue.reserve(0.0) for _ in range(3))
    queue.release(second, 1.0)
    assert queue.reserve(11.0).begins == third.ends
    queue.release(second, 12.0)
    assert queue.reserve(12.0).begins == third.ends + 10.0


def test_old_slots_are_dropped() -> None:
    queue = InferenceQueue(1.0, 2, None)
    for number in range(1000):
        queue.release(queue.reserve(number / 10), number / 10)
    assert len(queue._reserved) + len(queue._vacant) < 30


async def test_a_restarted_instance_has_an_empty_queue() -> None:
    async with loaded(answer_seconds=2.0, parallel=1) as load:
        with anyio.move_on_after(0.5):
            await load.ask()
        load.emulator.stop_instance(load.instance_id)
        token = (
            await load.client.post(
                f"{load.emulator.api_base_url}/oauth2/token",
                json={
                    "grant_type": "client_credentials",
                    "client_id": load.emulator.client_id,
                    "client_secret": load.emulator.client_secret,
                },
            )
        ).json()["access_token"]
        restarted = await load.client.post(
            f"{load.emulator.api_base_url}/instances/restart",
            headers={"Authorization": f"Bearer {token}"},
            json={"instance_id": load.instance_id},
        )
        assert restarted.status_code < 300
        await load.ask()
    assert load.back == [(2.5, 200)]


@pytest.mark.sockets
async def test_a_caller_that_disconnects_on_a_socket_releases_its_slot_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    sleeping: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeping.append(seconds)
        await anyio.sleep_forever()

    emulator = Emulator(step_seconds=0.0, answer_seconds=5.0, parallel=1, clock=lambda: now, sleep=sleep)
    instance_id = emulator.start_instance(MODEL)
    url = f"{{}}/inference/{instance_id}/v1/embeddings"

    async def ask(client: httpx.AsyncClient) -> None:
        await client.post(
            url.format(emulator.root_url),
            headers={"Authorization": f"Bearer {emulator.api_key}"},
            json={"model": MODEL, "input": "Hello"},
        )

    async def until(number: int) -> None:
        while len(sleeping) < number:  # noqa: ASYNC110 - it happens in another thread
            await anyio.sleep(0.001)

    queues = emulator._account.queues
    async with serve_emulator(emulator):
        async with httpx.AsyncClient() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client)
            await until(1)
            with anyio.CancelScope() as hung_up:
                async with anyio.create_task_group() as more:
                    more.start_soon(ask, client)
                    await until(2)
                    assert len(queues[instance_id]._reserved) == 2
                    hung_up.cancel()
            with anyio.fail_after(5):
                while len(queues[instance_id]._reserved) == 2:  # noqa: ASYNC110 - as above
                    await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    assert not caplog.records


def test_the_command_line_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Emulator] = []
    monkeypatch.setattr("cortecs_async.emulator.run_emulator", lambda emulator, **_: made.append(emulator))
    ended = CliRunner().invoke(cli, ["emulator", "--answer-seconds", "0.5", "--parallel", "4"])
    assert ended.exit_code == 0, ended.output
    assert (made[0]._settings.answer_seconds, made[0]._settings.parallel) == (0.5, 4)
