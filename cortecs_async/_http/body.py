"""Read the body of a response up to a limit: a megabyte of gzip can decompress to a gigabyte."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any

import anyio

# The encodings that `BodyReader` supports, for the request header.
ACCEPT_ENCODING = "gzip, deflate"

# Maximum bytes of a decompressed response from the provisioning API. Ten thousand instances need a quarter.
MAX_BODY = 16 << 20

# Maximum levels of nested lists and objects: more than any API needs, and few enough for Python to encode.
MAX_DEPTH = 200


class BodyError(ValueError):
    """The body is invalid. The message completes the sentence "a body that ..."."""


class BodyReader:
    """Collects a body in chunks as they arrive and decompresses it.

    Args:
        encoding: The `Content-Encoding` of the response.
        limit: Maximum bytes after decompression.

    Raises:
        BodyError: for encodings other than gzip and deflate, and for more than one encoding.
    """

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._chunks: list[bytes] = []
        self._size = 0
        encoding = encoding.strip().lower()
        if encoding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise BodyError(f"has the unsupported encoding {encoding[:80]!r}")
        self._is_compressed = encoding not in {"", "identity"}
        if self._is_compressed:
            # This value makes zlib recognize gzip and zlib by their headers.
            self._decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        self._may_be_raw = encoding == "deflate"

    def feed(self, chunk: bytes) -> None:
        """Add a chunk.

        Raises:
            BodyError: if the body is too large or not correctly compressed.
        """
        if not self._is_compressed:
            self._add(chunk)
            return
        try:
            while chunk and not self._decompressor.eof:
                # One byte more than is left, to detect that the body is too large.
                self._add(self._decompressor.decompress(chunk, self._limit - self._size + 1))
                chunk = self._decompressor.unconsumed_tail
        except zlib.error:
            if not self._may_be_raw or self._chunks:
                raise BodyError("is not correctly compressed") from None
            # Some servers send deflate without a zlib header.
            self._may_be_raw = False
            self._decompressor = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
            self.feed(chunk)

    def body(self) -> bytes:
        """Return everything received."""
        return b"".join(self._chunks)

    def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            self._chunks.clear()
            raise BodyError(f"is larger than {self._limit >> 20} MiB")
        if data:
            self._chunks.append(data)


async def read_body(chunks: AsyncIterator[bytes], encoding: str, limit: int) -> bytes:
    """Return the decompressed body.

    Raises:
        BodyError: if it is too large or cannot be decompressed.
    """
    reader = BodyReader(encoding, limit)
    try:
        async for chunk in chunks:
            reader.feed(chunk)
    except BodyError:
        # Cancelled rather than left, so that the iterators inside the HTTP library end too and trio does not
        # warn about them.
        with anyio.CancelScope() as scope:
            scope.cancel()
            async for _ in chunks:
                pass
        raise
    return reader.body()


def is_too_deep(text: bytes, data: object) -> bool:
    """Return whether this JSON text's data is nested more than `MAX_DEPTH` levels deep."""
    # A quick check for most texts, which have fewer lists and objects.
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    level: list[Any] = [[data]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)
