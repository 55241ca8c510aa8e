"""Run the example programs of the vendor's repository, unmodified, against the emulator.

`ecosystem/test_frameworks_migrating.py` runs the one that needs CrewAI.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from _vendor import check_out, run, serve, write_stand_ins

from cortecs_async.emulator import Emulator, Fault

pytest.importorskip("cortecs_py")
pytest.importorskip("langchain_text_splitters")

pytestmark = [pytest.mark.oracle, pytest.mark.sockets]

MODEL = "cortecs--phi-4-FP8-Dynamic"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the examples."""
    return check_out(tmp_path_factory.mktemp("repository")) / "examples"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with serve() as emulator:
        yield emulator


def run_program(
    program: Path, emulator: Emulator, folder: Path, **options: str
) -> subprocess.CompletedProcess[str]:
    return run(program, emulator, folder, write_stand_ins(folder), **options)


def statuses(emulator: Emulator) -> list[tuple[str, str]]:
    return [(entry.model_id, entry.status) for entry in emulator.ledger]


def test_every_program_is_run(programs: Path) -> None:
    assert sorted(path.name for path in programs.iterdir()) == [
        "__init__.py",
        "dynamic_provision.py",
        "dynamic_provision_langchain.py",
        "example_crew",
        "reddit.py",
        "summarize.py",
        "translate.py",
    ]


@pytest.mark.parametrize(
    ("name", "status"), [("dynamic_provision", "stopped"), ("dynamic_provision_langchain", "deleted")]
)
def test_dynamic_provision(
    programs: Path, emulator: Emulator, tmp_path: Path, name: str, status: str
) -> None:
    done = run_program(programs / f"{name}.py", emulator, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Write a joke about LLMs." in done.stdout
    assert statuses(emulator) == [(MODEL, status)]


def test_summarize(programs: Path, emulator: Emulator, tmp_path: Path) -> None:
    done = run_program(programs / "summarize.py", emulator, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [n for n in range(20) if f"Paper {n}." not in done.stdout] == []
    assert statuses(emulator) == [(MODEL, "deleted")]


def test_translate(programs: Path, emulator: Emulator, tmp_path: Path) -> None:
    done = run_program(programs / "translate.py", emulator, tmp_path)
    assert done.returncode == 0, done.stderr
    translated = (tmp_path / "translated_bible.txt").read_text()
    # It translates 100 chunks of at most 200 words, here a verse each.
    assert [n for n in range(60) if f"Verse {n}:" not in translated] == []
    assert statuses(emulator) == [(MODEL, "deleted")]


def test_reddit(programs: Path, emulator: Emulator, tmp_path: Path) -> None:
    # It replies to the comments for which the model answers with these two words.
    message = {"role": "assistant", "content": "Taylor Swift"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "any", "choices": [choice]}
    json_type = {"Content-Type": "application/json"}
    emulator.add_fault(
        Fault("status", route="chat", text="Eras Tour", status=200, body=json.dumps(body), headers=json_type)
    )
    done = run_program(programs / "reddit.py", emulator, tmp_path, interrupt_after="New comet")
    assert "KeyboardInterrupt" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["r/pics Eras Tour", "I like eras tour."]
    assert lines[2].startswith("---> This is the cortecs_async emulator")
    titles = [line for line in lines if line.startswith("r/pics")]
    assert titles[:3] == ["r/pics Eras Tour", "r/pics Bond prices", "r/pics New comet"]
    assert statuses(emulator) == [(MODEL, "deleted")]
