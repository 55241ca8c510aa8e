"""Run an instance in the background, alongside the code that uses it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Unpack

import anyio

from .. import AsyncCortecs, ConfigurationError, InstanceLease, InvalidArgumentError
from .._aio.synchronization import Backoff, Broadcast
from .._durations import as_seconds
from .._hints import hinted
from ..errors import (
    AmbiguousStartError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    CapacityTimeoutError,
    InstanceLostError,
    InsufficientBalanceError,
    LeaseExpiredError,
    LeaseIdleError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    ServiceUnavailableError,
    TransportError,
)
from ..types import Duration, Progress, Receipt
from ._managed import RETRY_AFTER, ManagedInstance, Reason, StartOptions, Unavailable, logger

# After these errors, no new instance is started: it would exceed a limit, leave another instance that cannot
# be distinguished from instances of other users, or be rejected in the same way.
_FINAL = (LeaseExpiredError, AmbiguousStartError, InvalidArgumentError)

# These need a person to fix them: a new secret, more balance, more rights. The service can be wrong too, so
# one such error, or several in the same moment, proves nothing.
_REFUSALS = (AuthenticationError, InsufficientBalanceError, PermissionDeniedError, ConfigurationError)

# Refusals in a row after which no new instance is started, and the minimum seconds between them.
_MAX_REFUSALS, _REFUSAL_PAUSE = 5, 10.0

# The same if the endpoint of an instance rejects the key, because each of those instances is billed.
_MAX_BILLED_REFUSALS = 2

_REASONS: tuple[tuple[tuple[type[Exception], ...], Reason], ...] = (
    ((LeaseExpiredError,), "limit_reached"),
    ((InstanceLostError,), "restarting"),
    ((TransportError, ServerError, RateLimitError), "unreachable"),
)

_TOKEN_PATH, _START_PATH = "/oauth2/token", "/instances/start"

# Seconds between two checks of a reported instance, the maximum after failures, and the timeout of a check.
_CHECK_INTERVAL, _MAX_CHECK_INTERVAL, _CHECK_TIMEOUT = 1.0, 10.0, 10.0


@hinted
class BackgroundInstance(ManagedInstance):
    """Run an instance in the background while your app serves requests.

    Entering the block returns immediately. `handle()` returns the running instance or raises `NotReadyError`.
    Leaving the block releases the instance, as leaving a lease does. If the release fails, the failure is
    logged. You can leave the block in a different task of the same event loop.

    A lost instance is replaced once it is confirmed to be lost. If starting fails, it is retried after
    `pause`. No new instance is started if that would exceed a limit, if a start request was ambiguous, or
    after the service has rejected five start requests in a row because of the credentials or the balance, or
    the endpoints of two instances in a row the inference API key.

    With `idle_timeout`, an instance that the app does not use is released, and the next call of `handle()` or
    `wait()` starts a new one.

    Every process has its own instance. For a server with several workers, use `SharedInstance`.

    Args:
        client: The client that starts the instances. Close it after this block.
        model_id: Same as in `client.instance`.
        hardware_type_id: Same as in `client.instance`.
        pause: The time between a failed start and the next attempt. After a rejected start, at least 10 s.
        **options: Same as in `client.instance`. See `StartOptions`.

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
        hardware_type_id: str | Sequence[str] | None = None,
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
        self._in_use: InstanceLease | None = None  # the lease of the handle that the app gets
        self._is_wanted = False  # since there was such a handle
        self._wanted = Broadcast()

    async def _check(self) -> None:
        self._used_seconds = self._used_cost = 0.0
        self._refusals = 0
        self._lease()

    async def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None:
            await anyio.sleep(pause)
            pause = await self._run_one()
            if isinstance(state := self._state, Unavailable) and state.reason == "idle":
                while not self._is_wanted:
                    await self._wanted.wait()

    def note_use(self) -> None:
        if (lease := self._in_use) is not None:
            with contextlib.suppress(InvalidArgumentError):  # another thread has just released it
                lease.touch()
        elif not self._is_wanted:
            self._is_wanted = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._run_in_loop(self._wanted.notify)

    async def _run_one(self) -> float | None:
        """Run one instance until it ends. Return the seconds until the next attempt to start one, if any."""
        lease: InstanceLease | None = None
        pause: float | None = 0.0
        try:
            lease = self._lease()
            async with lease:
                self._refusals = 0
                self._in_use = lease
                self._set(lease.handle)
                try:
                    await self._check_reports(lease)
                finally:
                    self._in_use, self._is_wanted = None, False
                    # Requests must not use it during its release.
                    self._set(Unavailable("restarting", f"instance {lease.instance_id} is being released"))
        except LeaseIdleError as error:
            logger.info("%s", error)
            self._set(Unavailable("idle", f"{error}"))
        except Exception as error:  # noqa: BLE001  (a credential provider may raise anything)
            pause = self._pause_after(error, is_billed=_receipt(lease) is not None)
            logger.warning("Could not get an instance for %s: %r", self._model_id, error)
            retry_after = None if pause is None else pause or RETRY_AFTER
            self._set(Unavailable(self._reason(error), str(error) or repr(error), retry_after))
        finally:
            self._add_usage(lease)
        return pause

    async def _check_reports(self, lease: InstanceLease) -> None:
        """Check the instance after each report. Withhold a lost instance until it is known to run again."""
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
        """Check an instance once. Return None if its status is unknown."""
        try:
            with anyio.fail_after(_CHECK_TIMEOUT):
                return (await self._client.instances.get(instance_id)).is_usable
        except (BadRequestError, NotFoundError):
            return False
        except Exception as error:  # noqa: BLE001  (a credential provider may raise anything)
            logger.info("Could not check instance %s: %r", instance_id, error)
            return None

    async def _poll(self, instance_id: str) -> None:
        """Make the poller check an instance now.

        One reading is enough to withhold a handle for now, but not to end the lease. The lease decides that.
        It uses the readings of the same poller and needs two of them.
        """
        with anyio.move_on_after(_CHECK_TIMEOUT), contextlib.suppress(Exception):
            await anext(self._client.instances.watch(instance_id))

    def _pause_after(self, error: Exception, *, is_billed: bool) -> float | None:
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
        most = _MAX_BILLED_REFUSALS if is_billed else _MAX_REFUSALS
        return None if self._refusals >= most else max(pause, _REFUSAL_PAUSE)

    def _reason(self, error: Exception) -> Reason:
        if isinstance(error, InvalidArgumentError):
            # Options that were valid on entry become invalid when too little of a limit is left.
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
        if (receipt := _receipt(lease)) is not None:
            self._used_seconds += receipt.seconds
            self._used_cost += receipt.cost or 0.0

    def _show_progress(self, progress: Progress) -> None:
        if not progress.instance.instance_id:
            self._set(Unavailable("no_capacity", progress.description))
            return
        self._set(Unavailable("starting", f"the instance is being started: {progress.description}"))


def _receipt(lease: InstanceLease | None) -> Receipt | None:
    """Return the receipt of a lease, or None if nothing was started."""
    try:
        return lease.receipt if lease is not None else None
    except InvalidArgumentError:
        return None


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, APIStatusError) and not error.has_json_body:
        return False  # sent by a proxy
    if isinstance(error, APIStatusError) and error.path == _TOKEN_PATH:
        # Token endpoints reject invalid credentials with 400 or 401.
        return 400 <= error.status_code < 500 and not isinstance(error, RateLimitError)
    return isinstance(error, _REFUSALS)


def _is_no_capacity(error: Exception) -> bool:
    """Return whether the service (not a proxy, which sends HTML) had no capacity for a start request."""
    if isinstance(error, CapacityTimeoutError):
        return True
    return isinstance(error, ServiceUnavailableError) and error.path == _START_PATH and error.has_json_body


def _remaining(name: str, limit: float | None, used: float) -> float | None:
    if limit is None or not used:
        return limit
    if limit <= used:
        raise InvalidArgumentError(f"The instances started so far have reached {name}")
    return limit - used
