"""An instance that runs in the background while your code runs."""

from __future__ import annotations

import contextlib
from typing import Unpack

import anyio

from .. import AsyncCortecs, ConfigurationError, InstanceLease, InvalidArgumentError
from .._aio.synchronization import Backoff
from .._durations import as_seconds
from .._hints import hinted
from ..errors import (
    AmbiguousStartError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InstanceLostError,
    InsufficientBalanceError,
    LeaseExpiredError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ServiceUnavailableError,
    TransportError,
)
from ..types import Duration, Progress
from ._managed import RETRY_AFTER, ManagedInstance, Reason, StartOptions, Unavailable, logger

# After these errors nothing is started again: another start would exceed a limit, leave another instance
# that cannot be distinguished from a foreign one, or be rejected in the same way.
_FINAL = (LeaseExpiredError, AmbiguousStartError, InvalidArgumentError)

# These need a person: another secret, more balance, more rights. A service can err too, so nothing is
# concluded from one of them, or from several in the same moment.
_REFUSALS = (AuthenticationError, InsufficientBalanceError, PermissionDeniedError, ConfigurationError)

# Refusals in a row after which nothing is started again, and the least seconds between them.
_MAX_REFUSALS, _REFUSAL_PAUSE = 5, 10.0

_REASONS: tuple[tuple[tuple[type[Exception], ...], Reason], ...] = (
    ((LeaseExpiredError,), "limit_reached"),
    ((InstanceLostError,), "restarting"),
    ((TransportError, ServerError, RateLimitError), "unreachable"),
)

_TOKEN_PATH, _START_PATH = "/oauth2/token", "/instances/start"

# Seconds between two checks of a reported instance, and the most after failures. Seconds for one check.
_CHECK_INTERVAL, _MAX_CHECK_INTERVAL, _CHECK_TIMEOUT = 1.0, 10.0, 10.0


@hinted
class BackgroundInstance(ManagedInstance):
    """Run an instance in the background, while your app serves.

    Entering the block returns immediately. `handle()` returns the running instance or raises `NotReadyError`.
    Leaving the block releases the instance, as leaving a lease does. A release that fails is logged. You may
    leave the block in another task of the same event loop.

    A lost instance is replaced once its loss is confirmed. A start that fails is tried again after `pause`.
    Nothing is started again if that would exceed a limit, if the start was ambiguous, or if the service has
    refused five starts in a row because of the credentials or the balance.

    Every process has its own instance. For a server with several workers, use `SharedInstance`.

    Args:
        client: The client that starts the instances. Close it after this block.
        model_id: As for `client.instance`.
        hardware_type_id: As for `client.instance`.
        pause: Time between a failed start and the next attempt; at least 10 seconds after a refusal.
        **options: As for `client.instance`; see `StartOptions`.

    Raises:
        InvalidArgumentError: If `pause` is too short, or another duration is invalid.

    Example:
        from cortecs_async.integrations.web import BackgroundInstance

        async with BackgroundInstance(client, "meta-llama/Llama-3.1-8B-Instruct", max_cost=50) as instance:
            inst = await instance.wait()  # in a request, call instance.handle()
            print(inst.base_url)
    """

    def __init__(
        self,
        client: AsyncCortecs,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        pause: Duration = 30.0,
        **options: Unpack[StartOptions],
    ) -> None:
        super().__init__(pause, options)
        self._client = client
        self._model_id = model_id
        self._hardware_type_id = hardware_type_id
        self._used_seconds = 0.0
        self._used_cost = 0.0
        self._refusals = 0  # in a row

    async def _check(self) -> None:
        self._used_seconds = self._used_cost = 0.0
        self._refusals = 0
        self._lease()

    async def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None:
            await anyio.sleep(pause)
            pause = await self._run_one()

    async def _run_one(self) -> float | None:
        """Run one instance until it ends. Return the seconds until the next start, None if there is none."""
        lease: InstanceLease | None = None
        pause: float | None = 0.0
        try:
            lease = self._lease()
            async with lease:
                self._refusals = 0
                self._set(lease.handle)
                try:
                    await self._check_reports(lease)
                finally:
                    # Requests must not use it during its release.
                    self._set(Unavailable("restarting", f"instance {lease.instance_id} is being released"))
        except Exception as error:  # noqa: BLE001  (a credential provider may raise anything)
            pause = self._pause_after(error)
            logger.warning("No instance of %s: %r", self._model_id, error)
            retry_after = None if pause is None else pause or RETRY_AFTER
            self._set(Unavailable(self._reason(error), str(error) or repr(error), retry_after))
        finally:
            self._add_usage(lease)
        return pause

    async def _check_reports(self, lease: InstanceLease) -> None:
        """Check the instance after each report. Until it is known to run again, withhold a lost one."""
        handle, instance_id = lease.handle, lease.instance_id
        backoff = Backoff(first=_CHECK_INTERVAL, limit=_MAX_CHECK_INTERVAL)
        while True:
            if await self.next_report() != instance_id:
                continue
            while (is_running := await self._is_running(instance_id)) is not True:
                if is_running is False:
                    self._set(
                        Unavailable("restarting", f"instance {instance_id} does not seem to be running")
                    )
                    await self._poll(instance_id)
                await anyio.sleep(backoff.next())
            self._set(handle)
            backoff.reset()
            await anyio.sleep(_CHECK_INTERVAL)

    async def _is_running(self, instance_id: str) -> bool | None:
        """Check an instance once; return None if it could not be read."""
        try:
            with anyio.fail_after(_CHECK_TIMEOUT):
                return (await self._client.instances.get(instance_id)).is_usable
        except (BadRequestError, NotFoundError):
            return False
        except Exception as error:  # noqa: BLE001  (a credential provider may raise anything)
            logger.info("Could not check instance %s: %r", instance_id, error)
            return None

    async def _poll(self, instance_id: str) -> None:
        """Make the poller read an instance now.

        One reading is enough to withhold a handle for the moment, but not to end the lease. That is left to
        the lease, which takes the readings of the same poller, and needs two.
        """
        with anyio.move_on_after(_CHECK_TIMEOUT), contextlib.suppress(Exception):
            await anext(self._client.instances.watch(instance_id))

    def _pause_after(self, error: Exception) -> float | None:
        if isinstance(error, InstanceLostError):
            return 0.0
        if isinstance(error, _FINAL):
            return None
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        pause = max(self._pause, retry_after or 0.0)
        if not _is_refusal(error):
            self._refusals = 0
            return pause
        self._refusals += 1
        return None if self._refusals >= _MAX_REFUSALS else max(pause, _REFUSAL_PAUSE)

    def _reason(self, error: Exception) -> Reason:
        if isinstance(error, InvalidArgumentError):
            # What was valid on entry becomes invalid when too little of a limit is left.
            return "limit_reached" if self._used_seconds else "misconfigured"
        if _is_no_capacity(error):
            return "no_capacity"
        if _is_refusal(error):
            return "no_balance" if isinstance(error, InsufficientBalanceError) else "misconfigured"
        for kinds, reason in _REASONS:
            if isinstance(error, kinds):
                return reason
        return "failed"

    def _lease(self) -> InstanceLease:
        options = self._options.copy()
        lifetime = options.get("max_lifetime")
        seconds = None if lifetime is None else as_seconds(lifetime)
        options["max_lifetime"] = _remaining("max_lifetime", seconds, self._used_seconds)
        options["max_cost"] = _remaining("max_cost", options.get("max_cost"), self._used_cost)
        return self._client.instance(
            self._model_id, self._hardware_type_id, on_progress=self._show_progress, **options
        )

    def _add_usage(self, lease: InstanceLease | None) -> None:
        try:
            receipt = lease.receipt if lease is not None else None
        except InvalidArgumentError:
            return  # nothing was started
        if receipt is not None:
            self._used_seconds += receipt.seconds
            self._used_cost += receipt.cost or 0.0

    def _show_progress(self, progress: Progress) -> None:
        self._set(Unavailable("starting", f"the instance is being started: {progress.description}"))


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, APIStatusError) and not error.has_json_body:
        return False  # of a proxy
    if isinstance(error, APIStatusError) and error.path == _TOKEN_PATH:
        # Token endpoints reject credentials with 400 or 401.
        return 400 <= error.status_code < 500 and not isinstance(error, RateLimitError)
    return isinstance(error, _REFUSALS)


def _is_no_capacity(error: Exception) -> bool:
    """Return whether the service rejected a start with 503, in its own JSON and not in a proxy's HTML."""
    return isinstance(error, ServiceUnavailableError) and error.path == _START_PATH and error.has_json_body


def _remaining(name: str, limit: float | None, used: float) -> float | None:
    if limit is None or not used:
        return limit
    if limit <= used:
        raise InvalidArgumentError(f"{name} has been reached by the instances started so far")
    return limit - used
