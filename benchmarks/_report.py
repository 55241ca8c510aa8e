"""What a row of the benchmarks found, and how it is written down."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from _measure import Spread, spread

FOLDER = Path(__file__).parent
RESULTS_JSON = FOLDER / "results.json"
RESULTS_MD = FOLDER / "results.md"
README = FOLDER.parent / "README.md"

# What two runs on the same machine may differ by.
AGREEMENT = 0.15

_PACKAGES = ("httpx", "httpcore", "anyio", "attrs", "cattrs", "aiohttp", "httpx-aiohttp")
_PEER_PACKAGES = ("cortecs-py", "pydantic", "requests", "starlette", "uvicorn")

_INTRODUCTION = """
Made by `python benchmarks/run.py --write` (or `nox -s bench -- --write`); `--compare` runs everything again
and says how much each ratio differs. All sides of a comparison run in turn in one run, in small batches, on
loopback, against the same emulator in a process of its own: the clients on one processor, the emulator on
another. CPU time, not wall time, wherever a process can be charged for it. A ratio is the median of the
rounds, and its spread the quartiles; below 1.00 the first is the cheaper one.
"""


@attrs.frozen
class Ratio:
    """One figure that another run must find again.

    Attributes:
        label: What was divided by what; unique in its row.
        value: The median and its spread.
        target: What it must not exceed, if that was promised.
    """

    label: str
    value: Spread
    target: float | None = None

    @property
    def verdict(self) -> str:
        """The target and whether it is met, in words."""
        if self.target is None:
            return ""
        return f"at most {self.target:g}: {'met' if self.value.median <= self.target else '**not met**'}"


@attrs.frozen
class Table:
    """Absolute figures."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


def paragraphs(text: str | Sequence[str]) -> Sequence[str]:
    """What stands between empty lines, without its line breaks."""
    return [" ".join(part.split()) for part in text.split("\n\n")] if isinstance(text, str) else text


@attrs.frozen
class Row:
    """One benchmark's result.

    Attributes:
        name: What `--only` calls it.
        title: The heading.
        ratios: The figures to compare.
        tables: Absolute figures.
        text: Plain words. The first paragraph says what was measured, and stands before the figures.
        figures: What the plots are drawn from.
        plots: File names of the plots, beside the results.
    """

    name: str
    title: str
    ratios: Sequence[Ratio] = ()
    tables: Sequence[Table] = ()
    text: Sequence[str] = attrs.field(default=(), converter=paragraphs)
    figures: dict[str, Any] = attrs.field(factory=dict)
    plots: Sequence[str] = ()


def ratio(label: str, values: Iterable[float], target: float | None = None) -> Ratio:
    """The ratio whose rounds these are."""
    return Ratio(label, spread(values), target)


def surroundings() -> str:
    """Where and with what it was measured."""
    today = dt.datetime.now(dt.UTC).date()
    return (
        f"Measured on {today}: {platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} processors"
        f"{_processor()}; {_versions(_PACKAGES)}. Beside it: {_versions(_PEER_PACKAGES)}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f" ({', '.join(sorted(names))})" if names else ""


def _versions(packages: Iterable[str]) -> str:
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def markdown_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first to the right."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines))


def ratio_table(ratios: Iterable[Ratio]) -> str:
    """The ratios of a row."""
    columns = ("figure", "median", "quartiles", "rounds", "target")
    lines = []
    for each in ratios:
        low, high = (_number(bound) for bound in (each.value.low, each.value.high))
        several = each.value.rounds > 1
        quartiles = f"{low} to {high}" if several else ""
        lines.append(
            (each.label, _number(each.value.median), quartiles, str(each.value.rounds), each.verdict)
        )
    return markdown_table(columns, lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def section(row: Row) -> str:
    """A row as Markdown."""
    parts = [f"## {row.title}", *row.text[:1]]
    if row.ratios:
        parts.append(ratio_table(row.ratios))
    parts.extend(markdown_table(table.columns, table.lines) for table in row.tables)
    parts.extend(row.text[1:])
    parts.extend(f"![{row.title}]({plot})" for plot in row.plots)
    return "\n\n".join(parts)


def report(rows: Sequence[Row], where: dict[str, str]) -> str:
    """The whole document.

    Args:
        rows: In the order of the document.
        where: The surroundings of each row, by its name.
    """
    common = where[rows[-1].name]
    promised = [
        attrs.evolve(each, label=f"{row.name}: {each.label}")
        for row in rows
        for each in row.ratios
        if each.target is not None
    ]
    parts = ["# Benchmarks", *paragraphs(_INTRODUCTION), common]
    if promised:
        parts += ["## What was promised", ratio_table(promised)]
    for row in rows:
        parts.append(section(row))
        if where[row.name] != common:
            parts.append(where[row.name])
    return "\n\n".join(parts) + "\n"


def save(rows: Sequence[Row], where: dict[str, str]) -> None:
    """Keeps the rows beside the benchmarks, for people and for the next run."""
    content = [{**attrs.asdict(row), "surroundings": where[row.name]} for row in rows]
    RESULTS_JSON.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    RESULTS_MD.write_text(report(rows, where), encoding="utf-8")


def update_headline(rows: Iterable[Row]) -> None:
    """Puts the figures into the README's table, which says which ones it shows."""
    text = README.read_text(encoding="utf-8")
    for row in rows:
        for each in row.ratios:
            cell = re.escape(f"| {row.name}: {each.label} | ")
            text = re.sub(
                rf"^({cell})[0-9.]+", rf"\g<1>{_number(each.value.median)}", text, flags=re.MULTILINE
            )
    README.write_text(text, encoding="utf-8")


def load() -> tuple[list[Row], dict[str, str]]:
    """The rows of the last run that was kept, and their surroundings; none if there was none."""
    if not RESULTS_JSON.exists():
        return [], {}
    rows, where = [], {}
    for content in json.loads(RESULTS_JSON.read_text(encoding="utf-8")):
        where[content["name"]] = content.pop("surroundings")
        ratios = [Ratio(each["label"], Spread(**each["value"]), each["target"]) for each in content["ratios"]]
        tables = [Table(**each) for each in content["tables"]]
        rows.append(Row(**{**content, "ratios": ratios, "tables": tables}))
    return rows, where


def comparison(before: Iterable[Row], now: Iterable[Row]) -> str:
    """How much each ratio differs from the last run's."""
    known = {(row.name, each.label): each.value.median for row in before for each in row.ratios}
    lines = []
    apart = 0
    for row in now:
        for each in row.ratios:
            old, new = known.get((row.name, each.label)), each.value.median
            if not old:
                continue
            difference = new / old - 1
            is_apart = abs(difference) > AGREEMENT
            apart += is_apart
            mark = " **apart**" if is_apart else ""
            cells = (f"{row.name}: {each.label}", _number(old), _number(new), f"{difference:+.1%}{mark}")
            lines.append(cells)
    heading = f"Beside the last run: {apart} of {len(lines)} ratios differ by more than {AGREEMENT:.0%}."
    return f"{heading}\n\n{markdown_table(('figure', 'then', 'now', 'difference'), lines)}"
