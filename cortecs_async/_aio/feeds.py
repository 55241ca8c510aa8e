"""Read items from the user one by one, and close them."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Generic, TypeVar

import anyio.lowlevel

from .._errors import InvalidArgumentError, add_note
from .tasks import explain_cancelled_error, is_cancellation

T = TypeVar("T")


class Feed(Generic[T]):
    """The items passed by a user. Use this in one task: some must be closed in the task that reads them.

    Args:
        name: The name of the method that reads the items, for error messages.
        items: The items.

    Raises:
        InvalidArgumentError: if they are not iterable.
    """

    def __init__(self, name: str, items: Iterable[T] | AsyncIterable[T]) -> None:
        self._async: AsyncIterator[T] | None = None
        self._sync: Iterator[T] = iter(())
        try:
            if isinstance(items, AsyncIterable):
                self._async = items.__aiter__()
            else:
                self._sync = iter(items)
        except TypeError:
            raise InvalidArgumentError(
                f"items must be an iterable or async iterable, not {items!r}"
            ) from None
        self.name = f"the items of {name}"

    async def next(self) -> T:
        """Return the next item.

        Raises:
            StopAsyncIteration: at the end.
        """
        # Lets other tasks run between two items that block the event loop.
        await anyio.lowlevel.checkpoint()
        if self._async is not None:
            return await self._async.__anext__()
        try:
            return next(self._sync)
        except StopIteration:
            # StopIteration cannot leave a coroutine.
            raise StopAsyncIteration from None

    async def close(self, error: BaseException | None) -> BaseException | None:
        """Drop the items. Close them if they are asynchronous and have an `aclose` method, as generators do.

        Synchronous items, such as a file or a generator, stay open: several maps may share them.

        Args:
            error: The error that ended the reading.

        Returns:
            The same error, or the one raised by closing.
        """
        aclose = getattr(self._async, "aclose", None)
        self._async, self._sync = None, iter(())
        try:
            if aclose is not None:
                await aclose()
        except GeneratorExit:  # the event loop is gone
            raise
        except BaseException as raised:  # noqa: BLE001  (trio would crash; the caller raises it)
            if is_cancellation(raised):
                return error
            if error is None:
                return explain_cancelled_error(self.name, raised)
            add_note(error, f"Closing {self.name} raised {raised!r}")
        return error
