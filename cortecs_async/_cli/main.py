"""The command `cortecs-async` with its options and subcommands."""

from __future__ import annotations

import click

from .. import __version__
from .account import balance, hardware, models
from .batch import batch
from .command import Group
from .completion import completion
from .costs import costs
from .demo import demo
from .doctor import doctor
from .emulator import emulator
from .global_options import GLOBAL_OPTIONS
from .help import help_
from .instances import ls, rm, show, stop
from .login import login, logout
from .orphans import orphans, sweep
from .run import run
from .shared import down, ps, up, url
from .start import restart, start
from .top.command import top
from .watch import watch

_GROUPS = {
    "Rent and use": (run, batch, start, restart),
    "Share by name": (up, url, ps, down),
    "Your instances": (ls, show, watch, top),
    "Clean up": (stop, rm, orphans, sweep),
    "Catalog and account": (models, hardware, balance, costs),
    "Set up and try": (demo, login, logout, doctor, emulator, completion, help_),
}


@click.group(
    cls=Group,
    groups=_GROUPS,
    params=list(GLOBAL_OPTIONS),
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="cortecs-async")
def cli(**_: object) -> None:
    """Rent dedicated LLM instances on cortecs.ai and release them when your code ends."""
