"""A day of a small team, on virtual time, with what it cost at the end: docs/team-day.md tells its story.

The programs are on that page. This is the script of who runs them when, and what goes wrong.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio
from _command_line import call_command
from _examples import files_of
from _simulation import virtual_world
from _simulation.actors import EPOCH
from _team_day import Office, ask, seconds_of, time_of

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import LedgerEntry
from cortecs_async.errors import (
    CapacityTimeoutError,
    InvalidArgumentError,
    LeaseIdleError,
    StartTimeoutError,
)
from cortecs_async.integrations.web import NotReadyError
from cortecs_async.types import CostReport, LeaseCost, Orphan

PAGE = Path(__file__).parent.parent / "docs" / "team-day.md"
EIGHT_B, SEVENTY_B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"

# The service: two minutes until an instance is running, two more in which its endpoint answers with 502, and
# twenty seconds, which are billed, to stop it.
STEP_SECONDS, ENDPOINT_LAG, STOP_SECONDS = 30.0, 120.0, 20.0

# What happens, as the script notes it. An error is its first sentence.
LOG = """\
9:15 a kill of Ana's batch, with 26 answers
9:41 Ana's batch: 60 of 60 answered, 26 before
10:30 The model was not in use and is starting again, which takes a few minutes
10:31 The model is starting, which takes a few minutes
10:35 the web app has an instance
10:36 Instance instance-10005 had no request for idle_timeout=900 s
10:40 the last visitor of the web app leaves
11:20 billed: instance-10001, instance-10007
11:20 sweep: instance-10007 released
12:30 No allowed hardware type can be used for meta-llama/Llama-3.3-70B-Instruct
14:05 No capacity for NVIDIA_L40S_1 or NVIDIA_H100_1 within capacity_timeout=300 s
14:10 The model was not in use and is starting again, which takes a few minutes
14:11 No capacity is available for the model right now
14:30 the web app has an instance
14:35 Ana's batch: 30 of 30 answered
14:36 the last visitor of the web app leaves
16:03 Instance instance-10011 is running, but its endpoint did not answer within start_timeout=180 s
18:00 the web app stops
"""

# The cost ledger: the end of each lease, its project, hardware, outcome, and cost.
LEASES = """\
9:15   search    NVIDIA_L4_1   recovered 0.150
9:15   help desk NVIDIA_L40S_1 idle      0.480
9:41   search    NVIDIA_L4_1   released  0.180
10:35  agents    NVIDIA_L40S_1 idle      1.080
10:49  help desk NVIDIA_L40S_1 idle      0.600
11:20  agents    NVIDIA_L40S_1 recovered 0.630
12:10  notebook  NVIDIA_L40S_1 released  1.230
14:35  search    NVIDIA_L4_1   released  0.165
14:44  help desk NVIDIA_L40S_1 idle      0.600
16:03  agents    NVIDIA_L40S_1 failed    0.090
"""

BY_PROJECT = """\
project    leases  failed    time    cost
agents     3       1 failed  58m56s  1.80 EUR
help desk  3                 54m18s  1.68 EUR
notebook   1                 40m00s  1.23 EUR
search     3                 31m32s  0.49 EUR
total      10      1 failed  3h04m   5.21 EUR
Some prices are taken from other leases on the same hardware.
Estimated from list prices; your invoice is authoritative.
"""

BY_OUTCOME = """\
outcome    leases  failed    time    cost
idle       4                 1h30m   2.76 EUR
released   3                 1h01m   1.57 EUR
recovered  2                 30m10s  0.78 EUR
failed     1       1 failed  3m00s   0.09 EUR
total      10      1 failed  3h04m   5.21 EUR
Some prices are taken from other leases on the same hardware.
Estimated from list prices; your invoice is authoritative.
"""

# By instance: what the bill has and the ledger does not.
MORE_ON_THE_BILL = {"instance-10003": 0.015, "instance-10005": 0.03, "instance-10011": 0.03}


class Day:
    """The script.

    Attributes:
        foreign: The instance of a colleague.
        log: What happens, with the time.
        report: The cost ledger in the evening.
        orphans: What a sweep finds then.
        existing: The instances that exist then.
        bill: The service's bill then, by instance.
    """

    def __init__(self, office: Office, folder: Path) -> None:
        self.office = office
        self.folder = folder
        self.programs = programs_of_the_page()
        self.log: list[str] = []
        self.foreign: str
        self.report: CostReport
        self.orphans: tuple[Orphan, ...]
        self.existing: tuple[str, ...]
        self.bill: dict[str, LedgerEntry]

    def note(self, text: str) -> None:
        self.log.append(f"{self.office.time} {text}")

    async def run(self) -> None:
        office = self.office
        await office.at("8:00")
        self.foreign = office.emulator.start_instance(EIGHT_B, "NVIDIA_L40S_1")
        async with anyio.create_task_group() as people:
            for each in (self.web_app, self.ana, self.ben, self.cleo, self.service):
                people.start_soon(each)
        await office.at("18:05")
        self.report = await office.run_program(lambda client: client.costs(by="project"))
        self.orphans = await office.run_program(lambda client: client.sweep())
        self.existing = office.emulator.existing
        self.bill = {each.instance_id: each for each in office.emulator.ledger}

    async def service(self) -> None:
        """The service has no free capacity for half an hour."""
        await self.office.at("13:55")
        self.office.set_capacity(0)
        await self.office.at("14:25")
        self.office.set_capacity(10)

    async def ana(self) -> None:
        """Ana runs batches. The first one is killed and run again; the second one waits for capacity."""
        office, label = self.office, self.programs.label
        morning, afternoon = self._requests("morning", 60), self._requests("afternoon", 30)
        answers = self.folder / "answers.jsonl"
        await office.at("9:05")
        killed = office.start(lambda client: label(client, morning, answers))
        await office.at("9:15")
        killed.kill()
        self.note(f"a kill of Ana's batch, with {len(answers.read_text().splitlines())} answers")
        await office.at("9:30")
        report = await office.run_program(lambda client: label(client, morning, answers))
        self.note(f"Ana's batch: {report.succeeded} of {report.total} answered, {report.resumed} before")
        await office.at("14:00")
        report = await office.run_program(lambda client: label(client, afternoon, self.folder / "more.jsonl"))
        self.note(f"Ana's batch: {report.succeeded} of {report.total} answered")

    @contextmanager
    def failing(self, kind: type[Exception]) -> Iterator[None]:
        """Expect an error, and note its first sentence."""
        with pytest.raises(kind) as caught:
            yield
        self.note(f"{caught.value}".partition(". ")[0])

    def _requests(self, name: str, number: int) -> Path:
        path = self.folder / f"{name}.jsonl"
        requests = ({"custom_id": f"{name}-{each}", "prompt": f"Label {each}."} for each in range(number))
        path.write_text("".join(f"{json.dumps(each)}\n" for each in requests))
        return path

    async def ben(self) -> None:
        """Ben's agents answer questions until he leaves for lunch. Everything else that he tries fails."""
        office, research = self.office, self.programs.research
        await office.at("10:00")
        with self.failing(LeaseIdleError):
            await office.run_program(lambda client: research(client, ask, self._questions()))
        await office.at("11:00")
        # The machine is out of memory. The response to the start request never arrives.
        office.start(lambda client: research(client, ask, self._questions()), is_killed_at_start=True)
        await office.at("11:20")
        self.note(f"billed: {', '.join(office.emulator.billing)}")
        for orphan in await office.run_program(lambda client: client.sweep()):
            self.note(f"sweep: {orphan.instance_id} {orphan.state}")
        await office.at("12:30")
        with self.failing(InvalidArgumentError):
            await office.run_program(expensive)
        await office.at("14:00")
        with self.failing(CapacityTimeoutError):
            await office.run_program(lambda client: research(client, ask, self._questions()))
        await office.at("16:00")
        with self.failing(StartTimeoutError):
            await office.run_program(impatient)

    async def _questions(self) -> AsyncIterator[str]:
        for number in range(6):
            yield f"Question {number}?"
            await anyio.sleep(180.0)
        await anyio.sleep(3600.0)  # lunch

    async def cleo(self) -> None:
        """Cleo starts an instance in a notebook, and releases it in another."""
        office = self.office
        await office.at("11:30")
        handle = await office.run_program(
            lambda client: client.acquire(EIGHT_B, max_lifetime="2h", project="notebook")
        )
        await office.at("12:10")
        await office.run_program(lambda client: client.release(handle))

    async def web_app(self) -> None:
        """The web app has visitors twice, and no instance in between."""
        await self.office.at("9:00")
        await self.office.run_program(self._serve)

    async def _serve(self, client: AsyncCortecs) -> None:
        async with self.programs.model_of(client) as model:
            for time in ("10:30", "14:10"):
                await self.office.at(time)
                with self.failing(NotReadyError):
                    model.handle()
                await anyio.sleep(60.0)
                with self.failing(NotReadyError):
                    model.handle()
                await model.wait()
                self.note("the web app has an instance")
                for _ in range(4):
                    await ask(model.handle(), "How do I reset my password?")
                    await anyio.sleep(60.0)
                self.note("the last visitor of the web app leaves")
            await self.office.at("18:00")
        self.note("the web app stops")


async def expensive(client: AsyncCortecs) -> None:
    """Ask for a large model at the price of a small one."""
    async with client.instance(SEVENTY_B, "cheapest", max_price_per_hour=5.0, project="agents"):
        pass


async def impatient(client: AsyncCortecs) -> None:
    """Allow three minutes for a start that takes four."""
    async with client.instance(EIGHT_B, ready="answer", start_timeout="3m", project="agents"):
        pass


def programs_of_the_page() -> Any:
    """Return the functions in the programs of the page."""
    names: dict[str, Any] = {}
    for source in files_of(PAGE).values():
        exec(compile(source, str(PAGE), "exec"), names)  # noqa: S102
    return SimpleNamespace(**names)


@pytest.mark.usefixtures("batch_without_threads")
def test_the_day_and_what_it_cost(
    anyio_backend: tuple[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, options = anyio_backend
    office = Office(
        tmp_path,
        step_seconds=STEP_SECONDS,
        endpoint_lag=ENDPOINT_LAG,
        stop_seconds=STOP_SECONDS,
        answer_seconds=20.0,
        parallel=2,
    )
    day = Day(office, tmp_path)
    with virtual_world(), caplog.at_level(logging.CRITICAL + 1, "cortecs_async"):
        if backend == "trio":
            trio.run(office.run_day, day.run, clock=options["clock"])  # anyio passes it only since 4.14
        else:
            anyio.run(office.run_day, day.run, backend=backend, backend_options=options)
    assert "\n".join(day.log) == LOG.strip()
    assert "\n".join(map(row_of, day.report.leases)) == LEASES.strip()
    assert day.orphans == ()
    check_the_foreign_instance(day)
    page = PAGE.read_text()
    assert check_the_bill(day) in " ".join(page.split())
    for by, expected in (("project", BY_PROJECT), ("outcome", BY_OUTCOME)):
        assert shown_costs(office, by) == expected
        assert f"$ cortecs-async costs --by {by}\n{expected}```" in page
    check_the_times(page)


def check_the_foreign_instance(day: Day) -> None:
    """Check that the colleague's instance is the only one left, and was never stopped."""
    foreign = day.bill[day.foreign]
    assert day.existing == (day.foreign,)
    assert (foreign.status, foreign.stopped_at) == ("running", None)
    assert foreign.seconds == pytest.approx(seconds_of("18:05") - seconds_of("8:00"), abs=1.0)


def check_the_bill(day: Day) -> str:
    """Check that the ledger is the bill, but for the time that the service takes to stop an instance.

    Return the result as the page has it.
    """
    bill = {each: entry for each, entry in day.bill.items() if each != day.foreign}
    ledger = {each.instance_id: each for each in day.report.leases}
    assert ledger.keys() == bill.keys()
    more: dict[str, float] = {}
    for each, entry in bill.items():
        cost = ledger[each].cost
        assert cost is not None
        minutes = math.ceil((entry.seconds - STOP_SECONDS) / 60.0)
        assert cost == pytest.approx(minutes * entry.price_per_hour / 60.0)
        if entry.cost != cost:
            more[each] = round(entry.cost - cost, 6)
    # While they were stopping, another minute began.
    assert more == MORE_ON_THE_BILL
    (total,) = day.report.total
    billed, difference = sum(each.cost for each in bill.values()), sum(more.values())
    assert total.cost == pytest.approx(billed - difference)
    # Nothing was left to learn the price of the instance whose program was killed while it was starting.
    assert [each.instance_id for each in ledger.values() if each.is_price_assumed] == ["instance-10007"]
    return f"billed {billed:.2f} EUR, {difference:.2f} EUR more than the ledger says"


def shown_costs(office: Office, by: str) -> str:
    """Return what `cortecs-async costs` prints, without spaces at the ends of lines."""
    environment = {
        "CORTECS_API_BASE_URL": office.emulator.api_base_url,
        "CORTECS_STATE_DIR": str(office.state),
    }
    result = call_command("costs", "--since", "all", "--by", by, env=environment)
    assert result.exit_code == 0
    return "".join(f"{line.rstrip()}\n" for line in result.output.splitlines())


def check_the_times(page: str) -> None:
    """Check that the script has the times of the page, or notes them."""
    noted = set(re.findall(r"^[\d:]+", f"{LOG}{LEASES}", re.MULTILINE))
    script = set(re.findall(r'"(\d+:\d\d)"', inspect.getsource(Day)))
    assert set(re.findall(r"\b\d+:\d\d\b", page)) <= noted | script


def row_of(lease: LeaseCost) -> str:
    """Return a lease as a row of `LEASES`."""
    time = time_of(lease.ended_at - EPOCH)
    return f"{time:<6} {lease.project:<9} {lease.hardware_type_id:<13} {lease.outcome:<9} {lease.cost:.3f}"
