"""Release instances when your program receives SIGTERM or another signal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from ._aio.eventloop import loop_runner
from ._aio.scopes import CancellableBlock
from ._aio.wakeup import woken_by_signals
from ._errors import ConfigurationError
from ._hints import hinted


@hinted
class cancel_on_sigterm:  # noqa: N801  (used as a function is)
    """Cancel a block of code when SIGTERM arrives: `async with cancel_on_sigterm():`.

    SIGTERM cancels the block, and its instances are released. Then `SystemExit` exits the program with status
    143, which shells report for SIGTERM. Further signals have no effect. Use this in the main thread, around
    your whole program.

    Without it, SIGTERM kills a Python program immediately. The reaper then releases the instances a few
    seconds later, without a receipt. SIGKILL always has that effect.

    Do not use it in a server with its own signal handlers (uvicorn, hypercorn, gunicorn). There, release
    instances in the lifespan.

    Args:
        *signals: Signals to handle instead of SIGTERM, such as `signal.SIGHUP`.

    Example:
        async with cancel_on_sigterm(), AsyncCortecs() as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals or (signal.SIGTERM,)
        self._block = CancellableBlock()
        self._received: int | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._wakeup = contextlib.ExitStack()
        self._run_in_loop: Callable[[Callable[[], object]], object] = lambda _: None

    async def __aenter__(self) -> Self:
        """Begin to handle the signals.

        Raises:
            ConfigurationError: if called outside the main thread, because Python handles signals only there.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("cancel_on_sigterm() works in the main thread only")
        self._run_in_loop = loop_runner()
        self._wakeup.enter_context(woken_by_signals())
        self._block.enter()
        self._previous_handlers = {each: signal.signal(each, self._receive) for each in self._signals}
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the previous signal handlers.

        Raises:
            SystemExit: with 128 plus the signal number, if a signal arrived and the block did not raise any
            other error.
        """
        outcome, interrupted = await self._block.leave(exc)
        for each, handler in self._previous_handlers.items():
            signal.signal(each, handler)
        self._wakeup.close()
        if self._received is not None and (interrupted or outcome is None):
            raise SystemExit(128 + self._received)
        if outcome is not None and outcome is not exc:
            raise outcome

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            # A signal handler can interrupt any code, so cancelling the block is left to the event loop.
            self._run_in_loop(self._block.cancel)
