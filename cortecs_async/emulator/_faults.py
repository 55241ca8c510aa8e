"""Faults: make responses fail, arrive late or arrive broken."""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs

from cortecs_async.emulator._messages import JSON_TYPE, Response, openai_error
from cortecs_async.emulator._routing import ROUTE_NAMES

FaultKind = Literal["drop", "status", "delay", "truncate", "garbage"]
FaultTime = Literal["before", "after"]

_GARBAGE = "<!doctype html><title>Not JSON</title><p>The emulator was asked for garbage."


# attrs.validators.optional, which mypy does not accept beside a default that is an int.
def _positive(_: object, attribute: "attrs.Attribute[Any]", value: int | None) -> None:
    if value is not None and value < 1:
        msg = f"{attribute.name!r} must be >= 1: {value}"
        raise ValueError(msg)


@attrs.frozen
class Fault:
    """A fault that affects requests.

    Attributes:
        kind: `drop` cuts the connection without a response; `status` responds with `status` and `body`;
            `delay` waits `seconds`; `truncate` sends all headers and half of the body, then cuts the
            connection; `garbage` responds 200 with `body`, or with HTML.
        route: The name of the route that it affects; None for every request.
        when: `before` the request is processed, so that nothing happens (a `delay` only makes it happen
            later), or `after`: it happens, but the response is lost or replaced. `truncate` and `garbage`
            are always after.
        times: How many requests it affects; None for all.
        skip: How many matching requests pass before the first that it affects.
        status: The status of a `status` fault.
        body: Text or bytes as they are, anything else as JSON; None for an error message.
        headers: Headers of a `status` or `garbage` response, in addition to or instead of its own.
        seconds: How long a `delay` takes.

    Raises:
        ValueError: For an unknown kind, time or route, or a number out of range.
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
        """Whether the request is processed in spite of the fault."""
        return self.when == "after" or self.kind in {"truncate", "garbage"}


@attrs.define
class _PendingFault:
    fault: Fault
    seen: int = 0

    def meets(self) -> bool:
        """Count a matching request, and return whether the fault affects it."""
        self.seen += 1
        past = self.seen - self.fault.skip
        return past > 0 and (self.fault.times is None or past <= self.fault.times)


@attrs.define
class FaultPlan:
    """The faults that have been added. Not thread-safe: the caller must hold a lock."""

    pending: list[_PendingFault] = attrs.field(factory=list)

    def add(self, fault: Fault) -> None:
        """Add a fault; earlier ones take precedence."""
        self.pending.append(_PendingFault(fault))

    def clear(self) -> None:
        self.pending.clear()

    def unmet(self) -> tuple[Fault, ...]:
        """Return the faults that have affected no request yet, in order."""
        return tuple(pending.fault for pending in self.pending if pending.seen <= pending.fault.skip)

    def take(self, route: str | None) -> Fault | None:
        """Return the fault that affects this request, if any.

        A request is affected by one fault at most. A fault behind another still counts the request towards
        its `skip`, but not towards its `times`.
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


def fault_response(fault: Fault, *, inference: bool) -> Response:
    """Build the response of a `status` or `garbage` fault."""
    body, content_type = _content(fault, inference=inference)
    headers = {name.lower(): value for name, value in fault.headers.items()}
    status = 200 if fault.kind == "garbage" else fault.status
    return Response(status, body, {"content-type": content_type, **headers})


def _content(fault: Fault, *, inference: bool) -> tuple[bytes, str]:
    if isinstance(fault.body, bytes | str):
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
        return body, "text/plain; charset=utf-8"
    if fault.body is not None:
        return json.dumps(fault.body).encode(), JSON_TYPE
    if fault.kind == "garbage":
        return _GARBAGE.encode(), "text/html; charset=utf-8"
    message = f"Emulated fault: status {fault.status}."
    value = openai_error(fault.status, message) if inference else {"message": message}
    return json.dumps(value).encode(), JSON_TYPE
