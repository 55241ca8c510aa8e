"""Close a coroutine in the middle of a block, as the garbage collector does."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Generator
from typing import Any


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield


async def leave(block: contextlib.AbstractAsyncContextManager[Any]) -> None:
    """Leave a block that was entered elsewhere."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(block)
        await pause()


def close_inside(block: contextlib.AbstractAsyncContextManager[Any]) -> None:
    """Leave a block with the GeneratorExit of a closed coroutine."""
    coroutine = leave(block)
    coroutine.send(None)
    coroutine.close()
