"""Notice that the instance of a lease has stopped or disappeared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import anyio

from .._api.domain import Instance
from .._api.subscription import ABSENCE_SPAN
from .._api.waiting import has_ended
from .._logging import Event, log
from .state import LeaseState


async def until_lost(state: LeaseState, known: Instance, on_change: Callable[[Instance], object]) -> str:
    """Wait until the instance is lost, and return what happened to it.

    Args:
        state: The state of the lease.
        known: The latest snapshot.
        on_change: Called with each new snapshot.
    """
    instance_id, policy = known.instance_id, state.services.poll
    expected = state.services.instances.poller.expected
    if expected.visible_at(instance_id) > anyio.current_time():
        # The response to the start request already reported it as running, so no reading has shown it yet.
        # Read it once: otherwise, a teardown treats a missing instance as one that is not visible yet.
        with contextlib.suppress(Exception):
            await _next(state, instance_id, known=None)
    while True:
        try:
            found = await _next(state, instance_id, known=known)
            if found is not None and not has_ended(found):
                known = found
                on_change(found)
                continue
            # Get its status twice: one wrong response must not end the lease.
            await anyio.sleep(policy.min_interval)
            found = await _next(state, instance_id, known=None, absence=0.0)
            if found is None:
                state.held.missing_since = anyio.current_time() - ABSENCE_SPAN
                return "disappeared"
            if has_ended(found):
                return f"became {found.status!r}"
        except Exception as error:  # noqa: BLE001  (a credential provider's or a transport's own)
            log(
                Event.LEASE_UNREADABLE,
                instance_id=instance_id,
                error_type=type(error).__name__,
                error=error,
            )
            await anyio.sleep(policy.lost_interval)


async def _next(
    state: LeaseState, instance_id: str, *, known: Instance | None, absence: float = ABSENCE_SPAN
) -> Instance | None:
    poller, interval = state.services.instances.poller, state.services.poll.lost_interval
    subscription = poller.subscribe(instance_id, known=known, absence=absence, interval=interval)
    return await poller.next(subscription)
