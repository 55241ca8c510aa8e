"""The figures of the benchmarks on the pages, and the report that compares two runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that writes the results of the benchmarks."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("_report")


def test_the_pages_show_the_figures_of_the_last_run(report: Any) -> None:
    rows, _ = report.load()
    readme = (ROOT / "README.md").read_text()
    assert report.updated_readme(readme, rows) == readme
    docs = (ROOT / "docs" / "benchmarks.md").read_text()
    assert report.updated_docs(docs, rows) == docs


def test_the_pages_have_no_other_figures(report: Any) -> None:
    figures = report.figures_of(report.load()[0])
    docs = (ROOT / "docs" / "benchmarks.md").read_text()
    shown = re.findall(r"^\| ([a-z]+: [^|]+?) \|", docs, re.MULTILINE)
    assert len(shown) >= 8
    assert {*shown} <= figures.keys()
    readme = (ROOT / "README.md").read_text()
    assert all(f"\n| {name} | " in readme for name in report.README_ROWS)


def test_new_figures_reach_the_pages(report: Any) -> None:
    labels = [label for labels in report.README_ROWS.values() for label in labels]
    rows = [
        report.Row(name, name, [report.ratio(label, [77.7], 80.0 if number % 2 else 70.0)])
        for number, (name, label) in enumerate(each.split(": ", 1) for each in labels)
    ]
    before, after = "# Title\n\ntext\n\n", "\n\n## Next\n\n| a | b |\n| --- | --- |\n"
    table = "| what is compared | measured | target |\n| --- | ---: | ---: |\n| old | 1.00 | 1 |"
    readme = report.updated_readme(f"{before}{table}{after}", rows)
    assert readme.startswith(before)
    assert readme.endswith(after)
    lines = readme.removeprefix(before).removesuffix(after).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [*report.README_ROWS]
    assert readme.count("77.70") == len(labels)
    assert readme.count("**77.70**") == sum(number % 2 == 0 for number in range(len(labels)))
    docs = f"| {labels[0]} | 1.00 | what it is |\n| {labels[1]} | 1.00 |\n| another: figure | 1.00 | same |\n"
    assert report.updated_docs(docs, rows).splitlines() == [
        f"| {labels[0]} | 77.70 | what it is |",
        f"| {labels[1]} | 77.70 |",
        "| another: figure | 1.00 | same |",
    ]


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], True),
        ([1.0, 1.1, 1.2], [1.1, 1.15, 1.2], False),  # each median is within the other's quartiles
        ([0.5, 1.0, 2.0], [1.4, 1.41, 1.42], False),  # the new median is within the old quartiles
        ([1.4, 1.41, 1.42], [0.5, 1.0, 2.0], False),  # the old median is within the new quartiles
        ([3.021, 3.021], [3.024, 3.024], False),  # the same as printed
        ([1.0], [1.1], False),  # a single round
        ([1.0], [1.2], True),
        ([1.0], [0.8, 0.8, 0.8], True),
    ],
)
def test_a_figure_moved_if_it_differs_by_more_than_the_spread(
    report: Any, old: list[float], new: list[float], *, moved: bool
) -> None:
    assert report.has_moved(report.spread(old), report.spread(new)) is moved


def test_the_summary_begins_with_the_missed_targets(report: Any) -> None:
    def row(**figures: tuple[float, float | None]) -> Any:
        ratios = [report.ratio(label, [value] * 2, target) for label, (value, target) in figures.items()]
        return report.Row("call", "A call", ratios)

    before = row(bad=(1.0, 2.0), good=(3.0, None), same=(1.0, None))
    text = report.summary([before], [row(bad=(3.0, 2.0), good=(1.5, 2.0), same=(1.0, None), new=(7.0, None))])
    assert text.splitlines()[:2] == ["1 of 2 targets missed:", "- call: bad: 3.00 instead of at most 2"]
    assert "\n2 of 4 figures moved by more than their spread" in text
    assert [line.split(" | ") for line in text.splitlines()[-4:]] == [
        [
            "| call: bad",
            "2, **missed**",
            "3.00 (3.00 to 3.00)",
            "1.00 (1.00 to 1.00)",
            "+200%, **more expensive** |",
        ],
        ["| call: good", "2", "1.50 (1.50 to 1.50)", "3.00 (3.00 to 3.00)", "-50%, **cheaper** |"],
        ["| call: same", "", "1.00 (1.00 to 1.00)", "1.00 (1.00 to 1.00)", "+0% |"],
        ["| call: new", "", "7.00 (7.00 to 7.00)", "", " |"],
    ]
