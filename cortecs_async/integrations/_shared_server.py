"""The owner process of a shared instance. It keeps the instance while any process is connected.

`SharedInstance` starts it with two file descriptors, for its lock and its listening socket, and with the spec
of the instance. The server sends each connected process the state as a line of JSON, after every change and
at least once per heartbeat. A process sends a line for each report of a failed request, and closes its side
of the connection when it leaves. If others are still connected, the server then closes that connection
immediately. The last connection stays open until the instance is released.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import anyio
from anyio.abc import SocketListener, SocketStream
from attrs import asdict, define, field

from .. import AsyncCortecs, InstanceHandle
from .._platform import NO_LOCKS
from .._sharing import lines
from .._sharing.connections import ConnectionListener
from .._sharing.lines import LineReader
from .._sharing.meeting_point import MeetingPoint
from .._sharing.owner_process import redirect_stderr
from ._background import BackgroundInstance
from ._managed import ManagedInstance, StartOptions, State, Unavailable, logger

# Seconds to wait for the first connection. The process that started this one connects immediately.
_FIRST_CONNECTION_TIMEOUT = 10.0


class InstanceSpec(TypedDict):
    """The instance to start and the time to keep it: the arguments of `SharedInstance`."""

    model_id: str
    hardware_type_id: str | Sequence[str] | None
    pause: float
    linger: float
    heartbeat: float
    options: StartOptions


def encode(state: State) -> bytes:
    text = state.to_json() if isinstance(state, InstanceHandle) else json.dumps(asdict(state))
    return text.encode() + b"\n"


def decode(line: bytes) -> State:
    data: dict[str, Any] = json.loads(line)
    return Unavailable(**data) if "reason" in data else InstanceHandle.from_json(line.decode())


def encode_report(instance_id: str) -> bytes:
    return lines.encode({"report": instance_id})


def encode_touch() -> bytes:
    return lines.encode({"touch": True})


@define(eq=False)
class SharedInstanceServer:
    """Sends the state of an instance to all connected processes and stops when the last one leaves.

    An unexpected error stops the server and so releases the instance.

    Attributes:
        instance: The instance.
        linger: Seconds to keep the instance after the last process leaves.
        heartbeat: Seconds between two lines to a process and between two checks of the files.
        meeting_point: The lock and the socket.
        lock: The descriptor of the lock.
        users: Number of connected processes that are not leaving.
    """

    instance: ManagedInstance
    linger: float
    heartbeat: float
    meeting_point: MeetingPoint
    lock: int
    users: int = 0
    _changed: anyio.Event = field(factory=anyio.Event)

    async def serve(self, listener: SocketListener) -> None:
        """Serve until the last process leaves and the instance is released."""
        async with anyio.create_task_group() as connections:
            async with self.instance, anyio.create_task_group() as listeners:
                accepting = ConnectionListener(
                    self.meeting_point, self.lock, self.heartbeat, self._serve_connection, logger
                )
                listeners.start_soon(accepting.run, listener, connections)
                timeout = _FIRST_CONNECTION_TIMEOUT
                while await self._is_used_within(timeout):
                    await self._wait_until(any_users=False)
                    timeout = self.linger
                listeners.cancel_scope.cancel()
                # From here on, a new connection is refused or soon closed. Its process starts a new server.
            connections.cancel_scope.cancel()

    async def _is_used_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._wait_until(any_users=True)
        return self.users > 0

    async def _wait_until(self, *, any_users: bool) -> None:
        while bool(self.users) is not any_users:
            await self._changed.wait()

    def _add_users(self, change: int) -> None:
        self.users += change
        self._changed.set()
        self._changed = anyio.Event()

    async def _serve_connection(self, stream: SocketStream) -> None:
        self._add_users(+1)
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_states, stream)
            # A connection breaks when its process is killed.
            with contextlib.suppress(anyio.BrokenResourceError):
                await self._receive_reports(stream)
            self._add_users(-1)
            # The last process to leave stays connected until the release, or until another one connects.
            await self._wait_until(any_users=True)
            tasks.cancel_scope.cancel()

    async def _receive_reports(self, stream: SocketStream) -> None:
        reader = LineReader(stream)
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                for line in await reader.next_lines():
                    message = lines.decode(line)
                    if message.get("touch"):
                        self.instance.note_use()
                    elif isinstance(instance_id := message.get("report"), str):
                        self.instance.report_id(instance_id)

    async def _send_states(self, stream: SocketStream) -> None:
        state: State | None = None
        with contextlib.suppress(anyio.BrokenResourceError):
            while True:
                # Sending the same state again shows the process that this one is not frozen.
                with anyio.move_on_after(self.heartbeat):
                    state = await self.instance.state_after(state)
                if state is not None:
                    await stream.send(encode(state))


async def _main(listener: socket.socket, lock: int, spec: InstanceSpec) -> None:
    meeting_point = MeetingPoint(Path(listener.getsockname()))
    async with AsyncCortecs(guard="required") as client:
        instance = BackgroundInstance(
            client, spec["model_id"], spec["hardware_type_id"], pause=spec["pause"], **spec["options"]
        )
        server = SharedInstanceServer(instance, spec["linger"], spec["heartbeat"], meeting_point, lock)
        accepting = await SocketListener.from_socket(listener)
        redirect_stderr()
        await server.serve(accepting)
    with contextlib.suppress(OSError):
        meeting_point.remove_socket()


def main() -> None:
    """Run the server. The lock's descriptor is never closed, so the process holds the lock until it exits."""
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    # A service manager sends these signals to all of its processes at the same time, while the server's
    # workers are still finishing requests. This process exits after the workers have exited.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="cortecs_async, owner of the shared instance: %(message)s")
    lock, listener, spec = sys.argv[1:4]
    with socket.socket(fileno=int(listener)) as accepting:
        anyio.run(_main, accepting, int(lock), json.loads(spec))
