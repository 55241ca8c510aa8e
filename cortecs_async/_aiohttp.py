"""What is particular about httpx-aiohttp: how it is had, and what its errors really say.

httpx-aiohttp (0.2) calls every connection that broke a ConnectTimeout, as if nothing had been sent. A `start`
that was sent must not be taken for one that was not, or it would be sent again.
"""

from __future__ import annotations

import sys
from traceback import walk_tb
from typing import Any

from ._errors import ConfigurationError


def client_class() -> Any:
    """A subclass of `httpx.AsyncClient`.

    Raises:
        ConfigurationError: when it is not installed.
    """
    try:
        from httpx_aiohttp import HttpxAiohttpClient  # noqa: PLC0415  (optional, and slow to import)
    except ImportError:
        raise ConfigurationError(
            "transport='aiohttp' needs two packages more: pip install 'cortecs-async[aiohttp]'"
        ) from None
    return HttpxAiohttpClient


def is_of_aiohttp(error: BaseException | None) -> bool:
    """Whether this is an error of aiohttp's own, which httpx-aiohttp does not always translate."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error, aiohttp.ClientError)


def was_not_sent(error: Exception) -> bool:
    """Whether it is true of an error of connecting that nothing was sent."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    if not any(str(frame.f_globals.get("__name__")).startswith("httpx_aiohttp") for frame in frames):
        return True
    aiohttp = sys.modules["aiohttp"]
    never = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    return isinstance(error.__cause__, never)


def found_none_free(error: Exception) -> bool:
    """Whether there was no connection in the time allowed for that; aiohttp counts the connecting in."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error.__cause__, aiohttp.ConnectionTimeoutError)
