"""What the package logs: one table of events, and the one function that logs them.

An event's name, level and fields are stable; its message, for people, is not. The fields are attributes of
the log record, where formatters that write JSON find them. All begin with `cortecs_`: `logging` refuses an
`extra` that a record has already, and a program's record factory often sets `request_id`, say. An event that
is logged while an instance is released must not fail over that.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Mapping
from typing import Any, Self

from ._errors import ConfigurationError

_PREFIX = "cortecs_"


class Event(enum.Enum):
    """Name, level and fields of each. What stands before the dot is the logger below `cortecs_async`."""

    LEASE_STARTED = "lease.started", logging.INFO, "instance_id", "model", "request_id"
    LEASE_FOUND = "lease.found", logging.INFO, "instance_id", "model"
    LEASE_RESTARTED = "lease.restarted", logging.INFO, "instance_id", "model"
    LEASE_RUNNING = "lease.running", logging.INFO, "instance_id", "model", "base_url", "seconds"
    LEASE_ENDED = "lease.ended", logging.INFO, "instance_id", "model", "goal", "seconds", "cost", "currency"
    LEASE_NOT_RELEASED = "lease.not_released", logging.CRITICAL, "instance_id", "model", "error_type"
    LEASE_ABANDONED = "lease.abandoned", logging.CRITICAL, "instance_id", "model"
    LEASE_LOST = "lease.lost", logging.WARNING, "instance_id"
    LEASE_EXPIRED = "lease.expired", logging.WARNING, "instance_id"
    LEASE_UNREADABLE = "lease.unreadable", logging.INFO, "instance_id", "error_type"
    LEASE_UNWATCHED = "lease.unwatched", logging.ERROR
    LEASE_INTERRUPTED = "lease.interrupted", logging.WARNING
    LEASE_START_RETRY = "lease.start_retry", logging.INFO, "model", "attempt", "wait", "status", "request_id"
    LEASE_START_UNANSWERED = "lease.start_unanswered", logging.WARNING, "model", "status", "request_id"
    LEASE_START_REPEATED = "lease.start_repeated", logging.WARNING, "model"
    LEASE_ADOPTED = "lease.adopted", logging.INFO, "instance_id", "model"
    LEASE_LOOK_FAILED = "lease.look_failed", logging.WARNING, "model", "error_type"
    LEASE_TEARDOWN_RETRY = (
        "lease.teardown_retry",
        logging.INFO,
        "instance_id",
        "step",
        "wait",
        "error_type",
        "request_id",
    )
    LEASE_NO_PRICES = "lease.no_prices", logging.INFO, "error_type"

    HTTP_REQUEST = (
        "http.request",
        logging.DEBUG,
        "method",
        "path",
        "status",
        "seconds",
        "attempt",
        "request_id",
    )
    HTTP_RETRY = "http.retry", logging.INFO, "method", "path", "status", "wait", "attempt", "request_id"

    WATCH_FAILED = "watch.failed", logging.WARNING, "wait", "failures", "error_type", "request_id"
    WATCH_RECOVERED = "watch.recovered", logging.INFO, "failures"

    GUARD_ORPHANS = "guard.orphans", logging.WARNING, "count"
    GUARD_NO_JOURNAL = "guard.no_journal", logging.WARNING, "directory"
    GUARD_NO_REAPER = "guard.no_reaper", logging.WARNING
    GUARD_REAPER_REPLACED = "guard.reaper_replaced", logging.WARNING
    GUARD_REAPER_GIVEN_UP = "guard.reaper_given_up", logging.CRITICAL
    GUARD_SWEEP = "guard.sweep", logging.INFO
    GUARD_SWEEP_UNWRITTEN = "guard.sweep_unwritten", logging.WARNING, "journal"

    BATCH_RETRY = "batch.retry", logging.INFO, "custom_id", "wait"
    BATCH_RETRY_LAST = "batch.retry_last", logging.INFO, "custom_id"
    BATCH_DOUBT = "batch.doubt", logging.INFO, "instance_id"
    BATCH_INSTANCE_OUT = "batch.instance_out", logging.WARNING, "error_type"
    BATCH_ERROR = "batch.error", logging.ERROR, "error_type"

    TELEMETRY_FAILED = "telemetry.failed", logging.WARNING, "call"

    level: int
    fields: tuple[str, ...]
    logger: logging.Logger

    def __new__(cls, value: str, level: int, *fields: str) -> Self:
        event = object.__new__(cls)
        event._value_ = value
        event.level, event.fields = level, fields
        event.logger = logging.getLogger(f"cortecs_async.{value.partition('.')[0]}")
        return event


def log(event: Event, message: str, *args: object, exc_info: bool = False, **fields: Any) -> None:
    """Logs an event. What a handler or a filter of the program's raises is its own affair, and not told here.

    Args:
        event: Which.
        message: For people; takes `args`.
        *args: For `message`.
        exc_info: Show the exception that is being handled.
        **fields: Those of the event, all of them; None where a value is not known.
    """
    if not event.logger.isEnabledFor(event.level):
        return
    extra = {f"{_PREFIX}{name}": value for name, value in fields.items()}
    extra[f"{_PREFIX}event"] = event.value
    with contextlib.suppress(Exception):
        event.logger.log(event.level, message, *args, exc_info=exc_info, extra=extra, stacklevel=2)


VARIABLE = "CORTECS_LOG"

_LEVELS = ("debug", "info", "warning", "error", "critical")


def set_up_log(environ: Mapping[str, str]) -> None:
    """Does what CORTECS_LOG says, unless the program has set a level itself; a handler only if there is none.

    Raises:
        ConfigurationError: when it is no level.
    """
    wanted = environ.get(VARIABLE, "").strip().lower()
    del environ  # a traceback that shows locals would show every secret in it
    if not wanted:
        return
    if wanted not in _LEVELS:
        raise ConfigurationError(f"{VARIABLE} must be one of {', '.join(_LEVELS)}, not {wanted[:80]!r}")
    logger = logging.getLogger("cortecs_async")
    if logger.level != logging.NOTSET:
        return
    logger.setLevel(wanted.upper())
    # An application that logs has a handler at the root, which would show everything twice.
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
