"""`client.instance`, `attach`, `acquire`, and `release`: their signatures and documentation.

`LeaseMethods` is a mixin, because `client.py` would be too long with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._hints import hinted
from .._public import shown_as_client

if TYPE_CHECKING:
    from .._api.validation import BillingInterval
    from .._api.waiting import ProgressCallback
    from .._durations import Duration
    from .._lease.handle import InstanceHandle
    from .._lease.lease import InstanceLease
    from .._lease.options import OnExit, OnLoss, Ready
    from .wiring import Wiring


@hinted
@shown_as_client
class LeaseMethods:
    """The methods of `AsyncCortecs` that start, use, and release instances."""

    _wiring: Wiring

    def instance(
        self,
        model_id: str,
        hardware_type_id: str | Sequence[str] | None = None,
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
        max_price_per_hour: float | None = None,
        capacity_timeout: Duration | None = None,
        ready: Ready = "status",
        idle_timeout: Duration | None = None,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
        project: str | None = None,
    ) -> InstanceLease:
        """Rent an instance for a block: `async with client.instance(...) as inst:`.

        Entering the block starts the instance and waits until it is usable. However you leave the block, the
        instance is stopped and deleted, and the block returns once the service confirms that it is gone.
        Cancellations and timeouts cannot interrupt the release. Expect billing from the start request on,
        before the block begins.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker, such as `NVIDIA_H100_1`; a list of them, which are
                tried in this order; or `"cheapest"`, which tries all that the model runs on, by price.
                Default: the model's `recommended_config`. The next one is tried only if it is certain that
                nothing was started on the one before.
            context_length: Maximum context length, in tokens. Default: 32,000, or the model's maximum on
                this hardware if that is less.
            num_workers: Number of workers, 1 to 8. Default: 1. Each worker has its own GPU set and is billed
                for it. The block begins when the first worker is running.
            billing_interval: `per_minute` (default) or `per_hour`.
            start_timeout: Maximum time to wait for the instance to become usable, from entering the block.
                Default: 15 minutes.
            teardown_timeout: Maximum time to release the instance, including retries. Default: 2 minutes.
            on_exit: What happens when you leave the block. `delete` (default) stops and deletes the instance.
                `stop` ends its billing and keeps it for a restart. `keep` leaves it **running and billed**.
                If entering fails, the instance is always deleted.
            reuse: If True, use a matching instance if there is one, as `instances.ensure` does. When the
                block ends, a reused instance returns to its previous state: running or stopped.
            max_lifetime: Maximum lifetime of the instance, from the start request to the release. When it is
                reached, the block is cancelled, the instance is released, and `LeaseExpiredError` is raised.
                If your code blocks the event loop, the reaper releases the instance a few seconds later.
                Default: no limit.
            max_cost: Maximum cost of the instance, in the account's currency. It is calculated from the list
                price, in whole billing intervals. Default: no limit.
            max_price_per_hour: Maximum list price per hour of all workers together, in the account's
                currency. Hardware that costs more is not used. Default: no limit.
            capacity_timeout: Maximum time to wait for free capacity before the instance is started. Waiting
                costs nothing and does not count towards `max_lifetime`, `max_cost`, or `start_timeout`.
                Default: do not wait.
            ready: When the block begins. `status` (default): once the service reports the instance as
                running. `models`: once its endpoint also lists its models. `answer`: once the model has also
                answered a request for a single token. Both need the inference API key; without one, the
                status decides. See "Is it ready?" in docs/instances.md.
            idle_timeout: Maximum time without a request. When it is reached, the block is cancelled, the
                instance is released, and `LeaseIdleError` is raised. Requests of `inst.openai()`,
                `inst.langchain()`, `inst.pydantic_ai()`, and `inst.map` count, from their beginning to their
                end; for all others, call `inst.touch()`. If your code blocks the event loop for longer, the
                reaper releases the instance. Default: no limit. See "Release idle instances" in
                docs/costs.md.
            on_loss: What to do if the instance stops or disappears during the block. `cancel` (default) ends
                the block with `InstanceLostError`. `ignore` keeps the block running.
            on_progress: A function called with a `Progress` at every change while the instance starts. It can
                be async. If it raises, starting fails and the instance is deleted.
            require_key: Check the inference API key before starting an instance. If True, raise an error if
                the key is missing or clearly wrong. If None (the default), log a warning, but only if a
                package such as `openai` is installed. If False, skip the check. Only the instance itself
                shows whether it accepts the key.
            project: A name to add up costs by: see `client.costs`. Default: the environment variable
                CORTECS_PROJECT.

        Raises:
            InvalidArgumentError: if an argument is invalid. No request is sent. On entry, if no hardware type
                fits the model, the context length, and the limits. Nothing was started.
            ConfigurationError: if there are no credentials, or no key with `require_key=True`. No request is
                sent. On entry, if the endpoint rejects the inference API key in the test that `ready` asks
                for. The instance was deleted.
            RequestError: on entry, if the service rejects the start request or cannot be reached.
            LifecycleError: on entry, if the instance fails or is not usable in time.
            PriceUnknownError: on entry, if `max_cost`, `max_price_per_hour`, or `"cheapest"` needs a price
                that the service does not return. Nothing was started.
            CapacityTimeoutError: on entry, if there is no capacity within `capacity_timeout`. Nothing was
                started.
            EndpointError: on entry, if the URL of the endpoint is not safe to send a key to.
            GuardError: on entry, if the reaper is required but does not work. Nothing was started.
            JournalError: on entry, if the journal is required but does not work. Nothing was started.
            AmbiguousStartError: on entry, if the response to the start request was lost and several
                instances could be yours.
            InstanceLostError: on exit, if the instance stopped or disappeared during the block.
            LeaseExpiredError: on exit, if `max_lifetime` or `max_cost` was reached.
            LeaseIdleError: on exit, if `idle_timeout` was reached.
            TeardownError: on exit, if the instance is not released within `teardown_timeout`.

        Example:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", max_cost=5.0) as inst:
                print(inst.base_url, inst.model)
            print(inst.receipt)
        """
        from .._lease.options import start_options  # noqa: PLC0415  (needed only for a lease)

        return self._wiring.lease(
            start_options(
                *(model_id, hardware_type_id, context_length, num_workers, billing_interval),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit=on_exit,
                reuse=reuse,
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                max_price_per_hour=max_price_per_hour,
                capacity_timeout=capacity_timeout,
                ready=ready,
                idle_timeout=idle_timeout,
                project=project,
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
        ready: Ready = "status",
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
    ) -> InstanceLease:
        """Use a running instance without managing its lifetime: `async with client.attach(id) as inst:`.

        Entering the block waits until the instance is usable. Leaving the block never changes the instance.

        Args:
            instance_id: The id of the instance.
            start_timeout: Maximum time to wait for the instance to become usable, from entering the block.
                Default: 15 minutes.
            ready: Same as in `instance`.
            on_loss: `cancel` (default) or `ignore`, as in `instance`.
            on_progress: Same as in `instance`.

        Raises:
            InvalidArgumentError: if the id is invalid. No request is sent.
            BadRequestError, NotFoundError: on entry, if there is no such instance.
            StartFailedError: on entry, if the instance is stopped.

        Example:
            async with client.attach(instance_id) as inst:
                print(inst.base_url, inst.model)
        """
        from .._api.domain import InstanceArgs  # noqa: PLC0415  (needed only for a lease)
        from .._api.validation import check_instance_id  # noqa: PLC0415
        from .._lease.options import LeaseOptions  # noqa: PLC0415

        return self._wiring.lease(
            LeaseOptions(
                args=InstanceArgs(model_id=""),
                borrowed=check_instance_id(instance_id),
                start_timeout=start_timeout,
                ready=ready,
                on_exit="keep",
                on_loss=on_loss,
                on_progress=on_progress,
            )
        )

    async def acquire(
        self,
        model_id: str,
        hardware_type_id: str | Sequence[str] | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        start_timeout: Duration = 900.0,
        teardown_timeout: Duration = 120.0,
        max_lifetime: Duration | None = None,
        max_cost: float | None = None,
        max_price_per_hour: float | None = None,
        capacity_timeout: Duration | None = None,
        ready: Ready = "status",
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
        project: str | None = None,
    ) -> InstanceHandle:
        """Start an instance that outlives this process. You must `release` it.

        Use this only if you cannot hold an `async with` block open. Until the instance is usable, it is
        protected as with `instance`. After that, only `max_lifetime` or `max_cost` ends it: the reaper
        enforces the limit, or `sweep` if the reaper died. Always set one of them. There is no `idle_timeout`,
        because no process sees all requests to the instance: use `client.shared` for that.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker, a list in order of preference, or `"cheapest"`, as
                in `instance`. Default: the model's `recommended_config`.
            context_length: Maximum context length, in tokens. Same default as in `instance`.
            num_workers: Number of workers, 1 to 8. Default: 1.
            billing_interval: `per_minute` (default) or `per_hour`.
            start_timeout: Maximum time to wait for the instance to become usable. Default: 15 minutes.
            teardown_timeout: Maximum time to release an instance that does not become usable, including
                retries. Default: 2 minutes.
            max_lifetime: Maximum lifetime of the instance, from the start request to the release. Default:
                no limit.
            max_cost: Maximum cost of the instance, in the account's currency. Default: no limit.
            max_price_per_hour: Same as in `instance`.
            capacity_timeout: Same as in `instance`.
            ready: Same as in `instance`.
            on_progress: Same as in `instance`.
            require_key: Same as in `instance`.
            project: Same as in `instance`.

        Returns:
            A handle that other processes can use and pass to `release`.

        Raises:
            InvalidArgumentError: if an argument is invalid. No request is sent.
            CortecsError: if the instance does not become usable: the same errors as `instance` on entry. The
                instance is deleted.

        Example:
            handle = await client.acquire("meta-llama/Llama-3.1-8B-Instruct", max_lifetime="2h")
            print(handle.to_json())

            # Later, in any process:
            await client.release(handle)
        """
        from .._lease.options import start_options  # noqa: PLC0415  (needed only for a lease)

        lease = self._wiring.lease(
            start_options(
                *(model_id, hardware_type_id, context_length, num_workers, billing_interval),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit="keep",
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                max_price_per_hour=max_price_per_hour,
                capacity_timeout=capacity_timeout,
                ready=ready,
                project=project,
                on_loss="ignore",
                on_progress=on_progress,
                require_key=require_key,
            )
        )
        return await lease.into_handle()

    async def release(self, handle: InstanceHandle | str, *, teardown_timeout: Duration = 120.0) -> None:
        """Stop and delete an acquired instance, and return once the service confirms that it is gone.

        You can call this from any process and any number of times: an instance that is already gone is not an
        error. Cancellations and timeouts cannot interrupt it.

        Args:
            handle: The handle from `acquire`, or the id of an instance.
            teardown_timeout: Maximum time to release the instance, including retries. Default: 2 minutes.

        Raises:
            InvalidArgumentError: if `handle` is not a handle or an id, or belongs to another account.
            TeardownError: if the instance is not confirmed deleted in time. The message says what releases it
                later.
            RequestError: if the instances cannot be listed.

        Example:
            await client.release(instance_id)
        """
        await self._wiring.release(handle, teardown_timeout)
