"""Instances for web apps: one that all workers of a server share, or one for a single process.

Your app serves immediately, while the instance starts. `handle()` returns the instance once it is running.
Until then it raises `NotReadyError`, which your app turns into a 503. A lost instance is replaced, and a
failed start is tried again. This module imports no web framework.
"""

from ._background import BackgroundInstance
from ._managed import NotReadyError, StartOptions
from ._shared import SharedInstance

__all__ = ["BackgroundInstance", "NotReadyError", "SharedInstance", "StartOptions"]

# Tracebacks and hovers name the module that users import from.
for _public in (BackgroundInstance, NotReadyError, SharedInstance, StartOptions):
    _public.__module__ = __name__
