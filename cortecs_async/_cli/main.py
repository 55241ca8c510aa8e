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
from .output import interrupted, leave_log_level_to_environment, set_up_logging
from .run import run
from .start import restart, start
from .top.command import top
from .watch import watch


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        # Ctrl-C where no event loop runs: click's own way is status 1.
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            interrupted()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cortecs-async")
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Read CORTECS_... and OPENAI_API_KEY from this file; else from .env, if there is one. The "
    "environment wins.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
@click.option("-v", "--verbose", count=True, help="Say what happens; twice: every request.")
def cli(env_file: Path | None, quiet: bool, verbose: int) -> None:
    """Dedicated LLM instances on cortecs.ai that do not outlive the code that asked for them."""
    set_up_logging(-1 if quiet else verbose)
    load_env_file(env_file)
    if not (quiet or verbose):
        leave_log_level_to_environment()


cli.add_command(demo)
cli.add_command(emulator)
cli.add_command(orphans)
cli.add_command(sweep)
for _each in (balance, batch, completion, hardware, ls, models, restart, rm, run, show, start, stop, watch):
    cli.add_command(_each)
cli.add_command(doctor)
cli.add_command(top)
