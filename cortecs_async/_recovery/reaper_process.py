"""The parent's side of the reaper: start the process, send it each record, and wait for its responses.

`store` uses one `ReaperProcess`, and starts it again when it dies. The child's side is `reaper`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .._errors import GuardError
from .._secrets import Secret
from .reaper import BOOTSTRAP
from .records import Record, encode

# Seconds to wait for a response. On a loaded machine, the reaper starts in a tenth of that.
_REAPER_ACK_TIMEOUT = 15.0

# Seconds to wait until BYE is written, and then until the process exits.
_BYE_TIMEOUT, _EXIT_TIMEOUT = 1.0, 2.0

# Records of the reaper's own actions that change the promises.
_ACTION_KINDS = frozenset({"CREATED", "AMBIGUOUS", "GONE"})

# The reaper gets no other variables: credentials are often among them.
_ENVIRONMENT = frozenset({
    "HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
})  # fmt: skip


class ReaperProcess:
    """A reaper, which can be started again when it is dead. The caller must not overlap calls.

    Both callbacks are called in a thread: `on_death` when the reaper died unexpectedly, and `on_action` with
    the record of an action of the reaper.
    """

    def __init__(self, on_death: Callable[[], None], on_action: Callable[[Record], None]) -> None:
        self._on_death = on_death
        self._on_action = on_action
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: subprocess.Popen[bytes] | None = None  # closed its end of the pipe
        self._last_sent = 0
        self._last_acknowledged = 0
        self._changed = threading.Condition()  # of `_ended` and `_last_acknowledged`

    @property
    def is_running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start a reaper without promises.

        Raises:
            GuardError: if it cannot be started here.
        """
        self.kill()
        if os.name != "posix" or getattr(sys, "frozen", False) or not sys.executable:
            raise GuardError("no Python interpreter can be started here for the reaper")
        try:
            process = subprocess.Popen(  # noqa: S603  (this very interpreter)
                [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(Path(__file__).parent.parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # out of reach of Ctrl-C and of a closed terminal
                cwd="/",
                env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
            )
        except OSError as error:
            raise GuardError(f"the reaper could not be started: {error}") from None
        assert process.stdin is not None  # noqa: S101  (for the type checker)
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        self._last_sent = self._last_acknowledged = 0
        try:
            threading.Thread(target=self._listen, args=(process,), name="cortecs-reaper", daemon=True).start()
        except RuntimeError as error:
            self.kill()
            raise GuardError(f"no thread can be started to listen to the reaper: {error}") from None

    def handshake(self) -> None:
        """Send where the HTTP stack is imported from, and wait for the response.

        Raises:
            GuardError: if the reaper does not respond.
        """
        self.send([{"kind": "HELLO", "path": [each or str(Path.cwd()) for each in sys.path]}])

    def send(self, messages: Iterable[Record]) -> None:
        """Send messages, and wait until the reaper has acknowledged all of them.

        Raises:
            GuardError: if it does not do so in time. Then it is killed.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise GuardError("the reaper is not running")
        numbered: list[Record] = []
        for message in messages:
            self._last_sent += 1
            numbered.append({**message, "number": self._last_sent})
        deadline = time.monotonic() + _REAPER_ACK_TIMEOUT
        problem = _send(process.stdin.fileno(), numbered, deadline)
        if problem:
            self.kill()
            raise GuardError(f"the reaper died: {problem}")
        with self._changed:
            self._changed.wait_for(
                lambda: self._last_acknowledged >= self._last_sent or self._ended is process,
                timeout=deadline - time.monotonic(),
            )
            if self._last_acknowledged >= self._last_sent:
                return
        self.kill()
        raise GuardError("the reaper did not respond")

    def shutdown(self) -> None:
        """End the reaper: all promises are fulfilled."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            _send(process.stdin.fileno(), [{"kind": "BYE", "number": 0}], time.monotonic() + _BYE_TIMEOUT)
        _close_pipe(process)
        try:
            process.wait(timeout=_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def detach(self) -> None:
        """Close the pipe and let the reaper fulfill the remaining promises."""
        process, self._process = self._process, None
        if process is not None:
            _close_pipe(process)

    def kill(self) -> None:
        """Kill a reaper that does not work."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close_pipe(process)

    def close_in_child(self) -> None:
        """In a forked child: close the pipe, so that the reaper sees its end when the parent dies."""
        process = self._process
        if process is not None and process.stdin is not None:
            # Not `close`: a thread of the parent, which the child does not have, may have held its lock.
            devnull = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(devnull, process.stdin.fileno(), inheritable=False)
            os.close(devnull)
            process.returncode = 0  # not a child of this process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        stream = process.stdout
        assert stream is not None  # noqa: S101  (for the type checker)
        with stream:
            for line in stream:
                message = json.loads(line)
                if "action" in message:
                    # A detached reaper works on promises that the store no longer has.
                    if process is self._process and message["action"]["kind"] in _ACTION_KINDS:
                        self._on_action(message["action"])
                    continue
                with self._changed:
                    if process is self._process:
                        self._last_acknowledged = int(message["ack"])
                        self._changed.notify_all()
        process.wait()
        with self._changed:
            self._ended = process
            self._changed.notify_all()
        if process is self._process:
            self._on_death()


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _send(fd: int, messages: list[Record], deadline: float) -> str:
    """Send messages, and return what went wrong. The frames of an exception would show the secrets."""
    data = encode(
        {name: value.reveal() if isinstance(value, Secret) else value for name, value in each.items()}
        for each in messages
    )
    try:
        _write(fd, data, deadline)
    except OSError as error:
        return str(error)
    return ""


def _write(fd: int, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    ready = select.poll()  # unlike `select`, it takes descriptors above 1023
    ready.register(fd, select.POLLOUT)
    while view:
        if not ready.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise TimeoutError("it stopped reading")
        view = view[os.write(fd, view) :]
