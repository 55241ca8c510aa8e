"""The terminal application behind `cortecs-async top`. Only this and its windows import textual."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar, cast

from attrs import evolve
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable, Footer, Static

from ... import AsyncCortecs, CortecsError, Instance
from ..output import clean, reason
from .screens import Help, Question
from .view import Column, Snapshot, cells, columns, details, summary, warning, who

# Seconds after which what changes rarely is asked for again.
_SELDOM = 30.0

_EMPTY = "This account has no instance. Start one, and it shows up here."

_CSS = """
#summary { height: auto; max-height: 3; padding: 0 1; background: $panel; }
#problem { height: auto; max-height: 4; padding: 0 1; color: $text-error; background: $error-muted; }
#instances { height: 1fr; }
#empty { height: 1fr; content-align: center middle; text-align: center; color: $text-muted; padding: 0 2; }
#details { height: auto; max-height: 40%; padding: 0 1; border-top: solid $panel; }
Question, Help { align: center middle; }
.window {
    width: 64; max-width: 95%; height: auto; max-height: 95%;
    padding: 1 2; border: round $primary; background: $surface; overflow-y: auto;
}
.window Static { height: auto; }
.window #question { max-height: 3; }
#reading { height: auto; }
#warning { margin-top: 1; color: $text-warning; text-style: bold; }
#facts { margin-top: 1; }
#answers { height: auto; margin-top: 1; align-horizontal: right; }
#answers Button { margin-left: 2; }
.-small .window { padding: 0 1; }
.-small #warning, .-small #facts, .-small #answers { margin-top: 0; }
.-small #answers Button { height: 1; min-width: 8; border: none; }
"""


class TopApp(App[None]):
    """The instances of an account, live.

    Args:
        client: Where to read from; it is not closed here.
        interval: Seconds between refreshes; None for only those that are asked for.
        now: Unix time in seconds.

    Attributes:
        unheard: What went wrong after the screen was gone.
    """

    CSS = _CSS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "ask('stop')", "stop"),
        Binding("d", "ask('delete')", "delete"),
        Binding("r", "refresh", "refresh"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        # Also with a window open, and not the hint that textual would show instead.
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
        self._asked: float | None = None  # when balance and prices were
        self._is_reading = False
        self._width = 0
        self.unheard: list[str] = []
        self._deeds: set[asyncio.Task[None]] = set()

    def compose(self) -> ComposeResult:
        """Its widgets."""
        yield Static(id="summary")
        yield Static(id="problem")
        yield DataTable[Text](id="instances", cursor_type="row")
        yield Static(Text(_EMPTY), id="empty")
        yield Static(id="details")
        yield Footer()

    def on_mount(self) -> None:
        """The first refresh, and from then on one after the other."""
        self._width = self.size.width
        self._draw()
        self.action_refresh()
        if self._interval is not None:
            self.set_interval(self._interval, self.action_refresh)

    def on_resize(self, event: Resize) -> None:
        """Other columns fit now."""
        # `size` still is what it was.
        self._width = event.size.width
        self._draw()

    def on_data_table_row_highlighted(self) -> None:
        """The cursor has moved."""
        self._draw_details()

    def action_refresh(self) -> None:
        """Reads everything anew, unless that is under way."""
        if not self._is_reading:
            self._is_reading = True
            self.run_worker(self._refresh())

    def action_help(self) -> None:
        """Shows the keys."""
        self.push_screen(Help())

    def action_ask(self, deed: str) -> None:
        """Asks whether to stop or delete the instance under the cursor, and then does it."""
        instance = self._snapshot.find(self._selected())
        if instance is None:
            return
        instance_id = instance.instance_id
        if instance_id in self._snapshot.doing:
            self._tell(f"{instance_id}: {self._snapshot.doing[instance_id]} already")
        elif deed == "stop" and instance.status == "stopped":
            self._tell(f"{instance_id} is stopped already")
        else:

            def answered(answer: bool | None) -> None:
                if answer:
                    self._begin(deed, instance_id)

            facts = f"{instance.instance_args.hf_name}, {instance.status}\n{who(instance, self._snapshot)}"
            text = warning(deed, instance, self._snapshot)
            self.push_screen(Question(deed, clean(instance_id), clean(facts), text), answered)

    async def finish(self) -> None:
        """Waits for what was asked for; also after the end, which cuts nothing short."""
        while self._deeds:
            await asyncio.gather(*self._deeds)

    @property
    def has_read(self) -> bool:
        """Whether any refresh has worked."""
        return self._snapshot.at is not None

    @property
    def pending(self) -> list[str]:
        """What is still being done, for people."""
        return [clean(f"{doing} {instance_id}") for instance_id, doing in self._snapshot.doing.items()]

    def _begin(self, deed: str, instance_id: str) -> None:
        # Not a worker of textual's, which would be cancelled at the end.
        task = asyncio.create_task(self._do(deed, instance_id))
        self._deeds.add(task)
        task.add_done_callback(self._deeds.discard)

    async def _do(self, deed: str, instance_id: str) -> None:
        self._mark(instance_id, "stopping" if deed == "stop" else "deleting")
        try:
            if deed == "stop":
                await self._client.instances.stop(instance_id)
            else:
                await self._client.release(instance_id)
        except CortecsError as error:
            self._tell(f"{deed} {instance_id}: {reason(error)}", severe=True)
        finally:
            self._mark(instance_id, None)
        if self.is_running:
            self.action_refresh()

    def _mark(self, instance_id: str, doing: str | None) -> None:
        marks = {each: done for each, done in self._snapshot.doing.items() if each != instance_id}
        self._snapshot = evolve(self._snapshot, doing={**marks, instance_id: doing} if doing else marks)
        self._draw()

    async def _refresh(self) -> None:
        try:
            instances = await self._client.instances.list()
            owners = await self._client.owners()
        except CortecsError as error:
            self._snapshot = evolve(self._snapshot, problem=reason(error), is_stale=True)
        else:
            self._snapshot = evolve(
                self._snapshot, at=self._now(), instances=instances, owners=owners, problem="", is_stale=False
            )
            # Shown before what may be slower, and only is nice to have.
            self._draw()
            await self._refresh_seldom()
        finally:
            self._is_reading = False
        self._draw()

    async def _refresh_seldom(self) -> None:
        now = self._now()
        if self._asked is not None and now - self._asked < _SELDOM:
            return
        self._asked = now
        try:
            if not self._snapshot.hardware:
                types = await self._client.hardware_types.list()
                hardware = {each.hardware_type_id: each for each in types}
                self._snapshot = evolve(self._snapshot, hardware=hardware)
            self._snapshot = evolve(self._snapshot, balance=await self._client.user.balance())
        except CortecsError as error:
            self._snapshot = evolve(self._snapshot, problem=reason(error))

    def _tell(self, text: str, *, severe: bool = False) -> None:
        if self.is_running:
            self.notify(clean(text), severity="error" if severe else "information", markup=False)
        elif severe:
            self.unheard.append(clean(text))

    def _selected(self) -> str | None:
        ids, table = self._shown[1], self._table
        return ids[table.cursor_row] if 0 <= table.cursor_row < len(ids) else None

    @property
    def _table(self) -> DataTable[Text]:
        # Of the lowest screen: a window may be open above it.
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
        # Where the cursor was: on the same instance, or if that is gone, in its place.
        selected, place, scrolled = self._selected(), table.cursor_row, table.scroll_y
        self._shown = shown, ids
        table.clear(columns=True)
        for column in shown:
            title = Text(column.title)
            if column.is_number:
                title.align("right", column.width)
            table.add_column(title, width=column.width, key=column.key)
        for instance_id, row in zip(ids, rows, strict=True):
            table.add_row(*row, key=instance_id)
        if ids:
            place = ids.index(selected) if selected in ids else min(place, len(ids) - 1)
            table.move_cursor(row=place, scroll=False)
            table.scroll_to(y=scrolled, animate=False)

    def _draw_details(self) -> None:
        instance: Instance | None = self._snapshot.find(self._selected())
        text = self._static("details")
        text.update(details(instance, self._snapshot, self._now()))
        text.display = instance is not None
