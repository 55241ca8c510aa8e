"""A batch on a Dask cluster against instances that the driver leases; needs `pip install distributed`."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, TypeVar

from .. import ConfigurationError, InstanceHandle, InstanceLease
from ._chunk import Failure, Result, Work, run_chunk
from ._fleet import FanOut, Outcome

__all__ = ["Failure", "FanOut", "Outcome", "fan_out"]

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
    """Has items done by Dask tasks, in chunks; to be used with `async with`.

    Each item has one outcome. A chunk whose worker dies is done again by another (Dask's `allowed-failures`),
    one whose instance is lost is done against another; an error of one item is its outcome, not the end.

    Args:
        work: `await work(inst, items)` is called on a worker, with an `InstanceHandle` and a chunk. It gives
            a list with a value or an exception for each item, as `inst.map(..., return_exceptions=True)`
            does. What it raises ends everything.
        items: What is to be done; read as it is needed.
        leases: `client.instance(...)`, not entered, one for each instance. They are entered and left here.
        dask: A `distributed.Client(asynchronous=True)` of this event loop.
        chunk_size: Items of a task.
        chunks_per_instance: Tasks that run against an instance at once.
        max_attempts: How often an item is tried that gets no answer, or one of 401, 403, 404, 408, 409, 425,
            429 or from 500 on.
        dask_options: Options of `Client.submit`: `workers`, `resources`, `priority`, ...

    Raises:
        ConfigurationError: for a client that is not asynchronous: it would hold up the event loop, and the
            watch over the instances with it.
        InvalidArgumentError: for bad numbers, or no leases.
    """
    if not getattr(dask, "asynchronous", False):
        raise ConfigurationError("fan_out needs `await distributed.Client(..., asynchronous=True)`")

    async def submit(inst: InstanceHandle, items: list[Any]) -> list[Result]:
        future = dask.submit(run_chunk, work, inst, items, **{"pure": False, **(dask_options or {})})
        try:
            results: list[Result] = await future
        finally:
            # The scheduler forgets it then; on a worker it runs to its end, if it has begun.
            future.release()
        return results

    return FanOut(
        submit,
        items,
        leases,
        chunk_size=chunk_size,
        chunks_per_instance=chunks_per_instance,
        max_attempts=max_attempts,
    )
