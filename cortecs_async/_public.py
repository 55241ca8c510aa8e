"""The public modules that users import each class from, independent of the private module that defines it.

A class shows its public module in tracebacks, `repr` and pickles. `cortecs_async` and `cortecs_async.types`
load a class on first use, so that a program without a client does not load the client's modules.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

_PACKAGE = "cortecs_async"

# The names of the lazy public modules, and the private modules that define them.
LAZY = {
    _PACKAGE: {
        "APIStatusError": "_errors",
        "AsyncCortecs": "_client.client",
        "ConfigurationError": "_errors",
        "CortecsError": "_errors",
        "Credentials": "_secrets",
        "Instance": "_api.domain",
        "InstanceHandle": "_lease.endpoint",
        "InstanceLease": "_lease.lease",
        "InvalidArgumentError": "_errors",
        "LifecycleError": "_errors",
        "PollPolicy": "_config",
        "Progress": "_api.domain",
        "RequestError": "_errors",
        "RetryPolicy": "_config",
        "Secret": "_secrets",
        "TeardownError": "_errors",
    },
    f"{_PACKAGE}.types": {
        "AffectedInstances": "_api.domain",
        "Balance": "_api.domain",
        "BatchPlan": "_batch.plan",
        "BatchProgress": "_batch.report",
        "BatchReport": "_batch.report",
        "Calls": "_client.with_options",
        "Finding": "_client.diagnosis",
        "HardwareConfig": "_api.domain",
        "HardwareType": "_api.domain",
        "InitProgress": "_api.domain",
        "Instance": "_api.domain",
        "InstanceArgs": "_api.domain",
        "InstanceHandle": "_lease.endpoint",
        "InstanceStatus": "_api.domain",
        "LeaseInfo": "_telemetry",
        "Listing": "_api.listing",
        "Model": "_api.domain",
        "ModelPreview": "_api.domain",
        "OpenAIKwargs": "_lease.endpoint",
        "Orphan": "_recovery.sweep",
        "Owner": "_recovery.owners",
        "PhaseEnd": "_telemetry",
        "Progress": "_api.domain",
        "Receipt": "_lease.pricing",
        "RequestRetry": "_telemetry",
        "Response": "_client.with_options",
        "Results": "_lease.mapping",
        "Telemetry": "_telemetry",
        "UnreadableEntry": "_api.listing",
        "WorkerStatus": "_api.domain",
    },
}


def lazy_getattr(public_module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a public module."""

    def load(name: str) -> Any:
        if name not in LAZY[public_module]:
            raise AttributeError(f"module {public_module!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{_PACKAGE}.{LAZY[public_module][name]}"), name)
        publish_loaded()
        setattr(sys.modules[public_module], name, value)
        return value

    return load


def publish_loaded() -> None:
    """Publish the classes of `LAZY` whose private modules are loaded."""
    for public_module, names in LAZY.items():
        for name, private_module in names.items():
            module = sys.modules.get(f"{_PACKAGE}.{private_module}")
            value = getattr(module, name, None)
            if isinstance(value, type):
                publish([value], public_module)


def publish(classes: Iterable[type], public_module: str) -> None:
    """Let classes show the public module that they are imported from; `cortecs_async`, if it has them."""
    for cls in classes:
        if cls.__module__.startswith(f"{_PACKAGE}._"):
            # Resolved now: `typing.get_type_hints` looks for the names in the module that a class shows.
            if own := vars(cls).get("__annotations__"):
                hints = get_type_hints(cls, include_extras=True)
                cls.__annotations__ = {name: hints[name] for name in own}
            cls.__module__ = _PACKAGE if cls.__name__ in LAZY[_PACKAGE] else public_module
