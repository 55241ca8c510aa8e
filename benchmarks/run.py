"""What the SDK costs beside its transport and its peers: `python benchmarks/run.py [--write | --compare]`.

About ten minutes for everything. `--write` keeps the result beside this file, with the plots; without it
the result of the last run is the one to compare with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from _plots import draw
from _profile import profile
from _report import FOLDER, RESULTS_MD, Row, comparison, load, report, save, surroundings, update_headline
from _server import forget_surroundings, keep_apart
from rows import batch, call, decode, lag, leases, memory, pool, reaper, startup

Measurement = Callable[[], Sequence[Row]]


def one(row: Callable[[], Row]) -> Measurement:
    """A measurement of one row as one of several."""
    return lambda: [row()]


# In the order of the document. `teardown` is read from the same runs as `leases`.
MEASUREMENTS: dict[tuple[str, ...], Measurement] = {
    ("call",): one(call.row),
    ("leases", "teardown"): leases.rows,
    ("memory",): one(memory.row),
    ("lag",): one(lag.row),
    ("import",): one(startup.row),
    ("decode",): one(decode.row),
    ("pool",): one(pool.row),
    ("batch",): one(batch.row),
    ("reaper",): one(reaper.row),
}
NAMES = [name for names in MEASUREMENTS for name in names]


def measure(wanted: Sequence[str]) -> list[Row]:
    """The rows that are asked for."""
    rows: list[Row] = []
    for names, measurement in MEASUREMENTS.items():
        if not set(names) & set(wanted):
            continue
        begun = time.monotonic()
        rows += measurement()
        # To standard error: the report alone is the output.
        print(f"{' and '.join(names)}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measures, prints, compares with the last run, and keeps the result if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"keep the result in {RESULTS_MD.name}, and its main figures in docs/benchmarks.md",
    )
    parser.add_argument("--compare", action="store_true", help="print the comparison with the last run alone")
    parser.add_argument("--profile", action="store_true", help="where the CPU of 1,000 leases goes, instead")
    options = parser.parse_args()
    forget_surroundings()
    keep_apart()
    if options.profile:
        profile()
        return
    before, where = load()
    rows = measure(options.only)
    if not options.compare:
        print(report(rows, dict.fromkeys((row.name for row in rows), surroundings())))
    if before:
        print(comparison(before, rows))
    if options.write:
        where |= dict.fromkeys((row.name for row in rows), surroundings())
        known = {row.name: row for row in (*before, *rows)}
        kept = [known[name] for name in NAMES if name in known]
        save(kept, where)
        update_headline(kept)
        for row in kept:
            for plot in row.plots:
                draw(plot, row.figures, FOLDER)


if __name__ == "__main__":
    main()
