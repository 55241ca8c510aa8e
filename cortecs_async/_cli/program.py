"""The command line of this program: to run it again, and to name it in messages."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

import click

_ARGUMENTS = "cortecs_async.arguments"


def remember_arguments(ctx: click.Context, args: Sequence[str]) -> None:
    """Remember the command line, for `command_line`."""
    ctx.meta[_ARGUMENTS] = tuple(args)


def command_line(*more: str, without: str = "") -> str:
    """Return the command line of this program, to run it again.

    Args:
        *more: Arguments to add.
        without: An argument to leave out.
    """
    arguments = click.get_current_context().meta[_ARGUMENTS]
    arguments = [each for each in arguments if each != without]
    # Options end at `--`.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return " ".join([program(), *map(quote, [*arguments[:end], *more, *arguments[end:]])])


def program() -> str:
    """Return the words that make a shell run this program again."""
    from pathlib import Path  # noqa: PLC0415  (slow to import)

    if Path(sys.argv[0]).parts[-2:] == ("cortecs_async", "__main__.py"):
        return f"{quote(sys.orig_argv[0])} -m cortecs_async"
    return quote(_script())


def _script() -> str:
    """Return the name with which a shell finds this program, or its path if it is not on PATH."""
    import shutil  # noqa: PLC0415  (slow to import)
    from pathlib import Path  # noqa: PLC0415  (slow to import)

    path = Path(sys.argv[0])
    found = shutil.which("cortecs-async")
    is_script = path.name == "cortecs-async" and path.is_file()
    return str(path) if is_script and (found is None or not path.samefile(found)) else "cortecs-async"


def quote(text: str) -> str:
    """Quote a word for a shell. Unprintable characters are escaped for bash, ksh, and zsh."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(f"\\x{each:02x}" for each in os.fsencode(text))
    return f"$'{escaped}'"
