"""`cortecs-async watch`: what instances do, as it happens."""

from __future__ import annotations

import sys
import time
from typing import Protocol, Self

import anyio
import click
from attrs import define
from rich.live import Live
from rich.table import Table

from .. import AsyncCortecs, CortecsError, Instance
from .instances import step
from .options import json_option
from .output import FAILED, clean, is_over, make_table, output, reason, run, say, to_json

_COLUMNS = ("id", "model", "status", "step", "elapsed", "base url")
_OPTIONAL = ("base url", "model")


@define(kw_only=True)
class _Change:
    """Something that was seen.

    Attributes:
        instance_id: Which instance.
        elapsed: Seconds since the watch began.
        instance: As it is now; None when it is gone or was never there.
        error: Why it cannot be watched.
        is_last: Whether the watch of this one has ended.
    """

    instance_id: str
    elapsed: float
    instance: Instance | None = None
    error: CortecsError | None = None
    is_last: bool = False

    @property
    def status(self) -> str:
        """In a word."""
        if self.error is not None:
            return "error"
        return "gone" if self.instance is None else self.instance.status


class _Screen(Protocol):
    """Where changes are shown."""

    def show(self, change: _Change) -> None:
        """Shows one."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--until-running", is_flag=True, help="End when all run; exit with 1 when one never will.")
@json_option("Every change as a JSON object on a line of its own.")
def watch(ids: tuple[str, ...], until_running: bool, as_json: bool) -> None:
    """Watch instances until all are stopped or gone, or until Ctrl-C.

    A table that is kept up to date on a terminal, a line for every change elsewhere. Without ids: all that
    exist now. Exits with 1 when one could not be watched; an outage of the service is waited out for ten
    minutes, unless it is there from the start.
    """
    screen: _Screen = _Lines(as_json) if as_json or not sys.stdout.isatty() else _Board()
    if not run(_watch, ids, until_running, screen):
        sys.exit(FAILED)


async def _watch(ids: tuple[str, ...], until_running: bool, screen: _Screen) -> bool:
    """Watches them; whether all went well."""
    async with AsyncCortecs(guard="off") as client:
        # Also where they are named: a service that cannot be reached at all is said at once.
        listed = await client.instances.list()
        chosen = ids or tuple(each.instance_id for each in listed)
        if not chosen:
            say("the account has no instance")
            return True
        watcher = _Watcher(client, until_running, screen)
        with screen:
            await watcher.run(chosen)
    return watcher.well


class _Watcher:
    def __init__(self, client: AsyncCortecs, until_running: bool, screen: _Screen) -> None:
        self._client = client
        self._until_running = until_running
        self._screen = screen
        self._began = time.monotonic()
        self._broken: OSError | None = None
        self.well = True

    async def run(self, ids: tuple[str, ...]) -> None:
        """Returns when every watch has ended."""
        async with anyio.create_task_group() as tasks:
            for each in dict.fromkeys(ids):
                tasks.start_soon(self._follow, each, tasks.cancel_scope)
        if self._broken is not None:
            raise self._broken  # without a group around it: click knows what a closed pipe means

    async def _follow(self, instance_id: str, everything: anyio.CancelScope) -> None:
        try:
            try:
                await self._look(instance_id)
            except CortecsError as error:
                self._show(instance_id, error=error, is_last=True)
        except OSError as error:
            self._broken = error
            everything.cancel()

    async def _look(self, instance_id: str) -> None:
        async for instance in self._client.instances.watch(instance_id):
            is_last = is_over(instance) or (self._until_running and instance.is_usable)
            self._show(instance_id, instance, is_last=is_last)
            if is_last:
                return
        self._show(instance_id, is_last=True)

    def _show(
        self,
        instance_id: str,
        instance: Instance | None = None,
        *,
        error: CortecsError | None = None,
        is_last: bool = False,
    ) -> None:
        usable = instance is not None and instance.is_usable
        if error is not None or (is_last and self._until_running and not usable):
            self.well = False
        elapsed = time.monotonic() - self._began
        self._screen.show(
            _Change(instance_id=instance_id, elapsed=elapsed, instance=instance, error=error, is_last=is_last)
        )


class _Lines:
    """A line for each change, for pipes and files."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leaves nothing to do."""

    def show(self, change: _Change) -> None:
        """Prints it."""
        if self._as_json:
            said = {
                "instance_id": change.instance_id,
                "status": change.status,
                "elapsed": round(change.elapsed, 3),
                "instance": change.instance,
                "error": None if change.error is None else str(change.error),
            }
            click.echo(to_json(said))
            return
        details: list[str | None] = [change.instance_id, change.status]
        if change.error is not None:
            details.append(reason(change.error).replace("\n", "; "))
        elif change.instance is not None:
            details += [step(change.instance), change.instance.base_url]
        click.echo(clean("  ".join([*filter(None, details), f"{change.elapsed:.1f} s"])))


class _Board:
    """A table on a terminal."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._changes: dict[str, _Change] = {}
        self._models: dict[str, str] = {}
        # It redraws by itself, so that the seconds tick while nothing happens.
        self._console = output()
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()
        for each in self._changes.values():
            if each.error is not None:
                click.echo(f"{clean(each.instance_id)}  {reason(each.error)}", err=True)

    def show(self, change: _Change) -> None:
        """Draws it."""
        self._changes[change.instance_id] = change
        if change.instance is not None:
            self._models[change.instance_id] = change.instance.instance_args.hf_name
        self._live.refresh()

    def _draw(self) -> Table:
        changes = list(self._changes.values())
        # Room for the ^C that a terminal writes behind the last line, which would upset the drawing.
        return make_table(self._console.width - 2, _COLUMNS, map(self._row, changes), optional=_OPTIONAL)

    def _row(self, change: _Change) -> tuple[object, ...]:
        instance = change.instance
        elapsed = change.elapsed if change.is_last else time.monotonic() - self._began
        return (
            change.instance_id,
            self._models.get(change.instance_id),
            change.status,
            instance and step(instance),
            f"{elapsed:.0f} s",
            instance and instance.base_url,
        )
