"""The data that the client gives back, for annotations: `from cortecs_async.types import Model`."""

from ._domain import (
    AffectedInstances,
    Balance,
    HardwareConfig,
    HardwareType,
    InitProgress,
    Instance,
    InstanceArgs,
    InstanceStatus,
    Model,
    ModelPreview,
    Progress,
    WorkerStatus,
)

__all__ = [
    "AffectedInstances",
    "Balance",
    "HardwareConfig",
    "HardwareType",
    "InitProgress",
    "Instance",
    "InstanceArgs",
    "InstanceStatus",
    "Model",
    "ModelPreview",
    "Progress",
    "WorkerStatus",
]
