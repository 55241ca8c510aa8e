"""An async SDK for cortecs.ai: no instance outlives the code that started it.

All errors are in `cortecs_async.errors`, and all data classes in `cortecs_async.types`.
"""

from typing import TYPE_CHECKING

from ._public import lazy_getattr as _lazy_getattr
from ._version import __version__

if TYPE_CHECKING:
    from ._api.domain import Instance, Progress
    from ._client.client import AsyncCortecs
    from ._config import RetryPolicy
    from ._errors import (
        APIStatusError,
        ConfigurationError,
        CortecsError,
        InvalidArgumentError,
        LifecycleError,
        RequestError,
        TeardownError,
    )
    from ._lease.handle import InstanceHandle
    from ._lease.lease import InstanceLease
    from ._poll_policy import PollPolicy
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

if not TYPE_CHECKING:  # type checkers would accept every name
    __getattr__ = _lazy_getattr(__name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
