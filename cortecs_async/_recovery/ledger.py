"""The cost ledger: files in the state directory with one line for each lease that has ended.

There is one file per month (UTC), so that files stay small and nothing has to be deleted. Each line is a JSON
object, as `cost_lines` describes it. Any process of this user can append at any time: a batch of lines is one
write at the end of the file, which other processes cannot split, so no lock is needed. If a process died in
the middle of a write, the next one begins a new line. Lines are not synced: after a power loss, the last ones
may be missing.

Leases on a service on this machine, which is most likely an emulator, have their own files.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from attrs import frozen

from .._config import is_loopback_host
from .._logging import Event, log
from .._platform import NO_LOCKS
from .._state_directory import StateFolder, check_state_directory, leave_alone
from .cost_lines import LeaseCost, merged, parse_line
from .records import Record, encode

_NAME = re.compile(r"(emulated-)?([0-9]{4}-[0-9]{2})\.jsonl")

# The maximum number of lines to keep in memory while the disk is full.
_MAX_UNWRITTEN = 1000

# A lease can have lines in two files if it ended at the end of a month.
_OVERLAP = timedelta(days=1)


def ledger_directory(journals: Path) -> Path:
    """Return the directory of the ledger that belongs to a directory of journals."""
    return journals.parent / "costs"


@frozen
class LedgerContent:
    """The leases in a ledger, and the number of lines that could not be parsed."""

    leases: tuple[LeaseCost, ...] = ()
    num_unreadable: int = 0


class CostLedger:
    """The files in a directory.

    Args:
        directory: A subdirectory of the state directory. It is created with the first line.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unwritten: list[Record] = []
        self._has_problem = False
        self._lock = threading.Lock()
        # By name: the file's id, size, and time, and its content.
        self._parsed: dict[str, tuple[tuple[int, int, int], LedgerContent]] = {}
        # The service and the files of the last result, and the result.
        self._last: tuple[str, list[LedgerContent], LedgerContent] = "", [], LedgerContent()

    def take_lines(self, records: Iterable[Record], *, is_quiet: bool) -> list[Record]:
        """Write the lines in records of the kind COST as `write` does, and return all other records."""
        lines: list[Record] = []
        others: list[Record] = []
        for record in records:
            if record["kind"] == "COST":
                lines.append(record["line"])
            else:
                others.append(record)
        self.write(lines, is_quiet=is_quiet)
        return others

    def write(self, lines: Iterable[Record], *, is_quiet: bool = False) -> None:
        """Append lines. If that fails, log a warning and try again with the next lines. Never raises.

        With `is_quiet`, log nothing, because another warning says that the state directory cannot be used.
        """
        with self._lock:
            self._unwritten = [*self._unwritten, *lines][-_MAX_UNWRITTEN:]
            if not self._unwritten:
                return
            try:
                self._append(self._unwritten)
            except Exception as error:  # noqa: BLE001  (it must not prevent the release of an instance)
                if not self._has_problem and not is_quiet:
                    log(Event.COSTS_UNWRITTEN, directory=str(self.directory), error=error)
                self._has_problem = True
            else:
                self._unwritten, self._has_problem = [], False

    def _append(self, lines: Sequence[Record]) -> None:
        by_name: dict[str, list[Record]] = {}
        for line in lines:
            prefix = "emulated-" if _is_emulated(line["api_base_url"]) else ""
            by_name.setdefault(f"{prefix}{line['ended_at'][:7]}.jsonl", []).append(line)
        with StateFolder(self.directory, create=True) as folder:
            for name, part in by_name.items():
                fd = folder.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT)
                try:
                    _append(fd, encode(part))
                finally:
                    os.close(fd)

    def read(self, api_base_url: str, since: float = 0.0) -> LedgerContent:
        """Return the leases on a service that ended since a Unix time, and some that ended before. Blocks.

        A file is only read again if it has changed.

        Raises:
            JournalError: If the state directory cannot be used.
        """
        check_state_directory(self.directory)
        first_month = f"{datetime.fromtimestamp(since, UTC) - _OVERLAP:%Y-%m}" if since > 0 else ""
        parts: list[LedgerContent] = []
        try:
            with StateFolder(self.directory) as folder:
                names = folder.names()
                others = [each for each in names if not _NAME.fullmatch(each) and not each.startswith(".")]
                leave_alone(self.directory, others, "not named like a file of costs")
                for name in names:
                    match = _NAME.fullmatch(name)
                    is_wanted = match is not None and bool(match[1]) is _is_emulated(api_base_url)
                    if match is not None and is_wanted and match[2] >= first_month:
                        parts.append(self._read(folder, name))
        except FileNotFoundError:
            return LedgerContent()
        api, read, content = self._last
        # The same objects, unless a file has changed.
        if (api, [*map(id, read)]) != (api_base_url, [*map(id, parts)]):
            lines = [each for part in parts for each in part.leases if each.api_base_url == api_base_url]
            content = LedgerContent(merged(lines), sum(part.num_unreadable for part in parts))
            self._last = api_base_url, parts, content
        return content

    def find_unfinished(self, api_base_url: str, instance_id: str) -> LeaseCost | None:
        """Return the newest lease of an instance if it left the instance running. Blocks. Never raises."""
        try:
            leases = self.read(api_base_url).leases
        except Exception:  # noqa: BLE001  (it must not prevent the release of an instance)
            return None
        mine = [each for each in leases if each.instance_id == instance_id]
        return mine[-1] if mine and not mine[-1].is_final else None

    def _read(self, folder: StateFolder, name: str) -> LedgerContent:
        try:
            fd = folder.open(name, os.O_RDONLY)
        except OSError as error:
            leave_alone(self.directory, [name], error)
            return LedgerContent()
        try:
            status = os.fstat(fd)
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._parsed.get(name)
            if known is not None and known[0] == version:
                return known[1]
            with os.fdopen(fd, "rb", closefd=False) as file:
                content = _parse(file.read())
            self._parsed[name] = version, content
            return content
        finally:
            os.close(fd)


def _append(fd: int, data: bytes) -> None:
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        data = b"\n" + data
    written = os.write(fd, data)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes could be written")


def _parse(data: bytes) -> LedgerContent:
    lines = [line for line in data.split(b"\n") if line.strip(b" \r\0")]
    parsed = [lease for line in lines if (lease := parse_line(line)) is not None]
    return LedgerContent(tuple(parsed), len(lines) - len(parsed))


def _is_emulated(api_base_url: str) -> bool:
    return is_loopback_host(urlsplit(api_base_url).hostname or "")
