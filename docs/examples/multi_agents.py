"""Multiple agents: two researchers, a critic, and an editor share one instance, without a framework."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from openai import AsyncOpenAI

from cortecs_async import AsyncCortecs

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
QUESTION = "Should a small library support two HTTP clients?"


@dataclass(frozen=True)
class Agent:
    """A prompt and a client."""

    name: str
    task: str
    llm: AsyncOpenAI
    model: str

    async def work(self, text: str) -> str:
        """Apply the task to a text."""
        completion = await self.llm.chat.completions.create(
            model=self.model,
            messages=[{"role": "system", "content": self.task}, {"role": "user", "content": text}],
            max_tokens=300,
        )
        written = completion.choices[0].message.content or ""
        print(f"{self.name} wrote {len(written.split())} words")
        return written


async def discuss(question: str, llm: AsyncOpenAI, model: str) -> str:
    """Let two researchers write in parallel, a critic review both, and an editor write the final text."""
    views = ("for users", "for maintainers")
    researchers = [
        Agent(f"Researcher ({view})", f"Say what the question means {view}, in five sentences.", llm, model)
        for view in views
    ]
    critic = Agent("Critic", "Name the weakest claim of each note, and why.", llm, model)
    editor = Agent(
        "Editor", "Answer the question in one paragraph, from the notes and the critique.", llm, model
    )

    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(researcher.work(question)) for researcher in researchers]
    notes = "\n\n".join(f"Note {view}:\n{task.result()}" for view, task in zip(views, writing, strict=True))
    critique = await critic.work(notes)
    return await editor.work(f"Question: {question}\n\n{notes}\n\nCritique:\n{critique}")


async def main() -> None:
    """Discuss one question."""
    async with (
        AsyncCortecs() as client,
        client.instance(MODEL, max_lifetime=1800) as inst,
        inst.openai() as llm,
    ):
        answer = await discuss(QUESTION, llm, inst.model)
        print(f"\n{answer}\n")
    print(f"All of it took {inst.receipt}.")


if __name__ == "__main__":
    asyncio.run(main())
