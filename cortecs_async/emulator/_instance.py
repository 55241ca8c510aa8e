"""The state of one instance, as pure functions of its history and the time."""

import functools
import math
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from cortecs_async.emulator._catalog import Hardware, Model
from cortecs_async.emulator._records import LedgerEntry, LedgerStatus
from cortecs_async.emulator._settings import Settings

BILLED: Final = frozenset({"pending", "running", "stopping"})

# The tolerance for sums of floats: far above their error and far below any interval that matters.
EPSILON: Final = 1e-9

# The timestamp shown for `started_at="constant"`, and the offset of `"local_time"`.
_CONSTANT_STAMP: Final = "2020-01-01T00:00:00Z"
_LOCAL_OFFSET: Final = 2 * 3600

_MINUTES: Final = {"per_minute": 1, "per_hour": 60}

_STEPS: Final = (
    "Reserving the GPUs",
    "Starting the machine",
    "Loading the weights",
    "Warming up the engine",
)


@attrs.frozen
class InstanceArgs:
    """The arguments of an instance's start, with defaults filled in."""

    model: Model
    hardware: Hardware
    context_length: int
    billing_interval: str
    num_workers: int


@attrs.frozen
class Run:
    """One billed period: from an accepted start or restart request to the stop."""

    started_at: float
    stop_requested_at: float | None = None
    stopped_at: float | None = None
    """Can be in the future. Before that time, the instance is stopping."""

    def seconds(self, now: float) -> float:
        """Return its duration so far."""
        end = now if self.stopped_at is None else min(now, self.stopped_at)
        return max(0.0, end - self.started_at)

    def progress(self, now: float) -> float:
        """Return the seconds of provisioning so far. Stopping freezes the progress."""
        end = now if self.stop_requested_at is None else min(now, self.stop_requested_at)
        return end - self.started_at


@attrs.frozen
class Instance:
    """One instance with its history."""

    number: int
    """Counted from 1 in the order in which instances were started, including deleted instances."""
    args: InstanceArgs
    runs: tuple[Run, ...]
    deleted_at: float | None = None

    @property
    def instance_id(self) -> str:
        return f"instance-{10000 + self.number}"

    @property
    def run(self) -> Run:
        """The latest run."""
        return self.runs[-1]

    def _with_run(self, run: Run) -> "Instance":
        return attrs.evolve(self, runs=(*self.runs[:-1], run))

    def stop(self, now: float, stop_seconds: float) -> "Instance":
        """Return the instance after a request to stop it."""
        return self._with_run(attrs.evolve(self.run, stop_requested_at=now, stopped_at=now + stop_seconds))

    def restart(self, now: float) -> "Instance":
        """Return the instance after a restart: a new run, billed separately."""
        return attrs.evolve(self, runs=(*self.runs, Run(now)))

    def delete(self, now: float) -> "Instance":
        """Return the instance after its deletion, regardless of its status."""
        run = self.run
        if run.stopped_at is None or run.stopped_at > now:
            requested_at = now if run.stop_requested_at is None else run.stop_requested_at
            run = attrs.evolve(run, stop_requested_at=requested_at, stopped_at=now)
        return attrs.evolve(self._with_run(run), deleted_at=now)


def status_of(instance: Instance, now: float, settings: Settings) -> LedgerStatus:
    if instance.deleted_at is not None:
        return "deleted"
    run = instance.run
    if run.stopped_at is not None:
        return "stopped" if now >= run.stopped_at - EPSILON else "stopping"
    return "running" if now - run.started_at >= settings.ready_after - EPSILON else "pending"


def step_of(worker: int, elapsed: float, settings: Settings) -> int:
    """Return the step, 1 to `num_steps`, of a worker (counted from 0), `elapsed` seconds after starting.

    Each worker starts one step later than the one before it.
    """
    last = settings.num_steps
    if settings.step_seconds <= 0:
        return last
    # Compared before the division, because a tiny step would overflow the floor.
    if elapsed >= settings.ready_after + worker * settings.step_seconds - EPSILON:
        return last
    return max(1, min(last, 1 + math.floor(elapsed / settings.step_seconds + EPSILON) - worker))


def describe(step: int, num_steps: int) -> str:
    """Describe a step for people. The last step is always "Running"."""
    if step >= num_steps:
        return "Running"
    if num_steps == len(_STEPS) + 1:
        return _STEPS[step - 1]
    return f"Provisioning, step {step} of {num_steps}"


def cost_of(instance: Instance, now: float) -> float:
    """Return the cost of an instance so far, in the account's currency."""
    args = instance.args
    minutes = _MINUTES[args.billing_interval]
    intervals = sum(max(1, math.ceil(run.seconds(now) / (60 * minutes) - EPSILON)) for run in instance.runs)
    return round(intervals * minutes * args.hardware.price_per_minute * args.num_workers, 6)


def interval_cost(args: InstanceArgs) -> float:
    """Return the cost of one billing interval, in the account's currency."""
    return _MINUTES[args.billing_interval] * args.hardware.price_per_minute * args.num_workers


def ledger_entry(instance: Instance, now: float, settings: Settings) -> LedgerEntry:
    args = instance.args
    status = status_of(instance, now, settings)
    return LedgerEntry(
        instance_id=instance.instance_id,
        model_id=args.model.model_id,
        hardware_type_id=args.hardware.hardware_type_id,
        num_workers=args.num_workers,
        billing_interval=args.billing_interval,
        started_at=instance.runs[0].started_at,
        stopped_at=None if status in BILLED else instance.run.stopped_at,
        deleted_at=instance.deleted_at,
        status=status,
        seconds=sum(run.seconds(now) for run in instance.runs),
        cost=cost_of(instance, now),
        price_per_hour=round(60 * args.hardware.price_per_minute * args.num_workers, 6),
    )


def instance_json(instance: Instance, now: float, settings: Settings, root_url: str) -> dict[str, Any]:
    args, run = instance.args, instance.run
    status = status_of(instance, now, settings)
    args_json: dict[str, Any] = {
        "model_id": args.model.model_id,
        "hardware_type_id": args.hardware.hardware_type_id,
        "context_length": args.context_length,
        "billing_interval": args.billing_interval,
    }
    if settings.num_workers_in_args:
        args_json["num_workers"] = args.num_workers
    elapsed = run.progress(now)
    return {
        "instance_id": instance.instance_id,
        "base_url": f"{root_url}/inference/{instance.instance_id}/v1" if status == "running" else None,
        "instance_args": args_json,
        "instance_status": {
            "status": settings.status_words.get(status, status),
            "started_at": _started_at(instance, now, elapsed, settings),
            "stopped_at": timestamp(run.stopped_at, settings.epoch)
            if run.stopped_at is not None and status == "stopped"
            else None,
        },
        "worker_statuses": [
            {"init_progress": None if status == "stopped" else _progress(worker, elapsed, settings)}
            for worker in range(args.num_workers)
        ],
    }


def _started_at(instance: Instance, now: float, elapsed: float, settings: Settings) -> str | None:
    """Return the timestamp of a run, as `Settings.started_at` defines it, or None before that moment.

    `elapsed` is the progress of the latest run.
    """
    meaning, after = settings.started_at, settings.stamped_after
    if meaning == "constant":
        return _CONSTANT_STAMP
    # A run stopped before that moment never has a timestamp.
    if meaning == "first_running":
        begun = next((run.started_at for run in instance.runs if run.progress(now) >= after - EPSILON), None)
    else:
        begun = None if meaning == "none" or elapsed < after - EPSILON else instance.run.started_at
    if begun is None:
        return None
    return timestamp(begun + after + (_LOCAL_OFFSET if meaning == "local_time" else 0), settings.epoch)


def _progress(worker: int, elapsed: float, settings: Settings) -> dict[str, Any]:
    step = step_of(worker, elapsed, settings)
    return {
        "current_step": step,
        "num_steps": settings.num_steps,
        "description": describe(step, settings.num_steps),
    }


def timestamp(at: float, epoch: float) -> str:
    """Format a time of the emulator's clock as the service does: ISO 8601 in UTC, whole seconds."""
    # Truncated like the `Date` header, so no timestamp is later than the response that shows it.
    return _stamp(int(epoch + at))


# Lists repeat the same timestamps.
@functools.lru_cache(maxsize=1024)
def _stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
