"""An emulated Cortecs account, for tests and for experiments. It costs nothing.

The emulator serves the provisioning API and the inference endpoints over HTTP: on a real socket
(:func:`serve_emulator`, :func:`run_emulator`) or in-process (:meth:`Emulator.http_client`,
:attr:`Emulator.app`). Prices, capacity and models are invented.

The emulator shares no code with the client and writes literal JSON, so a mistake in one is not hidden by the
other.
"""

try:
    from cortecs_async.emulator._emulator import Emulator
    from cortecs_async.emulator._faults import Fault
    from cortecs_async.emulator._records import LedgerEntry, RequestRecord
    from cortecs_async.emulator._server import run_emulator, serve_emulator
except ModuleNotFoundError as _error:
    if (_error.name or "").partition(".")[0] not in {"starlette", "uvicorn"}:
        raise
    from cortecs_async._extras import install_command

    raise ImportError(
        f"The emulator needs starlette and uvicorn: {install_command('emulator')}", name=_error.name
    ) from _error

__all__ = [
    "Emulator",
    "Fault",
    "LedgerEntry",
    "RequestRecord",
    "run_emulator",
    "serve_emulator",
]

# Tracebacks, reprs, and pickles show the public name instead of a private module.
for _public in (Emulator, Fault, LedgerEntry, RequestRecord, run_emulator, serve_emulator):
    _public.__module__ = __name__
