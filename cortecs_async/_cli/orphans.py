"""`cortecs-async orphans` and `sweep`: handle instances that dead processes left behind."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from .command import cli_command
from .display import print_list
from .options import duration, json_option
from .output import format_time
from .runtime import FAILED, call_api

if TYPE_CHECKING:
    import logging

    from ..types import Orphan

_MEANING = {
    "found": "left behind; run `cortecs-async sweep` to release it",
    "unsettled": "may still appear; run `cortecs-async sweep` to wait for it",
    "released": "was left behind; released now",
    "gone": "no longer exists",
    "ambiguous": "may be one of these; stop it yourself if it is not in use",
    "left": "could not be released in time; run `cortecs-async sweep` again",
    "releasing": "a reaper is still releasing it; if it fails, run `cortecs-async sweep --force`",
    "held": "acquired and not expired",
    "foreign": "belongs to another client id or service; sweep with that client id and service",
    "newer": "recorded by another version of cortecs-async; sweep with that version",
}

# The states of instances that are, or may be, still billed although their process is dead.
_REMAINING = frozenset({"found", "unsettled", "ambiguous", "left", "releasing", "newer"})


@cli_command(examples=("cortecs-async orphans", "cortecs-async orphans --json"))
@json_option()
def orphans(as_json: bool) -> None:
    """List the instances that dead processes left behind.

    Covers processes on this machine and does not change anything. Exits with 1 if any are left.
    """
    _run(dry_run=True, as_json=as_json)


@cli_command(examples=("cortecs-async sweep", "cortecs-async sweep --timeout 2m --force"))
@click.option("--dry-run", is_flag=True, help="List orphans without releasing them.")
@click.option("--force", is_flag=True, help="Also release instances that a reaper is still releasing.")
@click.option("--timeout", type=duration, default="330s", help="Stop the sweep after this time.")
@json_option()
def sweep(dry_run: bool, force: bool, timeout: float, as_json: bool) -> None:
    """Release the instances that dead processes left behind.

    Covers processes on this machine. Releases only instances that the journals of those processes prove
    they started, never an instance that a running process owns. Needs the CORTECS_CLIENT_ID that
    those processes used and its current CORTECS_CLIENT_SECRET. Exits with 1 if any are left.
    """
    _run(dry_run=dry_run, force=force, timeout=timeout, as_json=as_json)


def _run(*, dry_run: bool, as_json: bool, force: bool = False, timeout: float = 330.0) -> None:
    import logging  # noqa: PLC0415  (slow to import)

    guard = logging.getLogger("cortecs_async.guard")
    guard.addFilter(_is_no_advice)
    try:
        # No reaper needed: an instance stays in the journal until it is released.
        found = call_api(lambda client: client.sweep(dry_run=dry_run, force=force, timeout=timeout))
    finally:
        guard.removeFilter(_is_no_advice)
    columns = ("state", "instance", "requested at", "by", "meaning")
    print_list(
        found, columns, _row, wrapped=("meaning", "instance"), empty="No orphaned instances.", as_json=as_json
    )
    if any(orphan.state in _REMAINING for orphan in found):
        sys.exit(FAILED)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return whether a record is anything but the warning that advises running `sweep`."""
    return getattr(record, "cortecs_event", "") != "guard.orphans"


def _row(orphan: Orphan) -> tuple[str, ...]:
    instance = orphan.instance_id or ", ".join(orphan.candidates) or orphan.model or "unknown"
    return orphan.state, instance, format_time(orphan.started_at), orphan.owner, _MEANING[orphan.state]
