"""Exit `cortecs-async top` if its terminal disappears or a signal does not stop it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ..output import best_effort
from ..runtime import termination_signals

if TYPE_CHECKING:
    from .app import TopApp

# 128 + SIGHUP, the signal for a disappeared terminal.
HUNG_UP = 129

# Seconds between two checks.
_INTERVAL = 0.5

# Seconds after which the process exits immediately: normally, and while stopping or deleting an instance. The
# journal records deletions, so the reaper continues them.
_LAST_RESORT, _LAST_RESORT_IF_PENDING = 2.0, 60.0


class Ending:
    """Exits the application if its terminal disappears, and the process if the application does not exit.

    There is no SIGHUP if it is ignored (`nohup`) or if the terminal does not control this session. Then
    textual reads the end of its input again and again. While textual waits for a terminal that does not
    accept output, the event loop is blocked.

    Attributes:
        is_terminal_gone: Whether the terminal has disappeared.
    """

    def __init__(self, app: TopApp) -> None:
        self.is_terminal_gone = False
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._exit_code: int | None = None
        self._since = 0.0
        self._is_armed = True

    @contextmanager
    def watched(self) -> Generator[None]:
        """Watch the application in this block. Its signal handlers must already be set."""
        for number in termination_signals():
            self._remember(number)
        threading.Thread(target=self._watch, name="cortecs-top-ending", daemon=True).start()
        stderr = sys.__stderr__
        assert stderr is not None  # noqa: S101  (for the type checker)
        # A textual thread writes there. If it failed, all other threads would wait for it forever.
        setattr(sys, "__stderr__", best_effort(stderr))  # noqa: B010  (mypy rejects the assignment)
        try:
            yield
        finally:
            self._is_armed = False  # actions in progress have their own time limits
            setattr(sys, "__stderr__", stderr)  # noqa: B010
            self._check_terminal()

    def finished(self) -> None:
        """Leave little time for the rest, because no action is in progress any longer."""
        self._since = time.monotonic()
        self._is_armed = True

    def _remember(self, number: signal.Signals) -> None:
        handler = signal.getsignal(number)

        def receive(number: int, frame: FrameType | None) -> None:
            self._must_exit(128 + number)
            if callable(handler):
                handler(number, frame)

        signal.signal(number, receive)

    def _must_exit(self, code: int) -> None:
        if self._exit_code is None:
            self._exit_code, self._since = code, time.monotonic()

    def _check_terminal(self) -> None:
        if not os.isatty(0):
            self.is_terminal_gone = True
            self._must_exit(HUNG_UP)

    def _watch(self) -> None:
        while True:
            time.sleep(_INTERVAL)
            if not self._is_armed:
                continue
            self._check_terminal()
            if self._exit_code is None:
                continue
            limit = _LAST_RESORT_IF_PENDING if self._app.pending else _LAST_RESORT
            if time.monotonic() - self._since > limit:
                os._exit(self._exit_code)
            if self.is_terminal_gone and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._app.exit)
