"""`cortecs-async orphans` and `sweep`: what processes that died have left behind."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import anyio
import click
from rich.console import Console
from rich.table import Table

from .. import AsyncCortecs, CortecsError
from ..types import Orphan

_MEANING = {
    "found": "left behind: `cortecs-async sweep` releases it",
    "unsettled": "may still appear: `cortecs-async sweep` waits for it",
    "released": "was left behind: released now",
    "gone": "nothing is left of it",
    "ambiguous": "may be one of these; stop it yourself if nobody needs it",
    "left": "the service could not be brought to it: sweep again",
    "held": "acquired, and its time is not up",
    "foreign": "asked for with other credentials: sweep with those",
}


@click.command()
def orphans() -> None:
    """List what processes of this machine that died have left behind. Touches nothing.

    Exits with 1 when there is something to do.
    """
    _run(dry_run=True)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what there is, as `orphans` does.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    help="Seconds for all of it.",
)
def sweep(dry_run: bool, timeout: float) -> None:
    """Release the instances that processes of this machine left behind when they died.

    Only what their journals prove to be theirs, and never what a living process answers for. Needs the
    credentials that they had, in CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET. Exits with 1 when something is
    left to do.
    """
    _run(dry_run=dry_run, timeout=timeout)


def _run(*, dry_run: bool, timeout: float = 300.0) -> None:
    try:
        found = anyio.run(_sweep, dry_run, timeout)
    except CortecsError as error:
        raise click.ClickException(str(error)) from None
    _show(found)
    if any(each.state in {"found", "unsettled", "ambiguous", "left"} for each in found):
        sys.exit(1)


async def _sweep(dry_run: bool, timeout: float) -> tuple[Orphan, ...]:
    # Its own work needs no reaper: what it takes up stays in the journal until it is done.
    async with AsyncCortecs(guard="off") as client:
        return await client.sweep(dry_run=dry_run, timeout=timeout)


def _show(found: tuple[Orphan, ...]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not found:
        console.print("nothing was left behind")
        return
    table = Table(box=None)
    for name in ("state", "instance", "asked for at", "by", "meaning"):
        table.add_column(name)
    for each in found:
        asked = datetime.fromtimestamp(each.started_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        instance = each.instance_id or ", ".join(each.candidates) or each.model or "unknown"
        table.add_row(each.state, instance, asked, each.owner, _MEANING[each.state])
    console.print(table)
