"""Sending an answer piece by piece, and breaking off."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import final

import attrs

from cortecs_async.emulator._answers import Answer


class ConnectionCut(Exception):  # noqa: N818 - it is an event, not an error
    """The emulated connection ends here, in the middle of the answer."""


@attrs.frozen
class Reply:
    """What goes back to the caller."""

    answer: Answer | None
    """None: nothing at all, the connection is cut."""
    cut: bool = False
    """Whether it is cut after half of the body."""

    @property
    def status(self) -> int | None:
        """The status that is sent, if any."""
        return None if self.answer is None else self.answer.status


@final
class Playback(AsyncIterator[bytes]):
    """The body of an answer as it goes over the wire.

    A class instead of a generator: a caller that leaves in the middle leaves nothing to be closed.
    """

    __slots__ = ("_cut", "_is_serving", "_pause", "_pieces", "_position", "_streamed")

    def __init__(
        self,
        answer: Answer,
        *,
        cut: bool,
        pause: Callable[[], Awaitable[None]],
        is_serving: Callable[[], bool],
    ) -> None:
        """Prepare the body.

        Args:
            answer: The answer to be sent.
            cut: Whether to break off after half of it.
            pause: Waits between two pieces of a streamed answer.
            is_serving: Whether the speaking instance still serves.
        """
        body = answer.whole_body
        if cut:
            self._pieces: tuple[bytes, ...] = (body[: len(body) // 2],)
        else:
            self._pieces = (body,) if answer.events is None else answer.events
        self._streamed = answer.events is not None and not cut
        self._cut = cut
        self._pause = pause
        self._is_serving = is_serving
        self._position = 0

    @property
    def cuts(self) -> bool:
        """Whether it breaks off."""
        return self._cut

    async def __anext__(self) -> bytes:
        """The next piece.

        Raises:
            ConnectionCut: When the connection ends before the answer does.
            StopAsyncIteration: At the end.
        """
        if self._position == len(self._pieces):
            if self._cut:
                raise ConnectionCut
            raise StopAsyncIteration
        if self._streamed:
            if self._position:
                await self._pause()
            if not self._is_serving():
                raise ConnectionCut
        piece = self._pieces[self._position]
        self._position += 1
        return piece
