"""The log on standard error."""

from __future__ import annotations

import contextlib
import logging
import os

import click

from .output import sanitize
from .wording import to_command_line


def set_up_logging(verbosity: int) -> None:
    """Show the log on standard error. -1: only critical messages, 0: warnings, 1: info, 2: all requests."""
    level = {-1: logging.CRITICAL, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logger = logging.getLogger("cortecs_async")
    logger.handlers[:] = [_StderrHandler()]
    logger.setLevel(level)
    logger.propagate = False
    # Even --quiet shows a warning if there is no reaper to release instances.
    logging.getLogger("cortecs_async.guard").setLevel(logging.WARNING if verbosity < 0 else logging.NOTSET)


def allow_log_level_from_environment() -> None:
    """Let CORTECS_LOG set the log level. The first client reads it."""
    if os.environ.get("CORTECS_LOG"):
        logging.getLogger("cortecs_async").setLevel(logging.NOTSET)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Looks up `sys.stderr` each time, because a live display replaces it while it is drawn.
        with contextlib.suppress(OSError):
            click.echo(sanitize(to_command_line(self.format(record))), err=True)
