"""What runs on a worker: one chunk of items, in an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

from .. import ConfigurationError, InstanceHandle

Work = Callable[[InstanceHandle, list[Any]], Awaitable[Sequence[Any]]]
"""Gives for each item a value or an exception, in their order."""

_WAKE_SECONDS = 1.0

# Statuses that are about the endpoint, the key or the load, and not about what was asked.
_TROUBLE = frozenset({401, 403, 404, 408, 409, 425, 429})

# How openai, httpx, aiohttp and what is built on them name what got no answer.
_NO_ANSWER = frozenset(
    {"APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError"}
)


@frozen
class Failure:
    """Why nothing came of an item.

    Attributes:
        code: The name of the exception's class.
        message: Its words.
        status: The status of the answer, if it was one.
        is_trouble: Whether another attempt may do better, on another instance perhaps.
    """

    code: str
    message: str
    status: int | None = None
    is_trouble: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@frozen
class Result:
    """What came of an item: a value, or why there is none. An exception itself often cannot be pickled."""

    value: Any = None
    failure: Failure | None = None


def run_chunk(work: Work, inst: InstanceHandle, items: list[Any]) -> list[Result]:
    """Does a chunk.

    Raises:
        ValueError: when `work` does not give one result an item.
        Exception: what `work` raises.
    """
    results = asyncio.run(_call(work, inst, items))
    if len(results) != len(items):
        raise ValueError(f"work gave {len(results)} results for {len(items)} items: it must be one each")
    secret = _key(inst)
    return [
        Result(failure=_failure(each, secret)) if isinstance(each, Exception) else Result(each)
        for each in results
    ]


async def _call(work: Work, inst: InstanceHandle, items: list[Any]) -> Sequence[Any]:
    # Ray cancels a task by Ctrl-C without the signal, which a loop that waits for sockets does not notice.
    waking = asyncio.create_task(_wake_up())
    try:
        return await work(inst, items)
    finally:
        waking.cancel()


async def _wake_up() -> None:
    while True:  # noqa: ASYNC110  (there is no event: that is why)
        await asyncio.sleep(_WAKE_SECONDS)


def _failure(error: Exception, secret: str) -> Failure:
    message = str(error)
    if secret:
        # An endpoint may repeat what it refuses.
        message = message.replace(secret, "***")
    chain = list(_causes(error))
    status = next((found for each in chain if (found := _status(each)) is not None), None)
    is_trouble = any(map(_got_no_answer, chain)) if status is None else status in _TROUBLE or status >= 500
    return Failure(type(error).__name__, message, status, is_trouble)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it, for frameworks raise their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    found = getattr(error, "status_code", None)
    return found if isinstance(found, int) else None


def _got_no_answer(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        each.__name__ in _NO_ANSWER for each in type(error).__mro__
    )


def _key(inst: InstanceHandle) -> str:
    try:
        return inst.openai_kwargs()["api_key"]
    except ConfigurationError:
        return ""
