"""The windows that `cortecs-async top` opens above its table: a confirmation, and the help."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Button, Static

# A screen with fewer lines gets a compact window.
_COMPACT_BELOW = 20

# The lines of a window besides the scrolling text.
_FRAME, _COMPACT_FRAME = 13, 7

HELP = """\
s   stop: ends billing, can be restarted
d   delete: stops it and waits until it is gone
r   refresh
q   close top (or Ctrl-C): does not affect instances

Owners, according to the journals
on this machine:
this top     top is releasing it
pid 123      a running process
shared dev   shared by processes as dev
acquired     expires at a set time
left behind  its process died; run
             `cortecs-async sweep`
unmanaged    runs until you stop it

age is the time since the instance was started.
cost is the list price of each started interval
and worker.
spent today is the estimated cost of the leases
that ended today on this machine."""


class Confirmation(ModalScreen[bool]):
    """Asks whether to stop or delete an instance. The result is the user's answer."""

    AUTO_FOCUS = "#no"  # so that one key press too many does no harm
    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Yes"),
        ("n,escape,q", "answer(False)", "No"),
        ("left,right", "app.focus_next", ""),
        ("up", "scroll(-1)", ""),
        ("down", "scroll(1)", ""),
    ]

    def __init__(self, action: str, instance_id: str, facts: str, warning: str) -> None:
        super().__init__()
        self._action = action
        self._instance_id = instance_id
        self._facts = facts
        self._warning = warning

    def compose(self) -> ComposeResult:
        with Vertical(classes="window"):
            yield Static(Text(f"{self._action.capitalize()} {self._instance_id}?", "bold"), id="question")
            # Only this part scrolls, so that the question and the buttons stay visible.
            with VerticalScroll(id="scroll", can_focus=False):
                if self._warning:
                    yield Static(Text(self._warning), id="warning")
                yield Static(Text(self._facts), id="facts")
            with Horizontal(id="buttons"):
                yield Button("No (n)", id="no")
                yield Button(f"{self._action.capitalize()} (y)", id="yes", variant="error")

    def on_resize(self, event: Resize) -> None:
        """Limit the height of the text, so that the question and the buttons fit."""
        is_compact = event.size.height < _COMPACT_BELOW
        self.set_class(is_compact, "-compact")
        height = event.size.height - (_COMPACT_FRAME if is_compact else _FRAME)
        self.query_one("#scroll").styles.max_height = max(height, 1)

    def action_scroll(self, lines: int) -> None:
        self.query_one("#scroll").scroll_relative(y=lines, animate=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Help(ModalScreen[None]):
    """Explains the keys, the owners, the age, and the cost."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        with Vertical(classes="window"):
            yield Static(Text(HELP), id="help")
