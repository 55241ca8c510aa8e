"""`cortecs-async up`, `url`, `ps`, and `down`: instances with a name, which processes share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

import cortecs_async

from ..errors import CortecsError, MissingCredentialsError
from .command import cli_command
from .display import print_list, start_progress
from .options import (
    Hardware,
    duration,
    duration_or_zero,
    json_option,
    limit_options,
    ready_option,
    start_options,
    start_timeout_option,
)
from .output import (
    format_money,
    format_time,
    one_line,
    print_json,
    print_note,
    print_nothing_left,
    print_warning,
    sanitize,
)
from .program import quote
from .runtime import cancel_on_signals, run_async
from .suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from .. import AsyncCortecs
    from ..types import SharedInfo

T = TypeVar("T")

_COLUMNS = (
    *("name", "state", "model", "instance", "processes", "pids"),
    *("age", "expires", "cost", "base url"),
)

# Left out on a narrow terminal, in this order.
_OPTIONAL_COLUMNS = ("base url", "pids", "instance", "expires", "cost", "model")

# Seconds for the names that complete an argument. An owner that does not answer must not block the shell.
_COMPLETION_TIME = 1.0


def _complete(_ctx: click.Context, _argument: click.Parameter, incomplete: str) -> list[CompletionItem]:
    import anyio  # noqa: PLC0415  (slow to import)
    from click.shell_completion import CompletionItem  # noqa: PLC0415  (only for completion)

    async def ask() -> tuple[SharedInfo, ...]:
        with anyio.move_on_after(_COMPLETION_TIME):
            # Without credentials, because a keyring may ask for a password.
            async with cortecs_async.AsyncCortecs(guard="off", anonymous=True) as client:
                return await client.shared_instances()
        return ()

    try:
        found = anyio.run(ask)
    except CortecsError:
        return []
    return [
        CompletionItem(each.name, help=f"{each.state} {each.model}".strip())
        for each in found
        if each.name.startswith(incomplete)
    ]


_name_argument = click.argument("name", shell_complete=_complete)


@cli_command(
    examples=(
        "cortecs-async up dev meta-llama/Llama-3.1-8B-Instruct --max-lifetime 8h",
        "cortecs-async up dev meta-llama/Llama-3.1-8B-Instruct NVIDIA_H100_1 --max-cost 20 --ready answer",
    )
)
@_name_argument
@start_options
@limit_options
@ready_option("status")
@start_timeout_option
@click.option(
    "--teardown-timeout",
    type=duration,
    default="2m",
    help="Maximum time to delete the instance when it ends.",
)
@click.option(
    "--idle-timeout",
    type=duration,
    help="Delete the instance after this time without a request from a program that uses client.shared. "
    "Other requests to its URL do not count.",
)
@click.option(
    "--linger",
    type=duration_or_zero,
    metavar="DURATION",
    default="5m",
    help="Must be the linger of the programs that use client.shared. `up` itself ignores it.",
)
@json_option("Print the instance as JSON, not just its URL.")
def up(name: str, model: str, hardware: Hardware, as_json: bool, **options: Any) -> None:
    """Start an instance under a name, keep it running, and print its URL.

    The instance runs until `down` or a limit, so --max-lifetime or --max-cost is required. A background
    process on this machine owns it. If the name is already running with the same arguments, its URL is
    printed again. Programs can use the same instance with client.shared and the same arguments.

    If you interrupt the command, the instance is deleted, unless it was there before or other processes
    use it.
    """
    if options["max_lifetime"] is None and options["max_cost"] is None:
        raise click.UsageError(
            "The instance keeps running after this command. Pass --max-lifetime or --max-cost to limit it."
        )
    run_async(_up, name, model, hardware, options, as_json)


@cli_command(
    examples=(
        "export OPENAI_BASE_URL=$(cortecs-async url dev)",
        'eval "$(cortecs-async url dev --env)"',
    )
)
@_name_argument
@click.option("--env", is_flag=True, help="Print export lines for OPENAI_BASE_URL and OPENAI_MODEL.")
@json_option("Print the instance as JSON, not just its URL.")
def url(name: str, env: bool, as_json: bool) -> None:
    """Print the URL of an instance that was started under a name.

    Exits with 1 if it is not running. Does not send any requests to the service.
    """
    found = run_async(_list)
    info = _pick(name, found)
    if info.base_url is None:
        raise click.ClickException(f'"{name}" has no URL, because it is {info.state}. {_advice(info)}')
    _print(info, env=env, as_json=as_json)


@cli_command(examples=("cortecs-async ps", "cortecs-async ps --json"))
@json_option()
def ps(as_json: bool) -> None:
    """List the instances on this machine that have a name.

    They were started by `up` or client.shared. The pids are the processes that use an instance. The cost is
    an estimate. Without credentials, the list includes all accounts. Does not send any requests to the
    service.
    """
    found = run_async(_list)
    now = time.time()
    print_list(
        found,
        _COLUMNS,
        lambda info: _cells(info, now),
        optional=_OPTIONAL_COLUMNS,
        wrapped=("pids",),
        empty="No shared instances.",
        as_json=as_json,
    )


@cli_command(examples=("cortecs-async down dev", "cortecs-async down dev --force --timeout 5m"))
@_name_argument
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Delete the instance even if other processes use it or its owner process does not respond.",
)
@click.option("--timeout", type=duration, default="2m", help="Stop waiting after this time.")
def down(name: str, force: bool, timeout: float) -> None:
    """Delete an instance that was started under a name.

    Returns once the service confirms that the instance is gone. Exits with 1 if other processes use it, and
    lists them. If the command fails or is interrupted, run `cortecs-async ps`.
    """
    released = run_async(_down, name, force, timeout)
    if released.state == "unresponsive":
        print_warning(
            "Its owner process did not respond and was killed. The reaper deletes the instance soon."
        )
        return
    words = "released" if released.instance_id is None else f"deleted {released.instance_id}"
    click.echo(one_line(f"{name}  {words}"))


async def _up(name: str, model: str, hardware: Hardware, options: dict[str, Any], as_json: bool) -> None:
    import anyio  # noqa: PLC0415  (slow to import)

    # No reaper here: another process, the owner, starts the instance and has one.
    async with cancel_on_signals(), cortecs_async.AsyncCortecs(guard="off") as client:
        found = await _find(client, name)
        was_there = found is not None and found.state != "releasing"
        try:
            with start_progress() as on_progress:
                shared = client.shared(
                    *(name, model, hardware),
                    on_progress=on_progress,
                    require_key=False,  # this command does not send requests to the instance
                    **options,
                )
                async with shared:
                    await shared.keep()
        except anyio.get_cancelled_exc_class() as cancelled:
            with anyio.CancelScope(shield=True):
                await _clean_up(client, name, cancelled, was_there=was_there)
            raise
        info = await _find(client, name)
    if info is None or info.base_url is None:
        raise CortecsError(f'"{name}" is no longer running. Run `cortecs-async ps` to check.')
    try:
        _print(info, env=False, as_json=as_json)
    except OSError:
        # The disk is full or the pipe is closed.
        print_warning(f"{name} is running and is billed. To delete it: cortecs-async down {name}")
        raise
    print_note(
        f"{name} is running: {info.instance_id}, {info.hardware_type_id}\n"
        f"A background process on this machine deletes it: {_end(info)}\n"
        f"To delete it earlier: cortecs-async down {name}\n"
        f"To use it in a shell: export OPENAI_BASE_URL=$(cortecs-async url {name})"
    )


async def _clean_up(client: AsyncCortecs, name: str, cancelled: BaseException, *, was_there: bool) -> None:
    """Release the instance of an interrupted `up`, unless another process wants it."""
    try:
        info = await _find(client, name)
        if info is not None and not (was_there or info.holders or info.is_kept):
            # If another process has joined meanwhile, this is refused.
            await client.release_shared(name)
            info = None
    except CortecsError as error:
        print_warning(f"{error}\nRun `cortecs-async ps` to check.")
        return
    if info is None:
        print_nothing_left(cancelled)
    else:
        print_warning(f"{name} is {info.state} and is billed. To delete it: cortecs-async down {name}")


async def _down(name: str, force: bool, timeout: float) -> SharedInfo:
    import anyio  # noqa: PLC0415  (slow to import)

    async with cancel_on_signals(), cortecs_async.AsyncCortecs(guard="off") as client:
        try:
            released = await client.release_shared(name, force=force, teardown_timeout=timeout)
        except anyio.get_cancelled_exc_class():
            print_warning(f"{name} may still be running. Run `cortecs-async ps` to check.")
            raise
        return _pick(name, await client.shared_instances()) if released is None else released


async def _list() -> Sequence[SharedInfo]:
    """Return the shared instances of the account, or without credentials, of all accounts."""
    try:
        return await _ask(lambda client: client.shared_instances())
    except MissingCredentialsError:
        return await _ask(lambda client: client.shared_instances(), anonymous=True)


async def _ask(request: Callable[[AsyncCortecs], Awaitable[T]], *, anonymous: bool = False) -> T:
    async with cortecs_async.AsyncCortecs(guard="off", anonymous=anonymous) as client:
        return await request(client)


async def _find(client: AsyncCortecs, name: str) -> SharedInfo | None:
    return next((each for each in await client.shared_instances() if each.name == name), None)


def _pick(name: str, found: Sequence[SharedInfo]) -> SharedInfo:
    """Return the shared instance with this name.

    Raises:
        click.ClickException: If there is none, or several accounts have one.
    """
    named = [each for each in found if each.name == name]
    if len(named) > 1:
        raise click.ClickException(f'"{name}" exists in several accounts. Pass --profile to choose one.')
    if named:
        return named[0]
    names = [each.name for each in found]
    known = f" Known names: {', '.join(names)}." if names else ""
    raise click.ClickException(
        sanitize(f'There is no shared instance "{name}".{did_you_mean(nearest(name, names)) or known}')
    )


def _advice(info: SharedInfo) -> str:
    if info.state == "starting":
        return f"Run `cortecs-async up {info.name}` again with the same arguments to wait for it."
    if info.state == "releasing":
        return "Start it again with `cortecs-async up`."
    return f"To delete it, run `cortecs-async down --force {info.name}`."


def _print(info: SharedInfo, *, env: bool, as_json: bool) -> None:
    if as_json:
        print_json(info)
    elif env:
        click.echo(f"export OPENAI_BASE_URL={quote(str(info.base_url))}")
        click.echo(f"export OPENAI_MODEL={quote(info.model)}")
    else:
        click.echo(one_line(info.base_url))


def _end(info: SharedInfo) -> str:
    return "when it reaches a limit" if info.expires_at is None else format_time(info.expires_at)


def _cells(info: SharedInfo, now: float) -> tuple[object, ...]:
    from .top.view import format_age  # noqa: PLC0415  (slow to import)

    return (
        info.name,
        info.state,
        info.model or None,
        info.instance_id,
        None if info.state == "unresponsive" else len(info.holders),
        " ".join(map(str, info.holders)) or None,
        None if info.started_at is None else format_age(max(now - info.started_at, 0.0)),
        None if info.expires_at is None else format_time(info.expires_at),
        None if info.cost is None else format_money(info.cost, info.currency),
        info.base_url,
    )
