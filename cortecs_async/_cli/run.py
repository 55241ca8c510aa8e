"""`cortecs-async run`: an instance for as long as a command runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import anyio
import click

from .. import AsyncCortecs, ConfigurationError, CortecsError
from ..signals import cancel_on_sigterm
from .child_process import CannotRunError, ChildProcess, check_command
from .environment import CREDENTIALS, check_inference_key
from .options import duration, limit_options, start_options, start_timeout_option
from .output import error_text, is_verbose, print_note, print_nothing_left, print_warning, start_progress
from .runtime import run_async, termination_signals

if TYPE_CHECKING:
    from .. import InstanceLease

LEASE_FAILED = 125

_COMMAND = "cortecs_async.command"


class _RunCommand(click.Command):
    """Splits off the command after `--`. click itself cannot distinguish HARDWARE from COMMAND."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, command = args, list[str]()
        if "--" in args:
            at = args.index("--")
            own, command = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, own)
        if not command and not ctx.resilient_parsing:
            raise click.UsageError(
                "Missing command. Put it after --: cortecs-async run MODEL -- python script.py", ctx
            )
        ctx.meta[_COMMAND] = command
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- COMMAND [ARGS]..."]


@click.command(cls=_RunCommand)
@start_options
@limit_options
@start_timeout_option
@click.option(
    "--teardown-timeout",
    type=duration,
    default="2m",
    help="Fail if the instance is not deleted after this time.",
)
@click.option(
    "--reuse", is_flag=True, help="Use a matching instance if there is one, and leave it as it was."
)
@click.pass_context
def run(ctx: click.Context, /, model: str, hardware: str | None, **options: Any) -> None:
    """Start an instance, run a command, and delete the instance.

    Example: cortecs-async run MODEL -- python script.py

    \b
    The command gets these environment variables:
      OPENAI_BASE_URL               the URL of the instance
      OPENAI_API_KEY                your CORTECS_API_KEY or OPENAI_API_KEY
      OPENAI_MODEL, CORTECS_MODEL   the name to pass as model
      CORTECS_INSTANCE_ID           the id of the instance
    It does not get CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET.

    Signals are forwarded to the command. When the command ends, the instance is deleted, and run returns
    once the service confirms that it is gone. If the instance is lost or reaches a limit, the command gets
    SIGTERM, and SIGKILL 10 s later.

    \b
    Exits with the exit code of the command (128 + n if signal n ended it), or:
      125   the instance did not start, was lost, reached a limit, or could not be
            deleted
      126   the command is not executable
      127   the command does not exist
    """  # noqa: D301  (\b keeps click from wrapping a paragraph)
    command: list[str] = ctx.meta[_COMMAND]
    try:
        check_command(command[0])
    except CannotRunError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    try:
        check_inference_key()
    except ConfigurationError as error:
        _print_error(f"{error}\nNo instance was started.")
        sys.exit(LEASE_FAILED)
    sys.exit(run_async(_run, command, model, hardware, options))


async def _run(command: list[str], model: str, hardware: str | None, options: dict[str, Any]) -> int:
    exit_code = LEASE_FAILED
    lease: InstanceLease | None = None
    try:
        # `ChildProcess` handles the signals while the command runs. The reaper is required, because it
        # deletes the instance if this process is killed.
        async with cancel_on_sigterm(*termination_signals()), AsyncCortecs(guard="required") as client:
            try:
                with start_progress() as on_progress:
                    instance = client.instance(model, hardware, on_progress=on_progress, **options)
                    async with instance as lease:
                        exit_code = await _run_command(command, lease)
            except anyio.get_cancelled_exc_class() as cancelled:
                print_nothing_left(cancelled)
                raise
    except CortecsError as error:
        _print_error(error_text(error))
        exit_code = LEASE_FAILED
    finally:
        _print_receipt(lease, exit_code)
    return exit_code


def _print_receipt(lease: InstanceLease | None, exit_code: int) -> None:
    # With --verbose the log has it, unless the release failed.
    if lease is not None and (exit_code == LEASE_FAILED or not is_verbose()):
        print_note(f"{lease.instance_id}: {lease.receipt}")


async def _run_command(command: list[str], lease: InstanceLease) -> int:
    if not is_verbose():  # with --verbose the log has it
        print_note(f"{lease.instance_id} is running at {lease.base_url}")
    try:
        async with ChildProcess(command, _environment(lease)) as child:
            return await child.wait()
    except CannotRunError as error:
        _print_error(str(error))
        return error.exit_code
    finally:
        print_note(f"Releasing {lease.instance_id} ...")


def _environment(lease: InstanceLease) -> dict[str, str]:
    """Return the environment of the command, with the variables for inference and without credentials."""
    endpoint = lease.openai_kwargs()
    return {
        **{name: value for name, value in os.environ.items() if name not in CREDENTIALS},
        "OPENAI_BASE_URL": endpoint["base_url"],
        "OPENAI_API_KEY": endpoint["api_key"],
        "OPENAI_MODEL": lease.model,
        "CORTECS_MODEL": lease.model,
        "CORTECS_INSTANCE_ID": lease.instance_id,
    }


def _print_error(text: str) -> None:
    print_warning(f"cortecs-async run: {text}")
