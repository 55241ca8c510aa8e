"""Which requests of an input have an answer in its output, for files of any length in little memory.

What identifies a line, a digest, goes into one of many parts of a temporary file by its first bytes, so that
equal ones meet in the same part; then one part after the other is looked at in memory. A line of the input
takes 48 bytes of disk meanwhile, and one bit of memory.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from attrs import define, field

from .._errors import BatchWriteError

# Key, digest of the request, number of the line, and where the line begins.
_ENTRY = struct.Struct("<16s16sQQ")

# Bytes of a file for each part, so that a part holds some ten thousand lines.
_SHARE = 4 << 20
_MOST_PARTS = 1024

# Bytes of a part that are kept in memory until they are written.
_BUFFER = 170 * _ENTRY.size


@contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise BatchWriteError(
            f"no temporary file can be written: {error.strerror} (TMPDIR says in which folder)",
            path=tempfile.tempdir or "",
        ) from None


Entry = tuple[bytes, bytes, int, int]


class Parts:
    """Entries, sorted into parts by their keys.

    Args:
        count: How many parts.

    Raises:
        BatchWriteError: as its methods do, when a temporary file cannot be written.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._buffers = [bytearray() for _ in range(count)]
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        with _told():
            # Closed by close(), or when nobody knows it any more.
            self._file = tempfile.TemporaryFile(prefix="cortecs-batch-")  # noqa: SIM115
        self._size = 0

    def add(self, key: bytes, request: bytes, line: int, offset: int) -> None:
        """Adds an entry."""
        part = int.from_bytes(key[:4], "little") % self.count
        buffer = self._buffers[part]
        buffer += _ENTRY.pack(key, request, line, offset)
        if len(buffer) >= _BUFFER:
            with _told():
                self._file.write(buffer)
            self._chunks[part].append((self._size, len(buffer)))
            self._size += len(buffer)
            buffer.clear()

    def read(self, part: int) -> Iterator[Entry]:
        """The entries of a part, in the order in which they were added."""
        with _told():
            self._file.flush()
        for offset, size in self._chunks[part]:
            self._file.seek(offset)
            yield from _ENTRY.iter_unpack(self._file.read(size))
        yield from _ENTRY.iter_unpack(bytes(self._buffers[part]))
        self._file.seek(self._size)

    def close(self) -> None:
        """Gives the disk back."""
        self._file.close()


@define
class Clash:
    """Two lines that must not be as they are.

    Attributes:
        line: The later one.
        other: The earlier one, or that of the other file; None for a line without a counterpart.
    """

    line: int
    other: int | None


@define
class Match:
    """What came of the comparison.

    Attributes:
        repeated: The first line of the input whose custom_id was there before.
        answered_twice: The first line of the output whose custom_id was there before.
        foreign: The first line of the output that the input does not have, or asks otherwise.
        done: A bit for each line of the input, set where the output has its answer.
    """

    done: bytearray
    repeated: Clash | None = None
    answered_twice: Clash | None = None
    foreign: Clash | None = None


@define(eq=False)
class Index:
    """The lines of an input and of its output.

    Args:
        size: Bytes of the input, about.
    """

    size: int
    lines: int = 0
    _requests: Parts = field(init=False)
    _answers: Parts = field(init=False)

    def __attrs_post_init__(self) -> None:
        count = min(max(1, self.size // _SHARE), _MOST_PARTS)
        self._requests, self._answers = Parts(count), Parts(count)

    def add_request(self, key: bytes, request_id: str, line: int) -> None:
        """A line of the input."""
        self.lines = line
        self._requests.add(key, _digest(request_id), line, 0)

    def add_answer(self, key: bytes, request_id: str, line: int, offset: int) -> None:
        """A line of the output, and where it begins in bytes."""
        self._answers.add(key, _digest(request_id), line, offset)

    def match(self, check: Callable[[], None] = lambda: None) -> Match:
        """Compares the two.

        Args:
            check: Called with every part; what it raises ends the work.
        """
        match = Match(bytearray(self.lines // 8 + 1))
        for part in range(self._requests.count):
            check()
            asked: dict[bytes, tuple[bytes, int]] = {}
            for key, request, line, _ in self._requests.read(part):
                if key in asked:
                    match.repeated = _earlier(match.repeated, Clash(line, asked[key][1]))
                else:
                    asked[key] = request, line
            answered: dict[bytes, int] = {}
            for key, request, line, _ in self._answers.read(part):
                if key in answered:
                    match.answered_twice = _earlier(match.answered_twice, Clash(line, answered[key]))
                    continue
                answered[key] = line
                found = asked.get(key)
                if found is None or found[0] != request:
                    match.foreign = _earlier(match.foreign, Clash(line, found and found[1]))
                else:
                    match.done[found[1] >> 3] |= 1 << (found[1] & 7)
        return match

    def pairs(self) -> Iterator[tuple[int, int]]:
        """For each line of the input that has an answer: its number, and where the answer begins."""
        for part in range(self._requests.count):
            asked = {key: line for key, _, line, _ in self._requests.read(part)}
            for key, _, _, offset in self._answers.read(part):
                yield asked[key], offset

    def close(self) -> None:
        """Gives the disk back."""
        self._requests.close()
        self._answers.close()


def is_done(done: bytearray, line: int) -> bool:
    """Whether a line of the input has its answer."""
    return bool(done[line >> 3] >> (line & 7) & 1)


def _digest(request_id: str) -> bytes:
    # An id that is none of ours belongs to no request of the input.
    try:
        digest = bytes.fromhex(request_id.rpartition("_")[2])
    except ValueError:
        return b""
    return digest if len(digest) == 16 else b""


def _earlier(known: Clash | None, found: Clash) -> Clash:
    return found if known is None or found.line < known.line else known
