"""For web apps: an instance that runs beside the app, or one that all workers of a server share.

A start takes minutes, but a server must respond sooner. Entering therefore returns immediately. `handle()`
returns the instance once it is running; until then it raises `NotReadyError`, which your app turns into a
503. A lost instance is replaced, and a failed start is tried again. No framework is imported: docs/web.md
shows the code for FastAPI, Starlette and Litestar.
"""

from ._background import BackgroundInstance
from ._managed import NotReadyError, StartOptions
from ._shared import SharedInstance

__all__ = ["BackgroundInstance", "NotReadyError", "SharedInstance", "StartOptions"]

# Tracebacks and hovers name the module that users import from.
for _public in (BackgroundInstance, NotReadyError, SharedInstance, StartOptions):
    _public.__module__ = __name__
