"""The requests that `client.instances`, leases, sweeps, and the poller send to the instance endpoints.

`Instances` in `instances.py` adds the public methods and their documentation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from .._aio.synchronization import Mutex
from .._errors import BadRequestError, ConflictError, NotFoundError
from .._http.limiter import Priority
from .._http.messages import Call, Witness
from .._poll_policy import PollPolicy
from . import wire
from .domain import AffectedInstances, Instance, InstanceArgs
from .expected import VISIBILITY_FACTOR
from .listing import Listing, existing_ids
from .matching import Claims, choose
from .polling import Poller
from .resources import ListReader, Models, Send
from .validation import check_instance_id
from .witnesses import StartWitness

# The service rejects a request that does not fit the state of the instance.
Refused = (BadRequestError, NotFoundError, ConflictError)

_LIST = Call(method="GET", path="/instances/")


class InstanceRequests:
    """The requests for instances, and the client's record of what it started and released."""

    def __init__(
        self,
        send: Send,
        policy: PollPolicy,
        *,
        reader: ListReader | None = None,
        twin: InstanceRequests | None = None,
    ) -> None:
        self._send = send
        self._policy = policy
        # A client has two of these with a shared state. Only the user's stops sending when the client is
        # closed.
        self.poller: Poller = twin.poller if twin else Poller(self, policy)
        self.ensure_locks: dict[str, Mutex] = twin.ensure_locks if twin else defaultdict(Mutex)
        # Instances that leases of this client are releasing. `ensure` must not return or restart them.
        self.releasing: set[str] = twin.releasing if twin else set()
        self.claims: Claims = twin.claims if twin else Claims()
        self.reader: ListReader = twin.reader if twin else reader or ListReader()
        self._models = Models(send, self.reader)

    async def list_now(self) -> Listing[Instance]:
        """Return all instances, ahead of other requests waiting for a free slot."""
        return await self._list(Call(method="GET", path="/instances/", priority=Priority.POLL))

    async def _list(self, call: Call = _LIST) -> Listing[Instance]:
        return self.reader.read(await self._send(call), wire.decode_instances)

    async def _get(self, instance_id: str) -> Instance:
        path = f"/instances/{check_instance_id(instance_id)}"
        return (await self._send(Call(method="GET", path=path))).decode(wire.decode_instance)

    async def _start(self, args: InstanceArgs) -> Instance:
        instance = await self.start_once(args, StartWitness(self.claims, args), retried=True)
        self.note_started(instance)
        return instance

    def note_started(self, instance: Instance, *, was_stopped: bool = False) -> None:
        """Record that an instance was started or restarted, because readings may lag behind."""
        until = anyio.current_time() + VISIBILITY_FACTOR * self._policy.settle
        self.poller.expected.add(instance, until, was_stopped=was_stopped)

    async def start_once(self, args: InstanceArgs, witness: Witness, *, retried: bool = False) -> Instance:
        """Start an instance with checked arguments, by default without retries."""
        body = wire.encode_start(args)
        call = Call(method="POST", path="/instances/start", json=body, retried=retried, witness=witness)
        return (await self._send(call)).decode(partial(wire.decode_started, args=args))

    async def _restart(self, instance_id: str) -> Instance:
        instance = await self._change("/instances/restart", instance_id, unchanged={"stopped"})
        self.note_started(instance, was_stopped=True)
        return instance

    async def restart_once(self, instance_id: str, witness: Witness) -> Instance:
        """Restart an instance without retries."""
        body = {"instance_id": instance_id}
        call = Call(method="POST", path="/instances/restart", json=body, retried=False, witness=witness)
        return (await self._send(call)).decode(wire.decode_instance)

    async def _change(self, path: str, instance_id: str, *, unchanged: set[str]) -> Instance:
        """Send a request that changes the status of an instance from one of the statuses in `unchanged`."""
        call = Call(method="POST", path=path, json={"instance_id": instance_id})
        try:
            reply = await self._send(call)
        except Refused as error:
            # If the response to an earlier attempt was lost, that attempt may have changed the status.
            instance = await self._listed(instance_id, error) if error.outcome_unknown else None
            if instance is None or instance.status.lower() in unchanged:
                raise
            return instance
        return reply.decode(wire.decode_instance)

    async def _end_all(self, call: Call) -> AffectedInstances:
        affected = (await self._send(call)).decode(wire.decode_affected)
        self.poller.expected.discard(*affected.instance_ids)
        return affected

    async def find_or_start(
        self,
        args: InstanceArgs,
        *others: InstanceArgs,
        start: Callable[[], Awaitable[Instance]],
        restart: Callable[[Instance], Awaitable[Instance]] | None = None,
        found: Callable[[Instance], None] | None = None,
        tagged: bool = False,
    ) -> Instance:
        """Find, restart, or start an instance with these arguments, as `ensure` does, without waiting for it.

        With `others`, an instance may also have those arguments. Earlier arguments are preferred.
        `found` is called with an instance that was already running or starting. `restart` replaces a plain
        restart. With `tagged`, the context length may be smaller by a tag.
        """
        self.poller.loop.check()
        async with self.ensure_locks[args.model_id]:
            # A lease cancelled while starting releases the instance once it has found it.
            while self.claims.unresolved.get(args.model_id):  # noqa: ASYNC110  (rare, and bounded)
                await anyio.sleep(self._policy.min_interval)
            listing = await self._list()
            # The instances this client has started that the list does not show yet.
            not_visible = self.poller.expected.not_visible(existing_ids(listing))
            same_model = [
                each
                for each in (*listing, *not_visible)
                if each.instance_args.model_id == args.model_id and each.instance_id not in self.releasing
            ]
            model = await self._models.get(args.model_id) if same_model else None
            found_for = (choose(same_model, each, model, tagged=tagged) for each in (args, *others))
            existing = next(filter(None, found_for), None)
            if existing is None:
                return await start()
            instance_id = existing.instance_id
            if existing.status.lower() == "stopped":
                try:
                    return await (self._restart(instance_id) if restart is None else restart(existing))
                except Refused as refusal:
                    listed = await self._listed(instance_id, refusal)
                    if listed is None and await self._is_missing(instance_id):
                        return await start()  # another process deleted it
                    if listed is None or listed.status.lower() not in {"running", "pending"}:
                        raise
                    # Another process restarted it, unless one of our attempts without a response did.
                    existing = listed
                    if refusal.outcome_unknown:
                        return existing
            if found is not None:
                found(existing)
            return existing

    async def _listed(self, instance_id: str, refusal: Exception) -> Instance | None:
        """Return an instance, or None if it is not listed. If its entry cannot be parsed, raise the error."""
        # Not `get`, because an id may contain characters that are not allowed in a path.
        instances = await self._list()
        found = next((each for each in instances if each.instance_id == instance_id), None)
        if found is None and instance_id in existing_ids(instances):
            raise refusal
        return found

    async def get_confirmed(self, instance_id: str) -> Instance:
        """Return one instance like `get`, but treat it as missing only when readings agree."""
        try:
            return await self._get(instance_id)
        except Refused:
            if (reading := await self.poller.next(self.poller.subscribe(instance_id))) is not None:
                return reading
            raise

    async def _is_missing(self, instance_id: str) -> bool:
        """Return whether two readings, seconds apart, agree that the instance does not exist."""
        return await self.poller.next(self.poller.subscribe(instance_id)) is None

    async def read_one(self, instance_id: str) -> Instance:
        """Return one instance without retries, for the poller."""
        call = _poll(f"/instances/{check_instance_id(instance_id)}")
        return (await self._send(call)).decode(wire.decode_instance)

    async def read_all(self) -> Listing[Instance]:
        """Return all instances without retries, for the poller."""
        return await self._list(_poll("/instances/"))


def _poll(path: str) -> Call:
    return Call(method="GET", path=path, retried=False, priority=Priority.POLL)
