"""A progress bar for starting instances. Needs the `cli` extra."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from .._extras import install_command
from .._hints import hinted
from ..types import Progress

try:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as LiveBars
    from rich.table import Column
except ModuleNotFoundError as _error:
    raise ImportError(f"The progress bar needs rich: {install_command('cli')}", name="rich") from _error

# The minimum number of columns for a full-width bar.
_WIDE = 72


@hinted
class ProvisioningBar:
    """Show a live progress bar for every starting instance. Pass it as `on_progress`.

    On a terminal, the bars move until every instance is running. In a log file or a pipe, every change is
    printed on its own line. Leaving the block removes the bars, even if starting an instance fails.

    Args:
        console: The console. Default: standard error, so that the bars stay out of your program's output.

    Example:
        from cortecs_async.integrations.rich import ProvisioningBar

        with ProvisioningBar() as bar:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct", on_progress=bar) as inst:
                print(inst.base_url)
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = LiveBars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.fields[instance_id]}", markup=False),
            BarColumn(bar_width=24 if self._console.width >= _WIDE else 6),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(Column(no_wrap=True, min_width=len("0:00:00"))),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, progress: Progress) -> None:
        """Show a change. The client calls this."""
        instance = progress.instance
        step = progress.leading
        label = progress.description
        if step.num_steps and progress.probe is None:
            label = f"{step.current_step}/{step.num_steps} {label}"
        if not self._console.is_interactive:
            # While waiting for capacity, there is no instance, and the label says it all.
            about = f"{instance.instance_id}  {instance.status}  " if instance.instance_id else ""
            self._console.print(
                f"{about}{label}  {progress.elapsed:.1f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            return
        if instance.instance_id not in self._tasks:
            self._tasks[instance.instance_id] = self._bars.add_task(
                "", total=1.0, instance_id=instance.instance_id
            )
            self._bars.start()
        if instance.instance_id and (waiting := self._tasks.pop("", None)) is not None:
            self._bars.remove_task(waiting)
        self._bars.update(self._tasks[instance.instance_id], completed=progress.fraction, description=label)
        if self._bars.finished:
            # Make room for the program's output once all instances are running.
            self._stop()

    def _stop(self) -> None:
        if not self._tasks:
            return
        self._bars.stop()
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
