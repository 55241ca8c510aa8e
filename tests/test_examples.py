"""Run the programs in docs/examples on an emulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from _command_line import serving
from _examples import run_examples

from cortecs_async.emulator import Emulator

pytestmark = pytest.mark.sockets

DOCS = Path(__file__).parent.parent / "docs"
PROGRAMS = sorted((DOCS / "examples").glob("*.py"))


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Serve an emulator whose streams pause until three chats have begun, which then must be parallel."""

    async def wait_for_three_chats(_seconds: float) -> None:
        while sum(record.route == "chat" for record in served.requests) < 3:  # noqa: ASYNC110
            await anyio.sleep(0.01)

    with serving(sleep=wait_for_three_chats) as served:
        yield served


@pytest.fixture
def run(emulator: Emulator, tmp_path: Path) -> Callable[..., str]:
    """Run an example in an empty directory, check that it leaves nothing, and return its output."""

    def run_example(name: str, *arguments: str) -> str:
        pytest.importorskip("openai")
        before = sorted(tmp_path.iterdir())
        done = subprocess.run(
            # Warnings are errors, as in all tests.
            [sys.executable, "-W", "error", str(DOCS / "examples" / name), *arguments],
            cwd=tmp_path,
            env={**os.environ, **emulator.env()},
            capture_output=True,
            text=True,
            timeout=120,  # the first import of openai compiles it
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert emulator.existing == ()
        assert len(emulator.ledger) == 1
        assert sorted(tmp_path.iterdir()) == before
        return done.stdout

    return run_example


def test_basics(run: Callable[..., str]) -> None:
    shown = run("basics.py")
    assert shown.startswith("The balance is 1000.00 EUR.\nNVIDIA_H100_1 is free, for 0.0")
    assert re.search(r"Starting meta-llama/Llama-3.1-8B-Instruct:\n(  +\d+%  \w.*\n)+", shown)
    assert "100%" in shown
    assert 'no model was run. You said: "Why is the sky blue?"\n' in shown
    assert re.search(r"It took \d+ s, billed as \d+ minutes?, about \d+\.\d\d EUR\.\n\Z", shown)


def test_structured_output(run: Callable[..., str]) -> None:
    assert run("structured_output.py").splitlines() == [
        "get_weather('What do I wear in Vienna today?') gives 'sunny, 24 degrees'",
        "{",
        '  "reason": "get_weather said: \\"sunny, 24 degrees\\"",',
        '  "jacket": "none",',
        '  "umbrella": true',
        "}",
    ]


def test_batch_jobs(run: Callable[..., str], emulator: Emulator) -> None:
    first, second, third, answered, cost = run("batch_jobs.py").splitlines()
    assert first == "order-1: positive, Arrived a day early, and it works."
    assert second == "order-2: positive, The box was empty."
    assert third.startswith("order-3: positive, ")
    assert re.fullmatch(r"3 of 3 answered, \d+ tokens written", answered)
    assert re.fullmatch(r"It cost about \d+\.\d+ EUR\.", cost)
    assert sum(record.route == "chat" and record.status == 200 for record in emulator.requests) >= 3


def test_batch_jobs_keeps_its_files_in_a_folder(
    run: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    run("batch_jobs.py", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "requests.jsonl"]
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 3


def test_multi_agents(run: Callable[..., str]) -> None:
    shown = run("multi_agents.py")
    wrote = re.findall(r"^(.+) wrote \d+ words$", shown, re.MULTILINE)
    assert sorted(wrote[:2]) == ["Researcher (for maintainers)", "Researcher (for users)"]
    assert wrote[2:] == ["Critic", "Editor"]
    assert 'You said: "Question: Should a small library support two HTTP clients?' in shown
    assert "Note for maintainers:\nThis is the cortecs_async emulator" in shown
    assert "Critique:\nThis is the cortecs_async emulator" in shown


def test_realtime_streams(run: Callable[..., str]) -> None:
    shown = run("realtime_streams.py")
    printed = re.findall(r"^(\S.*\S) +\| (.*)$", shown, re.MULTILINE)
    sky, grass, iliad = "Why is the sky blue?", "Why is grass green?", "Recite the Iliad."
    pieces = {
        question: [piece for asked, piece in printed if asked == question] for question in (sky, grass, iliad)
    }
    assert (len(pieces[sky]), len(pieces[grass])) == (20, 20)
    assert pieces[iliad] == ["This", " is", " the", " cortecs_async", " emulator", "(that will do)"]
    assert shown.endswith("\nRecite the Iliad.\nThis is the cortecs_async emulator\n")


def test_the_examples_of_emulated_model_run(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    for name, value in emulator.env().items():
        monkeypatch.setenv(name, value)
    run_examples(DOCS / "emulated-model.md")
    assert emulator.existing == ()


def test_the_page_shows_every_program() -> None:
    page = (DOCS / "examples.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"literalinclude\} examples/(\w+\.py)", page)) == [
        path.name for path in PROGRAMS
    ]
