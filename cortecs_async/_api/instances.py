"""`client.instances`: the endpoints of instances, and the waits built on them.

To add an endpoint, add a method to `Instances` that sends a `Call` and decodes the reply: see `resources.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from .._aio.synchronization import Mutex
from .._config import PollPolicy
from .._durations import Duration, check_seconds
from .._errors import BadRequestError, ConflictError, NotFoundError
from .._hints import hinted
from .._http.limiter import Priority
from .._http.messages import Call, Witness
from . import wire
from .domain import AffectedInstances, Instance, InstanceArgs
from .expected import VISIBILITY_FACTOR
from .listing import Listing, existing_ids
from .matching import Claims, choose
from .polling import Poller
from .resources import ListReader, Models, Send
from .validation import BillingInterval, check_body_id, check_bool, check_instance_id, check_start
from .waiting import InstanceWatch, ProgressCallback, wait_until_running
from .witnesses import StartWitness

# The service rejects a request that does not fit the state of the instance.
_Refused = (BadRequestError, NotFoundError, ConflictError)


@hinted
class Instances:
    """`client.instances`: plain requests.

    An instance that you start here runs, and is billed, until you stop it. To have it stopped and deleted for
    you, use the context manager `client.instance(...)`.
    """

    def __init__(self, send: Send, policy: PollPolicy, *, twin: Instances | None = None) -> None:
        self._send = send
        self._policy = policy
        # A client has two, with one state. Only the user's stops sending when the client is closed.
        self.poller: Poller = twin.poller if twin else Poller(self, policy)
        self.ensure_locks: dict[str, Mutex] = twin.ensure_locks if twin else defaultdict(Mutex)
        # Instances that leases of this client are releasing. `ensure` must not return or restart them.
        self.releasing: set[str] = twin.releasing if twin else set()
        self.claims: Claims = twin.claims if twin else Claims()
        self.reader: ListReader = twin.reader if twin else ListReader()
        self._models = Models(send, self.reader)

    async def list(self) -> Listing[Instance]:
        """Return all instances of the account, including those that you did not start (`GET /instances/`).

        An entry that cannot be read is skipped and logged. It is in the `unreadable` of the result, because
        its instance exists: perhaps someone else's, perhaps yours.

        Raises:
            RequestError: the request failed.
        """
        return await self._list(Call(method="GET", path="/instances/"))

    async def list_now(self) -> Listing[Instance]:
        """Return all instances, ahead of other requests that wait for a free slot."""
        return await self._list(Call(method="GET", path="/instances/", priority=Priority.POLL))

    async def _list(self, call: Call) -> Listing[Instance]:
        return self.reader.read(await self._send(call), wire.decode_instances)

    async def get(self, instance_id: str) -> Instance:
        """Return one instance (`GET /instances/{instance_id}`).

        Raises:
            InvalidArgumentError: the id is not valid; no request was sent.
            BadRequestError: or `NotFoundError`: the instance does not exist.
            RequestError: the request failed in another way.
        """
        path = f"/instances/{check_instance_id(instance_id)}"
        return (await self._send(Call(method="GET", path=path))).decode(wire.decode_instance)

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

    async def _start(self, args: InstanceArgs) -> Instance:
        instance = await self.start_once(args, StartWitness(self.claims, args), retried=True)
        self.note_started(instance)
        return instance

    def note_started(self, instance: Instance, *, was_stopped: bool = False) -> None:
        """Note that an instance was started or restarted, because readings may lag behind."""
        until = anyio.current_time() + VISIBILITY_FACTOR * self._policy.settle
        self.poller.expected.add(instance, until, was_stopped=was_stopped)

    async def start_once(self, args: InstanceArgs, witness: Witness, *, retried: bool = False) -> Instance:
        """Start an instance with checked arguments, by default without retries."""
        body = wire.encode_start(args)
        call = Call(method="POST", path="/instances/start", json=body, retried=retried, witness=witness)
        return (await self._send(call)).decode(partial(wire.decode_started, args=args))

    async def restart(self, instance_id: str) -> Instance:
        """Restart a stopped instance without waiting for it to run (`POST /instances/restart`).

        Raises:
            InvalidArgumentError: the id is not valid; no request was sent.
            BadRequestError: the instance does not exist, or is not stopped.
            RequestError: the request failed in another way.
        """
        return await self._restart(check_body_id(instance_id))

    async def _restart(self, instance_id: str) -> Instance:
        instance = await self._change("/instances/restart", instance_id, unchanged={"stopped"})
        self.note_started(instance, was_stopped=True)
        return instance

    async def restart_once(self, instance_id: str, witness: Witness) -> Instance:
        """Restart an instance without retries."""
        body = {"instance_id": instance_id}
        call = Call(method="POST", path="/instances/restart", json=body, retried=False, witness=witness)
        return (await self._send(call)).decode(wire.decode_instance)

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

    async def _change(self, path: str, instance_id: str, *, unchanged: set[str]) -> Instance:
        """Send a request that changes the status of an instance from one of those in `unchanged`."""
        call = Call(method="POST", path=path, json={"instance_id": instance_id})
        try:
            reply = await self._send(call)
        except _Refused as error:
            # If the response to an earlier attempt was lost, that attempt may have changed the status.
            instance = await self._listed(instance_id, error) if error.outcome_unknown else None
            if instance is None or instance.status.lower() in unchanged:
                raise
            return instance
        return reply.decode(wire.decode_instance)

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
        except _Refused as error:
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

    async def _end_all(self, call: Call) -> AffectedInstances:
        affected = (await self._send(call)).decode(wire.decode_affected)
        self.poller.expected.discard(*affected.instance_ids)
        return affected

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

    async def find_or_start(
        self,
        args: InstanceArgs,
        *,
        start: Callable[[], Awaitable[Instance]],
        restart: Callable[[Instance], Awaitable[Instance]] | None = None,
        found: Callable[[Instance], None] | None = None,
        tagged: bool = False,
    ) -> Instance:
        """Find, restart or start an instance with these arguments, as `ensure` does, without waiting for it.

        `found` is called with an instance that was running or starting already. `restart` replaces a plain
        restart. With `tagged`, the context length may be smaller by a tag.
        """
        self.poller.loop.check()
        async with self.ensure_locks[args.model_id]:
            # A lease that was cancelled while it started an instance releases it once it has found it.
            while self.claims.unresolved.get(args.model_id):  # noqa: ASYNC110  (rare, and bounded)
                await anyio.sleep(self._policy.min_interval)
            listing = await self.list()
            # Those that this client has started, but the list does not show yet.
            not_visible = self.poller.expected.not_visible(existing_ids(listing))
            same_model = [
                each
                for each in (*listing, *not_visible)
                if each.instance_args.model_id == args.model_id and each.instance_id not in self.releasing
            ]
            model = await self._models.get(args.model_id) if same_model else None
            existing = choose(same_model, args, model, tagged=tagged)
            if existing is None:
                return await start()
            instance_id = existing.instance_id
            if existing.status.lower() == "stopped":
                try:
                    return await (self._restart(instance_id) if restart is None else restart(existing))
                except _Refused as refusal:
                    listed = await self._listed(instance_id, refusal)
                    if listed is None and await self._is_missing(instance_id):
                        return await start()  # another process has deleted it
                    if listed is None or listed.status.lower() not in {"running", "pending"}:
                        raise
                    # Another process has restarted it, unless an attempt without a response did.
                    existing = listed
                    if refusal.outcome_unknown:
                        return existing
            if found is not None:
                found(existing)
            return existing

    async def _listed(self, instance_id: str, refusal: Exception) -> Instance | None:
        """Return an instance, or None if it is not listed. If its entry is unreadable, raise the refusal."""
        # Not `get`: an id may contain characters that are not allowed in a path.
        instances = await self.list()
        found = next((each for each in instances if each.instance_id == instance_id), None)
        if found is None and instance_id in existing_ids(instances):
            raise refusal
        return found

    async def get_confirmed(self, instance_id: str) -> Instance:
        """As `get`, but believe that the instance does not exist only when readings agree."""
        try:
            return await self.get(instance_id)
        except _Refused:
            if (reading := await self.poller.next(self.poller.subscribe(instance_id))) is not None:
                return reading
            raise

    async def _is_missing(self, instance_id: str) -> bool:
        """Return whether two readings, seconds apart, agree that the instance does not exist."""
        return await self.poller.next(self.poller.subscribe(instance_id)) is None

    async def read_one(self, instance_id: str) -> Instance:
        """Return one instance, for the poller: without retries."""
        call = _poll(f"/instances/{check_instance_id(instance_id)}")
        return (await self._send(call)).decode(wire.decode_instance)

    async def read_all(self) -> Listing[Instance]:
        """Return all instances, for the poller: without retries."""
        return await self._list(_poll("/instances/"))


def _poll(path: str) -> Call:
    return Call(method="GET", path=path, retried=False, priority=Priority.POLL)
