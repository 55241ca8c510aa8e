"""The function that logs the events in `_events.py`.

The fields of an event are attributes of the log record, where JSON formatters find them. All begin with
`cortecs_`, because `logging` raises when `extra` contains an attribute that the record already has, and a
program's record factory often sets, for example, `request_id`. Logging must never make the release of an
instance fail.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from ._errors import ConfigurationError
from ._events import Event as Event  # noqa: PLC0414  (re-exported for all modules that log)

_PREFIX = "cortecs_"

_httpx_logger = logging.getLogger("httpx")


def log(event: Event, /, *, exc_info: bool = False, **values: Any) -> None:
    """Log an event. Errors in the program's handlers and filters are ignored.

    Args:
        event: The event.
        exc_info: Whether to show the exception being handled.
        **values: All fields of the event (None for an unknown value) and the other values in its message.
    """
    if not event.logger.isEnabledFor(event.level):
        return
    extra = {f"{_PREFIX}{name}": values.get(name) for name in event.fields}
    extra[f"{_PREFIX}event"] = event.value
    # `logging` accepts a mapping for named placeholders, unless it is empty.
    args = (values,) if values else ()
    with contextlib.suppress(Exception):
        event.logger.log(event.level, event.message, *args, exc_info=exc_info, extra=extra, stacklevel=2)


def is_httpx_logged() -> bool:
    """Return whether httpx would log the requests of its clients."""
    return _httpx_logger.isEnabledFor(logging.INFO)


VARIABLE = "CORTECS_LOG"

_LEVELS = ("debug", "info", "warning", "error", "critical")


def log_to_stderr(program: str) -> None:
    """Log warnings and errors of this process to stderr, each with the name of the program."""
    logging.basicConfig(format=f"{program}: %(message)s")


def set_up_log(environ: Mapping[str, str]) -> None:
    """Set the level from CORTECS_LOG, unless the program has set one, and add a handler if there is none."""
    level = environ.get(VARIABLE, "").strip().lower()
    del environ  # a traceback that shows locals would show every secret in it
    if not level:
        return
    if level not in _LEVELS:
        raise ConfigurationError(f"{VARIABLE} must be one of {', '.join(_LEVELS)}, not {level[:80]!r}")
    logger = logging.getLogger("cortecs_async")
    if logger.level != logging.NOTSET:
        return
    logger.setLevel(level.upper())
    # An application that logs has a handler on the root logger. A second handler would show every line twice.
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
