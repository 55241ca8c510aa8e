"""`cortecs-async orphans` and `sweep`: instances that dead processes left behind."""

from __future__ import annotations

import sys

import click

from ..types import Orphan
from .options import duration, json_option
from .output import format_time, print_list
from .runtime import FAILED, call_api

_MEANING = {
    "found": "left behind; run `cortecs-async sweep` to release it",
    "unsettled": "may still appear; run `cortecs-async sweep` to wait for it",
    "released": "was left behind; released now",
    "gone": "no longer exists",
    "ambiguous": "may be one of these; stop it yourself if it is not in use",
    "left": "could not be released in time; run `cortecs-async sweep` again",
    "held": "acquired and not expired",
    "foreign": "of other credentials or another service; sweep with those",
    "newer": "recorded by another version of cortecs-async; sweep with that version",
}


@click.command()
@json_option()
def orphans(as_json: bool) -> None:
    """List the instances that dead processes left behind.

    Covers the processes of this machine, and changes nothing. Exits with 1 if any are left.
    """
    _run(dry_run=True, as_json=as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="List them like `orphans`, but release nothing.")
@click.option("--timeout", type=duration, default="330s", help="Stop sweeping after this time.")
@json_option()
def sweep(dry_run: bool, timeout: float, as_json: bool) -> None:
    """Release the instances that dead processes left behind.

    Covers the processes of this machine. Releases only instances that their journals prove to be theirs, and
    none that a running process owns. Needs the same CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET as those
    processes had. Exits with 1 if any are left.
    """
    _run(dry_run=dry_run, timeout=timeout, as_json=as_json)


def _run(*, dry_run: bool, as_json: bool, timeout: float = 330.0) -> None:
    # No reaper needed: an instance stays in the journal until it is released.
    found = call_api(lambda client: client.sweep(dry_run=dry_run, timeout=timeout))
    columns = ("state", "instance", "requested at", "by", "meaning")
    print_list(found, columns, _row, empty="No orphaned instances.", as_json=as_json)
    if any(orphan.state in {"found", "unsettled", "ambiguous", "left", "newer"} for orphan in found):
        sys.exit(FAILED)


def _row(orphan: Orphan) -> tuple[str, ...]:
    instance = orphan.instance_id or ", ".join(orphan.candidates) or orphan.model or "unknown"
    return orphan.state, instance, format_time(orphan.started_at), orphan.owner, _MEANING[orphan.state]
