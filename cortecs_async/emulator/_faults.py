"""Faults: how an answer is lost, late or spoilt, and whose turn it is."""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs

from cortecs_async.emulator._answers import JSON_TYPE, Answer, openai_error
from cortecs_async.emulator._playback import Reply
from cortecs_async.emulator._routing import ROUTE_NAMES

FaultKind = Literal["drop", "status", "delay", "truncate", "garbage"]
FaultTime = Literal["before", "after"]

_GARBAGE = "<!doctype html><title>Not JSON</title><p>The emulator was asked for garbage."


def _positive(_: object, attribute: "attrs.Attribute[Any]", value: int | None) -> None:
    if value is not None and value < 1:
        msg = f"{attribute.name!r} must be >= 1: {value}"
        raise ValueError(msg)


@attrs.frozen
class Fault:
    """Something that goes wrong with requests.

    Attributes:
        kind: ``drop`` cuts the connection without an answer; ``status`` answers ``status`` with ``body``;
            ``delay`` waits ``seconds``; ``truncate`` sends all headers and half of the body, then cuts;
            ``garbage`` answers 200 with ``body``, or a piece of HTML.
        route: The name of the route that it meets; None for every request.
        when: ``before`` the deed, which then never happens (a ``delay`` does it late), or ``after`` it:
            done, but the answer is lost or replaced. ``truncate`` and ``garbage`` are always after.
        times: How many requests it meets; None for every one.
        skip: How many matching requests pass before the first that it meets.
        status: The status of a ``status`` fault.
        body: Text or bytes as they are, anything else as JSON; None for an error message.
        headers: Headers of a ``status`` or ``garbage`` answer, over the fault's own.
        seconds: How long a ``delay`` takes.

    Raises:
        ValueError: For an unknown kind, time or route, or a figure out of range.
    """

    kind: FaultKind = attrs.field(validator=attrs.validators.in_(get_args(FaultKind)))
    route: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.in_(ROUTE_NAMES))
    )
    when: FaultTime = attrs.field(default="before", validator=attrs.validators.in_(get_args(FaultTime)))
    times: int | None = attrs.field(default=1, validator=_positive)
    skip: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    status: int = attrs.field(default=500, validator=[attrs.validators.ge(200), attrs.validators.le(599)])
    body: Any = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    seconds: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))

    @property
    def after(self) -> bool:
        """Whether the deed is done in spite of it."""
        return self.when == "after" or self.kind in {"truncate", "garbage"}

    def spoilt(self, *, inference: bool) -> Answer:
        """The answer of a ``status`` or ``garbage`` fault."""
        body, content_type = self._content(inference=inference)
        own = {name.lower(): value for name, value in self.headers.items()}
        return Answer(
            200 if self.kind == "garbage" else self.status, body, {"content-type": content_type, **own}
        )

    def _content(self, *, inference: bool) -> tuple[bytes, str]:
        if isinstance(self.body, bytes | str):
            body = self.body.encode() if isinstance(self.body, str) else self.body
            return body, "text/plain; charset=utf-8"
        if self.body is not None:
            return json.dumps(self.body).encode(), JSON_TYPE
        if self.kind == "garbage":
            return _GARBAGE.encode(), "text/html; charset=utf-8"
        message = f"Emulated fault: status {self.status}."
        value = openai_error(self.status, message) if inference else {"message": message}
        return json.dumps(value).encode(), JSON_TYPE


@attrs.define
class _Pending:
    fault: Fault
    seen: int = 0

    def meets(self) -> bool:
        """Count one matching request; whether the fault is due for it."""
        self.seen += 1
        past = self.seen - self.fault.skip
        return past > 0 and (self.fault.times is None or past <= self.fault.times)


@attrs.define
class FaultPlan:
    """The faults that are waiting for their requests. Not thread-safe: whoever holds it locks it."""

    pending: list[_Pending] = attrs.field(factory=list)

    def add(self, fault: Fault) -> None:
        """Append a fault; earlier ones go first."""
        self.pending.append(_Pending(fault))

    def clear(self) -> None:
        """Forget all faults."""
        self.pending.clear()

    def unmet(self) -> tuple[Fault, ...]:
        """Those that have met no request yet, in order."""
        return tuple(pending.fault for pending in self.pending if pending.seen <= pending.fault.skip)

    def take(self, route: str | None) -> Fault | None:
        """The fault that meets a request of this route now.

        One request meets at most one fault. A fault that stands behind another still counts the request
        towards its ``skip``, but keeps its ``times``.
        """
        found: Fault | None = None
        for pending in self.pending:
            if pending.fault.route not in (None, route):
                continue
            if found is None:
                found = pending.fault if pending.meets() else None
            elif pending.seen < pending.fault.skip:
                pending.seen += 1
        return found


def disguise(fault: Fault | None, answer: Answer | None, *, inference: bool) -> Reply:
    """What is left of an answer after a fault."""
    if fault is None or fault.kind == "delay":
        return Reply(answer)
    if fault.kind == "drop":
        return Reply(None)
    if fault.kind == "truncate":
        return Reply(answer, cut=True)
    return Reply(fault.spoilt(inference=inference))
