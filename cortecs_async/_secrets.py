"""Credentials, and the classes that keep secrets out of everything shown or logged."""

from __future__ import annotations

import json
import os
import urllib.parse
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from attrs import field, frozen

T = TypeVar("T")


class Hidden(Generic[T]):
    """A value that is never shown: not in `repr`, `str`, logs, pickles, or traceback locals."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return f"{type(self).__name__}('***')"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"A {type(self).__name__} cannot be pickled")


class Secret(Hidden[str]):
    """A string that is never shown: not in `repr`, `str`, logs, pickles, or traceback locals.

    Example:
        secret = Secret("my-client-secret")
        print(secret)  # Secret('***')
    """

    __slots__ = ()

    def reveal(self) -> str:
        """Return the string itself. Call this only where you send the secret.

        Example:
            secret = Secret("my-client-secret")
            assert secret.reveal() == "my-client-secret"
        """
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def _stripped(value: str) -> str:
    # A value of the wrong type is reported when it is used.
    return value.strip() if hasattr(value, "strip") else value


def to_secret(value: str | Secret) -> Secret:
    """Convert a value to a secret and strip surrounding whitespace."""
    return Secret(_stripped(value.reveal() if isinstance(value, Secret) else value))


@frozen(kw_only=True)
class Credentials:
    """Client credentials for the provisioning API, from your account page on cortecs.ai.

    Surrounding whitespace is stripped, because a secret read from a file often ends with a line break.

    Attributes:
        client_id: The client id.
        client_secret: The client secret. A plain string is converted to a `Secret`.

    Example:
        import os

        async def read_credentials() -> Credentials:
            return Credentials(
                client_id=os.environ["CORTECS_CLIENT_ID"],
                client_secret=os.environ["CORTECS_CLIENT_SECRET"],
            )

        async with AsyncCortecs(credential_provider=read_credentials) as client:
            print(await client.user.balance())
    """

    client_id: str = field(converter=_stripped)
    client_secret: Secret = field(converter=to_secret)


def credentials_problem(credentials: Any, *, may_be_missing: bool = False) -> str | None:
    """Return the problem with the result of a credential provider, without showing any of its values."""
    if not isinstance(credentials, Credentials):
        return f"credential_provider must return Credentials, not a {type(credentials).__name__}"
    values: dict[str, Any] = {
        "client_id": credentials.client_id,
        "client_secret": credentials.client_secret.reveal(),
    }
    for name, value in values.items():
        if not isinstance(value, str) or not (value or may_be_missing):
            return f"{name} must be a non-empty string"
        if has_line_break(value):
            return f"{name} contains a line break"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"{name} is not valid Unicode text: was it read from bytes that are not UTF-8?"
    return None


def has_line_break(text: str) -> bool:
    """Return whether the text contains a line break."""
    return "\n" in text or "\r" in text


CredentialProvider = Callable[[], Awaitable[Credentials]]
"""An async function that returns credentials. It is called whenever a new access token is needed."""


class Redactor:
    """Removes the secrets a client used recently from text."""

    def __init__(self) -> None:
        # Limited, because tokens expire, and responses do not repeat a token that is no longer in use.
        self._secrets: deque[Secret] = deque(maxlen=16)
        # Computed once, because the request id of every response is redacted.
        self._spellings: tuple[Secret, ...] = ()

    def remember(self, secret: Secret) -> None:
        # The newest last, so that secrets in use are kept.
        if secret in self._secrets:
            self._secrets.remove(secret)
        self._secrets.append(secret)
        spellings = {each for known in self._secrets for each in _spellings(known.reveal())}
        # The longest first, because one secret can be the beginning of another.
        self._spellings = tuple(Secret(each) for each in sorted(spellings, key=len, reverse=True))

    @property
    def longest(self) -> int:
        """The length of the longest text that `redact` removes."""
        return len(self._spellings[0].reveal()) if self._spellings else 0

    def redact(self, text: str) -> str:
        """Return the text with every secret, in any of its spellings, replaced by `***`."""
        for spelling in self._spellings:
            text = text.replace(spelling.reveal(), "***")
        return text

    def one_line(self, text: str) -> str:
        """Return the text on one line, without secrets, control characters, or characters that reorder it."""
        if not text.isprintable():
            text = "".join(each for each in text if each.isprintable() or each.isspace())
        # Redacted before joining as well, because a secret can contain whitespace.
        text = self.redact(text)
        joined = " ".join(text.split())
        return text if joined == text else self.redact(joined)


INFERENCE_KEY_VARIABLES = ("CORTECS_API_KEY", "OPENAI_API_KEY")

# Shorter values are not treated as keys: redacting every "x" would make the text unreadable.
_SHORTEST_KEY = 8

# The inference API keys this process has used, for any instance.
_inference_keys = Redactor()


def remember_inference_key(key: Secret) -> None:
    """Make `redact_inference_keys` remove this key."""
    if len(key.reveal()) >= _SHORTEST_KEY:
        _inference_keys.remember(key)


def redact_inference_keys(text: str) -> str:
    """Return the text without the inference API keys from the environment and the ones that were passed."""
    for name in INFERENCE_KEY_VARIABLES:
        remember_inference_key(Secret(os.environ.get(name, "").strip()))
    return _inference_keys.redact(text)


# The ampersand first, because the others contain one.
_HTML_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}


def _spellings(secret: str) -> set[str]:
    # Plain, and as written in JSON (including PHP's variant), URLs, and HTML.
    quoted = json.dumps(secret)[1:-1]
    return {
        secret,
        quoted,
        quoted.replace("/", r"\/"),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        _in_html(secret),
    }


def _in_html(text: str) -> str:
    """Return what `html.escape` returns. That module is slow to import."""
    for character, escaped in _HTML_ESCAPES.items():
        text = text.replace(character, escaped)
    return text
