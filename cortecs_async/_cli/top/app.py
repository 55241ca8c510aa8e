"""The terminal application of `cortecs-async top`. Only this module and its windows import textual."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import ClassVar, cast

from attrs import evolve
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable, Footer, Static

from ... import AsyncCortecs, CortecsError, Instance
from ...errors import JournalError
from ...types import Owner
from ..output import error_text, sanitize
from .screens import Confirmation, Help
from .view import Column, Snapshot, cells, columns, details, make_cell, owner_text, summary, warning

# Seconds between two requests for the balance.
_BALANCE_INTERVAL = 30.0

_EMPTY = "No instances. When you start one, it appears here."

_CSS = """
#summary { height: auto; max-height: 3; padding: 0 1; background: $panel; }
#problem { height: auto; max-height: 4; padding: 0 1; color: $text-error; background: $error-muted; }
#instances { height: 1fr; }
#empty { height: 1fr; content-align: center middle; text-align: center; color: $text-muted; padding: 0 2; }
#details { height: auto; max-height: 40%; padding: 0 1; border-top: solid $panel; }
Confirmation, Help { align: center middle; }
.window {
    width: 64; max-width: 95%; height: auto; max-height: 95%;
    padding: 1 2; border: round $primary; background: $surface; overflow-y: auto;
}
.window Static { height: auto; }
.window #question { max-height: 3; }
#scroll { height: auto; }
#warning { margin-top: 1; color: $text-warning; text-style: bold; }
#facts { margin-top: 1; }
#buttons { height: auto; margin-top: 1; align-horizontal: right; }
#buttons Button { margin-left: 2; }
.-compact .window { padding: 0 1; }
.-compact #warning, .-compact #facts, .-compact #buttons { margin-top: 0; }
.-compact #buttons Button { height: 1; min-width: 8; border: none; }
"""


class TopApp(App[None]):
    """A live view of the instances in an account.

    Args:
        client: The client. It is not closed here.
        interval: Seconds between refreshes, or None to refresh only on request.
        now: Returns the Unix time in seconds.
    """

    CSS = _CSS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "confirm('stop')", "stop"),
        Binding("d", "confirm('delete')", "delete"),
        Binding("r", "refresh", "refresh"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "close"),
        # Works even with a window open. By default, textual shows a hint instead of quitting.
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(
        self, client: AsyncCortecs, *, interval: float | None, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__()
        self._client = client
        self._interval = interval
        self._now = now
        self._snapshot = Snapshot()
        self._shown: tuple[tuple[Column, ...], list[str]] = ((), [])
        self._balance_requested_at: float | None = None
        self._is_refreshing = False
        self._width = 0
        self.late_errors: list[str] = []  # from after the screen was closed
        self._actions: set[asyncio.Task[None]] = set()

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield Static(id="problem")
        yield DataTable[Text](id="instances", cursor_type="row")
        yield Static(Text(_EMPTY), id="empty")
        yield Static(id="details")
        yield Footer()

    def on_mount(self) -> None:
        self._width = self.size.width
        self._draw()
        self.action_refresh()
        if self._interval is not None:
            self.set_interval(self._interval, self.action_refresh)

    def on_resize(self, event: Resize) -> None:
        # `self.size` is still the old size.
        self._width = event.size.width
        self._draw()

    def on_data_table_row_highlighted(self) -> None:
        self._draw_details()

    def action_refresh(self) -> None:
        if not self._is_refreshing:
            self._is_refreshing = True
            self.run_worker(self._refresh())

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_confirm(self, action: str) -> None:
        instance = self._snapshot.find(self._selected())
        if instance is None:
            return
        instance_id = instance.instance_id
        if instance_id in self._snapshot.actions:
            self._notify(f"{instance_id}: already {self._snapshot.actions[instance_id]}")
        elif action == "stop" and instance.status.lower() == "stopped":
            self._notify(f"{instance_id} is already stopped")
        else:

            def answered(answer: bool | None) -> None:
                if answer:
                    self._start_action(action, instance_id)

            owner = owner_text(instance, self._snapshot)
            facts = sanitize(f"{instance.instance_args.hf_name}, {instance.status}\n{owner}")
            text = warning(action, instance, self._snapshot)
            self.push_screen(Confirmation(action, sanitize(instance_id), facts, text), answered)

    async def finish(self) -> None:
        """Wait for all actions. Quitting does not cancel them."""
        while self._actions:
            await asyncio.gather(*self._actions)

    @property
    def has_data(self) -> bool:
        return self._snapshot.at is not None

    @property
    def pending(self) -> list[str]:
        """The actions in progress, such as `deleting instance-1`."""
        return [sanitize(f"{action} {instance_id}") for instance_id, action in self._snapshot.actions.items()]

    def _start_action(self, action: str, instance_id: str) -> None:
        # Not a textual worker, which quitting would cancel.
        task = asyncio.create_task(self._run_action(action, instance_id))
        self._actions.add(task)
        task.add_done_callback(self._actions.discard)

    async def _run_action(self, action: str, instance_id: str) -> None:
        self._mark(instance_id, "stopping" if action == "stop" else "deleting")
        try:
            if action == "stop":
                await self._client.instances.stop(instance_id)
            else:
                await self._client.release(instance_id)
        except CortecsError as error:
            self._notify(f"{action} {instance_id}: {error_text(error)}", is_error=True)
        finally:
            self._mark(instance_id, None)
        if self.is_running:
            self.action_refresh()

    def _mark(self, instance_id: str, action: str | None) -> None:
        actions = {key: value for key, value in self._snapshot.actions.items() if key != instance_id}
        if action:
            actions[instance_id] = action
        self._snapshot = evolve(self._snapshot, actions=actions)
        self._draw()

    async def _refresh(self) -> None:
        try:
            instances = await self._client.instances.list()
            owners, problem = await self._owners()
            spent_today = await self._spent_today()
        except CortecsError as error:
            self._snapshot = evolve(self._snapshot, problem=error_text(error), is_stale=True)
        else:
            self._snapshot = evolve(
                self._snapshot,
                at=self._now(),
                instances=instances,
                owners=owners,
                problem=problem,
                spent_today=spent_today,
                is_stale=False,
            )
            # Drawn before the requests for prices and the balance, which may be slow.
            self._draw()
            await self._refresh_prices_and_balance()
        finally:
            self._is_refreshing = False
        self._draw()

    async def _owners(self) -> tuple[Mapping[str, Owner], str]:
        """Return the owners. If the journals cannot be read, return the reason too."""
        try:
            return await self._client.owners(), ""
        except JournalError as error:
            return {}, error_text(error)

    async def _spent_today(self) -> str:
        """Return the cost of the leases that ended today. This sends no request."""
        today = datetime.fromtimestamp(self._now()).astimezone().date()
        try:
            report = await self._client.costs(today, by=None)
        except JournalError:
            return ""  # `_owners` returns the reason
        return ", ".join(row.cost_text for row in report.total)

    async def _refresh_prices_and_balance(self) -> None:
        now = self._now()
        last = self._balance_requested_at
        if last is not None and now - last < _BALANCE_INTERVAL:
            return
        self._balance_requested_at = now
        try:
            if not self._snapshot.hardware:
                types = await self._client.hardware_types.list()
                hardware = {each.hardware_type_id: each for each in types}
                self._snapshot = evolve(self._snapshot, hardware=hardware)
            self._snapshot = evolve(self._snapshot, balance=await self._client.user.balance())
        except CortecsError as error:
            self._snapshot = evolve(self._snapshot, problem=error_text(error))

    def _notify(self, text: str, *, is_error: bool = False) -> None:
        if self.is_running:
            self.notify(sanitize(text), severity="error" if is_error else "information", markup=False)
        elif is_error:
            self.late_errors.append(sanitize(text))

    def _selected(self) -> str | None:
        ids, table = self._shown[1], self._table
        return ids[table.cursor_row] if 0 <= table.cursor_row < len(ids) else None

    @property
    def _table(self) -> DataTable[Text]:
        # On the bottom screen, because a window may be open above it.
        return cast("DataTable[Text]", self.screen_stack[0].query_one("#instances", DataTable))

    def _static(self, name: str) -> Static:
        return self.screen_stack[0].query_one(f"#{name}", Static)

    def _draw(self) -> None:
        if not self.is_running:
            return
        snapshot = self._snapshot
        with self.batch_update():
            self._static("summary").update(summary(snapshot, self._now(), self._width - 2))
            problem = self._static("problem")
            problem.update(Text(snapshot.problem))
            problem.display = bool(snapshot.problem)
            is_empty = snapshot.at is not None and not snapshot.instances
            self._static("empty").display = is_empty
            self._table.display = not is_empty
            self._draw_table()
            self._draw_details()

    def _draw_table(self) -> None:
        table, snapshot, now = self._table, self._snapshot, self._now()
        shown = columns(self._width, snapshot)
        ids = [each.instance_id for each in snapshot.instances]
        rows = [cells(each, snapshot, now, shown) for each in snapshot.instances]
        if (shown, ids) == self._shown:
            for instance_id, row in zip(ids, rows, strict=True):
                for column, cell in zip(shown, row, strict=True):
                    table.update_cell(instance_id, column.key, cell)
            return
        # The cursor stays on its instance, or on its row if the instance is gone.
        selected, row_index, scroll_y = self._selected(), table.cursor_row, table.scroll_y
        self._shown = shown, ids
        table.clear(columns=True)
        for column in shown:
            table.add_column(make_cell(column.title, column), width=column.width, key=column.key)
        for instance_id, row in zip(ids, rows, strict=True):
            table.add_row(*row, key=instance_id)
        if ids:
            row_index = ids.index(selected) if selected in ids else min(row_index, len(ids) - 1)
            table.move_cursor(row=row_index, scroll=False)
            table.scroll_to(y=scroll_y, animate=False)

    def _draw_details(self) -> None:
        instance: Instance | None = self._snapshot.find(self._selected())
        text = self._static("details")
        text.update(details(instance, self._snapshot, self._now()))
        text.display = instance is not None
