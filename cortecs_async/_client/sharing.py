"""`client.shared`, `client.shared_instances`, and `client.release_shared`: instances shared by name.

`SharingMethods` is a mixin, because `client.py` would be too long with it.
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
    from .._lease.options import OnLoss, Ready
    from .._sharing.info import SharedInfo
    from .._sharing.lease import SharedLease
    from .wiring import Wiring


@hinted
@shown_as_client
class SharingMethods:
    """The methods of `AsyncCortecs` that share an instance between processes."""

    _wiring: Wiring

    def shared(
        self,
        name: str,
        model_id: str,
        hardware_type_id: str | Sequence[str] | None = None,
        *,
        linger: Duration = 300.0,
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
        idle_timeout: Duration | None = None,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
        project: str | None = None,
    ) -> SharedLease:
        """Share one instance with other processes: `async with client.shared(...) as inst:`.

        All processes of this machine and user that enter a block with the same name and the same account
        share one instance. The first one starts another process, the owner, which starts the instance. The
        others wait for it or join it. When no process is left, the owner keeps the instance for `linger` and
        then releases it. A killed process counts as one that has left. If the owner is killed, its reaper
        releases the instance.

        Because the owner outlives your program, pass `max_lifetime` or `max_cost`.

        Args:
            name: The name: 1 to 60 letters, digits, `.`, `_`, or `-`.
            model_id: Same as in `instance`.
            hardware_type_id: Same as in `instance`.
            linger: The time to keep the instance after the last process leaves. Default: 5 minutes. With 0,
                the last process returns from its block once the service confirms that the instance is gone.
            context_length: Same as in `instance`.
            num_workers: Same as in `instance`.
            billing_interval: Same as in `instance`.
            start_timeout: Same as in `instance`.
            teardown_timeout: Same as in `instance`.
            max_lifetime: Same as in `instance`. It counts from the start of the instance, not of your block.
            max_cost: Same as in `instance`.
            max_price_per_hour: Same as in `instance`.
            capacity_timeout: Same as in `instance`.
            ready: Same as in `instance`.
            idle_timeout: Same as in `instance`. The requests of all processes count.
            on_loss: Same as in `instance`. It concerns only this process, like `on_progress` and
                `require_key`.
            on_progress: Same as in `instance`.
            require_key: Same as in `instance`.
            project: Same as in `instance`.

        Raises:
            InvalidArgumentError: if an argument is invalid, or there is neither `max_lifetime` nor
                `max_cost`. On entry, if the instance is already running with other arguments.
            ConfigurationError: if there are no credentials, or the client has an `http_client` or a
                `credential_provider`, which the owner process cannot use; on Windows. On entry, if the
                instance belongs to another version of this package.
            CortecsError: on entry, the same errors as from `instance`, in every process that waits.

        Example:
            model = "meta-llama/Llama-3.1-8B-Instruct"
            async with client.shared("bot", model, max_lifetime="8h", linger=0) as inst:
                print(inst.base_url)
        """
        from .._durations import check_seconds  # noqa: PLC0415  (needed only to share)
        from .._errors import InvalidArgumentError  # noqa: PLC0415
        from .._lease.options import start_options  # noqa: PLC0415
        from .shared_start import new_shared_lease  # noqa: PLC0415

        options = start_options(
            *(model_id, hardware_type_id, context_length, num_workers, billing_interval),
            start_timeout=start_timeout,
            teardown_timeout=teardown_timeout,
            max_lifetime=max_lifetime,
            max_cost=max_cost,
            max_price_per_hour=max_price_per_hour,
            capacity_timeout=capacity_timeout,
            ready=ready,
            idle_timeout=idle_timeout,
            on_loss=on_loss,
            on_progress=on_progress,
            require_key=require_key,
            project=project,
        )
        if max_lifetime is None and max_cost is None:
            raise InvalidArgumentError(
                "A shared instance can outlive your program. Pass max_lifetime or max_cost to limit it."
            )
        seconds = check_seconds("linger", linger, at_least=0)
        return new_shared_lease(self._wiring, name, options, linger=seconds, project=project)

    async def shared_instances(self) -> tuple[SharedInfo, ...]:
        """Return the shared instances of this machine, user, and account, by name.

        This asks their owner processes and sends no requests to the service. A client without credentials
        returns the shared instances of all accounts.

        Raises:
            JournalError: if the state directory cannot be used.

        Example:
            for shared in await client.shared_instances():
                print(shared.name, shared.state, shared.base_url)
        """
        from .shared_start import list_of  # noqa: PLC0415  (needed only to share)

        return await list_of(self._wiring)

    async def release_shared(
        self, name: str, *, force: bool = False, teardown_timeout: Duration = 120.0
    ) -> SharedInfo | None:
        """Release a shared instance now, and return once the service confirms that it is gone.

        Args:
            name: The name that was passed to `shared`.
            force: If True, release it even if other processes use it. Their blocks end with
                `InstanceLostError`. Kill an owner process that does not respond; its reaper then releases the
                instance after this has returned.
            teardown_timeout: Maximum time to release it, including retries. Default: 2 minutes.

        Returns:
            The released instance, or None if there is no shared instance with this name.

        Raises:
            InvalidArgumentError: if an argument is invalid.
            LifecycleError: if other processes use it, or its owner does not respond, and `force` is False.
            TeardownError: if the instance is not confirmed deleted in time.

        Example:
            released = await client.release_shared("bot")
            print(released)
        """
        from .._api.validation import check_bool  # noqa: PLC0415  (needed only to share)
        from .._durations import check_seconds  # noqa: PLC0415
        from .shared_start import release  # noqa: PLC0415

        check_bool("force", force)
        seconds = check_seconds("teardown_timeout", teardown_timeout)
        return await release(self._wiring, name, force=force, teardown_timeout=seconds)
