"""The state machine of one instance: pure functions of its events and of the time."""

import math
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from cortecs_async.emulator._catalogue import Hardware, Model
from cortecs_async.emulator._records import LedgerEntry, LedgerStatus
from cortecs_async.emulator._settings import Settings

BILLED: Final = frozenset({"pending", "running", "stopping"})

# Sums of floats miss their mark by far less than this, and nobody measures so finely.
_EPSILON: Final = 1e-9

_MINUTES: Final = {"per_minute": 1, "per_hour": 60}

_STEPS: Final = (
    "Reserving the GPUs",
    "Starting the machine",
    "Loading the weights",
    "Warming up the engine",
)


@attrs.frozen
class Arguments:
    """What an instance was started with, defaults filled in."""

    model: Model
    hardware: Hardware
    context_length: int
    billing_interval: str
    num_workers: int


@attrs.frozen
class Run:
    """One stretch of billed time: from an accepted start or restart to the stop."""

    begun_at: float
    stop_asked_at: float | None = None
    stopped_at: float | None = None
    """May lie ahead: then the instance is stopping."""

    def lived(self, now: float) -> float:
        """Seconds of it until now."""
        end = now if self.stopped_at is None else min(now, self.stopped_at)
        return max(0.0, end - self.begun_at)


@attrs.frozen
class Machine:
    """One instance with its history."""

    number: int
    """Counted from 1 in the order of the starts, the deleted included."""
    arguments: Arguments
    runs: tuple[Run, ...]
    deleted_at: float | None = None

    @property
    def instance_id(self) -> str:
        """Its id on the wire."""
        return f"instance-{10000 + self.number}"

    @property
    def run(self) -> Run:
        """The run that counts now: the last."""
        return self.runs[-1]

    def _with_run(self, run: Run) -> "Machine":
        return attrs.evolve(self, runs=(*self.runs[:-1], run))

    def stopped(self, now: float, stop_seconds: float) -> "Machine":
        """It after a stop was asked for."""
        return self._with_run(attrs.evolve(self.run, stop_asked_at=now, stopped_at=now + stop_seconds))

    def restarted(self, now: float) -> "Machine":
        """It after a restart: a new run, billed on its own."""
        return attrs.evolve(self, runs=(*self.runs, Run(now)))

    def deleted(self, now: float) -> "Machine":
        """It after a deletion, whatever it was doing."""
        run = self.run
        if run.stopped_at is None or run.stopped_at > now:
            run = attrs.evolve(
                run, stop_asked_at=now if run.stop_asked_at is None else run.stop_asked_at, stopped_at=now
            )
        return attrs.evolve(self._with_run(run), deleted_at=now)


def status_of(machine: Machine, now: float, settings: Settings) -> LedgerStatus:
    """What the instance is doing now."""
    if machine.deleted_at is not None:
        return "deleted"
    run = machine.run
    if run.stopped_at is not None:
        return "stopped" if now >= run.stopped_at - _EPSILON else "stopping"
    return "running" if now - run.begun_at >= settings.ready_after - _EPSILON else "pending"


def step_of(worker: int, elapsed: float, settings: Settings) -> int:
    """The step, 1 to ``num_steps``, of a worker (counted from 0) so long after the start.

    Each worker is one step behind the one before it.
    """
    last = settings.num_steps
    if settings.step_seconds <= 0:
        return last
    # Compared before the division: a tiny step would overflow the floor.
    if elapsed >= settings.ready_after + worker * settings.step_seconds - _EPSILON:
        return last
    return max(1, min(last, 1 + math.floor(elapsed / settings.step_seconds + _EPSILON) - worker))


def describe(step: int, num_steps: int) -> str:
    """A word on a step, for people; the last is always "Running"."""
    if step >= num_steps:
        return "Running"
    if num_steps == len(_STEPS) + 1:
        return _STEPS[step - 1]
    return f"Provisioning, step {step} of {num_steps}"


def cost_of(machine: Machine, now: float) -> float:
    """What the instance costs so far, in the account's currency."""
    arguments = machine.arguments
    minutes = _MINUTES[arguments.billing_interval]
    intervals = 0
    for run in machine.runs:
        intervals += max(1, math.ceil(run.lived(now) / (60 * minutes) - _EPSILON))
    return round(intervals * minutes * arguments.hardware.price_per_minute * arguments.num_workers, 6)


def ledger_entry(machine: Machine, now: float, settings: Settings) -> LedgerEntry:
    """The instance as the bill sees it."""
    arguments = machine.arguments
    status = status_of(machine, now, settings)
    return LedgerEntry(
        instance_id=machine.instance_id,
        model_id=arguments.model.model_id,
        hardware_type_id=arguments.hardware.hardware_type_id,
        num_workers=arguments.num_workers,
        billing_interval=arguments.billing_interval,
        started_at=machine.runs[0].begun_at,
        stopped_at=None if status in BILLED else machine.run.stopped_at,
        deleted_at=machine.deleted_at,
        status=status,
        seconds=sum(run.lived(now) for run in machine.runs),
        cost=cost_of(machine, now),
        price_per_hour=round(60 * arguments.hardware.price_per_minute * arguments.num_workers, 6),
    )


def base_url_of(machine: Machine, root_url: str) -> str:
    """Where the instance serves once it runs."""
    return f"{root_url}/inference/{machine.instance_id}/v1"


def instance_json(machine: Machine, now: float, settings: Settings, root_url: str) -> dict[str, Any]:
    """The instance on the wire."""
    arguments, run = machine.arguments, machine.run
    status = status_of(machine, now, settings)
    args: dict[str, Any] = {
        "model_id": arguments.model.model_id,
        "hardware_type_id": arguments.hardware.hardware_type_id,
        "context_length": arguments.context_length,
        "billing_interval": arguments.billing_interval,
    }
    if settings.num_workers_in_args:
        args["num_workers"] = arguments.num_workers
    # A stop freezes the progress, and a run that was stopped before it ran never has a started_at.
    elapsed = (now if run.stop_asked_at is None else min(now, run.stop_asked_at)) - run.begun_at
    ran = elapsed >= settings.ready_after - _EPSILON
    return {
        "instance_id": machine.instance_id,
        "base_url": base_url_of(machine, root_url) if status == "running" else None,
        "instance_args": args,
        "instance_status": {
            "status": status,
            "started_at": timestamp(run.begun_at + settings.ready_after, settings.epoch) if ran else None,
            "stopped_at": timestamp(run.stopped_at, settings.epoch)
            if run.stopped_at is not None and status == "stopped"
            else None,
        },
        "worker_statuses": [
            {"init_progress": None if status == "stopped" else _progress(worker, elapsed, settings)}
            for worker in range(arguments.num_workers)
        ],
    }


def _progress(worker: int, elapsed: float, settings: Settings) -> dict[str, Any]:
    step = step_of(worker, elapsed, settings)
    return {
        "current_step": step,
        "num_steps": settings.num_steps,
        "description": describe(step, settings.num_steps),
    }


def timestamp(at: float, epoch: float) -> str:
    """Seconds of the emulator's clock as the service writes a time: ISO 8601 in UTC, whole seconds."""
    return datetime.fromtimestamp(epoch + at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def default_context_length(model: Model, hardware: Hardware) -> int:
    """The context of a start that names none: at most 32000 tokens."""
    return min(32000, model.max_model_len[hardware.hardware_type_id])
