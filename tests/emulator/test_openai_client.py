"""The OpenAI client, unmodified, against an instance of the emulator on real sockets."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cortecs_async.emulator import Emulator, Fault, serve_emulator

openai = pytest.importorskip("openai")
from pydantic import BaseModel  # noqa: E402  (comes with it)

pytestmark = pytest.mark.sockets

MODEL = "microsoft/phi-4"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
SAID = f'This is the cortecs_async emulator in place of {MODEL}; no model was run. You said: "Hello there"'


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the emulator has its own event loop."""
    return "asyncio"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with serve_emulator(step_seconds=0.0) as serving:
        yield serving


@pytest.fixture
def options(emulator: Emulator) -> dict[str, Any]:
    instance_id = emulator.start_instance(MODEL)
    return {
        "base_url": f"{emulator.root_url}/inference/{instance_id}/v1",
        "api_key": emulator.api_key,
        "max_retries": 0,
    }


async def test_a_plain_chat(options: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_streamed_chat_with_usage(options: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, max_tokens=4
        )
        async with stream:
            chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].choices == []
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "This is the cortecs_async"
    )
    assert chunks[-2].choices[0].finish_reason == "length"


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int = 1


async def test_structured_output(options: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        answer = await client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Hello there", days=1)


async def test_a_streamed_tool_call(options: dict[str, Any]) -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    async with (
        openai.AsyncOpenAI(**options) as client,
        client.chat.completions.stream(model=MODEL, messages=HELLO, tools=[tool]) as stream,
    ):
        pieces = [event.arguments_delta async for event in stream if event.type.endswith("arguments.delta")]
        (choice,) = (await stream.get_final_completion()).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert call.function.parsed_arguments == Weather(city="Hello there", days=1)
    assert "".join(pieces) == call.function.arguments
    assert len(pieces) > 3


async def test_completions(options: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        plain = await client.completions.create(model=MODEL, prompt="Once upon")
        stream = await client.completions.create(model=MODEL, prompt="Once upon", stream=True)
        async with stream:
            streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert plain.choices[0].text == streamed
    assert "Once upon" in streamed


async def test_the_list_of_models(options: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_errors_have_their_types(emulator: Emulator, options: dict[str, Any]) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        with pytest.raises(openai.NotFoundError, match="does not exist") as missing:
            await client.chat.completions.create(model="gpt-4", messages=HELLO)
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id == f"emulator-request-{len(emulator.requests)}"
        with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1"):
            await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=0)
        emulator.add_fault(Fault("status", "chat", status=429, headers={"Retry-After": "1"}))
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        emulator.add_fault(Fault("drop", "chat"))
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model=MODEL, messages=HELLO)
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            await client.with_options(api_key="wrong").models.list()
        emulator.stop_instance("instance-10001")
        with pytest.raises(openai.InternalServerError, match="is stopped") as stopped:
            await client.models.list()
        assert stopped.value.status_code == 503
        emulator.delete_instance("instance-10001")
        with pytest.raises(openai.NotFoundError):
            await client.models.list()


async def test_it_retries_a_503(emulator: Emulator, options: dict[str, Any]) -> None:
    emulator.add_fault(Fault("status", "chat", status=503, headers={"Retry-After-Ms": "1"}))
    async with openai.AsyncOpenAI(**{**options, "max_retries": 1}) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == SAID
    assert [record.status for record in emulator.requests] == [503, 200]


async def test_the_synchronous_client(options: dict[str, Any]) -> None:
    # It blocks this event loop; the emulator has its own.
    with openai.OpenAI(**options) as client:
        assert client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content == SAID
        stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, n=2)
        texts = {0: "", 1: ""}
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts[0] == SAID
        assert "(choice 2)" in texts[1]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=HELLO)
