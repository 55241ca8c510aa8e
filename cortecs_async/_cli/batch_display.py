"""What `cortecs-async batch` shows while it runs: a live view on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .. import Progress
from ..types import BatchProgress

# Seconds between two lines where there is no terminal.
_PAUSE = 10.0

_BAR = 20


class View(Protocol):
    """Shows how far a batch is."""

    last: BatchProgress | None

    def provisioning(self, progress: Progress) -> None:
        """A change while an instance starts."""
        ...

    def progress(self, progress: BatchProgress) -> None:
        """How far it is."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Silent:
    """Shows nothing, and remembers how far it was."""

    def __init__(self) -> None:
        self.last: BatchProgress | None = None

    def provisioning(self, progress: Progress) -> None:
        """See `View`."""

    def progress(self, progress: BatchProgress) -> None:
        """See `View`."""
        self.last = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class Lines(Silent):
    """A line for each change while an instance starts, and one in ten seconds after that."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._shown_at = time.monotonic()
        self._has_ended = False

    def provisioning(self, progress: Progress) -> None:
        """See `View`."""
        self._print(f"{progress.instance.instance_id}  {_step(progress)}  {progress.elapsed:.0f} s")

    def progress(self, progress: BatchProgress) -> None:
        """See `View`."""
        super().progress(progress)
        now = time.monotonic()
        is_end = progress.done == progress.total and not self._has_ended
        if is_end or now - self._shown_at >= _PAUSE:
            self._has_ended = self._has_ended or is_end
            self._shown_at = now
            self._print(f"{_count(progress)}, {', '.join([*_speed(progress), *_cost(progress)])}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bars(Silent):
    """A bar for each instance that starts, and one for the answers.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._starting: dict[str, Progress] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._starting.clear()
        self._live.stop()

    def provisioning(self, progress: Progress) -> None:
        """See `View`."""
        instance = progress.instance
        if instance.is_usable:
            self._starting.pop(instance.instance_id, None)
            line = f"{instance.instance_id} runs {instance.instance_args.hf_name}, {progress.elapsed:.0f} s"
            self._console.print(Text.assemble(("✓ ", "green"), line))
        else:
            self._starting[instance.instance_id] = progress

    def _render(self) -> Group:
        rows = Table.grid(padding=(0, 2))
        for _ in range(3):
            rows.add_column(no_wrap=True, overflow="ellipsis")
        for instance_id, progress in self._starting.items():
            bar = ProgressBar(total=1.0, completed=progress.fraction, width=_BAR)
            rows.add_row(Text(instance_id), bar, Text(_step(progress)))
        last = self.last
        if last is None:
            # Ten million lines take minutes.
            return Group(rows) if self._starting else Group(Text("looking through the files", style="dim"))
        style = "green" if last.done == last.total else "bar.complete"
        bar = ProgressBar(total=max(last.total, 1), completed=last.done, width=_BAR, complete_style=style)
        rows.add_row(Text("answers", style="bold"), bar, _counted(last))
        details = [" · ".join(_speed(last)), " · ".join(_cost(last))]
        lines = [
            Text(f"  {detail}", style="dim", no_wrap=True, overflow="ellipsis")
            for detail in details
            if last.instances and detail
        ]
        return Group(rows, *lines)


def duration(seconds: float) -> str:
    """As a clock shows it."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def number(value: float) -> str:
    """In few characters."""
    if value < 100:
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 10_000 else f"{value / 1000:,.1f}k"


def _step(progress: Progress) -> str:
    step = progress.leading
    return (
        f"{step.current_step}/{step.num_steps} {step.description}" if step.num_steps else progress.description
    )


def _count(progress: BatchProgress) -> str:
    return f"{progress.done:,} of {progress.total:,}, {progress.failed:,} failed"


def _counted(progress: BatchProgress) -> Text:
    percent = 100 * progress.done // max(progress.total, 1)
    text = Text(f"{progress.done:,} of {progress.total:,} · {percent} %")
    if progress.failed:
        text.append(f" · {progress.failed:,} failed", style="red")
    return text


def _speed(progress: BatchProgress) -> list[str]:
    instances = "instance" if progress.instances == 1 else "instances"
    return [
        f"{number(progress.rate)} answers/s",
        f"{number(progress.tokens_per_second)} tokens/s",
        f"{progress.running:,} at once on {progress.instances} {instances}",
    ]


def _cost(progress: BatchProgress) -> list[str]:
    parts = [f"{duration(progress.elapsed)} gone"]
    if progress.cost is not None:
        parts.append(f"{progress.cost:.2f} {progress.currency} so far".replace("  ", " "))
    if progress.eta is not None and progress.done < progress.total:
        parts.append(f"about {duration(progress.eta)} left")
    return parts
