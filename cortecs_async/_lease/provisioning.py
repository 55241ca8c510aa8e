"""Start or find an instance for a lease, and wait until it is usable.

These are the steps before a lease's block begins. Each step is recorded before it is taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
from attrs import define

from .._api.domain import Instance, InstanceArgs
from .._api.waiting import START_TIMEOUT_ADVICE, wait_until_running
from .._errors import (
    CortecsError,
    EndpointError,
    LeaseExpiredError,
    RequestError,
    RequestTimeoutError,
    StartTimeoutError,
)
from .._logging import Event, log
from .billing import instance_bill, record_kept, record_seen, start_bill
from .handle import url_problem
from .restart import restart
from .state import LeaseState, Origin

Candidates = Callable[[], Awaitable[Sequence[InstanceArgs]]]
"""Returns the arguments of the start requests, in the order to try."""


async def start(state: LeaseState) -> None:
    """Start an instance, reuse one, or attach to one. With a `max_cost`, get the price first."""
    if state.options.selects_hardware:
        from .candidates import start_any  # noqa: PLC0415  (most leases do not need it)

        await start_any(state, partial(_start_first_of, state))
    else:
        await _start_first_of(state, None)


@define(eq=False)
class _Attempts:
    """The ways to get an instance within `start_timeout`. Each sets the time limit of its instance.

    Attributes:
        scope: The scope with the deadline.
        allowed: The arguments, in the order to try.
        limits: The limit for each of them, from `Prices.limit`.
    """

    state: LeaseState
    scope: anyio.CancelScope
    allowed: Sequence[InstanceArgs]
    limits: Sequence[tuple[float, str]]

    def set_limit(self, args: InstanceArgs) -> None:
        ids = [each.hardware_type_id for each in self.allowed]
        hardware = args.hardware_type_id
        self.state.lifetime, self.state.limit = self.limits[ids.index(hardware) if hardware in ids else 0]

    def found(self, instance: Instance) -> None:
        self.set_limit(instance.instance_args)
        _found(self.state, instance)

    async def restart(self, instance: Instance) -> Instance:
        state = self.state
        self.set_limit(instance.instance_args)
        try:
            return await restart(state, instance)
        except RequestError:
            attempt = state.held.restart
            if state.selection is None or attempt is None or not attempt.lacked_capacity:
                raise
        # Another hardware type may have capacity, or the lease can wait for it.
        return await self.start()

    async def start(self) -> Instance:
        """Send start requests until one is not refused."""
        state, starter = self.state, self.state.services.starter
        left = list(self.allowed)
        while True:
            args = left.pop(0)
            self.set_limit(args)
            attempt = state.held.attempt = starter.prepare(args, partial(_started, state))
            attempt.on_sent = partial(_limit, state, self.scope)
            attempt.on_refused = partial(_unlimit, state, self.scope)
            attempt.bill = partial(start_bill, state.options, state.services.prices)
            try:
                return await starter.start(attempt)
            except RequestError as error:
                is_refused = state.selection is not None and state.selection.note_refusal(attempt, error)
                if not (is_refused and left):
                    raise


async def _start_first_of(state: LeaseState, candidates: Candidates | None) -> None:
    """Start an instance with the first of these arguments for which the service does not refuse it."""
    services, options, held = state.services, state.options, state.held
    with anyio.CancelScope(deadline=state.on_loop(state.began + options.start_timeout)) as scope:
        allowed = (options.args,) if candidates is None else await candidates()
        limits = [await services.prices.limit(options, each) for each in allowed]
        attempts = _Attempts(state, scope, allowed, limits)
        attempts.set_limit(allowed[0])
        if options.borrowed is not None:
            _found(state, await services.instances.get_confirmed(options.borrowed))
        elif options.reuse:
            # After a restart, the returned snapshot is newer than the recorded one.
            state.newest = await services.instances.find_or_start(
                *allowed,
                start=attempts.start,
                restart=attempts.restart,
                found=attempts.found,
                tagged=services.starter.settings.tag_starts,
            )
        else:
            await attempts.start()
    # Until the response is recorded, the intent in the journal covers the instance. Outside the scope,
    # because the response may have arrived just before the deadline.
    await services.promises.flush()
    if state.newest is None:
        raise _not_started(state)
    if held.origin is Origin.STARTED:
        services.prices.prefetch(state.newest.instance_args.hardware_type_id)


def _not_started(state: LeaseState) -> CortecsError:
    """Return the error if `start_timeout` passed before an instance was started or found."""
    attempt, options = state.held.attempt, state.options
    is_open = attempt is not None and attempt.is_open
    unknown = is_open or (attempt is not None and bool(attempt.not_seen))
    if is_open and state.age >= state.lifetime:
        return LeaseExpiredError(
            f"{state.limit} was reached before the instance for {options.args.hf_name} could be identified",
            instance_id="",
        )
    return RequestTimeoutError(
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


def _limit(state: LeaseState, scope: anyio.CancelScope) -> None:
    # The instance is billed from here on, whether or not its id is known.
    scope.deadline = state.on_loop(min(state.began + state.options.start_timeout, state.expires_at))


def _unlimit(state: LeaseState, scope: anyio.CancelScope) -> None:
    # Nothing is billed until the next request is sent, unless an earlier one may have worked.
    if state.held.attempt is not None and not state.held.attempt.not_seen:
        scope.deadline = state.on_loop(state.began + state.options.start_timeout)


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
        bill=instance_bill(state),
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

        while not await wait_until_ready(state):
            _check_base_url(state)
    expected = state.services.instances.poller.expected
    # Without a reading, it may count as running because of the response to the start request.
    if state.held.key is not None and expected.visible_at(instance_id) < anyio.current_time():
        await record_seen(state, state.held.key)


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
        record_kept(state)
        promises.record_handed_over(held.key, is_watched=state.activity is not None)
    else:
        instance_id = state.instance.instance_id
        promises.record_created(held.key, instance_id, goal="stopped", expires_at=state.expiry())
    await promises.flush()


def revoke_hand_over(state: LeaseState) -> None:
    """Record that the instance must be deleted, in case `hand_over` recorded something else.

    An instance that was kept without a limit no longer has a record, so this contains all of it.
    """
    held, promises = state.held, state.services.promises
    if held.key is not None and held.origin is Origin.STARTED and state.options.on_exit != "delete":
        promises.record_created(
            held.key,
            state.instance.instance_id,
            goal="gone",
            expires_at=state.expiry(),
            bill={**instance_bill(state), "since": promises.system.wall_clock() - state.age},
        )
