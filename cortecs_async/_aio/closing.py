"""Recognize a coroutine that is being closed. Keep it light: it is loaded before the first client exists."""

from __future__ import annotations

# `inspect.CO_COROUTINE`: the module is slow to import.
_CO_COROUTINE = 0x80


def is_closed_coroutine(error: BaseException | None) -> bool:
    """Return whether `error` comes from a coroutine that is being closed, whose frames cannot await.

    `coro.close()` and the garbage collector raise GeneratorExit in a coroutine, where an `await` would fail.
    Async generators are closed with `aclose()`, which can be awaited; event loops also do this to dropped
    generators. So the frame in which GeneratorExit was raised shows which case it is.
    """
    if isinstance(error, RuntimeError):
        # From a cancel scope that is closed in a different task.
        error = error.__context__
    if not isinstance(error, GeneratorExit):
        return False
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and bool(traceback.tb_frame.f_code.co_flags & _CO_COROUTINE)
