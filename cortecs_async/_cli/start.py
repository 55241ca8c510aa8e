"""`cortecs-async start` and `restart`: start instances that keep running after the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import cortecs_async

from ..errors import CortecsError, RequestError
from .command import cli_command
from .display import start_progress
from .options import Hardware, duration, json_option, limit_options, ready_option, start_options
from .output import (
    format_time,
    print_json,
    print_note,
    print_nothing_left,
    print_warning,
    sanitize,
)
from .runtime import cancel_on_signals, run_async

if TYPE_CHECKING:
    from .. import AsyncCortecs, Instance, InstanceHandle
    from ..types import LeaseInfo, PhaseEnd

_DEFAULT_TIMEOUT = 900.0

# The options of a start request itself. All others need a lease.
_PLAIN_OPTIONS = ("num_workers", "context_length", "billing_interval")

_wait_option = click.option("--wait", is_flag=True, help="Wait until the instance is running.")
_timeout_option = click.option(
    *("--start-timeout", "--timeout", "timeout"),
    type=duration,
    help="Stop waiting after this time.  [default: 15m]",
)
_json_option = json_option("Print the instance as JSON, not just its id.")

_UNKNOWN = "An instance may have been started. Run `cortecs-async ls` to check."


@cli_command(
    examples=(
        "cortecs-async start meta-llama/Llama-3.1-8B-Instruct NVIDIA_H100_1 --max-lifetime 2h",
        "cortecs-async start meta-llama/Llama-3.1-8B-Instruct --wait",
    )
)
@start_options
@_wait_option
@_timeout_option
@limit_options
@ready_option("status")
@_json_option
def start(
    model: str, hardware: Hardware, wait: bool, timeout: float | None, as_json: bool, **options: Any
) -> None:
    """Start an instance that keeps running, and print its id.

    IT IS BILLED UNTIL YOU STOP IT. `run` and `batch` stop their instances for you.

    With --max-lifetime or --max-cost, a background process on this machine deletes the instance at the
    limit. The command then always waits until the instance is running, and deletes it if it fails to start.
    It does the same with --ready, --max-price-per-hour, --capacity-timeout, --project, or several hardware
    types.
    """
    plain = {name: options.pop(name) for name in _PLAIN_OPTIONS}
    one_type = hardware is None or (isinstance(hardware, str) and hardware != "cheapest")
    if (
        one_type
        and options["ready"] == "status"
        and all(value is None for name, value in options.items() if name != "ready")
    ):
        run_async(_start, model, hardware, plain, _wait_timeout(wait, timeout), as_json)
    else:
        run_async(_acquire, model, hardware, {**plain, **options}, timeout or _DEFAULT_TIMEOUT, as_json)


@cli_command(
    examples=(
        "cortecs-async restart instance-10001",
        "cortecs-async restart instance-10001 --wait --start-timeout 10m",
    )
)
@click.argument("instance_id", metavar="ID")
@_wait_option
@_timeout_option
@_json_option
def restart(instance_id: str, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Restart a stopped instance.

    It is billed until you stop it.
    """
    run_async(_restart, instance_id, _wait_timeout(wait, timeout), as_json)


def _wait_timeout(wait: bool, timeout: float | None) -> float | None:
    """Return the seconds to wait until the instance is running, or None to skip waiting."""
    if timeout is not None and not wait:
        raise click.UsageError("--start-timeout needs --wait.")
    return (timeout or _DEFAULT_TIMEOUT) if wait else None


async def _start(
    model: str, hardware: str | None, options: dict[str, Any], timeout: float | None, as_json: bool
) -> None:
    import anyio  # noqa: PLC0415  (slow to import)

    async with cancel_on_signals(), cortecs_async.AsyncCortecs(guard="off") as client:
        try:
            instance = await client.instances.start(model, hardware, **options)
        except RequestError as error:
            if error.outcome_unknown:
                error.add_note(_UNKNOWN)
            raise
        except anyio.get_cancelled_exc_class():
            print_warning(_UNKNOWN)
            raise
        await _report(client, instance, timeout, as_json=as_json)


async def _restart(instance_id: str, timeout: float | None, as_json: bool) -> None:
    import anyio  # noqa: PLC0415  (slow to import)

    async with cancel_on_signals(), cortecs_async.AsyncCortecs(guard="off") as client:
        try:
            instance = await client.instances.restart(instance_id)
        except anyio.get_cancelled_exc_class():
            print_warning(
                f"{instance_id} may have been restarted. Run `cortecs-async show {instance_id}` to check."
            )
            raise
        await _report(client, instance, timeout, as_json=as_json)


async def _report(client: AsyncCortecs, instance: Instance, timeout: float | None, *, as_json: bool) -> None:
    """Print the started instance. If there is a timeout, wait until the instance is running."""
    import anyio  # noqa: PLC0415  (slow to import)

    instance_id = instance.instance_id
    print_note(
        f"{instance_id} is billed until you stop it: cortecs-async stop {instance_id}\n"
        "(`cortecs-async run`, `batch`, and `start --max-lifetime` stop instances for you.)"
    )
    if not as_json:
        _print(instance, as_json=False)  # before the wait, which may be interrupted
    try:
        if timeout is not None:
            with start_progress() as on_progress:
                instance = await client.instances.wait_until_running(
                    instance_id, timeout=timeout, on_progress=on_progress
                )
            print_note(f"{instance_id} is running at {instance.base_url}")
    except CortecsError as error:
        error.add_note(f"{instance_id} was not deleted. To delete it: cortecs-async rm --stop {instance_id}")
        raise
    except anyio.get_cancelled_exc_class():
        print_warning(f"{instance_id} is still starting and is billed until you stop it.")
        raise
    finally:
        if as_json:
            _print(instance, as_json=True)


async def _acquire(
    model: str, hardware: Hardware, options: dict[str, Any], timeout: float, as_json: bool
) -> None:
    import anyio  # noqa: PLC0415  (slow to import)

    from ..types import Telemetry  # noqa: PLC0415  (slow to import)

    class HardwareChoice(Telemetry):
        """Keeps the hardware of a lease, because a handle does not have it."""

        hardware: str | None = None
        reason: str = ""

        def end(self, phase: str, lease: LeaseInfo, begun: object, end: PhaseEnd) -> None:  # noqa: ARG002
            self.hardware, self.reason = lease.hardware_type_id, lease.hardware_reason

    # The reaper is required, because only it can enforce the limit after this command has exited.
    hardware_choice = HardwareChoice()
    async with (
        cancel_on_signals(),
        cortecs_async.AsyncCortecs(guard="required", telemetry=hardware_choice) as client,
    ):
        try:
            with start_progress() as on_progress:
                handle = await client.acquire(
                    *(model, hardware),
                    start_timeout=timeout,
                    on_progress=on_progress,
                    require_key=False,  # this command does not send requests to the instance
                    **options,
                )
        except anyio.get_cancelled_exc_class() as cancelled:
            print_nothing_left(cancelled)
            raise
        _print(handle, as_json=as_json)
        print_note(f"{handle.instance_id} is running at {handle.base_url}")
        if handle.expires_at is None:
            print_note(f"It is billed until you stop it: cortecs-async stop {handle.instance_id}")
        else:
            print_note(
                f"A background process on this machine deletes it: {format_time(handle.expires_at)}\n"
                f"To delete it earlier: cortecs-async rm --stop {handle.instance_id}"
            )
        if hardware_choice.reason:
            print_note(f"Hardware: {hardware_choice.hardware}, {hardware_choice.reason}")


def _print(started: Instance | InstanceHandle, *, as_json: bool) -> None:
    try:
        if as_json:
            print_json(started)
        else:
            click.echo(sanitize(started.instance_id))
    except OSError:
        # The disk is full or the pipe is closed. Without the id, the user could not stop the instance.
        print_warning(f"{started.instance_id} is billed until you stop it.")
        raise
