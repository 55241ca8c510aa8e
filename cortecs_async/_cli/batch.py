"""`cortecs-async batch`: run a file of requests on temporary instances."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import cortecs_async

from ..errors import AmbiguousStartError, BatchWriteError, CortecsError
from .batch_display import BatchDisplay, LineDisplay, format_duration, format_number
from .command import cli_command
from .options import (
    amount,
    capacity_timeout_option,
    context_length_option,
    duration,
    hardware,
    hardware_help,
    idle_timeout_option,
    json_option,
    max_lifetime_option,
    max_price_option,
    project_option,
    ready_option,
    start_timeout_option,
    workers_option,
)
from .output import (
    error_text,
    format_money,
    is_quiet,
    print_facts,
    print_help_lines,
    print_json,
    print_note,
    print_warning,
    sanitize,
)
from .program import command_line, quote
from .runtime import FAILED, cancel_on_signals, run_async

if TYPE_CHECKING:
    from ..types import BatchPlan, BatchReport

SOME_REQUESTS_FAILED = 3

_NOTHING = "nothing"

# The beginning of a note about start requests that the service refused.
_NO_HARDWARE = "No hardware type could be used."

# Tokens per second of one instance, for the estimate. The real speed depends on the model, the hardware, and
# the texts, and is not known in advance.
_SPEEDS = (500, 2_500, 10_000)

_PLAN_ARGUMENTS = (
    *("input", "output", "model_id", "hardware_type_id", "context_length", "num_workers", "instances"),
    "max_price_per_hour",
    *("retry_failed", "override_model", "text", "system", "max_tokens", "temperature"),
)


def _parse_concurrency(value: str) -> int | str:
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f'concurrency "{value}" is invalid (examples: auto, 1, 64)')
    return int(value)


@cli_command(
    examples=(
        "cortecs-async batch prompts.jsonl -o answers.jsonl -m meta-llama/Llama-3.1-8B-Instruct --dry-run",
        "cortecs-async batch prompts.txt --text -o answers.jsonl -m org/name --max-cost 5",
    ),
    tables={
        "Exit statuses": (
            ("0", "every request has an answer"),
            ("3", "every request has a line, and some are errors"),
            ("1", "not finished; the message says how to continue"),
        )
    },
)
@click.argument("input", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Write the answers to this file."
)
@click.option("--text", is_flag=True, help="Read INPUT as plain text, one prompt per line.")
@click.option("--system", help="System prompt for requests without one.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Maximum tokens per answer, for requests that do not set a limit.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="Temperature for requests that do not set one.",
)
@click.option("-m", "--model", "model_id", required=True, help="Model to use: org/name or org--name.")
@click.option("--hardware", "hardware_type_id", type=hardware, metavar="TEXT", help=hardware_help)
@max_price_option
@capacity_timeout_option
@workers_option
@context_length_option
@click.option("--instances", type=click.IntRange(min=1), default=1, help="Number of instances to start.")
@click.option(
    "--concurrency",
    type=_parse_concurrency,
    metavar="AUTO|N",
    default="auto",
    help="Requests to send to each instance in parallel; auto finds the best number.",
)
@click.option(
    "--max-cost", type=amount, help="Maximum total cost of all instances, in the account's currency."
)
@max_lifetime_option
@idle_timeout_option
@ready_option("answer")
@start_timeout_option
@click.option(
    "--request-timeout",
    type=duration,
    default="10m",
    help="Timeout for each attempt of a request.",
)
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    default=5,
    help="Maximum retries of a request that keeps failing while others succeed.",
)
@click.option("--ordered", is_flag=True, help="At the end, sort the output into input order.")
@click.option(
    "--retry-failed", is_flag=True, help="Retry the requests that have an error line in the output."
)
@click.option(
    "--override-model", is_flag=True, help="Use the model even for requests that specify a different one."
)
@click.option(
    "--dry-run", is_flag=True, help="Check the files and estimate the cost without starting anything."
)
@project_option
@json_option("Print the report or the estimate as JSON.")
def batch(*, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run a file of requests on temporary instances.

    INPUT has one JSON object per line: a prompt ({"prompt": "..."}), messages ({"messages": [...]}), or an
    OpenAI Batch API request (custom_id, method, url, and body). With --text, each line is a prompt. The
    output has one line per request, with the response or the error.

    Each answer is saved before it is counted. If a run ends early, its instances are deleted, and the last
    lines show the command that continues the batch.
    """
    if dry_run:
        plan = run_async(_plan, options)
        print_json(plan) if as_json else print_facts(_plan_facts(sanitize(plan)))
        return
    sys.exit(run_async(_batch, options, _new_display(), as_json))


def _new_display() -> BatchDisplay:
    if is_quiet():
        return BatchDisplay()
    from .tables import stderr_console  # noqa: PLC0415  (slow to import)

    console = stderr_console()
    if not console.is_terminal:
        return LineDisplay(console)
    from .batch_live import LiveDisplay  # noqa: PLC0415  (only on a terminal)

    return LiveDisplay(console)


async def _batch(options: dict[str, Any], display: BatchDisplay, as_json: bool) -> int:
    """Run the batch, print how it ended, and return the status."""
    from ..types import BatchReport  # noqa: PLC0415  (slow to import)
    from .environment import check_inference_key  # noqa: PLC0415  (only to run it)

    check_inference_key()
    report: BatchReport | None = None
    # Including SIGINT, because asyncio raises the second Ctrl-C as a KeyboardInterrupt anywhere, even while
    # the last lines are printed.
    async with cancel_on_signals(*_interrupt()):
        try:
            # The reaper is required, because it deletes the instances if this process is killed.
            async with cortecs_async.AsyncCortecs(guard="required") as client:
                with display:
                    try:
                        report = await client.run_batch(
                            **options,
                            on_progress=display.progress,
                            on_provisioning=lambda progress: display.provisioning(sanitize(progress)),
                        )
                    except BaseException as error:
                        report = BatchReport.of(error)
                        raise
        except BaseException as error:
            _print_early_end(error, report)
            if as_json and report is not None:
                # A closed standard output must not hide the batch's outcome.
                with contextlib.suppress(OSError):
                    _print_report(report)
            if isinstance(error, CortecsError):
                return FAILED
            raise
        if as_json:
            _print_report(report)
        elif not is_quiet():
            print_facts(_report_facts(report))
    return SOME_REQUESTS_FAILED if report.failed else 0


def _interrupt() -> tuple[signal.Signals, ...]:
    """Return SIGINT, unless it is ignored."""
    return () if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else (signal.SIGINT,)


def _print_report(report: BatchReport) -> None:
    import attrs  # noqa: PLC0415  (loaded with the report)

    facts = {"cost": report.cost, "currency": report.currency, "left": report.left}
    print_json({**attrs.asdict(report, recurse=False), **facts})


def _print_early_end(error: BaseException, report: BatchReport | None) -> None:
    """Print why the batch ended early, its results, the rest, and how to continue."""
    if isinstance(error, CortecsError):
        print_warning(f"Error: {error_text(error)}")
        print_help_lines(error)
    else:
        print_note("Interrupted.")
    if report is None:
        if not isinstance(error, CortecsError):  # an error before anything is started explains itself
            print_note("No instance was started.")
    elif not is_quiet():
        print_facts(_report_facts(report, error), err=True)
    elif report.unreleased:
        print_warning(_left_running(report, error))


async def _plan(options: dict[str, Any]) -> BatchPlan:
    from .environment import check_inference_key  # noqa: PLC0415  (only to run it)

    check_inference_key()
    async with cortecs_async.AsyncCortecs(guard="off") as client:
        return await client.plan_batch(**{name: options[name] for name in _PLAN_ARGUMENTS})


def _report_facts(report: BatchReport, error: BaseException | None = None) -> list[tuple[str, str]]:
    """Return the facts about a batch. If it ended early, pass its `error`."""
    facts = [
        ("answered", f"{report.succeeded:,} of {report.total:,}"),
        ("failed", f"{report.failed:,}, each with an error line" if report.failed else "0"),
        ("left", "" if error is None else f"{report.left:,}"),
        ("resumed", f"{report.resumed:,} from earlier runs" if report.resumed else ""),
        ("output", report.output),
    ]
    if report.receipts:
        new = report.succeeded + report.failed - report.resumed
        rate = format_number(new / report.seconds) if report.seconds else "0"
        cost = "unknown" if report.cost is None else f"about {format_money(report.cost, report.currency)}"
        facts += [
            (
                "time",
                f"{format_duration(report.seconds)}, {rate} answers/s, including startup and release",
            ),
            ("tokens", f"{report.prompt_tokens:,} prompt, {report.completion_tokens:,} completion"),
            *((f"instance {number}", str(receipt)) for number, receipt in enumerate(report.receipts, 1)),
            ("cost", cost),
            *(("incident", incident) for incident in report.incidents),
        ]
    elif error is None:
        facts.append(("nothing to do", "no instance was started"))
    elif _left_running(report, error) == _NOTHING:
        facts.append(("cost", "none, because no instance was started"))
    if report.receipts or error is not None:
        facts.append(("left running", _left_running(report, error)))
    if error is not None:
        facts.append(("to continue", _continuation(report, error)))
    elif report.failed:
        facts.append(("to retry", command_line("--retry-failed", without="--retry-failed")))
    return facts


def _continuation(report: BatchReport, error: BaseException) -> str:
    # The batch has already removed the error lines to retry from the output.
    command = command_line(without="--retry-failed")
    if isinstance(error, BatchWriteError):
        saved, output = Path(error.path).absolute(), Path(report.output).absolute()
        if saved != output and saved.is_file():
            make = "" if output.parent.is_dir() else f"mkdir -p {quote(str(output.parent))} && "
            command = f"{make}mv {quote(str(saved))} {quote(str(output))} && {command}"
    # A comment, so that the line can be pasted.
    return f"{command}  # with the same standard input" if _reads_standard_input() else command


def _reads_standard_input() -> bool:
    return str(click.get_current_context().params.get("input")) == "-"


def _left_running(report: BatchReport, error: BaseException | None) -> str:
    if report.unreleased:
        ids = " ".join(report.unreleased)
        return f"{ids} MAY STILL BE BILLED. To release: cortecs-async rm --stop {ids}"
    # An unresolved start has no receipt, but the error, a note, or an incident mentions it.
    is_named = isinstance(error, AmbiguousStartError) or type(error) is CortecsError
    released = [each.instance_id for each in report.receipts]
    explained = (*released, "Nothing was started.")
    unexplained = [each for each in report.incidents if not any(text in each for text in explained)]
    notes = [each for each in getattr(error, "__notes__", ()) if _NO_HARDWARE not in each]
    if is_named or unexplained or notes:
        return "only the instances and start requests listed above"
    return _NOTHING


def _plan_facts(plan: BatchPlan) -> list[tuple[str, str]]:
    workers = "" if plan.num_workers == 1 else f", {plan.num_workers} workers each"
    hardware = {True: "available now", False: "NOT available now", None: "availability unknown"}
    reason = f" ({plan.hardware_reason})" if plan.hardware_reason else ""
    balance = plan.balance
    return [
        ("requests", f"{plan.total:,}, {plan.left:,} remaining"),
        ("error lines", f"{plan.failed:,} (--retry-failed retries them)" if plan.failed else ""),
        ("model", plan.model),
        ("hardware", f"{plan.hardware_type_id or 'unknown'}{reason}, {hardware[plan.is_available]}"),
        ("instances", f"{plan.instances}{workers}"),
        ("prompts", f"about {plan.prompt_tokens:,} tokens in total (one per four bytes)"),
        (
            "attachments",
            f"{plan.attachments:,}, with an unknown number of tokens" if plan.attachments else "",
        ),
        ("answers", _answers(plan)),
        ("longest", _longest(plan)),
        ("price", _price(plan)),
        ("balance", "" if balance is None else format_money(balance, plan.balance_currency)),
        *_estimates(plan),
    ]


def _answers(plan: BatchPlan) -> str:
    written, unlimited = plan.max_completion_tokens, plan.unlimited_answers
    text = "no upper bound is known" if written is None else f"at most {written:,} tokens in total"
    return f"{text}; {unlimited:,} are limited only by the context" if unlimited else text


def _longest(plan: BatchPlan) -> str:
    attachments = ", not counting attachments" if plan.attachments else ""
    text = (
        f"line {plan.longest_line:,}, about {plan.longest_tokens:,} tokens, including its answer "
        f"limit{attachments}"
    )
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
    written = plan.left_completion_tokens
    if not written or plan.price_per_minute is None:
        return []
    facts: list[tuple[str, str]] = []
    for speed in _SPEEDS:
        seconds = written / speed / plan.instances
        cost = format_money(max(math.ceil(seconds / 60), 1) * plan.price_per_minute, plan.currency)
        estimate = (
            f"{format_duration(seconds)}, {cost}, not counting startup, if every answer reaches its limit"
        )
        facts.append((f"at {speed:,} tokens/s", estimate))
    return facts
