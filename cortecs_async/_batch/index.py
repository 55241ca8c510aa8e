"""Find the requests of an input that its output answers, for files of any length in little memory.

The digests of all lines go to temporary files, partitioned by their first bytes, so that identical digests
share a partition. Then one partition at a time is compared in memory. During the comparison, each line takes
48 bytes of disk, and each line of the input takes one bit of memory.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator

from attrs import define

from .reader import temporary_file_errors

# Digest of the custom_id, digest of the request, line number, and the offset of the line.
_RECORD = struct.Struct("<16s16sQQ")
Record = tuple[bytes, bytes, int, int]

# In place of the offset of the line. The record has the digest that earlier versions gave to the request in
# the previous record:
_IS_LEGACY = 1
# The record is an error line, and its request is sent again:
_IS_RETRIED = (1 << 64) - 1

# In place of the digest of an answer's request: the digest is not known, and the custom_id decides.
_ANY_REQUEST = b"\xff" * 16

# Bytes of input per partition, so that a partition holds about ten thousand lines.
_PARTITION_SIZE = 4 << 20
_MAX_PARTITIONS = 1024

# Bytes of a partition kept in memory before they are written.
_BUFFER_SIZE = 170 * _RECORD.size


class Partitions:
    """Records in a temporary file, partitioned by the digest of their custom_id."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._buffers = [bytearray() for _ in range(count)]
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        with temporary_file_errors():
            self._file = tempfile.TemporaryFile(prefix="cortecs-batch-")  # noqa: SIM115  (closed by `close`)
        self._size = 0

    def add(self, key: bytes, request: bytes, line: int, offset: int) -> None:
        partition = int.from_bytes(key[:4], "little") % self.count
        buffer = self._buffers[partition]
        buffer += _RECORD.pack(key, request, line, offset)
        if len(buffer) >= _BUFFER_SIZE:
            with temporary_file_errors():
                self._file.write(buffer)
            self._chunks[partition].append((self._size, len(buffer)))
            self._size += len(buffer)
            buffer.clear()

    def read(self, partition: int) -> Iterator[Record]:
        """Yield the records of a partition, in the order they were added."""
        with temporary_file_errors():
            self._file.flush()
        for offset, size in self._chunks[partition]:
            self._file.seek(offset)
            yield from _RECORD.iter_unpack(self._file.read(size))
        yield from _RECORD.iter_unpack(bytes(self._buffers[partition]))
        self._file.seek(self._size)

    def close(self) -> None:
        self._file.close()


@define
class Conflict:
    """A line that contradicts another line.

    Attributes:
        line: The later line of a file, or the line of the output.
        other: The earlier line or the line in the input, or None if there is no counterpart.
    """

    line: int
    other: int | None


@define
class Comparison:
    """The result of comparing the output with the input.

    Attributes:
        done: A bit for each line of the input. It is set if the output has the answer.
        duplicate_request: The first line of the input that repeats a custom_id.
        duplicate_answer: The first line of the output that repeats a custom_id.
        foreign_answer: The first line of the output whose request is not in the input or differs there.
    """

    done: bytearray
    duplicate_request: Conflict | None = None
    duplicate_answer: Conflict | None = None
    foreign_answer: Conflict | None = None


class Index:
    """The lines of an input of about `size` bytes and of its output."""

    def __init__(self, size: int) -> None:
        count = min(max(1, size // _PARTITION_SIZE), _MAX_PARTITIONS)
        self._requests, self._answers = Partitions(count), Partitions(count)
        self.last_line: int = 0

    def add_request(self, key: bytes, request_id: str, line: int, legacy_id: str | None = None) -> None:
        """Add a request. `legacy_id` is the id that earlier versions gave to its answer."""
        self.last_line = line
        self._requests.add(key, _digest(request_id), line, 0)
        if legacy_id is not None:
            self._requests.add(key, _digest(legacy_id), line, _IS_LEGACY)

    def add_answer(self, key: bytes, request_id: str | None, line: int, offset: int | None) -> None:
        """Add an answer. Without an `offset`, add an error line whose request is sent again.

        Without a `request_id`, the line answers the request with the same custom_id.
        """
        digest = _ANY_REQUEST if request_id is None else _digest(request_id)
        self._answers.add(key, digest, line, _IS_RETRIED if offset is None else offset)

    def compare(self, check: Callable[[], None]) -> Comparison:
        """Compare the output with the input. `check` is called for every partition and can raise to stop."""
        result = Comparison(bytearray(self.last_line // 8 + 1))
        for partition in range(self._requests.count):
            check()
            requests: dict[bytes, tuple[bytes, int]] = {}
            legacy: dict[bytes, bytes] = {}
            for key, request, line, kind in self._requests.read(partition):
                if kind == _IS_LEGACY:
                    legacy[key] = request
                elif key in requests:
                    conflict = Conflict(line, requests[key][1])
                    result.duplicate_request = _first(result.duplicate_request, conflict)
                else:
                    requests[key] = request, line
            answers: dict[bytes, int] = {}
            for key, request, line, offset in self._answers.read(partition):
                if key in answers:
                    result.duplicate_answer = _first(result.duplicate_answer, Conflict(line, answers[key]))
                    continue
                answers[key] = line
                found = requests.get(key)
                if found is None or request not in (_ANY_REQUEST, found[0], legacy.get(key)):
                    conflict = Conflict(line, found and found[1])
                    result.foreign_answer = _first(result.foreign_answer, conflict)
                elif offset != _IS_RETRIED:
                    mark_done(result.done, found[1])
        return result

    def answer_offsets(self) -> Iterator[tuple[int, int]]:
        """Yield the line of each answered request and the offset of its answer in the output."""
        for partition in range(self._requests.count):
            lines = {key: line for key, _, line, _ in self._requests.read(partition)}
            for key, _, _, offset in self._answers.read(partition):
                yield lines[key], offset

    def close(self) -> None:
        self._requests.close()
        self._answers.close()


def is_done(done: bytearray, line: int) -> bool:
    """Return whether a line of the input has its answer.

    Raises:
        IndexError: The input had no such line.
    """
    return bool(done[line >> 3] >> (line & 7) & 1)


def mark_done(done: bytearray, line: int) -> None:
    done[line >> 3] |= 1 << (line & 7)


def _digest(request_id: str) -> bytes:
    # An id not written by this package does not match any request.
    try:
        digest = bytes.fromhex(request_id.rpartition("_")[2])
    except ValueError:
        return b""
    return digest if len(digest) == 16 else b""


def _first(known: Conflict | None, found: Conflict) -> Conflict:
    return found if known is None or found.line < known.line else known
