"""Run the steps of docs/quickstart.md, and compare their output with the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from _command_line import environment, serving
from _console import follow, sections, typed
from _processes import until
from attrs import evolve

pytestmark = pytest.mark.sockets

QUICKSTART = Path(__file__).parent.parent / "docs" / "quickstart.md"
SECTIONS = sections(QUICKSTART)
# Sections that cannot run as they are: they install, keep running in a terminal, or need an account.
EXCLUDED = {"# Quickstart", "Start the emulator", "Use your account", "Next"}


@pytest.mark.parametrize("title", sorted(SECTIONS.keys() - EXCLUDED))
def test_each_section_prints_what_the_page_shows(title: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    # The page uses six seconds. Two give the same output.
    steps = [evolve(step, text=re.sub("(?<=max_lifetime=)6", "2", step.text)) for step in SECTIONS[title]]
    # Only the output of "Show progress" depends on how long a start takes.
    with serving(step_seconds=1.0 if title == "Show progress" else 0.01) as emulator:
        env = environment(emulator, tmp_path)

        def sleep(seconds: float) -> None:
            """Wait until the reaper is done, and fail after the time that the page allows."""
            anyio.run(until, lambda: not emulator.existing, seconds)

        assert follow(steps, tmp_path, env, sleep) == sum(step.kind == "text" for step in steps) > 0
        assert emulator.existing == ()
        assert len(emulator.ledger) >= 1


def test_the_emulator_prints_the_lines_of_the_page(tmp_path: Path) -> None:
    command, shown = SECTIONS["Start the emulator"]
    assert command.text == "python -m cortecs_async emulator\n"
    with subprocess.Popen(
        [sys.executable, "-m", "cortecs_async", "emulator", "--port=0"],
        env=environment(None, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in shown.text.splitlines()]
        finally:
            process.terminate()
    port = lines[2].rpartition(":")[2].partition("/")[0]
    assert "".join(lines).replace(port, "8808") == shown.text


def test_doctor_finds_no_problem(tmp_path: Path) -> None:
    (command,) = SECTIONS["Use your account"]
    with serving() as emulator:
        shown = typed(command.text, tmp_path, environment(emulator, tmp_path))
    findings = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert len(findings) == 7
    assert all(line.startswith("✓") for line in findings)
