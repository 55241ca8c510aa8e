"""The settings of a client: validated when created, and resolved from arguments, environment and defaults."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import attrs
from attrs import evolve, field, frozen

from ._errors import ConfigurationError
from ._secrets import CredentialProvider, Credentials, Secret

_OWN_HEADERS = frozenset({"authorization", "content-length", "content-type", "host", "transfer-encoding"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2

Mode = Literal["auto", "required", "off"]
TransportName = Literal["httpx", "aiohttp"]

MAX_CONNECTIONS = 100
DEFAULT_API_BASE_URL = "https://cortecs.ai/api/v1"


def _at_least(minimum: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigurationError(f"{type(instance).__name__}.{attribute.name} must be a number")
        if math.isnan(value) or value < minimum:
            raise ConfigurationError(
                f"{type(instance).__name__}.{attribute.name} must be at least {minimum}, not {value}"
            )

    return check


def _positive(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{attribute.name} must be a whole number of at least 1, not {value!r}")


def check_mode(name: str, mode: Any) -> None:
    """Check the value of `guard` or `journal`."""
    if mode not in get_args(Mode):
        raise ConfigurationError(f"{name} must be one of {', '.join(get_args(Mode))}, not {mode!r}")


def _known_transport(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in get_args(TransportName):
        choice = " or ".join(map(repr, get_args(TransportName)))
        raise ConfigurationError(f"{attribute.name} must be {choice}, not {value!r}")


def _is_bool(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):  # "false" must not count as true
        raise ConfigurationError(f"{attribute.name} must be True or False, not {value!r}")


@frozen(kw_only=True)
class RetryPolicy:
    """How often and how long requests are retried. Requests that are not safe to repeat are never retried.

    Attributes:
        max_retries: Retries after the first attempt. 0 turns retries off. 429 responses do not count; they
            are retried until `total_timeout`.
        initial_backoff: Upper limit of the first random wait, in seconds. It doubles with every attempt.
        max_backoff: Highest upper limit of a random wait, in seconds.
        max_retry_after: Longest Retry-After to wait for, in seconds. For a longer one, the error is raised.
        total_timeout: Seconds for one call with all its attempts and waits.
        adoption_window: Seconds for which a lease searches for the instance of a start that timed out. After
            any other loss of the response, it searches for a sixth of this.
    """

    max_retries: int = field(default=5, validator=_at_least(0))
    initial_backoff: float = field(default=0.5, validator=_at_least(0))
    max_backoff: float = field(default=8.0, validator=_at_least(0))
    max_retry_after: float = field(default=120.0, validator=_at_least(0))
    total_timeout: float = field(default=180.0, validator=_at_least(0))
    adoption_window: float = field(default=60.0, validator=_at_least(0))


@frozen(kw_only=True)
class PollPolicy:
    """Polling intervals. The service sends no events, so a client polls for changes.

    The pause between two polls is the time waited so far times `growth`, between `min_interval` and
    `max_interval`. So a change is seen at most max(`min_interval`, `growth` times the wait) late, and never
    later than `max_interval`, plus the time of the response.

    Attributes:
        min_interval: Shortest pause in seconds.
        max_interval: Longest pause in seconds. The vendor's client always waits 5 s.
        growth: Pause as a share of the time waited so far.
        settle: Seconds after a start in which polls that find the instance stopped are ignored. Polls that do
            not find the instance are ignored for six times as long.
        lost_interval: Seconds between two polls of a leased instance during the block.
        max_outage: Seconds of failed polls after which a wait raises the last error.
        stall_timeout: Seconds without any change after which a start fails; None: only its deadline counts.
    """

    min_interval: float = field(default=0.5, validator=_at_least(0.01))
    max_interval: float = field(default=5.0, validator=_at_least(0.01))
    growth: float = field(default=0.1, validator=_at_least(0))
    settle: float = field(default=10.0, validator=_at_least(0))
    lost_interval: float = field(default=10.0, validator=_at_least(0.01))
    max_outage: float = field(default=600.0, validator=_at_least(0))
    stall_timeout: float | None = field(default=None, validator=attrs.validators.optional(_at_least(0.01)))


@frozen(kw_only=True)
class Settings:
    """The resolved settings of a client."""

    api_base_url: str
    credential_provider: CredentialProvider = field(repr=False)
    timeout: float = field(validator=_at_least(0.001))
    retry: RetryPolicy
    poll: PollPolicy
    headers: Mapping[str, str] = field(repr=False)
    max_connections: int = field(default=MAX_CONNECTIONS, validator=_positive)
    transport: TransportName = field(default="httpx", validator=_known_transport)
    tag_starts: bool = field(default=False, validator=_is_bool)

    @property
    def is_loopback(self) -> bool:
        """Whether the API base URL points at this machine."""
        return is_loopback_host(urlsplit(self.api_base_url).hostname or "")


def resolve_settings(
    *,
    client_id: str | None,
    client_secret: Secret | None,
    credential_provider: CredentialProvider | None,
    api_base_url: str | None,
    timeout: float,
    max_retries: int | None,
    retry_policy: RetryPolicy | None,
    poll_policy: PollPolicy | None,
    default_headers: Mapping[str, str] | None,
    allow_insecure_http: bool,
    max_connections: int,
    transport: TransportName,
    tag_starts: bool,
    environ: Mapping[str, str],
) -> Settings:
    """Resolve the settings.

    Arguments take precedence over the environment, which takes precedence over defaults.
    """
    variables = {name: environ.get(f"CORTECS_{name}", "").strip() for name in ("CLIENT_ID", "API_BASE_URL")}
    secret_variable = Secret(environ.get("CORTECS_CLIENT_SECRET", "").strip())
    del environ  # a traceback that shows locals would show the secret, and all else in the environment
    if credential_provider is not None and (client_id or client_secret):
        raise ConfigurationError("pass either credential_provider or client_id and client_secret, not both")
    if credential_provider is None:
        credential_provider = _static_provider(
            client_id or variables["CLIENT_ID"],
            client_secret or secret_variable,
        )
    retry = retry_policy or RetryPolicy()
    if max_retries is not None:
        retry = evolve(retry, max_retries=max_retries)
    return Settings(
        api_base_url=check_api_base_url(
            api_base_url or variables["API_BASE_URL"] or DEFAULT_API_BASE_URL,
            allow_insecure_http=allow_insecure_http,
        ),
        credential_provider=credential_provider,
        timeout=timeout,
        retry=retry,
        poll=poll_policy or PollPolicy(),
        headers=_check_headers("default_headers", default_headers or {}),
        max_connections=max_connections,
        transport=transport,
        tag_starts=tag_starts,
    )


def override(
    settings: Settings,
    *,
    timeout: float | None,
    max_retries: int | None,
    retry_policy: RetryPolicy | None,
    headers: Mapping[str, str] | None,
) -> Settings:
    """Return the settings with these values replaced and these headers added."""
    retry = retry_policy or settings.retry
    if max_retries is not None:
        retry = evolve(retry, max_retries=max_retries)
    added = _check_headers("headers", headers or {})
    replaced = {name.lower() for name in added}
    kept = {name: value for name, value in settings.headers.items() if name.lower() not in replaced}
    return evolve(
        settings,
        timeout=settings.timeout if timeout is None else timeout,
        retry=retry,
        headers={**kept, **added},
    )


def _static_provider(client_id: str, client_secret: Secret) -> CredentialProvider:
    missing = [
        name for name, value in (("client_id", client_id), ("client_secret", client_secret)) if not value
    ]

    async def provide() -> Credentials:
        # Raised on first use, because the lists of models and hardware types need no credentials.
        if missing:
            raise ConfigurationError(
                f"missing {' and '.join(missing)}: pass client_id= and client_secret= to AsyncCortecs, "
                "or set CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET"
            )
        return Credentials(client_id=client_id, client_secret=client_secret)

    return provide


def check_api_base_url(url: str, *, allow_insecure_http: bool) -> str:
    """Return the URL without a trailing slash.

    Raises:
        ConfigurationError: if it is not an absolute http(s) URL, has credentials, a query or a fragment, or
            is plain http to another machine without `allow_insecure_http`.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port  # raises for an invalid port
    except ValueError:
        # The message shows neither the URL nor Python's error: both may hold a password.
        raise ConfigurationError("api_base_url is not a URL: check its host and port") from None
    if "@" in url:
        # Anywhere in it: the parser finds no user name in `user:password@host` without a scheme.
        raise ConfigurationError("api_base_url must not have a user name or password")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigurationError(f"api_base_url must be an absolute http(s) URL, not {url!r}")
    if parts.query or parts.fragment:
        raise ConfigurationError("api_base_url must not have a query or fragment")
    if parts.scheme == "http" and not is_loopback_host(host) and not allow_insecure_http:
        raise ConfigurationError(
            f"api_base_url {url!r} uses plain http, which sends credentials unencrypted. "
            "Use https, or pass allow_insecure_http=True."
        )
    return url.rstrip("/")


def is_loopback_host(host: str) -> bool:
    """Return whether the host is localhost, in 127.0.0.0/8, or ::1."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_headers(argument: str, headers: Mapping[Any, Any]) -> Mapping[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(f"{argument} must be a mapping from strings to strings")
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"{argument}: {name!r} is not a valid header name")
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"{argument} must not set {name}: the client sets it itself")
        if not (value.isascii() and value.replace("\t", " ").isprintable()):
            raise ConfigurationError(f"{argument}: the value of {name!r} must be printable ASCII on one line")
    return dict(headers)
