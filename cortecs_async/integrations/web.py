"""Instances for web apps: one shared by all workers of a server, or one for a single process.

Your app starts serving immediately, while the instance starts. `handle()` returns the instance once it is
running. Before that, it raises `NotReadyError`, which your app turns into a 503. A lost instance is replaced,
and a failed attempt to start an instance is retried. This module does not import any web framework.
"""

from ._background import BackgroundInstance
from ._managed import NotReadyError, StartOptions
from ._shared import SharedInstance

__all__ = ["BackgroundInstance", "NotReadyError", "SharedInstance", "StartOptions"]

# Tracebacks and editors show the module that users import from.
for _public in (BackgroundInstance, NotReadyError, SharedInstance, StartOptions):
    _public.__module__ = __name__
