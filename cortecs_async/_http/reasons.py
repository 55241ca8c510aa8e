"""Describe briefly why a connection to the service could not be opened."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

_BY_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.ETIMEDOUT: "timed out while connecting",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "network unreachable",
}


def connection_problem(error: Exception) -> str:
    """Return the reason no connection was opened, from any HTTP library's error, or an empty string."""
    causes = list(causes_of(error))
    # Python's own errors. aiohttp's are subclasses without their attributes, which are caused by these.
    for cause in (each for each in causes if type(each).__module__ in {"ssl", "socket"}):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS certificate not trusted: {cause.verify_message}".rstrip(": ")
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or 'unknown reason').lower().replace('_', ' ')}"
        if isinstance(cause, socket.gaierror):
            return "host name not found"
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in _BY_ERRNO:
            return _BY_ERRNO[cause.errno]
    names = {type(cause).__name__: cause for cause in causes}
    for name in ("ProxyError", "ClientHttpProxyError"):
        if name in names:
            return f"the proxy rejected the connection: {names[name]}"
    return "timed out while connecting" if "ConnectTimeout" in names else ""


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and everything that led to it, each once."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
