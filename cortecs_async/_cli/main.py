"""The command `cortecs-async` with its options and subcommands."""

from __future__ import annotations

import click

from .. import __version__
from .command import Group, Listed
from .global_options import GLOBAL_OPTIONS

# The module and the summary of each command. The summaries are here so that the help does not need to load
# the commands. A test compares them with the docstrings.
_GROUPS = {
    "Rent and use": {
        "run": Listed("run:run", "Start an instance, run a command, and delete the instance."),
        "batch": Listed("batch:batch", "Run a file of requests on temporary instances."),
        "start": Listed("start:start", "Start an instance that keeps running, and print its id."),
        "restart": Listed("start:restart", "Restart a stopped instance."),
    },
    "Share by name": {
        "up": Listed("shared:up", "Start an instance under a name, keep it running, and print its URL."),
        "url": Listed("shared:url", "Print the URL of an instance that was started under a name."),
        "ps": Listed("shared:ps", "List the instances on this machine that have a name."),
        "down": Listed("shared:down", "Delete an instance that was started under a name."),
    },
    "Your instances": {
        "ls": Listed(
            "instances:ls", "List all instances in the account, including the ones you did not start."
        ),
        "show": Listed("instances:show", "Show one instance."),
        "watch": Listed("watch:watch", "Watch instances until all are stopped or gone."),
        "top": Listed("top.command:top", "Monitor instances, costs, and owners in full screen."),
    },
    "Clean up": {
        "stop": Listed("instances:stop", "Stop instances and their billing."),
        "rm": Listed("instances:rm", "Delete instances."),
        "orphans": Listed("orphans:orphans", "List the instances that dead processes left behind."),
        "sweep": Listed("orphans:sweep", "Release the instances that dead processes left behind."),
    },
    "Catalog and account": {
        "models": Listed(
            "account:models", "List the models that you can start, or the hardware that a model runs on."
        ),
        "hardware": Listed(
            "account:hardware", "List the hardware types, their prices, and whether they are available now."
        ),
        "balance": Listed("account:balance", "Show the account balance."),
        "costs": Listed("costs:costs", "Show what the leases that ended on this machine cost."),
    },
    "Set up and try": {
        "demo": Listed("demo:demo", "Try a lease on the built-in emulator, without an account."),
        "login": Listed("login:login", "Store your credentials for all programs of this user."),
        "logout": Listed("login:logout", "Remove a stored profile and its secrets."),
        "doctor": Listed(
            "doctor:doctor",
            "Check your credentials, inference API key, and clock, the service, the journal, and the reaper.",
        ),
        "emulator": Listed("emulator:emulator", "Serve an emulated cortecs.ai until Ctrl-C."),
        "completion": Listed(
            "completion:completion", "Print a shell script that completes commands and options."
        ),
        "help": Listed("help:help_", "Show help for a command, or explain an error."),
    },
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
