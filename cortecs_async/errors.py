"""All errors in this package: `from cortecs_async import errors`, then `except errors.RateLimitError`."""

from typing import TYPE_CHECKING

from ._errors import AmbiguousStartError as AmbiguousStartError
from ._errors import APIStatusError as APIStatusError
from ._errors import AuthenticationError as AuthenticationError
from ._errors import BadRequestError as BadRequestError
from ._errors import BatchFileError as BatchFileError
from ._errors import BatchWriteError as BatchWriteError
from ._errors import CapacityTimeoutError as CapacityTimeoutError
from ._errors import ClientClosedError as ClientClosedError
from ._errors import ConfigurationError as ConfigurationError
from ._errors import ConflictError as ConflictError
from ._errors import CortecsError as CortecsError
from ._errors import DecodeError as DecodeError
from ._errors import EndpointError as EndpointError
from ._errors import GuardError as GuardError
from ._errors import InstanceGoneError as InstanceGoneError
from ._errors import InstanceLostError as InstanceLostError
from ._errors import InsufficientBalanceError as InsufficientBalanceError
from ._errors import InvalidArgumentError as InvalidArgumentError
from ._errors import JournalError as JournalError
from ._errors import LeaseExpiredError as LeaseExpiredError
from ._errors import LeaseIdleError as LeaseIdleError
from ._errors import LifecycleError as LifecycleError
from ._errors import MissingCredentialsError as MissingCredentialsError
from ._errors import NotFoundError as NotFoundError
from ._errors import PermissionDeniedError as PermissionDeniedError
from ._errors import PriceUnknownError as PriceUnknownError
from ._errors import RateLimitError as RateLimitError
from ._errors import RequestError as RequestError
from ._errors import RequestTimeoutError as RequestTimeoutError
from ._errors import ServerError as ServerError
from ._errors import ServiceUnavailableError as ServiceUnavailableError
from ._errors import StartFailedError as StartFailedError
from ._errors import StartTimeoutError as StartTimeoutError
from ._errors import TeardownError as TeardownError
from ._errors import TransportError as TransportError
from ._errors import UnprocessableEntityError as UnprocessableEntityError
from ._public import lazy_getattr as _lazy_getattr

if not TYPE_CHECKING:  # type checkers read the imports
    __all__ = [name for name in globals() if name.endswith("Error")]
    __getattr__ = _lazy_getattr(__name__)  # for its error messages
