"""`client.instances`: every endpoint of an instance, and the waits built on them."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Awaitable, Callable

import anyio

from .._config import PollPolicy
from .._errors import BadRequestError, ConflictError, DecodeError, InvalidArgumentError, NotFoundError
from .._http.limiter import Priority
from .._http.messages import Call, Failure, Reply, Witness
from .domain import AffectedInstances, Instance, InstanceArgs
from .matching import Claims, choose
from .polling import Poller
from .resources import Models, Send
from .validation import check_instance_id, check_named_id, check_seconds, check_start
from .waiting import InstanceWatch, ProgressCallback, wait_until_running
from .wire import decode_affected, decode_instance, decode_instances, encode_start

_Refused = (BadRequestError, NotFoundError, ConflictError)


class Origin(enum.Enum):
    """Where the instance of an `ensure` came from."""

    FOUND = "found"
    RESTARTED = "restarted"
    STARTED = "started"


class StartWitness:
    """Witness of a plain start: counts it, and claims its instance."""

    def __init__(self, claims: Claims, model_id: str) -> None:
        self._claims = claims
        self._model_id = model_id

    def sending(self) -> None:
        """See `Witness`."""
        self._claims.begin_request(self._model_id)

    def settled(self, outcome: Reply | Failure) -> None:
        """See `Witness`."""
        self._claims.end_request(self._model_id)
        if isinstance(outcome, Reply):
            with contextlib.suppress(DecodeError):
                self._claims.ids.add(outcome.decode(decode_instance).instance_id)


class UncancellableWitness:
    """Has a restart seen to its end: a stop must not overtake it."""

    def sending(self) -> None:
        """See `Witness`."""

    def settled(self, outcome: Reply | Failure) -> None:
        """See `Witness`."""


class Instances:
    """`client.instances`.

    These are the plain requests: what is started here runs, and is billed, until it is stopped. The context
    manager `client.instance(...)` is the way to start something that cannot be forgotten.
    """

    def __init__(self, send: Send, policy: PollPolicy, *, twin: Instances | None = None) -> None:
        self._send = send
        self._policy = policy
        self._models = Models(send)
        # One poller and one turn a client, though a client has two of these: one for its leases, whose
        # requests still go out after it was closed, and one for its user, whose requests do not.
        self.poller: Poller = twin.poller if twin else Poller(self, policy)
        self.ensuring: anyio.Lock = twin.ensuring if twin else anyio.Lock()
        # Ids that a lease of this client is handing back: stopped perhaps, but nothing to take up again.
        self.releasing: set[str] = twin.releasing if twin else set()
        self.claims: Claims = twin.claims if twin else Claims()

    async def list(self) -> tuple[Instance, ...]:
        """Every instance of the account, whoever started it (`GET /instances/`).

        Raises:
            RequestError: when there is no usable answer.
        """
        return (await self._send(Call(method="GET", path="/instances/"))).decode(decode_instances)

    async def list_now(self) -> tuple[Instance, ...]:
        """`list` ahead of everything else, for what a lease or a release waits for."""
        call = Call(method="GET", path="/instances/", priority=Priority.POLL)
        return (await self._send(call)).decode(decode_instances)

    async def get(self, instance_id: str) -> Instance:
        """One instance (`GET /instances/{instance_id}`).

        Raises:
            InvalidArgumentError: for what is no id, before any request.
            BadRequestError: or `NotFoundError`, for an unknown id.
            RequestError: when there is no usable answer.
        """
        path = f"/instances/{check_instance_id(instance_id)}"
        return (await self._send(Call(method="GET", path=path))).decode(decode_instance)

    async def start(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: str = "per_minute",
    ) -> Instance:
        """Starts an instance and returns at once, while it initialises (`POST /instances/start`).

        Not idempotent, and never repeated unless it is certain that nothing was started. An error whose
        `outcome_unknown` is true may have left an instance behind.

        Args:
            model_id: In either spelling, `org/name` or `org--name`.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: min(32000, the longest on this hardware).
            num_workers: 1 to 8; each has a GPU set to itself, and is billed for it.
            billing_interval: `per_minute` or `per_hour`.

        Raises:
            InvalidArgumentError: for bad arguments, before any request.
            InsufficientBalanceError: the balance is used up.
            ServiceUnavailableError: no free capacity.
            RequestError: when the service refuses otherwise, or there is no usable answer.
        """
        args = check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval)
        return await self._start_counted(args)

    async def _start_counted(self, args: InstanceArgs) -> Instance:
        # Where leases of this client look for lost starts of their own, this one must not be taken for one.
        return await self.start_once(args, StartWitness(self.claims, args.model_id), retried=True)

    async def start_once(self, args: InstanceArgs, witness: Witness, *, retried: bool = False) -> Instance:
        """`start` with arguments that were checked before, and without retries."""
        body = encode_start(args)
        call = Call(method="POST", path="/instances/start", json=body, retried=retried, witness=witness)
        return (await self._send(call)).decode(decode_instance)

    async def restart(self, instance_id: str) -> Instance:
        """Starts a stopped instance again and returns at once (`POST /instances/restart`).

        Raises:
            InvalidArgumentError: for what is no id, before any request.
            BadRequestError: when it is unknown or not stopped.
            RequestError: when there is no usable answer.
        """
        return await self._restart(check_named_id(instance_id))

    async def _restart(self, instance_id: str, *, witness: Witness | None = None) -> Instance:
        call = Call(
            method="POST", path="/instances/restart", json={"instance_id": instance_id}, witness=witness
        )
        try:
            reply = await self._send(call)
        except _Refused as error:
            # An attempt before this one was heard, although its answer was lost.
            instance = await self._listed(instance_id) if error.outcome_unknown else None
            if instance is None or instance.status == "stopped":
                raise
            return instance
        return reply.decode(decode_instance)

    async def stop(self, instance_id: str) -> Instance:
        """Stops an instance, which ends its billing (`POST /instances/stop`).

        Whether it is stopped when the answer comes is undocumented: `get` tells.

        Raises:
            InvalidArgumentError: for what is no id, before any request.
            BadRequestError: when it is unknown, or perhaps when it is stopped already.
            RequestError: when there is no usable answer.
        """
        check_named_id(instance_id)
        try:
            reply = await self._send(
                Call(method="POST", path="/instances/stop", json={"instance_id": instance_id})
            )
        except _Refused as error:
            instance = await self._listed(instance_id) if error.outcome_unknown else None
            if instance is None or instance.status in {"running", "pending"}:
                raise
            return instance
        return reply.decode(decode_instance)

    async def delete(self, instance_id: str) -> None:
        """Deletes a stopped instance (`DELETE /instances/{instance_id}`).

        Raises:
            InvalidArgumentError: for what is no id, before any request.
            BadRequestError: when it is unknown or not stopped.
            RequestError: when there is no usable answer.
        """
        path = f"/instances/{check_instance_id(instance_id)}"
        try:
            await self._send(Call(method="DELETE", path=path))
        except _Refused as error:
            if not error.outcome_unknown or await self._listed(instance_id) is not None:
                raise

    async def stop_all(self) -> AffectedInstances:
        """Stops every running instance **of the account**, whoever started it (`POST /instances/stop-all`).

        Returns:
            The ids that were stopped; after a repeated request, only those of the last attempt.

        Raises:
            RequestError: when there is no usable answer.
        """
        return (await self._send(Call(method="POST", path="/instances/stop-all"))).decode(decode_affected)

    async def delete_all(self, *, force: bool = False) -> AffectedInstances:
        """Deletes every stopped instance **of the account** (`DELETE /instances/delete-all`).

        Args:
            force: Deletes running instances too, other people's and programs' among them.

        Returns:
            The ids that were deleted; after a repeated request, only those of the last attempt.

        Raises:
            InvalidArgumentError: when `force` is no bool: "false" must not count as true.
            RequestError: when there is no usable answer.
        """
        if not isinstance(force, bool):
            raise InvalidArgumentError(f"force must be True or False, not {force!r}")
        call = Call(
            method="DELETE",
            path="/instances/delete-all",
            params={"force_deletion": "true" if force else "false"},
        )
        return (await self._send(call)).decode(decode_affected)

    def watch(self, instance_id: str) -> InstanceWatch:
        """Streams an instance's state: `async for snapshot in client.instances.watch(id)`, one item a change.

        The first item is the present state; the iteration ends when the instance is gone. The service has no
        push: changes are polled for, at a pace that `PollPolicy` states, with one request for all watches.

        Raises:
            InvalidArgumentError: for what is no id. The iteration raises `InstanceGoneError` for an id that
                does not exist.
        """
        return InstanceWatch(self.poller, check_instance_id(instance_id))

    async def wait_until_running(
        self,
        instance_id: str,
        *,
        timeout: float | None = 900.0,
        on_progress: ProgressCallback | None = None,
    ) -> Instance:
        """Waits until an instance runs and has a `base_url`.

        Args:
            instance_id: Which one.
            timeout: Seconds; None for no limit.
            on_progress: Called with every change; may be async.

        Raises:
            InvalidArgumentError: for what is no id.
            StartFailedError: when it is, or becomes, stopped or failed.
            InstanceGoneError: when it does not exist.
            StartTimeoutError: when the time is up. The instance is left as it is.
            RequestError: when the service refuses, or was out of reach for too long.
        """
        check_seconds("timeout", timeout, optional=True)
        return await wait_until_running(
            self.poller,
            check_instance_id(instance_id),
            self._policy,
            timeout=timeout,
            on_progress=on_progress,
        )

    async def ensure(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: str = "per_minute",
        timeout: float | None = 900.0,
        on_progress: ProgressCallback | None = None,
    ) -> Instance:
        """A running instance with these arguments, waited for until it runs.

        One that runs is taken first, then one that is starting, then a stopped one, restarted, then a new
        one. Arguments left out mean the model's defaults, as for `start`, and are compared as such. Calls
        through one client take turns, so two at once do not start two.

        Args:
            model_id: In either spelling.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: min(32000, the longest on this hardware).
            num_workers: 1 to 8.
            billing_interval: `per_minute` or `per_hour`.
            timeout: Seconds to wait until it runs; None for no limit.
            on_progress: Called with every change; may be async.

        Raises:
            InvalidArgumentError: for bad arguments, before any request.
            LifecycleError: as `wait_until_running`. The instance is left as it is: its id is in the error.
            RequestError: as `start`.
        """
        check_seconds("timeout", timeout, optional=True)
        args = check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval)
        instance = await self.find_or_start(args, start=lambda: self._start_counted(args))
        return await wait_until_running(
            self.poller,
            instance.instance_id,
            self._policy,
            timeout=timeout,
            settle=self._policy.settle,
            known=instance,
            on_progress=on_progress,
        )

    async def find_or_start(
        self,
        args: InstanceArgs,
        *,
        start: Callable[[], Awaitable[Instance]],
        found: Callable[[Instance, Origin], Awaitable[None]] | None = None,
    ) -> Instance:
        """`ensure` without the wait.

        Args:
            args: What it must have.
            start: Starts a new one.
            found: Told of one that is there already; before a restart, because when the answer to that is
                lost it may run all the same, and again when that is refused: then it is not ours.
        """
        async with self.ensuring:
            same_model = [
                each
                for each in await self.list()
                if each.instance_args.model_id == args.model_id and each.instance_id not in self.releasing
            ]
            model = await self._models.get(args.model_id) if same_model else None
            match = choose(same_model, args, model)
            if match is None:
                return await start()
            origin = Origin.RESTARTED if match.status == "stopped" else Origin.FOUND
            if found is not None:
                await found(match, origin)
            if origin is Origin.FOUND:
                return match
            try:
                return await self._restart(
                    match.instance_id, witness=None if found is None else UncancellableWitness()
                )
            except _Refused as refusal:
                other = await self._listed(match.instance_id)
                if other is not None and found is not None and not refusal.outcome_unknown:
                    await found(other, Origin.FOUND)
                if other is not None and other.status in {"running", "pending"}:
                    return other  # somebody else was faster
                if other is not None:
                    raise
            # Somebody has deleted it since.
            return await start()

    async def _listed(self, instance_id: str) -> Instance | None:
        # From the list, which also knows ids that cannot stand in a path.
        return next((each for each in await self.list() if each.instance_id == instance_id), None)

    async def read_one(self, instance_id: str) -> Instance:
        """For the poller: `get` without retries."""
        path = f"/instances/{check_instance_id(instance_id)}"
        return (await self._send(_look(path))).decode(decode_instance)

    async def read_all(self) -> tuple[Instance, ...]:
        """For the poller: `list` without retries."""
        return (await self._send(_look("/instances/"))).decode(decode_instances)


def _look(path: str) -> Call:
    return Call(method="GET", path=path, retried=False, priority=Priority.POLL)
