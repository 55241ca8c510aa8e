"""`cortecs-async completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

_NAME = "cortecs-async"
_VARIABLE = "_CORTECS_ASYNC_COMPLETE"
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print a script that completes commands and options.

    \b
    bash:  eval "$(cortecs-async completion bash)"         in ~/.bashrc
    zsh:   eval "$(cortecs-async completion zsh)"          in ~/.zshrc
    fish:  cortecs-async completion fish | source          in ~/.config/fish/config.fish

    Completion sends no requests to the service.
    """  # noqa: D301  (\b keeps click from wrapping a paragraph)
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, _NAME, _VARIABLE).source())
