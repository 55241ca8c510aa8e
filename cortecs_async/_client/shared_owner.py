"""The owner process of an instance shared by name. `client.shared` starts it.

It has two file descriptors, for its lock and its listening socket, and reads its job as one line from its
standard input. It holds the lease, and a `SharedServer` answers the processes that share the instance.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketListener

from .._aio.eventloop import BoottimeEventLoop
from .._api.model_ids import to_hf_name
from .._api.waiting import ProgressCallback
from .._config import RetryPolicy
from .._lease.lease import InstanceLease
from .._lease.options import start_options
from .._logging import log_to_stderr
from .._platform import NO_LOCKS
from .._poll_policy import PollPolicy
from .._secrets import Hidden, Secret
from .._sharing.connections import ConnectionListener
from .._sharing.info import SharedInfo
from .._sharing.meeting_point import MeetingPoint
from .._sharing.owner_log import EventLog
from .._sharing.owner_process import follow_starter
from .._sharing.server import SharedServer
from .client import AsyncCortecs

# Seconds to wait for the job. The process that started this one writes it immediately, unless it is killed.
_JOB_TIMEOUT = 60.0

_STDIN = 0


def new_server(client: AsyncCortecs, job: Hidden[dict[str, Any]], pid: int, now: float) -> SharedServer:
    """Return the server for a job from `shared_start`.

    Args:
        client: The client that leases the instance.
        job: The job.
        pid: The id of this process.
        now: The Unix time.
    """
    given = job.reveal()
    spec: dict[str, Any] = given["spec"]
    arguments = {name: value for name, value in spec.items() if name not in {"linger", "project"}}
    key = Secret(given["inference_key"]) or None
    client._wiring.promises.store.owner_note["shared"] = given["name"]  # noqa: SLF001

    def new_lease(on_progress: ProgressCallback) -> InstanceLease:
        options = start_options(
            **arguments,
            project=given["project"],
            on_progress=on_progress,
            require_key=False,
            inference_key=Hidden(key),
        )
        return client._wiring.lease(options)  # noqa: SLF001

    hardware = spec["hardware_type_id"]
    return SharedServer(
        name=given["name"],
        spec=spec,
        version=given["version"],
        linger=spec["linger"],
        heartbeat=given["heartbeat"],
        new_lease=new_lease,
        info=SharedInfo(
            name=given["name"],
            state="starting",
            model=to_hf_name(spec["model_id"]),
            hardware_type_id=hardware if isinstance(hardware, str) else None,
            owner_pid=pid,
            started_at=now,
        ),
    )


def new_client(job: Hidden[dict[str, Any]]) -> AsyncCortecs:
    """Return a client with the settings in a job. The reaper is required, because others rely on it."""
    settings = Hidden({**job.reveal()["client"]})
    settings.reveal()["retry_policy"] = RetryPolicy(**settings.reveal()["retry_policy"])
    settings.reveal()["poll_policy"] = PollPolicy(**settings.reveal()["poll_policy"])
    return AsyncCortecs(**settings.reveal(), guard="required")


async def _main(listener: socket.socket, lock: int, job: Hidden[dict[str, Any]]) -> None:
    place = MeetingPoint(Path(listener.getsockname()), job.reveal()["name"])
    async with new_client(job) as client:
        server = new_server(client, job, os.getpid(), time.time())
        accepting = ConnectionListener(place, lock, server.heartbeat, server.serve_connection, EventLog())
        opened = await SocketListener.from_socket(listener)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow_starter)
            await server.serve(accepting, opened)
            tasks.cancel_scope.cancel()


def _read_job() -> Hidden[dict[str, Any]] | None:
    """Return the job, or None if the process that started this one was killed before it wrote it."""
    deadline = time.monotonic() + _JOB_TIMEOUT
    data = bytearray()
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([_STDIN], [], [], max(deadline - time.monotonic(), 0.0))
        chunk = os.read(_STDIN, 1 << 16) if ready else b""
        if not chunk:
            return None
        data += chunk
    return Hidden(json.loads(data))


def main() -> None:
    """Run the owner. The lock's descriptor is never closed, so the process holds the lock until it exits."""
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    # A terminal or a service manager sends these signals to all processes. This one exits once no process
    # uses the instance.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log_to_stderr("cortecs_async, owner of a shared instance")
    lock, listener = map(int, sys.argv[1:3])
    job = _read_job()
    if job is None:
        return
    with socket.socket(fileno=listener) as accepting:
        # Its timers include the time during which the machine is suspended.
        anyio.run(_main, accepting, lock, job, backend_options={"loop_factory": BoottimeEventLoop})
