"""`cortecs-async start` and `restart`: instances that outlive the command, and what is said about that."""

from __future__ import annotations

from typing import Any

import anyio
import click

from .. import AsyncCortecs, CortecsError, Instance, InstanceHandle, RequestError
from ..signals import cancel_on_sigterm
from .options import DURATION, json_option, limit_options, start_options
from .output import (
    clean,
    ending_signals,
    insist,
    moment,
    print_json,
    provisioning,
    run,
    say,
    say_what_is_left,
)

_JSON = json_option("Print the instance as JSON, not only its id.")
_PATIENCE = click.option(
    "--start-timeout", "--timeout", "timeout", type=DURATION, help="How long to wait.  [default: 15m]"
)
_TIMEOUT = 900.0
_PERHAPS = "whether an instance was started is not known: `cortecs-async ls` shows what there is"


@click.command()
@start_options
@click.option("--wait", is_flag=True, help="Return when it runs; implied by a limit.")
@_PATIENCE
@limit_options
@_JSON
def start(
    model: str,
    hardware: str | None,
    workers: int,
    context_length: int | None,
    billing_interval: str,
    wait: bool,
    timeout: float | None,
    max_lifetime: float | None,
    max_cost: float | None,
    as_json: bool,
) -> None:
    """Start an instance that outlives this command, and print its id.

    It runs, AND IS BILLED, UNTIL SOMEBODY STOPS IT; `run` and `batch` are the ways that cannot be forgotten.
    With --max-lifetime or --max-cost a process of this machine stays behind that deletes it when its time is
    up; the command returns when the instance runs, and one that does not become usable is deleted.
    """
    options = {
        "context_length": context_length,
        "num_workers": workers,
        "billing_interval": billing_interval,
    }
    if max_lifetime is not None or max_cost is not None:
        limits = {"max_lifetime": max_lifetime, "max_cost": max_cost}
        run(_acquire, model, hardware, {**options, **limits}, timeout or _TIMEOUT, as_json)
    else:
        run(_start, model, hardware, options, _patience(wait, timeout), as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@click.option("--wait", is_flag=True, help="Return when it runs.")
@_PATIENCE
@_JSON
def restart(instance_id: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Start a stopped instance again.

    It runs, and is billed, until somebody stops it.
    """
    run(_restart, instance_id, _patience(wait, timeout), as_json)


def _patience(wait: bool, timeout: float | None) -> float | None:
    if timeout is not None and not wait:
        raise click.UsageError("--start-timeout is how long to --wait")
    return (timeout or _TIMEOUT) if wait else None


async def _start(
    model: str, hardware: str | None, options: dict[str, Any], patience: float | None, as_json: bool
) -> None:
    async with cancel_on_sigterm(*ending_signals()), AsyncCortecs(guard="off") as client:
        try:
            instance = await client.instances.start(model, hardware, **options)
        except RequestError as error:
            if error.outcome_unknown:
                error.add_note(_PERHAPS)
            raise
        except anyio.get_cancelled_exc_class():
            insist(_PERHAPS)
            raise
        await _follow(client, instance, patience, as_json=as_json)


async def _restart(instance_id: str, patience: float | None, as_json: bool) -> None:
    async with cancel_on_sigterm(*ending_signals()), AsyncCortecs(guard="off") as client:
        try:
            instance = await client.instances.restart(instance_id)
        except anyio.get_cancelled_exc_class():
            insist(f"whether {instance_id} was started is not known: cortecs-async show {instance_id}")
            raise
        await _follow(client, instance, patience, as_json=as_json)


async def _follow(client: AsyncCortecs, instance: Instance, patience: float | None, *, as_json: bool) -> None:
    """Says what was started, and waits until it runs."""
    instance_id = instance.instance_id
    say(
        f"{instance_id} is billed until it is stopped: cortecs-async stop {instance_id}\n"
        "(`cortecs-async run`, `batch` and `start --max-lifetime` see to that by themselves)"
    )
    if not as_json:
        _print(instance, as_json=False)  # at once: whoever interrupts the wait needs it
    try:
        if patience is not None:
            with provisioning() as on_progress:
                instance = await client.instances.wait_until_running(
                    instance_id, timeout=patience, on_progress=on_progress
                )
            say(f"{instance_id} runs at {instance.base_url}")
    except CortecsError as error:
        error.add_note(f"{instance_id} is left as it is: cortecs-async rm --stop {instance_id}")
        raise
    except anyio.get_cancelled_exc_class():
        insist(f"{instance_id} goes on starting, and is billed until it is stopped")
        raise
    finally:
        if as_json:
            _print(instance, as_json=True)


async def _acquire(
    model: str, hardware: str | None, options: dict[str, Any], patience: float, as_json: bool
) -> None:
    # The limit is a promise that only the reaper can keep once this command has ended.
    async with cancel_on_sigterm(*ending_signals()), AsyncCortecs(guard="required") as client:
        try:
            with provisioning() as on_progress:
                handle = await client.acquire(
                    model, hardware, start_timeout=patience, on_progress=on_progress, **options
                )
        except anyio.get_cancelled_exc_class() as cancelled:
            say_what_is_left(cancelled)
            raise
        _print(handle, as_json=as_json)
        end = "never" if handle.expires_at is None else moment(handle.expires_at)
        say(
            f"{handle.instance_id} runs at {handle.base_url}\n"
            f"A process that stays behind on this machine deletes it: {end}\n"
            f"Or earlier: cortecs-async rm --stop {handle.instance_id}"
        )


def _print(started: Instance | InstanceHandle, *, as_json: bool) -> None:
    try:
        if as_json:
            print_json(started)
        else:
            click.echo(clean(started.instance_id))
    except OSError:
        # A full disk, a closed pipe: nobody may have read of it what they need to stop it.
        insist(f"{started.instance_id} is billed until it is stopped")
        raise
