"""Run a batch on a Ray cluster, on instances that your program leases. Needs `pip install ray`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from .. import ConfigurationError, InstanceHandle, InstanceLease
from ._fan_out import FanOut
from ._fan_out_queue import Outcome
from ._worker import Failure, Result, Work, check_work, run_chunk, submit_chunk

__all__ = ["Failure", "FanOut", "Outcome", "fan_out"]

# Tracebacks and editors show the module that users import from: this one or `dask`, whichever comes last.
for _public in (Failure, FanOut, Outcome):
    _public.__module__ = __name__

T = TypeVar("T")

# Chunks mostly wait for answers. By default, Ray fills the first machine before it uses the next.
_OPTIONS = {"num_cpus": 1, "scheduling_strategy": "SPREAD"}


def fan_out(
    work: Work,
    items: Iterable[T] | AsyncIterable[T],
    leases: Iterable[InstanceLease],
    *,
    chunk_size: int = 32,
    chunks_per_instance: int = 2,
    max_attempts: int = 5,
    ray_options: Mapping[str, Any] | None = None,
) -> FanOut[T]:
    """Run `work` on all items in Ray tasks, a chunk of items at a time. Use it with `async with`.

    Each item has one outcome. If a worker dies, its chunk is repeated (Ray's `max_retries`). If an instance
    is lost, its chunks are repeated on a different one. If an item fails, its outcome has an error, and the
    other items continue.

    Args:
        work: Called on a worker as `await work(inst, items)`, with an `InstanceHandle` and a chunk. Return a
            list with a value or an exception for each item, as `inst.map(..., return_exceptions=True)` does.
            If `work` returns anything else, or a value cannot be pickled, the outcomes have an error.
            If `work` raises an exception, the fan-out ends. If that exception cannot be pickled, it
            becomes the error of the items instead.
        items: The items. They are read as they are needed.
        leases: `client.instance(...)` objects, not entered, one for each instance. `fan_out` enters and
            leaves them. The first one starts with the first item, the others when there is work for them.
        chunk_size: The number of items in a task.
        chunks_per_instance: The number of tasks that use an instance in parallel.
        max_attempts: Attempts for an item that gets no response, or a status of 401, 403, 404, 408, 409,
            425, 429, or 500 and above. Attempts do not count while the instance answers no other items.
        ray_options: Options for the tasks: `num_cpus`, `resources`, `max_retries`, ...

    Raises:
        ConfigurationError: If Ray is not installed, or `ray.init()` was not called.
        InvalidArgumentError: If an argument is invalid, there are no leases, or `work` cannot be pickled.

    Example:
        async def shout(inst, items):
            return [item.upper() for item in items]  # here you send requests to inst.base_url

        leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct", max_lifetime="2h") for _ in range(2)]
        # after ray.init():
        async with fan_out(shout, ["sky", "grass"], leases) as outcomes:
            async for outcome in outcomes:
                print(outcome.item, outcome.value)
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigurationError("cortecs_async.integrations.ray needs Ray: pip install ray") from None
    if not ray.is_initialized():
        # Otherwise, Ray would start a cluster with the first task and block the event loop while it starts.
        raise ConfigurationError("Call ray.init() before fan_out(...) and before your first lease.")
    remote_chunk = ray.remote(run_chunk).options(**{**_OPTIONS, **(ray_options or {})})
    dumps = ray.cloudpickle.dumps
    check_work(work, dumps)
    work_ref = ray.put(work)

    async def run(inst: InstanceHandle, items: list[Any]) -> list[bytes | Failure]:
        ref = remote_chunk.remote(dumps, work_ref, inst, items)
        try:
            results: list[bytes | Failure] = await ref
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise
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
