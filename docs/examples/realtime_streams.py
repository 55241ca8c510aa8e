"""Realtime streams: print several answers in parallel, piece by piece. One reader stops early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from openai import AsyncOpenAI

from cortecs_async import AsyncCortecs

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
# The number of pieces each reader wants. None for all.
QUESTIONS = {"Why is the sky blue?": None, "Why is grass green?": None, "Recite the Iliad.": 5}


async def stream(llm: AsyncOpenAI, model: str, question: str) -> AsyncGenerator[str]:
    """Yield the answer piece by piece. Closing the generator closes the request, and the model stops."""
    chunks = await llm.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=20, stream=True
    )
    async with chunks:
        async for chunk in chunks:
            if chunk.choices and (piece := chunk.choices[0].delta.content):
                yield piece


async def read(llm: AsyncOpenAI, model: str, question: str, wanted: int | None) -> str:
    """Print an answer as it arrives."""
    text, count = "", 0
    async with aclosing(stream(llm, model, question)) as pieces:
        async for piece in pieces:
            print(f"{question:<20} | {piece}", flush=True)
            text, count = text + piece, count + 1
            if count == wanted:
                print(f"{question:<20} | (that will do)")
                break
    return text


async def main() -> None:
    """Read all answers in parallel."""
    async with (
        AsyncCortecs() as client,
        client.instance(MODEL, max_lifetime=1800) as inst,
        inst.openai() as llm,
        asyncio.TaskGroup() as tasks,
    ):
        reading = [
            tasks.create_task(read(llm, inst.model, question, wanted))
            for question, wanted in QUESTIONS.items()
        ]
    for question, task in zip(QUESTIONS, reading, strict=True):
        print(f"\n{question}\n{task.result()}")


if __name__ == "__main__":
    asyncio.run(main())
