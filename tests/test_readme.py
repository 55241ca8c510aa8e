"""Every Python example of the README and of the pages in docs/ runs, in order, on an emulator."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest
from _examples import run_examples

from cortecs_async.emulator import Emulator, serve_emulator

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SCALE = ROOT / "docs" / "scale.md"
BATCH = ROOT / "docs" / "batch.md"
CLIENT = ROOT / "docs" / "client.md"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with asyncio.Runner() as runner:
        served = serve_emulator(step_seconds=0.01)
        emulator = runner.run(served.__aenter__())
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator
        runner.run(served.__aexit__(None, None, None))


def test_every_example_runs(emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(README)
    assert emulator.billing == ()
    shown = capsys.readouterr().out
    assert "Why is the sky blue?" in shown
    assert shown.count("running") >= 1


def test_every_example_of_scale_runs(emulator: Emulator) -> None:
    pytest.importorskip("httpx_aiohttp")
    run_examples(SCALE)
    assert emulator.existing == ()
    assert len(emulator.ledger) == 20


def test_every_example_of_client_runs(
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(certifi.where(), "company-ca.pem")
    run_examples(CLIENT)
    assert emulator.existing == ()
    shown = capsys.readouterr().out
    assert "200 emulator-request-" in shown
    assert "dict_keys(['base_url', 'api_key'])" in shown


def test_every_example_of_batch_runs(
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(BATCH)
    assert emulator.existing == ()
    shown = capsys.readouterr().out
    assert "2 0 0.03 EUR" in shown
    assert shown.count("Why is grass green?") == 2


@pytest.mark.parametrize(
    "document", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        page = document.parent / path if path else document
        assert page.exists(), target
        assert not heading or heading in headings(page), target


def headings(page: Path) -> set[str]:
    """The headings of a page, as links spell them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_headline_is_that_of_the_last_benchmark() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    measured = {
        f"{row['name']}: {each['label']}": f"{each['value']['median']:.2f}"
        for row in rows
        for each in row["ratios"]
    }
    shown = re.findall(r"^\| ([a-z]+: [^|]+?) \| ([0-9.]+) \|", README.read_text(), re.MULTILINE)
    assert len(shown) >= 8
    assert {label: value for label, value in shown if measured.get(label) != value} == {}
