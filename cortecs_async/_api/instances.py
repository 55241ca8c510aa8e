"""`client.instances`: the endpoints of instances, and the waits built on them.

To add an endpoint, add a method to `Instances` that sends a `Call` and decodes the reply: see `resources.py`.
"""

from __future__ import annotations

from functools import partial

from .._durations import Duration, check_seconds
from .._hints import hinted
from .._http.messages import Call
from . import wire
from .domain import AffectedInstances, Instance
from .instance_requests import InstanceRequests, Refused
from .listing import Listing
from .validation import BillingInterval, check_body_id, check_bool, check_instance_id, check_start
from .waiting import InstanceWatch, ProgressCallback, wait_until_running


@hinted
class Instances(InstanceRequests):
    """`client.instances`: plain requests.

    An instance that you start here runs, and is billed, until you stop it. To have it stopped and deleted for
    you, use the context manager `client.instance(...)`.
    """

    async def list(self) -> Listing[Instance]:
        """Return all instances of the account, including those that you did not start (`GET /instances/`).

        An entry that cannot be read is skipped and logged. It is in the `unreadable` of the result, because
        its instance exists: perhaps someone else's, perhaps yours.

        Raises:
            RequestError: the request failed.
        """
        return await self._list()

    async def get(self, instance_id: str) -> Instance:
        """Return one instance (`GET /instances/{instance_id}`).

        Raises:
            InvalidArgumentError: the id is not valid; no request was sent.
            BadRequestError: or `NotFoundError`: the instance does not exist.
            RequestError: the request failed in another way.
        """
        return await self._get(instance_id)

    async def start(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
    ) -> Instance:
        """Start an instance without waiting for it to run (`POST /instances/start`).

        A start is not idempotent: it is repeated only when it is certain that nothing was started. If the
        error's `outcome_unknown` is true, an instance may have been started all the same.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker. Default: the model's `recommended_config`.
            context_length: Tokens. Default: 32,000, or the model's maximum on this hardware if that is less.
            num_workers: 1 to 8. Each has its own GPU set, and each is billed.
            billing_interval: `per_minute` or `per_hour`.

        Raises:
            InvalidArgumentError: an argument is not valid; no request was sent.
            InsufficientBalanceError: the balance is used up.
            ServiceUnavailableError: there is no free capacity.
            RequestError: the request failed in another way.
        """
        args = check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval)
        return await self._start(args)

    async def restart(self, instance_id: str) -> Instance:
        """Restart a stopped instance without waiting for it to run (`POST /instances/restart`).

        Raises:
            InvalidArgumentError: the id is not valid; no request was sent.
            BadRequestError: the instance does not exist, or is not stopped.
            RequestError: the request failed in another way.
        """
        return await self._restart(check_body_id(instance_id))

    async def stop(self, instance_id: str) -> Instance:
        """Stop an instance, which ends its billing (`POST /instances/stop`).

        It is undocumented whether the instance is already stopped when this returns; check with `get`.

        Raises:
            InvalidArgumentError: the id is not valid; no request was sent.
            BadRequestError: the instance does not exist, or perhaps it is already stopped.
            RequestError: the request failed in another way.
        """
        check_body_id(instance_id)
        stopped = await self._change("/instances/stop", instance_id, unchanged={"running", "pending"})
        self.poller.expected.discard(instance_id)
        return stopped

    async def delete(self, instance_id: str) -> None:
        """Delete a stopped instance (`DELETE /instances/{instance_id}`).

        Raises:
            InvalidArgumentError: the id is not valid; no request was sent.
            BadRequestError: the instance does not exist, or is not stopped.
            DecodeError: the response is not the documented one; a proxy may have sent it.
            RequestError: the request failed in another way.
        """
        path = f"/instances/{check_instance_id(instance_id)}"
        try:
            reply = await self._send(Call(method="DELETE", path=path))
            reply.decode(partial(wire.check_deleted, instance_id))
        except Refused as error:
            # An earlier attempt, whose response was lost, may have deleted it.
            is_deleted = error.outcome_unknown and await self._listed(instance_id, error) is None
            if not is_deleted or not await self._is_missing(instance_id):
                raise
        self.poller.expected.discard(instance_id)

    async def stop_all(self) -> AffectedInstances:
        """Stop all running instances **of the account** (`POST /instances/stop-all`).

        Returns:
            The ids of the stopped instances. If the request was repeated, only those of the last attempt.

        Raises:
            RequestError: the request failed.
        """
        return await self._end_all(Call(method="POST", path="/instances/stop-all"))

    async def delete_all(self, *, force: bool = False) -> AffectedInstances:
        """Delete all stopped instances **of the account** (`DELETE /instances/delete-all`).

        Args:
            force: Delete running instances too, including those of other people and programs.

        Returns:
            The ids of the deleted instances. If the request was repeated, only those of the last attempt.

        Raises:
            InvalidArgumentError: `force` is not a bool; no request was sent.
            RequestError: the request failed.
        """
        check_bool("force", force)
        params = {"force_deletion": "true" if force else "false"}
        return await self._end_all(Call(method="DELETE", path="/instances/delete-all", params=params))

    def watch(self, instance_id: str) -> InstanceWatch:
        """Iterate over the changes of an instance: `async for snapshot in client.instances.watch(id)`.

        The first item is the current state. The iteration ends when the instance is gone. The service sends
        no notifications, so the client polls, at the intervals of `PollPolicy`, with one request for all
        watches.

        Raises:
            InvalidArgumentError: the id is not valid.
            InstanceGoneError: the instance does not exist; raised by the iteration.
        """
        return InstanceWatch(self.poller, check_instance_id(instance_id))

    async def wait_until_running(
        self,
        instance_id: str,
        *,
        timeout: Duration | None = 900.0,
        on_progress: ProgressCallback | None = None,
    ) -> Instance:
        """Wait until an instance is running and has a `base_url`.

        Args:
            instance_id: The instance.
            timeout: Time to wait; None for no limit.
            on_progress: Called with every change; may be async.

        Raises:
            InvalidArgumentError: an argument is not valid.
            StartFailedError: the instance is stopped or has failed.
            InstanceGoneError: the instance does not exist.
            StartTimeoutError: the timeout elapsed. The instance is left as it is.
            RequestError: the service rejected the request, or was unreachable for `PollPolicy.max_outage`.
        """
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        checked_id = check_instance_id(instance_id)
        return await wait_until_running(
            self.poller, checked_id, self._policy, timeout=seconds, on_progress=on_progress
        )

    async def ensure(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        timeout: Duration | None = 900.0,
        on_progress: ProgressCallback | None = None,
    ) -> Instance:
        """Return a running instance with these arguments; start one if there is none.

        A running instance is preferred, then a pending one, then a stopped one, which is restarted. The call
        returns when the instance is running and has a `base_url`. An argument that you leave out means the
        model's default, as for `start`, also in the comparison. Concurrent calls of one client for a model
        run one after the other, so that two calls do not start two instances.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker. Default: the model's `recommended_config`.
            context_length: Tokens. Default: 32,000, or the model's maximum on this hardware if that is less.
            num_workers: 1 to 8. Each has its own GPU set, and each is billed.
            billing_interval: `per_minute` or `per_hour`.
            timeout: Time to wait until the instance is running; None for no limit.
            on_progress: Called with every change; may be async.

        Raises:
            InvalidArgumentError: an argument is not valid; no request was sent.
            LifecycleError: as `wait_until_running`. The instance is left as it is; its id is in the error.
            RequestError: as `start`.
        """
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        args = check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval)
        instance = await self.find_or_start(args, start=lambda: self._start(args))
        return await wait_until_running(
            self.poller,
            instance.instance_id,
            self._policy,
            timeout=seconds,
            settle=self._policy.settle,
            known=instance,
            on_progress=on_progress,
        )
