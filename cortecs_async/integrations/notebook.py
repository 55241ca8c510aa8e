"""Live progress in a notebook. Needs IPython."""

from __future__ import annotations

import importlib
from typing import Any

from .. import ConfigurationError
from .._display import html_table
from .._hints import hinted
from ..types import BatchProgress, Progress


@hinted
class ProgressDisplay:
    """Show startup and batch progress in a cell's output. Pass it as `on_progress`.

    Each instance and each batch has a row. The rows stay in the cell. For a batch, pass the same object as
    both `on_progress` and `on_provisioning`.

    Create a new one in each cell, because it always updates the cell where it first showed a change.

    Raises:
        ConfigurationError: If IPython is not installed.

    Example:
        from cortecs_async.integrations.notebook import ProgressDisplay

        progress = ProgressDisplay()
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct", on_progress=progress) as inst:
            print(inst.base_url)
    """

    def __init__(self) -> None:
        try:
            self._display: Any = importlib.import_module("IPython.display").display
        except ImportError:
            raise ConfigurationError("ProgressDisplay needs IPython: pip install ipython") from None
        self._rows: dict[str, Progress | BatchProgress] = {}
        self._handle: Any = None

    def __call__(self, progress: Progress | BatchProgress) -> None:
        """Show a change. The client calls this."""
        key = "batch" if isinstance(progress, BatchProgress) else progress.instance.instance_id
        # Until there is an instance, its id is empty.
        self._rows.pop("", None)
        self._rows[key] = progress
        if self._handle is None:
            self._handle = self._display(self, display_id=True)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        return "\n".join(map(str, self._rows.values()))

    def _repr_html_(self) -> str:
        kinds = (
            [each._columns() for each in self._rows.values() if isinstance(each, kind)]  # noqa: SLF001  (ours)
            for kind in (Progress, BatchProgress)
        )
        return "".join(html_table(rows) for rows in kinds if rows)
