"""An asyncio-native SDK for cortecs.ai: no instance outlives the code that asked for it.

The rest of the errors is in `cortecs_async.errors`, the rest of the data classes in `cortecs_async.types`.
"""

from ._client import AsyncCortecs
from ._config import Credentials, PollPolicy, RetryPolicy, Secret
from ._domain import Instance, Progress
from ._errors import (
    APIStatusError,
    ConfigurationError,
    CortecsError,
    InvalidArgumentError,
    LifecycleError,
    RequestError,
    TeardownError,
)
from ._handle import InstanceHandle
from ._lease import InstanceLease
from ._version import __version__

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
