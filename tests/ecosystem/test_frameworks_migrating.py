"""The programs with CrewAI: those of docs/migrating.md, and the vendor's example, unmodified."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _sections import blocks
from _vendor import check_out, download, run, serve

from cortecs_async.emulator import Emulator, Fault

pytestmark = pytest.mark.sockets

# The last version with `DedicatedCrew`.
WHEEL = "cortecs_py-0.1.0-py3-none-any.whl"
SHA256 = "a81b8db54f53a0a13180b8d9bb9324869425da65658ffc1eedbee5b6ceacfc50"

MODEL = "cortecs/phi-4-FP8-Dynamic"

PROGRAMS = blocks("migrating.md", "CrewAI")
DEDICATED, DECORATED = 0, 2  # theirs; each is followed by ours


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with serve() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The older version of the vendor's client. Python imports it from the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    download("cortecs-py==0.1.0", SHA256, folder)
    return str(folder / WHEEL)


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def crew(emulator: Emulator, tmp_path: Path) -> Run:
    """Return a function that runs a program with CrewAI's telemetry off."""

    def run_crew(program: Path | str, *path: str) -> subprocess.CompletedProcess[str]:
        return run(
            program,
            emulator,
            tmp_path,
            *path,
            CREWAI_DISABLE_TELEMETRY="true",
            CREWAI_TRACING_ENABLED="false",
            MODEL=f"openai/{MODEL}",
            OPENAI_MODEL_NAME=f"openai/{MODEL}",
        )

    return run_crew


@pytest.mark.parametrize(
    "number", range(len(PROGRAMS)), ids=["dedicated", "ours", "decorated", "ours decorated"]
)
def test_the_programs_of_the_page(
    emulator: Emulator, crew: Run, wheel: str, tmp_path: Path, number: int
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[number])
    done = crew(program, *([wheel] if number == DEDICATED else []))
    assert done.returncode == 0, done.stderr
    assert "Review Metropolis." in done.stdout
    assert [entry.status for entry in emulator.ledger] == ["deleted"]


@pytest.mark.parametrize("number", [DEDICATED, DECORATED], ids=["dedicated", "decorated"])
def test_theirs_leave_a_running_instance_if_a_task_fails(
    emulator: Emulator, crew: Run, wheel: str, tmp_path: Path, number: int
) -> None:
    emulator.add_fault(Fault("status", route="chat", status=400, times=None))
    program = tmp_path / "program.py"
    program.write_text(PROGRAMS[number])
    assert crew(program, *([wheel] if number == DEDICATED else [])).returncode == 1
    assert len(emulator.billing) == 1


def test_the_decorator_of_the_older_version_starts_nothing(
    emulator: Emulator, crew: Run, wheel: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from cortecs_py.integrations.crewai import DedicatedCrewBase\n"
        "class Reviews: pass\n"
        "DedicatedCrewBase(Reviews)()\n"
    )
    assert "unexpected keyword argument 'model_id'" in crew(program, wheel).stderr
    assert emulator.ledger == ()


def test_the_vendors_example_runs_as_published(emulator: Emulator, crew: Run, tmp_path: Path) -> None:
    sources = check_out(tmp_path / "repository") / "examples" / "example_crew" / "src"
    done = crew("example_crew.main", str(sources))
    assert done.returncode == 0, done.stderr
    assert f"Model {MODEL} stopped and deleted." in done.stdout
    # Its second task reviews the answer to its first.
    report = (tmp_path / "report.md").read_text()
    assert "expand each topic into a full section" in report
    assert "thorough research about AI LLMs" in report
    assert [entry.status for entry in emulator.ledger] == ["deleted"]
