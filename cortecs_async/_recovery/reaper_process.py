"""The parent's side of the reaper: starts it, tells it everything, and replaces it when it dies."""

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

# Seconds until a reaper that does not answer is given up. It starts in a tenth of that on a loaded machine.
_REAPER_ACK_TIMEOUT = 15.0

# What a reaper does that changes what is owed.
_NEWS = frozenset({"CREATED", "AMBIGUOUS", "GONE"})

# The rest of the environment, in which credentials often stand, is not handed on.
_ENVIRONMENT = frozenset({
    "HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
})  # fmt: skip


class ReaperProcess:
    """One reaper at a time. Used under the lock of its owner, except for `discard`.

    Args:
        on_death: Called in a thread when the reaper died unasked.
        on_deed: Called in a thread with a record of what the reaper did.
    """

    def __init__(self, on_death: Callable[[], None], on_action: Callable[[Record], None]) -> None:
        self._on_death = on_death
        self._on_deed = on_action
        self._process: subprocess.Popen[bytes] | None = None
        self._silent: subprocess.Popen[bytes] | None = None
        self._sent = 0
        self._acknowledged = 0
        self._news = threading.Condition()

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id, for people."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts a reaper that knows nothing yet.

        Raises:
            GuardError: when there is none to be had here.
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
                start_new_session=True,  # out of reach of Ctrl-C and of the terminal's end
                cwd="/",
                env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
            )
        except OSError as error:
            raise GuardError(f"the reaper could not be started: {error}") from None
        assert process.stdin is not None  # noqa: S101  (for the type checker)
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        self._sent = self._acknowledged = 0
        try:
            threading.Thread(target=self._listen, args=(process,), name="cortecs-reaper", daemon=True).start()
        except RuntimeError as error:
            self.kill()
            raise GuardError(f"no thread to listen to the reaper: {error}") from None

    def handshake(self) -> None:
        """Says where the HTTP stack is found, should it be needed; returns when it answers.

        Raises:
            GuardError: when it does not.
        """
        self.send([{"kind": "HELLO", "path": [each or str(Path.cwd()) for each in sys.path]}])

    def send(self, messages: Iterable[Record]) -> None:
        """Sends messages, and returns when it has said that it understood them all.

        Raises:
            GuardError: when it did not, in time; it is discarded then.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise GuardError("the reaper does not run")
        numbered: list[Record] = []
        for message in messages:
            self._sent += 1
            numbered.append({**message, "number": self._sent})
        deadline = time.monotonic() + _REAPER_ACK_TIMEOUT
        problem = _send(process.stdin.fileno(), numbered, deadline)
        if problem:
            self.kill()
            raise GuardError(f"the reaper is gone: {problem}")
        with self._news:
            self._news.wait_for(
                lambda: self._acknowledged >= self._sent or self._silent is process,
                timeout=deadline - time.monotonic(),
            )
            if self._acknowledged >= self._sent:
                return
        self.kill()
        raise GuardError("the reaper did not answer")

    def shutdown(self) -> None:
        """Lets it go: nothing is owed."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            _send(process.stdin.fileno(), [{"kind": "BYE", "number": 0}], time.monotonic() + 1.0)
        self._let_go(process)
        try:
            process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def detach(self) -> None:
        """Lets it outlive this client: it goes on with what is owed."""
        process, self._process = self._process, None
        if process is not None:
            self._let_go(process)

    def kill(self) -> None:
        """Ends one that does not work."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._let_go(process)

    def close_in_child(self) -> None:
        """In a forked child: the pipe must not stay open here, or its end would never come."""
        process = self._process
        if process is not None and process.stdin is not None:
            # Not `close`: its thread, which is not in the child, may have held a lock.
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, process.stdin.fileno(), inheritable=False)
            os.close(nowhere)
            process.returncode = 0  # nobody's child here

    def _let_go(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        stream = process.stdout
        assert stream is not None  # noqa: S101  (for the type checker)
        with stream:
            for line in stream:
                message = json.loads(line)
                if "deed" in message:
                    # One that was left behind works for a book that is closed.
                    if process is self._process and message["deed"]["kind"] in _NEWS:
                        self._on_deed(message["deed"])
                    continue
                with self._news:
                    if process is self._process:
                        self._acknowledged = int(message["ack"])
                        self._news.notify_all()
        process.wait()
        with self._news:
            self._silent = process
            self._news.notify_all()
        if process is self._process:
            self._on_death()


def _send(fd: int, messages: list[Record], deadline: float) -> str:
    """Sends messages; returns what went wrong. Not as an exception, whose frames would show the secrets."""
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
    ready = select.poll()  # not `select`, which knows no descriptor above 1023
    ready.register(fd, select.POLLOUT)
    while view:
        if not ready.poll(max(deadline - time.monotonic(), 0.0) * 1000):
            raise TimeoutError("it takes nothing any more")
        view = view[os.write(fd, view) :]
