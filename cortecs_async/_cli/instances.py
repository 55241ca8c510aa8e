"""`cortecs-async ls`, `show`, `stop` and `rm`: the instances of the account, and their end."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime

import anyio
import click

from .. import AsyncCortecs, CortecsError, Instance, Progress
from ..errors import BadRequestError, ConflictError, InstanceGoneError, NotFoundError
from .options import DURATION, json_option
from .output import (
    FAILED,
    ask,
    clean,
    insist,
    interrupted,
    is_over,
    print_json,
    print_table,
    reason,
    run,
    say,
)

# Of a stop that is refused because there is nothing to stop any more; which of them is not documented.
_REFUSED = (BadRequestError, ConflictError, NotFoundError)

# On a narrow terminal some are left out; `show` has them.
_COLUMNS = ("id", "model", "hardware", "workers", "status", "step", "started", "base url")

_OPTIONAL = ("base url", "started", "step", "workers", "hardware")

_JSON = json_option("As JSON, with everything that the service says.")
_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
_IDS = click.argument("ids", metavar="[ID]...", nargs=-1)


@click.command()
@click.option("--status", help="Only those with this status: pending, running, stopping, stopped.")
@_JSON
def ls(status: str | None, as_json: bool) -> None:
    """List every instance of the account, whoever started it."""
    found = [each for each in _list() if status is None or each.status.lower() == status.lower()]
    if as_json:
        print_json(found)
    elif found:
        print_table(_COLUMNS, (_row(each) for each in found), optional=_OPTIONAL)
    else:
        say("the account has no instance" + (f" that is {status}" if status else ""))


@click.command()
@click.argument("instance_id", metavar="ID")
@_JSON
def show(instance_id: str, as_json: bool) -> None:
    """Show one instance."""
    instance = ask(lambda client: client.instances.get(instance_id))
    if as_json:
        print_json(instance)
        return
    args, status = instance.instance_args, instance.instance_status
    facts = {
        "id": instance.instance_id,
        "status": status.status,
        "model": args.hf_name,
        "hardware": args.hardware_type_id,
        "workers": args.num_workers,
        "context": args.context_length,
        "billing": args.billing_interval,
        "base url": instance.base_url,
        "started": _when(status.started_at),
        "stopped": _when(status.stopped_at),
        "step": step(instance),
    }
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        if value is not None:
            click.echo(f"{name:{width}}{clean(str(value))}")


@click.command()
@_IDS
@click.option("--all", "every", is_flag=True, help="Every instance of the account that is not stopped.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when they are stopped.")
@click.option("--timeout", type=DURATION, default="2m", show_default=True, help="How long to wait.")
@_YES
def stop(ids: tuple[str, ...], every: bool, wait: bool, timeout: float, yes: bool) -> None:
    """Stop instances, which ends their billing. They can be restarted.

    All are tried; exits with 1 when one could not be stopped, or is not stopped in time. --all means the
    whole account, other people's and other programs' instances too: it shows them and asks first.
    """
    _check_choice(ids, every)
    if every:
        found = [each for each in _list() if not is_over(each)]
        ids = _confirm("stop", found, yes=yes)

    async def end(client: AsyncCortecs, instance_id: str) -> str:
        return await _stop(client, instance_id, patience=timeout if wait else 0.0)

    _finish(run(_each, ids, end))


@click.command()
@_IDS
@click.option("--all", "every", is_flag=True, help="Every stopped instance of the account.")
@click.option(
    "--stop",
    "-f",
    "--force",
    "stop_first",
    is_flag=True,
    help="Those too that are not stopped: stop them first.",
)
@_YES
def rm(ids: tuple[str, ...], every: bool, stop_first: bool, yes: bool) -> None:
    """Delete instances.

    One that is not stopped is refused, unless --stop is given: then it is stopped, deleted, and read to be
    gone, which Ctrl-C does not cut short. All are tried; exits with 1 when one is left. --all means the whole
    account: it shows what it would delete and asks first.
    """
    _check_choice(ids, every)
    listed = {each.instance_id: each for each in _list()}
    if every:
        doomed = [each for each in listed.values() if stop_first or is_over(each)]
        if spared := len(listed) - len(doomed):
            say(f"{spared} not stopped: left as they are; --stop takes them too")
        ids = _confirm("delete", doomed, yes=yes)

    async def remove(client: AsyncCortecs, instance_id: str) -> str:
        return await _remove(client, listed.get(instance_id), instance_id, stop_first=stop_first)

    _finish(run(_each, ids, remove))


def _row(instance: Instance) -> tuple[object, ...]:
    """What a table shows of an instance; see `_COLUMNS`."""
    args = instance.instance_args
    return (
        instance.instance_id,
        args.hf_name,
        args.hardware_type_id,
        args.num_workers,
        instance.status,
        step(instance),
        _when(instance.instance_status.started_at),
        instance.base_url,
    )


def step(instance: Instance) -> str | None:
    """How far its start is, by the worker that is furthest; None where it reports nothing."""
    leading = Progress(instance=instance, elapsed=0.0).leading
    if not leading.num_steps:
        return leading.description or None
    return f"{leading.current_step}/{leading.num_steps} {leading.description}".rstrip()


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S %Z}".rstrip()


def _check_choice(ids: tuple[str, ...], every: bool) -> None:
    if bool(ids) == every:
        raise click.UsageError("name the instances, or say --all")


def _confirm(deed: str, found: list[Instance], *, yes: bool) -> tuple[str, ...]:
    """The ids of these, once a person has seen them and agreed."""
    if not found:
        say(f"there is nothing to {deed}")
        sys.exit(0)
    if not yes:
        for each in found:
            click.echo(clean(f"{each.instance_id}  {each.status}  {each.instance_args.hf_name}"), err=True)
        if not _is_attended():
            raise click.ClickException(f"nobody can be asked whether to {deed} these {len(found)}: say --yes")
        try:
            agreed = click.confirm(f"{deed} these {len(found)}, of the whole account?", err=True)
        except click.Abort:
            click.echo(err=True)  # the cursor stands behind the question
            interrupted()
        if not agreed:
            say("nothing was done")
            sys.exit(FAILED)
    # Exactly what was shown: what somebody has started since is not hit.
    return tuple(each.instance_id for each in found)


def _is_attended() -> bool:
    return sys.stdin.isatty()


def _finish(results: Iterable[tuple[str, str | CortecsError]]) -> None:
    """A line for each, on standard error for what failed."""
    failed = False
    for instance_id, result in results:
        if isinstance(result, CortecsError):
            failed = True
            click.echo(f"{clean(instance_id)}  {reason(result)}", err=True)
        else:
            click.echo(clean(f"{instance_id}  {result}"))
    if failed:
        sys.exit(FAILED)


def _list() -> tuple[Instance, ...]:
    return ask(lambda client: client.instances.list())


async def _each(
    ids: tuple[str, ...], deed: Callable[[AsyncCortecs, str], Awaitable[str]]
) -> list[tuple[str, str | CortecsError]]:
    """Does it to each of them at once; what goes wrong with one does not keep it from the others."""
    results: dict[str, str | CortecsError] = {}

    async def attempt(instance_id: str) -> None:
        try:
            results[instance_id] = await deed(client, instance_id)
        except CortecsError as error:
            results[instance_id] = error

    async with AsyncCortecs() as client, anyio.create_task_group() as tasks:
        for each in dict.fromkeys(ids):
            tasks.start_soon(attempt, each)
    return [(each, results[each]) for each in dict.fromkeys(ids)]


async def _stop(client: AsyncCortecs, instance_id: str, *, patience: float) -> str:
    try:
        instance = await client.instances.stop(instance_id)
    except _REFUSED as refusal:
        try:
            instance = await client.instances.get(instance_id)
        except _REFUSED:
            raise refusal from None
        if is_over(instance):
            return f"{instance.status} already"
        if instance.status.lower() != "stopping":
            raise
    if is_over(instance) or not patience:
        return instance.status
    try:
        with anyio.move_on_after(patience):
            async for instance in client.instances.watch(instance_id):
                if is_over(instance):
                    return instance.status
            return "gone"
    except InstanceGoneError:
        return "gone"
    except anyio.get_cancelled_exc_class():
        insist(f"{instance_id} was told to stop, and is {instance.status}")
        raise
    raise CortecsError(
        f"was told to stop, is {instance.status} after {patience:g} s, and may be billed until it is stopped"
    )


async def _remove(
    client: AsyncCortecs, instance: Instance | None, instance_id: str, *, stop_first: bool
) -> str:
    if instance is None:
        raise CortecsError("there is no such instance: `cortecs-async ls` shows what there is")
    if stop_first:
        await client.release(instance_id)
    elif is_over(instance):
        await client.instances.delete(instance_id)
    else:
        raise CortecsError(f"is {instance.status}: --stop stops it first")
    return "deleted"
