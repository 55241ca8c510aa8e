"""Simulate random worlds under random faults, on virtual time, and check the promise.
"""

from __future__ import annotations

from .data import Backend, World, worlds
from .run import simulate, virtual_world

__all__ = ["Backend", "World", "simulate", "virtual_world", "worlds"]
