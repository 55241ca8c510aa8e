"""`cortecs-async completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_NAME = "cortecs-async"
_VARIABLE = "_CORTECS_ASYNC_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that teaches a shell the commands and options.

    \b
    bash:  eval "$(cortecs-async completion bash)"         in ~/.bashrc
    zsh:   eval "$(cortecs-async completion zsh)"          in ~/.zshrc
    fish:  cortecs-async completion fish | source          in ~/.config/fish/config.fish

    Nothing is asked of the service while you type.
    """  # noqa: D301  (click's mark for text that is not to be wrapped)
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click knows no {shell}")
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, _NAME, _VARIABLE).source())
