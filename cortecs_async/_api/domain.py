"""Instances as frozen classes, which do not send requests. The rest of the service's data is in `catalog.py`.

The fields follow the published API reference (docs.cortecs.ai, section API).

To add a field, for example to `Instance`, add it here with its name in the JSON, an annotation and a default.
`decoders.py` then parses it; without a default, a response that does not contain the field is rejected. Then
add it to the emulator's responses and to the payloads in `tests/api/test_wire.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from attrs import frozen

from .._display import Row, Share, duration_text, joined
from .._hints import hinted
from .model_ids import to_hf_name

# Tokens: the context length if the start request does not set one and the model does not allow less
# (documented).
DEFAULT_CONTEXT_LENGTH = 32_000


_PROBING = "waiting for the endpoint to answer"


@frozen(kw_only=True)
class InstanceArgs:
    """The arguments an instance was started with.

    Attributes:
        model_id: The model in the service's spelling (`org--name`).
        hardware_type_id: The GPU set of each worker, such as `NVIDIA_H100_1`.
        billing_interval: `per_minute` or `per_hour`.
        context_length: Maximum context length, in tokens.
        num_workers: The number of workers, 1 to 8. 1 if the service does not return it: no documented
            response contains this field.

    Example:
        instance = await client.instances.get(instance_id)
        print(instance.instance_args.hf_name, instance.instance_args.num_workers)
    """

    model_id: str
    hardware_type_id: str | None = None
    billing_interval: str | None = None
    context_length: int | None = None
    num_workers: int = 1

    @property
    def hf_name(self) -> str:
        """The model's Hugging Face name, `org/name`, which the inference endpoint uses."""
        return to_hf_name(self.model_id)


@frozen(kw_only=True)
class InstanceStatus:
    """The state of an instance.

    Attributes:
        status: `pending`, `running`, or `stopped`. The service may use other, undocumented statuses.
        started_at: The time the instance was initialized, by the service's clock. The value is None before
            that, or if the service's value is not a timestamp.
        stopped_at: The time the instance was stopped, by the service's clock, or None if it was not stopped.

    Example:
        instance = await client.instances.get(instance_id)
        print(instance.instance_status.status, instance.instance_status.started_at)
    """

    status: str
    started_at: datetime | None = None
    stopped_at: datetime | None = None


@frozen(kw_only=True)
class InitProgress:
    """The initialization progress of a worker.

    Attributes:
        current_step: From 1 to `num_steps`, or 0 if the service does not report it.
        num_steps: The number of steps, 5 in the API reference. It is undocumented what a step is and how long
            it takes.
        description: The service's description of the current step.

    Example:
        def show(progress: Progress) -> None:
            step = progress.leading
            print(f"step {step.current_step} of {step.num_steps}: {step.description}")

        async with client.instance("meta-llama/Llama-3.1-8B-Instruct", on_progress=show) as inst:
            print(inst.base_url)
    """

    current_step: int = 0
    num_steps: int = 0
    description: str = ""


@frozen(kw_only=True)
class WorkerStatus:
    """The state of one worker.

    Attributes:
        init_progress: Its initialization progress, or None once the worker is stopped.

    Example:
        instance = await client.instances.get(instance_id)
        for worker in instance.worker_statuses:
            print(worker.init_progress)
    """

    init_progress: InitProgress | None = None


@hinted
@frozen(kw_only=True)
class Instance(Row):
    """A snapshot of one instance.

    Attributes:
        instance_id: The id of the instance.
        base_url: The URL of its OpenAI-compatible endpoint. It ends in `/v1`. The value is None until the
            instance is initialized, or if the value is not a string.
        instance_args: The arguments it was started with.
        instance_status: Its state when the snapshot was taken.
        worker_statuses: The state of each worker. The list can be empty.

    Example:
        instance = await client.instances.get(instance_id)
        print(instance.instance_id, instance.status, instance.base_url)
    """

    instance_id: str
    base_url: str | None = None
    instance_args: InstanceArgs
    instance_status: InstanceStatus
    worker_statuses: tuple[WorkerStatus, ...] = ()

    @property
    def status(self) -> str:
        """The same as `instance_status.status`."""
        return self.instance_status.status

    @property
    def is_usable(self) -> bool:
        """Whether the instance is running **and** has a `base_url`. Either can come first.

        The case of the status does not matter.
        """
        return self.status.lower() == "running" and bool(self.base_url)

    def __str__(self) -> str:
        args = self.instance_args
        runs = f"{args.hf_name} on {args.hardware_type_id}" if args.hardware_type_id else args.hf_name
        return joined(f"{self.instance_id} {self.status}", runs, self.base_url)

    def _columns(self) -> Mapping[str, object]:
        args = self.instance_args
        return {
            "instance": self.instance_id,
            "status": self.status,
            "model": args.hf_name,
            "hardware": args.hardware_type_id,
            "workers": args.num_workers,
            "started": self.instance_status.started_at,
            "base_url": self.base_url,
        }


@hinted
@frozen(kw_only=True)
class Progress(Row):
    """A change of an instance while it starts, as passed to `on_progress`.

    While a lease waits for capacity, there is no instance yet, and you get one of these every minute: its
    instance has an empty id and the status `waiting_for_capacity`, and `description` says what it waits for.

    Attributes:
        instance: The snapshot that showed the change.
        elapsed: Seconds since the start request or, while waiting for capacity, since the block was entered.
        probe: While the endpoint of the running instance is tested (see `ready` in `client.instance`): the
            result of the last test request, such as `502 Bad Gateway`, or an empty string before the first.
            Otherwise None.

    Example:
        def show(progress: Progress) -> None:
            print(f"{progress.elapsed:.0f} s: {progress.fraction:.0%} {progress.description}")

        async with client.instance("meta-llama/Llama-3.1-8B-Instruct", on_progress=show) as inst:
            print(inst.base_url)
    """

    instance: Instance
    elapsed: float
    probe: str | None = None

    @property
    def workers(self) -> tuple[InitProgress | None, ...]:
        """The progress of each worker, or None for workers that do not report any."""
        return tuple(worker.init_progress for worker in self.instance.worker_statuses)

    @property
    def leading(self) -> InitProgress:
        """The progress of the most advanced worker. An instance is usable as soon as one worker runs."""
        reported = [worker for worker in self.workers if worker is not None]
        return max(reported, key=lambda worker: worker.current_step, default=InitProgress())

    @property
    def is_complete(self) -> bool:
        """Whether the instance is usable, and its endpoint has passed the test, if there is one."""
        return self.instance.is_usable and self.probe is None

    @property
    def fraction(self) -> float:
        """The share of the leading worker's steps that is complete: 0.0 to 1.0. 1.0 if `is_complete`."""
        if self.is_complete:
            return 1.0
        leading = self.leading
        if leading.num_steps <= 0:
            return 0.0
        return min(max(leading.current_step - 1, 0), leading.num_steps) / leading.num_steps

    @property
    def description(self) -> str:
        """The service's description of the leading worker's current step, or the instance's status.

        While the endpoint is tested, it says so instead.
        """
        if self.probe is not None:
            return _PROBING + (f" ({self.probe})" if self.probe else "")
        return self.leading.description or self.instance.status

    @property
    def _step(self) -> str:
        if self.probe is not None:
            return self.description
        step = self.leading
        number = f"step {step.current_step} of {step.num_steps}" if step.num_steps else ""
        return ": ".join(filter(None, (number, step.description)))

    def __str__(self) -> str:
        status = f"{self.instance.instance_id} {self.instance.status}".lstrip()
        return joined(status, self._step, duration_text(self.elapsed))

    def _columns(self) -> Mapping[str, object]:
        return {
            "instance": self.instance.instance_id,
            "status": self.instance.status,
            "progress": Share(self.fraction),
            "step": self._step,
            "elapsed": duration_text(self.elapsed),
        }


@frozen(kw_only=True)
class AffectedInstances:
    """The instances that `stop_all` or `delete_all` changed.

    Attributes:
        instance_ids: Their ids. The list is empty if no instances were changed.
        message: The service's message.

    Example:
        affected = await client.instances.delete_all()
        print(affected.instance_ids, affected.message)
    """

    instance_ids: tuple[str, ...] = ()
    message: str = ""

    def __str__(self) -> str:
        return ", ".join(self.instance_ids) or "no instances"
