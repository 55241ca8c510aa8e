"""The base class of all errors, and errors that no request or lease raises."""

from __future__ import annotations

import contextlib
from typing import Any


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

    What to do: Change the setting named in the message. `client.diagnose()` and `cortecs-async doctor` check
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

    What to do: Correct the argument named in the message.

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
    """The price of the hardware is unknown, but `max_cost`, `max_price_per_hour`, or `"cheapest"` needs it.

    Why: The service returns no usable price for this hardware. Nothing was started.

    What to do: Limit the time with `max_lifetime`, or choose another hardware type.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", max_cost=5) as inst:
                print(inst.base_url)
        except PriceUnknownError:
            print("Use max_lifetime instead.")
    """


class BatchFileError(InvalidArgumentError):
    """The input or output file of a batch cannot be used.

    Why: The file is missing, a line is invalid, or the output belongs to another batch. Nothing was started,
    unless the input changed while the batch was running.

    What to do: Correct the line named in the message, or choose a different output file.

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


def add_note(error: BaseException, note: str) -> None:
    """Add a note from this package to any exception. Its attributes may raise anything."""
    with contextlib.suppress(Exception):
        error.add_note(f"cortecs_async: {note}")
