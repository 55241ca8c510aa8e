"""`cortecs-async top`: a live, full-screen view of the instances in the account."""

from __future__ import annotations

import sys

import click

import cortecs_async

from ..command import cli_command
from ..options import duration
from ..output import print_note, print_warning
from ..runtime import FAILED, cancel_on_signals, import_optional, run_async


@cli_command(examples=("cortecs-async top", "cortecs-async top --interval 5s"))
@click.option(
    "--interval",
    type=duration,
    default="2s",
    help="Refresh interval (at least 1s). Each refresh sends one request.",
)
def top(interval: float) -> None:
    """Monitor instances, costs, and owners in full screen.

    Press q to close it, or ? for help. You can stop and delete instances, each after a
    confirmation. Needs the `tui` extra.
    """
    if interval < 1:
        raise click.BadParameter("must be at least 1s", param_hint="--interval")
    import_optional("textual", "tui")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("Not a terminal. Use `cortecs-async ls` instead.")
    run_async(_top, interval)


async def _top(interval: float) -> None:
    from .app import TopApp  # noqa: PLC0415  (optional, checked by the caller)
    from .ending import HUNG_UP, Ending  # noqa: PLC0415  (only for this command)

    # No retries: the next refresh retries a failed one, and deletions have their own retries.
    async with cancel_on_signals(), cortecs_async.AsyncCortecs(max_retries=0) as client:
        app = TopApp(client, interval=interval)
        ending = Ending(app)
        try:
            # A cancellation quits like `q` and restores the terminal.
            with ending.watched():
                await app.run_async()
        finally:
            if app.pending:
                print_note(f"Finishing: {', '.join(app.pending)}")
                await app.finish()
            for error in app.late_errors:
                print_warning(error)
            ending.finished()
    if ending.is_terminal_gone:
        sys.exit(HUNG_UP)
    if app.late_errors or app.return_code or not app.has_data:
        sys.exit(FAILED)
