"""`cortecs-async demo`: a lease from start to receipt, on the built-in emulator."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import click

import cortecs_async

from .command import cli_command, wrap_example
from .output import count, format_money, print_nothing_left, wrap
from .program import program
from .runtime import cancel_on_signals, import_optional, run_async

if TYPE_CHECKING:
    from rich.console import Console

    from .. import InstanceLease
    from ..emulator import Emulator
    from ..types import Balance

_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_HARDWARE = "NVIDIA_H100_1"


@cli_command(examples=("cortecs-async demo", 'cortecs-async demo --step-seconds 0.2 --prompt "Hello"'))
@click.option(
    "--step-seconds",
    type=click.FloatRange(min=0, max=60),
    default=1.0,
    help="Duration of each of the five startup steps, in seconds.",
)
@click.option("--prompt", default="Why should a GPU never outlive its program?", help="Question to ask.")
def demo(step_seconds: float, prompt: str) -> None:
    """Try a lease on the built-in emulator, without an account.

    Starts an emulated instance, chats with it, and deletes it. The demo is free and does not use a GPU. At
    the end, it suggests what to try next.
    """
    import_optional("cortecs_async.emulator", "demo")
    import_optional("openai", "demo")
    run_async(_cancellable, step_seconds, prompt)


async def _cancellable(step_seconds: float, prompt: str) -> None:
    import anyio  # noqa: PLC0415  (slow to import)

    async with cancel_on_signals():
        try:
            await _demo(step_seconds, prompt)
        except anyio.get_cancelled_exc_class() as cancelled:
            print_nothing_left(cancelled)
            raise


async def _demo(step_seconds: float, prompt: str) -> None:
    from ..emulator import serve_emulator  # noqa: PLC0415  (optional, checked by the caller)
    from ..integrations.rich import ProvisioningBar  # noqa: PLC0415  (slow to import)
    from .tables import stdout_console  # noqa: PLC0415  (slow to import)

    console = stdout_console()
    console.print(
        "[bold]cortecs_async demo[/]: the real client connects to the [bold]embedded emulator[/] on this "
        "machine.\nNo account, no GPU, no cost. Models, prices, and answers are made up."
    )
    async with serve_emulator(step_seconds=step_seconds, token_seconds=0.03) as emulator:
        console.print(f"\n[bold]emulator[/]  {emulator.api_base_url}", soft_wrap=True)
        console.print(f"[bold]lease[/]     {_MODEL} on {_HARDWARE}")
        async with cortecs_async.AsyncCortecs(
            emulator.client_id,
            emulator.client_secret,
            api_base_url=emulator.api_base_url,
            # The instances disappear with the emulator, so there is no work for the reaper or `sweep`.
            guard="off",
            journal="off",
        ) as client:
            with ProvisioningBar(console) as bar:
                lease = client.instance(_MODEL, _HARDWARE, on_progress=bar, require_key=False)
                async with lease as inst:
                    console.print(f"[bold]running[/]   {inst.instance_id} at", end="")
                    is_wide = len(f"running   {inst.instance_id} at {inst.base_url}") <= console.width
                    console.print(f"{' ' if is_wide else chr(10)}{inst.base_url}", soft_wrap=True)
                    await _chat(console, inst, emulator.api_key, prompt)
                    console.print("[bold]release[/]   stop, delete, and confirm that it is gone ...")
            balance = await client.user.balance()
        _print_receipt(console, emulator, balance)
    _print_next_steps(console)


async def _chat(console: Console, inst: InstanceLease, api_key: str, prompt: str) -> None:
    from rich.markup import escape  # noqa: PLC0415  (slow to import)

    console.print(f"[bold]you[/]       {escape(prompt)}")
    console.print("[bold]model[/]     ", end="")
    column, word = len("model     "), ""

    def print_word() -> None:
        nonlocal column
        if column + len(word) > console.width:
            console.print()
            column = 0
        console.print(word, end="", markup=False, soft_wrap=True)
        column += len(word)

    async with inst.openai(api_key=api_key) as llm:
        chunks = await llm.chat.completions.create(
            model=inst.model, messages=[{"role": "user", "content": prompt}], stream=True
        )
        async for chunk in chunks:
            for choice in chunk.choices:
                *complete, rest = re.split("(?<= )", choice.delta.content or "")
                for part in complete:
                    word += part
                    print_word()
                    word = ""
                word += rest
    print_word()
    console.print()


def _print_receipt(console: Console, emulator: Emulator, balance: Balance) -> None:
    from rich.table import Table  # noqa: PLC0415  (slow to import)

    currency = balance.currency
    table = Table(title="emulator receipt", title_justify="left", box=None, show_header=False)
    for entry in emulator.ledger:
        table.add_row("instance", f"{entry.instance_id} ({entry.status})")
        workers = count(entry.num_workers, "worker")
        table.add_row("billed", f"{entry.seconds:.1f} s, {entry.billing_interval}, {workers}")
        table.add_row("cost", f"{format_money(entry.cost, currency)} (not real money)")
    table.add_row("balance", format_money(balance.current_balance, currency))
    remaining = len(emulator.existing)
    table.add_row(
        "left", count(remaining, "instance") if remaining else "nothing; no instance exists or is billed"
    )
    console.print()
    console.print(table)


def _print_next_steps(console: Console) -> None:
    from .environment import CREDENTIALS  # noqa: PLC0415  (only to run it)

    if all(os.environ.get(name, "").strip() for name in CREDENTIALS):
        steps = {
            "doctor": "check your account and this machine",
            "models": "list what you can rent, with prices",
            "help run": "run your program on an instance",
        }
    else:
        steps = {
            "emulator": "start the emulator to practice in other terminals",
            "models": "list models and prices (no account needed)",
            "help run": "run your program on an instance",
            "doctor": "check your setup, once you have an account",
        }
    rows = [(f"{program()} {arguments}", meaning) for arguments, meaning in steps.items()]
    console.print("\n[bold]What to try next[/]")
    width = max(len(command) for command, _ in rows)
    for command, meaning in rows:
        line = f"  {command:{width}}  {meaning}"
        if len(line) > console.width:
            first, *rest = wrap_example(command, console.width - 6)
            lines = [f"  {first}", *(f"      {each}" for each in rest), wrap(meaning, console.width, "    ")]
            line = "\n".join(lines)
        console.print(line, markup=False)
