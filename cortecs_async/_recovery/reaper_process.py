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
from collections.abc import Callable, Iterable
from pathlib import Path

from .._aio.clock import boottime
from .._environment import import_path
from .._errors import GuardError
from .._platform import NO_REAPER, O_CLOEXEC
from .._secrets import Secret
from .pipe import encode_messages
from .records import Record, decode
from .rehearsal_record import identity_of, is_recorded

# Seconds to wait for a response. Even on a loaded machine, the reaper starts in a tenth of this time.
_REAPER_ACK_TIMEOUT = 15.0

# Seconds to wait until BYE is written, and after that until the process exits.
_BYE_TIMEOUT, _EXIT_TIMEOUT = 1.0, 2.0

# The reaper's own records that change the promises.
_ACTION_KINDS = frozenset({"CREATED", "AMBIGUOUS", "GONE"})

# The reaper does not get any other variables, because these often contain credentials. Its proxies and
# certificates are the ones that its parent has read. They come with the credentials.
_ENVIRONMENT = frozenset({"HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH"})

# Registers the package without its __init__, which would import everything. None in `sys.modules` makes an
# import fail: if they are installed, httpx imports these modules for its command line, for trio, for HTTP/2,
# and for compressions that our requests do not accept.
BOOTSTRAP = """
import sys
sys.modules.update(dict.fromkeys(["click", "trio", "h2", "brotli", "brotlicffi", "zstandard"]))
package = type(sys)("cortecs_async")
package.__path__ = [sys.argv[1]]
sys.modules["cortecs_async"] = package
from cortecs_async._recovery.reaper import main
main()
"""


class ReaperProcess:
    """A reaper that can be started again after its death. The caller must not overlap calls.

    The callbacks are called in a thread: `on_death` when the reaper dies unexpectedly, `on_action` with the
    record of an action by the reaper, and `on_rehearsed` after the reaper has tried to connect to the service
    of an account, with the account and the problem (empty if there is none). `records` is the folder for the
    records of rehearsals, or None to keep none.
    """

    def __init__(
        self,
        on_death: Callable[[], None],
        on_action: Callable[[Record], None],
        on_rehearsed: Callable[[str, str], None],
        records: Path | None = None,
    ) -> None:
        self._on_death = on_death
        self._on_action = on_action
        self._on_rehearsed = on_rehearsed
        self._records = records
        self._import_path: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: subprocess.Popen[bytes] | None = None  # a reaper that closed its end of the pipe
        self._is_ready = False
        self._last_sent = 0
        self._last_acknowledged = 0
        # By account: the number of its last message, and the outcome of the rehearsal for this message.
        self._armed: dict[str, int] = {}
        self._rehearsed: dict[str, str] = {}
        self._changed = threading.Condition()  # of `_ended` and `_last_acknowledged`

    @property
    def is_running(self) -> bool:
        """Whether the process is running and has responded to the handshake."""
        return self._is_ready and self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start a reaper without promises.

        Raises:
            GuardError: If it cannot be started here.
        """
        self.kill()
        if sys.platform == "win32":
            raise GuardError(NO_REAPER)
        if problem := _missing():
            raise GuardError(problem)
        try:
            process = subprocess.Popen(  # noqa: S603  (this very interpreter)
                [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(Path(__file__).parent.parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # out of reach of Ctrl-C and of a closing terminal
                cwd="/",
                env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
            )
        except Exception as error:  # noqa: BLE001  (an OSError, or one of a patched `subprocess`)
            raise GuardError(f"could not start the process: {error}") from None
        assert process.stdin is not None  # noqa: S101  (for the type checker)
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        self._last_sent = self._last_acknowledged = 0
        self._armed, self._rehearsed = {}, {}
        try:
            threading.Thread(target=self._listen, args=(process,), name="cortecs-reaper", daemon=True).start()
        except RuntimeError as error:
            self.kill()
            if process.stdout is not None:
                process.stdout.close()
            raise GuardError(f"cannot start a thread to listen to the reaper: {error}") from None

    def handshake(self) -> None:
        """Send the import path of the HTTP stack, and wait for the response.

        Raises:
            GuardError: If the reaper does not respond. It is then killed.
        """
        self._import_path = import_path()
        self.send([{"kind": "HELLO", "path": self._import_path}])
        self._is_ready = True

    def send(self, messages: Iterable[Record]) -> None:
        """Send messages and wait until the reaper has acknowledged all of them.

        Raises:
            GuardError: If the reaper does not do so in time. It is then killed.
        """
        process = self._process
        if process is None or process.stdin is None:
            raise GuardError("the reaper is not running")
        numbered: list[Record] = []
        recorded: list[str] = []
        for message in map(self._with_record, messages):
            self._last_sent += 1
            numbered.append({**message, "number": self._last_sent})
            if message["kind"] == "ARM":
                self._armed[message["account"]] = self._last_sent
                self._rehearsed.pop(message["account"], None)
                if message.get("is_recorded"):
                    recorded.append(message["account"])
        deadline = boottime() + _REAPER_ACK_TIMEOUT
        problem = _send(process.stdin.fileno(), numbered, deadline)
        if problem:
            self.kill()
            raise GuardError(f"the reaper {problem}")
        with self._changed:
            self._changed.wait_for(
                lambda: self._last_acknowledged >= self._last_sent or self._ended is process,
                timeout=deadline - boottime(),
            )
            if self._last_acknowledged >= self._last_sent:
                for account in recorded:
                    self._end_rehearsal(account, "")
                return
        self.kill()
        raise GuardError("the reaper did not respond")

    def _with_record(self, message: Record) -> Record:
        """Tell the reaper where the record of an account's rehearsal is, and whether it is sufficient."""
        if message["kind"] != "ARM" or self._records is None:
            return message
        identity = identity_of(json.loads(message["sealed"].reveal()), self._import_path)
        is_sufficient = message.get("is_direct") and is_recorded(self._records, identity)
        return {**message, "record": [str(self._records), identity], "is_recorded": bool(is_sufficient)}

    def rehearsed(self, account: str) -> str | None:
        """Return the problem the reaper had when connecting to the service of an account.

        The result is empty if there was no problem, and None if the reaper has not reported yet.
        """
        return self._rehearsed.get(account)

    def shutdown(self) -> None:
        """Stop the reaper, because all promises are fulfilled."""
        process = self._take()
        if process is None:
            return
        if process.stdin is not None:
            _send(process.stdin.fileno(), [{"kind": "BYE", "number": 0}], boottime() + _BYE_TIMEOUT)
        _close_pipe(process)
        # Not `process.wait`, which checks for the exit in growing steps of up to 50 ms.
        with self._changed:
            has_ended = self._changed.wait_for(lambda: self._ended is process, _EXIT_TIMEOUT)
        if not has_ended:
            process.kill()
            process.wait()

    def detach(self) -> None:
        """Close the pipe and let the reaper fulfill the remaining promises."""
        process = self._take()
        if process is not None:
            _close_pipe(process)

    def kill(self) -> None:
        """Kill a broken reaper."""
        process = self._take()
        if process is not None:
            process.kill()
            process.wait()
            _close_pipe(process)

    def close_in_child(self) -> None:
        """Close the pipe in a forked child, so that the reaper sees its end when the parent dies."""
        process = self._process
        if process is not None and process.stdin is not None:
            # Not `close`, because a parent's thread that does not exist in the child may have held its lock.
            devnull = os.open(os.devnull, os.O_WRONLY | O_CLOEXEC)
            os.dup2(devnull, process.stdin.fileno(), inheritable=False)
            os.close(devnull)
            process.returncode = 0  # not a child of this process

    def _take(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        self._is_ready = False
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        stream = process.stdout
        assert stream is not None  # noqa: S101  (for the type checker)
        try:
            with stream, contextlib.suppress(OSError):
                for line in stream:
                    for message in decode(line):
                        # An unknown line must not end this thread.
                        with contextlib.suppress(KeyError, TypeError, ValueError):
                            self._receive(process, message)
            process.wait()
        finally:
            with self._changed:
                self._ended = process
                self._changed.notify_all()
            if process is self._process:
                self._on_death()

    def _receive(self, process: subprocess.Popen[bytes], message: Record) -> None:
        if process is not self._process:
            return  # the store no longer has the promises of a detached reaper
        if "action" in message:
            if message["action"]["kind"] in _ACTION_KINDS:
                self._on_action(message["action"])
        elif "rehearsed" in message:
            account, problem = str(message["rehearsed"]), str(message["problem"])
            if self._armed.get(account) == message["number"]:  # not for earlier credentials
                self._end_rehearsal(account, problem)
        else:
            number = int(message["ack"])
            with self._changed:
                self._last_acknowledged = number
                if number >= self._last_sent:  # `send` waits for its last message
                    self._changed.notify_all()

    def _end_rehearsal(self, account: str, problem: str) -> None:
        self._rehearsed[account] = problem
        self._on_rehearsed(account, problem)


def _missing() -> str:
    """Return what is missing to start a reaper in this program, or an empty string if nothing is."""
    if getattr(sys, "frozen", False) or getattr(sys, "oxidized", False) or "__compiled__" in globals():
        return (
            "this program was frozen into an executable (for example, by PyInstaller), and the reaper "
            "cannot be started without a Python interpreter"
        )
    if not sys.executable:
        return "sys.executable is empty, and the reaper cannot be started without a Python interpreter"
    return ""


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _send(fd: int, messages: list[Record], deadline: float) -> str:
    """Send messages and return the problem, if any. An exception's frames would show the secrets."""
    try:
        _write(fd, encode_messages(map(revealed, messages)), deadline)
    except TimeoutError:
        return "stopped responding"
    except OSError as error:
        return f"died: {error}"
    except Exception as error:  # noqa: BLE001  (its text may show a message)
        return f"died: {type(error).__name__}"
    return ""


def revealed(message: Record) -> Record:
    """Return a message with its secrets, and with the types of JSON only, as the reaper receives it."""
    secrets = {
        name: json.loads(value.reveal()) for name, value in message.items() if isinstance(value, Secret)
    }
    others = {name: value for name, value in message.items() if name not in secrets}
    plain: Record = json.loads(json.dumps(others))
    return {**plain, **secrets}


def _write(fd: int, data: bytes, deadline: float) -> None:
    if sys.platform == "win32":
        raise OSError(NO_REAPER)
    view = memoryview(data)
    ready = select.poll()  # unlike `select`, it supports descriptors above 1023
    ready.register(fd, select.POLLOUT)
    while view:
        if not ready.poll(max(deadline - boottime(), 0.0) * 1000):
            raise TimeoutError
        view = view[os.write(fd, view) :]
