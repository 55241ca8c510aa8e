"""The connection of one process to the owner of a shared instance, in the background of its block."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import anyio
from anyio.abc import ByteStream, SocketAttribute
from attrs import asdict

from .._aio.background import BackgroundTask
from .._aio.clock import suspended
from .._aio.eventloop import loop_clock, loop_runner
from .._aio.synchronization import Backoff, Broadcast
from .._errors import ConfigurationError, CortecsError, InstanceLostError, StartTimeoutError, TeardownError
from .._lease.activity import Activity
from .._lease.handle import InstanceHandle
from . import lines
from .connector import SilenceMonitor
from .lines import LineReader
from .protocol import Ended, Hello, Releasing, Running, Starting, State, decode_state, refusal_error

# Seconds before the second attempt to connect to the owner process, and the maximum.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 2.0

# Seconds between two lines that say that this process uses the instance: a share of the `idle_timeout`, and
# the maximum.
_TOUCH_SHARE, _LONGEST_TOUCH_INTERVAL = 0.25, 5.0


class MemberActivity(Activity):
    """The requests of one process. The owner decides whether the instance is idle.

    Args:
        timeout: The `idle_timeout`.
        touch: Tells the owner soon that the instance is in use. It can be called in any thread.
    """

    def __init__(self, timeout: float, touch: Callable[[], object]) -> None:
        clock = loop_clock()
        super().__init__(timeout, lambda: clock() + suspended(), lambda _: None)
        self._touch = touch

    def touch(self) -> None:
        self._touch()


class Connector(Protocol):
    """Connects to the owner process, which it starts if there is none: `OwnerConnector`."""

    async def connect(self) -> ByteStream: ...
    async def owner_exit(self) -> tuple[str, list[str]] | None: ...
    def monitor(self) -> SilenceMonitor: ...
    def describe_owner(self) -> str: ...


class Membership:
    """Keeps one process among those that share an instance.

    The operating system closes the connection however the process ends, and then the process no longer
    counts. This object knows nothing of the lease that uses it, so that a dropped lease is collected.

    Args:
        connector: Connects to the owner.
        hello: The first line to the owner.
        name: The name of the shared instance.
        heartbeat: Seconds between two lines of the owner.
        answer_timeout: Maximum seconds to wait for an owner that answers.
        idle_timeout: The `idle_timeout` of the instance, or None.
        on_end: Called once the instance must no longer be used, and again once it has ended.

    Attributes:
        state: The state of the instance, or None while no owner has sent one.
        is_kept: Whether the owner keeps the instance without processes.
        activity: Counts the requests of this process, if there is an `idle_timeout`.
        changed: Notified after every change.
    """

    def __init__(
        self,
        connector: Connector,
        hello: Hello,
        *,
        name: str,
        heartbeat: float,
        answer_timeout: float,
        idle_timeout: float | None,
        on_end: Callable[[State], object],
    ) -> None:
        self.state: State | None = None
        self.is_kept = False
        self.changed = Broadcast()
        self.activity: Activity | None = None
        self._connector = connector
        self._hello = hello
        self._name = name
        self._heartbeat = heartbeat
        self._answer_timeout = answer_timeout
        self._idle_timeout = idle_timeout
        self._on_end = on_end
        self._has_run = False
        self._is_leaving = False
        self._is_connected = False
        self._stream: ByteStream | None = None
        self._is_late = False  # it came while the previous instance was being released
        self._problem = ""
        self._has_left = False  # the owner has confirmed it
        self._is_touched = False
        self._wants_keep = False
        self._outgoing = Broadcast()
        self._work: BackgroundTask | None = None

    def start(self) -> None:
        """Connect in the background."""
        if self._idle_timeout is not None:
            self.activity = MemberActivity(self._idle_timeout, partial(self._touch_soon, loop_runner()))
        self._work = BackgroundTask(self._run, self.changed.notify)

    def stop(self) -> None:
        """Drop the connection without waiting, for code that cannot await."""
        if self._work is not None:
            self._work.stop()

    def disconnect(self) -> None:
        """End the connection of an event loop that no longer runs, so that this process no longer counts."""
        self._is_leaving = True
        if self._stream is not None:
            connection = self._stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610  (anyio's)
            if connection is not None:
                with contextlib.suppress(OSError):  # it is closed
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def is_usable(self) -> bool:
        """Whether the instance is running, and this process has not left."""
        return isinstance(self.state, Running) and not self._is_leaving

    async def leave(self, timeout: float) -> bool:
        """Leave, and wait until the owner has closed the connection, for at most `timeout` seconds.

        The owner closes it at once, unless the instance is released now. Return whether it did in time.
        """
        work, self._is_leaving = self._work, True
        if work is None:
            return True
        with anyio.move_on_after(timeout) as waiting:
            # The release of the previous instance does not concern this process.
            if self._is_connected and not self._is_late:
                self._outgoing.notify()
                await work.join()
        work.stop()
        await work.join()
        return not waiting.cancelled_caught

    def _touch_soon(self, run_in_loop: Callable[[Callable[[], object]], object]) -> None:
        """Tell the owner soon that this process uses the instance. Can be called in any thread."""
        if not self._is_touched:
            self._is_touched = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                run_in_loop(self._outgoing.notify)

    async def _count_open_requests(self, activity: Activity) -> None:
        # A hung program does not get here, so its requests stop counting.
        while True:
            activity.check()
            await anyio.sleep(activity.check_interval)

    async def wait_until_running(self, on_state: Callable[[State | None], Awaitable[None]]) -> InstanceHandle:
        """Wait until the instance is running, and return it. Await `on_state` with each state before.

        Raises:
            CortecsError: The reason why it is not running.
        """
        while True:
            match state := self.state:
                case Running(handle):
                    return handle
                case Ended(error):
                    raise error or self._lost(None)
                case Starting() | Releasing() | None:
                    pass
            await on_state(state)
            if self.state is state:
                await self.changed.wait()

    async def keep(self) -> None:
        """Make the owner keep the instance without processes, and wait until it does."""
        self._wants_keep = True
        self._outgoing.notify()
        while not self.is_kept and isinstance(self.state, Running):
            await self.changed.wait()

    async def _run(self) -> None:
        pause = Backoff(first=_FIRST_PAUSE, limit=_LONGEST_PAUSE)
        deadline = anyio.current_time() + self._answer_timeout
        try:
            while not self._is_over:
                if await self._run_connection():
                    deadline = anyio.current_time() + self._answer_timeout
                    pause.reset()
                elif anyio.current_time() > deadline:
                    self._set(Ended(self._no_answer()))
                if not self._is_over:
                    await anyio.sleep(pause.next())
        except CortecsError as error:
            self._set(Ended(error))
        except Exception as error:
            self._set(
                Ended(CortecsError(f"The connection to the shared instance {self._name!r} failed: {error!r}"))
            )
            raise  # it is logged

    @property
    def _is_over(self) -> bool:
        return self._is_leaving or isinstance(self.state, Ended)

    async def _run_connection(self) -> bool:
        """Use one connection until it ends. Return whether the owner has answered."""
        self._forget_connection()
        try:
            async with await self._connector.connect() as stream:
                self._stream = stream
                await stream.send(lines.encode(asdict(self._hello)))
                self._is_connected = True
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._send, stream)
                    if self.activity is not None:
                        tasks.start_soon(self._count_open_requests, self.activity)
                    await self._receive(stream)
                    tasks.cancel_scope.cancel()
        except PermissionError as error:
            raise ConfigurationError(f"The shared instance {self._name!r} cannot be used: {error}") from None
        except (OSError, anyio.BrokenResourceError) as error:
            self._problem = str(error)
        finally:
            self._is_connected, self._stream = False, None
        if self._is_over:
            if self._is_leaving and not self._has_left:
                self._set(Ended(self._unconfirmed()))
            return True
        ended = await self._connector.owner_exit()
        if self.state is not None:
            if not self._is_late:
                self._set(Ended(self._lost(ended)))
            return True
        if ended is not None:
            end, last_line = ended
            raise CortecsError(
                f"The owner process of the shared instance {self._name!r} {': '.join([end, *last_line])}"
            )
        return False  # the previous owner was just exiting

    def _forget_connection(self) -> None:
        self.state, self._is_late, self._problem = None, False, ""

    def _no_answer(self) -> StartTimeoutError:
        problem = f": {self._problem}" if self._problem else ""
        return StartTimeoutError(
            f"The owner process of the shared instance {self._name!r} ({self._connector.describe_owner()}) "
            f"did not respond within {self._answer_timeout:g} s{problem}",
            instance_id="",
        )

    def _unconfirmed(self) -> TeardownError | None:
        """Return the error if the owner was killed while this process left, or None if it had no instance."""
        handle = self.state.handle if isinstance(self.state, Running) else None
        if handle is None and not isinstance(self.state, Releasing):
            return None
        return TeardownError(
            f"The owner process of the shared instance {self._name!r} exited unexpectedly while this process "
            "left. Its reaper releases the instance.",
            instance_id="" if handle is None else handle.instance_id,
        )

    def _lost(self, ended: tuple[str, list[str]] | None) -> InstanceLostError:
        how = f"{ended[0]} while" if ended is not None else "exited unexpectedly while"
        when = "the block was running" if self._has_run else "the instance was starting"
        handle = self.state.handle if isinstance(self.state, Running) else None
        return InstanceLostError(
            f"The owner process of the shared instance {self._name!r} {how} {when}. "
            "Its reaper releases the instance.",
            instance_id="" if handle is None else handle.instance_id,
        )

    async def _receive(self, stream: ByteStream) -> None:
        """Receive the states of the instance until the connection or the instance ends."""
        reader, monitor = LineReader(stream), self._connector.monitor()
        while not isinstance(self.state, Ended):
            received: list[bytes] | None = None
            # One by one: a process that was suspended itself counts one miss and then reads what has arrived.
            with anyio.move_on_after(self._heartbeat):
                try:
                    received = await reader.next_lines()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
            if received is None:
                monitor.missed()
                continue
            monitor.heard()
            for line in received:
                self._handle(lines.decode(line))

    def _handle(self, message: dict[str, Any]) -> None:
        if isinstance(refused := message.get("refused"), dict):
            owner = f"process {message.get('pid')}"
            self._set(Ended(refusal_error(self._name, self._hello, refused, owner)))
        elif message.get("left"):
            self._has_left = True
        elif (state := decode_state(message)) is not None:
            # The previous instance is being released. Its end does not concern this process.
            self._is_late = self._is_late or (self.state is None and isinstance(state, Releasing | Ended))
            if self.is_kept != (is_kept := bool(message.get("kept"))):
                self.is_kept = is_kept
                self.changed.notify()
            self._set(Releasing() if self._is_late else state)

    async def _send(self, stream: ByteStream) -> None:
        """Send what this process does, and close its side when it leaves."""
        try:
            while not self._is_leaving:
                if self._wants_keep:
                    self._wants_keep = False
                    await stream.send(lines.encode({"keep": True}))
                elif self._is_touched:
                    self._is_touched = False
                    await stream.send(lines.encode({"touch": True}))
                    pause = (self._idle_timeout or math.inf) * _TOUCH_SHARE
                    with anyio.move_on_after(min(pause, _LONGEST_TOUCH_INTERVAL)):
                        while not (self._is_leaving or self._wants_keep):
                            await self._outgoing.wait()
                else:
                    await self._outgoing.wait()
            await stream.send_eof()
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # `_receive` notices it too

    def _set(self, state: State) -> None:
        if isinstance(self.state, Ended) or state == self.state:
            return
        self.state = state
        self._has_run = self._has_run or isinstance(state, Running)
        if isinstance(state, Releasing | Ended) and self._has_run:
            self._on_end(state)
        self.changed.notify()
