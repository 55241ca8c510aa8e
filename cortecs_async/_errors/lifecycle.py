"""Errors while an instance starts, runs, or is released."""

from __future__ import annotations

from .base import CortecsError


class LifecycleError(CortecsError):
    """An instance could not be started, used, or released.

    Why: The message names the instance and states the cause. The subclass tells you which step failed.

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
    """The instance was not usable in time.

    Why: Starting took longer than `start_timeout`, or made no progress for the `stall_timeout` of the
    `PollPolicy`. With `ready="models"` or `"answer"`, the endpoint may not have answered in time. A lease
    deletes the instance; `wait_until_running` does not. `StartTimeoutError` is also a `TimeoutError`.

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

    Why: Your block took longer than the limit allows. It was cancelled, and the instance was deleted.
    `LeaseExpiredError` is also a `TimeoutError`.

    What to do: Raise the limit, or split the work into several blocks.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", max_lifetime="2h") as inst:
                print(inst.base_url)
        except LeaseExpiredError as error:
            print(error)
    """


class LeaseIdleError(LeaseExpiredError):
    """The lease reached `idle_timeout`: no request was seen for that long.

    Why: No request of `inst.openai()`, `inst.langchain()`, `inst.pydantic_ai()`, `inst.map`, or a batch was
    seen, and `inst.touch()` was not called. The block was cancelled, and the instance was deleted. Requests
    sent in any other way are invisible to the client.

    What to do: Increase `idle_timeout`, or call `inst.touch()` when you use the instance in another way.

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", idle_timeout="10m") as inst:
                print(inst.base_url)
        except LeaseIdleError as error:
            print(error)
    """


class CapacityTimeoutError(LifecycleError, TimeoutError):
    """No hardware became available within `capacity_timeout`.

    Why: None of the hardware types that you allow had free capacity in all that time, or other programs were
    faster. Nothing was started, and nothing is billed. `CapacityTimeoutError` is also a `TimeoutError`.

    What to do: Wait longer, or allow more hardware types: a list, or "cheapest".

    Example:
        try:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", capacity_timeout="30m") as inst:
                print(inst.base_url)
        except CapacityTimeoutError as error:
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
