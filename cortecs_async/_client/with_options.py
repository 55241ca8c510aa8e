"""`client.with_options` and `client.request`: other options for single calls, and requests of any kind."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from attrs import evolve, field, frozen

from .._config import RetryPolicy, Settings, override
from .._errors import InvalidArgumentError

if TYPE_CHECKING:
    from .._api.instances import Instances
    from .._api.resources import HardwareTypes, Models, User
    from .._http.messages import Call, Reply
    from .wiring import Wiring

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

# No percent sign, no query and no segment of dots: further on they could be read as another path, and httpx
# itself sends `/instances/./start` as `/instances/start`.
_PATH = re.compile(r"(/(?!\.+(/|$))[A-Za-z0-9._~:-]+)+/?")


@frozen(kw_only=True)
class Response:
    """A success answer as the service gave it.

    Attributes:
        status: The HTTP status, 200 to 299.
        data: The JSON as it came, with what this client does not know; None for an empty body.
        request_id: Its `x-request-id`, for the vendor's support; None where the service sends none (whether
            it does is undocumented).
        attempts: How often the request was sent.
        headers: By name, in whatever case.
    """

    status: int
    data: Any = field(repr=False)
    request_id: str | None
    attempts: int
    headers: Mapping[str, str] = field(repr=False)


class Calls:
    """The endpoints of a client, called with other options than its own: `client.with_options(...)`.

    Costs nothing to make, and shares everything with its client, with which it is closed. Leases and waits
    (`watch`, `wait_until_running`) follow the client's own options.

    Attributes:
        instances: As `client.instances`.
        models: As `client.models`.
        hardware_types: As `client.hardware_types`.
        user: As `client.user`.
    """

    def __init__(self, wiring: Wiring, settings: Settings) -> None:
        self._wiring = wiring
        self._settings = settings
        self._last: Reply | None = None
        made = wiring.endpoints(self._send)
        self.instances: Instances = made.instances
        self.models: Models = made.models
        self.hardware_types: HardwareTypes = made.hardware_types
        self.user: User = made.user

    @property
    def last_response(self) -> Response | None:
        """The newest answer to a call made with this object; None before the first.

        Of tasks that share one it may be another's: make one in each. An error has its answer with it.
        """
        return None if self._last is None else _to_response(self._last)

    async def request(
        self,
        method: Method,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Response:
        """As `client.request`, with these options."""
        return _to_response(await self._send(_checked(method, path, json, params)))

    async def _send(self, call: Call) -> Reply:
        self._last = await self._wiring.http.request(evolve(call, settings=self._settings))
        return self._last


class CallMethods:
    """The methods of a client that are about single requests."""

    _wiring: Wiring
    _settings: Settings

    def with_options(
        self,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Calls:
        """The endpoints with other options: `await client.with_options(timeout=5).models.list()`.

        What is left out is as the client has it.

        Args:
            timeout: Seconds for one attempt.
            max_retries: Repetitions after the first attempt; 0 for none.
            retry_policy: How often and how long requests are repeated.
            headers: Sent besides the client's `default_headers`, and instead of those of the same name.

        Raises:
            ConfigurationError: for values that cannot be, at once.
        """
        settings = override(
            self._settings,
            timeout=timeout,
            max_retries=max_retries,
            retry_policy=retry_policy,
            headers=headers,
        )
        return Calls(self._wiring, settings)

    async def request(
        self,
        method: Method,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Response:
        """Sends a request that has no method here, with the client's token, retries and errors.

        A POST or PATCH is repeated only when it is certain that the service has not done it; the others as
        their HTTP method allows.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: Below the API base URL, with a slash in front: `/instances/`.
            json: The body.
            params: The query.

        Raises:
            InvalidArgumentError: for bad arguments, before any request; and for a start, which must be
                `instances.start`, so that no lease takes its instance for its own.
            RequestError: when the service refuses, or there is no answer that is JSON.
        """
        return _to_response(await self._wiring.http.request(_checked(method, path, json, params)))


def _to_response(reply: Reply) -> Response:
    return Response(
        status=reply.status,
        data=reply.data,
        request_id=reply.request_id,
        attempts=reply.attempts,
        headers=reply.headers,
    )


def _checked(method: Any, path: Any, body: Any, params: Mapping[Any, Any] | None) -> Call:
    from .._http.messages import Call  # noqa: PLC0415  (brings more along than a client that calls nothing needs)

    if method not in get_args(Method):
        raise InvalidArgumentError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise InvalidArgumentError(
            f"path must be below the API base URL, such as '/instances/', not {path!r} (a query is params=)"
        )
    if path.strip("/").casefold() == "instances/start":
        raise InvalidArgumentError("start an instance with client.instances.start or client.instance")
    if params is not None and not all(isinstance(each, str) for pair in params.items() for each in pair):
        raise InvalidArgumentError("params must be a mapping from strings to strings")
    if body is not None and not isinstance(body, Mapping):
        raise InvalidArgumentError(f"json must be a mapping, not {type(body).__name__}")
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        # Here, where no frame holds the token.
        raise InvalidArgumentError("json must be what JSON can say") from None
    return Call(method=method, path=path, json=body, params=params)
