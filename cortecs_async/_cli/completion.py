"""`cortecs-async completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from .command import cli_command

_NAME = "cortecs-async"
_VARIABLE = "_CORTECS_ASYNC_COMPLETE"
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@cli_command(
    examples=(
        'eval "$(cortecs-async completion bash)"',
        "cortecs-async completion fish | source",
    ),
    tables={
        "Startup files": (
            ("~/.bashrc", 'eval "$(cortecs-async completion bash)"'),
            ("~/.zshrc", 'eval "$(cortecs-async completion zsh)"'),
            ("~/.config/fish/config.fish", "cortecs-async completion fish | source"),
        )
    },
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print a shell script that completes commands and options.

    Load it in your shell's startup file. Completion does not send any requests to the service.
    """
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, _NAME, _VARIABLE).source())
