"""`cortecs-async ls`, `show`, `stop`, and `rm`: manage the instances in the account."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from ..errors import CortecsError, JournalError
from .command import cli_command
from .display import print_list
from .options import duration, json_option
from .output import (
    FINAL_STATUSES,
    STATUSES,
    LibraryError,
    count,
    error_text,
    format_time,
    has_ended,
    one_line,
    print_facts,
    print_help_lines,
    print_json,
    print_note,
    print_warning,
    step_text,
)
from .owners import UNMANAGED, describe_owner
from .runtime import FAILED, call_api, run_async
from .suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from .. import AsyncCortecs, Instance
    from ..types import Listing, Owner
    from .teardown import Action

_COLUMNS = ("id", "model", "hardware", "workers", "status", "step", "started", "owner", "base url")

# Left out on a narrow terminal, in this order. `show` always prints them.
_OPTIONAL_COLUMNS = ("base url", "started", "step", "workers", "hardware")

_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
_ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1)

_timeout_option = click.option(
    "--timeout", type=duration, default="2m", help="Stop waiting for an instance after this time."
)


@cli_command(examples=("cortecs-async ls", "cortecs-async ls --status running --json"))
@click.option("--status", help=f"List only instances with this status, such as {', '.join(STATUSES)}.")
@json_option()
def ls(status: str | None, as_json: bool) -> None:
    """List all instances in the account, including the ones you did not start.

    The owner is the process that releases the instance, according to the journals on this machine. An
    unmanaged instance was started without a lease, or from elsewhere, and runs until you stop it.
    """
    listing, owners = call_api(_list_with_owners)
    _warn_of_unreadable(listing)
    found = [each for each in listing if status is None or each.status.lower() == status.lower()]
    if status is not None and not found:
        _check_status(status)
    empty = "No instances." if status is None else f'No instances with status "{status}".'
    rows = [_Row(each, owners) for each in found]
    if as_json:
        print_json([row.fields() for row in rows])
    else:
        print_list(
            rows,
            _COLUMNS,
            _Row.cells,
            optional=_OPTIONAL_COLUMNS,
            wrapped=("owner",),
            empty=empty,
            as_json=False,
        )


@cli_command(examples=("cortecs-async show instance-10001", "cortecs-async show instance-10001 --json"))
@click.argument("instance_id", metavar="ID")
@json_option()
def show(instance_id: str, as_json: bool) -> None:
    """Show one instance."""
    instance, owners = call_api(partial(_get_with_owners, instance_id))
    row = _Row(instance, owners)
    if as_json:
        print_json(row.fields())
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
        ("owner", row.owner_words),
    ])  # fmt: skip


@cli_command(
    examples=("cortecs-async stop instance-10001 instance-10002", "cortecs-async stop --all --timeout 5m")
)
@_ids_argument
@click.option("--all", "every", is_flag=True, help="Stop every instance in the account.")
@click.option("--wait/--no-wait", default=True, help="Wait until the instances are stopped.")
@_timeout_option
@_yes_option
def stop(ids: tuple[str, ...], every: bool, wait: bool, timeout: float, yes: bool) -> None:
    """Stop instances and their billing.

    A stopped instance can be restarted. A failure with one instance does not affect the others; the command
    exits with 1 if an instance could not be stopped in time. --all includes the instances of other
    people and programs, so it lists them and asks for confirmation.
    """
    _check_choice(ids, every)
    from .teardown import stop_instance  # noqa: PLC0415  (slow to import)

    is_left = False
    if every:
        listed = _list()
        is_left = bool(listed.unreadable)
        ids = _confirm("stop", [instance for instance in listed if not has_ended(instance)], yes=yes)
    _apply(partial(stop_instance, timeout=timeout if wait else 0.0), ids, is_left=is_left)


@cli_command(
    examples=("cortecs-async rm instance-10001", "cortecs-async rm --force instance-10001 instance-10002")
)
@_ids_argument
@click.option("--all", "every", is_flag=True, help="Delete every stopped instance in the account.")
@click.option("--stop", "stop_first", is_flag=True, help="First stop instances that are still running.")
@click.option("-f", "--force", is_flag=True, help="Same as --stop, but ignore instances that do not exist.")
@_timeout_option
@_yes_option
def rm(ids: tuple[str, ...], every: bool, stop_first: bool, force: bool, timeout: float, yes: bool) -> None:
    """Delete instances.

    An instance that is not stopped is rejected unless you pass --stop. With --stop, the instance is stopped
    and deleted, and the command returns once the service confirms that it is gone; Ctrl-C does not
    interrupt this. If the release takes longer than --timeout, the command fails, and a background process
    finishes the release. A failure with one instance does not affect the others; the command exits with 1
    if any instances are left. --all includes the instances of other people and programs, so it lists them and
    asks for confirmation.
    """
    _check_choice(ids, every)
    from .teardown import remove_instance  # noqa: PLC0415  (slow to import)

    stop_first = stop_first or force
    listing = _list()
    listed: dict[str, Instance | None] = {each.instance_id: each for each in listing}
    listed.update({entry.entry_id: None for entry in listing.unreadable if entry.entry_id})
    if every:
        chosen = [instance for instance in listing if stop_first or has_ended(instance)]
        if skipped := len(listing) - len(chosen):
            print_note(f"Skipped {count(skipped, 'instance')} not yet stopped. Pass --stop to delete all.")
        ids = _confirm("delete", chosen, yes=yes)
    is_left = every and bool(listing.unreadable)
    remove = partial(
        remove_instance, listed=listed, stop_first=stop_first, ignore_missing=force, timeout=timeout
    )
    _apply(remove, ids, is_left=is_left)


class _Row:
    """An instance and its owner. The owner is unknown without journals."""

    def __init__(self, instance: Instance, owners: Mapping[str, Owner] | None) -> None:
        self._instance = instance
        self._is_known = owners is not None
        self._owner = (owners or {}).get(instance.instance_id)

    @property
    def owner_words(self) -> str | None:
        return describe_owner(self._owner) if self._is_known else None

    def cells(self) -> tuple[object, ...]:
        instance, args = self._instance, self._instance.instance_args
        return (
            instance.instance_id,
            args.hf_name,
            args.hardware_type_id,
            args.num_workers,
            instance.status,
            step_text(instance),
            _time(instance.instance_status.started_at),
            self.owner_words,
            instance.base_url,
        )

    def fields(self) -> dict[str, object]:
        owner = self._owner
        kind = owner.kind if owner is not None else UNMANAGED if self._is_known else None
        shared = (owner.shared or None) if owner is not None else None
        import attrs  # noqa: PLC0415  (loaded with the instance)

        fields = attrs.asdict(self._instance, recurse=False)
        return {
            **fields,
            "owner_kind": kind,
            "owner": None if owner is None else owner.owner,
            "shared": shared,
        }


async def _owners(client: AsyncCortecs) -> Mapping[str, Owner] | None:
    try:
        return await client.owners()
    except JournalError as error:
        import logging  # noqa: PLC0415  (slow to import)

        logging.getLogger("cortecs_async.cli").info("Could not determine the owners: %s", error)
        return None


async def _list_with_owners(client: AsyncCortecs) -> tuple[Listing[Instance], Mapping[str, Owner] | None]:
    return await client.instances.list(), await _owners(client)


async def _get_with_owners(
    instance_id: str, client: AsyncCortecs
) -> tuple[Instance, Mapping[str, Owner] | None]:
    return await client.instances.get(instance_id), await _owners(client)


def _check_status(status: str) -> None:
    """Reject a status unless it is known or an instance has it.

    The API reference lists three statuses, but the service may have more, so any status that an instance has
    is accepted.
    """
    known = (*STATUSES, *sorted(FINAL_STATUSES - {*STATUSES}))
    if status.lower() not in known:
        suggestion = did_you_mean(nearest(status, known)) or f" Known statuses: {', '.join(known)}."
        raise click.BadParameter(f'Unknown status "{status}".{suggestion}', param_hint="--status")


def _time(time: datetime | None) -> str | None:
    return None if time is None else format_time(time)


def _list() -> Listing[Instance]:
    instances = call_api(lambda client: client.instances.list())
    _warn_of_unreadable(instances)
    return instances


def _warn_of_unreadable(instances: Listing[Instance]) -> None:
    for entry in instances.unreadable:
        name = entry.entry_id or "An instance without an id"
        print_warning(one_line(f"{name} exists but could not be parsed: {entry.problem}"))


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
        if not click.confirm(
            f"{question.capitalize()}? --all includes instances of other people and programs.", err=True
        ):
            print_note("Nothing was changed.")
            sys.exit(FAILED)
    # Exactly the listed instances, not any that were started since then.
    return tuple(instance.instance_id for instance in instances)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _apply(action: Action, ids: tuple[str, ...], *, is_left: bool) -> None:
    """Run an action for all instances and print a line for each. Exit with 1 if one failed or `is_left`."""
    from .teardown import for_each  # noqa: PLC0415  (slow to import)

    failed, shown = is_left, list[CortecsError]()
    for instance_id, result in run_async(for_each, ids, action):
        if isinstance(result, CortecsError):
            failed = True
            text = error_text(result)
            is_named = instance_id in text.partition(". ")[0]
            if is_named and len(ids) == 1:
                raise LibraryError(result)
            shown.append(result)
            print_warning(text if is_named else f"{instance_id}  {text}")
        else:
            click.echo(one_line(f"{instance_id}  {result}"))
    print_help_lines(*shown)
    if failed:
        sys.exit(FAILED)
