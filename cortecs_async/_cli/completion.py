"""`cortecs-async completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_NAME = "cortecs-async"
_VARIABLE = "_CORTECS_ASYNC_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands and options.

    \b
    bash:  eval "$(cortecs-async completion bash)"         in ~/.bashrc
    zsh:   eval "$(cortecs-async completion zsh)"          in ~/.zshrc
    fish:  cortecs-async completion fish | source          in ~/.config/fish/config.fish

    Completion sends no requests to the service.
    """  # noqa: D301  (\b keeps click from wrapping a paragraph)
    shell_completion = get_completion_class(shell)
    if shell_completion is None:
        raise click.ClickException(f"This version of click does not support {shell}.")
    root = click.get_current_context().find_root().command
    click.echo(shell_completion(root, {}, _NAME, _VARIABLE).source())
