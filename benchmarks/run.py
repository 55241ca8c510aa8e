"""Measure what the SDK costs, compared with its HTTP library and with the vendor's client.

A full run takes about ten minutes. The report goes to standard output.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from _plots import draw
from _profile import profile
from _report import (
    FOLDER,
    RESULTS_MD,
    Row,
    comparison,
    describe_environment,
    load,
    report,
    save,
    update_docs_table,
)
from _server import clear_environment, pin_to_client_processor
from rows import batch, call, concurrency, decode, lag, leases, memory, pool, reaper, startup

# In the order of the report. The runs of `leases` also measure `teardown`.
BENCHMARKS: dict[tuple[str, ...], Callable[[], Sequence[Row]]] = {
    ("call",): call.rows,
    ("leases", "teardown"): leases.rows,
    ("memory",): memory.rows,
    ("lag",): lag.rows,
    ("import",): startup.rows,
    ("decode",): decode.rows,
    ("pool",): pool.rows,
    ("batch",): batch.rows,
    ("concurrency",): concurrency.rows,
    ("reaper",): reaper.rows,
}
NAMES = [name for names in BENCHMARKS for name in names]


def measure(chosen: Sequence[str]) -> list[Row]:
    """Run the benchmarks with these names."""
    rows: list[Row] = []
    for names, benchmark in BENCHMARKS.items():
        if set(names).isdisjoint(chosen):
            continue
        began = time.monotonic()
        rows += benchmark()
        # To standard error, so that standard output has nothing but the report.
        print(f"{' and '.join(names)}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


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
        help=f"save the results and plots, update {RESULTS_MD.name} and the table in docs/benchmarks.md",
    )
    parser.add_argument(
        "--compare", action="store_true", help="print only how much each ratio differs from the saved results"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print which functions take the CPU time of 1,000 leases, and exit",
    )
    options = parser.parse_args()
    clear_environment()
    pin_to_client_processor()
    if options.profile:
        profile()
        return
    before, environments = load()
    rows = measure(options.only)
    new_environments = dict.fromkeys((row.name for row in rows), describe_environment())
    if not options.compare:
        print(report(rows, new_environments))
    if before:
        print(comparison(before, rows))
    if options.write:
        by_name = {row.name: row for row in (*before, *rows)}
        saved = [by_name[name] for name in NAMES if name in by_name]
        save(saved, environments | new_environments)
        update_docs_table(saved)
        for row in saved:
            for plot in row.plots:
                draw(plot, row.figures, FOLDER)


if __name__ == "__main__":
    main()
