"""Lines of the cost ledger for tests."""

from __future__ import annotations

from typing import Any

from _world import HARDWARE, MODEL

from cortecs_async._recovery.cost_lines import cost_line
from cortecs_async._recovery.records import Record

API = "https://cortecs.ai/api/v1"
BILL = {"model": MODEL, "hardware_type_id": HARDWARE, "interval_price": 0.05, "currency": "EUR"}


def line_of(lease_id: str, *, ended_at: float, bill: Record = BILL, **changes: Any) -> Record:
    """Return the line of a lease of 90 s that was released at a Unix time."""
    common: dict[str, Any] = {
        "lease_id": lease_id,
        "instance_id": f"i-{lease_id}",
        "started_at": ended_at - 90.0,
        "ended_at": ended_at,
        "seconds": 90.0,
        "outcome": "released",
        "written_by": "lease",
        "account": "a1",
        "api_base_url": API,
    }
    return cost_line(bill, **{**common, **changes})
