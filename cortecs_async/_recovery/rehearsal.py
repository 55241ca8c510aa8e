"""Rehearsals: the reaper checks that it can connect to the service before that is needed.

When the reaper receives an account, it forks a child. The child imports the HTTP stack, creates the HTTP
client, and connects, as the reaper would after its parent's death. It reports any problem and exits, so the
reaper itself stays small. The child runs `recover.rehearse`, and then records the outcome, so that the next
program can skip its rehearsal (`rehearsal_record` decides whether it can).
"""

from __future__ import annotations

import _thread
import gc
import sys
import time

from .._platform import NO_REAPER, os

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Sequence

    from .records import Record
else:
    import _signal as signal  # see `reaper`

# Seconds after which a rehearsal is killed.
_TIMEOUT = 15

# Maximum number of parallel rehearsals. Each takes 0.2 seconds of CPU time.
_MAX_CHILDREN = 2

# Held while the reaper forks or imports.
import_lock = _thread.allocate_lock()


class Rehearsals:
    """The rehearsals in progress. `send` sends each outcome to the parent.

    `closed_in_child` are the reaper's pipes. A child must not hold them open.
    """

    def __init__(self, send: Callable[[Record], None], closed_in_child: Iterable[int]) -> None:
        self._send = send
        self._closed_in_child = tuple(closed_in_child)
        self._children: dict[int, tuple[int, Record]] = {}  # process id and reply, by file descriptor
        self._waiting: list[tuple[str, Record, int, Sequence[str] | None]] = []  # arguments of `begin`
        self._created_at = time.time()

    @property
    def fds(self) -> list[int]:
        """The file descriptors that are readable when a child has exited."""
        return list(self._children)

    def begin(self, account: str, settings: Record, number: int, record: Sequence[str] | None = None) -> None:
        """Begin a rehearsal for an account. `number` is the number of its message.

        `record` is the folder and identity of the rehearsal's record, or None without one.
        """
        if sys.platform == "win32":
            raise OSError(NO_REAPER)
        answer = {"rehearsed": account, "number": number}
        if len(self._children) >= _MAX_CHILDREN:
            self._waiting.append((account, settings, number, record))
            return
        try:
            fd, result = os.pipe()
            try:
                # A module that another thread is importing would stay locked in the child.
                with import_lock:
                    pid = os.fork()
            except OSError:
                os.close(fd)
                os.close(result)
                raise
        except OSError as error:
            self._send({**answer, "problem": f"cannot start the check process: {error}"})
            return
        if pid == 0:
            _perform(settings, result, self._closed_in_child, record, self._created_at)
        os.close(result)
        self._children[fd] = pid, answer

    def end(self, fd: int) -> None:
        """Send the outcome of a child that has exited."""
        import json  # noqa: PLC0415  (see `reaper`)

        pid, answer = self._children.pop(fd)
        with open(fd, "rb") as file:
            data = file.read()
        code: int | str = "unknown"
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except OSError:
            pass
        try:
            problem = str(json.loads(data))
        except ValueError:
            problem = f"the check process exited without a result (exit status {code})"
        self._send({**answer, "problem": problem})
        if self._waiting:
            self.begin(*self._waiting.pop(0))

    def cancel(self) -> None:
        """Kill all children."""
        if sys.platform == "win32":
            raise OSError(NO_REAPER)
        self._waiting.clear()
        for pid, _ in self._children.values():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def _perform(
    settings: Record,
    result: int,
    closed_in_child: Iterable[int],
    record: Sequence[str] | None,
    since: float,
) -> None:
    """Rehearse in the child, write the outcome to the descriptor `result`, and exit."""
    if sys.platform == "win32":
        raise OSError(NO_REAPER)
    try:
        import json  # noqa: PLC0415  (see `reaper`)

        gc.disable()  # as the reaper does for these imports
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_TIMEOUT)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in closed_in_child:
            os.dup2(null, fd)
        missing = _MissingModules()
        sys.meta_path.append(missing)
        problem = _problem_of(settings)
        if record is not None:
            try:
                _write_record(record, settings, missing.names, since, problem)
            except Exception:  # noqa: BLE001, S110  (without a record, the next program rehearses)
                pass
        os.write(result, json.dumps(problem).encode())
    finally:
        os._exit(0)  # noqa: SLF001  (a function of `os`)


class _MissingModules:
    """An import finder for the end of `sys.meta_path`. It records the modules that no finder has found."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, *_: object) -> None:
        """Record a module that was not found."""
        self.names.add(name)


def _write_record(
    record: Sequence[str], settings: Record, missing: Iterable[str], since: float, problem: str
) -> None:
    from pathlib import Path  # noqa: PLC0415  (see `reaper`)

    from .rehearsal_record import invalidate_record, used_files, write_record  # noqa: PLC0415  (likewise)

    folder, identity = record
    if problem:
        invalidate_record(Path(folder), identity)
    elif (used := used_files(settings, missing)) is not None:
        write_record(Path(folder), identity, used, since)


def _problem_of(settings: Record) -> str:
    try:
        from .recover import rehearse  # noqa: PLC0415  (imports the HTTP stack)

        return rehearse(settings)
    except Exception as error:  # noqa: BLE001  (an import can raise anything)
        return f"failed to import the HTTP client ({type(error).__name__}: {error})"
