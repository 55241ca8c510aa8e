"""Send a response in chunks, and cut it off."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import final

import attrs

from cortecs_async.emulator._messages import Response


class ConnectionCut(Exception):  # noqa: N818 - it is an event, not an error
    """The emulated connection ends in the middle of the response."""


@final
@attrs.define(eq=False, kw_only=True)
class Delivery(AsyncIterator[bytes]):
    """A response whose body is yielded chunk by chunk, as the caller receives it.

    This is a class, not a generator, so a caller who stops reading does not need to close it.
    """

    response: Response
    is_cut: bool
    """Whether the connection is cut after half of the body."""
    pause: Callable[[], Awaitable[None]]
    """Waits between two chunks of a streamed response."""
    is_running: Callable[[], bool]
    """Whether the instance that answers is still running."""
    _chunks: tuple[bytes, ...] = attrs.field(init=False)
    _position: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._chunks = (self.response.body,) if self.response.events is None else self.response.events
        if self.is_cut:
            body = b"".join(self._chunks)
            self._chunks = (body[: len(body) // 2],)

    async def __anext__(self) -> bytes:
        if self._position == len(self._chunks):
            if self.is_cut:
                raise ConnectionCut
            raise StopAsyncIteration
        if self.response.events is not None and not self.is_cut:
            if self._position:
                await self.pause()
            if not self.is_running():
                raise ConnectionCut
        chunk = self._chunks[self._position]
        self._position += 1
        return chunk
