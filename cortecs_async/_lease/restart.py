"""Restart a stopped instance for a lease with `reuse=True`.

The promise to stop the instance again is recorded before each request, and closed, durably, when the service
rejects the request. Otherwise, if the lease ended before the next attempt, its release or the reaper would
stop an instance that another user restarted in the meantime.
"""

from __future__ import annotations

from functools import partial

import anyio

from .._api.domain import Instance
from .._errors import RequestError
from .._http.retry import counts_as_retry
from .._logging import Event, log
from .billing import instance_bill
from .start_state import RestartAttempt
from .state import LeaseState, Origin


async def restart(state: LeaseState, instance: Instance) -> Instance:
    """Restart an instance; retry as `RetryPolicy` allows.

    Raises:
        RequestError: if the restart was rejected or, with `outcome_unknown`, may have worked.
        JournalError: if the journal is required but missing. Nothing was sent.
        GuardError: if the reaper is required but missing. Nothing was sent.
    """
    services, instance_id = state.services, instance.instance_id
    witness = state.held.restart = RestartAttempt(disown=partial(_disown, state))
    attempt = counted = 0
    began = anyio.current_time()
    log(Event.LEASE_RESTARTED, instance_id=instance_id, model=instance.instance_args.hf_name)
    while True:
        attempt += 1
        try:
            await _promise_to_stop(state, instance)
            return await services.instances.restart_once(instance_id, witness)
        except GeneratorExit:
            if witness.is_refused() and (key := witness.disown()) is not None:
                services.promises.close_soon(key)
            raise
        except BaseException as error:
            if witness.is_refused() and (key := witness.disown()) is not None:
                await services.promises.close(key)
            if not isinstance(error, RequestError) or witness.failure is None:
                raise
            error.outcome_unknown = witness.may_have_worked
            counted += counts_as_retry(witness.failure)
            wait = services.starter.wait_before_retry(
                "/instances/restart",
                witness.failure,
                attempt=attempt,
                counted=counted,
                elapsed=anyio.current_time() - began,
            )
            if wait is None:
                raise
        await anyio.sleep(wait)


async def _promise_to_stop(state: LeaseState, instance: Instance) -> None:
    held, promises = state.held, state.services.promises
    state.newest = instance
    held.instance_id, held.origin = instance.instance_id, Origin.RESTARTED
    state.services.instances.note_started(instance, was_stopped=True)
    if held.key is None:
        expires_at = state.expiry()
        held.key = promises.record_created(
            None,
            instance.instance_id,
            goal="stopped",
            expires_at=expires_at,
            bill=instance_bill(state),
        )
    await promises.flush(strict=True)


def _disown(state: LeaseState) -> str | None:
    """Forget the instance, because the service rejected every restart. Return the key of the promise."""
    held = state.held
    key, held.key = held.key, None
    held.instance_id, held.origin, state.newest = None, Origin.STARTED, None
    return key
