"""Describe the owner of an instance in plain words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .output import format_time

if TYPE_CHECKING:
    from ..types import Owner

# No journal on this machine identifies the owner: a plain request, a person, or another machine started it.
UNMANAGED = "unmanaged"

# The characters of a shared instance's name in the short form.
_SHORT_NAME = 9

# Python options that take a value as the next word.
_PYTHON_VALUES = {"-W", "-X"}


def describe_owner(owner: Owner | None) -> str:
    """Describe an owner, such as `this machine, pid 123 (python train.py)`."""
    if owner is None:
        return UNMANAGED
    import socket  # noqa: PLC0415  (slow to import)

    from .process_tree import command_line_of  # noqa: PLC0415  (slow to import)

    host, pid = _host_and_pid(owner)
    is_here = host == socket.gethostname()
    place = "this machine" if is_here else f"another machine ({host})"
    if owner.kind == "mine":
        return "this command"
    if owner.kind == "held":
        until = "until released" if owner.expires_at is None else f"until {format_time(owner.expires_at)}"
        return f"{place}, {until}"
    process = f"{place}, pid {pid}"
    if owner.shared:
        process = f"{process} (shared as {owner.shared})"
    if owner.kind == "orphan":
        return f"left behind by {process}"
    if owner.shared:
        return process
    program = program_name(command_line_of(int(pid))) if is_here and pid.isdecimal() else ""
    return f"{process} ({program})" if program else process


def short_owner_words(owner: Owner | None) -> str:
    """Describe an owner in at most 16 characters: 11 if it is not shared and its id has at most 7 digits."""
    if owner is None:
        return UNMANAGED
    words = {"mine": "this top", "held": "acquired", "orphan": "left behind"}
    if owner.shared and owner.kind == "process":
        # People who share it know its name, not its process id.
        name = owner.shared
        return f"shared {name if len(name) <= _SHORT_NAME else f'{name[: _SHORT_NAME - 1]}…'}"
    return words.get(owner.kind) or f"pid {_host_and_pid(owner)[1]}"


def program_name(command_line: tuple[str, ...]) -> str:
    """Return a program's name, or for Python the name of the script or module.

    The rest of the command line is left out, because it may contain secrets.
    """
    if not command_line:
        return ""
    from pathlib import PurePath  # noqa: PLC0415  (slow to import)

    program, *rest = command_line
    name = PurePath(program).name
    if not re.fullmatch(r"python[0-9.]*", name):
        return name
    words = iter(rest)
    for word in words:
        if word in _PYTHON_VALUES:
            next(words, None)
        elif word == "-m":
            return f"{name} -m {next(words, '')}".rstrip()
        elif word.startswith("-c"):
            return f"{name} -c"
        elif not word.startswith("-"):
            return f"{name} {PurePath(word).name}"
    return name


def _host_and_pid(owner: Owner) -> tuple[str, str]:
    host, _, pid = owner.owner.partition(", process ")
    return host, pid
