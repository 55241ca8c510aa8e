"""`client.instance`, `attach`, `acquire` and `release`: their signatures and documentation.

`LeaseMethods` is a mixin, because `client.py` would be too long with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._api.validation import BillingInterval, check_instance_id, check_start
from .._durations import Duration
from .._hints import hinted
from .._lease.options import LeaseOptions, OnExit, OnLoss
from .._public import shown_as_client

if TYPE_CHECKING:
    from .._api.waiting import ProgressCallback
    from .._lease.handle import InstanceHandle
    from .._lease.lease import InstanceLease
    from .wiring import Wiring


@hinted
@shown_as_client
class LeaseMethods:
    """The methods of `AsyncCortecs` that start, use and release instances."""

    _wiring: Wiring

    def instance(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        start_timeout: Duration = 900.0,
        teardown_timeout: Duration = 120.0,
        on_exit: OnExit = "delete",
        reuse: bool = False,
        max_lifetime: Duration | None = None,
        max_cost: float | None = None,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
    ) -> InstanceLease:
        """Rent an instance for a block: `async with client.instance(...) as inst:`.

        Entering the block starts the instance and waits until it is usable. However you leave the block, the
        instance is stopped and deleted, and the block returns once the service confirms that it is gone.
        Cancellations and timeouts cannot interrupt the release. Billing begins with the start request, before
        the block does.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: 32,000, or the longest on this hardware if that is shorter.
            num_workers: 1 to 8. Each worker has its own GPU set and is billed for it. The block begins when
                the first one is running.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Time from entering until the instance must be usable.
            teardown_timeout: Time for the release, retries included.
            on_exit: `delete`; `stop`, which ends billing and keeps the instance for a restart; or `keep`,
                which leaves it **running and billed**. If entering fails, the instance is always deleted.
            reuse: Use an instance with these arguments if there is one, as `instances.ensure` does. It is
                left as it was found: running, or stopped again.
            max_lifetime: Maximum time from the start request to the release. Then the block is cancelled,
                the instance is released, and `LeaseExpiredError` is raised. If the event loop is blocked, the
                reaper releases the instance some seconds later.
            max_cost: The same limit as an amount in the account's currency, at the list price. The limit is
                converted to whole billing intervals.
            on_loss: If the instance stops or disappears during the block, `cancel` ends the block with
                `InstanceLostError`, and `ignore` keeps it running.
            on_progress: Called with a `Progress` at every change while the instance starts; may be async. If
                it raises, the start fails and the instance is deleted.
            require_key: Check the inference API key before the start. True: raise an error if it is missing
                or obviously wrong. None: log a warning if a package for inference is installed. False: no
                check. Only the instance itself can tell whether the key is accepted.

        Raises:
            InvalidArgumentError: if an argument is invalid. No request is sent in either case.
            ConfigurationError: if there are no credentials, or no key with `require_key=True`.
        """
        return self._wiring.lease(
            LeaseOptions(
                args=check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit=on_exit,
                reuse=reuse,
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                on_loss=on_loss,
                on_progress=on_progress,
                require_key=require_key,
            )
        )

    def attach(
        self,
        instance_id: str,
        *,
        start_timeout: Duration = 900.0,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
    ) -> InstanceLease:
        """Attach to a running instance without managing its lifetime.

        Entering `async with client.attach(id) as inst:` waits until the instance is usable. Leaving the block
        never changes the instance.

        Args:
            instance_id: The id of the instance.
            start_timeout: Time from entering until the instance must be usable.
            on_loss: As for `instance`.
            on_progress: As for `instance`.

        Raises:
            InvalidArgumentError: if the id is invalid; no request is sent. Entering raises `BadRequestError`
                or `NotFoundError` if the id is unknown, and `StartFailedError` if the instance is stopped.
        """
        from .._api.domain import InstanceArgs  # noqa: PLC0415  (slow to import)

        return self._wiring.lease(
            LeaseOptions(
                args=InstanceArgs(model_id=""),
                borrowed=check_instance_id(instance_id),
                start_timeout=start_timeout,
                on_exit="keep",
                on_loss=on_loss,
                on_progress=on_progress,
            )
        )

    async def acquire(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        start_timeout: Duration = 900.0,
        teardown_timeout: Duration = 120.0,
        max_lifetime: Duration | None = None,
        max_cost: float | None = None,
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
    ) -> InstanceHandle:
        """Start an instance that outlives this process. You must `release` it.

        Use this if you cannot hold a context manager open. Until the instance is usable, it is as safe as
        with `instance`. After that, **only `max_lifetime` or `max_cost` ends it**, enforced by the reaper, or
        by `sweep` if the reaper died.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: as for `instance`.
            num_workers: 1 to 8.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Time until the instance must be usable.
            teardown_timeout: Time to release an instance that does not become usable.
            max_lifetime: Maximum time from the start request to the release. Always set a limit.
            max_cost: The same limit as an amount.
            on_progress: As for `instance`.
            require_key: As for `instance`.

        Raises:
            InvalidArgumentError: if an argument is invalid; no request is sent.
            CortecsError: as when you enter `instance(...)`; there is no instance then.
        """
        lease = self._wiring.lease(
            LeaseOptions(
                args=check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit="keep",
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                on_loss="ignore",
                on_progress=on_progress,
                require_key=require_key,
            )
        )
        return await lease.into_handle()

    async def release(self, handle: InstanceHandle | str, *, teardown_timeout: Duration = 120.0) -> None:
        """Stop and delete an acquired instance, and return once the service confirms that it is gone.

        You can call this from any process, any number of times: an instance that is gone is no error.
        Cancellations and timeouts cannot interrupt it.

        Args:
            handle: The handle from `acquire`, or the id of an instance.
            teardown_timeout: Time for the release, retries included.

        Raises:
            InvalidArgumentError: if `handle` is neither, or belongs to another account.
            TeardownError: if the instance is not confirmed deleted in time. It says who continues.
            RequestError: if the instances cannot be listed.
        """
        await self._wiring.release(handle, teardown_timeout)
