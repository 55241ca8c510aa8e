"""All errors in this package. Each is a `CortecsError`."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from ._public import publish


class CortecsError(Exception):
    """The base class of all errors in this package.

    Why: The message says what happened. If the class is `CortecsError` itself, a start request may have
    created an instance that is still billed.

    What to do: Catch the classes you can handle, and this one to report everything else. Errors keep their
    attributes when you pickle or copy them.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except CortecsError as error:
            print(f"{type(error).__name__}: {error}")
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls `cls(*args)`, which fails for classes with keyword-only parameters.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[CortecsError], args: tuple[Any, ...], state: dict[str, Any]) -> CortecsError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(CortecsError, ValueError):
    """A setting is missing or cannot be used.

    Why: A client argument, an environment variable, a profile, or a package is missing or invalid. For
    example, the base URL uses plain http. Nothing was started.

    What to do: Change the setting given in the message. `client.diagnose()` and `cortecs-async doctor` check
    your setup.

    Example:
        try:
            AsyncCortecs(api_base_url="http://cortecs.example/api/v1")
        except ConfigurationError as error:
            print(error)
    """


class MissingCredentialsError(ConfigurationError):
    """The client id or the client secret is missing.

    Why: They were not passed to the client, and they are not set in the environment or in a profile. No
    request was sent.

    What to do: Set `CORTECS_CLIENT_ID` and `CORTECS_CLIENT_SECRET`, or run `cortecs-async login`. If you only
    need models and prices, pass `anonymous=True`.

    Attributes:
        missing: The missing values: `client_id`, `client_secret`, or both.
        profile: The profile they are missing from, or an empty string if no profile is used.

    Example:
        try:
            async with AsyncCortecs() as client:
                print(await client.user.balance())
        except MissingCredentialsError as error:
            print("Missing:", ", ".join(error.missing))
    """

    def __init__(self, message: str, *, missing: tuple[str, ...] = (), profile: str = "") -> None:
        super().__init__(message)
        self.missing = missing
        self.profile = profile


class InvalidArgumentError(CortecsError, ValueError):
    """An argument is invalid.

    Why: Its value has the wrong type, is out of range, or contradicts another argument. No request was sent.

    What to do: Correct the argument given in the message.

    Example:
        try:
            client.instance("meta-llama/Llama-3.1-8B-Instruct", max_lifetime="soon")
        except InvalidArgumentError as error:
            print(error)
    """


class ClientClosedError(CortecsError, RuntimeError):
    """The client is closed.

    Why: A method was called after the client's `async with` block, or after `aclose()`.

    What to do: Move the call into the block, or create a new client.

    Example:
        async with AsyncCortecs() as closed:
            print(await closed.models.list())
        try:
            await closed.instances.list()
        except ClientClosedError:
            print("Move this call into the block.")
    """


class JournalError(CortecsError, OSError):
    """The journal, the record of your start requests on this machine, cannot be used.

    Why: The state directory is not a directory, is full, or belongs to another user. `sweep`, `orphans`, and
    `owners` need it. With `journal="required"`, every start request needs it, and nothing was started.

    What to do: Set `state_dir=` or `CORTECS_STATE_DIR` to a directory you own.

    Example:
        try:
            print(await client.orphans())
        except JournalError as error:
            print(error)
    """


class GuardError(CortecsError, RuntimeError):
    """The reaper is required but cannot run.

    Why: The reaper, which deletes the instance if your program is killed, cannot be started, cannot reach
    the service, or does not run on this system. Nothing was started.

    What to do: Fix the cause in the message. With `guard="off"`, instances start without a reaper. If your
    program is then killed, they keep running until you stop them.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except GuardError as error:
            print(error)
    """


class PriceUnknownError(CortecsError, ValueError):
    """The price of the hardware is unknown, so `max_cost` cannot be enforced.

    Why: The service returns no usable price for this hardware. Nothing was started.

    What to do: Limit the time with `max_lifetime`, or choose another hardware type.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", max_cost=5) as inst:
                print(inst.base_url)
        except PriceUnknownError:
            print("Use max_lifetime instead.")
    """


class RequestError(CortecsError):
    """A request to the service failed.

    Why: The message gives the request and the cause. The subclass tells you whether a response arrived.

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
    Requests that are safe to repeat were retried. This is also a `TimeoutError`.

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

    What to do: Look the id up with `client.instances.list()` or `client.models.list()`. Catch
    `BadRequestError` too.

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

    What to do: Correct the value given in the message. `body` may contain details.

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


class LifecycleError(CortecsError):
    """An instance could not be started, used, or released.

    Why: The message gives the instance and the cause. The subclass tells you which step failed.

    What to do: Follow the advice for the subclass. `cortecs-async show ID` prints the status of the instance.

    Attributes:
        instance_id: Id of the instance, or an empty string if unknown.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except LifecycleError as error:
            print(error.instance_id, error)
    """

    def __init__(self, message: str, *, instance_id: str) -> None:
        super().__init__(message)
        self.instance_id = instance_id


class StartFailedError(LifecycleError):
    """The instance did not start.

    Why: It stopped or failed before it was running. A lease deletes it; `wait_until_running` does not.

    What to do: Start a new one, if necessary on a different hardware type.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except StartFailedError as error:
            print(f"{error.instance_id} failed. Try another hardware type.")
    """


class StartTimeoutError(LifecycleError, TimeoutError):
    """The instance was not running in time.

    Why: Starting took longer than `start_timeout`, or made no progress for the `stall_timeout` of the
    `PollPolicy`. A lease deletes the instance; `wait_until_running` does not. This is also a `TimeoutError`.

    What to do: Increase `start_timeout`, or try a different hardware type. Large models take longer.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", start_timeout="15m") as inst:
                print(inst.base_url)
        except StartTimeoutError as error:
            print(error)
    """


class InstanceGoneError(LifecycleError):
    """The instance does not exist, or no longer exists.

    Why: The id has a typo, or the instance was deleted, perhaps by another program.

    What to do: List your instances with `client.instances.list()` or `cortecs-async ls`.

    Example:
        try:
            await client.instances.wait_until_running("instance-1", timeout=60)
        except (InstanceGoneError, APIStatusError):
            print(await client.instances.list())
    """


class TeardownError(LifecycleError):
    """The instance could not be released in time and may still be billed.

    Why: The service did not confirm within `teardown_timeout` that the instance is gone. The last sentence
    of the message says what continues the release; the reaper keeps trying for hours.

    What to do: Run `cortecs-async ls`. If the instance is still there, run `cortecs-async rm --stop ID`.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", teardown_timeout="5m") as inst:
                print(inst.base_url)
        except TeardownError as error:
            print(f"Still billed: {error.instance_id}")
    """


class InstanceLostError(LifecycleError):
    """The instance stopped or disappeared while the block was running.

    Why: The service, or someone with access to your account, stopped or deleted it. The block was cancelled.
    If a failed request to the endpoint ended the block first, that error is the `__cause__`.

    What to do: Start a new instance and repeat the work. With `on_loss="ignore"`, the block keeps running.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except InstanceLostError:
            print("Run the job again on another instance.")
    """


class LeaseExpiredError(LifecycleError, TimeoutError):
    """The lease reached `max_lifetime` or `max_cost`.

    Why: Your block took longer than the limit allows. It was cancelled, and the instance was deleted. This
    is also a `TimeoutError`.

    What to do: Raise the limit, or split the work into several blocks.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", max_lifetime="2h") as inst:
                print(inst.base_url)
        except LeaseExpiredError as error:
            print(error)
    """


class AmbiguousStartError(CortecsError):
    """It is unclear which new instance is yours, and yours may be billed.

    Why: The connection broke after a start request was sent, and several new instances match it. Another
    program started the same model at about the same time. None of the instances was touched, because some may
    not be yours.

    What to do: Find yours with `client.instances.list()` or `cortecs-async ls` and stop it. `tag_starts=True`
    avoids this error.

    Attributes:
        candidates: Ids of the matching instances. One of them may be yours **and be billed**.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except AmbiguousStartError as error:
            print("One of these may be yours:", *error.candidates)
    """

    def __init__(self, message: str, *, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class BatchFileError(InvalidArgumentError):
    """The input or output file of a batch cannot be used.

    Why: The file is missing, a line is invalid, or the output belongs to another batch. Nothing was started,
    unless the input changed while the batch was running.

    What to do: Correct the line given in the message, or choose a different output file.

    Attributes:
        path: The path of the file.
        line: The line number, starting at 1, or None if the problem is not in one line.

    Example:
        try:
            await client.plan_batch("missing.jsonl", "answers.jsonl", "meta-llama/Llama-3.1-8B-Instruct")
        except BatchFileError as error:
            print(error.path, error.line)
    """

    def __init__(self, message: str, *, path: str, line: int | None = None) -> None:
        super().__init__(f"{path}: {message}" if line is None else f"{path}, line {line}: {message}")
        self.path = path
        self.line = line


class BatchWriteError(CortecsError, OSError):
    """The output of a batch can no longer be written.

    Why: The disk is full, or another program removed or changed the file. The output contains every answer
    that was counted. If the output itself was changed, the answers that could still be read are saved in a
    different file.

    What to do: Free space, or move the file at `path` back to the output path. Then run the same batch again;
    it continues.

    Attributes:
        path: The file with the answers. If a temporary file could not be written, its directory or an empty
            string.

    Example:
        try:
            await client.run_batch("prompts.jsonl", "answers.jsonl", "meta-llama/Llama-3.1-8B-Instruct")
        except BatchWriteError as error:
            print(f"The answers are in {error.path}.")
        except BatchFileError as error:
            print(error)
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class EndpointError(LifecycleError):
    """The instance is running, but its endpoint cannot be used.

    Why: Its URL is not safe to send a key to, it rejects the key, or it stopped responding.

    What to do: Check your inference API key (`CORTECS_API_KEY`). After a batch, run the same batch again: it
    keeps all answers and continues.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
        except EndpointError as error:
            print(error.instance_id, error)
    """


publish(
    (each for each in list(vars().values()) if isinstance(each, type) and issubclass(each, CortecsError)),
    "cortecs_async.errors",
)


def add_note(error: BaseException, note: str) -> None:
    """Add a note from this package to any exception. Its attributes may raise anything."""
    with contextlib.suppress(Exception):
        error.add_note(f"cortecs_async: {note}")
