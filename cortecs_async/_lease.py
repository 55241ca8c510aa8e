"""`async with client.instance(...)`: an instance that lives exactly as long as the block."""

from __future__ import annotations

import enum
import logging
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
from attrs import frozen

from ._config import PollPolicy
from ._detached import hand_on, protect_from_interrupts, run_to_end
from ._domain import Instance, InstanceArgs
from ._errors import ConfigurationError, InvalidArgumentError, RequestTimeoutError, TeardownError
from ._http import HTTP
from ._instances import Instances, Origin
from ._teardown import Goal, Teardown
from ._waiting import ProgressCallback, wait_until_running

if TYPE_CHECKING:
    import openai

OnExit = Literal["delete", "stop", "keep"]

logger = logging.getLogger("cortecs_async.lease")


@frozen(kw_only=True)
class LeaseOptions:
    """How a lease behaves; times in seconds."""

    args: InstanceArgs
    start_timeout: float
    teardown_timeout: float
    on_exit: OnExit
    reuse: bool
    on_progress: ProgressCallback | None


class _Phase(enum.Enum):
    NEW = "not entered"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


def goal_of(on_exit: OnExit, origin: Origin) -> Goal | None:
    """What a lease owes at its end. An instance that was there before is left as it was found."""
    match origin:
        case Origin.FOUND:
            return None
        case Origin.RESTARTED:
            return None if on_exit == "keep" else Goal.STOPPED
        case Origin.STARTED:
            return {"delete": Goal.GONE, "stop": Goal.STOPPED, "keep": None}[on_exit]


class InstanceLease:
    """The handle that `async with client.instance(...) as inst` yields. Serves one `async with`.

    Attributes are available inside the block.
    """

    def __init__(
        self,
        http: HTTP,
        instances: Instances,
        releasing: Instances,
        policy: PollPolicy,
        options: LeaseOptions,
    ) -> None:
        self._http = http
        self._instances = instances
        self._releasing = releasing
        self._policy = policy
        self._options = options
        self._phase = _Phase.NEW
        self._instance: Instance | None = None
        self._origin = Origin.STARTED

    @property
    def instance(self) -> Instance:
        """The newest snapshot that this lease has seen.

        Raises:
            InvalidArgumentError: before the instance was started.
        """
        if self._instance is None:
            raise InvalidArgumentError(
                "this lease has no instance yet: use it inside `async with client.instance(...) as inst:`"
            )
        return self._instance

    @property
    def instance_id(self) -> str:
        """The id of the instance."""
        return self.instance.instance_id

    @property
    def base_url(self) -> str:
        """The instance's OpenAI-compatible endpoint; ends in `/v1`."""
        # Never empty inside the block: it is entered only once there is one.
        return self.instance.base_url or ""

    @property
    def model(self) -> str:
        """The name to give as `model` to the endpoint: the Hugging Face name, `org/name`."""
        return self.instance.instance_args.hf_name

    def openai_kwargs(self, *, api_key: str | None = None) -> dict[str, str]:
        """`base_url` and `api_key`, as OpenAI-compatible clients and frameworks take them.

        Args:
            api_key: The key for inference, which is not the provisioning secret. Default: the environment's
                CORTECS_API_KEY, else OPENAI_API_KEY (the name in the vendor's examples).

        Raises:
            ConfigurationError: when there is no key.
        """
        key = api_key or os.environ.get("CORTECS_API_KEY") or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise ConfigurationError(
                "no key for inference: pass api_key=, or set CORTECS_API_KEY or OPENAI_API_KEY. It is a key "
                "of its own from cortecs.ai; client_id and client_secret are only for provisioning."
            )
        return {"base_url": self.base_url, "api_key": key}

    def openai(self, *, api_key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """An `openai.AsyncOpenAI` for this instance; close it, or use it with `async with`.

        Args:
            api_key: As for `openai_kwargs`.
            **options: Passed on to `AsyncOpenAI`.

        Raises:
            ConfigurationError: when there is no key, or the `openai` package is not installed.
        """
        try:
            from openai import AsyncOpenAI  # noqa: PLC0415  (optional, and slow to import)
        except ImportError:
            raise ConfigurationError(
                "inst.openai() needs the openai package: pip install 'cortecs-async[openai]'"
            ) from None
        arguments: dict[str, Any] = {**self.openai_kwargs(api_key=api_key), **options}
        return AsyncOpenAI(**arguments)

    async def __aenter__(self) -> Self:
        """Starts the instance and waits until it is usable.

        Raises:
            InvalidArgumentError: when this lease was entered before.
            LifecycleError: when it does not run in time, or fails. It has been torn down then.
            RequestTimeoutError: when not even the start could be made in time.
            RequestError: when the service refuses the start, or is out of reach.
        """
        if self._phase is not _Phase.NEW:
            raise InvalidArgumentError(
                f"a lease serves one `async with`, and this one is {self._phase.value}: "
                "call client.instance(...) again"
            )
        self._http.check_open()
        protect_from_interrupts(InstanceLease.__aexit__, InstanceLease._end)
        self._phase = _Phase.STARTING
        began = anyio.current_time()
        deadline = began + self._options.start_timeout
        self._http.hold()
        try:
            await self._begin(deadline)
            self._instance = await wait_until_running(
                self._instances.poller,
                self.instance_id,
                self._policy,
                timeout=self._options.start_timeout,
                began=began,
                settle=self._policy.settle,
                known=self._instance,
                on_progress=self._options.on_progress,
            )
        except BaseException as error:
            # Nobody has seen it, so nobody could stop what `on_exit` would spare.
            await self._end(error, "delete")
            raise
        self._phase = _Phase.RUNNING
        logger.info("instance %s runs %s at %s", self.instance_id, self.model, self.base_url)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops and deletes the instance, and returns only when it is read to be gone.

        Raises:
            TeardownError: when that fails within `teardown_timeout`, unless the body raised already.
        """
        if self._phase is _Phase.RUNNING:
            await self._end(exc, self._options.on_exit)

    async def _begin(self, deadline: float) -> None:
        with anyio.CancelScope(deadline=deadline):
            if self._options.reuse:
                await self._instances.find_or_start(self._options.args, landed=self._landed)
            else:
                await self._instances.start_checked(self._options.args, landed=self._landed)
        if self._instance is None:
            # The deadline fell between two attempts: one that was sent is seen to its end, and after one that
            # may have worked there is no other.
            raise RequestTimeoutError(
                f"nothing could be started within start_timeout={self._options.start_timeout:g} s, and "
                "nothing was: the service was busy or out of reach again and again. The log of "
                "cortecs_async.http says how.",
                method="POST",
                path="/instances/start",
            )

    def _landed(self, instance: Instance, origin: Origin) -> None:
        # The answer holds the only copy of the id: from here on the release knows it, whatever comes between.
        self._instance, self._origin = instance, origin
        logger.info("instance %s %s", instance.instance_id, origin.value)

    async def _end(self, cause: BaseException | None, on_exit: OnExit) -> None:
        """Tears down. Raises only when there is no `cause`, which the caller raises (again)."""
        self._phase = _Phase.ENDED
        goal = None if self._instance is None else goal_of(on_exit, self._origin)
        failure: BaseException | None = None
        interruption: BaseException | None = None
        if goal is not None:
            teardown = Teardown(
                instances=self._releasing,
                instance_id=self.instance_id,
                goal=goal,
                deadline=anyio.current_time() + self._options.teardown_timeout,
            )
            self._instances.releasing.add(self.instance_id)
            ended = await run_to_end(teardown.run, resume=True)
            self._instances.releasing.discard(self.instance_id)
            failure, interruption = ended.error, ended.interruption
        await self._http.release()
        if failure is not None:
            # Anything but a TeardownError, a KeyboardInterrupt say, does not name the instance.
            if not isinstance(failure, TeardownError):
                failure.add_note(f"cortecs_async: instance {self.instance_id} MAY STILL BE BILLED")
            logger.critical("instance %s: %r", self.instance_id, failure)
        elif goal is not None:
            logger.info("instance %s is %s", self.instance_id, goal.value)
        if cause is None:
            cause = interruption or failure
            if cause is None:
                return
            if cause is not failure:
                self._note(cause, failure)
            raise cause
        self._note(cause, failure)
        if interruption is not None and not isinstance(cause, type(interruption)):
            hand_on(interruption, cause)

    def _note(self, cause: BaseException, failure: BaseException | None) -> None:
        if failure is not None:
            cause.add_note(f"cortecs_async: instance {self.instance_id}: {failure}")

    def __repr__(self) -> str:
        shown = self._instance.instance_id if self._instance is not None else self._options.args.model_id
        return f"<InstanceLease {shown} {self._phase.value}>"
