"""Every public class, method and function has an example in its docstring, and every example runs.

An example is a section `Example:` of plain, indented Python. It runs as the body of an async function, on an
emulator, with these names:

- `client`: an `AsyncCortecs` with the credentials of the emulator
- `emulator`: that emulator
- `inst`: a running lease; `handle`: its handle, which is also `inst` in the examples of `InstanceHandle`
- `instance_id`: the id of an instance that was started without a lease
- `AsyncCortecs()`: makes more clients of the emulator
- `asyncio`, `errors`, `types`, and the names of `cortecs_async`, `cortecs_async.errors` and `.types`

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
import textwrap
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from _polls import poll_often
from _public_api import public_names, public_objects
from _virtual_time import VirtualTimeLoop
from _world import MODEL, World

import cortecs_async
from cortecs_async import AsyncCortecs, errors, types
from cortecs_async.emulator import Emulator

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
})  # fmt: skip

# Packages that an example imports, directly or not.
PACKAGES = {
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

# ---- Not done yet: delete a name when its docstring has an example. Empty sets go away together. ----

# Errors.

TODO_ERRORS = frozenset({
    "APIStatusError",
    "ConfigurationError",
    "CortecsError",
    "InvalidArgumentError",
    "LifecycleError",
    "RequestError",
    "TeardownError",
    "errors.AmbiguousStartError",
    "errors.AuthenticationError",
    "errors.BadRequestError",
    "errors.BatchFileError",
    "errors.BatchWriteError",
    "errors.ClientClosedError",
    "errors.ConflictError",
    "errors.DecodeError",
    "errors.EndpointError",
    "errors.GuardError",
    "errors.InstanceGoneError",
    "errors.InstanceLostError",
    "errors.InsufficientBalanceError",
    "errors.JournalError",
    "errors.LeaseExpiredError",
    "errors.MissingCredentialsError",
    "errors.NotFoundError",
    "errors.PermissionDeniedError",
    "errors.PriceUnknownError",
    "errors.RateLimitError",
    "errors.RequestTimeoutError",
    "errors.ServerError",
    "errors.ServiceUnavailableError",
    "errors.StartFailedError",
    "errors.StartTimeoutError",
    "errors.TransportError",
    "errors.UnprocessableEntityError",
})  # fmt: skip


# The emulator.

TODO_EMULATOR = frozenset({
    "ServedEmulator",
    "emulator.Emulator",
    "emulator.Emulator.add_entry",
    "emulator.Emulator.add_fault",
    "emulator.Emulator.clear_entries",
    "emulator.Emulator.clear_faults",
    "emulator.Emulator.delete_instance",
    "emulator.Emulator.env",
    "emulator.Emulator.http_client",
    "emulator.Emulator.restart_instance",
    "emulator.Emulator.rotate_secret",
    "emulator.Emulator.start_instance",
    "emulator.Emulator.stop_instance",
    "emulator.Emulator.transport",
    "emulator.Fault",
    "emulator.Fault.affects",
    "emulator.LedgerEntry",
    "emulator.RequestRecord",
    "emulator.run_emulator",
    "emulator.serve_emulator",
})  # fmt: skip


# The integrations, and signals.

TODO_INTEGRATIONS = frozenset({
    "integrations.dask.Failure",
    "integrations.dask.FanOut",
    "integrations.dask.FanOut.to_list",
    "integrations.dask.Outcome",
    "integrations.dask.fan_out",
    "integrations.jsonl.AnswerFile",
    "integrations.jsonl.AnswerFile.unanswered",
    "integrations.jsonl.AnswerFile.write",
    "integrations.jsonl.answer",
    "integrations.notebook.ProgressDisplay",
    "integrations.opentelemetry.OpenTelemetry",
    "integrations.opentelemetry.OpenTelemetry.begin",
    "integrations.opentelemetry.OpenTelemetry.end",
    "integrations.opentelemetry.OpenTelemetry.retry",
    "integrations.ray.fan_out",
    "integrations.rich.ProvisioningBar",
    "integrations.web.BackgroundInstance",
    "integrations.web.BackgroundInstance.handle",
    "integrations.web.BackgroundInstance.report",
    "integrations.web.BackgroundInstance.wait",
    "integrations.web.NotReadyError",
    "integrations.web.SharedInstance",
    "integrations.web.SharedInstance.handle",
    "integrations.web.SharedInstance.report",
    "integrations.web.SharedInstance.wait",
    "signals.cancel_on_sigterm",
})  # fmt: skip


# Data.

TODO_TYPES = frozenset({
    "types.BatchPlan",
    "types.BatchProgress",
    "types.BatchReport",
    "types.BatchReport.attach",
    "types.BatchReport.of",
    "types.LeaseInfo",
    "types.Orphan",
    "types.Owner",
    "types.PhaseEnd",
    "types.RequestRetry",
    "types.Telemetry",
    "types.Telemetry.begin",
    "types.Telemetry.end",
    "types.Telemetry.retry",
})  # fmt: skip


# ----

TODO = TODO_ERRORS | TODO_EMULATOR | TODO_INTEGRATIONS | TODO_TYPES


def test_everything_public_has_an_example() -> None:
    needed = {name for name, value in OBJECTS.items() if not isinstance(value, property)}
    assert needed - EXAMPLES.keys() == TODO


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


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - ON_SOCKETS))
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
