"""`cortecs-async start` and `restart`: instances that outlive the command, and what is said about that."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import anyio
import click

from .. import AsyncCortecs, CortecsError, Instance, InstanceHandle, RequestError
from ..signals import cancel_on_sigterm
from ._common import clean, ending_signals, print_json, provisioning, run, say, say_what_is_left
from ._params import DURATION, limit_options, start_options

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the instance as JSON, not only its id.")
_WAIT = click.option("--wait", is_flag=True, help="Return when it runs.")
_PATIENCE = click.option("--timeout", type=DURATION, help="How long to wait.  [default: 15m]")
_TIMEOUT = 900.0
_PERHAPS = "whether an instance was started is not known: `cortecs-async ls` shows what there is"


@click.command()
@start_options
@_WAIT
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
        handle = run(_acquire, model, hardware, {**options, **limits}, timeout or _TIMEOUT)
        _print(handle, as_json=as_json)
    else:
        run(_start, model, hardware, options, _patience(wait, timeout), as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@_WAIT
@_PATIENCE
@_JSON
def restart(instance_id: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Start a stopped instance again.

    It runs, and is billed, until somebody stops it.
    """
    run(_restart, instance_id, _patience(wait, timeout), as_json)


def _patience(wait: bool, timeout: float | None) -> float | None:
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is how long to --wait")
    return (timeout or _TIMEOUT) if wait else None


async def _start(
    model: str, hardware: str | None, options: dict[str, Any], patience: float | None, as_json: bool
) -> None:
    async with AsyncCortecs(guard="off") as client:
        try:
            instance = await client.instances.start(model, hardware, **options)
        except RequestError as error:
            if error.outcome_unknown:
                error.add_note(_PERHAPS)
            raise
        except anyio.get_cancelled_exc_class():
            say(_PERHAPS)
            raise
        await _follow(client, instance, patience, as_json=as_json)


async def _restart(instance_id: str, patience: float | None, as_json: bool) -> None:
    async with AsyncCortecs(guard="off") as client:
        await _follow(client, await client.instances.restart(instance_id), patience, as_json=as_json)


async def _follow(client: AsyncCortecs, instance: Instance, patience: float | None, *, as_json: bool) -> None:
    """Says what was started, and waits until it runs."""
    instance_id = instance.instance_id
    say(
        f"{instance_id} is billed until it is stopped: cortecs-async stop {instance_id}\n"
        "(`cortecs-async run`, `batch` and `start --max-lifetime` see to that by themselves)"
    )
    if not as_json:
        _print(instance, as_json=False)  # at once: whoever interrupts the wait needs it
    if patience is not None:
        try:
            with provisioning() as on_progress:
                instance = await client.instances.wait_until_running(
                    instance_id, timeout=patience, on_progress=on_progress
                )
        except CortecsError as error:
            error.add_note(f"{instance_id} is left as it is: cortecs-async rm --stop {instance_id}")
            raise
        except anyio.get_cancelled_exc_class():
            say(f"{instance_id} goes on starting, and is billed until it is stopped")
            raise
        say(f"{instance_id} runs at {instance.base_url}")
    if as_json:
        _print(instance, as_json=True)


async def _acquire(
    model: str, hardware: str | None, options: dict[str, Any], patience: float
) -> InstanceHandle:
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
        end = datetime.fromtimestamp(handle.expires_at or 0.0).astimezone()
        say(
            f"{handle.instance_id} runs at {handle.base_url}\n"
            f"and is deleted at {end:%Y-%m-%d %H:%M:%S %Z} by a process that stays behind on this machine; "
            f"or earlier: cortecs-async rm --stop {handle.instance_id}"
        )
        return handle


def _print(started: Instance | InstanceHandle, *, as_json: bool) -> None:
    if as_json:
        print_json(started)
    else:
        click.echo(clean(started.instance_id))
