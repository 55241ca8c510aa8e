"""`python -m cortecs_async` and the `cortecs-async` command."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line, or print what to install for it."""
    try:
        _open_closed_files()
        _run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OSError as error:
        _fail(error)
    finally:
        _discard_stderr()


def _run() -> None:
    try:
        from ._cli import cli  # noqa: PLC0415  (optional dependencies)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"click", "dotenv", "rich"}:
            raise
        package = {"dotenv": "python-dotenv"}.get(missing, missing)
        sys.exit(f"The command line needs {package}: python -m pip install 'cortecs-async[cli]'")
    cli(prog_name="cortecs-async")


def _open_closed_files() -> None:
    """Open standard files that are closed (`>&-`). A socket would get their numbers and their output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest free number, which is its own. The command of `run` inherits it.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115  (for as long as we run)
            os.set_inheritable(stream.fileno(), True)  # noqa: FBT003  (positional-only)
            setattr(sys, name, stream)


def _discard_stderr() -> None:
    """Discard output that standard error cannot take. Otherwise Python fails at exit, with its own status."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _fail(error: OSError) -> None:
    """Exit because of an error of the system, such as a full disk."""
    try:
        sys.stderr.write(f"Error: {error}\n")
        sys.stderr.flush()
    except OSError:
        pass  # standard error cannot be written either
    # Otherwise, flushing the buffers at exit would fail again, with Python's own message and status.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    sys.exit(1)


if __name__ == "__main__":
    main()
