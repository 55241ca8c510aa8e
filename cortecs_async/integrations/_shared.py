"""Share one instance between all processes of a machine that request the same one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Unpack

import anyio
from anyio.abc import SocketStream

from .. import AsyncCortecs, ConfigurationError, InstanceHandle, __version__
from .._aio.clock import boottime
from .._credentials import resolve_sources
from .._durations import as_seconds, check_seconds
from .._environment import VARIABLES
from .._hints import hinted
from .._platform import NO_LOCKS
from .._sharing.connector import HEARTBEAT, OwnerConnector, SilenceMonitor
from .._sharing.lines import LineReader
from .._sharing.meeting_point import MeetingPoint
from .._state_directory import state_directory
from ..types import Duration
from . import _shared_server
from ._managed import ManagedInstance, Reason, StartOptions, State, Unavailable, logger

# Seconds before the second attempt to connect to the owner process. Doubles with each attempt, up to `pause`.
_INITIAL_BACKOFF = 0.25

# Seconds that the last process to leave waits for, in addition to the teardown timeout.
_LEAVE_MARGIN = 30.0

# The variables that the owner reads once. With an outdated secret or proxy, it could not start or release an
# instance.
_ENVIRONMENT = (
    *("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET", "CORTECS_API_BASE_URL"),
    *(*VARIABLES, *(name.lower() for name in VARIABLES)),
)


@hinted
class SharedInstance(ManagedInstance):
    """Share one instance between the processes of a machine, such as a server's workers.

    Enter the same `SharedInstance` in each process and use it like a `BackgroundInstance`. The first process
    starts another process, the owner, which manages the instance. Every process keeps a connection to the
    owner. When the last connection is closed, the owner releases the instance. The last process to leave
    waits until the instance is released.

    The owner is not one of the workers, because servers often replace workers: after a crash, after a number
    of requests, or to load new code. The operating system closes a worker's connection however the worker
    ends. The owner has its own reaper. If the owner is killed, the reaper releases the instance, and the
    workers start a new owner.

    Processes share an instance if they have the same arguments, credentials, CORTECS_API_BASE_URL, state
    directory (CORTECS_STATE_DIR), proxy and certificate variables, host name, user, and version of this
    package. Credentials come from the environment or a profile. Sharing requires Unix sockets and file locks.
    Processes of other users cannot connect.

    Args:
        model_id: Same as in `client.instance`.
        hardware_type_id: Same as in `client.instance`.
        name: Processes with different names do not share an instance.
        pause: Same as in `BackgroundInstance`.
        linger: The time to keep the instance after the last process leaves, for servers that replace all of
            their workers at about the same time. A shutdown takes that much longer.
        **options: Same as in `client.instance`. See `StartOptions`.

    Raises:
        InvalidArgumentError: If `pause` or `linger` is too short, or another duration is invalid.

    Example:
        from cortecs_async.integrations.web import SharedInstance

        async with SharedInstance("meta-llama/Llama-3.1-8B-Instruct", max_cost=50) as shared:
            inst = await shared.wait()  # in a request, call shared.handle()
            print(inst.base_url)
    """

    def __init__(
        self,
        model_id: str,
        hardware_type_id: str | Sequence[str] | None = None,
        *,
        name: str = "",
        pause: Duration = 30.0,
        linger: Duration = 0.0,
        **options: Unpack[StartOptions],
    ) -> None:
        super().__init__(pause, options)
        self._spec = _shared_server.InstanceSpec(
            model_id=model_id,
            hardware_type_id=hardware_type_id,
            pause=float(self._pause),
            linger=float(check_seconds("linger", linger, at_least=0)),
            heartbeat=HEARTBEAT,
            # This process uses the key, so it checks the key itself. The owner does not.
            options={**self._options, "require_key": False},
        )
        self._require_key = self._options.get("require_key")
        self._name = name
        self._stream: SocketStream | None = None
        self._leaving = False
        self._has_touch = False  # to send to the owner
        self._touched_at = 0.0
        self._touched_state: State | None = None
        self._place: MeetingPoint | None = None
        # Set on entry.
        self._connector: OwnerConnector
        self._disconnected: anyio.Event

    async def _check(self) -> None:
        if sys.platform == "win32":
            raise ConfigurationError(
                "A shared instance needs Unix sockets and file locks, so it does not run on Windows"
            )
        if not sys.executable or getattr(sys, "frozen", False):
            raise ConfigurationError("A shared instance needs to run Python as a child process")
        self._leaving = False
        self._place = None
        self._disconnected = anyio.Event()
        async with AsyncCortecs(guard="off", journal="off") as client:
            options: StartOptions = {**self._spec["options"], "require_key": self._require_key}
            client.instance(self._spec["model_id"], self._spec["hardware_type_id"], **options)
        self._connector = OwnerConnector(
            self._meeting_point, json.dumps(self._spec), _shared_server.__name__, logger
        )
        self._connector.check()

    async def _run(self) -> None:
        try:
            backoff = _INITIAL_BACKOFF
            while True:
                received = await self._run_connection()
                if self._leaving:
                    break
                backoff = _INITIAL_BACKOFF if received else min(2 * backoff, self._pause)
                await anyio.sleep(backoff)
        finally:
            self._disconnected.set()

    async def _run_connection(self) -> bool:
        """Handle one connection to the owner until it ends. Return whether a state was received."""
        received, problem = False, "the previous owner process exited"
        try:
            async with await self._connector.connect() as self._stream, anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, self._stream)
                received = await self._receive(self._stream)
                tasks.cancel_scope.cancel()
        except OSError as error:
            problem = str(error)
        self._stream = None
        if self._leaving:
            return received
        reason: Reason = "restarting" if received else "starting"
        if (ended := await self._connector.owner_exit()) is not None:
            end, last_line = ended
            problem = f"the owner process {end}"
            if not received:
                reason, problem = "failed", ": ".join([problem, *last_line])
        level = logging.WARNING if reason == "failed" else logging.INFO
        logger.log(level, "Could not connect to the instance's owner process: %s", problem)
        self._set(Unavailable(reason, f"the instance has no owner process: {problem}"))
        return received

    async def _send(self, stream: SocketStream) -> None:
        """Send reports to the owner, and notify it when this process leaves."""
        # The connection may have just ended. Then no owner is left to notify.
        with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while not self._leaving:
                if self._has_touch:
                    self._has_touch = False
                    await stream.send(_shared_server.encode_touch())
                    continue
                if self._reported is None:
                    await self._new_report.wait()
                    continue
                instance_id, self._reported = self._reported, None
                await stream.send(_shared_server.encode_report(instance_id))
            await stream.send_eof()

    def note_use(self) -> None:
        if (timeout := self._options.get("idle_timeout")) is None:
            return
        # Seldom while it runs. Otherwise at once, because the owner may wait for this to start a new one.
        state, pause = self._state, min(as_seconds(timeout) / 4, HEARTBEAT)
        is_due = isinstance(state, InstanceHandle) and boottime() - self._touched_at >= pause
        if is_due or state is not self._touched_state:
            self._touched_at, self._touched_state, self._has_touch = boottime(), state, True
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._run_in_loop(self._new_report.notify)

    async def _receive(self, stream: SocketStream) -> bool:
        """Receive the owner's states until the connection closes. Return whether there were any."""
        reader, received = LineReader(stream), False
        monitor = SilenceMonitor(
            self._meeting_point,
            json.dumps(self._spec),
            logger,
            lambda problem: self._set(Unavailable("unresponsive", problem)),
        )
        while True:
            lines: list[bytes] = []
            # One by one: a process that was suspended itself counts one miss and then reads what has arrived.
            with anyio.move_on_after(self._spec["heartbeat"]) as waiting:
                try:
                    lines = await reader.next_lines()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return received
            if waiting.cancelled_caught:
                monitor.missed()
                continue
            monitor.heard()
            if lines:
                received = True
                self._set(_shared_server.decode(lines[-1]))

    async def _leave(self) -> None:
        self._leaving = True
        if self._stream is None:
            return
        timeout = (
            self._spec["linger"] + as_seconds(self._options.get("teardown_timeout", 120.0)) + _LEAVE_MARGIN
        )
        with anyio.move_on_after(timeout):
            self._new_report.notify()
            await self._disconnected.wait()

    @property
    def _meeting_point(self) -> MeetingPoint:
        """Return the files for exactly the processes that share this instance.

        Computed once per block: the config file may change, or be temporarily unreadable.
        """
        if self._place is None:
            self._place = self._find_meeting_point()
        return self._place

    def _find_meeting_point(self) -> MeetingPoint:
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        # First: it can raise, and a traceback that shows locals would show the secrets below.
        found = resolve_sources(client_id=None, client_secret=None, provider=None, profile=None)[0].profile
        environment = [os.environ.get(name, "").strip() for name in _ENVIRONMENT]
        if found is not None:
            environment += [found.name, found.client_id, found.client_secret.reveal(), found.api_base_url]
        key = [self._name, self._spec, environment, socket.gethostname(), os.getuid(), __version__]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return MeetingPoint(state_directory(None) / "shared" / f"{digest[:16]}.sock")
