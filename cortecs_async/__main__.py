"""`python -m cortecs_async` and the `cortecs-async` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says what to install for it."""
    try:
        from ._cli import cli  # noqa: PLC0415  (optional dependencies)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"click", "dotenv", "rich"}:
            raise
        package = {"dotenv": "python-dotenv"}.get(missing, missing)
        sys.exit(f"The command line needs {package}: python -m pip install 'cortecs-async[cli]'")
    cli(prog_name="cortecs-async")


if __name__ == "__main__":
    main()
