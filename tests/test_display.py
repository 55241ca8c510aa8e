"""Data prints as one readable line, and a notebook shows it as a table in which everything is escaped."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pytest
from _world import HARDWARE, MODEL, World
from attrs import evolve

from cortecs_async import ConfigurationError, Instance, Progress
from cortecs_async._display import duration_text, html_table
from cortecs_async.integrations.notebook import ProgressDisplay
from cortecs_async.types import (
    AffectedInstances,
    Balance,
    BatchPlan,
    BatchProgress,
    BatchReport,
    Finding,
    HardwareType,
    InitProgress,
    InstanceArgs,
    InstanceStatus,
    Listing,
    Model,
    ModelPreview,
    Orphan,
    Owner,
    Receipt,
    UnreadableEntry,
    WorkerStatus,
)

INSTANCE = Instance(
    instance_id="instance-1",
    base_url="https://x.test/v1",
    instance_args=InstanceArgs(model_id="org--model", hardware_type_id="NVIDIA_L4_1"),
    instance_status=InstanceStatus(status="running", started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
)
PENDING = evolve(
    INSTANCE,
    base_url=None,
    instance_status=InstanceStatus(status="pending"),
    worker_statuses=(
        WorkerStatus(init_progress=InitProgress(current_step=2, num_steps=5, description="loading weights")),
    ),
)
PROGRESS = Progress(instance=PENDING, elapsed=95.4)
RECEIPT = Receipt(
    instance_id="instance-1",
    seconds=65.2,
    billing_interval="per_minute",
    intervals=2,
    num_workers=1,
    cost=0.1,
    currency="EUR",
    released=True,
)
BATCH = BatchProgress(
    total=5000,
    succeeded=1197,
    failed=3,
    resumed=0,
    instances=1,
    running=64,
    concurrency=64,
    prompt_tokens=1,
    completion_tokens=1,
    elapsed=60.0,
    rate=20.0,
    tokens_per_second=300.0,
    cost=0.33,
    currency="EUR",
)
REPORT = BatchReport(
    output="answers.jsonl", total=5000, succeeded=4997, failed=3, resumed=0, seconds=250, receipts=(RECEIPT,)
)
ORPHAN = Orphan(
    state="released",
    instance_id="instance-1",
    model="org/model",
    candidates=(),
    started_at=0,
    owner="host, process 12",
    api_base_url="https://x.test",
)
PRICES = {"price_per_minute": 0.05, "currency": "EUR"}


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (INSTANCE, "instance-1 running, org/model on NVIDIA_L4_1, https://x.test/v1"),
        (PENDING, "instance-1 pending, org/model on NVIDIA_L4_1"),
        (PROGRESS, "instance-1 pending, step 2 of 5: loading weights, 1m35s"),
        (BATCH, "1,200 of 5,000 done, 3 failed, 20.0 answers/s, 1m00s elapsed, about 3m10s left, 0.33 EUR"),
        (
            evolve(BATCH, succeeded=4997),
            "5,000 of 5,000 done, 3 failed, 20.0 answers/s, 1m00s elapsed, 0.33 EUR",
        ),
        (
            evolve(BATCH, rate=5e-324),
            "1,200 of 5,000 done, 3 failed, 0.0 answers/s, 1m00s elapsed, 0.33 EUR",
        ),
        (REPORT, "4,997 of 5,000 answered, 3 failed, 4m10s, 0.10 EUR, answers.jsonl"),
        (
            evolve(REPORT, receipts=(evolve(RECEIPT, released=False),)),
            "4,997 of 5,000 answered, 3 failed, 4m10s, 0.10 EUR, answers.jsonl, NOT RELEASED: instance-1",
        ),
        (RECEIPT, "65 s, billed as 2 minutes, about 0.10 EUR"),
        (evolve(RECEIPT, cost=None), "65 s, billed as 2 minutes, at an unknown price"),
        (Balance(current_balance=12.3, currency="EUR"), "12.30 EUR"),
        (Finding(name="clock", ok=True, detail="0 s apart"), "clock: ok, 0 s apart"),
        (
            Finding(name="token", ok=False, detail="refused", hint="fix it"),
            "token: PROBLEM, refused (fix it)",
        ),
        (ORPHAN, "instance-1 released, org/model, owner: host, process 12"),
        (Owner(kind="mine", owner="host, process 12", started_at=0), "mine: host, process 12"),
        (AffectedInstances(instance_ids=("i-1", "i-2")), "i-1, i-2"),
        (AffectedInstances(), "no instances"),
        (HardwareType(hardware_type_id="NVIDIA_L4_1", price_info=PRICES), "NVIDIA_L4_1, 3 EUR per hour"),
        (HardwareType(hardware_type_id="NVIDIA_L4_1"), "NVIDIA_L4_1"),
        (Model(model_id="org--model", hf_name="org/model"), "org/model"),
        (ModelPreview(model_id="org--model"), "org--model"),
    ],
    ids=str,
)
def test_one_line(shown: object, line: str) -> None:
    assert str(shown) == line


def test_a_plan_is_one_line() -> None:
    plan = BatchPlan(
        total=9,
        succeeded=2,
        failed=0,
        left=7,
        prompt_tokens=1,
        max_completion_tokens=None,
        longest_line=1,
        longest_tokens=1,
        model="org/model",
        hardware_type_id="NVIDIA_L4_1",
        price_per_minute=0.05,
        currency="EUR",
    )
    assert str(plan) == "7 of 9 requests left, org/model on NVIDIA_L4_1, 0.05 EUR per minute"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3600, "1h00m"), (7500, "2h05m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_tables() -> None:
    assert INSTANCE._repr_html_().count("<td>") == 7
    assert "<td>2026-01-02 03:04:05</td>" in INSTANCE._repr_html_()
    assert '<progress value="0.200" max="1"></progress>' in PROGRESS._repr_html_()
    assert "<td>4,997 of 5,000</td>" in REPORT._repr_html_()
    assert "<td>2 minutes</td><td>1</td><td>0.10 EUR</td>" in RECEIPT._repr_html_()
    assert "<td>1970-01-01 00:00:00</td>" in ORPHAN._repr_html_()
    assert "<td></td>" in evolve(ORPHAN, started_at=float("inf"))._repr_html_()
    listing = Listing([INSTANCE, PENDING], unreadable=[UnreadableEntry(entry_id=None, problem="$ is null")])
    assert listing._repr_html_().count("<tr>") == 3
    assert listing._repr_html_().endswith("<p>1 more entry could not be parsed</p>")
    assert Listing[Instance]()._repr_html_() == "<p>none</p>"


def test_everything_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    for shown in (
        Listing([evolve(INSTANCE, instance_id=attack)]),
        evolve(REPORT, output=attack),
        Finding(name=attack, ok=True, detail=attack),
        evolve(ORPHAN, owner=attack),
    ):
        assert "<script>" not in shown._repr_html_()
        assert "&lt;script&gt;" in shown._repr_html_()
    assert "<script>" not in html_table([{attack: attack}])


async def test_what_the_service_returns_is_a_table(world: World) -> None:
    async with world() as (_, client):
        async with client.instance(MODEL, HARDWARE):
            instances = await client.instances.list()
            models = await client.models.list()
            hardware = await client.hardware_types.list()
    for listing in (instances, models, hardware):
        rows = listing._repr_html_()
        assert rows.count("<tr>") == len(listing) + 1 > 1
    assert f"<td>{HARDWARE}</td><td>0.05 EUR</td><td>3 EUR</td>" in hardware._repr_html_()


class Handle:
    def __init__(self, shown: list[tuple[str, str]]) -> None:
        self.shown = shown

    def update(self, each: Any) -> None:
        self.shown.append(("update", each._repr_html_()))


async def test_the_display_of_a_notebook_is_one_that_is_updated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, str]] = []

    def display(each: Any, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(("display", each._repr_html_()))
        return Handle(shown)

    fake: Any = ModuleType("IPython.display")
    fake.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    progress = ProgressDisplay()
    async with world() as (_, client), client.instance(MODEL, HARDWARE, on_progress=progress):
        pass
    progress(BATCH)
    assert [kind for kind, _ in shown] == ["display", *["update"] * (len(shown) - 1)]
    assert len(shown) > 3
    assert shown[-1][1].count("<table>") == 2
    assert "<td>running</td>" in shown[-1][1]
    assert repr(progress).splitlines()[-1] == str(BATCH)


def test_without_ipython_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ConfigurationError, match="pip install ipython"):
        ProgressDisplay()
