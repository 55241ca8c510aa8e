"""`inst.langchain()` and `inst.pydantic_ai()`, also with the lowest versions that the extras allow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import ValidationError
from pydantic_ai import Agent

from cortecs_async import AsyncCortecs, InstanceHandle
from cortecs_async.emulator import Emulator, serve_emulator
from cortecs_async.errors import ConfigurationError

# The frameworks themselves cause warnings.
pytestmark = [pytest.mark.sockets, pytest.mark.filterwarnings("default")]

QUESTION = "Why is the sky blue?"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with serve_emulator(step_seconds=0.01) as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture
def handle(emulator: Emulator) -> Iterator[InstanceHandle]:
    async def acquire() -> InstanceHandle:
        async with AsyncCortecs() as client:
            return await client.acquire("meta-llama/Llama-3.1-8B-Instruct")

    async def release(acquired: InstanceHandle) -> None:
        async with AsyncCortecs() as client:
            await client.release(acquired)

    acquired = asyncio.run(acquire())
    yield acquired
    asyncio.run(release(acquired))
    assert emulator.existing == ()


@pytest.mark.parametrize("options", [{}, {"timeout": 30}, {"request_timeout": (5.0, 30.0)}], ids=str)
def test_langchain_on_one_event_loop_after_the_other(handle: InstanceHandle, options: dict[str, Any]) -> None:
    async def ask() -> list[str]:
        llm = handle.langchain(**options)
        answers = await asyncio.gather(*(llm.ainvoke(QUESTION) for _ in range(3)))
        await llm.root_async_client.close()
        return [str(answer.content) for answer in answers]

    for _ in range(3):
        assert all(QUESTION in answer for answer in asyncio.run(ask()))


def test_langchain_by_hand_still_needs_the_helper(handle: InstanceHandle) -> None:
    async def ask() -> None:
        kwargs: dict[str, Any] = {**handle.openai_kwargs()}  # LangChain's types know no plain key
        llm = ChatOpenAI(model=handle.model, max_retries=0, **kwargs)
        await asyncio.gather(*(llm.ainvoke(QUESTION) for _ in range(3)))

    asyncio.run(ask())
    with pytest.raises((RuntimeError, openai.APIConnectionError)):
        asyncio.run(ask())


async def test_closing_one_closes_no_other(handle: InstanceHandle, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("LangChain runs on asyncio alone")
    first, second = handle.langchain(), handle.langchain()
    await first.root_async_client.close()
    assert QUESTION in str((await second.ainvoke(QUESTION)).content)
    await second.root_async_client.close()
    model, other = handle.pydantic_ai(), handle.pydantic_ai()
    async with model:
        assert QUESTION in (await Agent(model).run(QUESTION)).output
    async with other:
        assert QUESTION in (await Agent(other).run(QUESTION)).output
    assert model.client.is_closed()
    assert other.client.is_closed()


def test_pydantic_ai_on_one_event_loop_after_the_other(handle: InstanceHandle) -> None:
    async def ask() -> str:
        async with handle.pydantic_ai() as model:
            return (await Agent(model).run(QUESTION)).output

    for _ in range(3):
        assert QUESTION in asyncio.run(ask())


HANDLE = InstanceHandle(instance_id="i-1", base_url="http://127.0.0.1:9/v1", model="org/model", account="a")


def test_options_are_passed_on() -> None:
    llm = HANDLE.langchain(api_key="key", temperature=0.5, model="other")
    assert (llm.model_name, llm.temperature, llm.openai_api_base) == ("other", 0.5, HANDLE.base_url)
    assert HANDLE.langchain(api_key="key", timeout=7).root_async_client.timeout == openai.Timeout(7)
    model = HANDLE.pydantic_ai(api_key="key", settings={"temperature": 0.5})
    assert model.settings == {"temperature": 0.5}
    assert model.model_name == HANDLE.model
    assert str(model.client.base_url) == f"{HANDLE.base_url}/"


def test_the_key_is_the_one_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "secret")
    for make in (HANDLE.langchain, HANDLE.pydantic_ai):
        with pytest.raises(ConfigurationError, match="No inference API key"):
            make()
    monkeypatch.setenv("OPENAI_API_KEY", "openai-key")
    assert HANDLE.langchain().root_async_client.api_key == "openai-key"
    assert HANDLE.pydantic_ai().client.api_key == "openai-key"
    monkeypatch.setenv("CORTECS_API_KEY", "cortecs-key")
    assert HANDLE.langchain().root_async_client.api_key == "cortecs-key"
    assert HANDLE.pydantic_ai().client.api_key == "cortecs-key"


def test_the_key_does_not_show() -> None:
    llm, model = HANDLE.langchain(api_key="hush"), HANDLE.pydantic_ai(api_key="hush")
    assert "hush" not in f"{llm!r}{llm}{llm.model_dump()}{model!r}{model}{Agent(model)!r}{vars(model)}"
    with pytest.raises(ValidationError, match="n must be at least 1") as refused:
        HANDLE.langchain(api_key="hush", n=0)
    assert "hush" not in f"{refused.value}{refused.value.errors()}"
