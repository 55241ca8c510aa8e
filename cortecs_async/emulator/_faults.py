"""Faults: make responses fail, arrive late, or arrive broken."""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

import attrs

from cortecs_async.emulator._messages import (
    HTML_TYPE,
    JSON_TYPE,
    ApiError,
    ErrorBody,
    Response,
    error_response,
)
from cortecs_async.emulator._routing import INFERENCE_ROUTES, ROUTE_NAMES

FaultKind = Literal["drop", "status", "delay", "truncate", "garbage", "omit", "late", "crash"]
FaultTime = Literal["before", "after"]

_GARBAGE = "<!doctype html><title>Not JSON</title><p>The emulator was asked for garbage."


# Kinds that only make sense on some routes.
_ROUTES_OF: Final[Mapping[str, frozenset[str]]] = {
    "omit": frozenset({"list", "get"}),
    "late": frozenset({"start", "restart", "stop", "stop_all", "delete", "delete_all"}),
    "crash": INFERENCE_ROUTES,
}


# attrs.validators.optional, which mypy rejects together with an int as the default.
def _positive(_: object, attribute: "attrs.Attribute[Any]", value: int | None) -> None:
    if value is not None and value < 1:
        msg = f"{attribute.name} must be at least 1, not {value}"
        raise ValueError(msg)


@attrs.frozen
class Fault:
    """A failure that the emulator injects into requests. Add it with `emulator.add_fault`.

    Attributes:
        kind: What happens.

            - `drop`: the connection is cut without a response.
            - `status`: the response has this `status`, these `headers`, and this `body`.
            - `delay`: the response comes `seconds` later.
            - `truncate`: the connection is cut after all headers and half of the body.
            - `garbage`: the response is a 200 with `body`, or with HTML if there is no `body`.
            - `omit`: the response to a `list` or `get` leaves an instance out, as if it did not exist.
            - `late`: a start, restart, stop, or delete request gets no response and is processed `seconds`
              later.
            - `crash`: the inference server of the instance is down for `seconds`. This request and all others
              that arrive in that time are cut. Requests in flight are cut when their responses are due.
        route: The name of the affected route, such as `list`, `start`, or `chat`, or None for all routes that
            this kind can affect.
        when: `before`: the request is not processed (with `delay`: it is processed later). `after`: the
            request is processed, but the response is lost or replaced. `truncate` and `garbage` always happen
            afterward. `omit`, `late`, and `crash` ignore `when`.
        times: The number of requests to affect, or None to affect all.
        skip: The number of matching requests to let through before the first affected one.
        status: The HTTP status of a `status` fault.
        body: The body of a `status` or `garbage` response. Text and bytes are sent as they are, and anything
            else as JSON. Text that begins with `<` is sent as HTML, like a proxy's error. If None, `status`
            sends an API error and `garbage` an HTML page.
        headers: Headers of a `status` or `garbage` response, added to the default headers or replacing them.
        seconds: Duration of a `delay` or a `crash`, or how late a `late` request is processed.
        instance_id: The instance that an `omit` fault leaves out, or None for all instances.
        text: Affect only requests whose body contains this text. Pass None to affect every request.

    Raises:
        ValueError: If a kind, `when`, or route is unknown, the kind does not affect the route, `instance_id`
            is set without `omit`, or a number is out of range.

    Example:
        from cortecs_async.emulator import Fault

        emulator.add_fault(Fault("drop", route="start", when="after"))  # started, but no response arrives
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
            print(inst.instance_id)  # the lease has found it and adopted it
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
    instance_id: str | None = None
    text: str | None = None

    def __attrs_post_init__(self) -> None:
        routes = _ROUTES_OF.get(self.kind, ROUTE_NAMES)
        if self.route is not None and self.route not in routes:
            msg = f"route must be one of {', '.join(sorted(routes))} for {self.kind!r}, not {self.route!r}"
            raise ValueError(msg)
        if self.instance_id is not None and self.kind != "omit":
            msg = f"kind must be 'omit' with an instance_id, not {self.kind!r}"
            raise ValueError(msg)

    @property
    def after(self) -> bool:
        """Whether the request is processed despite the fault.

        Example:
            assert Fault("drop", when="after").after
        """
        return self.kind in {"truncate", "garbage"} or (self.when == "after" and self.kind not in _ROUTES_OF)

    def affects(self, route: str | None, instance_id: str | None, body: bytes) -> bool:
        """Return whether this can affect a request, given its route, the instance in its path, and its body.

        Example:
            assert Fault("drop", route="chat").affects("chat", "instance-1", b"{}")
        """
        if self.text is not None and self.text.encode() not in body:
            return False
        if self.route not in (None, route) or (
            self.kind in _ROUTES_OF and route not in _ROUTES_OF[self.kind]
        ):
            return False
        return None in (self.instance_id, instance_id) or self.instance_id == instance_id


@attrs.define
class _PendingFault:
    fault: Fault
    seen: int = 0

    def meets(self) -> bool:
        """Count a matching request and return whether the fault affects it."""
        self.seen += 1
        past = self.seen - self.fault.skip
        return past > 0 and (self.fault.times is None or past <= self.fault.times)


@attrs.define
class FaultPlan:
    """The faults added so far. Not thread-safe: the caller must hold a lock."""

    pending: list[_PendingFault] = attrs.field(factory=list)

    def add(self, fault: Fault) -> None:
        """Add a fault; earlier ones take precedence."""
        self.pending.append(_PendingFault(fault))

    def clear(self) -> None:
        self.pending.clear()

    def unmet(self) -> tuple[Fault, ...]:
        """Return the faults that have not affected any request yet, in order."""
        return tuple(pending.fault for pending in self.pending if pending.seen <= pending.fault.skip)

    def take(self, route: str | None, instance_id: str | None, body: bytes) -> Fault | None:
        """Return the fault that affects this request, if any.

        At most one fault affects a request. A fault behind another still counts the request toward
        its `skip`, but not toward its `times`.
        """
        found: Fault | None = None
        for pending in self.pending:
            if not pending.fault.affects(route, instance_id, body):
                continue
            if found is None:
                found = pending.fault if pending.meets() else None
            elif pending.seen < pending.fault.skip:
                pending.seen += 1
        return found


def fault_response(fault: Fault, error_body: ErrorBody) -> Response:
    """Build the response of a `status` or `garbage` fault; `error_body` is the shape of all other errors."""
    headers = {name.lower(): value for name, value in fault.headers.items()}
    body = _GARBAGE if fault.kind == "garbage" and fault.body is None else fault.body
    if body is None:
        message = f"Emulated fault: status {fault.status}."
        return error_response(ApiError(fault.status, message, headers=headers), error_body)
    content, content_type = _content(body)
    status = 200 if fault.kind == "garbage" else fault.status
    return Response(status, content, {"content-type": content_type, **headers})


def _content(body: Any) -> tuple[bytes, str]:
    if isinstance(body, bytes):
        return body, "text/plain; charset=utf-8"
    if isinstance(body, str):
        return body.encode(), HTML_TYPE if body.startswith("<") else "text/plain; charset=utf-8"
    return json.dumps(body).encode(), JSON_TYPE
