"""The messages between the owner of a shared instance and the processes that use it.

A process first sends a hello: who it is and what it wants. The owner answers a `hold` with the state of the
instance, after every change and at least once per heartbeat, or refuses it. Then a process may send `touch`
(it uses the instance) and `keep`. It closes its side when it leaves. `info` is answered with one line.
`release` ends the instance, and then is answered like a `hold`.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any, Literal

import attrs
from attrs import field, frozen

from .. import _errors
from .._api.domain import Progress
from .._api.wire import decode_instance
from .._errors import CortecsError, InvalidArgumentError
from .._lease.handle import InstanceHandle

Wish = Literal["hold", "info", "release"]


@frozen
class Starting:
    """The instance is starting, or waiting for capacity.

    Attributes:
        progress: The latest progress as `encode_progress` returns it, or None.
    """

    progress: dict[str, Any] | None = None


@frozen
class Running:
    """The instance is running."""

    handle: InstanceHandle


@frozen
class Releasing:
    """The instance is being released, and must not be used."""


@frozen
class Ended:
    """The instance is released, or nothing was started. The owner exits.

    Attributes:
        error: The reason, or None if no process needs the instance.
    """

    error: CortecsError | None = field(default=None, eq=False)


State = Starting | Running | Releasing | Ended


@frozen(kw_only=True)
class Hello:
    """The first line of a process.

    Attributes:
        wish: What the process wants.
        spec: The arguments of the instance, which must be the same in all processes that share it.
        version: The version of this package.
        pid: The id of the process.
        force: With `release`, end the blocks of other processes too.
    """

    wish: Wish
    version: str
    pid: int
    spec: dict[str, Any] = field(factory=dict)
    force: bool = False

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Hello | None:
        """Return the hello in a message, or None if it is not one."""
        known = {each.name for each in attrs.fields(cls)}
        try:
            hello = cls(**{name: value for name, value in message.items() if name in known})
        except TypeError:
            return None
        is_valid = isinstance(hello.pid, int) and isinstance(hello.spec, dict)
        return hello if is_valid else None


def encode_state(state: State, *, is_kept: bool) -> dict[str, Any]:
    """Return a state as a message."""
    message: dict[str, Any] = {"state": type(state).__name__.lower(), "kept": is_kept}
    match state:
        case Starting(progress):
            message["progress"] = progress
        case Running(handle):
            message["handle"] = handle.to_json()
        case Ended(error):
            message["error"] = None if error is None else encode_error(error)
        case Releasing():
            pass
    return message


def decode_state(message: dict[str, Any]) -> State | None:
    """Return the state in a message, or None if it has none."""
    match message:
        case {"state": "starting"}:
            return Starting(message.get("progress"))
        case {"state": "running", "handle": str(handle)}:
            return Running(InstanceHandle.from_json(handle))
        case {"state": "releasing"}:
            return Releasing()
        case {"state": "ended"}:
            error = message.get("error")
            return Ended(decode_error(error) if isinstance(error, dict) else None)
        case _:
            return None


def encode_error(error: BaseException) -> dict[str, Any]:
    """Return an error as data: its class, its message, and its attributes as far as JSON has them."""
    if not isinstance(error, CortecsError):
        # Its text is not known to be free of secrets. The owner logs it.
        return {
            "type": "CortecsError",
            "message": f"The owner process failed unexpectedly: {type(error).__name__}",
        }
    attributes = {name: value for name, value in vars(error).items() if _is_plain(value)}
    return {"type": type(error).__name__, "message": str(error), "attributes": attributes}


def decode_error(data: dict[str, Any]) -> CortecsError:
    """Return the error in data from `encode_error`."""
    kind = getattr(_errors, str(data.get("type")), CortecsError)
    if not (isinstance(kind, type) and issubclass(kind, CortecsError)):
        kind = CortecsError
    error = kind.__new__(kind)
    error.args = (str(data.get("message")),)
    for name, value in dict(data.get("attributes") or {}).items():
        vars(error)[name] = tuple(value) if isinstance(value, list) and name != "__notes__" else value
    return error


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def encode_progress(progress: Progress) -> dict[str, Any]:
    """Return a progress as data."""

    def serialize(_: object, __: object, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else value

    return attrs.asdict(progress, value_serializer=serialize)


def decode_progress(data: dict[str, Any]) -> Progress | None:
    """Return the progress in data from `encode_progress`, or None if it is not readable."""
    with contextlib.suppress(Exception):  # for example of a different version
        fields: dict[str, Any] = {**data, "instance": decode_instance({"instance": data["instance"]})}
        return Progress(**fields)
    return None


def refuse(hello: Hello, version: str, spec: dict[str, Any]) -> dict[str, Any] | None:
    """Return the message that refuses a hello to the owner of this version and spec, or None."""
    if hello.wish == "hold" and (hello.version != version or hello.spec != spec):
        return {"refused": {"version": version, "spec": spec}}
    return None


def refusal_error(name: str, hello: Hello, refused: dict[str, Any], owner: str) -> CortecsError:
    """Return the error for a refused hello: what differs, in the running instance and here."""
    if refused.get("version") != hello.version:
        return _errors.ConfigurationError(
            f"The shared instance {name!r} belongs to cortecs_async {refused.get('version')} ({owner}), and "
            f"this process has {hello.version}. Use the same version, or release the instance first."
        )
    theirs: dict[str, Any] = refused.get("spec") or {}
    different = [each for each in sorted({*theirs, *hello.spec}) if theirs.get(each) != hello.spec.get(each)]
    shown = "; ".join(
        f"{each} is {_shown(each, theirs.get(each))}, not {_shown(each, hello.spec.get(each))}"
        for each in different
    )
    return InvalidArgumentError(
        f"The shared instance {name!r} is already running with other arguments ({owner}): {shown}. "
        "Pass the same arguments, or use another name."
    )


def _shown(argument: str, value: Any) -> str:
    """Return the value of an argument for a message."""
    if isinstance(value, (int, float)):
        is_duration = argument.endswith(("_timeout", "_lifetime")) or argument == "linger"
        return f"{value:g} s" if is_duration else f"{value:g}"
    return repr(value)
