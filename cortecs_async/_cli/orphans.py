"""`cortecs-async orphans` and `sweep`: what processes that died have left behind."""

from __future__ import annotations

import sys

import click

from ..types import Orphan
from .options import DURATION, json_option
from .output import FAILED, ask, moment, print_json, print_table, say

_MEANING = {
    "found": "left behind: `cortecs-async sweep` releases it",
    "unsettled": "may still appear: `cortecs-async sweep` waits for it",
    "released": "was left behind: released now",
    "gone": "nothing is left of it",
    "ambiguous": "may be one of these; stop it yourself if nobody needs it",
    "left": "the service could not be brought to it: sweep again",
    "held": "acquired, and its time is not up",
    "foreign": "asked for with other credentials, or of another service: sweep with those",
}


@click.command()
@json_option()
def orphans(as_json: bool) -> None:
    """List what processes of this machine that died have left behind. Touches nothing.

    Exits with 1 when there is something to do.
    """
    _run(dry_run=True, as_json=as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what there is, as `orphans` does.")
@click.option("--timeout", type=DURATION, default="5m", show_default=True, help="For all of it.")
@json_option()
def sweep(dry_run: bool, timeout: float, as_json: bool) -> None:
    """Release the instances that processes of this machine left behind when they died.

    Only what their journals prove to be theirs, and never what a living process answers for. Needs the
    credentials that they had, in CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET. Exits with 1 when something is
    left to do.
    """
    _run(dry_run=dry_run, timeout=timeout, as_json=as_json)


def _run(*, dry_run: bool, as_json: bool, timeout: float = 300.0) -> None:
    # Its own work needs no reaper: what it takes up stays in the journal until it is done.
    found = ask(lambda client: client.sweep(dry_run=dry_run, timeout=timeout))
    if as_json:
        print_json(found)
    elif found:
        print_table(("state", "instance", "asked for at", "by", "meaning"), map(_row, found))
    else:
        say("nothing was left behind")
    if any(each.state in {"found", "unsettled", "ambiguous", "left"} for each in found):
        sys.exit(FAILED)


def _row(each: Orphan) -> tuple[str, ...]:
    instance = each.instance_id or ", ".join(each.candidates) or each.model or "unknown"
    return each.state, instance, moment(each.started_at), each.owner, _MEANING[each.state]
