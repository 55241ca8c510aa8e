"""Errors of unknown models, hardware types and instances name what was typed and what is similar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _evidence import open_promises
from _grids import BACKENDS, grid
from _scripted import SECRET, Answer, Service, instance
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, errors
from cortecs_async._api.unknown_names import nearest
from cortecs_async.emulator import Fault

MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": {"NVIDIA_H100_1": 131072, "NVIDIA_L40S_1": 32768},
    "mistralai/Mistral-7B-Instruct-v0.3": {"NVIDIA_L4_1": 16384},
    "big/One": {"NVIDIA_H100_4": 4096},
}
NO_MODEL = (
    "There is no model meta-llama/Llama-3.1-8B. Did you mean meta-llama/Llama-3.1-8B-Instruct, "
    "meta-llama/Meta-Llama-3.1-8B-Instruct, or neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8?"
)
NO_HARDWARE = "There is no hardware type NVIDIA_H10_1. Did you mean NVIDIA_H100_1 or NVIDIA_L40S_1?"
NOT_ON = "Model big/One does not run on NVIDIA_L4_1. Choose one of: NVIDIA_H100_4."
TOO_LONG = "context_length 5000 is too long: big/One supports at most 4096 tokens on NVIDIA_H100_4."
NO_INSTANCE = "There is no instance instance-1001. Did you mean instance-10001?"

WORDS = "POST /instances/stop returned 400 Bad Request: no."

Request = Callable[[AsyncCortecs], Awaitable[object]]


async def lease(client: AsyncCortecs, *args: Any, **options: Any) -> None:
    async with client.instance(*args, **options):
        pass


async def attach(client: AsyncCortecs, instance_id: str) -> None:
    async with client.attach(instance_id):
        pass


MISTAKES: dict[str, tuple[Request, str]] = {
    "get": (lambda client: client.models.get("meta-llama/Llama-3.1-8B"), NO_MODEL),
    "start": (lambda client: client.instances.start("meta-llama/Llama-3.1-8B"), NO_MODEL),
    "ensure": (lambda client: client.instances.ensure("meta-llama/Llama-3.1-8B"), NO_MODEL),
    "lease": (lambda client: lease(client, "meta-llama/Llama-3.1-8B"), NO_MODEL),
    "reuse": (lambda client: lease(client, "meta-llama/Llama-3.1-8B", reuse=True), NO_MODEL),
    "acquire": (lambda client: client.acquire("meta-llama--Llama-3.1-8B"), NO_MODEL),
    "budget": (lambda client: lease(client, "meta-llama/Llama-3.1-8B", max_cost=1), NO_MODEL),
    "options": (
        lambda client: client.with_options(timeout=9).models.get("meta-llama/Llama-3.1-8B"),
        NO_MODEL,
    ),
    "hardware": (lambda client: client.instances.start(MODEL, "NVIDIA_H10_1"), NO_HARDWARE),
    "hardware of a lease": (lambda client: lease(client, MODEL, "NVIDIA_H10_1"), NO_HARDWARE),
    "hardware and budget": (lambda client: lease(client, MODEL, "NVIDIA_H10_1", max_cost=1), NO_HARDWARE),
    "other hardware": (lambda client: client.instances.start("big/One", "NVIDIA_L4_1"), NOT_ON),
    "context": (lambda client: client.instances.start("big/One", context_length=5000), TOO_LONG),
    "context of a lease": (lambda client: lease(client, "big/One", context_length=5000), TOO_LONG),
    "show": (lambda client: client.instances.get("instance-1001"), NO_INSTANCE),
    "stop": (lambda client: client.instances.stop("instance-1001"), NO_INSTANCE),
    "restart": (lambda client: client.instances.restart("instance-1001"), NO_INSTANCE),
    "delete": (lambda client: client.instances.delete("instance-1001"), NO_INSTANCE),
    "attach": (lambda client: attach(client, "instance-1001"), NO_INSTANCE),
    "watch": (lambda client: anext(client.instances.watch("instance-1001")), NO_INSTANCE),
    "wait": (lambda client: client.instances.wait_until_running("instance-1001"), NO_INSTANCE),
}


async def message_of(request: Request, client: AsyncCortecs) -> str:
    with pytest.raises(errors.CortecsError) as caught:
        await request(client)
    return str(caught.value)


@grid(
    mistake=list(MISTAKES),
    unknown_status=[400, 404],
    error_body=["message", "error", "openai", "html", "empty"],
    strength=1,
    anyio_backend=BACKENDS,
)
async def test_one_sentence_for_one_mistake(
    world: World, mistake: str, unknown_status: int, error_body: str
) -> None:
    request, expected = MISTAKES[mistake]
    async with world(models=MODELS, unknown_status=unknown_status, error_body=error_body) as (emu, client):
        await client.instances.start(MODEL)
        assert await message_of(request, client) == expected
        assert len(emu.ledger) == 1


async def test_the_error_keeps_its_class_and_what_the_service_sent(world: World) -> None:
    async with world(unknown_status=404) as (_emu, client):
        with pytest.raises(errors.NotFoundError) as caught:
            await client.instances.get("unknown")
    error = caught.value
    assert str(error) == "There is no instance unknown. client.instances.list() lists your instances."
    assert (error.status_code, error.path) == (404, "/instances/unknown")
    assert "Instance unknown does not exist" in error.body
    assert error.request_id is not None


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (422, {"detail": [{"loc": ["body", "model_id"], "msg": "unknown"}]}, "model_id: unknown"),
        (422, {"detail": "Model not supported"}, "Model not supported"),
        (400, {"error": {"message": "Busy", "code": 7}}, "Busy"),
    ],
)
async def test_the_words_of_the_service_stay_if_the_name_exists(
    world: World, status: int, body: object, shown: str
) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="start", status=status, body=body))
        message = await message_of(lambda client: client.instances.start(MODEL, HARDWARE), client)
    assert f"returned {status} " in message
    assert f": {shown} [request id" in message
    assert "{" not in message
    assert "Check the" not in message


async def test_a_suggestion_shows_no_secret_and_is_one_line() -> None:
    service = Service()
    service.on("GET", "/models/org--other", Answer(status=404))
    names = [f"org/other-{SECRET}", "org/other-\x1b[31m\nError"]
    service.on("GET", "/models/", Answer(json={"models": [{"model_id": each} for each in names]}))
    service.on("GET", "/instances/", Answer(json={"instances": []}))
    async with service.client() as client:
        await client.instances.list()  # from now on, the service knows the secret
        message = await message_of(lambda client: client.models.get("org/other"), client)
    assert message.isprintable()
    assert "Did you mean org/other-" in message
    assert SECRET not in message


LISTS: list[Fault] = [
    Fault("status", route="models", status=500),
    Fault("status", route="models", status=429, headers={"retry-after": "60"}),
    Fault("status", route="models", status=200, body={"models": []}),
    Fault("garbage", route="models"),
    Fault("drop", route="models"),
    Fault("delay", route="models", seconds=1000.0),
]


@pytest.mark.parametrize("fault", LISTS, ids=lambda fault: f"{fault.kind} {fault.status}")
async def test_a_failed_lookup_changes_nothing(world: World, journals: Path, fault: Fault) -> None:
    async with world(journal="required") as (emu, client):
        emu.add_fault(fault)
        began = anyio.current_time()
        message = await message_of(lambda client: lease(client, "org/nothing"), client)
        assert "Unknown model_id 'org--nothing'" in message
        assert anyio.current_time() - began < 4.0
        assert [each.route for each in emu.requests].count("models") == 1
        assert open_promises(journals) == []


async def test_the_promise_of_a_rejected_start_is_closed_before_the_lookup(
    world: World, journals: Path
) -> None:
    async with world(journal="required") as (emu, client):
        emu.add_fault(Fault("delay", route="models", seconds=2.0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(message_of, lambda client: lease(client, "org/nothing"), client)
            await anyio.sleep(1.0)
            assert emu.requests[-1].route == "models"
            assert open_promises(journals) == []


async def test_a_lookup_delays_no_cancellation(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="models", seconds=2.0))
        began = anyio.current_time()
        with anyio.move_on_after(1.0) as scope:
            await lease(client, "org/nothing")
        assert scope.cancelled_caught
        assert anyio.current_time() - began == pytest.approx(1.0)


async def test_an_instance_that_is_not_listed_yet_is_not_said_to_be_missing(world: World) -> None:
    async with world(list_lag=5.0, get_lag=5.0) as (_emu, client):
        started = await client.instances.start(MODEL)
        message = await message_of(lambda client: client.instances.get(started.instance_id), client)
        assert "There is no instance" not in message


@pytest.mark.parametrize("entry", [{"instance_id": "instance-2"}, {"id": "instance-2"}, None])
async def test_an_unreadable_entry_exists(entry: object) -> None:
    service = Service()
    service.on("GET", "/instances/", Answer(json={"instances": [entry]}))
    service.on("POST", "/instances/stop", Answer(status=400, json={"message": "no"}))
    async with service.client() as client:
        message = await message_of(lambda client: client.instances.stop("instance-2"), client)
    assert message == WORDS


async def test_an_earlier_attempt_that_may_have_worked_matters_more() -> None:
    service = Service()
    service.on("DELETE", "/instances/gone", Answer(failure=httpx.ReadError), Answer(status=400))
    service.on("GET", "/instances/", Answer(json={"instances": [instance("gone")]}))
    async with service.client() as client:
        message = await message_of(lambda client: client.instances.delete("gone"), client)
    assert "returned 400" in message


async def test_a_request_that_names_no_instance_is_not_explained(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="delete_all", status=400))
        message = await message_of(lambda client: client.instances.delete_all(), client)
        assert message.startswith("DELETE /instances/delete-all returned 400")
        assert emu.requests[-1].route == "delete_all"


async def test_many_rejections_share_a_list(world: World) -> None:
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(
                message_of, lambda client, number=number: client.instances.get(f"x-{number}"), client
            )
        await anyio.sleep(1.0)
        assert [each.route for each in emu.requests].count("list") < 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LLAMA-3.1-8b-instruct", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("other/Llama-3.1-8B-Instruct", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("meta-llama--Llama-3.1-8B", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("meta-llama/Lama-3.1-8B-Instruct", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("mistralai/Mistral-7B-Instruct-v0.2", ["mistralai/Mistral-7B-Instruct-v0.3"]),
        ("gpt-4", []),
        ("a", []),
        ("", []),
    ],
)
def test_the_nearest_names(name: str, expected: list[str]) -> None:
    assert nearest(name, list(MODELS)) == expected
