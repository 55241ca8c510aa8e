"""Read the lines of a batch's files, with the same rules for both files.

Blank lines are skipped. Byte order marks, whitespace, and zero bytes left by a power failure are not part of
a line. All functions here block, so call them from a thread on an event loop.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import importlib
import io
import itertools
import json
import os
import re
import select
import stat
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from typing_extensions import override

from .._aio.threads import StopFlag
from .._errors import BatchFileError, BatchWriteError, ConfigurationError, CortecsError
from .._extras import install_command
from .._platform import O_BINARY, O_CLOEXEC, O_NONBLOCK
from .answers import foreign_output_error

# The meaning of `-` as an input.
STANDARD_INPUT = Path("/dev/stdin")

COMPRESSED_SUFFIXES = (".gz", ".zst")

# The approximate number of line bytes per compressed byte.
_COMPRESSION_RATIO = 16

# The first bytes of compressed files. zstd files can begin with a skippable frame.
_GZIP = re.compile(rb"\x1f\x8b")
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")

_BUFFER_SIZE = 1 << 20

# Bytes that can surround the JSON of a line.
_PADDING = b" \t\n\v\f\r\0"

# The first bytes of all lines written by `answers`, and by earlier versions for fleets.
_ANSWER_PREFIXES = (b'{"id":"batch_req_', b'{"id": "fleet_req_')

# While standard input has no data, check whether to stop at this interval in seconds.
_POLL_INTERVAL = 0.1


class Line(NamedTuple):
    """A line that is not blank.

    Attributes:
        number: The line number, counted from 1.
        begin: The offset in the file where the line begins.
        end: The offset after its line break, or after its text if there is none.
        text: The line without the bytes around its JSON.
        is_terminated: Whether it has a line break.
        has_zeros: Whether there are zero bytes in it or around it.
    """

    number: int
    begin: int
    end: int
    text: bytes
    is_terminated: bool
    has_zeros: bool


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the non-blank lines of a file. Lines of zero bytes only are yielded without text."""
    begin = 0
    for number, raw in enumerate(file, 1):
        end = begin + len(raw)
        if (text := strip_line(raw)) or b"\0" in raw:
            is_terminated = raw.endswith(b"\n")
            if not is_terminated:
                end = begin + len(raw.rstrip(_PADDING))
            yield Line(number, begin, end, text, is_terminated, b"\0" in raw)
        begin = end


def strip_line(raw: bytes) -> bytes:
    """Return a line without the bytes around its JSON."""
    text = raw.strip(_PADDING)
    return text[len(codecs.BOM_UTF8) :].lstrip(_PADDING) if text.startswith(codecs.BOM_UTF8) else text


def read_input(path: Path, name: str) -> Iterator[Line]:
    """Yield the lines of an input, which can be compressed. `name` is for error messages.

    Raises:
        BatchFileError: The input cannot be read or decompressed. If it is damaged, the error contains the
            last line reached.
        ConfigurationError: The input is compressed with zstd, and the extra `zstd` is not installed.
    """
    number = 0
    with file_errors("cannot be read", name), open_regular_file(path, name) as file:
        try:
            for line in read_lines(_decompress(file, name)):
                if line.text:
                    yield line
                number = line.number
        except _DamagedError as error:
            raise BatchFileError(str(error), path=name, line=number + 1) from None


def read_answers(file: BinaryIO, name: str) -> Iterator[Line]:
    """Yield the lines of an output, without lines that a crash or power failure left incomplete.

    An incomplete last line is left out. An incomplete line before others, or one of zero bytes, is yielded
    without text.

    Raises:
        BatchFileError: An incomplete line is not the beginning of an answer, so this could be the wrong file.
    """
    is_output = False
    for line, following in itertools.pairwise(itertools.chain(read_lines(file), [None])):
        if line is None:  # only the last `following` is
            return
        if not line.text:
            if line.is_terminated:
                yield line
        elif (line.is_terminated and not line.has_zeros) or _is_json(line.text):
            yield line
            is_output = True  # the caller has parsed the line
        elif not (
            line.text.startswith(_ANSWER_PREFIXES)
            or any(prefix.startswith(line.text) for prefix in _ANSWER_PREFIXES)
            or (line.has_zeros and (is_output or _is_answer(following)))
        ):
            problem = "the line contains null bytes" if line.has_zeros else "no line break at the end"
            raise foreign_output_error(problem, name, line.number)
        elif line.is_terminated:
            yield line._replace(text=b"")


def _is_answer(line: Line | None) -> bool:
    return line is not None and line.text.startswith(_ANSWER_PREFIXES)


def read_closed_output(path: Path) -> Iterator[Line]:
    """Yield the lines of an output that is not open, as `read_answers` does, or None if it does not exist."""
    if path.exists():
        with open_regular_file(path, str(path)) as file:
            yield from read_answers(file, str(path))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def estimate_size(status: os.stat_result, path: Path) -> int:
    """Estimate the size of an input in bytes after decompression."""
    return status.st_size * (_COMPRESSION_RATIO if path.suffix in COMPRESSED_SUFFIXES else 1)


def check_regular(status: os.stat_result, name: str, advice: str = "") -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BatchFileError(f"not a regular file{advice}", path=name)


def open_regular_file(path: Path, name: str) -> BinaryIO:
    check_regular(path.stat(), name)
    # Non-blocking, because opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | O_BINARY | O_CLOEXEC | O_NONBLOCK)
    try:
        # On macOS, opening /dev/fd/N copies the descriptor, with the position where the last reader stopped.
        os.lseek(descriptor, 0, os.SEEK_SET)
        check_regular(os.fstat(descriptor), name)
        return os.fdopen(descriptor, "rb", _BUFFER_SIZE)
    except BaseException:
        os.close(descriptor)
        raise


def copy_standard_input(stopped: StopFlag) -> BinaryIO:
    """Copy standard input to a temporary file, because an input is read twice. Stop once `stopped` is set.

    Raises:
        BatchFileError: Standard input is empty or cannot be read.
        BatchWriteError: The temporary file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with temporary_file_errors():
            copy = stack.enter_context(tempfile.TemporaryFile(prefix="cortecs-batch-"))
        while True:
            with file_errors("cannot be read", "standard input"):
                # Not in `os.read`, because a thread that waits there cannot be stopped.
                while not select.select([0], [], [], _POLL_INTERVAL)[0]:
                    stopped.check()
                data = os.read(0, _BUFFER_SIZE)
            stopped.check()
            with temporary_file_errors():
                copy.write(data)
                if not data:
                    if not copy.tell():
                        raise BatchFileError("the input is empty", path="standard input")
                    copy.flush()
                    stack.pop_all()
                    return cast("BinaryIO", copy)


@contextlib.contextmanager
def file_errors(problem: str, name: Path | str) -> Generator[None]:
    """Raise each `OSError` as a `BatchFileError` that mentions the file."""
    try:
        yield
    except CortecsError:
        raise  # BatchWriteError is an OSError too
    except OSError as error:
        raise BatchFileError(f"{problem}: {error.strerror}", path=str(name)) from None


@contextlib.contextmanager
def write_errors(problem: str, advice: str, path: Path | str) -> Generator[None]:
    """Raise each `OSError` as a `BatchWriteError`."""
    try:
        yield
    except CortecsError:
        raise
    except OSError as error:
        raise BatchWriteError(f"{problem}: {error.strerror}. {advice}", path=str(path)) from None


def temporary_file_errors() -> contextlib.AbstractContextManager[None]:
    advice = "Set TMPDIR to a directory with enough space."
    return write_errors("cannot write a temporary file", advice, tempfile.tempdir or "")


class _DamagedError(Exception):
    """The reason why compressed data cannot be read any further."""


class _Decompressed(io.RawIOBase):
    """Decompresses as little as possible at a time, so that every line before damaged data can be read.

    Args:
        file: A `GzipFile` or `ZstdFile`. Both read all parts of a multi-part file.
        errors: The exceptions raised by `file` for damaged data.
    """

    def __init__(self, file: Any, errors: tuple[type[Exception], ...]) -> None:
        self._file = file
        self._errors = errors

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer))
        except EOFError:
            raise _DamagedError("the compressed data is truncated") from None
        except self._errors as error:
            raise _DamagedError(f"the compressed data is damaged: {error}") from None
        buffer[: len(data)] = data
        return len(data)


def _decompress(file: BinaryIO, name: str) -> BinaryIO:
    beginning = cast("io.BufferedReader", file).peek(4)
    if _GZIP.match(beginning):
        found = _Decompressed(gzip.GzipFile(fileobj=file), (gzip.BadGzipFile, zlib.error))
    elif _ZSTD.match(beginning):
        zstd = _import_zstd(name)
        found = _Decompressed(zstd.ZstdFile(file), (zstd.ZstdError,))
    elif name.endswith(COMPRESSED_SUFFIXES):
        raise BatchFileError(f"not compressed, although its name ends in {Path(name).suffix}", path=name)
    else:
        return file
    return cast("BinaryIO", io.BufferedReader(found, _BUFFER_SIZE))


def _import_zstd(name: str) -> Any:
    try:
        return importlib.import_module(
            "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        )
    except ImportError:
        raise ConfigurationError(
            f"Reading {name} requires the zstd extra: {install_command('zstd')}"
        ) from None
