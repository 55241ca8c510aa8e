"""`python -m cortecs_async` and the `cortecs-async` command."""

from __future__ import annotations

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Runs the command line, or says what to install for it."""
    try:
        _open_missing()
        _run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OSError as error:
        _fail(error)
    finally:
        _forget_lost_words()


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


def _open_missing() -> None:
    """Opens standard files that were closed (`>&-`): a socket would get their numbers, and their output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free, which is its own; the command of `run` needs it as well.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115  (for as long as we run)
            os.set_inheritable(stream.fileno(), True)  # noqa: FBT003  (it has no name)
            setattr(sys, name, stream)


def _forget_lost_words() -> None:
    """Drops what standard error could not be given: Python would fail on it, with a status of its own."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _fail(error: OSError) -> None:
    """Ends for what cannot be written, to a full disk for example."""
    try:
        sys.stderr.write(f"Error: {error}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody is left to be told
    # What is still in the buffers would fail once more, with Python's own words and status.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    sys.exit(1)


if __name__ == "__main__":
    main()
