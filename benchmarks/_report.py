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

README = FOLDER.parent / "README.md"

# A figure that was measured only once has no quartiles. In two runs, it may differ by this much.
_TOLERANCE = 0.15

README_ROWS = {
    "`cortecs-async --version`, `--help`, `ls --help`, `run --help` / `import click`": [
        "cli: --version / import click",
        "cli: --help / import click",
        "cli: ls --help / import click",
        "cli: run --help / import click",
    ],
    "`cortecs-async ls` / the same with httpx and json": ["cli: ls / by hand with httpx and json"],
    "import; import, client, and first response / the same with httpx": [
        "import: import AsyncCortecs / import httpx",
        "import: first response, ours / bare httpx",
    ],
    'a call with `transport="aiohttp"` / aiohttp': ["call: ours, transport aiohttp / bare aiohttp"],
    "decode 10,000 instances / `cortecs-py`": ["decode: ours / cortecs-py"],
    "1, 10, 1,000 leases / `cortecs-py`": [
        f"leases: ours / cortecs-py: CPU, {count}" for count in ("1 lease", "10 leases", "1,000 leases")
    ],
    "1,000 leases: time / provisioning and the same requests with httpx": [
        "leases: ours: elapsed time, 1,000 leases / (provisioning + bare httpx, same requests)",
    ],
    "10,000 leases: requests per lease, growth exponent": [
        "many: requests per lease, 10,000 leases",
        "many: growth exponent of CPU, 100 to 10,000 leases",
    ],
    "one lease over a link of 150 ms: time / `cortecs-py`, polling every second": [
        "link: elapsed time, ours / cortecs-py, polling every 1 s",
    ],
    "seconds from `kill -9` to the reaper's first request": [
        "killed: seconds from kill -9 to the reaper's first request",
    ],
}
"""The figures of each row in the table of the README."""

# Ours, those of the vendor's client, and those of the emulator.
_PACKAGES = (
    *("httpx", "httpcore", "anyio", "attrs", "cattrs", "aiohttp"),
    *("cortecs-py", "pydantic", "requests", "starlette", "uvicorn"),
)

_INTRODUCTION = """
`python benchmarks/run.py --write` (or `nox -s bench -- --write`) measures everything and writes this page.
`--compare` measures everything again, and prints each figure next to the one that is saved here. `--source`
measures the package in another source tree.

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
        return f"at most {self.target:g}: {'met' if self.is_met else '**not met**'}"

    @property
    def is_met(self) -> bool:
        """Whether there is no target, or it is met."""
        return self.target is None or self.value.median <= self.target


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
        attrs.evolve(each, label=label) for label, each in figures_of(rows).items() if each.target is not None
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


def figures_of(rows: Iterable[Row]) -> dict[str, Ratio]:
    """Return the figures of all rows by their full label."""
    return {f"{row.name}: {each.label}": each for row in rows for each in row.ratios}


def update_pages(rows: Sequence[Row]) -> None:
    """Update the figures in docs/benchmarks.md and in the README."""
    for page, update in ((DOCS_PAGE, updated_docs), (README, updated_readme)):
        page.write_text(update(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


def updated_docs(text: str, rows: Sequence[Row]) -> str:
    """Return docs/benchmarks.md with the medians of these rows."""
    for label, figure in figures_of(rows).items():
        cell = re.escape(f"| {label} | ")
        median = _number(figure.value.median)
        text = re.sub(rf"^({cell})[^|]+(?= \|)", rf"\g<1>{median}", text, flags=re.MULTILINE)
    return text


def updated_readme(text: str, rows: Sequence[Row]) -> str:
    """Return the README with the figures of these rows. Those that miss their target are in bold."""
    figures = figures_of(rows)
    lines = []
    for name, labels in README_ROWS.items():
        measured = [figures[label] for label in labels]
        medians = [_number(each.value.median) for each in measured]
        cells = [
            median if each.is_met else f"**{median}**" for each, median in zip(measured, medians, strict=True)
        ]
        targets = dict.fromkeys(f"{each.target:g}" for each in measured if each.target is not None)
        lines.append((name, ", ".join(cells), ", ".join(targets)))
    table = markdown_table(("what is compared", "measured", "target"), lines)
    return re.sub(
        r"^\| what is compared \|.*?$(?!\n\|)", lambda _: table, text, flags=re.MULTILINE | re.DOTALL
    )


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


def has_moved(old: Spread, new: Spread) -> bool:
    """Return whether two runs differ by more than their spread."""
    if _number(old.median) == _number(new.median):
        return False
    if min(old.rounds, new.rounds) == 1:
        return abs(new.median / old.median - 1) > _TOLERANCE
    return not (old.low <= new.median <= old.high or new.low <= old.median <= new.high)


def summary(before: Iterable[Row], now: Iterable[Row]) -> str:
    """Return the missed targets, and all figures next to those of an earlier run, in Markdown."""
    earlier, figures = figures_of(before), figures_of(now)
    num_targets = sum(each.target is not None for each in figures.values())
    missed = [
        f"- {label}: {_number(each.value.median)} instead of at most {each.target:g}"
        for label, each in figures.items()
        if not each.is_met
    ]
    lines = []
    num_moved = 0
    for label, figure in figures.items():
        new, old = figure.value, earlier[label].value if label in earlier else None
        change = ""
        if old is not None and old.median:
            change = f"{new.median / old.median - 1:+.0%}"
            if has_moved(old, new):
                change += ", **cheaper**" if new.median < old.median else ", **more expensive**"
                num_moved += 1
        target = (
            "" if figure.target is None else f"{figure.target:g}" + ("" if figure.is_met else ", **missed**")
        )
        lines.append((label, target, _with_quartiles(new), _with_quartiles(old) if old else "", change))
    of_targets = f"{len(missed)} of {num_targets} targets missed{':' if missed else '.'}"
    of_moves = (
        f"{num_moved} of {len(lines)} figures moved by more than their spread: the median of each run is "
        f"outside the quartiles of the other or, with a single round, differs by more than {_TOLERANCE:.0%}."
    )
    table = markdown_table(("figure", "target", "now", "saved", "change"), lines)
    return "\n\n".join(["\n".join([of_targets, *missed]), of_moves, table])


def _with_quartiles(value: Spread) -> str:
    """Return a median with its quartiles in parentheses."""
    if value.rounds == 1:
        return _number(value.median)
    return f"{_number(value.median)} ({_number(value.low)} to {_number(value.high)})"
