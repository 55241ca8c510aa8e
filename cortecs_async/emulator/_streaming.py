"""Send a response in chunks, and cut it off."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import final

from cortecs_async.emulator._messages import Response


class ConnectionCut(Exception):  # noqa: N818 - it is an event, not an error
    """The emulated connection ends in the middle of the response."""


@final
class Delivery(AsyncIterator[bytes]):
    """A response, and its body chunk by chunk as the caller receives it.

    This is a class instead of a generator so that a caller who stops reading leaves nothing to close.
    """

    __slots__ = ("_chunks", "_is_running", "_pause", "_position", "_streamed", "is_cut", "response")

    def __init__(
        self,
        response: Response,
        *,
        cut: bool,
        pause: Callable[[], Awaitable[None]],
        is_running: Callable[[], bool],
    ) -> None:
        """Prepare the delivery.

        Args:
            response: The response to send.
            cut: Whether to cut the connection after half of the body.
            pause: Waits between two chunks of a streamed response.
            is_running: Whether the instance that answers is still running.
        """
        self.response = response
        body = response.body if response.events is None else b"".join(response.events)
        if cut:
            self._chunks: tuple[bytes, ...] = (body[: len(body) // 2],)
        else:
            self._chunks = (body,) if response.events is None else response.events
        self._streamed = response.events is not None and not cut
        self.is_cut = cut
        self._pause = pause
        self._is_running = is_running
        self._position = 0

    async def __anext__(self) -> bytes:
        if self._position == len(self._chunks):
            if self.is_cut:
                raise ConnectionCut
            raise StopAsyncIteration
        if self._streamed:
            if self._position:
                await self._pause()
            if not self._is_running():
                raise ConnectionCut
        chunk = self._chunks[self._position]
        self._position += 1
        return chunk
