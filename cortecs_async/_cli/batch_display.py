"""The progress display of `cortecs-async batch`: live on a terminal, otherwise lines."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .. import Progress
from ..types import BatchProgress
from .output import count, format_money, step_text

# Seconds between two lines without a terminal.
_LINE_INTERVAL = 10.0

_BAR_WIDTH = 20


class BatchDisplay:
    """The progress of a batch. This base class (for --quiet) only keeps the last progress."""

    def __init__(self) -> None:
        self.last: BatchProgress | None = None

    def provisioning(self, progress: Progress) -> None:
        """Show a change while an instance starts."""

    def progress(self, progress: BatchProgress) -> None:
        self.last = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class LineDisplay(BatchDisplay):
    """A line for each change while an instance starts, then a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._printed_at = time.monotonic()
        self._is_complete = False

    def provisioning(self, progress: Progress) -> None:
        self._print(f"{progress.instance.instance_id}  {_step(progress)}  {progress.elapsed:.0f} s".lstrip())

    def progress(self, progress: BatchProgress) -> None:
        super().progress(progress)
        now = time.monotonic()
        completes = progress.done == progress.total and not self._is_complete
        if completes or now - self._printed_at >= _LINE_INTERVAL:
            self._is_complete = self._is_complete or completes
            self._printed_at = now
            details = ", ".join([*_speed(progress), *_time_and_cost(progress)])
            self._print(f"{progress.done:,} of {progress.total:,}, {progress.failed:,} failed, {details}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


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
            rows.add_row(Text(instance_id), bar, Text(_step(progress)))
        last = self.last
        if last is None:
            # Reading ten million requests takes minutes.
            return Group(rows) if self._starting else Group(Text("Reading the files ...", style="dim"))
        style = "green" if last.done == last.total else "bar.complete"
        bar = ProgressBar(
            total=max(last.total, 1), completed=last.done, width=_BAR_WIDTH, complete_style=style
        )
        rows.add_row(Text("answers", style="bold"), bar, _answers(last))
        details = [" · ".join(_speed(last)), " · ".join(_time_and_cost(last))] if last.instances else []
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in details]
        return Group(rows, *lines)


def format_duration(seconds: float) -> str:
    """Format a duration like a clock: `1:30`, `1:00:00`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def format_number(value: float) -> str:
    """Format a number compactly: `12.3`, `1,234`, `45.7k`."""
    if value < 100:
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.1f}k"


def _step(progress: Progress) -> str:
    step = step_text(progress.instance) if progress.probe is None else None
    return step or progress.description


def _answers(progress: BatchProgress) -> Text:
    percent = 100 * progress.done // max(progress.total, 1)
    text = Text(f"{progress.done:,} of {progress.total:,} · {percent}%")
    if progress.failed:
        text.append(f" · {progress.failed:,} failed", style="red")
    return text


def _speed(progress: BatchProgress) -> list[str]:
    return [
        f"{format_number(progress.rate)} answers/s",
        f"{format_number(progress.tokens_per_second)} tokens/s",
        f"{progress.running:,} in parallel on {count(progress.instances, 'instance')}",
    ]


def _time_and_cost(progress: BatchProgress) -> list[str]:
    parts = [f"{format_duration(progress.elapsed)} elapsed"]
    if progress.cost is not None:
        parts.append(f"{format_money(progress.cost, progress.currency)} so far")
    if progress.eta is not None and progress.done < progress.total:
        parts.append(f"about {format_duration(progress.eta)} left")
    return parts
