"""Batches: a file of requests, instances that answer them, a file of answers. Loaded with the first one."""

from ._begin import Start, begin, plan
from ._plan import BatchPlan
from ._report import BatchProgress, BatchReport
from ._run import BatchProgressCallback
from ._sender import BatchTransport

__all__ = [
    "BatchPlan",
    "BatchProgress",
    "BatchProgressCallback",
    "BatchReport",
    "BatchTransport",
    "Start",
    "begin",
    "plan",
]
