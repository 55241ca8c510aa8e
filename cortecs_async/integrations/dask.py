"""Run a batch on a Dask cluster, on instances that your program leases. Needs `pip install distributed`."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from .. import ConfigurationError, InstanceHandle, InstanceLease
from ._fan_out import FanOut
from ._fan_out_queue import Outcome
from ._worker import Failure, Result, Work, check_work, run_chunk, submit_chunk

__all__ = ["Failure", "FanOut", "Outcome", "fan_out"]

# Tracebacks and editors show the module that users import from: this one or `ray`, whichever comes last.
for _public in (Failure, FanOut, Outcome):
    _public.__module__ = __name__

T = TypeVar("T")


def fan_out(
    work: Work,
    items: Iterable[T] | AsyncIterable[T],
    leases: Iterable[InstanceLease],
    dask: Any,
    *,
    chunk_size: int = 32,
    chunks_per_instance: int = 2,
    max_attempts: int = 5,
    dask_options: Mapping[str, Any] | None = None,
) -> FanOut[T]:
    """Run `work` on all items in Dask tasks, a chunk of items at a time. Use it with `async with`.

    Each item has one outcome. If a worker dies, its chunk is repeated (Dask's `allowed-failures`). If an
    instance is lost, its chunks are repeated on a different one. If an item fails, its outcome has an error,
    and the other items continue.

    Args:
        work: Called on a worker as `await work(inst, items)`, with an `InstanceHandle` and a chunk. Return a
            list with a value or an exception for each item, as `inst.map(..., return_exceptions=True)` does.
            If `work` returns anything else, or a value cannot be pickled, the outcomes have an error.
            If `work` raises an exception, the fan-out ends. If that exception cannot be pickled, it
            becomes the error of the items instead.
        items: The items. They are read as they are needed.
        leases: `client.instance(...)` objects, not entered, one for each instance. `fan_out` enters and
            leaves them. The first one starts with the first item, the others when there is work for them.
        dask: A `distributed.Client(asynchronous=True)` in this event loop.
        chunk_size: The number of items in a task.
        chunks_per_instance: The number of tasks that use an instance in parallel.
        max_attempts: Attempts for an item that gets no response, or a status of 401, 403, 404, 408, 409,
            425, 429, or 500 and above. Attempts do not count while the instance answers no other items.
        dask_options: Options for `Client.submit`: `workers`, `resources`, `priority`, ...

    Raises:
        ConfigurationError: If the Dask client is not asynchronous. It would block the event loop, which polls
            the instances.
        InvalidArgumentError: If an argument is invalid, there are no leases, or `work` cannot be pickled.

    Example:
        async def shout(inst, items):
            return [item.upper() for item in items]  # here you send requests to inst.base_url

        leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct", max_lifetime="2h") for _ in range(2)]
        # inside `async with distributed.Client(asynchronous=True) as cluster:`
        async with fan_out(shout, ["sky", "grass"], leases, cluster) as outcomes:
            async for outcome in outcomes:
                print(outcome.item, outcome.value)
    """
    if not getattr(dask, "asynchronous", False) or not hasattr(dask, "submit"):
        raise ConfigurationError(
            f"fan_out needs `await distributed.Client(cluster, asynchronous=True)`, not {type(dask).__name__}"
        )
    dumps = importlib.import_module("cloudpickle").dumps  # Dask needs it

    check_work(work, dumps)

    async def run(inst: InstanceHandle, items: list[Any]) -> list[bytes | Failure]:
        options = {"pure": False, **(dask_options or {})}
        future = dask.submit(run_chunk, dumps, work, inst, items, **options)
        try:
            results: list[bytes | Failure] = await future
        finally:
            # The scheduler drops the task. A task that has begun still runs to completion on its worker.
            future.release()
        return results

    async def submit(inst: InstanceHandle, items: list[Any]) -> list[Result]:
        return await submit_chunk(partial(run, inst), dumps, items)

    return FanOut(
        submit,
        items,
        leases,
        chunk_size=chunk_size,
        chunks_per_instance=chunks_per_instance,
        max_attempts=max_attempts,
    )
