"""For web apps: an instance that is started beside the app, and one that all workers of a server share.

A start takes minutes, and a server must answer sooner. So entering returns at once; `handle()` gives the
instance as soon as it runs, and else raises `NotReadyError`, which an app answers with a 503. What is lost,
or could not be had, is started again. No framework is imported: docs/web.md has the lines for FastAPI,
Starlette and Litestar.
"""

from ._sharing import SharedInstance
from ._standing import BackgroundInstance, NotReadyError, StartOptions

__all__ = ["BackgroundInstance", "NotReadyError", "SharedInstance", "StartOptions"]
