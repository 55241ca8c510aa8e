"""`python -m cortecs_async` and the `cortecs-async` command."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys

_INTERRUPTED = 130

# The extras of the commands that need more than `cli`.
_EXTRAS = {"demo": "demo", "emulator": "cli,emulator", "top": "tui"}


def main() -> None:
    """Run the command line, or print the packages it needs."""
    exit_code = _INTERRUPTED
    try:
        _open_missing_streams()
        _run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except OSError as error:
        exit_code = 1
        _fail(error)
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else 1
        raise
    finally:
        # The operating system frees the memory. Without this, Python searches all objects of all modules for
        # cycles when it exits, which takes as long as it took to load click.
        gc.freeze()
        _exit_at_interrupt(exit_code)
        _discard_unwritable_errors()


def _exit_at_interrupt(exit_code: int) -> None:
    """Make Ctrl-C exit immediately with this code, where a KeyboardInterrupt would print a traceback."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # This applies while Python waits for threads.
        signal.signal(signal.SIGINT, lambda *_: os._exit(exit_code))
        # Later, Python no longer calls handlers, so the signal would kill the process.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _run() -> None:
    # httpx has a command line of its own. If rich is installed, httpx imports rich, pygments, and more for
    # it, which takes half of the import's time. This makes httpx skip its command line.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    try:
        from ._cli import cli  # noqa: PLC0415  (optional dependencies)

        cli(prog_name="cortecs-async")
    except ImportError as error:  # raised by a command too: each imports its packages when it is called
        missing = (error.name or "").partition(".")[0]
        if missing not in {"click", "dotenv", "rich"}:
            raise
        from ._extras import install_command  # noqa: PLC0415  (not needed otherwise)

        package = {"dotenv": "python-dotenv"}.get(missing, missing)
        # Include the command's other packages, so that one installation is enough.
        extras = next((_EXTRAS[each] for each in sys.argv[1:] if each in _EXTRAS), "cli")
        sys.exit(f"The command line needs {package}. Install it with: {install_command(extras)}")


def _open_missing_streams() -> None:
    """Reopen closed standard streams (`>&-`). Otherwise, a socket could get their number and output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Gets the lowest free number, which is the closed stream's number.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115  (open until the exit)
            # The command started by `run` inherits it.
            os.set_inheritable(stream.fileno(), True)  # noqa: FBT003  (positional only)
            setattr(sys, name, stream)


def _discard_unwritable_errors() -> None:
    """Discard output that standard error does not accept. Otherwise, Python would change the exit status."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(2)


def _fail(error: OSError) -> None:
    """Exit because output cannot be written, for example because the disk is full."""
    with contextlib.suppress(OSError):  # standard error may be gone too
        sys.stderr.write(f"Error: {error}\n")
    # Python flushes the buffer again at exit and would fail with its own message and exit status.
    _discard(1)
    sys.exit(1)


def _discard(stream: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


if __name__ == "__main__":
    main()
