"""All errors in this package. Each is a `CortecsError`."""

from .._public import publish
from .base import BatchFileError as BatchFileError
from .base import BatchWriteError as BatchWriteError
from .base import ClientClosedError as ClientClosedError
from .base import ConfigurationError as ConfigurationError
from .base import CortecsError as CortecsError
from .base import GuardError as GuardError
from .base import InvalidArgumentError as InvalidArgumentError
from .base import JournalError as JournalError
from .base import MissingCredentialsError as MissingCredentialsError
from .base import PriceUnknownError as PriceUnknownError
from .base import add_note as add_note
from .lifecycle import AmbiguousStartError as AmbiguousStartError
from .lifecycle import CapacityTimeoutError as CapacityTimeoutError
from .lifecycle import EndpointError as EndpointError
from .lifecycle import InstanceGoneError as InstanceGoneError
from .lifecycle import InstanceLostError as InstanceLostError
from .lifecycle import LeaseExpiredError as LeaseExpiredError
from .lifecycle import LeaseIdleError as LeaseIdleError
from .lifecycle import LifecycleError as LifecycleError
from .lifecycle import StartFailedError as StartFailedError
from .lifecycle import StartTimeoutError as StartTimeoutError
from .lifecycle import TeardownError as TeardownError
from .requests import STATUS_ERRORS as STATUS_ERRORS
from .requests import APIStatusError as APIStatusError
from .requests import AuthenticationError as AuthenticationError
from .requests import BadRequestError as BadRequestError
from .requests import ConflictError as ConflictError
from .requests import DecodeError as DecodeError
from .requests import InsufficientBalanceError as InsufficientBalanceError
from .requests import NotFoundError as NotFoundError
from .requests import PermissionDeniedError as PermissionDeniedError
from .requests import RateLimitError as RateLimitError
from .requests import RequestError as RequestError
from .requests import RequestTimeoutError as RequestTimeoutError
from .requests import ServerError as ServerError
from .requests import ServiceUnavailableError as ServiceUnavailableError
from .requests import TransportError as TransportError
from .requests import UnprocessableEntityError as UnprocessableEntityError
from .requests import error_class_for as error_class_for

publish(
    (each for each in list(vars().values()) if isinstance(each, type) and issubclass(each, CortecsError)),
    "cortecs_async.errors",
)
