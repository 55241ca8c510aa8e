"""A client's settings: resolved from arguments, environment, profile, and defaults, and validated."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from ._credentials import Sources, resolve_sources
from ._durations import Duration, as_seconds
from ._environment import Environment, Proxy, split_url
from ._errors import ConfigurationError
from ._fields import at_least, whole
from ._hints import hinted
from ._secrets import (
    CredentialProvider,
    Hidden,
    Secret,
    has_line_break,
)

if TYPE_CHECKING:
    from attrs import Attribute

    from ._poll_policy import PollPolicy

_OWN_HEADERS = frozenset({"authorization", "content-length", "content-type", "host", "transfer-encoding"})
_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2

ProtectionMode = Literal["auto", "required", "off"]
TransportName = Literal["httpx", "aiohttp"]


class URLObject(Protocol):
    """A URL object from httpx, yarl, pydantic, or `urllib.parse`."""

    @property
    def scheme(self) -> str: ...


DEFAULT_API_BASE_URL = "https://cortecs.ai/api/v1"


def check_mode(name: str, mode: Any) -> None:
    """Check the value of `guard` or `journal`."""
    if mode not in get_args(ProtectionMode):
        raise ConfigurationError(f"{name} must be one of {', '.join(get_args(ProtectionMode))}, not {mode!r}")


def _known_transport(_: object, attribute: Attribute[Any], value: Any) -> None:
    if value not in get_args(TransportName):
        choice = " or ".join(map(repr, get_args(TransportName)))
        raise ConfigurationError(f"{attribute.name} must be {choice}, not {value!r}")


def _is_bool(_: object, attribute: Attribute[Any], value: Any) -> None:
    _check_bool(attribute.name, value)


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):  # "false" must not count as true
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")


def _check_policy(name: str, value: Any, policy: type) -> None:
    if value is not None and not isinstance(value, policy):
        raise ConfigurationError(f"{name} must be a {policy.__name__}, not {type(value).__name__}")


@hinted
@frozen(kw_only=True)
class RetryPolicy:
    """The rules for retrying failed requests. Requests that are not safe to repeat are never retried.

    Specify each time as seconds, a `timedelta`, or a string such as "1h30m". The attributes are seconds.

    Attributes:
        max_retries: Retries after the first attempt. Pass 0 to disable retries. 429 responses do not count:
            they are retried until `total_timeout`.
        initial_backoff: Upper limit of the first random wait, in seconds. It doubles with every attempt.
        max_backoff: Maximum of that upper limit, in seconds.
        max_retry_after: Maximum `Retry-After` to wait for, in seconds. If the service asks for more, the
            error is raised.
        total_timeout: Maximum seconds for one call, including all attempts and waits.
        adoption_window: Seconds for which a lease searches for the instance of a start request that timed
            out. If the response was lost for any other reason, it searches for a sixth of this time.

    Example:
        policy = RetryPolicy(max_retries=2, total_timeout="1m")
        async with AsyncCortecs(retry_policy=policy) as client:
            print(await client.models.list())
    """

    max_retries: int = field(default=5, validator=whole(0))
    initial_backoff: float = field(default=0.5, converter=as_seconds, validator=at_least(0))
    max_backoff: float = field(default=8.0, converter=as_seconds, validator=at_least(0))
    max_retry_after: float = field(default=120.0, converter=as_seconds, validator=at_least(0))
    total_timeout: float = field(default=180.0, converter=as_seconds, validator=at_least(0))
    adoption_window: float = field(default=60.0, converter=as_seconds, validator=at_least(0))


@frozen(kw_only=True, eq=False)
class Settings:
    """The resolved settings of a client.

    Attributes:
        poll_policy: The caller's polling intervals, or None for the default ones.
    """

    api_base_url: str
    credential_provider: CredentialProvider = field(repr=False)
    timeout: float = field(converter=as_seconds, validator=at_least(0.001))
    retry: RetryPolicy
    headers: Mapping[str, str] = field(repr=False)
    poll_policy: PollPolicy | None = None
    max_connections: int = field(default=100, validator=whole(1))
    transport: TransportName = field(default="httpx", validator=_known_transport)
    tag_starts: bool = field(default=False, validator=_is_bool)
    environment: Environment = field(factory=Environment, repr=False)
    sources: Sources = field(factory=Sources, repr=False)

    @property
    def poll(self) -> PollPolicy:
        """The caller's polling intervals, or the default ones."""
        return self.poll_policy or _default_poll_policy()

    @property
    def proxy(self) -> Proxy | None:
        """The proxy for the API base URL.

        The result is None for a loopback URL, because a proxy would send the request and its secrets off this
        machine.

        Raises:
            ConfigurationError: if the proxy cannot be used. The message identifies the variable.
        """
        return None if self.is_loopback else self.environment.proxy_for(self.api_base_url)

    @property
    def uses_tls(self) -> bool:
        """Whether the service or the proxy to it is reached over TLS."""
        proxy = self.proxy
        return self.api_base_url.lower().startswith("https") or (
            proxy is not None and proxy.scheme == "https"
        )

    @property
    def is_loopback(self) -> bool:
        """Whether the API base URL points at this machine."""
        return is_loopback_host(urlsplit(self.api_base_url).hostname or "")


@cache
def _default_poll_policy() -> PollPolicy:
    from ._poll_policy import PollPolicy  # noqa: PLC0415  (slow to import, and needed only for instances)

    return PollPolicy()


def resolve_settings(
    *,
    client_id: str | None,
    client_secret: Secret | None,
    credential_provider: CredentialProvider | None,
    profile: str | None,
    anonymous: bool,
    api_base_url: Hidden[Any],
    timeout: Duration,
    max_retries: int | None,
    retry_policy: RetryPolicy | None,
    poll_policy: PollPolicy | None,
    default_headers: Hidden[Any],
    allow_insecure_http: bool,
    max_connections: int,
    transport: TransportName,
    tag_starts: bool,
) -> Settings:
    """Resolve a client's settings.

    Arguments take precedence over the environment, which takes precedence over the profile and the defaults.
    """
    _check_bool("anonymous", anonymous)
    sources, credential_provider = resolve_sources(
        client_id=client_id,
        client_secret=client_secret,
        provider=credential_provider,
        profile=profile,
        anonymous=anonymous,
    )
    is_given = api_base_url.reveal() is not None and api_base_url.reveal() != ""
    found_url = Hidden(sources.api_base_url() or DEFAULT_API_BASE_URL)
    _check_policy("retry_policy", retry_policy, RetryPolicy)
    if poll_policy is not None:
        from ._poll_policy import PollPolicy  # noqa: PLC0415  (needed only if one is given)

        _check_policy("poll_policy", poll_policy, PollPolicy)
    _check_bool("allow_insecure_http", allow_insecure_http)
    retry = retry_policy or RetryPolicy()
    if max_retries is not None:
        retry = evolve(retry, max_retries=max_retries)
    settings = Settings(
        api_base_url=check_api_base_url(
            api_base_url if is_given else found_url,
            allow_insecure_http=allow_insecure_http,
            name="api_base_url" if is_given else sources.url_name,
        ),
        credential_provider=credential_provider,
        timeout=timeout,
        retry=retry,
        poll_policy=poll_policy,
        headers={},
        max_connections=max_connections,
        transport=transport,
        tag_starts=tag_starts,
        environment=Environment.read(),
        sources=sources,
    )
    # Last, because the frame of a constructor that raises would show the headers.
    return evolve(settings, headers=_check_headers("default_headers", default_headers))


def override(
    settings: Settings,
    *,
    timeout: Duration | None,
    max_retries: int | None,
    retry_policy: RetryPolicy | None,
    headers: Hidden[Any],
) -> Settings:
    """Return a copy of the settings with these values replaced and these headers added."""
    _check_policy("retry_policy", retry_policy, RetryPolicy)
    retry = retry_policy or settings.retry
    if max_retries is not None:
        retry = evolve(retry, max_retries=max_retries)
    settings = evolve(settings, timeout=settings.timeout if timeout is None else timeout, retry=retry)
    added = _check_headers("headers", headers)
    replaced = {name.lower() for name in added}
    kept = {name: value for name, value in settings.headers.items() if name.lower() not in replaced}
    return evolve(settings, headers={**kept, **added})


def check_api_base_url(url: Any, *, allow_insecure_http: bool, name: str = "api_base_url") -> str:
    """Return the URL without a trailing slash.

    Args:
        url: The URL, as a string or a URL object, possibly `Hidden`.
        allow_insecure_http: Accept plain http to another machine.
        name: The name to use in errors.

    Raises:
        ConfigurationError: if it is not an absolute http(s) URL, has credentials, a query, or a fragment, or
            is plain http to another machine without `allow_insecure_http`.
    """
    hidden = Hidden(_url_text(url.reveal() if isinstance(url, Hidden) else url))
    kind = type(url.reveal() if isinstance(url, Hidden) else url).__name__
    del url  # a traceback that shows locals would show a password in it
    text = hidden.reveal()
    if text is None:
        raise ConfigurationError(f"api_base_url must be a string or a URL object, not {kind}")
    if has_line_break(text):
        problem: str | None = "api_base_url contains a line break"
    else:
        problem = _url_problem(text, allow_insecure_http=allow_insecure_http)
    if problem:
        del text
        raise ConfigurationError(problem.replace("api_base_url", name, 1))
    return text.rstrip("/")


def _url_text(url: Any) -> str | None:
    """Return the text of a string or a URL object (from httpx, yarl, pydantic, urllib, ...), or None."""
    if isinstance(url, str):
        return url.strip()
    if callable(getattr(url, "geturl", None)):
        return str(url.geturl())
    is_url = hasattr(url, "scheme") and (hasattr(url, "host") or hasattr(url, "hostname"))
    return str(url) if is_url else None


def _url_problem(url: str, *, allow_insecure_http: bool) -> str | None:
    """Return what is wrong with a base URL, without the parts that could contain a password."""
    parts = split_url(url)
    if parts is None:
        return "api_base_url is not a URL. Check its host and port, and that it contains no spaces."
    if "@" in url:
        # Anywhere in the URL: without a scheme, the parser does not find the user name in
        # `user:password@host`.
        return "api_base_url cannot contain a user name or password"
    if "?" in url or "#" in url:
        return "api_base_url cannot contain a query or fragment"
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return f"api_base_url must be an absolute http(s) URL, such as {DEFAULT_API_BASE_URL}, not {url!r}"
    if parts.scheme == "http" and not is_loopback_host(parts.hostname) and not allow_insecure_http:
        return (
            f"api_base_url {url!r} uses plain http, which sends credentials unencrypted. "
            "Use https, or pass allow_insecure_http=True."
        )
    return None


def is_loopback_host(host: str) -> bool:
    """Return whether the host is localhost, in 127.0.0.0/8, or ::1."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_headers(argument: str, headers: Hidden[Any]) -> Mapping[str, str]:
    """Return the headers with stripped values. The values may be secrets and are never shown."""
    if headers.reveal() is None:
        return {}
    if problem := _headers_problem(headers.reveal()):
        raise ConfigurationError(f"{argument}{problem}")
    return {name: value.strip() for name, value in headers.reveal().items()}


def _headers_problem(headers: Any) -> str | None:
    if not isinstance(headers, Mapping):
        return " must be a mapping from strings to strings"
    problems = (_header_problem(name, value) for name, value in headers.items())
    return next(filter(None, problems), None)


def _header_problem(name: Any, value: Any) -> str | None:
    if not isinstance(name, str) or not isinstance(value, str):
        return " must be a mapping from strings to strings"
    if not re.fullmatch(_HEADER_NAME, name):
        return f": {name!r} is not a valid header name"
    if name.lower() in _OWN_HEADERS:
        return f" cannot set {name}, because the client sets it"
    value = value.strip()
    if has_line_break(value):
        return f": the value of {name!r} contains a line break"
    if not (value.isascii() and value.replace("\t", " ").isprintable()):
        return f": the value of {name!r} must be printable ASCII"
    return None
