"""Start or find an instance for a lease, and wait until it is usable.

These are the steps before a lease's block begins. Each step is recorded before it is taken.
"""

from __future__ import annotations

from functools import partial

import anyio

from .._api.domain import Instance
from .._api.waiting import START_TIMEOUT_ADVICE, wait_until_running
from .._errors import EndpointError, LeaseExpiredError, RequestTimeoutError, StartTimeoutError
from .._logging import Event, log
from .handle import url_problem
from .restart import restart
from .state import LeaseState, Origin


async def start(state: LeaseState) -> None:
    """Start an instance, reuse one, or attach to one. With a `max_cost`, get the price first."""
    services, options, held = state.services, state.options, state.held
    attempt = held.attempt = services.starter.prepare(options.args, partial(_started, state))
    with anyio.CancelScope(deadline=state.on_loop(state.began + options.start_timeout)) as scope:
        state.lifetime, state.limit = await services.prices.limit(options)
        attempt.on_sent = partial(_limit, state, scope)
        if options.borrowed is not None:
            _found(state, await services.instances.get_confirmed(options.borrowed))
        elif options.reuse:
            # After a restart, the returned snapshot is newer than the recorded one.
            state.newest = await services.instances.find_or_start(
                options.args,
                start=lambda: services.starter.start(attempt),
                restart=partial(restart, state),
                found=partial(_found, state),
                tagged=services.starter.settings.tag_starts,
            )
        else:
            await services.starter.start(attempt)
    # Until the response is recorded, the intent in the journal covers the instance. Outside the scope,
    # because the response may have arrived just before the deadline.
    await services.promises.flush()
    if state.newest is None:
        # The deadline passed during or between two start requests, or during the search for the instance of a
        # start.
        unknown = attempt.is_open or bool(attempt.not_seen)
        if attempt.is_open and state.age >= state.lifetime:
            raise LeaseExpiredError(
                f"{state.limit} was reached before the instance for {options.args.hf_name} could be "
                "identified",
                instance_id="",
            )
        raise RequestTimeoutError(
            f"Could not start an instance within start_timeout={options.start_timeout:g} s: the service "
            "was busy or unreachable. "
            + (
                "One start request may have succeeded: the client, the reaper, or `cortecs-async sweep` "
                "searches for its instance."
                if unknown
                else "Nothing was started."
            )
            + " Set CORTECS_LOG=info for details.",
            method="POST",
            path="/instances/start",
            outcome_unknown=unknown,
        )
    if held.origin is Origin.STARTED:
        services.prices.prefetch(state.newest.instance_args.hardware_type_id)


def _limit(state: LeaseState, scope: anyio.CancelScope) -> None:
    # The instance is billed from here on, whether or not its id is known.
    scope.deadline = state.on_loop(min(state.began + state.options.start_timeout, state.expires_at))


def _started(state: LeaseState, instance: Instance) -> None:
    # Only the response contains the id. From here on, the release knows it, even after a cancellation.
    held, promises = state.held, state.services.promises
    if held.origin is Origin.RESTARTED and held.key is not None:
        promises.record_gone(held.key)  # the restart failed
    state.newest = instance
    held.instance_id, held.origin = instance.instance_id, Origin.STARTED
    if held.attempt is None or not held.attempt.adopted:  # otherwise a list has shown it
        state.services.instances.note_started(instance)
    held.key = promises.record_created(
        held.attempt.key if held.attempt else None,
        instance.instance_id,
        goal="gone",
        expires_at=state.expiry(),
    )
    log(
        Event.LEASE_STARTED,
        instance_id=instance.instance_id,
        model=instance.instance_args.hf_name,
        request_id=held.attempt.request_id if held.attempt else None,
    )


def _found(state: LeaseState, instance: Instance) -> None:
    state.newest = instance
    state.held.instance_id, state.held.origin = instance.instance_id, Origin.FOUND
    log(Event.LEASE_FOUND, instance_id=instance.instance_id, model=instance.instance_args.hf_name)


async def wait(state: LeaseState) -> None:
    """Wait until the instance is usable."""
    options, poll = state.options, state.services.poll
    instance_id = state.instance.instance_id
    on_progress = options.on_progress
    if options.ready != "status":
        # Not at the top, because most leases do not need it.
        from .readiness import until_ready  # noqa: PLC0415

        on_progress = until_ready(on_progress)
    try:
        state.newest = await wait_until_running(
            state.services.instances.poller,
            instance_id,
            poll,
            timeout=min(options.start_timeout, state.expires_at - state.began),
            began=state.on_loop(state.began),
            settle=0.0 if options.borrowed else poll.settle,
            known=state.newest,
            on_progress=on_progress,
        )
        problem = ""
    except StartTimeoutError as error:
        if state.age < state.lifetime:
            raise
        # A longer start_timeout would not help.
        limit = state.limit.partition("=")[0]
        problem = f". {error}".replace(
            START_TIMEOUT_ADVICE, f"Increase {limit}, or try another hardware type."
        )
    # Checked even without a timeout, because the machine may have been suspended while starting.
    if state.age >= state.lifetime:
        raise LeaseExpiredError(
            f"Instance {instance_id} reached {state.limit} before it was running{problem}",
            instance_id=instance_id,
        )
    _check_base_url(state)
    if options.ready != "status":
        from .readiness import wait_until_ready  # noqa: PLC0415  (see above)

        await wait_until_ready(state)
    expected = state.services.instances.poller.expected
    # Without a reading, it may count as running because of the response to the start request.
    if state.held.key is not None and expected.visible_at(instance_id) < anyio.current_time():
        state.services.promises.record_seen(state.held.key)


def _check_base_url(state: LeaseState) -> None:
    base_url, instance_id = state.instance.base_url or "", state.instance.instance_id
    problem = url_problem(base_url, allow_insecure_http=state.services.allow_insecure_http)
    if problem:
        raise EndpointError(
            f"The inference API key cannot be sent to instance {instance_id}, because of the URL that the "
            f"service returned: {problem}",
            instance_id=instance_id,
        )
    state.base_url = base_url


async def hand_over(state: LeaseState) -> None:
    """Record the effect of `on_exit`, so that it applies even if this process is killed."""
    held, options, promises = state.held, state.options, state.services.promises
    if held.key is None or options.on_exit == "delete":
        return
    if options.on_exit == "keep":
        promises.record_handed_over(held.key)
    else:
        instance_id = state.instance.instance_id
        promises.record_created(held.key, instance_id, goal="stopped", expires_at=state.expiry())
    await promises.flush()


def revoke_hand_over(state: LeaseState) -> None:
    """Record that the instance must be deleted, in case `hand_over` recorded something else."""
    held = state.held
    is_ours = held.key is not None and held.origin is Origin.STARTED
    if is_ours and state.options.on_exit != "delete":
        instance_id = state.instance.instance_id
        state.services.promises.record_created(held.key, instance_id, goal="gone", expires_at=state.expiry())
