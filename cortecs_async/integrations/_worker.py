"""The code that runs on a worker of a cluster: one chunk of items, in its own event loop."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from typing import Any

from attrs import frozen

from .. import ConfigurationError, InstanceHandle, InvalidArgumentError
from .._lease.endpoint_errors import is_connection_error, status_of

Work = Callable[[InstanceHandle, list[Any]], Awaitable[Sequence[Any]]]
"""Returns a value or an exception for each item, in the order of the items."""

Dumps = Callable[[object], bytes]
"""Pickles a value, including classes and functions from the driver's program."""

_WAKE_INTERVAL = 1.0

# Statuses worth another attempt: they concern the endpoint, the key, or the load, not the request.
_RETRYABLE_STATUSES = frozenset({401, 403, 404, 408, 409, 425, 429})


class AnswerError(Exception):
    """The body of a successful response is not an answer."""


@frozen
class Failure:
    """The reason why an item of a `fan_out` has no value.

    Attributes:
        code: The name of the exception's class.
        message: The exception's message.
        status: The HTTP status, or None if there was no response.
        is_trouble: Whether another attempt may succeed, perhaps on another instance.

    Example:
        async def parse(inst, items):
            return [int(item) if item.isdigit() else ValueError(item) for item in items]

        leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct")]
        async with fan_out(parse, ["1", "two"], leases) as outcomes:
            print([str(each.error) for each in await outcomes.to_list() if each.error])
    """

    code: str
    message: str
    status: int | None = None
    is_trouble: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@frozen
class Result:
    """A value or a `Failure`, which replaces the exception: exceptions often cannot be pickled."""

    value: Any = None
    failure: Failure | None = None


def check_work(work: Work, dumps: Dumps) -> None:
    """Check the function on the driver, before anything is leased.

    Raises:
        InvalidArgumentError: If the function is not callable or cannot be sent to a worker.
    """
    if not callable(work):
        raise InvalidArgumentError(f"work must be an async function, not {work!r}")
    try:
        dumps(work)
    except Exception as error:
        raise InvalidArgumentError(
            f"work cannot be pickled, so it cannot run on a worker: {error}"
        ) from error


async def submit_chunk(
    run: Callable[[list[Any]], Awaitable[list[bytes | Failure]]], dumps: Dumps, items: list[Any]
) -> list[Result]:
    """Run a chunk on a worker. Items that cannot be sent to the worker fail.

    Args:
        run: Sends items to a worker and returns what `run_chunk` returns there.
        dumps: The cluster's pickler.
        items: The chunk.
    """
    try:
        return read_results(await run(items))
    except Exception:
        # Pickling in advance would hide references to cluster objects from Ray and Dask.
        problems = [_find_problem(item, dumps) for item in items]
        if not any(problems):
            raise
    rest = [item for item, problem in zip(items, problems, strict=True) if problem is None]
    results = iter(read_results(await run(rest)) if rest else ())
    return [next(results) if problem is None else Result(failure=problem) for problem in problems]


def run_chunk(dumps: Dumps, work: Work, inst: InstanceHandle, items: list[Any]) -> list[bytes | Failure]:
    """Run `work` on a chunk of items and return pickled values and failures for `read_results`.

    Each value is pickled on its own, so an unpicklable value fails only its own item.

    Args:
        dumps: The cluster's pickler.
        work: The function.
        inst: The instance.
        items: The chunk.

    Raises:
        Exception: Any exception from `work` that the driver can unpickle.
    """
    secret = _api_key(inst)
    try:
        results = _check_results(asyncio.run(_call(work, inst, items)), len(items))
    except _WrongResultError as error:
        return [Failure("TypeError", str(error))] * len(items)
    except asyncio.CancelledError as error:
        # The exception itself would look like a cancellation of the task.
        raise RuntimeError("work raised CancelledError") from error
    except Exception as error:
        if _find_problem(error, dumps) is None:
            raise
        return [_failure(error, secret)] * len(items)
    return [_pack(result, dumps, secret) for result in results]


def read_results(packed: list[bytes | Failure]) -> list[Result]:
    """Return the results of a chunk. Called on the driver."""
    return [Result(failure=each) if isinstance(each, Failure) else _unpack(each) for each in packed]


class _WrongResultError(Exception):
    """`work` did not return one result per item."""


def _check_results(results: object, count: int) -> list[Any]:
    # Arrays and tensors are not a `Sequence`.
    is_unordered = isinstance(results, (str, bytes, bytearray, Mapping, AbstractSet))
    if is_unordered or not (isinstance(results, Sized) and isinstance(results, Iterable)):
        raise _WrongResultError(
            f"work returned {_type_name(results)}: return a list with a value or an exception for each item"
        )
    found = list(results)
    if len(found) != count:
        raise _WrongResultError(f"work returned {len(found)} results for {count} items: return one per item")
    return found


def _pack(result: object, dumps: Dumps, secret: str) -> bytes | Failure:
    # `asyncio.gather` returns a CancelledError, which is not an `Exception`.
    if isinstance(result, BaseException):
        return _failure(result, secret)
    try:
        return dumps(result)
    except Exception as error:  # noqa: BLE001  (pickling runs code of the value)
        return _pickling_failure(result, error)


def _unpack(value: bytes) -> Result:
    try:
        return Result(pickle.loads(value))  # noqa: S301  (from a worker of ours)
    except Exception as error:  # noqa: BLE001  (as above)
        message = f"a value cannot be unpickled on the driver: {type(error).__name__}: {error}"
        return Result(failure=Failure("UnpicklingError", message))


def _type_name(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _find_problem(value: object, dumps: Dumps) -> Failure | None:
    """Return the reason a value cannot be pickled and unpickled, as with many exceptions."""
    try:
        pickle.loads(dumps(value))  # noqa: S301  (our own)
    except Exception as error:  # noqa: BLE001  (pickling runs code of the value)
        return _pickling_failure(value, error)
    return None


def _pickling_failure(value: object, error: Exception) -> Failure:
    return Failure("PicklingError", f"a value of type {_type_name(value)} cannot be pickled: {error}")


async def _call(work: Work, inst: InstanceHandle, items: list[Any]) -> object:
    # To cancel a task, Ray raises KeyboardInterrupt without a signal. An event loop that is waiting for
    # sockets notices it only when it wakes up.
    waker = asyncio.create_task(_wake_regularly())
    try:
        called = work(inst, items)
        if not inspect.isawaitable(called):
            raise _WrongResultError(f"work must be an async function, but returned {_type_name(called)}")
        return await called
    finally:
        waker.cancel()


async def _wake_regularly() -> None:
    while True:  # noqa: ASYNC110  (there is no event to wait for)
        await asyncio.sleep(_WAKE_INTERVAL)


def _failure(error: BaseException, secret: str) -> Failure:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (its class may be broken)
        message = "(message not available)"
    if secret:
        # The endpoint's response may quote the key that it rejects.
        message = message.replace(secret, "***")
    chain = list(_chain(error))
    status = next((found for link in chain if (found := status_of(link)) is not None), None)
    if status is None:
        is_trouble = any(map(_is_no_answer, chain))
    else:
        is_trouble = status in _RETRYABLE_STATUSES or status >= 500
    return Failure(type(error).__name__, message, status, is_trouble)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, because frameworks wrap client errors in their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_no_answer(error: BaseException) -> bool:
    return isinstance(error, (TimeoutError, AnswerError)) or is_connection_error(error)


def _api_key(inst: InstanceHandle) -> str:
    try:
        return inst.openai_kwargs()["api_key"]
    except ConfigurationError:
        return ""
