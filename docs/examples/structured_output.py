"""Structured output: the model calls a tool, then answers with a pydantic model."""

from __future__ import annotations

import asyncio
from typing import Literal

from openai import AsyncOpenAI, pydantic_function_tool
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from cortecs_async import AsyncCortecs

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
WEATHER = {"Vienna": "sunny, 24 degrees", "Bergen": "rain, 11 degrees"}


class WeatherQuery(BaseModel):
    """Look up the weather of a city."""

    city: str


class Advice(BaseModel):
    """What to wear."""

    reason: str = Field(description="One sentence.")
    jacket: Literal["none", "light", "rain"]
    umbrella: bool


def look_up(query: WeatherQuery) -> str:
    """Return the weather. This is the tool."""
    return next((weather for city, weather in WEATHER.items() if city in query.city), "unknown")


async def advise(llm: AsyncOpenAI, model: str, question: str) -> Advice:
    """Let the model call the tool until it gives its advice."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    while True:
        completion = await llm.chat.completions.parse(
            model=model,
            messages=messages,
            tools=[pydantic_function_tool(WeatherQuery, name="get_weather")],
            response_format=Advice,
        )
        message = completion.choices[0].message
        if message.parsed is not None:
            return message.parsed
        if not message.tool_calls:
            raise ValueError(message.refusal or "neither an answer nor a call")
        calls = message.tool_calls
        messages.append(
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": call.function.arguments},
                    }
                    for call in calls
                ],
            }
        )
        for call in calls:
            query = WeatherQuery.model_validate_json(call.function.arguments)
            weather = look_up(query)
            print(f"get_weather({query.city!r}) gives {weather!r}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": weather})


async def main() -> None:
    """Ask for advice."""
    async with (
        AsyncCortecs() as client,
        client.instance(MODEL, max_lifetime=1800) as inst,
        inst.openai() as llm,
    ):
        advice = await advise(llm, inst.model, "What do I wear in Vienna today?")
    print(advice.model_dump_json(indent=2))


if __name__ == "__main__":
    asyncio.run(main())
