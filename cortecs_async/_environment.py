"""The settings child processes inherit from this process: proxies, certificates, and the import path.

The client reads the proxy and certificate settings once, when it is created, and sends the result to its
reaper as plain data. So the reaper uses its parent's settings, regardless of its own working directory and
environment.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

from ._errors import ConfigurationError
from ._secrets import Secret

if TYPE_CHECKING:
    import ssl

# The variables that are read. The proxy variables are read in lower case too.
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")

_SCHEMES = ("http", "https", "socks5", "socks5h")

# Whitespace, control characters, and other characters not allowed in a URL (RFC 3986, appendix A).
_NOT_IN_URL = re.compile(r"""[\s\x00-\x1f\x7f-\x9f\\"<>^`{|}]""")

# The names that `openssl rehash` creates for certificates. OpenSSL does not find any others in a directory.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")

# A host name in NO_PROXY, possibly with a dot or wildcard (`.example.com`, `*.example.com`, `10.*`).
_HOST_NAME = r"[\w.*-]+"


class Proxy(NamedTuple):
    """A proxy.

    Attributes:
        variable: The environment variable it comes from.
        url: Its URL, which may contain a password.
    """

    variable: str
    url: Secret

    @property
    def scheme(self) -> str:
        """Scheme of the proxy's URL: http, https, socks5 or socks5h."""
        return self.url.reveal().partition("://")[0].lower()


class Environment(NamedTuple):
    """The proxy and certificate settings from the environment. Without arguments, it has no settings.

    Attributes:
        proxies: The proxies by the scheme of the request: `http`, `https`, or `all`.
        no_proxy: The parsed entries in NO_PROXY.
        cafile: Absolute path of SSL_CERT_FILE, or None if it is not set.
        capath: Absolute paths of SSL_CERT_DIR, separated by colons, or None if it is not set.
    """

    proxies: Mapping[str, Proxy] = MappingProxyType({})
    no_proxy: tuple[str, ...] = ()
    cafile: str | None = None
    capath: str | None = None

    @classmethod
    def read(cls) -> Self:
        """Read the environment.

        Entries in NO_PROXY that cannot be parsed and directories in SSL_CERT_DIR that do not exist are
        skipped with a warning.
        """
        from urllib.request import getproxies  # noqa: PLC0415  (slow to import)

        found = {scheme: value.strip() for scheme, value in getproxies().items()}
        proxies = {
            scheme: Proxy(_variable(scheme), Secret(value if "://" in value else f"http://{value}"))
            for scheme in ("http", "https", "all")
            if (value := found.get(scheme))
        }
        cafile = os.environ.get("SSL_CERT_FILE", "").strip()
        return cls(
            proxies=proxies,
            # Without a proxy, exceptions to it do not matter.
            no_proxy=tuple(_readable(re.split(r"[\s,]+", found.get("no", "")))) if proxies else (),
            cafile=_absolute(cafile) if cafile else None,
            capath=_existing(os.environ.get("SSL_CERT_DIR", "")),
        )

    def to_data(self) -> dict[str, Any]:
        """Return the settings as data for JSON, including the proxy URLs with their passwords."""
        proxies = {scheme: (each.variable, each.url.reveal()) for scheme, each in self.proxies.items()}
        return {
            "proxies": proxies,
            "no_proxy": self.no_proxy,
            "cafile": self.cafile,
            "capath": self.capath,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Create the settings from the result of `to_data`."""
        proxies = {scheme: Proxy(name, Secret(url)) for scheme, (name, url) in data["proxies"].items()}
        return cls(
            proxies=proxies,
            no_proxy=tuple(data["no_proxy"]),
            cafile=data["cafile"],
            capath=data["capath"],
        )

    def proxy_for(self, url: str) -> Proxy | None:
        """Return the proxy for requests to this URL, or None.

        Raises:
            ConfigurationError: if the proxy cannot be used. The message identifies the variable.
        """
        scheme = urlsplit(url).scheme
        proxy = self.proxies.get(scheme) or self.proxies.get("all")
        if proxy is None or any(_matches(entry, url) for entry in self.no_proxy):
            return None
        if problem := _proxy_problem(proxy):
            raise ConfigurationError(problem)
        return proxy

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a TLS context that trusts these certificates, or None if the environment does not set any.

        Raises:
            ConfigurationError: if the certificates cannot be loaded. The message identifies the variable.
        """
        import ssl  # noqa: PLC0415  (slow to import)

        if self.cafile is None and self.capath is None:
            return None
        if self.cafile is None and not any(map(_has_certificates, (self.capath or "").split(os.pathsep))):
            raise ConfigurationError(
                f"SSL_CERT_DIR is {self.capath!r}, but no certificates were found there. Unset it, or set it "
                "to a directory prepared by `openssl rehash`."
            )
        try:
            _check_regular(self.cafile)
            _rewind(self.cafile)
            return ssl.create_default_context(cafile=self.cafile, capath=self.capath)
        except (OSError, ValueError) as error:
            problem = "contains no certificate" if isinstance(error, ssl.SSLError) else _reason(error)
        raise ConfigurationError(
            f"SSL_CERT_FILE is {self.cafile!r}, which cannot be used: {problem}. Unset it, or set it to a "
            "file of certificates in PEM format."
        )


def _check_regular(path: str | None) -> None:
    # Reading a pipe might never end.
    if path is not None and not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (may be no path)
        raise ValueError("not a regular file")


def _rewind(path: str | None) -> None:
    """Make the next reader of /dev/fd/N begin at the first byte. On macOS, all readers share one position."""
    if path is not None and path.startswith("/dev/fd/"):
        os.lseek(int(path.removeprefix("/dev/fd/")), 0, os.SEEK_SET)


def _variable(scheme: str) -> str:
    """Return the spelling of `HTTPS_PROXY` used in the environment. Lower case takes precedence."""
    lower = f"{scheme}_proxy"
    return lower if lower in os.environ else lower.upper()


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)  # noqa: PTH100  (`Path.absolute` keeps `..`)
    except OSError:  # the working directory was removed
        return path


def _existing(folders: str) -> str | None:
    """Return the absolute paths of the existing directories in SSL_CERT_DIR; all of them if none exists."""
    paths = [_absolute(each.strip()) for each in folders.split(os.pathsep) if each.strip()]
    existing = list(filter(os.path.isdir, paths))
    for path in paths if existing else ():
        if path not in existing:
            _log_ignored("SSL_CERT_DIR", path)
    return os.pathsep.join(existing or paths) or None


def certificates_in(folder: str) -> Iterator[str]:
    """Return the paths of the files that OpenSSL finds in a directory of SSL_CERT_DIR."""
    return (str(path) for path in Path(folder).iterdir() if _HASHED_NAME.fullmatch(path.name))


def _has_certificates(folder: str) -> bool:
    try:
        return any(certificates_in(folder))
    except OSError:
        return False


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _proxy_problem(proxy: Proxy) -> str | None:
    """Return the reason a proxy cannot be used, without its URL, which may contain a password."""
    if proxy.scheme not in _SCHEMES:
        return (
            f"{proxy.variable} has the scheme {proxy.scheme!r}. A proxy URL must begin with http://, "
            "https://, socks5://, or socks5h://."
        )
    parts = split_url(proxy.url.reveal())
    if parts is None or not parts.hostname or parts.port == 0:
        return (
            f"{proxy.variable} is not a valid URL. Check its host and port, as in http://proxy.example:3128."
        )
    if proxy.scheme.startswith("socks") and not _has_socksio():
        return f"{proxy.variable} is set to a SOCKS proxy, which needs socksio: pip install 'httpx[socks]'"
    return None


def _has_socksio() -> bool:
    import importlib.util  # noqa: PLC0415  (slow, and few proxies are of this kind)

    return importlib.util.find_spec("socksio") is not None


def split_url(url: str) -> SplitResult | None:
    """Return the parts of a URL, or None if it is not a URL."""
    # Programs disagree about where a URL with such a character ends.
    if _NOT_IN_URL.search(url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port  # raise for an invalid host or port
    except ValueError:
        return None
    return parts


_Rule = tuple[str, IPv4Network | IPv6Network | str, int | None]


def _readable(entries: Iterable[str]) -> Iterable[str]:
    """Return the parsed entries in NO_PROXY."""
    for entry in filter(None, entries):
        try:
            _parse(entry)
        except ValueError:
            # What precedes an @ may be a password.
            _log_ignored("NO_PROXY", entry.rpartition("@")[2])
        else:
            yield entry


def _log_ignored(variable: str, entry: str) -> None:
    from ._logging import Event, log  # noqa: PLC0415  (slow to import)

    log(Event.HTTP_ENVIRONMENT_IGNORED, variable=variable, entry=entry)


def _parse(entry: str) -> _Rule:
    """Return the scheme, network or host name, and port of an entry in NO_PROXY.

    Raises:
        ValueError: if the entry does not have any of the common forms.
    """
    scheme, _, rest = entry.lower().rpartition("://")
    port: int | None = None
    host = rest.rstrip("/")
    if not _is_network(host):
        before, _, after = host.rpartition(":")
        if before and after.isdecimal():
            host, port = before, int(after)
    # `[::1]`, and `[fc00::]/7`
    address = host.replace("[", "").replace("]", "")
    if _is_network(address):
        return scheme, ip_network(address, strict=False), port
    if not re.fullmatch(_HOST_NAME, host):
        raise ValueError(entry)
    return scheme, host.strip(".") or host, port


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _matches(entry: str, url: str) -> bool:
    """Return whether an entry in NO_PROXY covers this URL.

    A host name covers its subdomains, with or without a dot in front, as in curl and in Python.
    """
    scheme, rule, port = _parse(entry)
    parts = urlsplit(url)
    if scheme not in {"", "all", parts.scheme}:
        return False
    if port is not None and port != (parts.port or {"http": 80, "https": 443}.get(parts.scheme)):
        return False
    host = (parts.hostname or "").rstrip(".")
    if isinstance(rule, str):
        return host == rule or host.endswith(f".{rule}") or fnmatch.fnmatchcase(host, rule)
    try:
        return ip_address(host) in rule
    except ValueError:
        return False


def import_path() -> list[str]:
    """Return `sys.path` for a process with a different working directory."""
    path: list[str] = []
    for entry in sys.path:
        # If the working directory was removed, nothing can be imported from it.
        with contextlib.suppress(OSError, TypeError):
            path.append(os.path.abspath(os.fsdecode(entry)))  # noqa: PTH100  (an entry may be no path)
    return path
