"""The command line. Uses the public API only."""

from __future__ import annotations

import click

from .. import __version__
from ._demo import demo
from ._emulator import emulator
from ._orphans import orphans, sweep


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cortecs-async")
def cli() -> None:
    """Dedicated LLM instances on cortecs.ai that do not outlive the code that asked for them."""


cli.add_command(demo)
cli.add_command(emulator)
cli.add_command(orphans)
cli.add_command(sweep)
