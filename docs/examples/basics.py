"""Basics: print prices, start an instance for a block of code, ask a question, and print the receipt."""

from __future__ import annotations

import asyncio

from cortecs_async import AsyncCortecs, Progress

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HARDWARE = "NVIDIA_H100_1"


def show(progress: Progress) -> None:
    """Print each step of the start."""
    print(f"  {progress.fraction:4.0%}  {progress.description}")


async def main() -> None:
    """Ask one question."""
    async with AsyncCortecs() as client:
        balance = await client.user.balance()
        print(f"The balance is {balance.current_balance:.2f} {balance.currency}.")
        for hardware in await client.hardware_types.list_available():
            if hardware.hardware_type_id == HARDWARE and hardware.price_per_minute is not None:
                print(
                    f"{HARDWARE} is free, for {hardware.price_per_minute:.3f} {hardware.currency} a minute."
                )

        print(f"Starting {MODEL}:")
        async with (
            client.instance(MODEL, HARDWARE, max_lifetime=1800, on_progress=show) as inst,
            inst.openai() as llm,
        ):
            answer = await llm.chat.completions.create(
                model=inst.model,
                messages=[
                    {"role": "system", "content": "You answer in one sentence."},
                    {"role": "user", "content": "Why is the sky blue?"},
                ],
                max_tokens=100,
            )
            print(answer.choices[0].message.content)

        # By this point, the instance is stopped and deleted, and the service has confirmed it.
        print(f"It took {inst.receipt}.")


if __name__ == "__main__":
    asyncio.run(main())
