"""Wake asyncio when a signal arrives."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Generator

from .eventloop import in_trio


@contextlib.contextmanager
def woken_by_signals() -> Generator[None]:
    """Make every signal wake the running event loop. Use this in the main thread.

    Python calls a signal handler in the main thread, between two instructions. If the signal arrives just
    before the event loop begins to wait, or in another thread, it does not end the wait, and the handler runs
    only after something else wakes the loop. Trio and `loop.add_signal_handler` prevent this themselves.
    """
    if in_trio():
        yield
        return
    loop = asyncio.get_running_loop()
    reader, writer = socket.socketpair()
    with reader, writer:
        for each in (reader, writer):
            each.settimeout(0)  # never blocks
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if previous != -1:  # something already wakes the loop
            signal.set_wakeup_fd(previous)
            yield
            return
        loop.add_reader(reader, reader.recv, 4096)
        try:
            yield
        finally:
            loop.remove_reader(reader)
            current = signal.set_wakeup_fd(-1)
            if current != writer.fileno():  # `loop.add_signal_handler` has set its own in the meantime
                signal.set_wakeup_fd(current)
