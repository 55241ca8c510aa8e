"""The actions of `stop` and `rm` on one instance, and how to run an action on several."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import anyio

import cortecs_async

from ..errors import BadRequestError, ConflictError, CortecsError, InstanceGoneError, NotFoundError
from .output import has_ended, print_warning

if TYPE_CHECKING:
    from .. import AsyncCortecs, Instance

# If there is nothing left to stop, the service rejects a stop request with one of these. It is not documented
# which.
_REJECTIONS = (BadRequestError, ConflictError, NotFoundError)

Action = Callable[["AsyncCortecs", str], Awaitable[str]]


async def for_each(ids: tuple[str, ...], action: Action) -> list[tuple[str, str | CortecsError]]:
    """Run an action for all instances in parallel. An error with one instance does not affect the others."""
    results: dict[str, str | CortecsError] = {}

    async def attempt(instance_id: str) -> None:
        try:
            results[instance_id] = await action(client, instance_id)
        except CortecsError as error:
            results[instance_id] = error

    unique = tuple(dict.fromkeys(ids))
    async with cortecs_async.AsyncCortecs() as client, anyio.create_task_group() as tasks:
        for instance_id in unique:
            tasks.start_soon(attempt, instance_id)
    return [(instance_id, results[instance_id]) for instance_id in unique]


async def stop_instance(client: AsyncCortecs, instance_id: str, *, timeout: float) -> str:
    try:
        instance = await client.instances.stop(instance_id)
    except _REJECTIONS as rejection:
        try:
            instance = await client.instances.get(instance_id)
        except _REJECTIONS:
            raise rejection from None
        if has_ended(instance):
            return f"already {instance.status}"
        if instance.status.lower() != "stopping":
            raise
    if has_ended(instance) or not timeout:
        return instance.status
    try:
        with anyio.move_on_after(timeout):
            async for instance in client.instances.watch(instance_id):
                if has_ended(instance):
                    return instance.status
            return "gone"
    except InstanceGoneError:
        return "gone"
    except anyio.get_cancelled_exc_class():
        print_warning(f"{instance_id} was asked to stop and is {instance.status}.")
        raise
    raise CortecsError(f"is {instance.status} after {timeout:g} s. It may be billed until it is stopped.")


async def remove_instance(
    client: AsyncCortecs,
    instance_id: str,
    *,
    listed: Mapping[str, Instance | None],
    stop_first: bool,
    ignore_missing: bool,
    timeout: float,
) -> str:
    if instance_id in listed:
        instance = listed[instance_id]
    elif ignore_missing:
        # One list without the instance proves nothing. A release polls until it is certain.
        await client.release(instance_id, teardown_timeout=timeout)
        return "gone"
    else:
        instance = await client.instances.get(instance_id)  # raises the same error as `show`
    if stop_first:
        await client.release(instance_id, teardown_timeout=timeout)
    elif instance is None or has_ended(instance):
        # If its status is unknown, the service itself rejects deleting a running instance.
        with anyio.move_on_after(timeout):
            await client.instances.delete(instance_id)
            return "deleted"
        raise CortecsError(
            f"was not confirmed deleted within {timeout:g} s. "
            f"Run `cortecs-async show {instance_id}` to check."
        )
    else:
        raise CortecsError(f"is {instance.status}. Pass --stop to stop it first.")
    return "deleted"
