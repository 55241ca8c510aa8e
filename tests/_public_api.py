"""Find everything public: modules, their classes and functions, and the classes' public methods."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType
from typing import Any, get_origin, is_typeddict

import cortecs_async
from cortecs_async._api.instances import Instances
from cortecs_async._api.resources import HardwareTypes, Models, User
from cortecs_async._api.waiting import InstanceWatch
from cortecs_async.emulator._server import ServedEmulator

# Classes that cannot be imported. Methods and attributes return their objects.
RETURNED = {HardwareTypes, InstanceWatch, Instances, Models, ServedEmulator, User}

# Methods called only by other modules in the package.
_STATE = {"next_report", "note_use", "report_id", "state_after"}
INNER = {
    "BackgroundInstance": _STATE,
    "Emulator": {"exchange"},
    "HardwareTypes": {"list_available_once", "list_once"},
    "InstanceLease": {"into_handle"},
    "Instances": {
        "find_or_start",
        "get_confirmed",
        "list_now",
        "note_started",
        "read_all",
        "read_one",
        "restart_once",
        "start_once",
    },
    "SharedInstance": _STATE,
}


def public_modules() -> Iterator[str]:
    """Yield the names of the public modules."""
    yield "cortecs_async"
    for each in pkgutil.walk_packages(cortecs_async.__path__, "cortecs_async."):
        # docs/testing.md documents the hooks and fixtures of the plugin.
        if "._" not in each.name and not each.name.endswith(".pytest_plugin"):
            yield each.name


def public_names(module: str) -> dict[str, Any]:
    """Return the public names of a module with their objects."""
    found = importlib.import_module(module)
    offered = getattr(found, "__all__", None) or [
        name
        for name, value in vars(found).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return {name: getattr(found, name) for name in offered if not name.startswith("__")}


def public_objects() -> dict[str, Any]:
    """Return the public classes, functions, methods and properties, by names such as `AsyncCortecs.acquire`.

    Names of modules other than `cortecs_async` are kept: `errors.NotFoundError`. Annotations (type aliases,
    literals, protocols, typed dicts) are left out.
    """
    found: dict[str, Any] = {}
    # Other modules repeat names from `cortecs_async`, and `integrations.dask` repeats `integrations.ray`.
    seen: set[int] = set()
    for module in public_modules():
        for name, value in public_names(module).items():
            if _is_documented(value) and id(value) not in seen:
                seen.add(id(value))
                found |= _with_members(f"{module}.{name}".removeprefix("cortecs_async."), value)
    for each in RETURNED:
        found |= _with_members(each.__name__, each)
    return found


def _is_documented(value: Any) -> bool:
    is_annotation = is_typeddict(value) or getattr(value, "_is_protocol", False) or get_origin(value)
    return not is_annotation and (inspect.isclass(value) or inspect.isroutine(value))


def _with_members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if not inspect.isclass(value):
        return
    inner = INNER.get(value.__name__, set())
    for member, _ in inspect.getmembers_static(value):
        if not member.startswith("_") and member not in inner:
            owner = next(each for each in value.__mro__ if member in vars(each))
            found = vars(owner)[member]
            kinds = (property, classmethod, staticmethod, FunctionType)
            if owner.__module__.startswith("cortecs_async") and isinstance(found, kinds):
                yield f"{name}.{member}", found
