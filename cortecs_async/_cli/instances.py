"""`cortecs-async ls`, `show`, `stop` and `rm`: the instances of the account."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial

import anyio
import click

from .. import AsyncCortecs, CortecsError, Instance
from ..errors import BadRequestError, ConflictError, InstanceGoneError, NotFoundError
from ..types import Listing
from .options import duration, json_option
from .output import (
    count,
    error_text,
    format_time,
    has_ended,
    one_line,
    print_facts,
    print_json,
    print_list,
    print_note,
    print_warning,
    step_text,
)
from .runtime import FAILED, call_api, exit_interrupted, run_async

# When there is nothing left to stop, the service rejects a stop with one of these. Which one is undocumented.
_REJECTIONS = (BadRequestError, ConflictError, NotFoundError)

_COLUMNS = ("id", "model", "hardware", "workers", "status", "step", "started", "base url")

# Left out on a narrow terminal, in this order. `show` has them all.
_OPTIONAL_COLUMNS = ("base url", "started", "step", "workers", "hardware")

_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
_ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1)

_Action = Callable[[AsyncCortecs, str], Awaitable[str]]


@click.command()
@click.option("--status", help="List only instances with this status: pending, running, stopping or stopped.")
@json_option()
def ls(status: str | None, as_json: bool) -> None:
    """List all instances of the account, including those that you did not start."""
    found = [instance for instance in _list() if status is None or instance.status.lower() == status.lower()]
    empty = "No instances." if status is None else f'No instances with status "{status}".'
    print_list(found, _COLUMNS, _row, optional=_OPTIONAL_COLUMNS, empty=empty, as_json=as_json)


@click.command()
@click.argument("instance_id", metavar="ID")
@json_option()
def show(instance_id: str, as_json: bool) -> None:
    """Show one instance."""
    instance = call_api(lambda client: client.instances.get(instance_id))
    if as_json:
        print_json(instance)
        return
    args, status = instance.instance_args, instance.instance_status
    print_facts([
        ("id", instance.instance_id),
        ("status", status.status),
        ("model", args.hf_name),
        ("hardware", args.hardware_type_id),
        ("workers", args.num_workers),
        ("context", args.context_length),
        ("billing", args.billing_interval),
        ("base url", instance.base_url),
        ("started", _time(status.started_at)),
        ("stopped", _time(status.stopped_at)),
        ("step", step_text(instance)),
    ])  # fmt: skip


@click.command()
@_ids_argument
@click.option("--all", "every", is_flag=True, help="Stop every instance of the account.")
@click.option("--wait/--no-wait", default=True, help="Wait until they are stopped.")
@click.option("--timeout", type=duration, default="2m", help="Stop waiting after this time.")
@_yes_option
def stop(ids: tuple[str, ...], every: bool, wait: bool, timeout: float, yes: bool) -> None:
    """Stop instances and their billing.

    A stopped instance can be restarted. A failure with one instance does not affect the others; the command
    exits with 1 if an instance could not be stopped, or not in time. --all includes the instances of other
    people and programs, so it lists them and asks for confirmation.
    """
    _check_choice(ids, every)
    is_left = False
    if every:
        listed = _list()
        is_left = bool(listed.unreadable)
        ids = _confirm("stop", [instance for instance in listed if not has_ended(instance)], yes=yes)
    _apply(partial(_stop, timeout=timeout if wait else 0.0), ids, is_left=is_left)


@click.command()
@_ids_argument
@click.option("--all", "every", is_flag=True, help="Delete every stopped instance of the account.")
@click.option(
    "--stop", "-f", "--force", "stop_first", is_flag=True, help="Stop instances first that are not stopped."
)
@_yes_option
def rm(ids: tuple[str, ...], every: bool, stop_first: bool, yes: bool) -> None:
    """Delete instances.

    An instance that is not stopped is rejected, unless you pass --stop. Then it is stopped and deleted, and
    the command returns once the service confirms that it is gone; Ctrl-C does not interrupt this. A failure
    with one instance does not affect the others; the command exits with 1 if an instance is left. --all
    includes the instances of other people and programs, so it lists them and asks for confirmation.
    """
    _check_choice(ids, every)
    listing = _list()
    listed: dict[str, Instance | None] = {each.instance_id: each for each in listing}
    listed.update({entry.entry_id: None for entry in listing.unreadable if entry.entry_id})
    if every:
        chosen = [instance for instance in listing if stop_first or has_ended(instance)]
        if skipped := len(listing) - len(chosen):
            print_note(f"Skipped {count(skipped, 'instance')} not yet stopped. Pass --stop to delete all.")
        ids = _confirm("delete", chosen, yes=yes)
    is_left = every and bool(listing.unreadable)
    _apply(partial(_remove, listed=listed, stop_first=stop_first), ids, is_left=is_left)


def _row(instance: Instance) -> tuple[object, ...]:
    args = instance.instance_args
    return (
        instance.instance_id,
        args.hf_name,
        args.hardware_type_id,
        args.num_workers,
        instance.status,
        step_text(instance),
        _time(instance.instance_status.started_at),
        instance.base_url,
    )


def _time(time: datetime | None) -> str | None:
    return None if time is None else format_time(time)


def _list() -> Listing[Instance]:
    instances = call_api(lambda client: client.instances.list())
    for entry in instances.unreadable:
        name = entry.entry_id or "An instance without an id"
        print_warning(one_line(f"{name} exists, but cannot be read: {entry.problem}"))
    return instances


def _check_choice(ids: tuple[str, ...], every: bool) -> None:
    if bool(ids) == every:
        raise click.UsageError("Pass instance ids or --all.")


def _confirm(verb: str, instances: list[Instance], *, yes: bool) -> tuple[str, ...]:
    """List the instances, ask for confirmation, and return their ids."""
    if not instances:
        print_note(f"No instances to {verb}.")
        sys.exit(0)
    if not yes:
        for instance in instances:
            row = f"{instance.instance_id}  {instance.status}  {instance.instance_args.hf_name}"
            print_warning(one_line(row))
        question = f"{verb} {count(len(instances), 'instance')}"
        if not _is_terminal():
            raise click.ClickException(
                f"Cannot ask for confirmation: not a terminal. Pass --yes to {question}."
            )
        try:
            agreed = click.confirm(
                f"{question.capitalize()}? --all includes those of other people and programs.", err=True
            )
        except click.Abort:
            click.echo(err=True)  # the cursor is still on the line of the question
            exit_interrupted()
        if not agreed:
            print_note("Nothing was changed.")
            sys.exit(FAILED)
    # Exactly the instances that were listed, not those that were started since.
    return tuple(instance.instance_id for instance in instances)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _apply(action: _Action, ids: tuple[str, ...], *, is_left: bool) -> None:
    """Run an action for all instances, and print a line for each. Exit with 1 if one failed or `is_left`."""
    failed = is_left
    for instance_id, result in run_async(_for_each, ids, action):
        if isinstance(result, CortecsError):
            failed = True
            print_warning(f"{instance_id}  {error_text(result)}")
        else:
            click.echo(one_line(f"{instance_id}  {result}"))
    if failed:
        sys.exit(FAILED)


async def _for_each(ids: tuple[str, ...], action: _Action) -> list[tuple[str, str | CortecsError]]:
    """Run an action for all instances in parallel. An error of one does not affect the others."""
    results: dict[str, str | CortecsError] = {}

    async def attempt(instance_id: str) -> None:
        try:
            results[instance_id] = await action(client, instance_id)
        except CortecsError as error:
            results[instance_id] = error

    unique = tuple(dict.fromkeys(ids))
    async with AsyncCortecs() as client, anyio.create_task_group() as tasks:
        for instance_id in unique:
            tasks.start_soon(attempt, instance_id)
    return [(instance_id, results[instance_id]) for instance_id in unique]


async def _stop(client: AsyncCortecs, instance_id: str, *, timeout: float) -> str:
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


async def _remove(
    client: AsyncCortecs, instance_id: str, *, listed: Mapping[str, Instance | None], stop_first: bool
) -> str:
    instance = listed.get(instance_id)
    if instance_id not in listed:
        raise CortecsError("does not exist. Run `cortecs-async ls` to list your instances.")
    if stop_first:
        await client.release(instance_id)
    elif instance is None or has_ended(instance):
        # If its status cannot be read, the service rejects the delete of an instance that is not stopped.
        await client.instances.delete(instance_id)
    else:
        raise CortecsError(f"is {instance.status}. Pass --stop to stop it first.")
    return "deleted"
