"""The public properties of a lease: the base class of `InstanceLease`."""

from __future__ import annotations

from .._api.domain import Instance
from .activity import Activity
from .endpoint import Endpoint
from .handle import InstanceHandle, with_activity, with_sources
from .pricing import Receipt
from .state import LeaseServices, LeaseState


class LeaseView(Endpoint):
    """A lease's endpoint, instance, and cost."""

    _services: LeaseServices
    _state: LeaseState

    @property
    def instance(self) -> Instance:
        """The newest snapshot of the instance.

        Raises:
            InvalidArgumentError: if the instance is not started yet.
        """
        return self._state.instance

    @property
    def instance_id(self) -> str:
        """The id of the instance."""
        return self.instance.instance_id

    @property
    def base_url(self) -> str:
        """The URL of the OpenAI-compatible endpoint. It ends in `/v1`."""
        # Not the URL in `instance`: the service may later return a different one, which is not checked.
        _ = self.instance  # raises an error before the instance is started
        return self._state.base_url

    @property
    def model(self) -> str:
        """The name to pass to the endpoint as `model`: the Hugging Face name, `org/name`."""
        return self.instance.instance_args.hf_name

    @property
    def handle(self) -> InstanceHandle:
        """The instance as data to send to other processes. The lease still owns the instance.

        Raises:
            InvalidArgumentError: if the instance is not started yet.
        """
        handle = InstanceHandle(
            instance_id=self.instance_id,
            base_url=self.base_url,
            model=self.model,
            account=self._services.promises.account,
            expires_at=self._state.expiry(),
            allow_insecure_http=self._services.allow_insecure_http,
        )
        return with_activity(with_sources(handle, self._services.sources), self._state.activity)

    def touch(self) -> None:
        """Count as a request, for the `idle_timeout` of the lease.

        Call this when you use the instance in a way that the client does not see, for example with your own
        HTTP client. Without an `idle_timeout`, it does nothing. It is cheap, and you can call it in any
        thread. In the middle of a long computation that blocks the event loop, it keeps the reaper from
        releasing the instance.

        Raises:
            InvalidArgumentError: if the instance is not started yet, or the lease has released it.

        Example:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", idle_timeout="10m") as inst:
                inst.touch()  # here you send a request with your own HTTP client
        """
        _ = self.instance  # raises an error before the instance is started
        self._state.check_not_released()
        if (activity := self._state.activity) is not None:
            activity.touch()

    def _get_activity(self) -> Activity | None:
        return self._state.activity

    @property
    def cost_so_far(self) -> float | None:
        """The estimated cost until now, in `receipt.currency`, or None if no price is known.

        It includes every billing interval that started since the start request, for each worker, at the list
        price. The service's bill is authoritative.
        """
        return self.receipt.cost

    @property
    def receipt(self) -> Receipt:
        """The time and estimated cost until now. After the block: the totals for the whole lease."""
        return self._state.receipt
