"""Send small requests to the endpoint of an instance, with the inference API key.

The provisioning token and the headers of the client are never sent there: the endpoint is another server.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
from attrs import evolve, field, frozen

from .._config import Settings
from .._secrets import Redactor, Secret
from .._version import __version__
from .body import ACCEPT_ENCODING, BodyError, read_body
from .connections import Connections, HTTPClient, forget_locals, kind_of
from .messages import Failure, FailureKind, error_reason, status_phrase
from .reasons import connection_problem
from .retry import parse_retry_after

_CONNECT_TIMEOUT = 10.0
_TIMEOUTS = {"connect": _CONNECT_TIMEOUT, "read": None, "write": None, "pool": None}

# Maximum bytes of a response. The embedding of one word is a tenth of this.
_MAX_RESPONSE = 1 << 20

# Maximum bytes of a response whose error text is shown, and characters of that text.
_MAX_REASON = 64 << 10
_EXCERPT = 300


@frozen(kw_only=True)
class EndpointReply:
    """A response with any status.

    Attributes:
        reason: The error text in the body, without secrets, or an empty string.
        retry_after: Seconds the endpoint asked to wait.
    """

    status: int
    body: bytes = field(repr=False)
    reason: str = ""
    retry_after: float | None = None

    def __str__(self) -> str:
        phrase = f"{self.status} {status_phrase(self.status)}"
        return f"{phrase}: {self.reason.rstrip('.')}" if self.reason else phrase


class EndpointClient:
    """Sends requests to the endpoint of one instance, on its own connections or the caller's `http_client`.

    Raises:
        ConfigurationError: for certificates or proxies in the environment that cannot be used.
    """

    def __init__(
        self, settings: Settings, http_client: HTTPClient | None, base_url: str, key: Secret
    ) -> None:
        self._base_url = base_url.rstrip("/")
        # With the base URL of the endpoint, because the proxy and TLS depend on the host. With httpx, which
        # works on trio too.
        settings = evolve(settings, api_base_url=self._base_url, transport="httpx")
        self._connections = Connections(settings, http_client)
        self._key = key
        self._redactor = Redactor()
        self._redactor.remember(key)

    async def send(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> EndpointReply | Failure:
        """Send a request once. Failures are returned, because the frames of an exception hold the key."""
        try:
            with anyio.move_on_after(timeout):
                return await self._send(method, path, body)
        except anyio.get_cancelled_exc_class() as cancelled:
            cancelled.__traceback__ = None
            raise
        except BodyError as error:
            return Failure(kind=FailureKind.UNREADABLE, detail=f"a response with a body that {error}")
        except Exception as error:  # noqa: BLE001  (see above; a transport may raise its own)
            forget_locals(error)
            kind = kind_of(error) or FailureKind.NOT_SENT
            problem = connection_problem(error)
            if not problem and kind is FailureKind.LOST:
                problem = "connection lost"
            problem = problem or f"{type(error).__name__}: {error}"
            return Failure(kind=kind, detail=self.excerpt(problem))
        return Failure(kind=FailureKind.TIMED_OUT, detail=f"no response within {timeout:g} s")

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> EndpointReply:
        client = self._connections.checkout().client
        request = client.build_request(
            method,
            self._base_url + path,
            json=body,
            headers={
                "Accept": "application/json",
                "Accept-Encoding": ACCEPT_ENCODING,
                "Authorization": f"Bearer {self._key.reveal()}",
                "User-Agent": f"cortecs-async/{__version__}",
            },
            extensions={"timeout": _TIMEOUTS},
        )
        response = await client.send(request, auth=None, follow_redirects=False, stream=True)
        try:
            if response.is_stream_consumed:  # by an event hook of the caller's client
                content = response.content[:_MAX_RESPONSE]
            else:
                encoding = response.headers.get("content-encoding", "")
                content = await read_body(response.aiter_raw(), encoding, _MAX_RESPONSE)
        finally:
            await response.aclose()
        return EndpointReply(
            status=response.status_code,
            body=content,
            reason=self._reason(content, response.status_code),
            retry_after=parse_retry_after(response.headers, now=datetime.now(UTC)),
        )

    def _reason(self, body: bytes, status: int) -> str:
        if status < 400 or len(body) > _MAX_REASON:
            return ""
        # Redacted before decoding too, as in `Transport`.
        text = self._redactor.redact(body.decode("utf-8", "surrogateescape"))
        reason = error_reason(text.encode("utf-8", "surrogateescape"), status)
        return self.excerpt(reason)

    def excerpt(self, text: str) -> str:
        """Return the beginning of a text from the endpoint on one line, without secrets."""
        return self._redactor.one_line(text)[:_EXCERPT]

    async def aclose(self) -> None:
        """Close our own connections but not the caller's client."""
        await self._connections.aclose()
