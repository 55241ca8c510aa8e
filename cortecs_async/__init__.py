"""An async SDK for cortecs.ai: no instance outlives the code that started it.

All errors are in `cortecs_async.errors`, all data classes in `cortecs_async.types`.
"""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._api.domain import Instance, Progress
    from ._client.client import AsyncCortecs
    from ._config import PollPolicy, RetryPolicy
    from ._errors import (
        APIStatusError,
        ConfigurationError,
        CortecsError,
        InvalidArgumentError,
        LifecycleError,
        RequestError,
        TeardownError,
    )
    from ._lease.endpoint import InstanceHandle
    from ._lease.lease import InstanceLease
    from ._secrets import Credentials, Secret

__all__ = [
    "APIStatusError",
    "AsyncCortecs",
    "ConfigurationError",
    "CortecsError",
    "Credentials",
    "Instance",
    "InstanceHandle",
    "InstanceLease",
    "InvalidArgumentError",
    "LifecycleError",
    "PollPolicy",
    "Progress",
    "RequestError",
    "RetryPolicy",
    "Secret",
    "TeardownError",
    "__version__",
]

# Imported on first use: pytest loads the plugin in every run, and must not import all of a client for it.
_LAZY = {
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
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
