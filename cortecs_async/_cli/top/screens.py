"""The windows that `cortecs-async top` opens above its table: a question, and the help."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Button, Static

# Lines below which a screen has none to spare, and how many there are besides what is to be read.
_LOW = 20
_AROUND, _AROUND_LOW = 13, 7

HELP = """\
s   stop: ends billing; it can be restarted
d   delete: stops it first, and waits until it is gone
r   read everything anew
q   quit: changes nothing, as Ctrl-C does

Owners, by the journals on this machine:
mine, process  a living process ends it in time
held           acquired: whoever has its handle
orphan         its process died: `cortecs-async sweep`
elsewhere      no journal here names it

age is counted from the start; cost is each interval
begun, for each worker, at the list price."""


class Question(ModalScreen[bool]):
    """Asks whether to do something to an instance; the answer is its result.

    Args:
        deed: `stop` or `delete`.
        instance_id: The instance.
        facts: What it is and whose, a line each.
        warning: What to think of; empty where there is nothing.
    """

    AUTO_FOCUS = "#no"  # a key that was pressed too often does no harm
    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Yes"),
        ("n,escape,q", "answer(False)", "No"),
        ("left,right", "app.focus_next", ""),
        ("up", "read(-1)", ""),
        ("down", "read(1)", ""),
    ]

    def __init__(self, deed: str, instance_id: str, facts: str, warning: str) -> None:
        super().__init__()
        self._deed = deed
        self._instance_id = instance_id
        self._facts = facts
        self._warning = warning

    def compose(self) -> ComposeResult:
        """Its widgets."""
        with Vertical(classes="window"):
            yield Static(Text(f"{self._deed} {self._instance_id}?", "bold"), id="question")
            # Only this scrolls: whoever answers sees of what.
            with VerticalScroll(id="reading", can_focus=False):
                if self._warning:
                    yield Static(Text(self._warning), id="warning")
                yield Static(Text(self._facts), id="facts")
            with Horizontal(id="answers"):
                yield Button("No (n)", id="no")
                yield Button(f"{self._deed.capitalize()} (y)", id="yes", variant="error")

    def on_resize(self, event: Resize) -> None:
        """Makes room for the question and the answers first."""
        is_low = event.size.height < _LOW
        self.set_class(is_low, "-small")
        room = event.size.height - (_AROUND_LOW if is_low else _AROUND)
        self.query_one("#reading").styles.max_height = max(room, 1)

    def action_read(self, lines: int) -> None:
        """Scrolls what does not fit."""
        self.query_one("#reading").scroll_relative(y=lines, animate=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """An answer by mouse or Enter."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """An answer by its key."""
        self.dismiss(answer)


class Help(ModalScreen[None]):
    """The keys, and what the owners mean."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """Its widgets."""
        with Vertical(classes="window"):
            yield Static(Text(HELP), id="help")
