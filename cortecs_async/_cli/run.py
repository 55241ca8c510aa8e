"""`cortecs-async run`: an instance for as long as a command runs."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import anyio
import click

from .. import AsyncCortecs, CortecsError
from ..signals import cancel_on_sigterm
from .child_process import CannotRunError, Child, check_command
from .options import DURATION, limit_options, start_options
from .output import clean, ending_signals, is_verbose, provisioning, reason, say, say_what_is_left
from .output import run as run_async

if TYPE_CHECKING:
    from .. import InstanceLease

LEASE_FAILED = 125

# What a command needs for inference, it is given; what could start instances is not its business.
_SECRETS = frozenset({"CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"})
_COMMAND = "cortecs_async.command"


class _WithCommand(click.Command):
    """Keeps what stands behind `--` apart: click itself would not tell HARDWARE from COMMAND."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, command = args, list[str]()
        if "--" in args:
            at = args.index("--")
            own, command = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, own)
        if not command and not ctx.resilient_parsing:
            raise click.UsageError("which command? Put it behind --: run MODEL -- python script.py", ctx)
        ctx.meta[_COMMAND] = command
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND [ARGS]..."]


@click.command(cls=_WithCommand)
@start_options
@limit_options
@click.option(
    "--start-timeout", type=DURATION, default="15m", show_default=True, help="How long the start may take."
)
@click.option(
    "--teardown-timeout",
    type=DURATION,
    default="2m",
    show_default=True,
    help="How long the release may take.",
)
@click.option(
    "--reuse", is_flag=True, help="Take an instance like this that exists, and leave it as it was found."
)
@click.pass_context
def run(ctx: click.Context, /, model: str, hardware: str | None, **options: Any) -> None:
    """Lease an instance for as long as a command runs: run MODEL -- python script.py.

    \b
    The command finds in its environment:
      OPENAI_BASE_URL, OPENAI_API_KEY   what OpenAI clients read by themselves; the key is
                                        CORTECS_API_KEY, or else OPENAI_API_KEY
      OPENAI_MODEL, CORTECS_MODEL       the name to give as model
      CORTECS_INSTANCE_ID               the instance
    CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET are taken out of it.

    Signals go to the command. When it has ended, the instance is deleted and read to be gone. When the
    instance is lost or its time is up, the command gets SIGTERM, and SIGKILL 10 s later.

    \b
    Exits with the status of the command (128 + n if signal n ended it), or
      125   the lease failed        126   the command cannot be run
      127   there is no such command
    """  # noqa: D301  (click's mark for text that is not to be wrapped)
    command: list[str] = ctx.meta[_COMMAND]
    try:
        check_command(command[0])
    except CannotRunError as error:
        _fail(str(error))
        sys.exit(error.status)
    if not (os.environ.get("CORTECS_API_KEY") or os.environ.get("OPENAI_API_KEY")):
        _fail(
            "no key for inference: set CORTECS_API_KEY or OPENAI_API_KEY. It is a key of its own from "
            "cortecs.ai, beside the client id and secret. Nothing was started."
        )
        sys.exit(LEASE_FAILED)
    options["num_workers"] = options.pop("workers")
    sys.exit(run_async(_run, command, model, hardware, options))


async def _run(command: list[str], model: str, hardware: str | None, options: dict[str, Any]) -> int:
    status = LEASE_FAILED
    lease: InstanceLease | None = None
    try:
        # While the command runs, the signals are its own: see `Child`. And somebody must hand the
        # instance back after a `kill -9`.
        async with cancel_on_sigterm(*ending_signals()), AsyncCortecs(guard="required") as client:
            try:
                with provisioning() as on_progress:
                    leased = client.instance(model, hardware, on_progress=on_progress, **options)
                    async with leased as lease:
                        status = await _serve(command, lease)
            except anyio.get_cancelled_exc_class() as cancelled:
                say_what_is_left(cancelled)
                _say_receipt(lease, status)
                raise
    except CortecsError as error:
        _fail(reason(error))
        status = LEASE_FAILED
    _say_receipt(lease, status)
    return status


def _say_receipt(lease: InstanceLease | None, status: int) -> None:
    # The log has it otherwise, unless the release failed.
    if lease is not None and (status == LEASE_FAILED or not is_verbose()):
        say(f"{lease.instance_id}: {lease.receipt}")


async def _serve(command: list[str], lease: InstanceLease) -> int:
    if not is_verbose():  # the log has it
        say(f"{lease.instance_id} runs at {lease.base_url}")
    try:
        async with Child(command, _environment(lease)) as child:
            return await child.wait()
    except CannotRunError as error:
        _fail(str(error))
        return error.status
    finally:
        say(f"releasing {lease.instance_id}")


def _environment(lease: InstanceLease) -> dict[str, str]:
    endpoint = lease.openai_kwargs()
    return {
        **{name: value for name, value in os.environ.items() if name not in _SECRETS},
        "OPENAI_BASE_URL": endpoint["base_url"],
        "OPENAI_API_KEY": endpoint["api_key"],
        "OPENAI_MODEL": lease.model,
        "CORTECS_MODEL": lease.model,
        "CORTECS_INSTANCE_ID": lease.instance_id,
    }


def _fail(problem: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(clean(f"cortecs-async run: {problem}"), err=True)
