"""The windows that `cortecs-async top` opens above its table: a question, and the help."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

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

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Yes"),
        ("n,escape,q", "answer(False)", "No"),
        ("left,right", "app.focus_next", ""),
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
            yield Static(Text(self._facts), id="facts")
            if self._warning:
                yield Static(Text(self._warning), id="warning")
            with Horizontal(id="answers"):
                # The first has the focus: a key that was pressed too often does no harm.
                yield Button("No (n)", id="no")
                yield Button(f"{self._deed.capitalize()} (y)", id="yes", variant="error")

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
