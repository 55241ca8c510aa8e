"""Records of instances and requests, for tests to inspect."""

from typing import Literal

import attrs

LedgerStatus = Literal["pending", "running", "stopping", "stopped", "deleted"]


@attrs.frozen
class LedgerEntry:
    """The bill for one instance. Times are in seconds, on the emulator's clock.

    Attributes:
        instance_id: The id of the instance.
        model_id: The model it serves.
        hardware_type_id: The hardware type of each worker.
        num_workers: The number of workers.
        billing_interval: `per_minute` or `per_hour`.
        started_at: The time at which its first start request was accepted.
        stopped_at: The time at which its last run ended, or None while it is billed.
        deleted_at: The time at which it was deleted, or None while it exists.
        status: Its current status.
        seconds: The billed time so far, over all of its runs, before rounding up to the interval.
        cost: The cost so far, in the account's currency. Each run is rounded up to whole intervals, and each
            worker is billed.
        price_per_hour: The price per hour for all workers together.

    Example:
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct"):
            (entry,) = emulator.ledger
            print(entry.status, entry.cost)
    """

    instance_id: str
    model_id: str
    hardware_type_id: str
    num_workers: int
    billing_interval: str
    started_at: float
    stopped_at: float | None
    deleted_at: float | None
    status: LedgerStatus
    seconds: float
    cost: float
    price_per_hour: float


@attrs.frozen
class RequestRecord:
    """One request that reached the emulator.

    Attributes:
        method: The HTTP method.
        path: The path, without the query.
        route: The name of the route, or None if no route matched.
        status: The HTTP status of the response, or None if there is no response: the request was dropped or
            is in progress, or the caller disconnected.
        at: The time at which it arrived, in seconds on the emulator's clock.
        fault: The kind of fault that affected it, if any.

    Example:
        await client.user.balance()
        last = emulator.requests[-1]
        print(last.method, last.path, last.status)
    """

    method: str
    path: str
    route: str | None
    status: int | None
    at: float
    fault: str | None
