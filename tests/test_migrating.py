"""docs/migrating.md: all of the vendor's client is in its tables, and its programs run, theirs and ours."""

from __future__ import annotations

import asyncio
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

PAGE = Path(__file__).parent.parent / "docs" / "migrating.md"
TEXT = PAGE.read_text()
# The first cells of all tables: what theirs is called.
THEIRS = " ".join(re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE))
OURS = " ".join(re.findall(r"^\| `.*?` \| (.*?) \|", TEXT, re.MULTILINE))


def names_of(function: Any) -> list[str]:
    """The names of the arguments of a function."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def listed(call: str) -> list[str] | None:
    """The arguments with which the tables name a call; None where they do not."""
    found = re.search(rf"`{re.escape(call)}\(([^)]*)\)`", THEIRS)
    return None if found is None else [each.strip("* ") for each in found[1].split(",") if each.strip("* ")]


def own_classes(module: ModuleType) -> list[type]:
    return [
        each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__
    ]


@pytest.mark.parametrize("kind", [cortecs_py.Cortecs, langchain.DedicatedLLM], ids=lambda kind: kind.__name__)
def test_every_method_of_theirs_with_every_argument(kind: Any) -> None:
    assert listed(kind.__name__) == names_of(kind.__init__)
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") or name in {"__enter__", "__exit__"}:
            assert listed(f"{kind.__name__}.{name}") == names_of(method), name


@pytest.mark.parametrize(
    "made",
    [
        cortecs_py.Cortecs("id", "secret"),
        langchain.DedicatedLLM(None, "model", api_key="key"),
    ],
    ids=lambda made: type(made).__name__,
)
def test_every_attribute_of_theirs(made: Any) -> None:
    for name in vars(made):
        if not name.startswith("_"):
            assert f"`{type(made).__name__}.{name}`" in THEIRS


@pytest.mark.parametrize("kind", own_classes(schemas), ids=lambda kind: kind.__name__)
def test_every_data_class_with_every_field(kind: Any) -> None:
    fields = ", ".join(f"`{name}`" for name in kind.model_fields)
    assert f"`{kind.__name__}`: {fields}" in THEIRS
    for name, value in vars(kind).items():
        if name.startswith("_") or name in {"Config", "model_fields", "model_config"}:
            continue
        if isinstance(value, property):
            assert f"`{kind.__name__}.{name}`" in THEIRS
        elif isinstance(value, classmethod):
            assert listed(f"{kind.__name__}.{name}") == names_of(getattr(kind, name))


def test_every_function_of_theirs() -> None:
    for name, function in inspect.getmembers(utils, inspect.isfunction):
        assert listed(name) == names_of(function)


def test_nothing_else_is_said_to_be_theirs() -> None:
    for owner, name in re.findall(r"`(Cortecs|DedicatedLLM)\.(\w+)", THEIRS):
        made: Any = (
            cortecs_py.Cortecs("id", "secret")
            if owner == "Cortecs"
            else langchain.DedicatedLLM(None, "model", api_key="key")
        )
        assert hasattr(made, name)


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
        assert name in types.__all__


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with asyncio.Runner() as runner:
        # Theirs looks at once, and then every five seconds.
        served = serve_emulator(step_seconds=0.0)
        emulator = runner.run(served.__aenter__())
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator
        runner.run(served.__aexit__(None, None, None))


@pytest.mark.sockets
def test_the_programs_run(emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(PAGE)
    assert emulator.existing == ()
    assert [entry.num_workers for entry in emulator.ledger] == [1, 1, 2, 2, 2]
    shown = capsys.readouterr().out
    assert shown.count("Why is the sky blue?") == 2
    assert len(re.findall(r"/v1 meta-llama/Llama-3\.1-8B-Instruct$", shown, re.MULTILINE)) == 3
