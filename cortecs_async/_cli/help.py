"""`cortecs-async help`: the help of the program, or of one command."""

from __future__ import annotations

import click

from .command import Group, cli_command


@cli_command(examples=("cortecs-async help", "cortecs-async help run"))
@click.argument("name", metavar="[COMMAND]", required=False)
@click.pass_context
def help_(ctx: click.Context, /, name: str | None) -> None:
    """Show the help of a command, or of cortecs-async."""
    root = ctx.find_root()
    shown = root
    if name is not None:
        assert isinstance(root.command, Group)  # noqa: S101  (for the type checker)
        _, found, _ = root.command.resolve_command(root, [name])
        assert found is not None  # noqa: S101  (for the type checker)
        shown = found.context_class(found, parent=root, info_name=name)
    click.echo(shown.get_help())
