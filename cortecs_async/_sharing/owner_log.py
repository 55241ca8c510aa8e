"""What is logged about owner processes: as events, or as plain messages of the web integration."""

from __future__ import annotations

from typing import Protocol

from .._logging import Event, log


class OwnerLog(Protocol):
    """Receives messages about an owner process, with `%` placeholders, like a logger."""

    def info(self, msg: str, /, *args: object) -> None: ...
    def warning(self, msg: str, /, *args: object) -> None: ...


class EventLog:
    """Logs the messages about instances shared by name as events."""

    def info(self, msg: str, /, *args: object) -> None:
        log(Event.SHARED_OWNER, what=msg % args)

    def warning(self, msg: str, /, *args: object) -> None:
        log(Event.SHARED_PROBLEM, what=msg % args)
