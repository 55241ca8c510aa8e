"""Errors of a request to the service, with a class for each HTTP status."""

from __future__ import annotations

from typing import ClassVar

from .base import CortecsError


class RequestError(CortecsError):
    """A request to the service failed.

    Why: The message states the request and the cause. The subclass tells you whether a response arrived.

    What to do: If `outcome_unknown` is true, check what the request did before you send it again.

    Attributes:
        method: HTTP method of the request.
        path: Path below the API base URL.
        attempts: Number of attempts, including the first.
        outcome_unknown: True if the service may have processed the request, but no response confirms it. If
            the request was a `start`, an instance may be running and billed: check `client.instances.list()`.

    Example:
        try:
            await client.instances.stop(instance_id)
        except RequestError as error:
            if error.outcome_unknown:
                print(await client.instances.get(instance_id))
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
    """No complete response arrived.

    Why: The service cannot be reached, the connection broke, or the service redirected the request to
    another host. Requests that are safe to repeat were retried.

    What to do: Check the network, the proxy in `HTTPS_PROXY`, and the base URL. Then try again.

    Example:
        try:
            instances = await client.instances.list()
        except TransportError as error:
            print(f"No response after {error.attempts} attempts: {error}")
    """


class RequestTimeoutError(TransportError, TimeoutError):
    """No response arrived in time.

    Why: The service or the network is slow, or the service stayed busy until a start request timed out.
    Requests that are safe to repeat were retried. `RequestTimeoutError` is also a `TimeoutError`.

    What to do: Try again later, or increase `timeout` or `start_timeout`.

    Example:
        try:
            instances = await client.instances.list()
        except RequestTimeoutError:
            print("The service is slow. Try again later.")
    """


class DecodeError(RequestError):
    """The service's response could not be parsed.

    Why: It is not JSON, or does not have the documented shape. Often the base URL is wrong, or a proxy
    responded instead of the service.

    What to do: Check `api_base_url` or `CORTECS_API_BASE_URL`. If it is correct, upgrade cortecs-async.

    Example:
        try:
            models = await client.models.list()
        except DecodeError as error:
            print(f"Is the base URL right? {error}")
    """


class APIStatusError(RequestError):
    """The service returned an error status.

    Why: The service rejected the request or failed to process it. Common statuses have their own classes.

    What to do: Follow the message. If you contact cortecs.ai support, include the `request_id`.

    Attributes:
        status_code: HTTP status.
        body: The first 300 characters of the response body, with secrets replaced by `***`.
        request_id: The response's `x-request-id`, or None if it has none.
        retry_after: The number of seconds the service asked you to wait, or None.

    Example:
        try:
            await client.instances.start("org/unknown")
        except APIStatusError as error:
            print(error.status_code, error.request_id, error.body)
    """

    hint: ClassVar[str] = ""

    @property
    def has_json_body(self) -> bool:
        """Whether the body looks like JSON, as the service's errors do; proxies usually return HTML."""
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
    """The service rejected the request (400).

    Why: The model, the hardware type, or the instance is unknown, or the instance has the wrong status. If
    this was a start request, nothing was started.

    What to do: Check the ids with `client.models.list()`, `client.hardware_types.list()`, and
    `client.instances.list()`.

    Example:
        try:
            await client.instances.start("org/unknown")
        except BadRequestError as error:
            print(error)
    """

    hint = (
        "Check the model id, hardware type, and instance id, and whether the instance's status allows this."
    )


class AuthenticationError(APIStatusError):
    """The service rejected the credentials (401).

    Why: The client id or the client secret is wrong or was replaced. An inference API key does not work
    here.

    What to do: Check `CORTECS_CLIENT_ID` and `CORTECS_CLIENT_SECRET`. `client.diagnose()` and `cortecs-async
    doctor` test them.

    Example:
        try:
            print(await client.user.balance())
        except AuthenticationError:
            print("Check CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET.")
    """

    hint = "Check client_id and client_secret (CORTECS_CLIENT_ID, CORTECS_CLIENT_SECRET)."


class InsufficientBalanceError(APIStatusError):
    """The account's balance is used up (402).

    Why: The balance is too low for this request. If this was a start request, nothing was started.

    What to do: Top up your account on cortecs.ai.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except InsufficientBalanceError:
            print(await client.user.balance())
    """

    hint = "Top up your account. To see the balance, call client.user.balance()."


class PermissionDeniedError(APIStatusError):
    """The account is not allowed to do this (403).

    Why: The credentials are valid but do not permit this request.

    What to do: Check what this account is allowed to do. `body` may contain the reason.

    Example:
        try:
            print(await client.user.balance())
        except PermissionDeniedError as error:
            print(error.request_id, error)
    """

    hint = "Check what this account is allowed to do."


class NotFoundError(APIStatusError):
    """The instance or model does not exist (404).

    Why: The id has a typo, or the instance was deleted. The service may also return 400 for an unknown id.

    What to do: Look the id up with `client.instances.list()` or `client.models.list()`. Also
    catch `BadRequestError`.

    Example:
        try:
            await client.instances.get("unknown")
        except (NotFoundError, BadRequestError) as error:
            print(error.status_code, error)
    """

    hint = "Check the id. To see what exists, call client.instances.list() or client.models.list()."


class ConflictError(APIStatusError):
    """The instance's status does not allow this (409).

    Why: Some requests require a certain status. For example, only a stopped instance can be restarted. The
    service may also return 400 for this.

    What to do: Check the status with `client.instances.get()`, then wait or stop the instance first.

    Example:
        try:
            await client.instances.delete(instance_id)
        except (ConflictError, BadRequestError):
            await client.release(instance_id)
    """

    hint = "Check the status of the instance with client.instances.get()."


class UnprocessableEntityError(APIStatusError):
    """The service rejected a value in the request (422).

    Why: An argument has a value that the service does not accept. If this was a start request, nothing was
    started.

    What to do: Correct the value named in the message. `body` may contain details.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", context_length=4096) as inst:
                print(inst.base_url)
        except UnprocessableEntityError as error:
            print(error.body)
    """

    hint = "Check the values of the arguments."


class RateLimitError(APIStatusError):
    """The service received too many requests (429).

    Why: Your programs send requests faster than the service accepts them. The request was retried with
    increasing pauses.

    What to do: Wait for `retry_after` seconds, or send fewer requests.

    Example:
        try:
            print(await client.instances.list())
        except RateLimitError as error:
            print(f"Try again in {error.retry_after or 60} seconds.")
    """

    hint = "Send fewer requests, or wait for retry_after seconds."


class ServerError(APIStatusError):
    """The service failed (5xx).

    Why: The cause is in the service or in a proxy in front of it. Requests that are safe to repeat were
        retried.

    What to do: Try again later. If it was a start request, check `outcome_unknown` first.

    Example:
        try:
            print(await client.instances.list())
        except ServerError as error:
            print(error.status_code, error.request_id)
    """

    hint = "The service failed. Try again later."


class ServiceUnavailableError(ServerError):
    """There is no free capacity for this hardware, or the service is down (503).

    Why: All GPUs of this type are in use. The service returns the same status while it is down.

    What to do: Choose another hardware type, or try again later.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1") as inst:
                print(inst.base_url)
        except ServiceUnavailableError:
            print(await client.hardware_types.list_available())
    """

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
