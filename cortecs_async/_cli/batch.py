"""`cortecs-async batch`: a file of prompts, a file of answers, and no GPU that stays on."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click

from .. import AsyncCortecs
from ..signals import cancel_on_sigterm
from ..types import BatchPlan, BatchProgress, BatchReport
from .batch_display import Bars, Lines, Silent, View, duration, number
from .options import DURATION, MONEY
from .output import (
    cleaned,
    ending_signals,
    errors,
    is_quiet,
    print_json,
    run,
    say,
    to_plain,
)

INCOMPLETE_ANSWERS = 3

# Tokens a second that an instance might write, for the estimate: which one it is depends on model, hardware
# and texts, and nobody knows it before.
_SPEEDS = (500, 2_500, 10_000)


class _Concurrency(click.ParamType[int | str]):
    name = "auto|N"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text == "auto":
            return text
        if not text.isdecimal() or int(text) < 1:
            self.fail(f"{value!r} is neither auto nor a number of at least 1", param, ctx)
        return int(text)


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path), help="Where the answers go."
)
@click.option("-m", "--model", required=True, help="org/name, or org--name.")
@click.option("--hardware", help="Hardware type. Default: the one that is recommended for the model.")
@click.option(
    "--workers",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Of each instance; each has a GPU set to itself, and is billed for it.",
)
@click.option("--context-length", type=click.IntRange(min=1), help="Longest context, in tokens.")
@click.option(
    "--instances", type=click.IntRange(min=1), default=1, show_default=True, help="How many share the work."
)
@click.option(
    "--concurrency",
    type=_Concurrency(),
    default="auto",
    show_default=True,
    help="Requests at once on each instance; auto finds out how many are best.",
)
@click.option(
    "--max-cost", type=MONEY, help="What all instances may cost together, in the account's currency."
)
@click.option("--max-lifetime", type=DURATION, help="How long an instance may live: 90s, 15m, 1h30m.")
@click.option(
    "--start-timeout", type=DURATION, default="15m", show_default=True, help="For an instance to run."
)
@click.option(
    "--request-timeout", type=DURATION, default="10m", show_default=True, help="For one attempt of a request."
)
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Attempts that may fail after the first, before a request becomes an error line.",
)
@click.option("--ordered", is_flag=True, help="Put the output into the order of the input at the end.")
@click.option("--retry-failed", is_flag=True, help="Ask again what has an error line in the output.")
@click.option("--override-model", is_flag=True, help="Ask for this model also where a line names another.")
@click.option("--dry-run", is_flag=True, help="Check everything, print an estimate, and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt, or the estimate, as JSON.")
def batch(*, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Answer a file of requests, on instances that live as long as that takes.

    INPUT has the format of OpenAI's Batch API: a JSON object a line, with custom_id, method, url and
    body, for chat completions, completions and embeddings. The output has a line for each: the
    response, or the error.

    An answer is on the disk when it is counted. Whatever ends a run, the instances are handed back, and the
    same command goes on from there.

    \b
    Exits with
      0   when every request has an answer
      3   when every request has a line, and some of them are errors
      1   when it could not be finished: run it again
    """  # noqa: D301  (click's mark for text that is not to be wrapped)
    if dry_run:
        plan = run(_plan, options)
        print_json(plan) if as_json else _show_plan(cleaned(plan))
        return
    view = _new_view()
    try:
        report = run(_batch, options, view)
    except (SystemExit, click.ClickException):
        _say_how_far(view.last)
        raise
    if as_json:
        print_json({**to_plain(report), "cost": report.cost, "currency": report.currency})
    elif not is_quiet():
        _show_report(cleaned(report))
    if report.failed:
        sys.exit(INCOMPLETE_ANSWERS)


def _new_view() -> View:
    if is_quiet():
        return Silent()
    console = errors()
    return Bars(console) if console.is_terminal else Lines(console)


async def _batch(options: dict[str, Any], view: View) -> BatchReport:
    # There must be somebody to hand the instances back, whatever happens to this process.
    async with cancel_on_sigterm(*ending_signals()), AsyncCortecs(guard="required") as client:
        with view:
            return await client.run_batch(
                *_places(options),
                context_length=options["context_length"],
                num_workers=options["workers"],
                instances=options["instances"],
                concurrency=options["concurrency"],
                max_cost=options["max_cost"],
                max_lifetime=options["max_lifetime"],
                start_timeout=options["start_timeout"],
                request_timeout=options["request_timeout"],
                max_retries=options["max_retries"],
                ordered=options["ordered"],
                retry_failed=options["retry_failed"],
                override_model=options["override_model"],
                on_progress=view.progress,
                on_provisioning=lambda progress: view.provisioning(cleaned(progress)),
            )


async def _plan(options: dict[str, Any]) -> BatchPlan:
    async with AsyncCortecs(guard="off") as client:
        return await client.plan_batch(
            *_places(options),
            context_length=options["context_length"],
            num_workers=options["workers"],
            instances=options["instances"],
            retry_failed=options["retry_failed"],
            override_model=options["override_model"],
        )


def _places(options: dict[str, Any]) -> tuple[Path, Path, str, str | None]:
    return options["source"], options["target"], options["model"], options["hardware"]


def _say_how_far(last: BatchProgress | None) -> None:
    if last is not None and 0 < last.done < last.total:
        done = f"{last.done:,} of {last.total:,}"
        say(f"{done} are answered and on the disk: the same command goes on from there")


def _show_report(report: BatchReport) -> None:
    rows = [
        ("answered", f"{report.succeeded:,} of {report.total:,}"),
        ("failed", f"{report.failed:,}, each with an error line" if report.failed else "0"),
        ("from before", f"{report.resumed:,}" if report.resumed else ""),
        ("output", report.output),
        ("time", _time(report)),
        ("tokens", f"{report.prompt_tokens:,} read, {report.completion_tokens:,} written"),
        *((f"instance {number}", str(each)) for number, each in enumerate(report.receipts, 1)),
        ("cost", "unknown" if report.cost is None else f"about {report.cost:.2f} {report.currency}".rstrip()),
        *(("incident", text) for text in report.incidents),
        ("left running", "nothing" if not report.incidents else "nothing but what an incident names"),
    ]
    if not report.receipts:
        rows = [*rows[:4], ("nothing to do", "no instance was started")]
    _show(rows)


def _time(report: BatchReport) -> str:
    new = report.succeeded + report.failed - report.resumed
    rate = number(new / report.seconds) if report.seconds else "0"
    return f"{duration(report.seconds)}, {rate} answers/s from the first start to the last release"


def _show_plan(plan: BatchPlan) -> None:
    workers = "" if plan.num_workers == 1 else f", {plan.num_workers} workers each"
    hardware = {True: "available now", False: "NOT available now", None: "availability unknown"}
    written = plan.max_completion_tokens
    rows = [
        ("requests", f"{plan.total:,}, of which {plan.left:,} are left"),
        ("error lines", f"{plan.failed:,}, which --retry-failed asks again" if plan.failed else ""),
        ("model", plan.model),
        ("hardware", f"{plan.hardware_type_id or 'unknown'}, {hardware[plan.is_available]}"),
        ("instances", f"{plan.instances}{workers}"),
        ("prompts", f"about {plan.prompt_tokens:,} tokens in all (a quarter of their characters)"),
        ("answers", "no limit in some request" if written is None else f"at most {written:,} tokens in all"),
        ("longest", _longest(plan)),
        ("price", "unknown" if plan.price_per_minute is None else _price(plan)),
        ("balance", "" if plan.balance is None else f"{plan.balance:.2f} {plan.balance_currency}"),
    ]
    _show([*rows, *_estimates(plan)])


def _longest(plan: BatchPlan) -> str:
    text = f"line {plan.longest_line:,}, about {plan.longest_tokens:,} tokens with its answer"
    if plan.context_length is None:
        return text
    verdict = "MORE THAN" if plan.longest_tokens > plan.context_length else "within"
    return f"{text}: {verdict} the context of {plan.context_length:,}"


def _price(plan: BatchPlan) -> str:
    price = plan.price_per_minute or 0.0
    return f"{price:.4g} {plan.currency} a minute, {60 * price:.2f} an hour, all instances and workers"


def _estimates(plan: BatchPlan) -> list[tuple[str, str]]:
    written = plan.max_completion_tokens
    if not written or not plan.left or plan.price_per_minute is None:
        return []
    left = written * plan.left / plan.total
    rows: list[tuple[str, str]] = []
    for speed in _SPEEDS:
        seconds = left / speed / plan.instances
        cost = max(math.ceil(seconds / 60), 1) * plan.price_per_minute
        said = f"{duration(seconds)}, {cost:.2f} {plan.currency}".rstrip()
        rows.append((f"at {speed:,} tokens/s", f"{said}, and the start, were all answers that long"))
    return rows


def _show(rows: list[tuple[str, str]]) -> None:
    shown = [(name, value) for name, value in rows if value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{click.style(f'{name:{width}}', bold=True)}  {value}")
