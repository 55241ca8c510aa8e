"""`cortecs-async batch`: answer a file of requests on temporary instances."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import attrs
import click

from .. import AsyncCortecs
from ..signals import cancel_on_sigterm
from ..types import BatchPlan, BatchReport
from .batch_display import BatchDisplay, LineDisplay, LiveDisplay, format_duration, format_number
from .options import (
    amount,
    context_length_option,
    duration,
    json_option,
    max_lifetime_option,
    start_timeout_option,
    workers_option,
)
from .output import (
    format_money,
    is_quiet,
    print_facts,
    print_json,
    print_note,
    sanitize,
    stderr_console,
)
from .runtime import run_async, termination_signals

SOME_REQUESTS_FAILED = 3

# Tokens per second of one instance, for the estimate. The real speed depends on the model, the hardware and
# the texts, and is unknown beforehand.
_SPEEDS = (500, 2_500, 10_000)

_PLAN_ARGUMENTS = (
    *("input", "output", "model_id", "hardware_type_id", "context_length", "num_workers", "instances"),
    *("retry_failed", "override_model"),
)


def _parse_concurrency(value: str) -> int | str:
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f'concurrency "{value}" is invalid (examples: auto, 1, 64)')
    return int(value)


@click.command()
@click.argument("input", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Write the answers to this file."
)
@click.option("-m", "--model", "model_id", required=True, help="Use this model: org/name or org--name.")
@click.option(
    "--hardware",
    "hardware_type_id",
    help="Use this hardware type instead of the one recommended for the model.",
)
@workers_option
@context_length_option
@click.option("--instances", type=click.IntRange(min=1), default=1, help="Start this many instances.")
@click.option(
    "--concurrency",
    type=_parse_concurrency,
    metavar="AUTO|N",
    default="auto",
    help="Send this many requests in parallel to each instance; auto finds the best number.",
)
@click.option(
    "--max-cost", type=amount, help="Limit the cost of all instances together, in the account's currency."
)
@max_lifetime_option
@start_timeout_option
@click.option(
    "--request-timeout",
    type=duration,
    default="10m",
    help="Time out each attempt of a request after this time.",
)
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    default=5,
    help="Retry a failed request this many times before it becomes an error line.",
)
@click.option("--ordered", is_flag=True, help="Sort the output in the order of the input at the end.")
@click.option(
    "--retry-failed", is_flag=True, help="Retry the requests that have an error line in the output."
)
@click.option("--override-model", is_flag=True, help="Use the model even for requests that name another one.")
@click.option("--dry-run", is_flag=True, help="Check the files and estimate the cost, but start nothing.")
@json_option("Print the receipt or the estimate as JSON.")
def batch(*, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Answer a file of requests on temporary instances.

    INPUT has the format of OpenAI's Batch API: one JSON object per line, with custom_id, method, url and
    body, for chat completions, completions and embeddings. The output has a line for each request: the
    response or the error.

    Each answer is saved before it is counted. However a run ends, the instances are deleted, and the same
    command continues where it stopped.

    \b
    Exit codes:
      0   every request has an answer
      3   every request has a line, and some are errors
      1   not finished; run the same command again
    """  # noqa: D301  (\b keeps click from wrapping a paragraph)
    if dry_run:
        plan = run_async(_plan, options)
        print_json(plan) if as_json else print_facts(_plan_facts(sanitize(plan)))
        return
    display = _new_display()
    try:
        report = run_async(_batch, options, display)
    except (SystemExit, click.ClickException):
        last = display.last
        if last is not None and 0 < last.done < last.total:
            print_note(
                f"{last.done:,} of {last.total:,} requests are answered and saved. "
                "Run the same command again to continue."
            )
        raise
    if as_json:
        print_json({**attrs.asdict(report, recurse=False), "cost": report.cost, "currency": report.currency})
    elif not is_quiet():
        print_facts(_report_facts(sanitize(report)))
    if report.failed:
        sys.exit(SOME_REQUESTS_FAILED)


def _new_display() -> BatchDisplay:
    if is_quiet():
        return BatchDisplay()
    console = stderr_console()
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


async def _batch(options: dict[str, Any], display: BatchDisplay) -> BatchReport:
    # The reaper is required, because it deletes the instances if this process is killed.
    async with cancel_on_sigterm(*termination_signals()), AsyncCortecs(guard="required") as client:
        with display:
            return await client.run_batch(
                **options,
                on_progress=display.progress,
                on_provisioning=lambda progress: display.provisioning(sanitize(progress)),
            )


async def _plan(options: dict[str, Any]) -> BatchPlan:
    async with AsyncCortecs(guard="off") as client:
        return await client.plan_batch(**{name: options[name] for name in _PLAN_ARGUMENTS})


def _report_facts(report: BatchReport) -> list[tuple[str, str]]:
    facts = [
        ("answered", f"{report.succeeded:,} of {report.total:,}"),
        ("failed", f"{report.failed:,}, each with an error line" if report.failed else "0"),
        ("resumed", f"{report.resumed:,} from earlier runs" if report.resumed else ""),
        ("output", report.output),
    ]
    if not report.receipts:
        return [*facts, ("nothing to do", "no instance was started")]
    new = report.succeeded + report.failed - report.resumed
    rate = format_number(new / report.seconds) if report.seconds else "0"
    cost = "unknown" if report.cost is None else f"about {format_money(report.cost, report.currency)}"
    return [
        *facts,
        ("time", f"{format_duration(report.seconds)}, {rate} answers/s from first start to last release"),
        ("tokens", f"{report.prompt_tokens:,} read, {report.completion_tokens:,} written"),
        *((f"instance {number}", str(receipt)) for number, receipt in enumerate(report.receipts, 1)),
        ("cost", cost),
        *(("incident", incident) for incident in report.incidents),
        ("left running", "only what an incident names" if report.incidents else "nothing"),
    ]


def _plan_facts(plan: BatchPlan) -> list[tuple[str, str]]:
    workers = "" if plan.num_workers == 1 else f", {plan.num_workers} workers each"
    hardware = {True: "available now", False: "NOT available now", None: "availability unknown"}
    written = plan.max_completion_tokens
    balance = plan.balance
    return [
        ("requests", f"{plan.total:,}, {plan.left:,} remaining"),
        ("error lines", f"{plan.failed:,} (--retry-failed retries them)" if plan.failed else ""),
        ("model", plan.model),
        ("hardware", f"{plan.hardware_type_id or 'unknown'}, {hardware[plan.is_available]}"),
        ("instances", f"{plan.instances}{workers}"),
        ("prompts", f"about {plan.prompt_tokens:,} tokens in total (one per four characters)"),
        (
            "answers",
            "unlimited in at least one request"
            if written is None
            else f"at most {written:,} tokens in total",
        ),
        ("longest", _longest(plan)),
        ("price", _price(plan)),
        ("balance", "" if balance is None else format_money(balance, plan.balance_currency)),
        *_estimates(plan),
    ]


def _longest(plan: BatchPlan) -> str:
    text = f"line {plan.longest_line:,}, about {plan.longest_tokens:,} tokens including its answer"
    if plan.context_length is None:
        return text
    verdict = "MORE THAN" if plan.longest_tokens > plan.context_length else "within"
    return f"{text}, {verdict} the context of {plan.context_length:,}"


def _price(plan: BatchPlan) -> str:
    price = plan.price_per_minute
    if price is None:
        return "unknown"
    return f"{price:.4g} {plan.currency} per minute, {60 * price:.2f} per hour (all instances and workers)"


def _estimates(plan: BatchPlan) -> list[tuple[str, str]]:
    written = plan.max_completion_tokens
    if not written or not plan.left or plan.price_per_minute is None:
        return []
    remaining_tokens = written * plan.left / plan.total
    facts: list[tuple[str, str]] = []
    for speed in _SPEEDS:
        seconds = remaining_tokens / speed / plan.instances
        cost = format_money(max(math.ceil(seconds / 60), 1) * plan.price_per_minute, plan.currency)
        estimate = f"{format_duration(seconds)}, {cost}, plus the start, if all answers reach their limit"
        facts.append((f"at {speed:,} tokens/s", estimate))
    return facts
