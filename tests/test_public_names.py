"""Test that a class shows the module that users import it from, never a private one."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cortecs_async
from cortecs_async import AsyncCortecs, Credentials, PollPolicy, RetryPolicy, errors, signals, types
from cortecs_async._public import LAZY


def public_classes() -> Iterator[tuple[str, type]]:
    """Yield the classes that users can import, each with the module that it should show."""
    seen: set[Any] = set()
    for module in (cortecs_async, errors, types, signals):
        names = getattr(module, "__all__", [*vars(module)])
        for name in names:
            value = getattr(module, name)
            if isinstance(value, type) and value not in seen and is_ours(module, value):
                seen.add(value)
                yield f"{module.__name__}.{name}", value


def is_ours(module: ModuleType, value: type) -> bool:
    return module is not signals or value.__module__ == module.__name__


CLASSES = dict(public_classes())


def test_the_classes_are_found() -> None:
    # Or the tests below would pass for want of classes.
    assert len(CLASSES) > 60
    assert {"cortecs_async.AsyncCortecs", "cortecs_async.errors.BadRequestError"} <= set(CLASSES)
    assert {"cortecs_async.types.Telemetry", "cortecs_async.signals.cancel_on_sigterm"} <= set(CLASSES)


def test_a_class_shows_where_users_import_it_from() -> None:
    for name, value in CLASSES.items():
        assert repr(value) in {f"<class '{name}'>", f"<enum '{name.rpartition('.')[2]}'>"}
        assert f"{value.__module__}.{value.__qualname__}" == name


def test_a_class_pickles_and_copies() -> None:
    for value in CLASSES.values():
        assert pickle.loads(pickle.dumps(value)) is value  # noqa: S301
        assert copy.deepcopy(value) is value


def test_the_annotations_of_a_class_can_be_resolved() -> None:
    for value in CLASSES.values():
        # An attribute of a mixin of AsyncCortecs has a type that is imported for type checkers only.
        if value is not AsyncCortecs:
            hints = typing.get_type_hints(value).values()
            assert not any(isinstance(each, (str, typing.ForwardRef)) for each in hints), value


@pytest.mark.parametrize("value", [RetryPolicy, PollPolicy, Credentials])
def test_the_annotations_of_a_constructor_can_be_resolved(value: type) -> None:
    assert inspect.signature(value, eval_str=True).parameters


@pytest.mark.parametrize("module", ["cortecs_async", "cortecs_async.types"])
def test_the_table_has_every_name_of_a_lazy_module(module: str) -> None:
    assert {*LAZY[module]} == {*sys.modules[module].__all__} - {"__version__"}


def test_a_traceback_shows_the_public_name() -> None:
    lines = traceback.format_exception_only(errors.ConfigurationError("missing client_id"))
    assert lines == ["cortecs_async.ConfigurationError: missing client_id\n"]
    error = errors.BadRequestError("refused", method="GET", path="/", status_code=400)
    assert traceback.format_exception_only(error) == ["cortecs_async.errors.BadRequestError: refused\n"]


@pytest.mark.parametrize("value", [Credentials, RetryPolicy, AsyncCortecs])
def test_hovers_and_help_show_it_too(value: type) -> None:
    assert value.__module__ == "cortecs_async"


# Each use of a client loads some of the classes. A batch and a share begin with these two modules.
PROGRAM = """
import asyncio
import contextlib
import sys
from cortecs_async import AsyncCortecs, _errors

async def main():
    async with AsyncCortecs(client_id="a", client_secret="b") as client:
        client.instance("org/name")
        client.with_options()
        await client.costs()
        await client.owners()
        for checks_only in (client.sweep(timeout=-1), client.diagnose()):
            with contextlib.suppress(_errors.InvalidArgumentError, TimeoutError):
                async with asyncio.timeout(0):
                    await checks_only

asyncio.run(main())
import cortecs_async._batch.setup
import cortecs_async._client.shared_start
from cortecs_async._public import LAZY
for public, names in LAZY.items():
    for name, private in names.items():
        value = getattr(sys.modules["cortecs_async." + private], name)
        if isinstance(value, type):
            print(value.__module__)
print(_errors.BadRequestError.__module__)
assert not {"cortecs_async.types", "cortecs_async.errors"} & set(sys.modules)
"""


@pytest.mark.smoke
def test_importing_the_public_module_first_is_unnecessary(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "CORTECS_STATE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    shown = set(done.stdout.split())
    assert shown == {"cortecs_async", "cortecs_async.types", "cortecs_async.errors"}
