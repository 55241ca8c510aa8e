"""docs/migrating.md: all of the vendor's client is in its tables, and its programs run, theirs and ours."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _examples import run_examples

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


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    # Theirs looks at once, and then every five seconds.
    with serve_emulator(step_seconds=0.0) as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.mark.sockets
def test_the_programs_run(emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(PAGE)
    assert emulator.existing == ()
    assert [entry.num_workers for entry in emulator.ledger] == [1, 1, 2, 2, 2]
    shown = capsys.readouterr().out
    assert shown.count("Why is the sky blue?") == 2
    assert len(re.findall(r"/v1 meta-llama/Llama-3\.1-8B-Instruct$", shown, re.MULTILINE)) == 3
