"""`cortecs-async watch`: show changes of instances as they happen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import click

import cortecs_async

from ..errors import CortecsError
from .command import cli_command
from .options import duration, json_option
from .output import (
    error_text,
    has_ended,
    one_line,
    print_help_lines,
    print_note,
    print_warning,
    step_text,
    to_json,
)
from .runtime import FAILED, run_async
from .wording import to_command_line

if TYPE_CHECKING:
    from rich.table import Table

    from .. import AsyncCortecs, Instance

_COLUMNS = ("id", "model", "status", "step", "elapsed", "base url")
_OPTIONAL_COLUMNS = ("base url", "model")


class _Change(NamedTuple):
    instance_id: str
    elapsed: float  # seconds since the watch started
    instance: Instance | None = None  # None if it does not exist
    error: CortecsError | None = None  # the reason why it cannot be watched
    is_last: bool = False

    @property
    def status(self) -> str:
        if self.error is not None:
            return "error"
        return "gone" if self.instance is None else self.instance.status


_Show = Callable[[_Change], None]


@cli_command(
    examples=("cortecs-async watch", "cortecs-async watch instance-10001 --until-running --timeout 10m")
)
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--timeout", type=duration, help="Give up and fail after this time.")
@click.option(
    "--until-running",
    is_flag=True,
    help="Exit once all instances are running, or with status 1 if one fails to start.",
)
@json_option("Print each change as a JSON object on its own line.")
def watch(ids: tuple[str, ...], timeout: float | None, until_running: bool, as_json: bool) -> None:
    """Watch instances until all are stopped or gone.

    Shows a live table on a terminal, or prints a line for each change otherwise. Without ids, watches all
    existing instances. Exits with 1 if an instance could not be watched, or if --timeout elapses. If the
    service cannot be reached at the start, it exits immediately; later it retries for ten minutes.
    """
    display: AbstractContextManager[_Show]
    if as_json:
        display = nullcontext(_print_json)
    elif sys.stdout.isatty():
        display = _LiveTable()
    else:
        display = nullcontext(_print_line)
    if not run_async(_watch, ids, timeout, until_running, display):
        sys.exit(FAILED)


async def _watch(
    ids: tuple[str, ...],
    timeout: float | None,
    until_running: bool,
    display: AbstractContextManager[_Show],
) -> bool:
    """Watch instances. Return whether all went well."""
    async with cortecs_async.AsyncCortecs(guard="off") as client:
        # Even with ids, so that an unreachable service is reported immediately.
        listed = await client.instances.list()
        chosen = ids or tuple(instance.instance_id for instance in listed)
        if not chosen:
            print_note("No instances.")
            return True
        with display as show:
            watcher = _Watcher(client, until_running, show)
            await watcher.run(chosen, timeout)
        print_help_lines(*watcher.errors)
    return not watcher.failed


class _Watcher:
    def __init__(self, client: AsyncCortecs, until_running: bool, show: _Show) -> None:
        import anyio  # noqa: PLC0415  (slow to import)

        self._client = client
        self._until_running = until_running
        self._show_change = show
        self._began = time.monotonic()
        self._tasks = anyio.create_task_group()
        self._output_error: OSError | None = None
        self._latest: dict[str, Instance | None] = {}  # of the instances still being watched
        self.failed = False
        self.errors: list[CortecsError] = []

    async def run(self, ids: tuple[str, ...], timeout: float | None) -> None:
        import anyio  # noqa: PLC0415  (slow to import)

        self._latest = dict.fromkeys(ids)
        with anyio.move_on_after(timeout):
            async with self._tasks:
                for instance_id in self._latest:
                    self._tasks.start_soon(self._watch, instance_id)
        if self._output_error is not None:
            raise self._output_error  # outside the group, because click handles a closed pipe
        for instance_id, instance in list(self._latest.items()):
            status = "status not yet known" if instance is None else f"still {instance.status}"
            error = CortecsError(f"timed out after {timeout:g} s; {status}.")
            self._show(instance_id, instance, error=error, is_last=True)

    async def _watch(self, instance_id: str) -> None:
        try:
            async for instance in self._client.instances.watch(instance_id):
                is_last = has_ended(instance) or (self._until_running and instance.is_usable)
                self._show(instance_id, instance, is_last=is_last)
                if is_last:
                    return
            self._show(instance_id, is_last=True)
        except CortecsError as error:
            self._show(instance_id, error=error, is_last=True)

    def _show(
        self,
        instance_id: str,
        instance: Instance | None = None,
        *,
        error: CortecsError | None = None,
        is_last: bool = False,
    ) -> None:
        if is_last:
            self._latest.pop(instance_id)
        else:
            self._latest[instance_id] = instance
        is_usable = instance is not None and instance.is_usable
        if error is not None:
            self.errors.append(error)
        if error is not None or (is_last and self._until_running and not is_usable):
            self.failed = True
        elapsed = time.monotonic() - self._began
        try:
            self._show_change(
                _Change(
                    instance_id=instance_id, elapsed=elapsed, instance=instance, error=error, is_last=is_last
                )
            )
        except OSError as output_error:
            self._output_error = output_error
            self._tasks.cancel_scope.cancel()


def _print_json(change: _Change) -> None:
    fields = {
        "instance_id": change.instance_id,
        "status": change.status,
        "elapsed": round(change.elapsed, 3),
        "instance": change.instance,
        "error": None if change.error is None else to_command_line(str(change.error)),
    }
    click.echo(to_json(fields))


def _print_line(change: _Change) -> None:
    details: list[str | None] = [change.instance_id, change.status]
    if change.error is not None:
        details.append(error_text(change.error).replace("\n", "  "))
    elif change.instance is not None:
        details += [step_text(change.instance), change.instance.base_url]
    click.echo(one_line("  ".join([*filter(None, details), f"{change.elapsed:.1f} s"])))


class _LiveTable(AbstractContextManager[_Show]):
    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415  (slow to import)

        from .tables import stdout_console  # noqa: PLC0415  (slow to import)

        self._began = 0.0
        self._changes: dict[str, _Change] = {}
        self._models: dict[str, str] = {}
        # Redraws regularly, so that the elapsed time keeps advancing between changes.
        self._console = stdout_console()
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> _Show:
        self._began = time.monotonic()  # not earlier, or it would include the time to load the client
        self._live.start()
        return self._show

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()
        for change in self._changes.values():
            if change.error is not None:
                print_warning(f"{change.instance_id}  {error_text(change.error)}")

    def _show(self, change: _Change) -> None:
        self._changes[change.instance_id] = change
        if change.instance is not None:
            self._models[change.instance_id] = change.instance.instance_args.hf_name
        self._live.refresh()

    def _table(self) -> Table:
        from .tables import make_table  # noqa: PLC0415  (loaded with the console)

        rows = map(self._row, list(self._changes.values()))
        # Leave room for the ^C that a terminal echoes after the last line. If it wraps, the display breaks.
        return make_table(
            self._console.width - 2, _COLUMNS, rows, optional=_OPTIONAL_COLUMNS, wrapped=("step",)
        )

    def _row(self, change: _Change) -> tuple[object, ...]:
        instance = change.instance
        elapsed = change.elapsed if change.is_last else time.monotonic() - self._began
        return (
            change.instance_id,
            self._models.get(change.instance_id),
            change.status,
            instance and step_text(instance),
            f"{elapsed:.0f} s",
            instance and instance.base_url,
        )
