"""The results of the benchmarks, and the report on them."""

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
from _measure import Samples, Spread, spread

FOLDER = Path(__file__).parent
RESULTS_JSON = FOLDER / "results.json"
RESULTS_MD = FOLDER / "results.md"
DOCS_PAGE = FOLDER.parent / "docs" / "benchmarks.md"

# Ratios of two runs on the same machine may differ by this much.
TOLERANCE = 0.15

# Ours, those of the vendor's client, and those of the emulator.
_PACKAGES = (
    *("httpx", "httpcore", "anyio", "attrs", "cattrs", "aiohttp"),
    *("cortecs-py", "pydantic", "requests", "starlette", "uvicorn"),
)

_INTRODUCTION = """
`python benchmarks/run.py --write` (or `nox -s bench -- --write`) measures everything and writes this page.
`--compare` measures everything again and prints how much each ratio differs.

The sides of a comparison take turns in small batches, in one run. They send their requests over loopback to
the same emulator, which is a process of its own: the clients run on one processor, the emulator on another.
CPU time is compared where a process can be charged for it, and elapsed time elsewhere. A ratio is the median
of all rounds; below 1.00 means that the first side is cheaper. "Ours" is this client with its default
transport, httpx, and "ours, aiohttp" is this client with `transport="aiohttp"`. `cortecs-py` is the vendor's.
"""


@attrs.frozen
class Ratio:
    """A figure that another run can reproduce.

    Attributes:
        label: What was divided by what; unique in its row.
        value: The median and its spread.
        target: The highest acceptable median, if there is one.
    """

    label: str
    value: Spread
    target: float | None = None

    @property
    def verdict(self) -> str:
        """The target, and whether it is met; empty without a target."""
        if self.target is None:
            return ""
        return f"at most {self.target:g}: {'met' if self.value.median <= self.target else '**not met**'}"


@attrs.frozen
class Table:
    """Absolute figures."""

    columns: Sequence[str]
    lines: Sequence[Sequence[str]]


def paragraphs(text: str | Sequence[str]) -> Sequence[str]:
    """Split a text at its empty lines, and remove the other line breaks."""
    return [" ".join(part.split()) for part in text.split("\n\n")] if isinstance(text, str) else text


@attrs.frozen
class Row:
    """The result of one benchmark.

    Attributes:
        name: Its name for `--only`.
        title: The heading.
        ratios: The figures to compare.
        tables: Absolute figures.
        text: Paragraphs. The first one says what was measured, and precedes the figures.
        figures: The data of the plots.
        plots: The file names of the plots.
    """

    name: str
    title: str
    ratios: Sequence[Ratio] = ()
    tables: Sequence[Table] = ()
    text: Sequence[str] = attrs.field(default=(), converter=paragraphs)
    figures: dict[str, Any] = attrs.field(factory=dict)
    plots: Sequence[str] = ()


def ratio(label: str, values: Iterable[float], target: float | None = None) -> Ratio:
    """Return a ratio from its values, one per round."""
    return Ratio(label, spread(values), target)


def spread_table(first: str, unit: str, samples: Samples, scale: float) -> Table:
    """Return a table of CPU times: the median, the quartiles and the number of rounds by name.

    Args:
        first: The heading of the names.
        unit: The heading of the medians.
        samples: CPU seconds by round, by name.
        scale: Units per second.
    """
    lines = []
    for name, values in samples.items():
        cpu = spread(each * scale for each in values)
        lines.append((name, f"{cpu.median:.0f}", f"{cpu.low:.0f} to {cpu.high:.0f}", str(cpu.rounds)))
    return Table((first, unit, "quartiles", "rounds"), lines)


def describe_environment() -> str:
    """Describe the machine and the versions of the packages."""
    today = dt.datetime.now(dt.UTC).date()
    return (
        f"Measured on {today}: {platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} processors"
        f"{_processor()}; {_versions()}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f" ({', '.join(sorted(names))})" if names else ""


def _versions() -> str:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def markdown_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, with all columns but the first aligned to the right."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines))


def ratio_table(ratios: Iterable[Ratio]) -> str:
    """Return a Markdown table of ratios."""
    columns = ("figure", "median", "quartiles", "rounds", "target")
    lines = []
    for each in ratios:
        low, high = (_number(bound) for bound in (each.value.low, each.value.high))
        quartiles = f"{low} to {high}" if each.value.rounds > 1 else ""
        lines.append(
            (each.label, _number(each.value.median), quartiles, str(each.value.rounds), each.verdict)
        )
    return markdown_table(columns, lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def section(row: Row) -> str:
    """Return the section of a row, in Markdown."""
    parts = [f"## {row.title}", *row.text[:1]]
    if row.ratios:
        parts.append(ratio_table(row.ratios))
    parts.extend(markdown_table(table.columns, table.lines) for table in row.tables)
    parts.extend(row.text[1:])
    parts.extend(f"![{row.title}]({plot})" for plot in row.plots)
    return "\n\n".join(parts)


def report(rows: Sequence[Row], environments: dict[str, str]) -> str:
    """Return the whole report, in Markdown.

    Args:
        rows: The rows, in the order of the report.
        environments: The environment of each row, by the name of the row.
    """
    common = environments[rows[-1].name]
    with_target = [
        attrs.evolve(each, label=f"{row.name}: {each.label}")
        for row in rows
        for each in row.ratios
        if each.target is not None
    ]
    parts = ["# Benchmarks", *paragraphs(_INTRODUCTION), common]
    if with_target:
        parts += ["## Targets", ratio_table(with_target)]
    for row in rows:
        parts.append(section(row))
        if environments[row.name] != common:
            parts.append(environments[row.name])
    return "\n\n".join(parts) + "\n"


def save(rows: Sequence[Row], environments: dict[str, str]) -> None:
    """Save the rows as JSON for the next run, and as Markdown for people."""
    content = [{**attrs.asdict(row), "environment": environments[row.name]} for row in rows]
    RESULTS_JSON.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    RESULTS_MD.write_text(report(rows, environments), encoding="utf-8")


def update_docs_table(rows: Iterable[Row]) -> None:
    """Update the medians in the table of docs/benchmarks.md."""
    text = DOCS_PAGE.read_text(encoding="utf-8")
    for row in rows:
        for each in row.ratios:
            cell = re.escape(f"| {row.name}: {each.label} | ")
            text = re.sub(
                rf"^({cell})[0-9.]+", rf"\g<1>{_number(each.value.median)}", text, flags=re.MULTILINE
            )
    DOCS_PAGE.write_text(text, encoding="utf-8")


def load() -> tuple[list[Row], dict[str, str]]:
    """Load the saved rows, and the environment of each by the name of the row."""
    if not RESULTS_JSON.exists():
        return [], {}
    rows, environments = [], {}
    for content in json.loads(RESULTS_JSON.read_text(encoding="utf-8")):
        environments[content["name"]] = content.pop("environment")
        ratios = [Ratio(each["label"], Spread(**each["value"]), each["target"]) for each in content["ratios"]]
        tables = [Table(**each) for each in content["tables"]]
        rows.append(Row(**{**content, "ratios": ratios, "tables": tables}))
    return rows, environments


def comparison(before: Iterable[Row], now: Iterable[Row]) -> str:
    """Return a Markdown table that shows how much each ratio differs from that of an earlier run."""
    earlier = {(row.name, each.label): each.value.median for row in before for each in row.ratios}
    lines = []
    differing = 0
    for row in now:
        for each in row.ratios:
            old, new = earlier.get((row.name, each.label)), each.value.median
            if not old:
                continue
            difference = new / old - 1
            differs = abs(difference) > TOLERANCE
            differing += differs
            mark = " **differs**" if differs else ""
            cells = (f"{row.name}: {each.label}", _number(old), _number(new), f"{difference:+.1%}{mark}")
            lines.append(cells)
    heading = (
        f"{differing} of {len(lines)} ratios differ from the saved results by more than {TOLERANCE:.0%}."
    )
    return f"{heading}\n\n{markdown_table(('figure', 'saved', 'now', 'difference'), lines)}"
