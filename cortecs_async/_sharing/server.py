"""The owner of a shared instance: holds the lease while any process uses the instance, or it is kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import anyio
from anyio.abc import ByteStream, SocketListener
from attrs import define, evolve, field

from .._aio.synchronization import Broadcast
from .._api.domain import Progress
from .._api.waiting import ProgressCallback
from .._errors import CortecsError, InstanceLostError, InvalidArgumentError
from .._lease.lease import InstanceLease
from .._logging import Event, log
from . import lines
from .connections import ConnectionListener
from .info import SharedInfo, SharedState, encode_info
from .lines import LineReader
from .protocol import (
    Ended,
    Hello,
    Releasing,
    Running,
    Starting,
    State,
    decode_error,
    encode_error,
    encode_progress,
    encode_state,
    refuse,
)

# Seconds to wait for the first process. The one that started this owner connects immediately.
_FIRST_HOLDER_TIMEOUT = 10.0

# Seconds to wait for the hello of a process, and to send all processes the end.
_HELLO_TIMEOUT, _FAREWELL_TIMEOUT = 10.0, 10.0


@define(eq=False, kw_only=True)
class SharedServer:
    """Holds the lease of a shared instance and sends its state to all processes that use it.

    Attributes:
        name: The name under which the instance is shared.
        spec: The arguments that must be the same in all processes.
        version: The version of this package.
        linger: Seconds to keep the instance after the last process leaves.
        heartbeat: Seconds between two lines to a process.
        new_lease: Returns the lease, given a callback for its progress.
        info: What is known before the instance is usable.
        state: The state of the instance.
    """

    name: str
    spec: dict[str, object]
    version: str
    linger: float
    heartbeat: float
    new_lease: Callable[[ProgressCallback], InstanceLease]
    info: SharedInfo
    state: State = field(factory=Starting)
    _lease: InstanceLease = field(init=False)
    _holders: dict[object, int] = field(factory=dict)
    _is_kept: bool = False
    _is_ending: bool = False
    _released_by: int | None = None
    _changed: Broadcast = field(factory=Broadcast)
    _unused: anyio.Event = field(factory=anyio.Event)
    _num_connections: int = 0

    async def serve(self, accepting: ConnectionListener, listener: SocketListener) -> None:
        """Hold the instance until it is no longer used, or it ends by itself."""
        ended = Ended(None)
        async with anyio.create_task_group() as connections:
            async with anyio.create_task_group() as listeners:
                listeners.start_soon(accepting.run, listener, connections)
                ended = await self.hold()
                listeners.cancel_scope.cancel()
            # From here on, another process can start a new owner.
            accepting.remove_files()
            self._set(ended)
            with anyio.move_on_after(_FAREWELL_TIMEOUT):
                while self._num_connections:
                    await self._changed.wait()
            connections.cancel_scope.cancel()

    async def hold(self) -> Ended:
        """Start the instance, release it once it is no longer used, and return how it ended."""
        error: BaseException | None = None
        self._lease = self.new_lease(self._show_progress)
        # Without an instance if that process was killed in the meantime.
        with anyio.move_on_after(_FIRST_HOLDER_TIMEOUT):
            await self._until(lambda: self._is_wanted)
        if not self._is_wanted:
            self._is_ending = True
            return Ended()
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(self._end_when_unused, scope)
                try:
                    async with self._lease:
                        await self._hold_until_unused()
                except Exception as raised:  # noqa: BLE001  (a callback or a transport may raise anything)
                    error = raised
                    if not isinstance(error, CortecsError):
                        log(Event.BACKGROUND_FAILED, exc_info=True, work="the owner of a shared instance")
            tasks.cancel_scope.cancel()
        if error is None and self._released_by is not None:
            error = InstanceLostError(
                f"The shared instance {self.name!r} was released by process {self._released_by}",
                instance_id=self.info.instance_id or "",
            )
        return Ended(None if error is None else decode_error(encode_error(error)))

    async def _hold_until_unused(self) -> None:
        handle = self._lease.handle
        self.info = self._info_now()
        try:
            if not self._is_ending:
                self._set(Running(handle))
            # Not by a cancellation: the lease raises an error of its release only if the block has none.
            await self._unused.wait()
        finally:
            self._set(Releasing())

    async def _end_when_unused(self, starting: anyio.CancelScope) -> None:
        while not self._is_ending:
            await self._until(lambda: not self._is_wanted)
            with anyio.move_on_after(self.linger):
                await self._until(lambda: self._is_wanted)
            if not self._is_wanted:
                break
        self._is_ending = True
        is_running = isinstance(self.state, Running)
        self._set(Releasing())
        self._unused.set()
        if not is_running:
            starting.cancel()

    @property
    def _is_wanted(self) -> bool:
        return not self._is_ending and (bool(self._holders) or self._is_kept)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not (condition() or self._is_ending):
            await self._changed.wait()

    def _set(self, state: State) -> None:
        # Nothing revives an instance that is being released.
        if isinstance(state, Ended) or not isinstance(self.state, Releasing | Ended):
            self.state = state
            self._changed.notify()

    def _show_progress(self, progress: Progress) -> None:
        if isinstance(self.state, Starting):
            self._set(Starting(encode_progress(progress)))

    # --- connections ---

    async def serve_connection(self, stream: ByteStream) -> None:
        """Serve one process until its connection ends."""
        reader = LineReader(stream)
        self._num_connections += 1
        try:
            async with stream:
                # It breaks when the process is killed.
                with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                    hello, more = await _receive_hello(reader)
                    if hello is not None:
                        await self._answer(stream, reader, hello, more)
        finally:
            self._num_connections -= 1
            self._changed.notify()

    async def _answer(self, stream: ByteStream, reader: LineReader, hello: Hello, more: list[bytes]) -> None:
        if hello.wish == "info":
            await stream.send(lines.encode(encode_info(self._info_now())))
        elif refused := refuse(hello, self.version, self.spec):
            await stream.send(lines.encode({**refused, "pid": os.getpid()}))
        elif hello.wish == "release":
            # The answer and the decision agree: a process may join or leave while the answer is sent.
            info, is_refused = self._info_now(), bool(self._holders) and not hello.force
            if not is_refused:
                self._end(hello.pid)
            await stream.send(lines.encode(encode_info(info)))
            if is_refused:
                return
            async with anyio.create_task_group() as tasks:
                await self._send_states(stream, tasks.cancel_scope)
        else:
            await self._serve_holder(stream, reader, hello.pid, more)

    def _end(self, released_by: int) -> None:
        self._is_kept = False
        self._is_ending = True
        if self._holders:
            self._released_by = released_by
        self._changed.notify()

    async def _serve_holder(
        self, stream: ByteStream, reader: LineReader, pid: int, more: list[bytes]
    ) -> None:
        key = object()
        self._holders[key] = pid
        self._touch()
        self._changed.notify()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_states, stream, tasks.cancel_scope)
                with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                    while True:
                        for line in more:
                            self._receive(lines.decode(line))
                        more = await reader.next_lines()
                del self._holders[key]
                self._changed.notify()
                # Without `linger`, the last process to leave waits for the release. So does a process whose
                # instance is being released.
                while not self._may_disconnect():
                    await self._changed.wait()
                tasks.cancel_scope.cancel()
            if not isinstance(self.state, Ended):
                # After a line that may have been cut off.
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    await stream.send(b"\n" + lines.encode({"left": True}))
        finally:
            if self._holders.pop(key, None) is not None:
                self._changed.notify()

    def _may_disconnect(self) -> bool:
        is_in_use = isinstance(self.state, Starting | Running) and not self._is_ending
        return is_in_use and (self._is_wanted or self.linger > 0)

    def _receive(self, message: dict[str, object]) -> None:
        if message.get("touch"):
            self._touch()
        if message.get("keep") and not self._is_kept:
            self._is_kept = True
            self._changed.notify()

    def _touch(self) -> None:
        if isinstance(self.state, Running):
            with contextlib.suppress(InvalidArgumentError):  # it is being released
                self._lease.touch()

    async def _send_states(self, stream: ByteStream, connection: anyio.CancelScope) -> None:
        """Send the state until the end. Cancel the connection then, or if it breaks."""
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                sent = self.state, self._is_kept
                await stream.send(lines.encode(encode_state(sent[0], is_kept=sent[1])))
                if isinstance(sent[0], Ended):
                    break
                # Sending the same state again shows the process that this one is not frozen.
                with anyio.move_on_after(self.heartbeat):
                    while (self.state, self._is_kept) == sent:
                        await self._changed.wait()
        connection.cancel()

    # --- information ---

    def _info_now(self) -> SharedInfo:
        info = evolve(
            self.info, state=self._shown_state(), holders=tuple(self._holders.values()), is_kept=self._is_kept
        )
        with contextlib.suppress(InvalidArgumentError):  # nothing is started yet
            args, receipt = self._lease.instance.instance_args, self._lease.receipt
            info = evolve(
                info,
                instance_id=self._lease.instance_id,
                hardware_type_id=args.hardware_type_id or info.hardware_type_id,
                cost=receipt.cost,
                currency=receipt.currency,
            )
        if isinstance(self.state, Running):
            handle = self.state.handle
            return evolve(info, base_url=handle.base_url, expires_at=handle.expires_at)
        return info

    def _shown_state(self) -> SharedState:
        match self.state:
            case Starting():
                return "starting"
            case Running():
                return "running" if self._holders else "kept" if self._is_kept else "lingering"
            case Releasing() | Ended():
                return "releasing"


async def _receive_hello(reader: LineReader) -> tuple[Hello | None, list[bytes]]:
    """Return the hello of a process, and the lines that came with it."""
    with anyio.move_on_after(_HELLO_TIMEOUT):
        while not (found := await reader.next_lines()):
            pass
        return Hello.from_message(lines.decode(found[0])), found[1:]
    return None, []
