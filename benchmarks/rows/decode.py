"""Measure the decoding of a long list."""

from __future__ import annotations

import json
import time

from _measure import freeze_memory, quotients, spread
from _report import Row, Table, ratio
from cortecs_py.schemas import Instance

from cortecs_async._api.wire import decode_instances

_COUNT = 10_000
_ROUNDS = 11


def list_response(count: int) -> bytes:
    """Return the response body of a list of `count` instances."""
    instance = {
        "base_url": "https://abcd-123456.eu/v1",
        "instance_args": {
            "model_id": "meta-llama--Meta-Llama-3.1-8B-Instruct",
            "hardware_type_id": "NVIDIA_H100_1",
            "context_length": 8192,
            "billing_interval": "per_minute",
            "num_workers": 1,
        },
        "instance_status": {"started_at": "2024-08-07T08:53:13Z", "stopped_at": None, "status": "running"},
        "worker_statuses": [{"init_progress": {"current_step": 5, "num_steps": 5, "description": "Running"}}],
    }
    return json.dumps(
        {"instances": [{"instance_id": f"instance-{n}", **instance} for n in range(count)]}
    ).encode()


def row() -> Row:
    """Measure decoding into our types, and into the vendor's pydantic models."""
    body = list_response(_COUNT)

    def ours() -> int:
        return len(decode_instances(json.loads(body)))

    def peer() -> int:
        return len([Instance(**each) for each in json.loads(body)["instances"]])

    sides = {"ours": ours, "cortecs-py": peer}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    freeze_memory()
    for number in range(_ROUNDS + 1):
        for name in sorted(sides, reverse=bool(number % 2)):
            start = time.process_time()
            assert sides[name]() == _COUNT
            if number:
                samples[name].append(time.process_time() - start)
    lines = [(name, f"{spread(values).median * 1000:.0f}", str(_ROUNDS)) for name, values in samples.items()]
    return Row(
        name="decode",
        title="Decoding",
        text=f"""
            A list of {_COUNT:,} instances, decoded from bytes into validated objects: by our client into
            frozen attrs classes, and by cortecs-py into pydantic models, whose core is compiled. Both start
            with `json.loads`.
        """,
        ratios=[ratio("ours / cortecs-py", quotients(samples, "ours", "cortecs-py"), 0.6)],
        tables=[Table(("side", "CPU, ms", "rounds"), lines)],
    )
