"""The public modules users import classes from, independent of the private modules that define them.

A class shows its public module in tracebacks, `repr` and pickles. `cortecs_async` and `cortecs_async.types`
load a class on first use, so that a program without a client does not load the client's modules.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from types import FrameType, FunctionType
from typing import Any, TypeVar, get_type_hints

_PACKAGE = "cortecs_async"

C = TypeVar("C", bound=type[Any])

# The names in the lazy public modules, and the private modules that define them.
LAZY = {
    _PACKAGE: {
        "APIStatusError": "_errors",
        "AsyncCortecs": "_client.client",
        "ConfigurationError": "_errors",
        "CortecsError": "_errors",
        "Credentials": "_secrets",
        "Instance": "_api.domain",
        "InstanceHandle": "_lease.handle",
        "InstanceLease": "_lease.lease",
        "InvalidArgumentError": "_errors",
        "LifecycleError": "_errors",
        "PollPolicy": "_poll_policy",
        "Progress": "_api.domain",
        "RequestError": "_errors",
        "RetryPolicy": "_config",
        "Secret": "_secrets",
        "TeardownError": "_errors",
    },
    f"{_PACKAGE}.types": {
        "AffectedInstances": "_api.domain",
        "Balance": "_api.catalog",
        "BatchPlan": "_batch.plan",
        "BatchProgress": "_batch.report",
        "BatchReport": "_batch.report",
        "BatchTransport": "_batch.sender",
        "BillingInterval": "_api.validation",
        "Calls": "_client.calls",
        "CostGroup": "_client.costs",
        "CostOutcome": "_recovery.cost_lines",
        "CostReport": "_client.costs",
        "CostRow": "_client.costs",
        "Duration": "_durations",
        "Finding": "_client.diagnosis",
        "HardwareConfig": "_api.catalog",
        "HardwareType": "_api.catalog",
        "InitProgress": "_api.domain",
        "Instance": "_api.domain",
        "InstanceArgs": "_api.domain",
        "InstanceHandle": "_lease.handle",
        "InstanceStatus": "_api.domain",
        "LeaseCost": "_recovery.cost_lines",
        "LeaseInfo": "_telemetry",
        "Listing": "_api.listing",
        "Model": "_api.catalog",
        "ModelPreview": "_api.previews",
        "OnExit": "_lease.options",
        "OnLoss": "_lease.options",
        "OpenAIKwargs": "_lease.endpoint",
        "Orphan": "_recovery.sweep",
        "OrphanState": "_recovery.sweep",
        "Owner": "_recovery.owners",
        "OwnerKind": "_recovery.owners",
        "PhaseEnd": "_telemetry",
        "Progress": "_api.domain",
        "ProtectionMode": "_config",
        "Ready": "_lease.options",
        "Receipt": "_lease.pricing",
        "RequestRetry": "_telemetry",
        "Response": "_client.calls",
        "Results": "_lease.mapping",
        "SharedInfo": "_sharing.info",
        "SharedLease": "_sharing.lease",
        "SharedState": "_sharing.info",
        "Telemetry": "_telemetry",
        "TransportName": "_config",
        "UnreadableEntry": "_api.listing",
        "WorkerStatus": "_api.domain",
    },
}


def lazy_getattr(public_module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a public module."""

    def load(name: str) -> Any:
        if name not in LAZY.get(public_module, {}):
            raise _missing(public_module, name, sys._getframe(1))  # noqa: SLF001  (the only way to it)
        value = getattr(importlib.import_module(f"{_PACKAGE}.{LAZY[public_module][name]}"), name)
        publish_loaded()
        setattr(sys.modules[public_module], name, value)
        return value

    return load


def _missing(public_module: str, name: str, caller: FrameType) -> Exception:
    """Return the error for a name that a public module does not have, to raise in the caller's code."""
    from ._hint_tables import IMPORTS  # noqa: PLC0415  (only for an error)
    from ._hints import find_hint  # noqa: PLC0415  (only for an error)

    hint = find_hint(IMPORTS, name)
    for module, names in LAZY.items():
        if module != public_module and name in names:
            hint = f"it is in {module}"
    if name.endswith("Error") and hasattr(importlib.import_module(f"{_PACKAGE}._errors"), name):
        hint = f"it is in {_PACKAGE}.errors"
    # `from ... import` drops the message of an AttributeError; `hasattr`, `mock.patch` and `pickle` need one.
    if hint and _is_from_import(caller):
        return ImportError(f"cannot import {name!r} from {public_module!r}: {hint}", name=public_module)
    explained = f": {hint}" if hint else ""
    return AttributeError(f"module {public_module!r} has no attribute {name!r}{explained}", name=name)


def _is_from_import(frame: FrameType) -> bool:
    """Return whether the code in a frame is executing `from ... import ...`."""
    from opcode import opname  # noqa: PLC0415  (only for an error)

    return opname[frame.f_code.co_code[frame.f_lasti]] == "IMPORT_FROM"


def shown_as_client(mixin: C) -> C:
    """Make a mixin's methods show `AsyncCortecs`, the class users know, in error messages."""
    for name, value in vars(mixin).items():
        if isinstance(value, FunctionType):
            value.__qualname__ = f"AsyncCortecs.{name}"
    return mixin


def publish_loaded() -> None:
    """Publish the classes in `LAZY` whose private modules are loaded."""
    for public_module, names in LAZY.items():
        for name, private_module in names.items():
            module = sys.modules.get(f"{_PACKAGE}.{private_module}")
            value = getattr(module, name, None)
            if isinstance(value, type):
                publish([value], public_module)


def publish(classes: Iterable[type], public_module: str) -> None:
    """Make classes show the public module they are imported from, or `cortecs_async` if it has them."""
    for cls in classes:
        if cls.__module__.startswith(f"{_PACKAGE}._"):
            # Resolved now, because `typing.get_type_hints` looks for the names in the module a class shows.
            if own := vars(cls).get("__annotations__"):
                hints = get_type_hints(cls, include_extras=True)
                cls.__annotations__ = {name: hints[name] for name in own}
            cls.__module__ = _PACKAGE if cls.__name__ in LAZY[_PACKAGE] else public_module
