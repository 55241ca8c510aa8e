"""Journal records for a nonexistent account and service."""

from __future__ import annotations

from typing import Any

from _world import HARDWARE, MODEL

from cortecs_async._recovery.records import JournalState, Record

ACCOUNT = {"account": "a1", "api": "https://api.test", "at": 1000.0}
ARGS = {"model_id": MODEL.replace("/", "--"), "hardware_type_id": HARDWARE, "num_workers": 1}
OWNER: Record = {"kind": "OWNER", "format": 1, "host": "host", "pid": 7, "at": 0.0}
BASELINE: Record = {"kind": "BASELINE", "baseline": "b1", "ids": ["i-1", "i-2"]}


def intent(key: str = "e1", **more: Any) -> Record:
    """Return the record of a start, whose baseline is `BASELINE`."""
    return {"kind": "INTENT", "entry": key, **ACCOUNT, "args": ARGS, "baseline": "b1", **more}


def created(key: str = "e1", **more: Any) -> Record:
    """Return the record of an instance, `i-of-` the key."""
    record = {"kind": "CREATED", "entry": key, **ACCOUNT, "args": {}, "instance_id": f"i-of-{key}"}
    return {**record, "goal": "gone", "expires_at": None, **more}


def state_of(*records: Record) -> JournalState:
    """Apply records, which must all be understood, and return the state."""
    state = JournalState()
    for record in records:
        assert state.apply(record), record
    return state
