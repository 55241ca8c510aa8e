"""A batch on a Ray cluster against instances that the driver leases; needs `pip install ray`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, TypeVar

from .. import ConfigurationError, InstanceHandle, InstanceLease
from ._chunk import Failure, Result, Work, run_chunk
from ._fleet import FanOut, Outcome

__all__ = ["Failure", "FanOut", "Outcome", "fan_out"]

T = TypeVar("T")

# Chunks mostly wait for answers; by itself Ray would fill the first machine before it takes another.
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
    """Has items done by Ray tasks, in chunks; to be used with `async with`.

    Each item has one outcome. A chunk whose worker dies is done again (Ray's `max_retries`), one whose
    instance is lost is done against another; an error of one item is its outcome, not the end.

    Args:
        work: `await work(inst, items)` is called on a worker, with an `InstanceHandle` and a chunk. It gives
            a list with a value or an exception for each item, as `inst.map(..., return_exceptions=True)`
            does. What it raises ends everything.
        items: What is to be done; read as it is needed.
        leases: `client.instance(...)`, not entered, one for each instance. They are entered and left here.
        chunk_size: Items of a task.
        chunks_per_instance: Tasks that run against an instance at once.
        max_attempts: How often an item is tried that gets no answer, or one of 401, 403, 404, 408, 409, 425,
            429 or from 500 on.
        ray_options: Options of the tasks: `num_cpus`, `resources`, `max_retries`, ...

    Raises:
        ConfigurationError: when Ray is not installed, or `ray.init()` was not called.
        InvalidArgumentError: for bad numbers, or no leases.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigurationError("cortecs_async.integrations.ray needs Ray: pip install ray") from None
    if not ray.is_initialized():
        # By itself it would start a cluster at the first task, and hold up the event loop meanwhile.
        raise ConfigurationError("call ray.init() before fan_out(...), best before anything is leased")
    chunk = ray.remote(run_chunk).options(**{**_OPTIONS, **(ray_options or {})})
    shared = ray.put(work)

    async def submit(inst: InstanceHandle, items: list[Any]) -> list[Result]:
        ref = chunk.remote(shared, inst, items)
        try:
            return await _result(ref)
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise

    return FanOut(
        submit,
        items,
        leases,
        chunk_size=chunk_size,
        chunks_per_instance=chunks_per_instance,
        max_attempts=max_attempts,
    )


async def _result(ref: Any) -> list[Result]:
    results: list[Result] = await ref
    return results
