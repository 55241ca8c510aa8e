"""The owner of a shared instance: a process that holds it as long as somebody is connected.

`SharedInstance` starts it, and says why there is one. It is given two descriptors, of its lock and of its
socket, and what to start. To everybody who is connected it sends a line of JSON for every change. They send
nothing, and end their side of the connection when they leave. The others' connections are closed at once
then, that of the last when the instance is released.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any, TypedDict

import anyio
from anyio.abc import SocketListener, SocketStream, TaskGroup
from attrs import define, field

from .. import AsyncCortecs, InstanceHandle
from ._standing import BackgroundInstance, Down, Standing, StartOptions

# Seconds for whoever started this to connect. It does so at once, unless it died.
_FIRST = 10.0


class Wish(TypedDict):
    """What to start."""

    model_id: str
    hardware_type_id: str | None
    pause: float
    linger: float
    options: StartOptions


def encode(state: InstanceHandle | Down) -> bytes:
    """A state as a line."""
    if isinstance(state, InstanceHandle):
        return state.to_json().encode() + b"\n"
    return json.dumps({"reason": state.reason, "retry_after": state.retry_after}).encode() + b"\n"


def decode(line: bytes) -> InstanceHandle | Down:
    """A state from its line."""
    data: dict[str, Any] = json.loads(line)
    return Down(**data) if "reason" in data else InstanceHandle.from_json(line.decode())


@define(eq=False)
class Owner:
    """Tells everybody who is connected what becomes of an instance, and knows when all have left.

    An error that nobody has thought of ends it, and so releases the instance: nothing is held by mistake.

    Attributes:
        instance: What it is about.
        linger: Seconds after the last has left.
        users: How many are connected and have not begun to leave.
    """

    instance: Standing
    linger: float
    users: int = 0
    _changed: anyio.Event = field(factory=anyio.Event)

    async def own(self, listener: SocketListener) -> None:
        """Returns when the last has left and the instance is released."""
        async with anyio.create_task_group() as tasks:
            async with self.instance:
                tasks.start_soon(self._accept, listener, tasks)
                patience = _FIRST
                while await self._used_within(patience):
                    await self._until(any_users=False)
                    patience = self.linger
                # Whoever comes from here on is refused, or cut off soon, and starts another owner.
                await listener.aclose()
            tasks.cancel_scope.cancel()

    async def _used_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._until(any_users=True)
        return self.users > 0

    async def _until(self, *, any_users: bool) -> None:
        while bool(self.users) is not any_users:
            await self._changed.wait()

    def _count(self, change: int) -> None:
        self.users += change
        self._changed.set()
        self._changed = anyio.Event()

    async def _accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        with contextlib.suppress(anyio.ClosedResourceError):
            await listener.serve(self._serve, tasks)

    async def _serve(self, stream: SocketStream) -> None:
        self._count(+1)
        async with stream, anyio.create_task_group() as both:
            both.start_soon(self._tell, stream)
            # A connection breaks when a process is killed.
            with contextlib.suppress(anyio.BrokenResourceError):
                async for _ in stream:
                    pass
            self._count(-1)
            # It is the last while there are no others, and waits for what becomes of that.
            await self._until(any_users=True)
            both.cancel_scope.cancel()

    async def _tell(self, stream: SocketStream) -> None:
        state: InstanceHandle | Down | None = None
        with contextlib.suppress(anyio.BrokenResourceError):
            while True:
                state = await self.instance.state_after(state)
                await stream.send(encode(state))


async def _main(listener: socket.socket, wish: Wish) -> None:
    async with AsyncCortecs(guard="required") as client:
        instance = BackgroundInstance(
            client, wish["model_id"], wish["hardware_type_id"], pause=wish["pause"], **wish["options"]
        )
        await Owner(instance, wish["linger"]).own(await SocketListener.from_socket(listener))


def main() -> None:
    """Runs the owner. The lock is held until the process ends: by its descriptor, which nobody closes."""
    # A service manager sends these to all of its processes at once, of which the servers still answer
    # requests for a while. Their end is this one's.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="cortecs_async, owner of the shared instance: %(message)s")
    _, listener, wish = sys.argv[1:]
    with socket.socket(fileno=int(listener)) as accepting:
        path = accepting.getsockname()
        anyio.run(_main, accepting, json.loads(wish))
    with contextlib.suppress(OSError):
        Path(path).unlink()


if __name__ == "__main__":
    main()
