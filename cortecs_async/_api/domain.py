"""What the service knows, as inert data: frozen classes without any I/O behind their attributes.

The shapes follow the published API reference (docs.cortecs.ai, section API). What the reference leaves
open is read liberally: an unknown status is kept as it is, and what is absent takes its documented default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen


def to_model_id(name: str) -> str:
    """The service's spelling of a model: the Hugging Face name `a/b` written as `a--b`."""
    return name.replace("/", "--")


def to_hf_name(model_id: str) -> str:
    """The Hugging Face spelling of a model, `a/b`: what the inference endpoint calls it."""
    # Hugging Face allows one slash and forbids "--" in its names, so the first one is the slash.
    return model_id.replace("--", "/", 1)


@frozen(kw_only=True)
class InstanceArgs:
    """What an instance was started with.

    Attributes:
        model_id: The model in the service's spelling (`org--name`).
        hardware_type_id: One GPU set, such as `NVIDIA_H100_1`; every worker has one to itself.
        billing_interval: `per_minute` or `per_hour`.
        context_length: Longest context in tokens.
        num_workers: Workers, 1 to 8. Absent from every documented answer: absent means 1.
    """

    model_id: str
    hardware_type_id: str | None = None
    billing_interval: str | None = None
    context_length: int | None = None
    num_workers: int = 1

    @property
    def hf_name(self) -> str:
        """The model's Hugging Face name, which is its name at the inference endpoint."""
        return to_hf_name(self.model_id)


@frozen(kw_only=True)
class InstanceStatus:
    """State of an instance.

    Attributes:
        status: `pending`, `running`, `stopped`, or one that the published reference does not name.
        started_at: When it was initialised; None before, or where it is not a timestamp.
        stopped_at: When it was stopped; None while it lives.
    """

    status: str
    started_at: datetime | None = None
    stopped_at: datetime | None = None


@frozen(kw_only=True)
class InitProgress:
    """How far a worker's initialisation is: `current_step` of `num_steps`, counted from 1."""

    current_step: int = 0
    num_steps: int = 0
    description: str = ""


@frozen(kw_only=True)
class WorkerStatus:
    """State of one worker; `init_progress` is None once the worker is stopped."""

    init_progress: InitProgress | None = None


@frozen(kw_only=True)
class Instance:
    """A snapshot of one instance.

    Attributes:
        instance_id: Its id.
        base_url: Its OpenAI-compatible endpoint, ending in `/v1`; None until it is initialised.
        instance_args: What it was started with.
        instance_status: Its state when the snapshot was taken.
        worker_statuses: One entry a worker; may be empty.
    """

    instance_id: str
    base_url: str | None = None
    instance_args: InstanceArgs
    instance_status: InstanceStatus
    worker_statuses: tuple[WorkerStatus, ...] = ()

    @property
    def status(self) -> str:
        """Short for `instance_status.status`."""
        return self.instance_status.status

    @property
    def is_usable(self) -> bool:
        """True when it runs **and** says where: either can come first."""
        return self.status == "running" and bool(self.base_url)


@frozen(kw_only=True)
class Progress:
    """A change seen while an instance starts; what `on_progress` callbacks are given.

    Attributes:
        instance: The snapshot that showed the change.
        elapsed: Seconds since the start was asked for.
    """

    instance: Instance
    elapsed: float

    @property
    def workers(self) -> tuple[InitProgress | None, ...]:
        """The progress of every worker; None where a worker reports none."""
        return tuple(worker.init_progress for worker in self.instance.worker_statuses)

    @property
    def leading(self) -> InitProgress:
        """The worker that is furthest: an instance is usable as soon as one worker runs."""
        reported = [worker for worker in self.workers if worker is not None]
        return max(reported, key=lambda worker: worker.current_step, default=InitProgress())

    @property
    def fraction(self) -> float:
        """0.0 to 1.0 by the leading worker's steps; 1.0 only when the instance is usable."""
        if self.instance.is_usable:
            return 1.0
        leading = self.leading
        if leading.num_steps <= 0:
            return 0.0
        return min(max(leading.current_step - 1, 0), leading.num_steps) / leading.num_steps

    @property
    def description(self) -> str:
        """What the leading worker does, in the service's words, or else the instance's status."""
        return self.leading.description or self.instance.status


@frozen(kw_only=True)
class AffectedInstances:
    """What an account-wide request changed: the ids, empty when nothing was affected."""

    instance_ids: tuple[str, ...] = ()
    message: str = ""


@frozen(kw_only=True)
class ModelPreview:
    """A model as the list of models shows it.

    Attributes:
        model_id: In the service's spelling (`org--name`).
        hf_name: Hugging Face name (`org/name`).
        instant_provisioned: The service's own mark for models that start fast.
        creator: Open mapping.
        description: In the service's words.
        screen_name: Name for people.
        size: As the service gives it; its unit is undocumented.
        hardware_configs: Ids of the hardware types that it can run on.
    """

    model_id: str
    hf_name: str = ""
    instant_provisioned: bool = False
    creator: Mapping[str, Any] | None = None
    description: str | None = None
    screen_name: str | None = None
    size: float | None = None
    hardware_configs: tuple[str, ...] = ()


@frozen(kw_only=True)
class HardwareConfig:
    """One hardware type that a model can run on; `params` and `requirements` are open mappings."""

    hardware_type_id: str = ""
    params: Mapping[str, Any] = field(factory=dict)
    requirements: Mapping[str, Any] = field(factory=dict)

    @property
    def max_context_length(self) -> int | None:
        """The longest context on this hardware in tokens (`--max-model-len`), where it is given."""
        value = self.params.get("--max-model-len")
        return value if isinstance(value, int) else None


@frozen(kw_only=True)
class Model:
    """One model with its hardware configurations.

    Attributes:
        model_id: In the service's spelling (`org--name`).
        hf_name: Hugging Face name (`org/name`).
        recommended_config: The hardware type that a start without one gets.
        hardware_configs: By `hardware_type_id`.
    """

    model_id: str
    hf_name: str = ""
    recommended_config: str | None = None
    hardware_configs: Mapping[str, HardwareConfig] = field(factory=dict)


@frozen(kw_only=True)
class HardwareType:
    """A GPU set. The inner keys of `price_info` and `hardware_info` are undocumented: open mappings."""

    hardware_type_id: str
    price_info: Mapping[str, Any] = field(factory=dict)
    hardware_info: Mapping[str, Any] = field(factory=dict)

    @property
    def price_per_minute(self) -> float | None:
        """What one costs a minute, in `currency`: by a key that names the minute, else the hour.

        None where `price_info` has no such key, or several that differ.
        """
        numbers = {
            key.lower(): float(value)
            for key, value in self.price_info.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        }
        for unit, minutes in (("minute", 1.0), ("hour", 60.0)):
            found = {value for key, value in numbers.items() if unit in key and value >= 0}
            if len(found) == 1:
                return found.pop() / minutes
        return None

    @property
    def currency(self) -> str:
        """The currency of its price; empty where the service does not name it."""
        currency = self.price_info.get("currency")
        return currency if isinstance(currency, str) else ""


@frozen(kw_only=True)
class Balance:
    """What the account has left, in `currency`."""

    current_balance: float
    currency: str
