"""An emulator of the Cortecs provisioning API and of the inference endpoints behind it.

It keeps an account with instances, capacity and a bill, and speaks HTTP in process
(:meth:`Emulator.transport`, :attr:`Emulator.app`) or on real sockets (:func:`serve_emulator`). Nothing
in it is shared with the client: it writes literal wire JSON, so that a mistake in one of the two shows
up instead of cancelling itself out. Prices, capacity and models are invented; the bill costs nothing.
"""

try:
    from cortecs_async.emulator._emulator import Emulator
    from cortecs_async.emulator._faults import Fault
    from cortecs_async.emulator._records import LedgerEntry, RequestRecord
    from cortecs_async.emulator._server import run_emulator, serve_emulator
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] not in {"starlette", "uvicorn"}:
        raise
    raise ImportError(
        "The emulator needs starlette and uvicorn: pip install 'cortecs-async[emulator]'", name=_error.name
    ) from _error

__all__ = [
    "Emulator",
    "Fault",
    "LedgerEntry",
    "RequestRecord",
    "run_emulator",
    "serve_emulator",
]
