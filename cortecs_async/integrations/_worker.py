"""The code that runs on a worker of a cluster: one chunk of items, in its own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from attrs import frozen

from .. import ConfigurationError, InstanceHandle

Work = Callable[[InstanceHandle, list[Any]], Awaitable[Sequence[Any]]]
"""Returns a value or an exception for each item, in the order of the items."""

_WAKE_INTERVAL = 1.0

# Statuses that another attempt may change: they concern the endpoint, the key or the load, not the request.
_RETRYABLE_STATUSES = frozenset({401, 403, 404, 408, 409, 425, 429})

# Names in openai, httpx, aiohttp and in packages built on them for a request that received no response.
_CONNECTION_ERRORS = frozenset(
    {"APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError"}
)


class AnswerError(Exception):
    """The body of a successful response is not an answer."""


@frozen
class Failure:
    """Why an item has no value.

    Attributes:
        code: The name of the exception's class.
        message: The exception's message.
        status: The HTTP status, if there was a response.
        is_trouble: Whether another attempt may succeed, perhaps on another instance.
    """

    code: str
    message: str
    status: int | None = None
    is_trouble: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@frozen
class Result:
    """A value, or why there is none. Exceptions often cannot be pickled, so a `Failure` stands for them."""

    value: Any = None
    failure: Failure | None = None


def run_chunk(work: Work, inst: InstanceHandle, items: list[Any]) -> list[Result]:
    """Run `work` on a chunk of items."""
    results = asyncio.run(_call(work, inst, items))
    if len(results) != len(items):
        raise ValueError(f"work returned {len(results)} results for {len(items)} items: return one per item")
    secret = _api_key(inst)
    return [
        Result(failure=_failure(result, secret)) if isinstance(result, Exception) else Result(result)
        for result in results
    ]


async def _call(work: Work, inst: InstanceHandle, items: list[Any]) -> Sequence[Any]:
    # To cancel a task, Ray raises KeyboardInterrupt without a signal. An event loop that waits for sockets
    # notices it only when it wakes up.
    waker = asyncio.create_task(_wake_regularly())
    try:
        return await work(inst, items)
    finally:
        waker.cancel()


async def _wake_regularly() -> None:
    while True:  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(_WAKE_INTERVAL)


def _failure(error: Exception, secret: str) -> Failure:
    message = str(error)
    if secret:
        # The endpoint's response may quote the key that it rejects.
        message = message.replace(secret, "***")
    chain = list(_chain(error))
    status = next((found for link in chain if (found := _status(link)) is not None), None)
    if status is None:
        is_trouble = any(map(_is_no_answer, chain))
    else:
        is_trouble = status in _RETRYABLE_STATUSES or status >= 500
    return Failure(type(error).__name__, message, status, is_trouble)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes: frameworks wrap the errors of clients in their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _is_no_answer(error: BaseException) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError, AnswerError)) or any(
        kind.__name__ in _CONNECTION_ERRORS for kind in type(error).__mro__
    )


def _api_key(inst: InstanceHandle) -> str:
    try:
        return inst.openai_kwargs()["api_key"]
    except ConfigurationError:
        return ""
