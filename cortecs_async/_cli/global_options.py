"""The options of `cortecs-async` itself. They work before and after each command.

`GLOBAL_OPTIONS` is the only list of them. `Group` gives a hidden copy to each command, and `apply` applies
their values once the command line has been parsed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import click

from .options import JSON, profile_name

GLOBAL_OPTIONS = (
    click.Option(
        ["--env-file"],
        type=click.Path(dir_okay=False, exists=True),
        help="Read CORTECS_* and OPENAI_API_KEY from this file if they are not set in the environment. "
        "By default, only credentials are read, from .env.",
    ),
    click.Option(
        ["--profile"],
        type=profile_name,
        metavar="NAME",
        help="Stored profile to use instead of the environment variables and .env.",
    ),
    click.Option(["-q", "--quiet"], is_flag=True, help="Print only results and errors."),
    click.Option(
        ["-v", "--verbose"],
        count=True,
        show_default=False,
        help="Log each step; -vv logs every request.",
    ),
    click.Option(["--json", JSON], is_flag=True, help="Print the result as JSON."),
)

# Functions that join two values of an option. For all other options, the last value counts.
_JOINED: dict[str, Callable[[Any, Any], Any]] = {
    "quiet": lambda before, after: before or after,
    "verbose": lambda before, after: before + after,
    JSON: lambda before, after: before or after,
}


def accept_global_options(command: click.Command) -> None:
    """Let a command accept the global options that it does not define itself."""
    own = {name for each in command.params for name in each.opts}
    for option in GLOBAL_OPTIONS:
        if own.isdisjoint(option.opts):
            command.params.append(_after_the_command(option))
    for each in command.params:
        if "--profile" in each.opts:
            each.type = click.types.convert_type(profile_name)  # even for the one in `login`


def apply_global_options(ctx: click.Context) -> None:
    """Apply the global options of a command line before its command runs.

    Raises:
        click.UsageError: If the command has no --json.
    """
    # Only a command that runs needs these, not its help.
    from .environment import load_env_file, use_profile  # noqa: PLC0415
    from .log import allow_log_level_from_environment, set_up_logging  # noqa: PLC0415

    options = ctx.find_root().params
    if ctx.params.get(JSON):
        options[JSON] = True
    if options[JSON]:
        if JSON not in ctx.params:
            raise click.UsageError(f"`cortecs-async {ctx.info_name}` has no --json option.", ctx)
        ctx.params[JSON] = True
    quiet, verbose = options["quiet"], options["verbose"]
    set_up_logging(-1 if quiet else verbose)
    is_login = ctx.info_name in {"login", "logout"}
    # Credentials typed at `login` must not go to an address from a `.env` in the working directory.
    if options["env_file"] is not None or not (options["profile"] or is_login):
        load_env_file(options["env_file"])
    if options["profile"] and not is_login:
        use_profile(options["profile"])
    if not (quiet or verbose):
        allow_log_level_from_environment()


def _after_the_command(option: click.Option) -> click.Option:
    """Return a copy of a global option for a command. It sets the option for the whole command line."""
    hidden = copy.copy(option)
    hidden.hidden = True
    hidden.expose_value = False
    hidden.callback = _join
    return hidden


def _join(ctx: click.Context, option: click.Parameter, value: object) -> object:
    options, name = ctx.find_root().params, str(option.name)
    if name in _JOINED:
        options[name] = _JOINED[name](options.get(name) or type(value)(), value)
    elif value is not None:
        options[name] = value
    return value
