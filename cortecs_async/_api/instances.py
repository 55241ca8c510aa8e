"""`client.instances`: the instance endpoints, and the waits built on them.

To add an endpoint, add a method to `Instances` that sends a `Call` and decodes the reply, as in
`resources.py`.
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
    """The instances in your account, as plain requests: `client.instances`.

    An instance started here runs and is billed until you stop it. To have it stopped and deleted
    automatically, use `async with client.instance(...)`.

    Example:
        for instance in await client.instances.list():
            print(instance.instance_id, instance.status)
    """

    async def list(self) -> Listing[Instance]:
        """Return all instances in the account, including the ones you did not start.

        Sends `GET /instances/`. An entry that cannot be parsed is skipped, logged, and listed in the result's
        `unreadable`. Its instance exists and may be yours.

        Raises:
            RequestError: if the request fails.

        Example:
            instances = await client.instances.list()
            running = [each for each in instances if each.status == "running"]
            print(len(running), "running")
        """
        return await self._list()

    async def get(self, instance_id: str) -> Instance:
        """Return one instance.

        Sends `GET /instances/{instance_id}`.

        Args:
            instance_id: The id of the instance.

        Raises:
            InvalidArgumentError: if the id is invalid. No request is sent.
            BadRequestError, NotFoundError: if the instance does not exist.
            RequestError: for any other failure.

        Example:
            instance = await client.instances.get(instance_id)
            print(instance.status, instance.base_url)
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
        """Start an instance without waiting until it is running.

        Sends `POST /instances/start` and repeats it only if it is certain that nothing was started. If an
        error has `outcome_unknown`, an instance may have been started anyway.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker. Default: the model's `recommended_config`.
            context_length: Maximum context length, in tokens. Default: 32,000, or the model's maximum on
                this hardware if that is less.
            num_workers: Number of workers, 1 to 8. Default: 1. Each worker has its own GPU set and is billed
                for it.
            billing_interval: `per_minute` (default) or `per_hour`.

        Raises:
            InvalidArgumentError: if an argument is invalid. No request is sent.
            InsufficientBalanceError: if the balance is used up.
            ServiceUnavailableError: if there is no free capacity.
            RequestError: for any other failure.

        Example:
            instance = await client.instances.start("meta-llama/Llama-3.1-8B-Instruct")
            instance = await client.instances.wait_until_running(instance.instance_id)
            print(instance.base_url)
            await client.release(instance.instance_id)
        """
        args = check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval)
        return await self._start(args)

    async def restart(self, instance_id: str) -> Instance:
        """Restart a stopped instance without waiting until it is running.

        Sends `POST /instances/restart`.

        Args:
            instance_id: The id of the instance.

        Raises:
            InvalidArgumentError: if the id is invalid. No request is sent.
            BadRequestError: if the instance does not exist, or is not stopped.
            RequestError: for any other failure.

        Example:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", on_exit="stop") as inst:
                print(inst.base_url)

            await client.instances.restart(inst.instance_id)
            await client.instances.wait_until_running(inst.instance_id)
            await client.release(inst.instance_id)
        """
        return await self._restart(check_body_id(instance_id))

    async def stop(self, instance_id: str) -> Instance:
        """Stop an instance, which ends its billing.

        Sends `POST /instances/stop`. It is undocumented whether the instance is already stopped when this
        returns: check with `get`.

        Args:
            instance_id: The id of the instance.

        Raises:
            InvalidArgumentError: if the id is invalid. No request is sent.
            BadRequestError: if the instance does not exist, and possibly if it is already stopped.
            RequestError: for any other failure.

        Example:
            instance = await client.instances.stop(instance_id)
            print(instance.status)
        """
        check_body_id(instance_id)
        stopped = await self._change("/instances/stop", instance_id, unchanged={"running", "pending"})
        self.poller.expected.discard(instance_id)
        return stopped

    async def delete(self, instance_id: str) -> None:
        """Delete a stopped instance. To stop and delete it, use `client.release`.

        Sends `DELETE /instances/{instance_id}`.

        Args:
            instance_id: The id of the instance.

        Raises:
            InvalidArgumentError: if the id is invalid. No request is sent.
            BadRequestError: if the instance does not exist, or is not stopped.
            DecodeError: if the response does not have the documented shape. A proxy may have sent it.
            RequestError: for any other failure.

        Example:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", on_exit="stop") as inst:
                print(inst.base_url)

            await client.instances.delete(inst.instance_id)
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
        """Stop all running instances **in the account**, even if other people or programs use them.

        Sends `POST /instances/stop-all`.

        Returns:
            The ids of the stopped instances. If the request was repeated, only the ones from the last
            attempt.

        Raises:
            RequestError: if the request fails.

        Example:
            stopped = await client.instances.stop_all()
            print(stopped.instance_ids)
        """
        return await self._end_all(Call(method="POST", path="/instances/stop-all"))

    async def delete_all(self, *, force: bool = False) -> AffectedInstances:
        """Delete all stopped instances **in the account**, even if other people or programs need them.

        Sends `DELETE /instances/delete-all`.

        Args:
            force: If True, also delete running instances. Default: False.

        Returns:
            The ids of the deleted instances. If the request was repeated, only the ones from the last
            attempt.

        Raises:
            InvalidArgumentError: if `force` is not a bool. No request is sent.
            RequestError: if the request fails.

        Example:
            deleted = await client.instances.delete_all()
            print(deleted.instance_ids)
        """
        check_bool("force", force)
        params = {"force_deletion": "true" if force else "false"}
        return await self._end_all(Call(method="DELETE", path="/instances/delete-all", params=params))

    def watch(self, instance_id: str) -> InstanceWatch:
        """Iterate over the changes to an instance: `async for instance in client.instances.watch(id)`.

        The first item is the current state. The iteration ends when the instance is gone. The service does
        not send notifications, so the client polls at the intervals in `PollPolicy`, with one request for all
        watches.

        Args:
            instance_id: The id of the instance.

        Raises:
            InvalidArgumentError: if the id is invalid.
            InstanceGoneError: during the iteration, if the instance does not exist.

        Example:
            async for instance in client.instances.watch(instance_id):
                print(instance.status)
                if instance.is_usable:
                    break
        """
        return InstanceWatch(self.poller, check_instance_id(instance_id))

    async def wait_until_running(
        self,
        instance_id: str,
        *,
        timeout: Duration | None = 900.0,
        on_progress: ProgressCallback | None = None,
    ) -> Instance:
        """Wait until an instance is running and has a `base_url`, and return it.

        Args:
            instance_id: The id of the instance.
            timeout: Maximum time to wait. Default: 15 minutes. Pass None to disable the limit.
            on_progress: A function called with a `Progress` at every change. It can be async.

        Raises:
            InvalidArgumentError: if an argument is invalid.
            StartFailedError: if the instance is stopped or has failed.
            InstanceGoneError: if the instance does not exist.
            StartTimeoutError: if it is not running in time. The instance is not changed.
            RequestError: if the service rejects the request or cannot be reached for `PollPolicy.max_outage`.

        Example:
            instance = await client.instances.wait_until_running(instance_id, timeout="10m")
            print(instance.base_url)
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
        """Return a running instance with these arguments. Start one if there is none.

        A running instance is preferred, then a pending one, then a stopped one, which is restarted. The
        method returns when the instance is running and has a `base_url`. The instance keeps running and is
        billed until you release it.

        If you leave out an argument, the model's default applies: only instances with that value match, and a
        new instance is started with it. Parallel calls on one client for the same model run one after the
        other, so two calls do not start two instances.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The GPU set of each worker. Default: the model's `recommended_config`.
            context_length: Maximum context length, in tokens. Same default as in `start`.
            num_workers: Number of workers, 1 to 8. Default: 1. Each worker has its own GPU set and is billed
                for it.
            billing_interval: `per_minute` (default) or `per_hour`.
            timeout: Maximum time to wait until the instance is running. Default: 15 minutes. Pass None to
                disable the limit.
            on_progress: A function called with a `Progress` at every change. It can be async.

        Raises:
            InvalidArgumentError: if an argument is invalid. No request is sent.
            LifecycleError: the same errors as `wait_until_running`. The instance is not changed. The error
                contains its id.
            RequestError: the same errors as `start`.

        Example:
            instance = await client.instances.ensure("meta-llama/Llama-3.1-8B-Instruct")
            print(instance.base_url)

            # When you no longer need it:
            await client.release(instance.instance_id)
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
