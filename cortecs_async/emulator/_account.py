"""The emulated account: its instances, tokens, capacity, and bill.

Synchronous and not thread-safe: the caller must hold a lock. Methods that need the time take it as `now`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cortecs_async.emulator._catalog import HARDWARE, Model
from cortecs_async.emulator._instance import (
    BILLED,
    Instance,
    InstanceArgs,
    Run,
    cost_of,
    instance_json,
    interval_cost,
    ledger_entry,
    status_of,
)
from cortecs_async.emulator._messages import ApiError, integer_field, required_string, string_field
from cortecs_async.emulator._queue import InferenceQueue, Slot
from cortecs_async.emulator._records import LedgerEntry, LedgerStatus
from cortecs_async.emulator._settings import Settings
from cortecs_async.emulator._views import Replicas, all_as_of, as_of

_DEFAULT_CONTEXT_LENGTH = 32000


def read_args(body: Mapping[str, Any], models: Mapping[str, Model]) -> InstanceArgs:
    """Check the body of a start request and fill in the defaults. Null counts as absent."""
    model_id = required_string(body, "model_id")
    hardware_type_id = string_field(body, "hardware_type_id")
    context_length = integer_field(body, "context_length", least=1)
    billing_interval = string_field(body, "billing_interval") or "per_minute"
    num_workers = integer_field(body, "num_workers", least=1, most=8) or 1
    model = models.get(model_id)
    if model is None:
        raise ApiError(400, f"Unknown model_id {model_id!r}.")
    if hardware_type_id is None:
        hardware_type_id = model.recommended_config
    hardware = HARDWARE.get(hardware_type_id)
    if hardware is None:
        raise ApiError(400, f"Unknown hardware_type_id {hardware_type_id!r}.")
    max_model_len = model.max_model_len.get(hardware_type_id)
    if max_model_len is None:
        raise ApiError(400, f"{model_id} does not run on {hardware_type_id}.")
    if context_length is not None and context_length > max_model_len:
        raise ApiError(
            400, f"context_length must be at most {max_model_len} for {model_id} on {hardware_type_id}."
        )
    if billing_interval not in {"per_minute", "per_hour"}:
        raise ApiError(400, "billing_interval must be per_minute or per_hour.")
    return InstanceArgs(
        model=model,
        hardware=hardware,
        context_length=context_length or min(_DEFAULT_CONTEXT_LENGTH, max_model_len),
        billing_interval=billing_interval,
        num_workers=num_workers,
    )


@attrs.frozen
class _CapacityChange:
    at: float
    hardware_type_id: str
    sets: int


@attrs.define
class Account:
    settings: Settings
    root_url: str
    instances: dict[str, Instance] = attrs.field(factory=dict)
    """The existing instances, oldest first."""
    deleted: dict[str, Instance] = attrs.field(factory=dict)
    """The deleted instances, kept separately so that a long history does not slow down requests."""
    deleted_cost: float = 0.0
    """The total cost of the deleted instances."""
    tokens: dict[str, float] = attrs.field(factory=dict)
    """Access tokens, each with the time at which it expires."""
    queues: dict[str, InferenceQueue] = attrs.field(factory=dict)
    """With `parallel`: the inference queue of each instance, until it stops."""
    answers: int = 0
    """The number of inference answers so far."""
    entries: list[Any] = attrs.field(factory=list)
    """JSON values to show in the list after the instances."""
    capacity_changes: list["_CapacityChange"] = attrs.field(factory=list)
    """The changes of the capacity, oldest first."""
    price_infos: dict[str, Any] = attrs.field(factory=dict)
    """The `price_info` that the lists of hardware show instead of the catalog's, by hardware type."""
    # Lower bounds, so that a start need not check each of thousands of instances: the balance, the time
    # until which it holds, and the free GPU sets by hardware type.
    _least_balance: float = attrs.field(default=0.0, init=False)
    _holds_until: float = attrs.field(default=-math.inf, init=False)
    _least_free: dict[str, int] = attrs.field(factory=dict, init=False)
    list_replicas: Replicas = attrs.field(
        default=attrs.Factory(lambda self: Replicas(self.settings.list_lag), takes_self=True)
    )
    get_replicas: Replicas = attrs.field(
        default=attrs.Factory(lambda self: Replicas(self.settings.get_lag), takes_self=True)
    )

    def issue_token(self, now: float) -> str:
        token = f"emulator-token-{len(self.tokens) + 1}"
        self.tokens[token] = now + self.settings.token_lifetime
        return token

    def is_valid_token(self, token: str, now: float) -> bool:
        """Return whether a token was issued here and has not expired."""
        return now < self.tokens.get(token, now)

    def reserve_slot(self, instance_id: str, now: float) -> Slot:
        """Reserve the time for working on an inference request."""
        settings = self.settings
        if settings.parallel is None:
            return Slot(now, now + settings.answer_seconds)
        queue = self.queues.get(instance_id)
        if queue is None:
            queue = InferenceQueue(settings.answer_seconds, settings.parallel, settings.queue)
            self.queues[instance_id] = queue
        return queue.reserve(now)

    def release_slot(self, instance_id: str, slot: Slot, now: float) -> None:
        """Release a slot after its caller has disconnected."""
        queue = self.queues.get(instance_id)
        if queue is not None:
            queue.release(slot, now)

    def without(self, instance_id: str | None) -> "Account":
        """Return a view of the account without this instance, or pass None to leave out everything."""
        if instance_id is None:
            return attrs.evolve(self, instances={}, deleted={}, entries=[])
        instances, deleted = (
            {each: instance for each, instance in source.items() if each != instance_id}
            for source in (self.instances, self.deleted)
        )
        return attrs.evolve(self, instances=instances, deleted=deleted)

    def list_json(self, now: float) -> list[Any]:
        """Return the content of a list, which may lag."""
        at = self.list_replicas.view_time(now)
        shown: Iterable[Instance] = self.instances.values()
        if at != now:
            shown = all_as_of(shown, self.deleted, at)
        if self.settings.hide_stopped:
            shown = [instance for instance in shown if self.status(instance, at) != "stopped"]
        return [*(self.json(instance, at) for instance in shown), *self.entries]

    def get_json(self, instance_id: str, now: float) -> dict[str, Any]:
        """Return the state of one instance as a request shows it, which may lag."""
        at = self.get_replicas.view_time(now)
        if at == now:
            return self.json(self.get(instance_id), now)
        instance = self.instances.get(instance_id) or self.deleted.get(instance_id)
        view = None if instance is None else as_of(instance, at)
        if view is None:
            raise self._unknown(instance_id)
        return self.json(view, at)

    def get(self, instance_id: str) -> Instance:
        instance = self.instances.get(instance_id)
        if instance is None:
            raise self._unknown(instance_id)
        return instance

    def _unknown(self, instance_id: str) -> ApiError:
        return ApiError(self.settings.unknown_status, f"Instance {instance_id} does not exist.")

    def status(self, instance: Instance, now: float) -> LedgerStatus:
        return status_of(instance, now, self.settings)

    def json(self, instance: Instance, now: float) -> dict[str, Any]:
        return instance_json(instance, now, self.settings, self.root_url)

    def billing(self, now: float) -> tuple[str, ...]:
        """Return the ids of the instances currently billed."""
        return tuple(self._ids_with_status(BILLED, now))

    def _ids_with_status(self, statuses: frozenset[str], now: float) -> list[str]:
        return [
            instance_id
            for instance_id, instance in self.instances.items()
            if self.status(instance, now) in statuses
        ]

    def ledger(self, now: float) -> tuple[LedgerEntry, ...]:
        """Return the bill of every instance, including deleted ones, in the order they were started."""
        all_instances = [*self.instances.values(), *self.deleted.values()]
        all_instances.sort(key=lambda instance: instance.number)
        return tuple(ledger_entry(instance, now, self.settings) for instance in all_instances)

    def total_cost(self, now: float) -> float:
        return round(
            self.deleted_cost + sum(cost_of(instance, now) for instance in self.instances.values()), 6
        )

    def balance(self, now: float) -> float:
        """Return the remaining balance. It can be negative, because no instance stops by itself."""
        return round(self.settings.balance - self.total_cost(now), 6)

    def set_capacity(self, hardware_type_id: str, sets: int, now: float) -> None:
        """Change the number of GPU sets of a hardware type."""
        self.capacity_changes.append(_CapacityChange(now, hardware_type_id, sets))
        self._least_free.pop(hardware_type_id, None)

    def free_sets(self, hardware_type_id: str, now: float, *, at: float | None = None) -> int:
        """Return the number of free GPU sets of a hardware type, now or `at` an earlier time."""
        at = now if at is None else at
        shown: Iterable[Instance] = self.instances.values()
        if at != now:
            shown = all_as_of(shown, self.deleted, at)
        used = sum(
            each.args.num_workers
            for each in shown
            if each.args.hardware.hardware_type_id == hardware_type_id and self.status(each, at) in BILLED
        )
        sets = self.settings.capacity.get(hardware_type_id, HARDWARE[hardware_type_id].sets)
        for change in self.capacity_changes:
            if change.hardware_type_id == hardware_type_id and change.at <= at:
                sets = change.sets
        return max(0, sets - used)

    def available(self, now: float) -> list[str]:
        """Return the hardware types that the list of available ones shows, which may lag."""
        at = now - self.settings.available_lag
        return [each for each in HARDWARE if self.free_sets(each, now, at=at) > 0]

    def _take_capacity(self, args: InstanceArgs, now: float) -> None:
        """Check that the balance and the capacity are sufficient for one more instance, and count it."""
        if self._least_balance <= 0 or now >= self._holds_until:
            balance = self.balance(now)
            if balance <= 0:
                raise ApiError(402, "The balance is used up.")
            # In a minute, at most two more billing intervals of an instance begin.
            self._least_balance = balance - sum(
                2 * interval_cost(each.args) for each in self.instances.values()
            )
            self._holds_until = now + 60
        self._least_balance -= 2 * interval_cost(args)
        hardware_type_id = args.hardware.hardware_type_id
        if self._least_free.get(hardware_type_id, 0) < args.num_workers:
            free = self._least_free[hardware_type_id] = self.free_sets(hardware_type_id, now)
            if free < args.num_workers:
                raise ApiError(
                    503, f"No capacity: {args.num_workers} x {hardware_type_id} requested, {free} free."
                )
        self._least_free[hardware_type_id] -= args.num_workers

    def start(self, args: InstanceArgs, now: float) -> Instance:
        self._take_capacity(args, now)
        return self._save(Instance(len(self.instances) + len(self.deleted) + 1, args, (Run(now),)))

    def restart(self, instance_id: str, now: float) -> Instance:
        instance = self.get(instance_id)
        status = self.status(instance, now)
        if status != "stopped":
            raise ApiError(400, f"Instance {instance_id} is {status}; only a stopped one can be restarted.")
        self._take_capacity(instance.args, now)
        return self._save(instance.restart(now))

    def stop(self, instance_id: str, now: float) -> Instance:
        instance = self.get(instance_id)
        status = self.status(instance, now)
        if status not in {"pending", "running"}:
            raise ApiError(400, f"Instance {instance_id} is already {status}.")
        self.queues.pop(instance_id, None)
        return self._save(instance.stop(now, self.settings.stop_seconds))

    def stop_all(self, now: float) -> list[str]:
        """Stop all pending and running instances, and return their ids."""
        ids = self._ids_with_status(frozenset({"pending", "running"}), now)
        for instance_id in ids:
            self.stop(instance_id, now)
        return ids

    def delete(self, instance_id: str, now: float, *, force: bool = False) -> Instance:
        instance = self.get(instance_id)
        status = self.status(instance, now)
        if status != "stopped" and not force:
            raise ApiError(400, f"Instance {instance_id} is {status}; only a stopped one can be deleted.")
        instance = self.instances.pop(instance_id).delete(now)
        self.queues.pop(instance_id, None)
        self.deleted[instance_id] = instance
        self.deleted_cost += cost_of(instance, now)
        return instance

    def delete_all(self, now: float, *, force: bool) -> list[str]:
        """Delete all stopped instances (with `force`, all instances) and return their ids."""
        ids = list(self.instances) if force else self._ids_with_status(frozenset({"stopped"}), now)
        for instance_id in ids:
            self.delete(instance_id, now, force=force)
        return ids

    def _save(self, instance: Instance) -> Instance:
        self.instances[instance.instance_id] = instance
        return instance
