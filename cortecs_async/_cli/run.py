"""`cortecs-async run`: lease an instance for as long as a command runs."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

import cortecs_async

from ..errors import ConfigurationError, CortecsError
from .command import Command, cli_command
from .display import start_progress
from .options import Hardware, duration, limit_options, ready_option, start_options, start_timeout_option
from .output import (
    error_text,
    is_verbose,
    print_help_lines,
    print_note,
    print_nothing_left,
    print_warning,
)
from .program import quote
from .runtime import cancel_on_signals, run_async

if TYPE_CHECKING:
    from .. import InstanceLease

LEASE_FAILED = 125

_COMMAND = "cortecs_async.command"

_TYPE = r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+"
_HARDWARE = re.compile(rf"cheapest|{_TYPE}(,{_TYPE})*")


class _RunCommand(Command):
    """Splits off the user's command. Otherwise, click would parse its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, command = self._split(ctx, args)
        rest = super().parse_args(ctx, own)
        if not command and not ctx.resilient_parsing:
            raise click.UsageError(
                "Missing command. Put it after the model: cortecs-async run MODEL python script.py", ctx
            )
        ctx.meta[_COMMAND] = command
        return rest

    def _split(self, ctx: click.Context, args: list[str]) -> tuple[list[str], list[str]]:
        """Split the arguments into the arguments of `run` and the command.

        The command begins after `--`. Without `--`, it begins with the second word that is neither an option
        nor an option's value. However, a word is the hardware if `--` comes next, or if it looks like
        hardware and is not the name of a program.
        """
        words = self._words(ctx, args)
        if len(words) < 2:
            return _at_separator(args, len(args))
        second = words[1]
        end = words[2] if len(words) > 2 else len(args)
        word = args[second]
        has_separator = "--" in args[second:end]
        if has_separator and not _HARDWARE.fullmatch(word) and _is_program(word):
            fixed = " ".join(map(quote, [*args[:second], "--", *args[second:]]))
            raise click.UsageError(
                f"{word} is a program. Put -- before the command: cortecs-async run {fixed}", ctx
            )
        if has_separator or is_hardware(word):
            return _at_separator(args, end, start=second)
        return args[:second], args[second:]

    def _words(self, ctx: click.Context, args: list[str]) -> list[int]:
        """Return the positions of the words before `--` that are neither our options nor their values."""
        takes_value = {
            name: not (each.is_flag or each.count)
            for each in self.get_params(ctx)
            if isinstance(each, click.Option)
            for name in (*each.opts, *each.secondary_opts)
        }
        found: list[int] = []
        position = 0
        while position < len(args) and args[position] != "--" and len(found) < 3:
            name = args[position]
            if not name.startswith("-") or name == "-":
                found.append(position)
            elif takes_value.get(name):
                position += 1
            position += 1
        return found

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[--] COMMAND [ARGS]..."]


def _at_separator(args: list[str], end: int, start: int = 0) -> tuple[list[str], list[str]]:
    """Split at the first `--` after `start`, which is dropped. If there is none, split at `end`."""
    if "--" in args[start:]:
        at = args.index("--", start)
        return args[:at], args[at + 1 :]
    return args[:end], args[end:]


def is_hardware(word: str) -> bool:
    """Return whether a word selects hardware, such as NVIDIA_H100_1, and is not the name of a program."""
    return _HARDWARE.fullmatch(word) is not None and not _is_program(word)


def _is_program(word: str) -> bool:
    import shutil  # noqa: PLC0415  (slow to import)

    return shutil.which(word) is not None


@cli_command(
    cls=_RunCommand,
    examples=(
        "cortecs-async run meta-llama/Llama-3.1-8B-Instruct python script.py",
        "cortecs-async run meta-llama/Llama-3.1-8B-Instruct NVIDIA_H100_1 --max-cost 5 -- python script.py",
    ),
    tables={
        "Environment of the command": (
            ("OPENAI_BASE_URL", "the URL of the instance"),
            ("OPENAI_API_KEY", "your inference API key"),
            ("OPENAI_MODEL, CORTECS_MODEL", "the name to pass as model"),
            ("CORTECS_INSTANCE_ID", "the id of the instance"),
        ),
        "Exit statuses": (
            ("n", "the command's own; 128 + n if it was killed by signal n"),
            ("125", "the instance did not start, was lost, reached a limit, or could not be deleted"),
            ("126", "the command is not executable"),
            ("127", "the command does not exist"),
        ),
    },
)
@start_options
@limit_options
@ready_option("answer")
@start_timeout_option
@click.option(
    "--teardown-timeout",
    type=duration,
    default="2m",
    help="Fail if the instance is not deleted within this time.",
)
@click.option(
    "--reuse", is_flag=True, help="Use a matching instance if there is one, and leave it as it was."
)
@click.pass_context
def run(ctx: click.Context, /, model: str, hardware: Hardware, **options: Any) -> None:
    """Start an instance, run a command, and delete the instance.

    Put the command after MODEL, or after HARDWARE and --. Options after the first word of the command belong
    to it.

    The command cannot use your provisioning credentials or profiles. Signals are forwarded to it. When it
    exits, the processes it started have 5 s to exit too; then they get SIGTERM, and SIGKILL 10 s later. The
    instance is deleted, and run returns once the service confirms that it is gone. If the instance is
    lost or reaches a limit, the command and its processes get SIGTERM, and SIGKILL 10 s later. If run
    itself is killed with kill -9, the command keeps running, but the instance is deleted.
    """
    from .child_process import CannotRunError, check_command  # noqa: PLC0415  (slow to import)
    from .environment import check_inference_key  # noqa: PLC0415  (only to run it)

    command: list[str] = ctx.meta[_COMMAND]
    try:
        check_command(command[0])
    except CannotRunError as error:
        word = command[0].upper()
        suggestion = f". Did you mean the hardware type {word}?" if is_hardware(word) else ""
        _print_error(f"{error}{suggestion}")
        sys.exit(error.exit_code)
    try:
        check_inference_key()
    except ConfigurationError as error:
        _print_error(f"{error}\nNo instance was started.")
        print_help_lines(error)
        sys.exit(LEASE_FAILED)
    sys.exit(run_async(_run, command, model, hardware, options))


async def _run(command: list[str], model: str, hardware: Hardware, options: dict[str, Any]) -> int:
    import anyio  # noqa: PLC0415  (slow to import)

    exit_code = LEASE_FAILED
    lease: InstanceLease | None = None
    try:
        # `ChildProcess` handles the signals while the command runs. The reaper is required, because it
        # deletes the instance if this process is killed.
        async with cancel_on_signals(), cortecs_async.AsyncCortecs(guard="required") as client:
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
        print_help_lines(error)
        exit_code = LEASE_FAILED
    finally:
        _print_receipt(lease, exit_code)
    return exit_code


def _print_receipt(lease: InstanceLease | None, exit_code: int) -> None:
    # With --verbose, the log contains it, unless the release failed.
    if lease is not None and (exit_code == LEASE_FAILED or not is_verbose()):
        print_note(f"{lease.instance_id}: {lease.receipt}")


async def _run_command(command: list[str], lease: InstanceLease) -> int:
    from .child_process import CannotRunError, ChildProcess  # noqa: PLC0415  (slow to import)

    if not is_verbose():  # with --verbose, the log contains it
        print_note(f"{lease.instance_id} is running at {lease.base_url}")
        if lease.receipt.hardware_reason:
            print_note(f"Hardware: {lease.receipt.hardware_type_id}, {lease.receipt.hardware_reason}")
    child = ChildProcess(command, _environment(lease))
    try:
        async with child:
            return await child.wait()
    except CannotRunError as error:
        _print_error(str(error))
        return error.exit_code
    finally:
        if child.left_behind:
            left = "1 process" if child.left_behind == 1 else f"{child.left_behind} processes"
            print_note(f"Terminated {left} left running by the command.")
        if child.unkillable:
            pids = " ".join(map(str, child.unkillable))
            print_warning(
                f"Could not kill these processes started by the command: {pids}. Kill them yourself."
            )
        print_note(f"Releasing {lease.instance_id} ...")


def _environment(lease: InstanceLease) -> dict[str, str]:
    """Return the environment of the command, with the inference variables and without credentials."""
    from .environment import CREDENTIALS  # noqa: PLC0415  (only to run it)

    endpoint = lease.openai_kwargs()
    return {
        **{
            name: value for name, value in os.environ.items() if name not in {*CREDENTIALS, "CORTECS_PROFILE"}
        },
        "CORTECS_CONFIG_FILE": os.devnull,
        "OPENAI_BASE_URL": endpoint["base_url"],
        "OPENAI_API_KEY": endpoint["api_key"],
        "OPENAI_MODEL": lease.model,
        "CORTECS_MODEL": lease.model,
        "CORTECS_INSTANCE_ID": lease.instance_id,
    }


def _print_error(text: str) -> None:
    print_warning(f"cortecs-async run: {text}")
