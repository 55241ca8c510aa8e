"""The data that the client gives back, for annotations: `from cortecs_async.types import Model`."""

from ._budget import Receipt
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
from ._handle import InstanceHandle
from ._sweep import Orphan

__all__ = [
    "AffectedInstances",
    "Balance",
    "HardwareConfig",
    "HardwareType",
    "InitProgress",
    "Instance",
    "InstanceArgs",
    "InstanceHandle",
    "InstanceStatus",
    "Model",
    "ModelPreview",
    "Orphan",
    "Progress",
    "Receipt",
    "WorkerStatus",
]
