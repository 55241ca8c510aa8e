"""The data classes a client returns, for annotations: `from cortecs_async.types import Model`."""

from typing import TYPE_CHECKING

from ._public import LAZY as _LAZY
from ._public import lazy_getattr as _lazy_getattr

if TYPE_CHECKING:
    from ._api.catalog import Balance as Balance
    from ._api.catalog import HardwareConfig as HardwareConfig
    from ._api.catalog import HardwareType as HardwareType
    from ._api.catalog import Model as Model
    from ._api.domain import AffectedInstances as AffectedInstances
    from ._api.domain import InitProgress as InitProgress
    from ._api.domain import Instance as Instance
    from ._api.domain import InstanceArgs as InstanceArgs
    from ._api.domain import InstanceStatus as InstanceStatus
    from ._api.domain import Progress as Progress
    from ._api.domain import WorkerStatus as WorkerStatus
    from ._api.listing import Listing as Listing
    from ._api.listing import UnreadableEntry as UnreadableEntry
    from ._api.previews import ModelPreview as ModelPreview
    from ._api.validation import BillingInterval as BillingInterval
    from ._batch.plan import BatchPlan as BatchPlan
    from ._batch.report import BatchProgress as BatchProgress
    from ._batch.report import BatchReport as BatchReport
    from ._batch.sender import BatchTransport as BatchTransport
    from ._client.calls import Calls as Calls
    from ._client.calls import Response as Response
    from ._client.costs import CostGroup as CostGroup
    from ._client.costs import CostReport as CostReport
    from ._client.costs import CostRow as CostRow
    from ._client.diagnosis import Finding as Finding
    from ._config import ProtectionMode as ProtectionMode
    from ._config import TransportName as TransportName
    from ._durations import Duration as Duration
    from ._lease.endpoint import OpenAIKwargs as OpenAIKwargs
    from ._lease.handle import InstanceHandle as InstanceHandle
    from ._lease.mapping import Results as Results
    from ._lease.options import OnExit as OnExit
    from ._lease.options import OnLoss as OnLoss
    from ._lease.options import Ready as Ready
    from ._lease.pricing import Receipt as Receipt
    from ._recovery.cost_lines import CostOutcome as CostOutcome
    from ._recovery.cost_lines import LeaseCost as LeaseCost
    from ._recovery.owners import Owner as Owner
    from ._recovery.owners import OwnerKind as OwnerKind
    from ._recovery.sweep import Orphan as Orphan
    from ._recovery.sweep import OrphanState as OrphanState
    from ._sharing.info import SharedInfo as SharedInfo
    from ._sharing.info import SharedState as SharedState
    from ._sharing.lease import SharedLease as SharedLease
    from ._telemetry import LeaseInfo as LeaseInfo
    from ._telemetry import PhaseEnd as PhaseEnd
    from ._telemetry import RequestRetry as RequestRetry
    from ._telemetry import Telemetry as Telemetry
else:  # type checkers would accept every name
    __all__ = list(_LAZY[__name__])
    __getattr__ = _lazy_getattr(__name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY[__name__]})
