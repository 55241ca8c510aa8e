"""Progress in a notebook, as one display that is updated. Needs IPython."""

from __future__ import annotations

import importlib
from typing import Any

from .. import ConfigurationError
from .._display import html_table
from .._hints import hinted
from ..types import BatchProgress, Progress


@hinted
class ProgressDisplay:
    """The progress of starts and batches, in one output of a cell: pass it as `on_progress`.

    Each instance has a row, and so has a batch. For a batch, pass the same object as `on_progress` and as
    `on_provisioning`. The rows stay in the cell. Create one in each cell: it updates the output of the cell
    that created it.

    Raises:
        ConfigurationError: If IPython is not installed.
    """

    def __init__(self) -> None:
        try:
            self._display: Any = importlib.import_module("IPython.display").display
        except ImportError:
            raise ConfigurationError("ProgressDisplay needs IPython: pip install ipython") from None
        self._rows: dict[str, Progress | BatchProgress] = {}
        self._handle: Any = None

    def __call__(self, progress: Progress | BatchProgress) -> None:
        """Show a change."""
        key = "" if isinstance(progress, BatchProgress) else progress.instance.instance_id
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
