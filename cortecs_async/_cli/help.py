"""`cortecs-async help`: the help of the program, of one command, or of one error."""

from __future__ import annotations

import re

import click
from click.shell_completion import CompletionItem

from .command import Group, cli_command
from .error_help import find_error, public_errors, similar_errors, summary, write_error
from .suggestions import did_you_mean

# A name that means a class, not a command.
_CLASS = re.compile(r"[a-z][A-Z]|(?i:error)$")


def _complete(ctx: click.Context, _argument: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete command and error names."""
    known = _group(ctx).summaries
    known |= {name: summary(each) for name, each in public_errors().items()}
    return [
        CompletionItem(name, help=meaning)
        for name, meaning in known.items()
        if name.lower().startswith(incomplete.lower())
    ]


@cli_command(examples=("cortecs-async help run", "cortecs-async help StartTimeoutError"))
@click.argument("name", metavar="[COMMAND|ERROR]", required=False, shell_complete=_complete)
@click.pass_context
def help_(ctx: click.Context, /, name: str | None) -> None:
    """Show help for a command, or explain an error.

    ERROR is the name of an error class. It appears in the last line of a traceback, and below the error
    messages of cortecs-async. `cortecs-async help errors` lists all errors.
    """
    root = ctx.find_root()
    if name is None:
        click.echo(root.get_help())
        return
    group = _group(ctx)
    error = None if name in group.summaries else find_error(name)
    if error is not None:
        formatter = ctx.make_formatter()
        write_error(error, formatter)
        click.echo(formatter.getvalue().rstrip("\n"))
        return
    if name.lower() == "errors":
        formatter = ctx.make_formatter()
        formatter.write_dl([(each, summary(found)) for each, found in sorted(public_errors().items())])
        click.echo(formatter.getvalue().rstrip("\n"))
        return
    if _CLASS.search(name) or not group.suggestions(name):
        suggested = (
            did_you_mean(similar_errors(name)) or " To list all errors, run `cortecs-async help errors`."
        )
        raise click.UsageError(f'"{name}" is not a command or an error.{suggested}', ctx)
    _, found, _ = group.resolve_command(root, [name])
    assert found is not None  # noqa: S101  (for the type checker)
    click.echo(found.context_class(found, parent=root, info_name=name).get_help())


def _group(ctx: click.Context) -> Group:
    group = ctx.find_root().command
    assert isinstance(group, Group)  # noqa: S101  (for the type checker)
    return group
