"""The data that a client returns, for annotations: `from cortecs_async.types import Model`."""

from typing import TYPE_CHECKING

from ._public import lazy_getattr

if TYPE_CHECKING:
    from ._api.domain import (
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
    from ._batch.plan import BatchPlan
    from ._batch.report import BatchProgress, BatchReport
    from ._client.diagnosis import Finding
    from ._client.with_options import Calls, Response
    from ._lease.endpoint import InstanceHandle, OpenAIKwargs
    from ._lease.mapping import Results
    from ._lease.pricing import Receipt
    from ._recovery.owners import Owner
    from ._recovery.sweep import Orphan
    from ._telemetry import LeaseInfo, PhaseEnd, RequestRetry, Telemetry

__all__ = [
    "AffectedInstances",
    "Balance",
    "BatchPlan",
    "BatchProgress",
    "BatchReport",
    "Calls",
    "Finding",
    "HardwareConfig",
    "HardwareType",
    "InitProgress",
    "Instance",
    "InstanceArgs",
    "InstanceHandle",
    "InstanceStatus",
    "LeaseInfo",
    "Model",
    "ModelPreview",
    "OpenAIKwargs",
    "Orphan",
    "Owner",
    "PhaseEnd",
    "Progress",
    "Receipt",
    "RequestRetry",
    "Response",
    "Results",
    "Telemetry",
    "WorkerStatus",
]

if not TYPE_CHECKING:  # type checkers would accept every name
    __getattr__ = lazy_getattr(__name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
