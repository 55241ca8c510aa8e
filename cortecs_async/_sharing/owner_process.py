"""Start the owner process of a shared instance, and report how it exited."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio

from .._environment import import_path
from .._platform import NO_LOCKS, O_CLOEXEC
from .._secrets import Hidden, Redactor, Secret
from .owner_log import OwnerLog

# The owner's imports must not depend on the app's folder, which may contain a `types.py`. So the
# standard library comes first, then the path of this process, then what `site` adds. With `-S`, `sys.path` is
# the standard library alone, until `site.main` runs the .pth files, which editable installs need.
BOOTSTRAP = """
import sys
path = [*sys.path, *sys.argv[5:]]
import site
site.main()
sys.path[:] = dict.fromkeys([*path, *sys.path])
import importlib
importlib.import_module(sys.argv[4]).main()
"""

_STDERR = 2

# Bytes to keep of the output of an owner that fails to start.
_MAX_OUTPUT = 8192

# Seconds.
_POLL_INTERVAL = 0.02

# The values of environment variables with these words in their names are not shown.
_SECRET_WORDS = ("SECRET", "TOKEN", "KEY", "PASSWORD", "CREDENTIAL")

# Characters.
_LONGEST_FLAG = 5


class OwnerProcess:
    """The owner process, as seen by the process that started it.

    Args:
        lock: The descriptor of the lock. The owner inherits it.
        listener: The descriptor of the socket. The owner inherits it too.
        spec: The instance, as JSON. Every user of the machine can see it.
        module: The name of the module whose `main` the owner runs.
        logger: Receives how the owner exited.
        job: A line for the owner's standard input, which may contain secrets.

    Attributes:
        pid: Its process id.
        last_line: A list with the last line that it wrote before it was ready. The list is empty if there is
            none.

    Raises:
        OSError: If the owner process cannot be started.
    """

    def __init__(
        self,
        lock: int,
        listener: int,
        spec: str,
        *,
        module: str,
        logger: OwnerLog,
        job: Hidden[bytes] | None = None,
    ) -> None:
        self.last_line: list[str] = []
        self._logger = logger
        self._job = job
        self._end: str | None = None
        # -E and -P: ignore this process's PYTHONPATH and the working directory. Both are in its path.
        flags = ["-E", "-P", "-S", *(["-s"] if sys.flags.no_user_site else [])]
        self._process = subprocess.Popen(  # noqa: S603  (this very interpreter)
            [sys.executable, *flags, "-c", BOOTSTRAP, str(lock), str(listener), spec, module, *import_path()],
            stdin=subprocess.DEVNULL if job is None else subprocess.PIPE,
            # The owner writes its errors here once it is ready (see `follow_starter`).
            stdout=_STDERR if _is_open(_STDERR) else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(lock, listener),
            start_new_session=True,  # out of reach of Ctrl-C and of a closing terminal
        )
        self.pid: int = self._process.pid
        # The thread also reaps the child: this process may outlive it.
        threading.Thread(target=self._watch, name="cortecs-owner", daemon=True).start()

    async def wait(self, timeout: float) -> str | None:
        """Return how the owner exited, or None if it has not exited within `timeout` seconds."""
        with anyio.move_on_after(timeout):
            while self._end is None:  # noqa: ASYNC110  (a thread sets it)
                await anyio.sleep(_POLL_INTERVAL)
        return self._end

    def _watch(self) -> None:
        if self._process.stdin is not None and self._job is not None:
            # In this thread, because the owner may not read for a while. If it has died, see below.
            with contextlib.suppress(OSError), self._process.stdin as stdin:
                stdin.write(self._job.reveal())
            self._job = None
        stream = self._process.stderr
        assert stream is not None  # noqa: S101  (for the type checker)
        output = b""
        with stream:
            while chunk := os.read(stream.fileno(), _MAX_OUTPUT):
                output = (output + chunk)[-_MAX_OUTPUT - 1 :]
        if len(output) > _MAX_OUTPUT:
            # Whole lines, because the rest of a secret would not be recognized.
            output = output.partition(b"\n")[2]
        end = _description(self._process.wait())
        secrets = _secrets()
        lines = [_one_line(line, secrets) for line in output.decode(errors="replace").splitlines()]
        if lines := list(filter(None, lines)):
            self._logger.info("The owner process %s. Its output:\n%s", end, "\n".join(lines))
        self.last_line = lines[-1:]
        self._end = end


def redirect_stderr() -> None:
    """In the owner, write errors from now on to the stderr of the process that started it."""
    os.dup2(1, _STDERR)


async def follow_starter() -> None:
    """In the owner, write errors to the stderr of the process that started it, until that process exits.

    If the owner kept this stderr for longer, a program that reads the output of the other process would wait
    until the owner exits too.
    """
    # Only the process that started this one, and its forks, have the other end of this pipe.
    pipe = os.dup(_STDERR)
    redirect_stderr()
    try:
        # Nothing is ever to read here. This returns once the other end is closed.
        await anyio.wait_readable(pipe)
    finally:
        os.close(pipe)
    devnull = os.open(os.devnull, os.O_WRONLY | O_CLOEXEC)
    for number in (1, _STDERR):
        os.dup2(devnull, number)
    os.close(devnull)


def kill_frozen(pid: int, spec: str) -> None:
    """Kill an owner, started with `spec`, that does not respond. Its reaper then releases the instance.

    The id comes from a note in the lock. In another container, it may belong to an unrelated process, which
    is left alone. On a system without /proc, no process is killed.
    """
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return
    if {BOOTSTRAP.encode(), os.fsencode(spec)} <= set(command.split(b"\0")):
        with contextlib.suppress(ProcessLookupError):  # another worker was faster
            os.kill(pid, signal.SIGKILL)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _description(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _one_line(text: str, secrets: Iterable[Secret]) -> str:
    redactor = Redactor()
    for each in secrets:  # one at a time, because a redactor remembers only a few
        redactor = Redactor()
        redactor.remember(each)
        text = redactor.redact(text)
    return redactor.one_line(text)


def _secrets() -> list[Secret]:
    """Return the secrets in the environment, which the owner has too, longest first."""
    found: list[str] = []
    for name, value in os.environ.items():
        if name.upper().endswith("_PROXY"):
            found += [password := _password(value), unquote(password)]
        elif any(word in name.upper() for word in _SECRET_WORDS):
            found.append(value.strip())
    # Without flags, because they would hide every 1 in the text.
    return [Secret(each) for each in sorted(found, key=len, reverse=True) if len(each) > _LONGEST_FLAG]


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return url
