"""The progress display of `cortecs-async batch` without a terminal, and the text that both displays share."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from .output import count, format_money, step_text

if TYPE_CHECKING:
    from rich.console import Console

    from .. import Progress
    from ..types import BatchProgress

# Seconds between two lines without a terminal.
_LINE_INTERVAL = 10.0


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
        self._print(
            f"{progress.instance.instance_id}  {format_step(progress)}  {progress.elapsed:.0f} s".lstrip()
        )

    def progress(self, progress: BatchProgress) -> None:
        super().progress(progress)
        now = time.monotonic()
        completes = progress.done == progress.total and not self._is_complete
        if completes or now - self._printed_at >= _LINE_INTERVAL:
            self._is_complete = self._is_complete or completes
            self._printed_at = now
            details = ", ".join([*speed(progress), *time_and_cost(progress)])
            self._print(f"{progress.done:,} of {progress.total:,}, {progress.failed:,} failed, {details}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


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


def format_step(progress: Progress) -> str:
    step = step_text(progress.instance) if progress.probe is None else None
    return step or progress.description


def speed(progress: BatchProgress) -> list[str]:
    return [
        f"{format_number(progress.rate)} answers/s",
        f"{format_number(progress.tokens_per_second)} tokens/s",
        f"{progress.running:,} in parallel on {count(progress.instances, 'instance')}",
    ]


def time_and_cost(progress: BatchProgress) -> list[str]:
    parts = [f"{format_duration(progress.elapsed)} elapsed"]
    if progress.cost is not None:
        parts.append(f"{format_money(progress.cost, progress.currency)} so far")
    if progress.eta is not None and progress.done < progress.total:
        parts.append(f"about {format_duration(progress.eta)} left")
    return parts
