"""All errors of the package. Each is a `CortecsError`."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from ._public import publish


class CortecsError(Exception):
    """Base class of all errors of this package. Errors keep all their attributes when pickled or copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls `cls(*args)`, which fails for classes with keyword-only parameters.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[CortecsError], args: tuple[Any, ...], state: dict[str, Any]) -> CortecsError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(CortecsError, ValueError):
    """The client is configured wrongly: missing credentials, an unsafe base URL, an invalid policy."""


class MissingCredentialsError(ConfigurationError):
    """There is no client id, or no client secret. No request was sent.

    Attributes:
        missing: What is missing: `client_id`, `client_secret`, or both.
        profile: The profile in which it is missing; empty if none is used.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), profile: str = "") -> None:
        super().__init__(message)
        self.missing = missing
        self.profile = profile


class InvalidArgumentError(CortecsError, ValueError):
    """An argument is invalid. No request was sent."""


class ClientClosedError(CortecsError, RuntimeError):
    """The client was used after `aclose()` or after its `async with` block."""


class JournalError(CortecsError, OSError):
    """The journal cannot be written, and `journal="required"` is set: nothing was started.

    Also raised by `sweep`, `orphans` and `owners` if the state directory cannot be used.
    """


class GuardError(CortecsError, RuntimeError):
    """`guard="required"` is set, and the reaper process cannot be started or cannot reach the service.

    Nothing was started.
    """


class PriceUnknownError(CortecsError, ValueError):
    """`max_cost` needs a price, but the service returns no usable price for this hardware."""


class RequestError(CortecsError):
    """A request failed.

    Attributes:
        method: HTTP method of the request.
        path: Path below the API base URL.
        attempts: Number of attempts, including the first.
        outcome_unknown: True if the service may have processed the request, but no response confirms it. Such
            a `start` may have started a billed instance: check `client.instances.list()`.
    """

    def __init__(
        self, message: str, *, method: str, path: str, attempts: int = 1, outcome_unknown: bool = False
    ) -> None:
        super().__init__(message)
        self.method = method
        self.path = path
        self.attempts = attempts
        self.outcome_unknown = outcome_unknown


class TransportError(RequestError):
    """No response arrived: no connection, a lost connection, or a redirect to another host."""


class RequestTimeoutError(TransportError, TimeoutError):
    """No response arrived in time. Also a `TimeoutError`."""


class DecodeError(RequestError):
    """A response is not JSON, or does not have the documented shape."""


class APIStatusError(RequestError):
    """The service returned an error status.

    Attributes:
        status_code: HTTP status.
        body: Beginning of the response body, at most 300 characters, with secrets replaced by `***`.
        request_id: The response's `x-request-id`, if it has one.
        retry_after: Seconds that the service asked to wait, if it did.
    """

    hint: ClassVar[str] = ""

    @property
    def has_json_body(self) -> bool:
        """Whether the body looks like JSON, as in errors of the service; proxies usually return HTML."""
        return self.body.lstrip().startswith("{")

    def __init__(
        self,
        message: str,
        *,
        method: str,
        path: str,
        status_code: int,
        body: str = "",
        request_id: str | None = None,
        retry_after: float | None = None,
        attempts: int = 1,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(
            message, method=method, path=path, attempts=attempts, outcome_unknown=outcome_unknown
        )
        self.status_code = status_code
        self.body = body
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(APIStatusError):
    """400: invalid arguments, an unknown instance, or an instance with the wrong status."""

    hint = "Check the model id, hardware type and instance id, and that the instance's status allows this."


class AuthenticationError(APIStatusError):
    """401: the credentials or the access token were rejected."""

    hint = "Check client_id and client_secret (CORTECS_CLIENT_ID, CORTECS_CLIENT_SECRET)."


class InsufficientBalanceError(APIStatusError):
    """402: the balance of the account is too low. Not in the published reference."""

    hint = "Top up your account. To see the balance, call client.user.balance()."


class PermissionDeniedError(APIStatusError):
    """403: the account is not allowed to do this. Not in the published reference."""

    hint = "Check what this account is allowed to do."


class NotFoundError(APIStatusError):
    """404: no such instance or model. The published reference has 400 for this: expect both."""

    hint = "Check the id. To see what exists, call client.instances.list() or client.models.list()."


class ConflictError(APIStatusError):
    """409: the status of the instance does not allow this. Not in the published reference."""

    hint = "Check the status of the instance with client.instances.get()."


class UnprocessableEntityError(APIStatusError):
    """422: the service rejects the values of the request. Not in the published reference."""

    hint = "Check the values of the arguments."


class RateLimitError(APIStatusError):
    """429: too many requests. Raised after retries with back-off. Not in the published reference."""

    hint = "Send fewer requests, or wait for retry_after seconds."


class ServerError(APIStatusError):
    """5xx: the service failed. Raised after retries, where those are safe."""

    hint = "The service failed: try again later."


class ServiceUnavailableError(ServerError):
    """503: no free capacity for this hardware, or the service is down. Not in the published reference."""

    hint = (
        "There is no free capacity for this hardware, or the service is down. "
        "To see what is available, call client.hardware_types.list_available()."
    )


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}


def error_class_for(status_code: int) -> type[APIStatusError]:
    """Return the class for an HTTP status: `ServerError` for other 5xx, `APIStatusError` for the rest."""
    return STATUS_ERRORS.get(status_code, ServerError if status_code >= 500 else APIStatusError)


class LifecycleError(CortecsError):
    """Starting, using or releasing an instance failed.

    Attributes:
        instance_id: Id of the instance; empty if it is not known.
    """

    def __init__(self, message: str, *, instance_id: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id


class StartFailedError(LifecycleError):
    """The instance reached a status from which it cannot become usable."""


class StartTimeoutError(LifecycleError, TimeoutError):
    """The instance was not usable in time, or made no progress for too long. Also a `TimeoutError`."""


class InstanceGoneError(LifecycleError):
    """The instance does not exist, or no longer exists."""


class TeardownError(LifecycleError):
    """The instance could not be stopped and deleted in time, and **may still be billed**."""


class InstanceLostError(LifecycleError):
    """The instance stopped or disappeared during the block.

    Either the block was cancelled, or an error of a request to the endpoint ended it first; that error is the
    `__cause__`.
    """


class LeaseExpiredError(LifecycleError, TimeoutError):
    """The lease reached `max_lifetime` or `max_cost`. Its block was cancelled. Also a `TimeoutError`."""


class AmbiguousStartError(CortecsError):
    """The response to a start was lost, and several new instances match it. None was touched.

    Attributes:
        candidates: Ids of the instances. One of them may come from this start **and be billed**.
    """

    def __init__(self, message: str, *, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class BatchFileError(InvalidArgumentError):
    """The input or output file of a batch is invalid.

    Nothing was started, unless the input was changed or removed while the batch was running.

    Attributes:
        path: The file.
        line: Number of the line, from 1; None for the whole file.
    """

    def __init__(self, message: str, *, path: str, line: int | None = None) -> None:
        super().__init__(f"{path}: {message}" if line is None else f"{path}, line {line}: {message}")
        self.path = path
        self.line = line


class BatchWriteError(CortecsError, OSError):
    """The output of a batch can no longer be written. It contains every answer that was counted.

    If another program removed or changed the output, the answers that could still be read are saved in
    another file.

    Attributes:
        path: The file with the answers. If a temporary file failed, its directory or an empty text.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class EndpointError(LifecycleError):
    """The instance is running, but its endpoint cannot be used.

    Its URL is not safe to send a key to, it rejects the key, or it has stopped answering.
    """


publish(
    (each for each in list(vars().values()) if isinstance(each, type) and issubclass(each, CortecsError)),
    "cortecs_async.errors",
)


def add_note(error: BaseException, note: str) -> None:
    """Add a note of this package to an exception of anyone, whose attributes may raise anything."""
    with contextlib.suppress(Exception):
        error.add_note(f"cortecs_async: {note}")
