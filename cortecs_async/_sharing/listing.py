"""Find the shared instances of this user, and release one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
from pathlib import Path

import anyio
from attrs import asdict

from .._errors import ConfigurationError, InvalidArgumentError, LifecycleError, TeardownError
from .._platform import NO_LOCKS
from .._state_directory import StateFolder, check_state_directory
from .._version import __version__
from . import lines
from .connector import connect
from .info import SharedInfo, SharedState, decode_info
from .lines import LineReader
from .meeting_point import MeetingPoint
from .owner_process import kill_frozen
from .protocol import Ended, Hello, decode_state

_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")

# The sockets of named instances: a prefix of the account, and a digest of the name.
_SOCKET = re.compile(r"n-([0-9a-f]{8})-[0-9a-f]{12}\.sock")

# Seconds for the answer of an owner, which is busy at most for moments.
_ANSWER_TIMEOUT = 5.0

# Seconds in addition to the owner's teardown timeout, and between two checks whether it has exited.
_RELEASE_MARGIN, _EXIT_INTERVAL = 30.0, 0.05


def check_name(name: str) -> str:
    """Return the name of a shared instance.

    Raises:
        InvalidArgumentError: If it is not valid.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"The name of a shared instance must be 1 to 60 letters, digits, `.`, `_`, or `-`, not {name!r}"
        )
    return name


def check_system() -> None:
    """Raise a ConfigurationError if instances cannot be shared on this system."""
    if sys.platform == "win32":
        raise ConfigurationError(
            "A shared instance needs Unix sockets and file locks, so it does not run on Windows"
        )
    if not sys.executable or getattr(sys, "frozen", False):
        raise ConfigurationError("A shared instance needs to run Python as a child process")


def shared_folder(state_dir: Path) -> Path:
    """Return the directory of the sockets and locks."""
    return state_dir / "shared"


def place_of(state_dir: Path, account: str, name: str) -> MeetingPoint:
    """Return the files of a name. Other accounts, machines, and users have others.

    Args:
        state_dir: The state directory, which several machines may share.
        account: The fingerprint of the account.
        name: The name.
    """
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    key = "\n".join([account, socket.gethostname(), str(os.getuid()), name])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return MeetingPoint(shared_folder(state_dir) / f"n-{account[:8]}-{digest}.sock", name)


async def list_shared(state_dir: Path, account: str | None) -> tuple[SharedInfo, ...]:
    """Return the shared instances of an account, or of all accounts, by name. Remove files of dead owners.

    Raises:
        JournalError: If the state directory cannot be used.
    """
    if sys.platform == "win32":
        return ()
    folder = shared_folder(state_dir)
    check_state_directory(folder)
    try:
        with StateFolder(folder) as opened:
            names = opened.names()
    except FileNotFoundError:
        return ()
    found: list[SharedInfo] = []

    async def ask(place: MeetingPoint) -> None:
        if (info := await _ask(place)) is not None:
            found.append(info)

    async with anyio.create_task_group() as tasks:
        for each in names:
            match = _SOCKET.fullmatch(each)
            if match is not None and (account is None or account.startswith(match[1])):
                tasks.start_soon(ask, MeetingPoint(folder / each))
    return tuple(sorted(found, key=lambda info: info.name))


async def _ask(place: MeetingPoint) -> SharedInfo | None:
    """Return what an owner says about its instance, or None if there is no owner."""
    with anyio.move_on_after(_ANSWER_TIMEOUT), contextlib.suppress(OSError, anyio.EndOfStream):
        async with await connect(place) as stream:
            hello = Hello(wish="info", version=__version__, pid=os.getpid())
            await stream.send(lines.encode(asdict(hello)))
            reader = LineReader(stream)
            while True:
                for line in await reader.next_lines():
                    if (info := decode_info(lines.decode(line))) is not None:
                        return info
    return _silent(place)


def _silent(place: MeetingPoint) -> SharedInfo | None:
    """Return what the files say about an owner that does not answer. Remove them if it is dead."""
    with contextlib.suppress(OSError):
        lock = place.try_lock()
        if lock is not None:
            try:
                place.remove(lock)
            finally:
                os.close(lock)
            return None
        if name := place.noted_name():
            state: SharedState = "starting" if place.owner_is_starting() else "unresponsive"
            return SharedInfo(name=name, state=state, owner_pid=place.owner_pid())
    return None


async def release_shared(place: MeetingPoint, *, force: bool, teardown_timeout: float) -> SharedInfo | None:
    """Release a shared instance, and return its last information, or None if there is none.

    Raises:
        LifecycleError: If other processes use it, or its owner does not respond, and `force` is not set.
        CortecsError: If the release failed.
    """
    info: SharedInfo | None = None
    is_confirmed = True
    with anyio.move_on_after(teardown_timeout + _RELEASE_MARGIN) as waiting:
        info = await _ask(place)
        if info is None:
            return None
        if info.state == "unresponsive":
            await _kill(place, info, force=force)
        else:
            is_confirmed = await _release(place, force=force)
        # The next process with this name must find no owner.
        while (  # noqa: ASYNC110  (no event tells)
            place.owner_pid() == info.owner_pid and place.is_owned()
        ):
            await anyio.sleep(_EXIT_INTERVAL)
    if waiting.cancelled_caught and info is not None:
        raise TeardownError(
            f"The shared instance {info.name!r} was not released in time. Its owner process "
            f"(process id {info.owner_pid}) continues.",
            instance_id=info.instance_id or "",
        )
    if not is_confirmed and info is not None:
        raise TeardownError(
            f"The owner process of the shared instance {info.name!r} exited before it confirmed the release. "
            "If it was killed, its reaper releases the instance. Check with client.instances.list().",
            instance_id=info.instance_id or "",
        )
    return info


async def _release(place: MeetingPoint, *, force: bool) -> bool:
    """Make the owner release the instance. Return whether it has confirmed the release."""
    with contextlib.suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        async with await connect(place) as stream:
            hello = Hello(wish="release", version=__version__, pid=os.getpid(), force=force)
            await stream.send(lines.encode(asdict(hello)))
            reader = LineReader(stream)
            while True:
                for line in await reader.next_lines():
                    message = lines.decode(line)
                    now = decode_info(message)
                    if now is not None and now.holders and not force:
                        raise _in_use(now)
                    state = decode_state(message)
                    if isinstance(state, Ended):
                        if isinstance(state.error, TeardownError):
                            raise state.error
                        return True
    return False


def _in_use(info: SharedInfo) -> LifecycleError:
    pids = ", ".join(map(str, info.holders))
    users = f"processes {pids} use it" if len(info.holders) > 1 else f"process {pids} uses it"
    return LifecycleError(
        f"The shared instance {info.name!r} was not released, because {users}. "
        "Pass force=True to end their blocks too.",
        instance_id=info.instance_id or "",
    )


async def _kill(place: MeetingPoint, info: SharedInfo, *, force: bool) -> None:
    if not force:
        raise LifecycleError(
            f"The owner process of the shared instance {info.name!r} (process id {info.owner_pid}) does not "
            "respond. Pass force=True to kill it. Its reaper then releases the instance.",
            instance_id="",
        )
    if info.owner_pid is not None:
        kill_frozen(info.owner_pid, os.fspath(place.address))
