"""Secrets in the system keyring, which is read by the optional package `keyring`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from ._secrets import Secret

_SERVICE = "cortecs-async"


def working_keyring() -> Any | None:
    """Return the package `keyring` if it has a recommended backend."""
    try:
        keyring: Any = importlib.import_module("keyring")
        # Recommended backends have a priority of at least 1; `fail`, `null`, and plain files have less.
        return keyring if float(keyring.get_keyring().priority) >= 1 else None
    except Exception:  # noqa: BLE001  (not installed, or a backend that raises anything)
        return None


def read_entry(keyring: Any, entry: str) -> tuple[Secret, str]:
    """Return an entry and an empty text, or an empty secret and the reason."""
    try:
        found = Secret(keyring.get_password(_SERVICE, entry) or "")
    except Exception as error:  # noqa: BLE001  (each backend has its own errors)
        return Secret(""), f"the keyring raised {type(error).__name__}"
    return found, "" if found else "no such entry"


def store_entries(entries: Mapping[str, Secret]) -> bool:
    """Write these entries. If the keyring does not work or return them, remove them and return False."""
    if (keyring := working_keyring()) is None:
        return False
    try:
        for entry, secret in entries.items():
            keyring.set_password(_SERVICE, entry, secret.reveal())
        is_stored = all(keyring.get_password(_SERVICE, each) == entries[each].reveal() for each in entries)
    except Exception:  # noqa: BLE001  (locked, or not reachable: each backend has its own errors)
        is_stored = False
    if not is_stored:
        remove_entries(entries)
    return is_stored


def remove_entries(entries: Iterable[str]) -> None:
    """Remove these entries if they exist."""
    keyring = working_keyring() if (found := [*entries]) else None
    for entry in found:
        if keyring is not None:
            with contextlib.suppress(Exception):  # it may be gone
                keyring.delete_password(_SERVICE, entry)
