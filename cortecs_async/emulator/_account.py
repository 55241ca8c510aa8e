"""The emulated account: every instance there ever was, tokens, capacity and the bill.

Synchronous and not thread-safe: whoever holds it locks it. Every deed takes the time as an argument.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from cortecs_async.emulator._answers import Refusal, integer_field, required_string, string_field
from cortecs_async.emulator._catalogue import HARDWARE, MODELS
from cortecs_async.emulator._machine import (
    BILLED,
    Arguments,
    Machine,
    Run,
    cost_of,
    default_context_length,
    instance_json,
    ledger_entry,
    status_of,
)
from cortecs_async.emulator._places import Place, Places
from cortecs_async.emulator._records import LedgerEntry
from cortecs_async.emulator._settings import Settings


def read_arguments(body: Mapping[str, Any]) -> Arguments:
    """Check the body of a start and fill in the defaults. Null counts as absent.

    Raises:
        Refusal: 400 for anything that cannot be started.
    """
    model_id = required_string(body, "model_id")
    hardware_type_id = string_field(body, "hardware_type_id")
    context_length = integer_field(body, "context_length", least=1)
    billing_interval = string_field(body, "billing_interval") or "per_minute"
    num_workers = integer_field(body, "num_workers", least=1, most=8) or 1
    model = MODELS.get(model_id)
    if model is None:
        raise Refusal(400, f"Unknown model_id {model_id!r}.")
    if hardware_type_id is None:
        hardware_type_id = model.recommended_config
    hardware = HARDWARE.get(hardware_type_id)
    if hardware is None:
        raise Refusal(400, f"Unknown hardware_type_id {hardware_type_id!r}.")
    longest = model.max_model_len.get(hardware_type_id)
    if longest is None:
        raise Refusal(400, f"{model_id} does not run on {hardware_type_id}.")
    if context_length is not None and context_length > longest:
        raise Refusal(400, f"context_length must be at most {longest} for {model_id} on {hardware_type_id}.")
    if billing_interval not in {"per_minute", "per_hour"}:
        raise Refusal(400, "billing_interval must be per_minute or per_hour.")
    return Arguments(
        model=model,
        hardware=hardware,
        context_length=context_length or default_context_length(model, hardware),
        billing_interval=billing_interval,
        num_workers=num_workers,
    )


@attrs.define
class Account:
    """One account at the emulated service."""

    settings: Settings
    root_url: str
    alive: dict[str, Machine] = attrs.field(factory=dict)
    """The instances that exist, oldest first."""
    gone: dict[str, Machine] = attrs.field(factory=dict)
    """Those that were deleted. Apart, so that a long history makes no request slower."""
    gone_cost: float = 0.0
    """What the deleted ones cost."""
    tokens: dict[str, float] = attrs.field(factory=dict)
    """Access tokens and the time each expires."""
    places: dict[str, Places] = attrs.field(factory=dict)
    """Who is answered when, by the id of an instance that has a limit; gone with its run."""
    answers: int = 0
    """How many inference answers were numbered."""

    def issue_token(self, now: float) -> str:
        """Make a new access token."""
        token = f"emulator-token-{len(self.tokens) + 1}"
        self.tokens[token] = now + self.settings.token_lifetime
        return token

    def token_is_good(self, token: str, now: float) -> bool:
        """Whether a token was issued and has not expired."""
        return now < self.tokens.get(token, now)

    def next_number(self) -> int:
        """A number that no inference answer has had yet."""
        self.answers += 1
        return self.answers

    def book(self, instance_id: str, now: float) -> Place:
        """When an inference answer is worked on.

        Raises:
            Refusal: 429 when too many wait already.
        """
        settings = self.settings
        if settings.parallel is None:
            return Place(now, now + settings.answer_seconds)
        places = self.places.get(instance_id)
        if places is None:
            places = Places(settings.answer_seconds, settings.parallel, settings.queue)
            self.places[instance_id] = places
        return places.book(now)

    def give_up(self, instance_id: str, place: Place, now: float) -> None:
        """Take back a booking whose caller has hung up."""
        places = self.places.get(instance_id)
        if places is not None:
            places.give_up(place, now)

    def get(self, instance_id: str) -> Machine:
        """An instance that must exist.

        Raises:
            Refusal: With the emulator's ``unknown_status`` when it does not.
        """
        machine = self.alive.get(instance_id)
        if machine is None:
            raise Refusal(self.settings.unknown_status, f"Instance {instance_id} does not exist.")
        return machine

    def status(self, machine: Machine, now: float) -> str:
        """What an instance is doing now."""
        return status_of(machine, now, self.settings)

    def wire(self, machine: Machine, now: float) -> dict[str, Any]:
        """An instance as JSON."""
        return instance_json(machine, now, self.settings, self.root_url)

    def billing(self, now: float) -> tuple[str, ...]:
        """Ids of the instances that are billed now."""
        return tuple(
            machine.instance_id for machine in self.alive.values() if self.status(machine, now) in BILLED
        )

    def ledger(self, now: float) -> tuple[LedgerEntry, ...]:
        """Every instance that there ever was."""
        every = sorted((*self.alive.values(), *self.gone.values()), key=lambda machine: machine.number)
        return tuple(ledger_entry(machine, now, self.settings) for machine in every)

    def total_cost(self, now: float) -> float:
        """What all of them cost so far."""
        return round(self.gone_cost + sum(cost_of(machine, now) for machine in self.alive.values()), 6)

    def balance(self, now: float) -> float:
        """What is left of the balance; may be negative, for nothing stops by itself."""
        return round(self.settings.balance - self.total_cost(now), 6)

    def free_sets(self, hardware_type_id: str, now: float) -> int:
        """How many GPU sets of a hardware type nobody uses now."""
        used = sum(
            machine.arguments.num_workers
            for machine in self.alive.values()
            if machine.arguments.hardware.hardware_type_id == hardware_type_id
            and self.status(machine, now) in BILLED
        )
        return max(0, self.settings.capacity.get(hardware_type_id, HARDWARE[hardware_type_id].sets) - used)

    def _check_means(self, arguments: Arguments, now: float) -> None:
        if self.balance(now) <= 0:
            raise Refusal(402, "The balance is used up.")
        hardware_type_id = arguments.hardware.hardware_type_id
        free = self.free_sets(hardware_type_id, now)
        if free < arguments.num_workers:
            raise Refusal(
                503, f"No capacity: {arguments.num_workers} x {hardware_type_id} wanted, {free} free."
            )

    def start(self, arguments: Arguments, now: float) -> Machine:
        """Start a new instance.

        Raises:
            Refusal: 402 without balance, 503 without capacity.
        """
        self._check_means(arguments, now)
        return self._keep(Machine(len(self.alive) + len(self.gone) + 1, arguments, (Run(now),)))

    def restart(self, instance_id: str, now: float) -> Machine:
        """Start a stopped instance again.

        Raises:
            Refusal: When it is unknown, 400 when it is not stopped, 402 or 503 as for a start.
        """
        machine = self.get(instance_id)
        status = self.status(machine, now)
        if status != "stopped":
            raise Refusal(400, f"Instance {instance_id} is {status}; only a stopped one can be restarted.")
        self._check_means(machine.arguments, now)
        return self._keep(machine.restarted(now))

    def stop(self, instance_id: str, now: float) -> Machine:
        """Stop an instance, running or pending.

        Raises:
            Refusal: When it is unknown, 400 when it is stopped or stopping already.
        """
        machine = self.get(instance_id)
        status = self.status(machine, now)
        if status not in {"pending", "running"}:
            raise Refusal(400, f"Instance {instance_id} is {status} already.")
        self.places.pop(instance_id, None)
        return self._keep(machine.stopped(now, self.settings.stop_seconds))

    def stop_all(self, now: float) -> list[str]:
        """Stop all that are pending or running; their ids."""
        ids = [
            machine.instance_id
            for machine in self.alive.values()
            if self.status(machine, now) in {"pending", "running"}
        ]
        for instance_id in ids:
            self.stop(instance_id, now)
        return ids

    def delete(self, instance_id: str, now: float, *, force: bool = False) -> Machine:
        """Delete an instance.

        Raises:
            Refusal: When it is unknown, 400 when it is not stopped and ``force`` is False.
        """
        machine = self.get(instance_id)
        status = self.status(machine, now)
        if status != "stopped" and not force:
            raise Refusal(400, f"Instance {instance_id} is {status}; stop it before it can be deleted.")
        machine = self.alive.pop(instance_id).deleted(now)
        self.places.pop(instance_id, None)
        self.gone[instance_id] = machine
        self.gone_cost += cost_of(machine, now)
        return machine

    def delete_all(self, now: float, *, force: bool) -> list[str]:
        """Delete all that are stopped, or with ``force`` all; their ids."""
        ids = [
            machine.instance_id
            for machine in self.alive.values()
            if force or self.status(machine, now) == "stopped"
        ]
        for instance_id in ids:
            self.delete(instance_id, now, force=force)
        return ids

    def _keep(self, machine: Machine) -> Machine:
        self.alive[machine.instance_id] = machine
        return machine
