"""`Calls` and `Response`: a client's endpoints with different options, and the result of `client.request`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from attrs import field, frozen

from .._config import Settings
from .._errors import InvalidArgumentError
from .._hints import hinted
from .._http.messages import Call, Reply
from .._public import publish_loaded

if TYPE_CHECKING:
    from .._api.instances import Instances
    from .._api.resources import HardwareTypes, Models, User
    from .wiring import Wiring

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

# No percent sign, no query, and no segment of dots: a server could interpret them as a different path, and
# httpx itself sends `/instances/./start` as `/instances/start`.
_PATH = re.compile(r"(/(?!\.+(/|$))[A-Za-z0-9._~:-]+)+/?")


@frozen(kw_only=True)
class Response:
    """A successful response, as sent by the service.

    Attributes:
        status: The HTTP status, 200 to 299.
        data: The decoded JSON, including fields that this client does not know. The value is None for an
            empty body.
        request_id: The `x-request-id` header, for the vendor's support, or None if there is none (it is
            undocumented whether the service sends one).
        attempts: How many times the request was sent.
        headers: The headers by name. Upper and lower case do not matter.

    Example:
        response = await client.request("GET", "/user/balance")
        print(response.status, response.data, response.attempts)
    """

    status: int
    data: Any = field(repr=False)
    request_id: str | None
    attempts: int
    headers: Mapping[str, str] = field(repr=False)


@hinted
class Calls:
    """A client's endpoints with different options: `client.with_options(...)`.

    It shares its client's connections, so it is cheap to create, and you close only the client. Leases and
    waits (`watch`, `wait_until_running`) use the client's own options.

    Attributes:
        instances: Like `client.instances`.
        models: Like `client.models`.
        hardware_types: Like `client.hardware_types`.
        user: Like `client.user`.

    Example:
        quick = client.with_options(timeout=5, max_retries=0)
        models = await quick.models.list()
        print(quick.last_response.request_id)
    """

    def __init__(self, wiring: Wiring, settings: Settings) -> None:
        self._wiring = wiring
        self._settings = settings
        self._last: Reply | None = None
        self._endpoints = wiring.endpoints(self._send)
        self.models: Models = self._endpoints.models
        self.hardware_types: HardwareTypes = self._endpoints.hardware_types
        self.user: User = self._endpoints.user

    @cached_property
    def instances(self) -> Instances:
        return self._endpoints.instances

    @property
    def last_response(self) -> Response | None:
        """The response to the last successful call made with this object, or None before the first one.

        If several tasks share this object, it can be the response to another task's call. Errors have
        attributes of their own.
        """
        return None if self._last is None else to_response(self._last)

    async def request(
        self,
        method: Method,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Response:
        """Send any request, as `client.request` does, with these options.

        Example:
            response = await client.with_options(timeout=5).request("GET", "/user/balance")
            print(response.data)
        """
        return to_response(await self._send(checked_call(method, path, json, params)))

    async def _send(self, call: Call) -> Reply:
        call = copy(call)
        call.settings = self._settings
        self._last = await self._wiring.http.request(call)
        return self._last


def to_response(reply: Reply) -> Response:
    return Response(
        status=reply.status,
        data=reply.data,
        request_id=reply.request_id,
        attempts=reply.attempts,
        headers=reply.headers,
    )


def checked_call(method: Any, path: Any, body: Any, params: Mapping[Any, Any] | None) -> Call:
    if method not in get_args(Method):
        raise InvalidArgumentError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise InvalidArgumentError(
            f"path must be below the API base URL, such as '/instances/', not {path!r} "
            "(pass a query as params=)"
        )
    if path.strip("/").casefold() == "instances/start":
        raise InvalidArgumentError(
            "request() cannot start an instance. Use client.instances.start or client.instance."
        )
    if params is not None and not (
        isinstance(params, Mapping) and all(isinstance(each, str) for pair in params.items() for each in pair)
    ):
        raise InvalidArgumentError("params must be a mapping from strings to strings")
    if body is not None and not isinstance(body, Mapping):
        raise InvalidArgumentError(f"json must be a mapping, not {type(body).__name__}")
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        # Checked here, where no traceback frame holds the token.
        raise InvalidArgumentError("json must be encodable as JSON in UTF-8") from None
    return Call(method=method, path=path, json=body, params=params)


publish_loaded()
