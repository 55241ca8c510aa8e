"""Start an instance on one of several hardware types, and wait for capacity if there is none.

`start_any` decides which hardware types to try in which order. It tries the next one only after the service
has refused the one before, and never after a start request whose outcome is unknown. While it waits, no start
request is open, so that a killed process leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio

from .._api.domain import InstanceArgs
from .._api.waiting import report_progress
from .._errors import CapacityTimeoutError, RequestError
from .._hints import any_of
from .._logging import Event, log
from .capacity import Waiter
from .hardware import (
    Selection,
    choose_hardware,
    price_argument,
    refusal_of,
    waiting_progress,
    wanted_hardware,
)
from .state import LeaseState

StartFirstOf = Callable[[Callable[[], Awaitable[Sequence[InstanceArgs]]]], Awaitable[None]]
"""Start an instance with the first arguments that the service does not refuse, within `start_timeout`."""

# Seconds between two calls of `on_progress` during the wait.
_REPORT_INTERVAL = 60.0


async def start_any(state: LeaseState, start_first_of: StartFirstOf) -> None:
    """Start an instance on the first hardware type that has capacity, and record why it was chosen.

    Raises:
        InvalidArgumentError: if no hardware type fits. Nothing was started.
        PriceUnknownError: if a price is needed and unknown. Nothing was started.
        CapacityTimeoutError: if there is no capacity within `capacity_timeout`. Nothing was started.
        RequestError: if the last start request was refused, or its outcome is unknown.
    """
    entered = state.began
    if not await _must_queue(state):
        try:
            await start_first_of(lambda: _first_candidates(state))
        except RequestError as error:
            if state.options.capacity_timeout is None or not _is_for_lack_of_capacity(state):
                if state.selection is not None:
                    state.selection.annotate(error)
                raise
    if state.newest is None:
        await _start_when_available(state, start_first_of, entered)
    if reason := state.hardware_reason:
        info = state.info()
        log(Event.LEASE_HARDWARE, model=info.model, hardware_type_id=info.hardware_type_id, reason=reason)


async def _must_queue(state: LeaseState) -> bool:
    """Return whether another lease of this client already waits for the same hardware."""
    options, queue = state.options, state.services.capacity
    # An instance that is reused does not wait for capacity.
    if options.capacity_timeout is None or options.reuse or queue.is_empty:
        return False
    # If this takes longer, the first attempt reports it.
    with anyio.move_on_after(options.start_timeout):
        return queue.is_waited_for((await _select(state)).names)
    return False


async def _first_candidates(state: LeaseState) -> Sequence[InstanceArgs]:
    options = state.options
    if not options.hardware and options.max_price_per_hour is None:
        # With only a capacity_timeout, there is nothing to choose until a start request is refused.
        state.selection = Selection(options=options, candidates=[options.args])
        return (options.args,)
    selection = await _select(state)
    if len(selection.candidates) > 1:
        selection.begin_round(await state.services.capacity.available())
    return selection.in_order()


async def _select(state: LeaseState) -> Selection:
    options, prices = state.options, state.services.prices
    args, model = options.args, None
    if options.hardware or args.hardware_type_id is None:
        model = await prices.model(args.model_id)
    if price_argument(options):
        await prices.fetch(*wanted_hardware(options, model))
    state.selection = choose_hardware(options, model, prices.of)
    return state.selection


def _is_for_lack_of_capacity(state: LeaseState) -> bool:
    """Return whether the last start request was refused, and a hardware type is left to wait for."""
    attempt, selection = state.held.attempt, state.selection
    is_refused = attempt is not None and refusal_of(attempt) is not None
    return is_refused and selection is not None and bool(selection.candidates)


async def _start_when_available(state: LeaseState, start_first_of: StartFirstOf, entered: float) -> None:
    """Wait for the turn of this lease, start an instance, and wait again if there was no capacity."""
    queue = state.services.capacity
    selection = state.selection
    if selection is None or not selection.wanted:
        selection = await _select(state)
    timeout = state.options.capacity_timeout or 0.0
    log(
        Event.LEASE_WAITING,
        model=state.options.args.hf_name,
        hardware=any_of(selection.names),
        seconds=timeout,
    )
    with queue.joined(selection.names, state.options.args.num_workers) as waiter:
        while True:
            offer = await _wait_for_turn(state, selection, waiter, entered)
            # Nothing counted until now.
            state.began = state.now()
            selection.begin_round(offer)
            listed = [each for each in selection.candidates if each.hardware_type_id in offer]

            try:
                await start_first_of(partial(_given, listed))
            except RequestError as error:
                if not _is_for_lack_of_capacity(state):
                    selection.annotate(error)
                    raise
                for hardware, failure in selection.refused.items():
                    queue.refused(hardware, waiter.workers, failure.retry_after)
                waiter.wanted = tuple(selection.names)
            else:
                return
            finally:
                queue.end_turn(waiter)


async def _given(candidates: Sequence[InstanceArgs]) -> Sequence[InstanceArgs]:
    return candidates


async def _wait_for_turn(
    state: LeaseState, selection: Selection, waiter: Waiter, entered: float
) -> tuple[str, ...]:
    """Wait until this lease may start, and call `on_progress` every minute.

    Raises:
        CapacityTimeoutError: if `capacity_timeout` has passed.
    """
    options, queue = state.options, state.services.capacity
    deadline = entered + (options.capacity_timeout or 0.0)
    report_at = math.inf if options.on_progress is None else state.now()
    while True:
        now = state.now()
        selection.waited = now - entered
        if now >= report_at and options.on_progress is not None:
            report_at = now + _REPORT_INTERVAL
            progress = waiting_progress(options.args, waiter.wanted, selection.waited)
            with anyio.CancelScope(deadline=state.on_loop(deadline)):
                await report_progress(options.on_progress, progress)
        # Checked after the report, because the refused start request may have taken all of the time.
        if now >= deadline:
            raise _timed_out(state, selection, waiter)
        with anyio.CancelScope(deadline=state.on_loop(min(deadline, report_at))):
            offer = await queue.wait_for_turn(waiter)
            now = state.now()
            selection.waited = now - entered
            # The scope does not count the time for which the machine was suspended.
            if now < deadline:
                return offer


def _timed_out(state: LeaseState, selection: Selection, waiter: Waiter) -> CapacityTimeoutError:
    timeout = state.options.capacity_timeout or 0.0
    advice = "Wait longer, or allow more hardware types."
    if not waiter.has_seen_list and waiter.failure is not None:
        failure = str(waiter.failure).rstrip(".")
        advice = f"The available hardware types could not be fetched in that time: {failure}."
    error = CapacityTimeoutError(
        f"No capacity for {any_of(waiter.wanted)} within capacity_timeout={timeout:g} s. Nothing was "
        f"started. {advice}",
        instance_id="",
    )
    selection.annotate(error)
    return error
