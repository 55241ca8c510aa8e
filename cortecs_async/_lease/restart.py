"""Restart a stopped instance for a lease with `reuse=True`.

The promise to stop the instance again is recorded before each request, and closed, durably, when the service
rejects the request. Otherwise, if the lease ended before the next attempt, its release or the reaper would
stop an instance that someone else has restarted meanwhile.
"""

from __future__ import annotations

import anyio
from typing_extensions import override

from .._api.domain import Instance
from .._api.witnesses import UncancellableWitness
from .._errors import RequestError
from .._http.messages import Failure, Reply
from .._http.retry import counts_as_retry, may_have_taken_effect
from .._logging import Event, log
from .state import LeaseState, Origin


class _Witness(UncancellableWitness):
    """Remembers whether a restart may have worked, over all attempts.

    Attributes:
        failure: How the last attempt failed.
        may_have_worked: Whether any attempt may have worked.
    """

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.may_have_worked = False
        self._is_sent = False

    @override
    def sending(self) -> None:
        self.failure, self._is_sent = None, True

    @override
    def settled(self, outcome: Reply | Failure) -> None:
        self._is_sent = False
        self.failure = outcome if isinstance(outcome, Failure) else None
        if self.failure is None or may_have_taken_effect("POST", self.failure):
            self.may_have_worked = True

    def is_refused(self) -> bool:
        """Return whether nothing was restarted: the service has rejected every attempt that was sent."""
        return not (self.may_have_worked or self._is_sent)


async def restart(state: LeaseState, instance: Instance) -> Instance:
    """Restart an instance; retry as `RetryPolicy` allows.

    Raises:
        RequestError: the restart was rejected or, with `outcome_unknown`, may have worked.
        JournalError: or `GuardError`, if one is required and missing. Nothing was sent.
    """
    services, instance_id = state.services, instance.instance_id
    witness = _Witness()
    attempt = counted = 0
    began = anyio.current_time()
    log(Event.LEASE_RESTARTED, instance_id=instance_id, model=instance.instance_args.hf_name)
    while True:
        attempt += 1
        try:
            await _promise_to_stop(state, instance)
            return await services.instances.restart_once(instance_id, witness)
        except GeneratorExit:
            if witness.is_refused() and (key := _disown(state)) is not None:
                services.promises.close_soon(key)
            raise
        except BaseException as error:
            if witness.is_refused() and (key := _disown(state)) is not None:
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
        held.key = promises.record_created(None, instance.instance_id, goal="stopped", expires_at=expires_at)
    await promises.flush(strict=True)


def _disown(state: LeaseState) -> str | None:
    """Forget the instance, because the service has rejected every restart. Return the key of the promise."""
    held = state.held
    key, held.key = held.key, None
    held.instance_id, held.origin, state.newest = None, Origin.STARTED, None
    return key
