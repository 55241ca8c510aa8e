"""Count the work of the package without a clock: the lines that it executes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from attrs import define

import cortecs_async

_PACKAGE = str(Path(cortecs_async.__file__).parent)
_EMULATOR = str(Path(_PACKAGE, "emulator"))


@define
class Work:
    """The number of lines executed."""

    lines: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """Count the executed lines of the package in this thread, without those of the emulator.

    The count is the same in every run. Unlike the number of calls, it grows with the iterations of loops and
    comprehensions, even on one line.
    """
    work = Work()

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if frame.f_code.co_filename.startswith(_EMULATOR):
            return None
        return count

    def count(_frame: FrameType, event: str, _argument: Any) -> Any:
        work.lines += event == "line"
        return count

    previous = sys.gettrace()
    sys.settrace(enter)
    try:
        yield work
    finally:
        sys.settrace(previous)
