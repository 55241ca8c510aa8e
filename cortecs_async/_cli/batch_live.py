"""The progress display of `cortecs-async batch` on a terminal."""

from __future__ import annotations

from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .. import Progress
from ..types import BatchProgress
from .batch_display import BatchDisplay, format_step, speed, time_and_cost

_BAR_WIDTH = 20


class LiveDisplay(BatchDisplay):
    """A progress bar for each starting instance and one for the answers. Needs a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._starting: dict[str, Progress] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._starting.clear()
        self._live.stop()

    def provisioning(self, progress: Progress) -> None:
        instance = progress.instance
        self._starting.pop("", None)  # the row of the instances that wait for capacity
        if progress.is_complete:
            self._starting.pop(instance.instance_id, None)
            model = instance.instance_args.hf_name
            line = f"{instance.instance_id} is running {model} after {progress.elapsed:.0f} s"
            self._console.print(Text.assemble(("✓ ", "green"), line))
        else:
            self._starting[instance.instance_id] = progress

    def _render(self) -> Group:
        rows = Table.grid(padding=(0, 2))
        for _ in range(3):
            rows.add_column(no_wrap=True, overflow="ellipsis")
        for instance_id, progress in self._starting.items():
            bar = ProgressBar(total=1.0, completed=progress.fraction, width=_BAR_WIDTH)
            rows.add_row(Text(instance_id), bar, Text(format_step(progress)))
        last = self.last
        if last is None:
            # Reading ten million requests takes minutes.
            return Group(rows) if self._starting else Group(Text("Reading the files ...", style="dim"))
        style = "green" if last.done == last.total else "bar.complete"
        bar = ProgressBar(
            total=max(last.total, 1), completed=last.done, width=_BAR_WIDTH, complete_style=style
        )
        rows.add_row(Text("answers", style="bold"), bar, _answers(last))
        details = [" · ".join(speed(last)), " · ".join(time_and_cost(last))] if last.instances else []
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in details]
        return Group(rows, *lines)


def _answers(progress: BatchProgress) -> Text:
    percent = 100 * progress.done // max(progress.total, 1)
    text = Text(f"{progress.done:,} of {progress.total:,} · {percent}%")
    if progress.failed:
        text.append(f" · {progress.failed:,} failed", style="red")
    return text
