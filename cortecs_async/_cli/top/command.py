"""`cortecs-async top`: the instances of the account, live."""

from __future__ import annotations

import os
import sys

import click

from ... import AsyncCortecs
from ...signals import cancel_on_sigterm
from ..options import DURATION
from ..output import FAILED, ending_signals, insist, run, say
from ..runtime import need

_NEEDED = ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET")


@click.command()
@click.option(
    "--interval",
    type=DURATION,
    default="2s",
    show_default=True,
    help="Between two refreshes, each of which is one request; at least 1s.",
)
def top(interval: float) -> None:
    """Watch the instances of the account on a full screen: what runs, what it costs, who answers for it.

    Stops and deletes them as well, each after a question. Needs the extra `tui`.
    """
    if interval < 1:
        raise click.BadParameter("at least 1s", param_hint="--interval")
    need("textual", "tui")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("this needs a terminal: `cortecs-async ls` lists instances elsewhere")
    if missing := [name for name in _NEEDED if not os.environ.get(name, "").strip()]:
        # Before the screen, which would hide it and never show anything else.
        raise click.ClickException(f"there is no {' and no '.join(missing)} in the environment")
    run(_top, interval)


async def _top(interval: float) -> None:
    from .app import TopApp  # noqa: PLC0415  (optional, checked by the caller)

    # The next refresh is the retry of one that failed; what is to be deleted is tried again in any case.
    async with cancel_on_sigterm(*ending_signals()), AsyncCortecs(max_retries=0) as client:
        app = TopApp(client, interval=interval)
        try:
            # A cancellation ends it as `q` does: the terminal is given back.
            await app.run_async()
        finally:
            if app.pending:
                say(f"finishing first: {', '.join(app.pending)}")
                await app.finish()
            for each in app.unheard:
                insist(each)
    if app.unheard or app.return_code or not app.has_read:
        sys.exit(FAILED)
