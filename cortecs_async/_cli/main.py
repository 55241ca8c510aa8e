"""The command `cortecs-async` with its options and subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import __version__
from .account import balance, hardware, models
from .batch import batch
from .completion import completion
from .demo import demo
from .doctor import doctor
from .emulator import emulator
from .environment import load_env_file
from .instances import ls, rm, show, stop
from .orphans import orphans, sweep
from .run import run
from .runtime import (
    allow_log_level_from_environment,
    exit_interrupted,
    remember_arguments,
    set_up_logging,
)
from .start import restart, start
from .top.command import top
from .watch import watch


class _Group(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        remember_arguments(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        # Ctrl-C where no event loop runs. click itself would exit with 1.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            exit_interrupted()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="cortecs-async")
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Read CORTECS_* and OPENAI_API_KEY from this file, if they are not set in the environment. "
    "By default, only credentials are read, from .env.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
@click.option(
    "-v", "--verbose", count=True, show_default=False, help="Log each step; -vv logs every request."
)
def cli(env_file: Path | None, quiet: bool, verbose: int) -> None:
    """Rent dedicated LLM instances on cortecs.ai, and release them when your code ends."""
    set_up_logging(-1 if quiet else verbose)
    load_env_file(env_file)
    if not (quiet or verbose):
        allow_log_level_from_environment()


for _command in (
    *(run, batch, ls, show, watch, top, start, restart, stop, rm, models, hardware, balance),
    *(orphans, sweep, doctor, demo, emulator, completion),
):
    cli.add_command(_command)
