"""docs/migrating.md: all of the vendor's client is in its tables, and its programs run, theirs and ours."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _vendor import run_page, write_stand_ins

from cortecs_async import AsyncCortecs, errors, types
from cortecs_async.emulator import Emulator, serve_emulator

cortecs_py = pytest.importorskip("cortecs_py")
schemas = pytest.importorskip("cortecs_py.schemas")
utils = pytest.importorskip("cortecs_py.utils")
langchain = pytest.importorskip("cortecs_py.integrations.langchain")

pytestmark = pytest.mark.oracle

PAGE = Path(__file__).parent.parent / "docs" / "migrating.md"
TEXT = PAGE.read_text()
OURS = " ".join(re.findall(r"^\| `.*?` \| (.*?) \|", TEXT, re.MULTILINE))


def names_of(function: Any) -> list[str]:
    """The names of the arguments of a function."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def theirs(title: str) -> str:
    """The first cells of the table in a section: what theirs is called."""
    section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))


CLIENT, LANGCHAIN, DATA = theirs("The client"), theirs("LangChain"), theirs("Data")
KINDS = [(cortecs_py.Cortecs, CLIENT), (langchain.DedicatedLLM, LANGCHAIN)]
MADE = [
    (cortecs_py.Cortecs("id", "secret"), CLIENT),
    (langchain.DedicatedLLM(None, "model", api_key="key"), LANGCHAIN),
]


def arguments(cells: str, call: str) -> list[str] | None:
    """The arguments with which a table names a call; None where it does not."""
    found = re.search(rf"`{re.escape(call)}\(([^)]*)\)`", cells)
    return None if found is None else [each.strip("* ") for each in found[1].split(",") if each.strip("* ")]


def own_classes(module: ModuleType) -> list[type]:
    return [
        each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__
    ]


@pytest.mark.parametrize(("kind", "cells"), KINDS, ids=["Cortecs", "DedicatedLLM"])
def test_every_method_of_theirs_with_every_argument(kind: Any, cells: str) -> None:
    assert arguments(cells, kind.__name__) == names_of(kind.__init__)
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") or name in {"__enter__", "__exit__"}:
            assert arguments(cells, name) == names_of(method), name


@pytest.mark.parametrize(("made", "cells"), MADE, ids=["Cortecs", "DedicatedLLM"])
def test_every_attribute_of_theirs_and_nothing_else(made: Any, cells: str) -> None:
    assert {name for name in vars(made) if not name.startswith("_")} <= set(re.findall(r"`(\w+)`", cells))
    named = set(re.findall(r"`(\w+)[`(]", cells)) - {type(made).__name__}
    assert {name for name in named if not hasattr(made, name)} == set()


@pytest.mark.parametrize("kind", own_classes(schemas), ids=lambda kind: kind.__name__)
def test_every_data_class_with_every_field(kind: Any) -> None:
    fields = ", ".join(f"`{name}`" for name in kind.model_fields)
    assert f"`{kind.__name__}`: {fields}" in DATA
    for name, value in vars(kind).items():
        if name.startswith("_") or name in {"Config", "model_fields", "model_config"}:
            continue
        if isinstance(value, property):
            assert f"`{kind.__name__}.{name}`" in DATA
        elif isinstance(value, classmethod):
            assert arguments(DATA, f"{kind.__name__}.{name}") == names_of(getattr(kind, name))


def test_every_function_of_theirs() -> None:
    for name, function in inspect.getmembers(utils, inspect.isfunction):
        assert arguments(DATA, name) == names_of(function)


async def test_what_is_named_of_ours_is_there() -> None:
    async with AsyncCortecs("id", "secret", guard="off", journal="off") as client:
        for path in re.findall(r"`(?:\(?await )?client\.((?:\w+\.)*\w+)\(", OURS):
            found: Any = client
            for part in path.split("."):
                found = getattr(found, part)
            assert callable(found)
    for name in re.findall(r"`errors\.(\w+)`", TEXT):
        assert issubclass(getattr(errors, name), errors.CortecsError)
    for name in re.findall(r"`types\.(\w+)`", TEXT):
        assert name in vars(types)["__all__"]


# The sections whose programs other tests run.
ELSEWHERE = {
    "CrewAI": "ecosystem/test_frameworks_migrating.py",
    "Synchronous programs": "test_synchronous.py",
}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    # Theirs looks at once, and then every five seconds.
    with serve_emulator(step_seconds=0.0) as emulator:
        yield emulator


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("heading", "shows"),
    [
        ("An instance for a block of code", 'You said: "Why is the sky blue?"\n'),
        ("Batches", 'You said: "Summarize: Paper 99"\n'),
        ("Separate calls", "/v1 meta-llama/Llama-3.1-8B-Instruct\n"),
    ],
)
def test_theirs_and_ours_print_the_same(emulator: Emulator, tmp_path: Path, heading: str, shows: str) -> None:
    for done in run_page(heading, emulator, tmp_path):
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(shows)
    assert [entry.status for entry in emulator.ledger] == ["deleted", "deleted"]


@pytest.mark.sockets
def test_both_read_the_stream_until_a_ctrl_c(emulator: Emulator, tmp_path: Path) -> None:
    path = write_stand_ins(tmp_path)
    for done in run_page("A stream of events", emulator, tmp_path, path, interrupt_after="New comet"):
        assert done.stderr.endswith("KeyboardInterrupt\n")
        assert done.stdout.count("Art, finance, science, or other? New comet") >= 1
    assert [entry.status for entry in emulator.ledger] == ["deleted", "deleted"]


def test_every_program_is_run() -> None:
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    here = {"An instance for a block of code", "Batches", "Separate calls", "A stream of events"}
    with_programs = {
        each for each in headings if "```python" in TEXT.partition(f"\n## {each}\n")[2].partition("\n## ")[0]
    }
    assert with_programs == here | ELSEWHERE.keys()
    assert all((Path(__file__).parent / name).exists() for name in ELSEWHERE.values())
