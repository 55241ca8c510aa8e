"""Every public class, method and function has an example in its docstring, and every example runs.

An example is a section `Example:` of plain, indented Python. It runs as the body of an async function, on an
emulator, with these names:

- `client`: an `AsyncCortecs` with the credentials of the emulator
- `emulator`: that emulator
- `inst`: a running lease; `handle`: its handle, which is also `inst` in the examples of `InstanceHandle`
- `instance_id`: the id of an instance that was started without a lease
- `AsyncCortecs()`: makes more clients of the emulator
- `asyncio`, `errors`, `types`, and the names of `cortecs_async`, `cortecs_async.errors` and `.types`
- the names of the module that the example belongs to
- `fan_out` and `cluster`: in the integrations for Ray, Dask and files, a stand-in that runs chunks in this
  process, because the clusters may not be installed. tests/ecosystem runs the real ones

The working directory has `requests.jsonl` and `prompts.txt` for batches. An example that calls `asyncio.run`
runs as a program instead.

Most examples run on virtual time. Those in `SOCKETS` run on a real server, with its address and credentials
in the environment.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import pickle
import signal
import sys
import textwrap
from collections.abc import Mapping
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from _polls import poll_often
from _processes import Program, until
from _public_api import public_modules, public_names, public_objects
from _virtual_time import VirtualTimeLoop
from _world import MODEL, World

import cortecs_async
from cortecs_async import AsyncCortecs, InstanceHandle, errors, types
from cortecs_async.emulator import Emulator
from cortecs_async.integrations import dask, ray, web
from cortecs_async.integrations._fan_out import FanOut
from cortecs_async.integrations._worker import Result, run_chunk, submit_chunk

# Examples that need a real server.
SOCKETS = frozenset({
    "InstanceHandle.langchain",
    "InstanceHandle.openai",
    "InstanceHandle.openai_kwargs",
    "InstanceHandle.pydantic_ai",
    "InstanceLease.langchain",
    "InstanceLease.openai",
    "InstanceLease.openai_kwargs",
    "InstanceLease.pydantic_ai",
    "ServedEmulator",
    "emulator.serve_emulator",
    "integrations.jsonl.AnswerFile",
    "integrations.jsonl.AnswerFile.write",
    "integrations.jsonl.answer",
    "integrations.web.SharedInstance",
    "AsyncCortecs.release_shared",
    "AsyncCortecs.shared",
    "types.SharedLease",
    "types.SharedLease.keep",
    "types.SharedLease.langchain",
    "types.SharedLease.openai",
    "types.SharedLease.openai_kwargs",
    "types.SharedLease.pydantic_ai",
    "types.SharedLease.touch",
})  # fmt: skip

# Examples that run until they are stopped, each in a process of its own.
PROGRAMS = frozenset({"emulator.run_emulator"})

# Packages that an example imports, directly or not.
PACKAGES = {
    "AnswerFile": "openai",
    "AnswerFile.write": "openai",
    "answer": "openai",
    "langchain": "langchain_openai",
    "openai": "openai",
    "openai_kwargs": "openai",
    "pydantic_ai": "pydantic_ai",
}

OBJECTS = public_objects()


def example_of(docstring: str | None) -> str | None:
    """Return the code of the section `Example:` of a docstring."""
    _, found, rest = inspect.cleandoc(docstring or "").partition("\nExample:\n")
    if not found:
        return None
    code: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        code.append(line)
    return textwrap.dedent("\n".join(code)).strip() + "\n"


EXAMPLES = {name: code for name, value in OBJECTS.items() if (code := example_of(value.__doc__))}
ON_SOCKETS = {name for name, code in EXAMPLES.items() if name in SOCKETS or "asyncio.run(" in code}
ERRORS = {**vars(errors), **vars(web)}
MODULES = sorted((each.removeprefix("cortecs_async.") for each in public_modules()), key=len, reverse=True)


def test_everything_public_has_an_example() -> None:
    needed = {name for name, value in OBJECTS.items() if not isinstance(value, property)}
    assert needed - EXAMPLES.keys() == set()


def _attributes(error: type[BaseException]) -> set[str]:
    parameters = (
        inspect.signature(vars(each)["__init__"]).parameters
        for each in error.__mro__
        if "__init__" in vars(each) and each.__module__.startswith("cortecs_async")
    )
    return {*dir(error), *chain.from_iterable(parameters)}


def unknown_attributes(code: str) -> set[str]:
    """Return attributes that an example reads of a caught error, and that its class does not have.

    Most examples do not make the service fail, so their `except` blocks do not run.
    """
    return {
        f"{caught.type.id}.{each.attr}"
        for caught in ast.walk(ast.parse(code))
        if isinstance(caught, ast.ExceptHandler) and isinstance(caught.type, ast.Name)
        for each in ast.walk(caught)
        if isinstance(each, ast.Attribute)
        and isinstance(each.value, ast.Name)
        and each.value.id == caught.name
        if each.attr not in _attributes(ERRORS[caught.type.id])
    }


def test_except_blocks_read_existing_attributes() -> None:
    assert {name for name, code in EXAMPLES.items() if unknown_attributes(code)} == set()


def test_a_missing_attribute_is_found() -> None:
    code = (
        "try:\n    f()\nexcept AmbiguousStartError as error:\n    print(error.candidate, error.candidates)\n"
    )
    assert unknown_attributes(code) == {"AmbiguousStartError.candidate"}


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the examples once, on asyncio."""
    is_real = request.node.get_closest_marker("sockets")
    return "asyncio", {} if is_real else {"loop_factory": VirtualTimeLoop}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each example in a directory of its own, with input for batches."""
    monkeypatch.chdir(tmp_path)
    body = {"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    request = {"custom_id": "sky", "method": "POST", "url": "/v1/chat/completions", "body": body}
    Path("requests.jsonl").write_text(json.dumps(request) + "\n")
    Path("prompts.txt").write_text("Why is the sky blue?\nWhy is grass green?\n")


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - ON_SOCKETS - PROGRAMS))
@pytest.mark.usefixtures("batch_without_threads", "journals")
async def test_an_example_runs(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        world(stop_seconds=2.0) as (emulator, client),
        httpx.AsyncClient(transport=emulator.transport()) as http,
    ):
        defaults: Mapping[str, Any] = {"http_client": http, "guard": "off", "journal": "off"}

        class Client(AsyncCortecs):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**defaults, **options})

        for variable, value in emulator.env().items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(cortecs_async, "AsyncCortecs", Client)
        _stand_in_for_ipython(monkeypatch)
        await check_example(name, emulator, client, client_type=Client)


@pytest.mark.sockets
@pytest.mark.parametrize("name", sorted(ON_SOCKETS))
async def test_an_example_runs_on_a_server(
    name: str, served: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll_often(monkeypatch)
    if package := PACKAGES.get(name.rpartition(".")[2]):
        pytest.importorskip(package)
    async with AsyncCortecs() as client:
        await check_example(name, served, client, client_type=AsyncCortecs)


@pytest.mark.sockets
@pytest.mark.parametrize("name", sorted(PROGRAMS))
async def test_an_example_that_runs_until_it_is_stopped(name: str, tmp_path: Path) -> None:
    with Program(EXAMPLES[name], env={"PYTHONUNBUFFERED": "1"}, log=tmp_path / "output") as program:
        await until(lambda: "http://" in program.output or program.has_ended)
        program.send(signal.SIGTERM)
        await until(lambda: program.has_ended)
        assert program.process.returncode == 0, program.output


async def check_example(name: str, emulator: Emulator, client: AsyncCortecs, *, client_type: type) -> None:
    """Run an example, and check that it releases what it starts."""
    code = EXAMPLES[name]
    free = _free_names(code)
    names: dict[str, Any] = {
        **{
            each: value
            for module in (errors, types, cortecs_async)
            for each, value in public_names(module.__name__).items()
        },
        **_names_of_module(name),
        "__name__": "__main__",
        "asyncio": asyncio,
        "client": client,
        "emulator": emulator,
        "errors": errors,
        "types": types,
        "AsyncCortecs": client_type,
    }
    async with AsyncExitStack() as stack:
        if not free.isdisjoint({"inst", "handle"}):
            lease = await stack.enter_async_context(client.instance(MODEL))
            names["handle"] = lease.handle
            names["inst"] = lease.handle if name.startswith("InstanceHandle") else lease
        if "instance_id" in free:
            names["instance_id"] = emulator.start_instance(MODEL)
        given = set(emulator.billing)
        if "asyncio.run(" in code:
            await asyncio.to_thread(exec, compile(code, name, "exec"), names)
        else:
            await _run(code, name, names)
        assert set(emulator.billing) - given == set(), "the example leaves an instance running"


async def _run(code: str, name: str, names: dict[str, Any]) -> None:
    result = eval(compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307
    if inspect.isawaitable(result):
        await result


def _names_of_module(name: str) -> Mapping[str, Any]:
    """Return the public names of the module that an example belongs to."""
    if name == "ServedEmulator":
        return public_names("cortecs_async.emulator")
    for module in MODULES:
        if name.startswith(f"{module}."):
            names = public_names(f"cortecs_async.{module}")
            if module in {"integrations.dask", "integrations.ray", "integrations.jsonl"}:
                return {**names, "fan_out": _fan_out, "cluster": SimpleNamespace()}
            return names
    return {}


def _fan_out(*args: Any, **options: Any) -> FanOut[Any]:
    """Run the chunks of a fan-out in this process. Takes the arguments of Ray's and of Dask's `fan_out`."""
    real = dask.fan_out if len(args) == 4 else ray.fan_out
    bound = inspect.signature(real).bind(*args, **options)
    bound.apply_defaults()
    work, items, leases = args[:3]

    async def submit(inst: InstanceHandle, chunk: list[Any]) -> list[Result]:
        async def run(part: list[Any]) -> Any:
            return await asyncio.to_thread(run_chunk, pickle.dumps, work, inst, part)

        return await submit_chunk(run, pickle.dumps, chunk)

    numbers = ("chunk_size", "chunks_per_instance", "max_attempts")
    return FanOut(submit, items, leases, **{each: bound.arguments[each] for each in numbers})


def _stand_in_for_ipython(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `ProgressDisplay` work without IPython. tests/ecosystem/test_notebook.py has the real one."""
    module: Any = ModuleType("IPython.display")
    module.display = lambda shown, *, display_id: SimpleNamespace(update=lambda shown: None)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)


def _free_names(code: str) -> set[str]:
    """Return the names that an example uses and does not define."""
    found = [each for each in ast.walk(ast.parse(code)) if isinstance(each, ast.Name)]
    stored = {each.id for each in found if not isinstance(each.ctx, ast.Load)}
    return {each.id for each in found} - stored


@pytest.mark.parametrize(
    ("docstring", "code"),
    [
        ("Do it.", None),
        (
            "Do it.\n\n    Example:\n        one()\n\n        if a:\n            two()\n    ",
            "one()\n\nif a:\n    two()\n",
        ),
        (
            "Do it.\n\n    Example:\n        one()\n\n    Raises:\n        ValueError: if not.\n    ",
            "one()\n",
        ),
    ],
)
def test_the_section_is_found(docstring: str, code: str | None) -> None:
    assert example_of(docstring) == code
