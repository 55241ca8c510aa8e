"""Settings: frozen, checked when made, and the one place where precedence is decided."""

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
    """Takes one of three words.

    Raises:
        ConfigurationError: for anything else.
    """
    if mode not in get_args(Mode):
        raise ConfigurationError(f"{name} must be one of {', '.join(get_args(Mode))}, not {mode!r}")


def _known_transport(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in get_args(TransportName):
        choice = " or ".join(map(repr, get_args(TransportName)))
        raise ConfigurationError(f"{attribute.name} must be {choice}, not {value!r}")


@frozen(kw_only=True)
class RetryPolicy:
    """How often and how long a request is repeated. Which may be repeated at all is not negotiable.

    Attributes:
        max_retries: Repetitions after the first attempt; 0 turns them off. An answer of 429, which asks to
            come again later, is not counted: that goes on until `total_timeout`.
        initial_backoff: Upper end of the first random wait, in seconds; doubles with every attempt.
        max_backoff: Upper end that the doubling stops at, in seconds.
        max_retry_after: A longer Retry-After, in seconds, is not waited for: the error is raised.
        total_timeout: Seconds for one call with all its attempts and waits.
        adoption_window: Seconds for which the instance of a lease's start that timed out is looked for before
            it counts as not started. Where the connection broke, or an error came back, the service is done
            with it, and a sixth of that is enough.
    """

    max_retries: int = field(default=5, validator=_at_least(0))
    initial_backoff: float = field(default=0.5, validator=_at_least(0))
    max_backoff: float = field(default=8.0, validator=_at_least(0))
    max_retry_after: float = field(default=120.0, validator=_at_least(0))
    total_timeout: float = field(default=180.0, validator=_at_least(0))
    adoption_window: float = field(default=60.0, validator=_at_least(0))


@frozen(kw_only=True)
class PollPolicy:
    """How fast the service is asked for changes: it has no push, so a status stream is polling.

    The pause between two looks is `growth` of the time waited so far, within the two limits. So a change
    is seen at most max(`min_interval`, `growth` of the wait) late, and never later than `max_interval`
    (plus the time of the answer).

    Attributes:
        min_interval: Shortest pause in seconds.
        max_interval: Longest pause in seconds. The vendor's own client always waits 5 s.
        growth: Share of the time waited so far.
        settle: For so many seconds after a start, a reading that says the new instance is stopped or
            missing is not believed yet.
        lost_interval: Seconds between two looks at a leased instance while the block runs.
        max_outage: Seconds of nothing but failures after which a wait gives up with the last of them.
        stall_timeout: Seconds without any change after which a start is given up; None: only its deadline.
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
    """Everything a client was told, resolved."""

    api_base_url: str
    credential_provider: CredentialProvider = field(repr=False)
    timeout: float = field(validator=_at_least(0.001))
    retry: RetryPolicy
    poll: PollPolicy
    headers: Mapping[str, str] = field(repr=False)
    max_connections: int = field(default=MAX_CONNECTIONS, validator=_positive)
    transport: TransportName = field(default="httpx", validator=_known_transport)

    @property
    def is_loopback(self) -> bool:
        """True when the API base URL points at this machine."""
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
    environ: Mapping[str, str],
) -> Settings:
    """Explicit argument, then environment, then default.

    Raises:
        ConfigurationError: for a base URL that is not one or not safe, contradictory credentials, or a
            header that would replace what the client sets itself.
    """
    variables = {name: environ.get(f"CORTECS_{name}", "").strip() for name in ("CLIENT_ID", "API_BASE_URL")}
    secret_variable = Secret(environ.get("CORTECS_CLIENT_SECRET", "").strip())
    del environ  # a traceback that shows locals would show the secret, and everything else in it
    if credential_provider is not None and (client_id or client_secret):
        raise ConfigurationError("give either credential_provider or client_id and client_secret, not both")
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
    )


def override(
    settings: Settings,
    *,
    timeout: float | None,
    max_retries: int | None,
    retry_policy: RetryPolicy | None,
    headers: Mapping[str, str] | None,
) -> Settings:
    """The settings with what is given instead of what was there, and with these headers besides.

    Raises:
        ConfigurationError: for what `resolve_settings` would not take either.
    """
    retry = retry_policy or settings.retry
    if max_retries is not None:
        retry = evolve(retry, max_retries=max_retries)
    more = _check_headers("headers", headers or {})
    replaced = {name.lower() for name in more}
    kept = {name: value for name, value in settings.headers.items() if name.lower() not in replaced}
    return evolve(
        settings,
        timeout=settings.timeout if timeout is None else timeout,
        retry=retry,
        headers={**kept, **more},
    )


def _static_provider(client_id: str, client_secret: Secret) -> CredentialProvider:
    missing = [
        name for name, value in (("client_id", client_id), ("client_secret", client_secret)) if not value
    ]

    async def provide() -> Credentials:
        # Raised on first use: the lists of models and hardware types need no credentials.
        if missing:
            raise ConfigurationError(
                f"no {' and no '.join(missing)}: pass client_id= and client_secret= to AsyncCortecs, "
                "or set CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET"
            )
        return Credentials(client_id=client_id, client_secret=client_secret)

    return provide


def check_api_base_url(url: str, *, allow_insecure_http: bool) -> str:
    """The URL without a trailing slash.

    Raises:
        ConfigurationError: when it is no absolute http(s) URL, carries credentials, a query or a fragment,
            or is plain http to another machine without `allow_insecure_http`.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port  # a bad port shows itself only here
    except ValueError:
        # Neither the URL nor what Python says of it: both may show a password.
        raise ConfigurationError("api_base_url is not a URL: check its host and port") from None
    if "@" in url:
        # Anywhere: `user:password@host`, without its scheme, has no user name as far as the parser sees.
        raise ConfigurationError("api_base_url must not carry a user name or password")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigurationError(f"api_base_url must be an absolute http(s) URL, not {url!r}")
    if parts.query or parts.fragment:
        raise ConfigurationError("api_base_url must have no query and no fragment")
    if parts.scheme == "http" and not is_loopback_host(host) and not allow_insecure_http:
        raise ConfigurationError(
            f"api_base_url {url!r} is plain http: the credentials would travel unencrypted. "
            "Use https, or pass allow_insecure_http=True if you must."
        )
    return url.rstrip("/")


def is_loopback_host(host: str) -> bool:
    """True for localhost, 127.0.0.0/8 and ::1."""
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
            raise ConfigurationError(f"{argument}: {name!r} is not the name of a header")
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"{argument} must not set {name}: the client sets it itself")
        if not (value.isascii() and value.replace("\t", " ").isprintable()):
            raise ConfigurationError(f"{argument}: the value of {name!r} must be printable ASCII on one line")
    return dict(headers)
