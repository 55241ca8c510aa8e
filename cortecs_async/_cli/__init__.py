"""The command line. Uses the public API only."""

from .main import cli

__all__ = ["cli"]
