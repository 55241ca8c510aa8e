"""Measure what the SDK costs, compared with its HTTP library and with the vendor's client.

A full run takes about 20 minutes. It prints the figures next to the saved ones, and the whole report.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from _measure import source_tree
from _plots import draw
from _profile import profile
from _report import (
    FOLDER,
    RESULTS_MD,
    Row,
    describe_environment,
    load,
    report,
    save,
    summary,
    update_pages,
)
from _server import clear_environment, pin_to_client_processor
from rows import (
    batch,
    call,
    cli,
    concurrency,
    decode,
    killed,
    lag,
    leases,
    link,
    many,
    memory,
    pool,
    startup,
)

# In the order of the report.
BENCHMARKS: dict[str, Callable[[], Row]] = {
    "cli": cli.row,
    "import": startup.row,
    "call": call.row,
    "leases": leases.row,
    "many": many.row,
    "link": link.row,
    "killed": killed.row,
    "memory": memory.row,
    "lag": lag.row,
    "decode": decode.row,
    "pool": pool.row,
    "batch": batch.row,
    "concurrency": concurrency.row,
}
NAMES = list(BENCHMARKS)


def measure(chosen: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Run the benchmarks with these names, and return the results and the names of those that failed."""
    rows, failed = [], []
    for name in chosen:
        began = time.monotonic()
        try:
            rows.append(BENCHMARKS[name]())
        except Exception:  # noqa: BLE001  (the results of the others took minutes)
            traceback.print_exc()
            failed.append(name)
        # To standard error, so that standard output has nothing but the report.
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows, failed


def use_source(tree: Path) -> None:
    """Run this command again with the package in `tree`, unless this process has it.

    Raises:
        SystemExit: if `tree` has no package.
    """
    if source_tree() == tree:
        return
    if os.environ.get("PYTHONPATH") == str(tree):
        raise SystemExit(f"{tree} has no package.")
    os.environ["PYTHONPATH"] = str(tree)
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  (this program)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        metavar="NAME",
        help=f"run these benchmarks only: {', '.join(NAMES)}",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"save the results and plots, update {RESULTS_MD.name}, docs/benchmarks.md and README.md",
    )
    parser.add_argument(
        "--compare", action="store_true", help="print only the figures next to those of the saved results"
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=FOLDER.parent,
        metavar="PATH",
        help="measure the package in this source tree (default: the one that these benchmarks are in)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print which functions take the CPU time of 1,000 leases, and exit",
    )
    options = parser.parse_args()
    use_source(options.source.resolve())
    clear_environment()
    pin_to_client_processor()
    if options.profile:
        profile()
        return
    before, environments = load()
    rows, failed = measure([name for name in NAMES if name in options.only])
    new_environments = dict.fromkeys((row.name for row in rows), describe_environment())
    print(summary(before, rows))
    if rows and not options.compare:
        print(report(rows, new_environments))
    if options.write:
        by_name = {row.name: row for row in (*before, *rows)}
        saved = [by_name[name] for name in NAMES if name in by_name]
        save(saved, environments | new_environments)
        update_pages(saved)
        for row in saved:
            for plot in row.plots:
                draw(plot, row.figures, FOLDER)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
