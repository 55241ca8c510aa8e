"""The exception tree. Everything that this package raises on purpose is a `CortecsError`."""

from __future__ import annotations

from typing import Any, ClassVar

from ._public import publish


class CortecsError(Exception):
    """Base of every error of this package. Errors pickle and copy with all their attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default rebuilds with `cls(*args)`, which keyword-only parameters refuse.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[CortecsError], args: tuple[Any, ...], state: dict[str, Any]) -> CortecsError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(CortecsError, ValueError):
    """The client cannot work as it is set up: missing credentials, an unsafe base URL, a bad policy."""


class InvalidArgumentError(CortecsError, ValueError):
    """An argument is refused before any request is sent."""


class ClientClosedError(CortecsError, RuntimeError):
    """The client was used after `aclose()` or after its `async with` block."""


class JournalError(CortecsError, OSError):
    """The journal cannot be written, and `journal="required"` was asked for: nothing was started."""


class GuardError(CortecsError, RuntimeError):
    """There is no reaper process, and `guard="required"` was asked for: nothing was started."""


class PriceUnknownError(CortecsError, ValueError):
    """`max_cost` needs a price, and the service gives none that can be read for this hardware."""


class RequestError(CortecsError):
    """A request did not give a usable answer.

    Attributes:
        method: HTTP method of the request.
        path: Path below the API base URL.
        attempts: How often it was sent, the first time included.
        outcome_unknown: True when the service may have done what was asked although no answer says so.
            A `start` in this state may have started a billed instance: `client.instances.list()` tells.
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
    """No answer arrived: not connected, cut off, or redirected to where credentials must not go."""


class RequestTimeoutError(TransportError, TimeoutError):
    """No answer arrived in time. Also a `TimeoutError`."""


class DecodeError(RequestError):
    """An answer arrived that is not JSON or not of the documented shape."""


class APIStatusError(RequestError):
    """The service answered with an error status.

    Attributes:
        status_code: HTTP status.
        body: Excerpt of the answer's text with secrets blanked out, at most 300 characters.
        request_id: The answer's `x-request-id`, where there is one.
        retry_after: Seconds that the service asked to wait, where it did.
    """

    hint: ClassVar[str] = ""

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
    """400: refused arguments, an unknown instance, or an instance in the wrong state."""

    hint = "Check the model id, hardware type and instance id, and that the instance's status allows this."


class AuthenticationError(APIStatusError):
    """401: the credentials or the access token were refused."""

    hint = "Check client_id and client_secret (CORTECS_CLIENT_ID, CORTECS_CLIENT_SECRET)."


class InsufficientBalanceError(APIStatusError):
    """402: the account's balance does not cover this. Not in the published reference."""

    hint = "Top up the account; client.user.balance() shows what is left."


class PermissionDeniedError(APIStatusError):
    """403: the account may not do this. Not in the published reference."""

    hint = "Check what this account is allowed to do."


class NotFoundError(APIStatusError):
    """404: no such instance or model. The published reference gives 400 for this: expect both."""

    hint = "Check the id; client.instances.list() and client.models.list() show what there is."


class ConflictError(APIStatusError):
    """409: the instance's present state does not allow this. Not in the published reference."""

    hint = "Read the instance's status with client.instances.get()."


class UnprocessableEntityError(APIStatusError):
    """422: the service understood the request and refuses its values. Not in the published reference."""

    hint = "Check the values of the arguments."


class RateLimitError(APIStatusError):
    """429: too many requests. Retried with back-off before it is raised. Not in the published reference."""

    hint = "Send fewer requests, or wait for retry_after seconds."


class ServerError(APIStatusError):
    """5xx: the service failed. Retried where that is safe before it is raised."""

    hint = "The service failed; try again later."


class ServiceUnavailableError(ServerError):
    """503: no free capacity for the hardware, or the service is down. Not in the published reference."""

    hint = (
        "No free capacity for this hardware, or the service is down: "
        "client.hardware_types.list_available() shows what is free."
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
    """The class for an HTTP status; `ServerError` for any other 5xx, `APIStatusError` for the rest."""
    return STATUS_ERRORS.get(status_code, ServerError if status_code >= 500 else APIStatusError)


class LifecycleError(CortecsError):
    """An instance's life did not go as asked.

    Attributes:
        instance_id: The instance that this is about.
    """

    def __init__(self, message: str, *, instance_id: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id


class StartFailedError(LifecycleError):
    """The instance reached a status from which it does not become usable."""


class StartTimeoutError(LifecycleError, TimeoutError):
    """The instance was not usable in time, or made no progress for too long. Also a `TimeoutError`."""


class InstanceGoneError(LifecycleError):
    """The instance does not exist, or no longer."""


class TeardownError(LifecycleError):
    """The instance could not be stopped and deleted in time, and **may still be billed**."""


class InstanceLostError(LifecycleError):
    """The instance stopped or vanished while the block was running; the block was cancelled."""


class LeaseExpiredError(LifecycleError, TimeoutError):
    """The lease's `max_lifetime` or `max_cost` is used up; the block was cancelled. Also a `TimeoutError`."""


class AmbiguousStartError(CortecsError):
    """A start got no answer, and more new instances fit it than it can have made. None was touched.

    Attributes:
        candidates: Their ids. One of them may be this start's, **and is billed**.
    """

    def __init__(self, message: str, *, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class BatchFileError(InvalidArgumentError):
    """A batch's input or output file is refused. Nothing was started.

    Attributes:
        path: The file.
        line: The line that it is about, counted from 1; None for the file as a whole.
    """

    def __init__(self, message: str, *, path: str, line: int | None = None) -> None:
        super().__init__(f"{path}: {message}" if line is None else f"{path}, line {line}: {message}")
        self.path = path
        self.line = line


class BatchWriteError(CortecsError, OSError):
    """A batch's output cannot be written any more; what was counted as done is in it.

    Attributes:
        path: The file.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class EndpointError(LifecycleError):
    """An instance runs, and its endpoint refuses the key, or gives no answer for too long."""


publish(
    (each for each in list(vars().values()) if isinstance(each, type) and issubclass(each, CortecsError)),
    "cortecs_async.errors",
)
