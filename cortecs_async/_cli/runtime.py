"""Imports of optional packages, with a sentence for people when one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

import click


def need(module: str, extra: str) -> ModuleType:
    """The module, imported.

    Raises:
        click.ClickException: naming the extra to install, when something that it needs is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise click.ClickException(
            f"this needs {error.name or module}: python -m pip install 'cortecs-async[{extra}]'"
        ) from None
