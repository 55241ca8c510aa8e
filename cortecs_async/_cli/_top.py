"""`cortecs-async top`: the instances of the account, live."""

from __future__ import annotations

import sys

import click

from .. import AsyncCortecs
from ._common import FAILED, run, say
from ._need import need


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=1),
    default=2.0,
    show_default=True,
    help="Seconds between refreshes, each of which is one request.",
)
def top(interval: float) -> None:
    """Watch the instances of the account on a full screen: what runs, what it costs, who answers for it.

    Stops and deletes them as well, each after a question. Needs the extra `tui`.
    """
    need("textual", "tui")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("this needs a terminal: `cortecs-async ls` lists instances elsewhere")
    run(_top, interval)


async def _top(interval: float) -> None:
    from ._top_app import TopApp  # noqa: PLC0415  (optional, checked by the caller)

    # The next refresh is the retry of one that failed; what is to be deleted is tried again in any case.
    async with AsyncCortecs(guard="off", max_retries=0) as client:
        app = TopApp(client, interval=interval)
        await app.run_async()
        if app.pending:
            say(f"finishing first: {', '.join(app.pending)}")
            await app.finish()
    for each in app.unheard:
        click.echo(each, err=True)
    if app.unheard or app.return_code:
        sys.exit(FAILED)
