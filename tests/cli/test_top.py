"""`cortecs-async top`: the application on a simulated terminal, against the emulator in this process."""

from __future__ import annotations

import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from _command_line import PROGRAM, Terminal, environment, serving
from _processes import until
from _virtual_time import VirtualTimeLoop
from attrs import define, evolve
from rich.console import Console
from rich.segment import Segment
from rich.text import Text

pytest.importorskip("textual")

from _world import HARDWARE, MODEL, World
from click.testing import CliRunner
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from cortecs_async import AsyncCortecs, Instance, errors
from cortecs_async._api.domain import InitProgress, InstanceArgs, InstanceStatus, WorkerStatus
from cortecs_async._cli import cli
from cortecs_async._cli.top.app import TopApp
from cortecs_async._cli.top.screens import Confirmation, Help
from cortecs_async._cli.top.view import (
    Column,
    Snapshot,
    age_of,
    cells,
    columns,
    cost_so_far,
    details,
    format_age,
    owner_text,
    rate,
    summary,
    warning,
)
from cortecs_async._extras import install_command
from cortecs_async._recovery.journal import JournalFile
from cortecs_async._recovery.ledger import CostLedger
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.types import Balance, HardwareType, Owner

EPOCH = 1_735_689_600.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """textual needs asyncio. Its timers run in virtual time."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@define
class Clock:
    """The clock of the emulator, advanced by the test."""

    now: float = 0.0


@define
class Screen:
    """The application and what it shows."""

    emu: Emulator
    app: TopApp
    pilot: Pilot[None]
    clock: Clock

    async def settle(self) -> None:
        """Wait until all actions and refreshes are done."""
        await self.pilot.pause()
        await self.app.finish()
        await self.app.workers.wait_for_complete()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
        await self.settle()

    async def resize(self, width: int, height: int) -> None:
        await self.pilot.resize_terminal(width, height)
        await self.settle()

    @property
    def table(self) -> DataTable[Text]:
        return cast("DataTable[Text]", self.app.screen_stack[0].query_one(DataTable))

    @property
    def rows(self) -> list[list[str]]:
        table = self.table
        return [[str(cell).strip() for cell in table.get_row_at(n)] for n in range(table.row_count)]

    @property
    def ids(self) -> list[str]:
        return [row[0] for row in self.rows]

    @property
    def selected(self) -> str:
        return self.rows[self.table.cursor_row][0]

    def text(self, name: str) -> str:
        widget = self.app.screen_stack[0].query_one(f"#{name}", Static)
        return str(widget.content) if widget.display else ""

    def column(self, name: str) -> list[str]:
        labels = [str(each.label).strip() for each in self.table.ordered_columns]
        return [row[labels.index(name)] for row in self.rows]

    def routes(self) -> list[str]:
        return [str(each.route) for each in self.emu.requests]


@asynccontextmanager
async def top(
    world: World, *models: str, size: tuple[int, int] = (120, 30), fault: Fault | None = None, **options: Any
) -> AsyncIterator[Screen]:
    """Run the application with instances of these models, and yield it after its first refresh."""
    clock = Clock()
    options = {"step_seconds": 10.0, "clock": lambda: clock.now, "max_retries": 0, **options}
    async with world(**options) as (emu, client):
        for model in models:
            emu.start_instance(model, HARDWARE)
        if fault is not None:
            emu.add_fault(fault)
        app = TopApp(client, interval=None, now=lambda: EPOCH + clock.now)
        async with app.run_test(size=size) as pilot:
            screen = Screen(emu, app, pilot, clock)
            await screen.settle()
            yield screen


# --- content ----------------------------------------------------------------------------------------------


async def test_instances_and_costs(world: World) -> None:
    async with top(world) as screen:
        screen.emu.start_instance(MODEL, HARDWARE, num_workers=2)
        await screen.press("r")
        assert screen.column("status")[0].startswith("pending 1/5 ")
        assert screen.column("owner") == ["unmanaged"]
        assert screen.column("cost") == ["-"]  # the start is not known yet
        assert "0 of 1 running   6.00 EUR per hour   balance " in screen.text("summary")
        screen.clock.now = 60.0
        await screen.press("r")
        assert screen.column("status") == ["running"]
        screen.clock.now = 60.0 + 30 * 60
        await screen.press("r")
        assert "1 of 1 running" in screen.text("summary")
        assert screen.column("per min") == ["0.100"]
        (cost,) = map(float, screen.column("cost"))
        assert cost == pytest.approx(screen.emu.total_cost, abs=0.11)
        assert MODEL in screen.text("details")
        assert "2 x NVIDIA_H100_1" in screen.text("details")


async def test_empty_account(world: World) -> None:
    async with top(world) as screen:
        assert "No instances" in screen.text("empty")
        assert not screen.table.display
        await screen.press("s", "d", "enter")
        assert len(screen.app.screen_stack) == 1
        screen.emu.start_instance(MODEL, HARDWARE)
        await screen.press("r")
        assert screen.text("empty") == ""
        assert len(screen.rows) == 1


async def test_requests_of_a_refresh(world: World) -> None:
    async with top(world, MODEL) as screen:
        assert screen.routes() == ["token", "list", "hardware_types", "balance"]
        for now in (10.0, 29.0):
            screen.clock.now = now
            await screen.press("r")
        assert screen.routes()[4:] == ["list", "list"]
        screen.clock.now = 31.0
        await screen.press("r")
        assert screen.routes()[6:] == ["list", "balance"]


@pytest.fixture
def writable_by_others(state_dir: Path) -> None:
    state_dir.mkdir()
    state_dir.chmod(0o777)


@pytest.mark.usefixtures("journals", "writable_by_others")
async def test_a_state_directory_that_cannot_be_used_hides_only_the_owners(world: World) -> None:
    async with top(world, MODEL, journal="auto") as screen:
        await screen.press("r")
        assert screen.column("owner") == ["unmanaged"]
        assert "CORTECS_STATE_DIR" in screen.text("problem").replace("\n", "")


async def test_owners_come_from_the_journals(world: World, journals: Path) -> None:
    async with top(world, MODEL, MODEL, MODEL, journal="auto") as screen:
        common = {
            "account": "a",
            "api": screen.emu.api_base_url,
            "at": EPOCH - 90,
            "args": {},
            "goal": "gone",
        }
        files = [
            JournalFile.create(
                journals,
                [
                    {"kind": "OWNER", "id": str(number), "host": "box", "pid": number, "at": 0.0},
                    {"kind": "CREATED", "entry": "1", "instance_id": screen.ids[number], **common},
                ],
            )
            for number in range(2)
        ]
        files[0].close()
        await screen.press("r")
        assert screen.column("owner") == ["left behind", "pid 1", "unmanaged"]
        # From the journal, while the service does not report a start yet.
        assert screen.column("age") == ["1m", "1m", "-"]
        assert screen.column("cost") == ["0.10", "0.10", "-"]
        assert "left behind by another machine (box), pid 0" in screen.text("details")
        files[1].remove()


async def test_eighty_columns_are_enough(world: World) -> None:
    async with top(world, MODEL, MODEL, size=(80, 24)) as screen:
        titles = [str(each.label).strip() for each in screen.table.ordered_columns]
        assert titles == ["instance", "model", "status", "age", "cost", "owner"]
        assert screen.column("status") == ["pending 1/5"] * 2
        assert screen.table.max_scroll_x == 0
        titles_line, first_line = (screen.table.render_line(y).text for y in range(2))
        assert "  Llama-3.1-8B-Inst…  " in first_line
        assert titles_line.rindex("cost") + 3 == first_line.rindex("-")  # aligned to the right
        await screen.resize(120, 30)
        assert "hardware" in [str(each.label) for each in screen.table.ordered_columns]
        assert screen.table.max_scroll_x == 0
        await screen.resize(40, 12)
        assert screen.ids == ["instance-10001", "instance-10002"]
        assert screen.column("owner") == ["unmanaged"] * 2
        assert screen.table.max_scroll_x == 0
        assert "balance" in screen.text("summary")


async def test_text_of_the_service_is_no_markup_and_no_escape_sequence(world: World) -> None:
    evil = "[red]\x1b[2J\n[/]@click"
    async with top(world, MODEL) as screen:
        (instance,) = screen.app._snapshot.instances
        args = evolve(instance.instance_args, model_id=evil, hardware_type_id=evil)
        evil_one = evolve(instance, instance_id=evil, base_url=evil, instance_args=args)
        screen.app._snapshot = evolve(screen.app._snapshot, instances=(evil_one,), problem=evil[:5])
        screen.app._draw()
        await screen.pilot.pause()
        assert "[red]" in screen.rows[0][1]
        await screen.pilot.press("d")
        await screen.pilot.pause()
        shown = screen.app.export_screenshot()
        assert "\x1b" not in shown
        assert "\x1b" not in screen.text("details") + "".join(screen.rows[0])
        assert isinstance(screen.app.screen, Confirmation)


# --- the cursor ---------------------------------------------------------------------------------------------


async def test_cursor_stays_on_its_instance(world: World) -> None:
    async with top(world, *[MODEL] * 4) as screen:
        first, second, third, fourth = screen.ids
        await screen.press("down", "down")
        assert screen.selected == third
        screen.emu.delete_instance(first)
        await screen.press("r")
        assert screen.selected == third
        screen.emu.start_instance(MODEL, HARDWARE)
        await screen.resize(90, 30)
        await screen.press("r")
        assert screen.selected == third
        assert third in screen.text("details")
        # On its row, once the instance is gone.
        screen.emu.delete_instance(third)
        await screen.press("r")
        assert screen.selected == fourth
        assert fourth in screen.text("details")
        assert screen.ids[0] == second


async def test_scroll_position_is_kept(world: World) -> None:
    async with top(world, *[MODEL] * 40, size=(100, 20)) as screen:
        await screen.press(*["down"] * 20, *["up"] * 5)
        selected, scrolled = screen.selected, screen.table.scroll_y
        assert scrolled > 0
        screen.emu.start_instance(MODEL, HARDWARE)
        await screen.press("r")
        assert (screen.selected, screen.table.scroll_y) == (selected, scrolled)


# --- errors -------------------------------------------------------------------------------------------------


async def test_failed_refresh_keeps_the_last_table(world: World) -> None:
    async with top(world, MODEL) as screen:
        screen.emu.add_fault(Fault("status", route="list", status=500))
        screen.clock.now = 20.0
        await screen.press("r")
        assert len(screen.rows) == 1
        assert "STALE" in screen.text("summary")
        assert "20s old" in screen.text("summary")
        assert "500" in screen.text("problem")
        await screen.press("r")
        assert "STALE" not in screen.text("summary")
        assert screen.text("problem") == ""


async def test_first_refresh_fails(world: World) -> None:
    async with top(world, MODEL, fault=Fault("status", route="token", status=401)) as screen:
        assert screen.text("summary") == "No data yet."
        assert "401" in screen.text("problem")
        assert screen.text("empty") == ""
        await screen.press("s", "d", "r")
        assert "0 of 1 running" in screen.text("summary")


async def test_refreshes_regularly(world: World) -> None:
    async with world(clock=lambda: 0.0, max_retries=0) as (emu, client):
        async with TopApp(client, interval=2.0, now=lambda: EPOCH).run_test():
            await until(lambda: [each.route for each in emu.requests].count("list") >= 3)


async def test_one_refresh_at_a_time(world: World) -> None:
    async with top(world) as screen:
        screen.app.action_refresh()
        screen.app.action_refresh()
        await screen.settle()
        assert screen.routes().count("list") == 2
        await screen.press("r")
        assert screen.routes().count("list") == 3


async def test_failed_balance_request_does_not_make_it_stale(world: World) -> None:
    async with top(world, MODEL) as screen:
        screen.emu.add_fault(Fault("status", route="balance", status=500))
        screen.clock.now = 40.0
        await screen.press("r")
        assert "STALE" not in screen.text("summary")
        assert "500" in screen.text("problem")
        assert "balance" in screen.text("summary")


async def test_it_shows_what_the_leases_that_ended_today_cost_without_a_request(
    world: World, journals: Path
) -> None:
    async with top(world, MODEL, journal="auto") as screen:
        assert "spent today" not in screen.text("summary")
        line = {
            "format": 1,
            "instance_id": "instance-1",
            "lease_id": "e1",
            "outcome": "released",
            "started_at": "2025-01-01T00:00:00Z",
            "ended_at": "2025-01-01T00:01:30Z",
            "seconds": 90,
            "cost": 0.1,
            "currency": "EUR",
            "api_base_url": screen.emu.api_base_url,
        }
        CostLedger(journals.parent / "costs").write([line])
        before = len(screen.routes())
        await screen.press("r")
        assert "per hour   spent today 0.10 EUR   balance" in screen.text("summary")
        assert screen.routes()[before:] == ["list"]
        screen.clock.now = 2 * 86400.0
        await screen.press("r")
        assert "spent today" not in screen.text("summary")


# --- stop and delete ----------------------------------------------------------------------------------------


async def test_stop_after_a_confirmation(world: World) -> None:
    async with top(world, MODEL, MODEL) as screen:
        await screen.press("down", "s")
        assert isinstance(screen.app.screen, Confirmation)
        shown = question(screen)
        assert f"Stop {screen.ids[1]}?" in shown
        assert "unmanaged" in shown
        assert len(screen.emu.billing) == 2
        await screen.press("y")
        assert screen.emu.billing == (screen.ids[0],)
        assert screen.column("status")[1] == "stopped"
        await screen.press("s")
        assert len(screen.app.screen_stack) == 1  # no confirmation: it is already stopped


async def test_any_answer_but_yes_changes_nothing(world: World) -> None:
    async with top(world, MODEL) as screen:
        for key in ("n", "escape", "q", "enter"):
            await screen.press("d")
            assert isinstance(screen.app.screen, Confirmation)
            await screen.press(key)
            assert len(screen.app.screen_stack) == 1, key
            assert screen.app.is_running, key
        assert screen.emu.billing == tuple(screen.ids)
        assert set(screen.routes()) == {"token", "list", "hardware_types", "balance"}


async def test_delete_stops_first_and_waits_until_it_is_gone(world: World) -> None:
    async with top(world, *[MODEL] * 4) as screen:
        for answer in (["y"], ["tab", "enter"], ["right", "enter"]):
            _, *others = screen.ids
            asked = len(screen.routes())
            await screen.press("d", *answer)
            assert screen.emu.existing == tuple(others), answer
            assert screen.ids == others
            asked_since = screen.routes()[asked:]
            assert asked_since.index("stop") < asked_since.index("delete")


async def test_confirmation_warns_of_a_running_process(world: World, journals: Path) -> None:
    async with top(world, MODEL, journal="auto") as screen:
        record = {"account": "a", "api": screen.emu.api_base_url, "at": EPOCH, "args": {}, "goal": "gone"}
        living = JournalFile.create(
            journals,
            [
                {"kind": "OWNER", "id": "1", "host": "box", "pid": 17, "at": 0.0},
                {"kind": "CREATED", "entry": "1", "instance_id": screen.ids[0], **record},
            ],
        )
        await screen.press("r", "d")
        assert "another machine (box), pid 17" in question(screen)
        assert "A running process is using it" in question(screen)
        living.remove()


async def test_instance_deleted_during_the_confirmation(world: World) -> None:
    async with top(world, MODEL, MODEL) as screen:
        first, second = screen.ids
        await screen.pilot.press("s")
        screen.emu.delete_instance(first)
        await screen.press("y")
        assert screen.ids == [second]
        await screen.pilot.press("d")
        screen.emu.delete_instance(second)
        await screen.press("y")
        assert screen.ids == []
        assert "No instances" in screen.text("empty")


async def test_instance_deleted_before_the_key(world: World) -> None:
    async with top(world, MODEL) as screen:
        screen.emu.delete_instance(screen.ids[0])
        await screen.press("r", "d", "s", "y")
        assert len(screen.app.screen_stack) == 1
        assert "stop" not in screen.routes()


async def test_failed_stop_is_shown_and_can_be_repeated(world: World) -> None:
    async with top(world, MODEL) as screen:
        screen.emu.add_fault(Fault("status", route="stop", status=500))
        await screen.press("s", "y")
        assert any("500" in each.message for each in screen.app._notifications)
        assert len(screen.emu.billing) == 1
        assert screen.app.pending == []
        await screen.press("s", "y")
        assert screen.emu.billing == ()


async def test_delete_in_progress_is_shown_and_outlives_the_screen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = anyio.Event()
    release = AsyncCortecs.release

    async def slow(client: AsyncCortecs, instance_id: str) -> None:
        await go.wait()
        await release(client, instance_id)

    monkeypatch.setattr(AsyncCortecs, "release", slow)
    async with top(world, MODEL) as screen:
        (only,) = screen.ids
        await screen.pilot.press("d", "y")
        await screen.pilot.pause()
        assert screen.app.pending == [f"deleting {only}"]
        assert screen.column("status") == ["deleting…"]
        await screen.pilot.press("d")
        assert len(screen.app.screen_stack) == 1  # the delete is already in progress
        await screen.pilot.press("q")
        await screen.pilot.pause()
        assert not screen.app.is_running
        assert screen.emu.billing == (only,)
        go.set()
        await screen.app.finish()
        assert screen.emu.existing == ()
        assert screen.app.pending == []
        assert screen.app.late_errors == []


async def test_late_errors_are_kept_for_the_command_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = anyio.Event()

    async def fails(client: AsyncCortecs, instance_id: str) -> None:
        await go.wait()
        raise errors.TeardownError("it is still there", instance_id=instance_id)

    monkeypatch.setattr(AsyncCortecs, "release", fails)
    async with top(world, MODEL) as screen:
        await screen.pilot.press("d", "y", "q")
        await screen.pilot.pause()
        go.set()
        await screen.app.finish()
        assert screen.app.late_errors == ["delete instance-10001: it is still there"]


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
async def test_quitting_changes_nothing(world: World, key: str) -> None:
    async with top(world, MODEL) as screen:
        await screen.pilot.press(key)
        await screen.pilot.pause()
        assert not screen.app.is_running
        assert len(screen.emu.billing) == 1


async def test_ctrl_c_quits_with_a_question_open(world: World) -> None:
    async with top(world, MODEL) as screen:
        await screen.press("d")
        await screen.pilot.press("ctrl+c")
        await screen.pilot.pause()
        assert not screen.app.is_running
    assert len(screen.emu.billing) == 1


async def test_help_opens_and_closes(world: World) -> None:
    async with top(world, MODEL) as screen:
        await screen.press("question_mark")
        assert isinstance(screen.app.screen, Help)
        await screen.press("escape")
        assert len(screen.app.screen_stack) == 1


async def test_works_without_colors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with top(world, MODEL) as screen:
        await screen.press("down", "d", "n")
        assert screen.app.no_color
        assert len(screen.rows) == 1


def question(screen: Screen) -> str:
    return "\n".join(str(each.content) for each in screen.app.screen.query(Static))


async def test_question_and_buttons_are_always_visible(world: World) -> None:
    async with top(world, MODEL) as screen:
        for size in ((40, 12), (40, 8), (60, 19), (60, 20), (80, 24)):
            await screen.resize(*size)
            await screen.press("d")
            window = screen.app.screen
            assert window.size == size
            for name in ("#question", "#no", "#yes"):
                widget = window.query_one(name)
                assert widget.region.height > 0
                assert window.region.contains_region(widget.region)
            scroll = window.query_one("#scroll")
            for _ in range(20):
                await screen.pilot.press("down")
            assert scroll.scroll_y == scroll.max_scroll_y
            assert window.region.contains_region(window.query_one("#question").region)
            await screen.press("enter")
            assert len(screen.app.screen_stack) == 1
            assert len(screen.emu.billing) == 1


# --- texts and columns --------------------------------------------------------------------------------------

PRICES = {
    HARDWARE: HardwareType(hardware_type_id=HARDWARE, price_info={"per_minute": 0.05, "currency": "EUR"})
}


def instance(status: str = "running", *, began: float | None = 0.0, **args: Any) -> Instance:
    started = None if began is None else datetime.fromtimestamp(EPOCH + began, UTC)
    stopped = datetime.fromtimestamp(EPOCH + 90, UTC) if status == "stopped" else None
    return Instance(
        instance_id="i",
        instance_args=InstanceArgs(**{"model_id": "a--b", "hardware_type_id": HARDWARE, **args}),
        instance_status=InstanceStatus(status=status, started_at=started, stopped_at=stopped),
        worker_statuses=(
            WorkerStatus(init_progress=InitProgress(current_step=2, num_steps=5, description="Loading")),
        ),
    )


def snapshot(*instances: Instance, **more: Any) -> Snapshot:
    return Snapshot(**{"at": EPOCH, "instances": instances, "hardware": PRICES, **more})


@pytest.mark.parametrize(
    ("one", "seconds", "cost"),
    [
        (instance(), 0.0, 0.05),
        (instance(), 60.0, 0.05),
        (instance(), 61.0, 0.10),
        (instance(num_workers=3), 61.0, 0.30),
        (instance(billing_interval="per_hour"), 61.0, 3.0),
        (instance("stopped"), 1000.0, 0.10),
        (instance("pending", began=None), 61.0, None),
        (instance(hardware_type_id="OTHER"), 61.0, None),
        (instance(began=90.0), 61.0, 0.05),  # a clock that is behind
    ],
)
def test_cost_so_far(one: Instance, seconds: float, cost: float | None) -> None:
    found = cost_so_far(one, snapshot(one), EPOCH + seconds)
    assert found == (None if cost is None else pytest.approx(cost))


def test_hourly_billing_has_its_own_price() -> None:
    info = {"per_minute": 0.05, "per_hour": 2.4}
    prices = {HARDWARE: HardwareType(hardware_type_id=HARDWARE, price_info=info)}
    one = instance(billing_interval="per_hour", num_workers=2)
    shown = snapshot(one, hardware=prices)
    assert cost_so_far(one, shown, EPOCH + 61) == pytest.approx(2 * 2.4)
    assert shown.price_per_minute(one) == pytest.approx(2 * 0.04)


def test_a_stopped_instance_costs_nothing_more() -> None:
    assert rate(instance("stopped"), snapshot()) == 0.0
    for status in ("failed", "ERROR", "terminated"):
        assert rate(instance(status), snapshot()) == 0.0
    assert rate(instance("something new", num_workers=2), snapshot()) == pytest.approx(0.10)
    assert cost_so_far(evolve(instance("stopped"), instance_status=InstanceStatus(status="stopped")),
                       snapshot(), EPOCH) is None  # fmt: skip


def test_age_counts_from_the_earliest_start() -> None:
    owners = {"i": Owner(kind="mine", owner="me", started_at=EPOCH - 60)}
    assert cost_so_far(instance(), snapshot(owners=owners), EPOCH + 1) == pytest.approx(0.10)
    # An owner that only releases it came later.
    owners = {"i": Owner(kind="mine", owner="me", started_at=EPOCH + 5 * 3600)}
    found = cost_so_far(instance(), snapshot(owners=owners), EPOCH + 5 * 3600 + 1)
    assert found == pytest.approx(301 * 0.05)
    assert age_of(instance(began=None), snapshot(owners=owners), EPOCH + 5 * 3600 + 1) == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (90000, "1d01h"),
    ],
)
def test_format_age(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


def test_summary_with_unknown_prices() -> None:
    text = str(summary(snapshot(instance(), instance(hardware_type_id="OTHER")), EPOCH, 100))
    assert "2 of 2 running   at least 3.00 EUR per hour   balance unknown" in text
    two = {**PRICES, "B": HardwareType(hardware_type_id="B", price_info={"per_hour": 6, "currency": "USD"})}
    one = snapshot(instance(), hardware=two, balance=Balance(current_balance=1, currency="EUR"))
    assert "3.00 per hour   balance 1.00 EUR" in str(summary(one, EPOCH, 100))
    # Wrapped, not cut off, where there is no room.
    first, second, *_ = str(summary(one, EPOCH, 34)).split("\n")
    assert first.endswith("per hour")
    assert second.startswith("balance 1.00 EUR")


def test_details() -> None:
    one = instance(context_length=4096, billing_interval="per_hour")
    text = str(details(one, snapshot(one), EPOCH + 61))
    assert "2/5 Loading" in text
    assert "i   running   age 1m   cost 3.00" in text
    assert "context 4096   billed per hour" in text
    assert str(details(None, snapshot(), EPOCH)) == ""


def test_owner_text_beyond_the_range_of_dates() -> None:
    owners = {"i": Owner(kind="held", owner="box", started_at=EPOCH, expires_at=4.0e11)}
    assert owner_text(instance(), snapshot(owners=owners)).startswith(
        "another machine (box), until in the far future:"
    )


@pytest.mark.parametrize(
    ("kind", "action", "status", "warned"),
    [
        ("process", "stop", "running", True),
        ("process", "delete", "stopped", False),
        ("process", "delete", "failed", False),
        ("held", "delete", "running", True),
        ("orphan", "delete", "running", False),
        (None, "delete", "running", True),
    ],
)
def test_warnings(kind: Any, action: str, status: str, *, warned: bool) -> None:
    owners = {"i": Owner(kind=kind, owner="box", started_at=EPOCH)} if kind else {}
    assert bool(warning(action, instance(status), snapshot(owners=owners))) is warned


@pytest.mark.parametrize(
    ("width", "missing"),
    [(71, set()), (70, {"model"}), (59, {"model"}), (58, {"model", "age"}), (50, {"model", "age", "cost"})],
)
def test_narrow_screen_leaves_out_columns_in_order(width: int, missing: set[str]) -> None:
    one = evolve(instance(), instance_id="i" * 15)
    shown = {each.key for each in columns(width, snapshot(one))}
    assert {"id", "model", "status", "age", "cost", "owner"} - shown == missing


@pytest.mark.parametrize("width", [40, 50, 60, 70, 71, 80, 109, 110, 120, 200])
def test_columns_fit_the_width(width: int) -> None:
    one = evolve(instance("pending", model_id="organisation--" + "m" * 90), instance_id="i" * 60)
    shown = columns(width, snapshot(one))
    assert sum(each.width + 2 for each in shown) <= width - 2
    console = Console(width=width)
    for cell, column in zip(cells(one, snapshot(one), EPOCH, shown), shown, strict=True):
        (line,) = console.render_lines(cell, console.options.update(width=column.width))
        assert Segment.get_line_length(line) == column.width
        text = "".join(segment.text for segment in line)
        assert text.strip() == cell.plain or text.endswith("…")


def test_step_description_is_left_out_first() -> None:
    one = instance("pending")
    for width, text in ((9, "pending"), (11, "pending 2/5"), (19, "pending 2/5 Loading")):
        shown = [Column("model", "model", 8), Column("status", "status", width)]
        assert str(cells(one, snapshot(one), EPOCH, shown)[1]) == text


# --- the command --------------------------------------------------------------------------------------------


def test_needs_a_terminal() -> None:
    result = CliRunner().invoke(cli, ["top"])
    assert result.exit_code == 1
    assert "Not a terminal" in result.output


@pytest.mark.sockets
def test_missing_textual_names_the_extra() -> None:
    program = (
        "import sys, runpy; sys.modules['textual'] = None; sys.argv = ['cortecs-async', 'top']; "
        "runpy.run_module('cortecs_async', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert install_command("tui") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("interval", ["nan", "inf", "0.5", "-1"])
def test_invalid_interval(interval: str) -> None:
    assert CliRunner().invoke(cli, ["top", "--interval", interval]).exit_code == 2


@pytest.mark.sockets
class TestOnATerminal:
    """In a real terminal, as a program."""

    def test_no_screen_without_credentials(self, tmp_path: Path) -> None:
        with Terminal(PROGRAM, "top", env=environment(None, tmp_path)) as terminal:
            assert terminal.wait() == 1
            assert "Set CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET, or run" in terminal.text
            assert b"\x1b[?1049h" not in terminal._written

    def test_service_never_reached_exits_with_1(self, tmp_path: Path) -> None:
        with Terminal(PROGRAM, "top", env=unreachable(tmp_path)) as terminal:
            terminal.until(lambda text: "No data yet." in text)
            terminal.press("q")
            assert terminal.wait() == 1
            assert is_restored(terminal)

    @pytest.mark.parametrize("key", ["q", "\x03"])
    def test_quitting_exits_with_0(self, tmp_path: Path, key: str) -> None:
        with serving() as emu:
            emu.start_instance(MODEL, HARDWARE)
            with Terminal(PROGRAM, "top", env=environment(emu, tmp_path)) as terminal:
                terminal.until(lambda text: "of 1 running" in text)
                terminal.press(key)
                assert terminal.wait() == 0
                assert is_restored(terminal)
            assert len(emu.existing) == 1

    def test_sigterm_restores_the_terminal(self, tmp_path: Path) -> None:
        with serving() as emu, Terminal(PROGRAM, "top", env=environment(emu, tmp_path)) as terminal:
            terminal.until(lambda text: "No instances" in text)
            terminal.process.terminate()
            assert terminal.wait() == 143
            assert is_restored(terminal)
            assert "Traceback" not in terminal.text

    @pytest.mark.parametrize("how", ["SIGTERM", "window"])
    def test_delete_in_progress_finishes(self, tmp_path: Path, how: str) -> None:
        with serving() as emu:
            instance_id = emu.start_instance(MODEL, HARDWARE)
            emu.add_fault(Fault("delay", route="stop", seconds=1.0))
            with Terminal(PROGRAM, "top", env=environment(emu, tmp_path)) as terminal:
                terminal.until(lambda text: instance_id in text)
                terminal.press("d")
                terminal.until(lambda text: f"Delete {instance_id}?" in text)
                terminal.press("y")
                terminal.until(lambda _: any(each.route == "stop" for each in emu.requests))
                if how == "window":
                    terminal.hang_up()
                    assert terminal.process.wait(timeout=30) == 129
                else:
                    terminal.process.terminate()
                    assert terminal.wait() == 143
                    assert f"Finishing: deleting {instance_id}" in terminal.text
                # Deleted by `top` itself, not by the reaper later.
                assert emu.existing == ()

    @pytest.mark.parametrize("before", ["", "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"])
    @pytest.mark.parametrize("text", ["", "No data yet."])
    def test_it_ends_with_its_terminal(self, tmp_path: Path, before: str, text: str) -> None:
        with Terminal(before + PROGRAM, "top", env=unreachable(tmp_path)) as terminal:
            terminal.until(lambda written: terminal._written and text in written)
            terminal.hang_up()
            assert terminal.process.wait(timeout=10) == 129

    def test_sigterm_ends_it_while_the_terminal_accepts_no_output(self, tmp_path: Path) -> None:
        with Terminal(PROGRAM, "top", env=unreachable(tmp_path)) as terminal:
            terminal.until(lambda text: "No data yet." in text)
            for _ in range(40):  # each opens or closes a window, which fills the buffer of the terminal
                terminal.press("?")
                time.sleep(0.05)
            terminal.process.terminate()
            assert terminal.process.wait(timeout=10) == 143

    def test_reaper_finishes_a_delete_after_sigkill(self, tmp_path: Path) -> None:
        with serving() as emu:
            instance_id = emu.start_instance(MODEL, HARDWARE)
            emu.add_fault(Fault("delay", route="stop", seconds=1.0))
            with Terminal(PROGRAM, "top", env=environment(emu, tmp_path)) as terminal:
                terminal.until(lambda text: instance_id in text)
                terminal.press("d")
                terminal.until(lambda text: f"Delete {instance_id}?" in text)
                terminal.press("y")
                terminal.until(lambda _: any(each.route == "stop" for each in emu.requests))
                terminal.process.kill()
                deadline = time.monotonic() + 30
                while emu.existing and time.monotonic() < deadline:
                    time.sleep(0.05)
                assert emu.existing == ()


def unreachable(state: Path) -> dict[str, str]:
    """Return the environment of a program that cannot reach the service."""
    return {
        **environment(None, state),
        "CORTECS_CLIENT_ID": "id",
        "CORTECS_CLIENT_SECRET": "secret",
        "CORTECS_API_BASE_URL": "http://127.0.0.1:9/v1",
    }


def is_restored(terminal: Terminal) -> bool:
    """Return whether the old screen is back, and keys are echoed again."""
    flags = termios.tcgetattr(terminal._slave)[3]
    return b"\x1b[?1049l" in terminal._written and bool(flags & termios.ECHO and flags & termios.ICANON)
