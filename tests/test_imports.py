"""Test which modules an import of the package loads, and which names it has."""

from __future__ import annotations

import importlib
import importlib.resources
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cortecs_async

AT_MOST_NAMES = 22

# Optional, slow to load, or only there for the tests.
UNWANTED = [
    "trio",
    "starlette",
    "uvicorn",
    "rich",
    "click",
    "openai",
    "opentelemetry",
    "pydantic",
    "requests",
    "aiohttp",
    "httpx2",
    "httpx_aiohttp",
    "pytest",
    "hypothesis",
]

PUBLIC_MODULES = sorted(
    info.name for info in pkgutil.iter_modules(cortecs_async.__path__) if not info.name.startswith("_")
)
LOCATION = str(Path(cortecs_async.__file__).parent.parent)

# Hides packages, and notes which modules import them. Comparing sys.modules would not do: httpx itself
# imports trio, click and rich if they are installed.
PROGRAM = """
import json, sys
location, absent, statement = json.loads(sys.argv[1])
sys.path.insert(0, location)
asked = []

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in absent:
            return None
        frame = sys._getframe(1)
        while "importlib" in frame.f_globals["__name__"]:
            frame = frame.f_back
        asked.append(frame.f_globals["__name__"] + " imports " + name)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
try:
    exec(statement)
except ModuleNotFoundError as error:
    asked.append(f"needs {error.name}")
print(json.dumps([sorted(sys.modules), asked]))
"""


def run(statement: str, absent: list[str]) -> tuple[set[str], list[str]]:
    """Return the modules that `statement` loads without the `absent` packages, and which import those."""
    # -I: neither the working directory nor the machine's variables, only what is installed with this
    # interpreter; and the very package that the other tests run against.
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, json.dumps([LOCATION, absent, statement])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded, asked = json.loads(done.stdout)
    return set(loaded), asked


@pytest.mark.parametrize(
    "module", ["cortecs_async", "cortecs_async.errors", "cortecs_async.types", "cortecs_async.signals"]
)
@pytest.mark.sockets
def test_the_import_needs_nothing_optional(module: str) -> None:
    loaded, asked = run(f"import {module}", UNWANTED)
    assert module in loaded
    assert [line for line in asked if line.startswith(("cortecs_async", "needs"))] == []


@pytest.mark.sockets
def test_what_a_client_is_made_of_is_loaded_with_the_first_client() -> None:
    heavy = {"httpx", "asyncio", "anyio", "typing_extensions"}
    imported, _ = run("from cortecs_async import AsyncCortecs, RetryPolicy, CortecsError", [])
    assert heavy.isdisjoint(imported)
    assert "cattrs" not in imported
    made, _ = run("from cortecs_async import AsyncCortecs; client = AsyncCortecs(); del client", [])
    assert heavy <= made
    # Only decodes unusual responses: see `_api/decoders.py`.
    assert "cattrs" not in made


@pytest.mark.sockets
def test_nor_does_a_client() -> None:
    _, asked = run("from cortecs_async import AsyncCortecs; client = AsyncCortecs(); del client", UNWANTED)
    assert [line for line in asked if line.startswith(("cortecs_async", "needs"))] == []


@pytest.mark.parametrize("module", ["cortecs_async.types", "cortecs_async._cli"])
@pytest.mark.sockets
def test_what_needs_no_client_loads_no_http(module: str) -> None:
    """Keep `--help` and shell completion quick."""
    loaded, _ = run(f"import {module}", [])
    assert module in loaded
    assert {"httpx", "aiohttp", "openai", "textual", "cortecs_async._lease.lease"}.isdisjoint(loaded)


@pytest.mark.sockets
def test_a_name_that_is_loaded_later_is_there_all_the_same() -> None:
    loaded, _ = run("import cortecs_async; cortecs_async.InstanceLease; cortecs_async.Instance", [])
    assert "cortecs_async._lease.lease" in loaded
    everything, _ = run("from cortecs_async import *; InstanceHandle, Progress", [])
    assert "cortecs_async._lease.handle" in everything
    assert set(cortecs_async.__all__) <= set(dir(cortecs_async))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(cortecs_async, "nonsense")  # noqa: B009  (type checkers see that it is not there)


@pytest.mark.sockets
def test_who_asks_is_seen() -> None:
    _, asked = run("import trio", UNWANTED)
    assert asked == ["__main__ imports trio", "needs trio"]


@pytest.mark.parametrize("module", PUBLIC_MODULES)
@pytest.mark.sockets
def test_every_public_module_imports_alone(module: str) -> None:
    loaded, asked = run(f"import cortecs_async.{module}", [])
    assert f"cortecs_async.{module}" in loaded
    assert asked == []


def test_public_modules_are_found() -> None:
    # Otherwise the test above could pass without any module.
    assert {"errors", "types"} <= set(PUBLIC_MODULES)


def test_the_public_surface_is_small() -> None:
    assert len(cortecs_async.__all__) <= AT_MOST_NAMES


@pytest.mark.parametrize("module", ["cortecs_async", "cortecs_async.types"])
def test_every_name_is_there_once(module: str) -> None:
    facade = importlib.import_module(module)
    assert [name for name in facade.__all__ if not hasattr(facade, name)] == []
    assert len(set(facade.__all__)) == len(facade.__all__)


def test_the_package_is_typed() -> None:
    # PEP 561: without this file type checkers ignore an installed package's annotations.
    assert importlib.resources.files("cortecs_async").joinpath("py.typed").is_file()
