"""Credentials, and how secrets are kept out of everything that is shown or logged."""

from __future__ import annotations

import json
import urllib.parse
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import field, frozen


class Secret:
    """A string that never shows itself: not in repr, str, logs, pickles or the locals of a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string itself. Call it only where a request is sent."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is not pickled")


def _to_secret(value: str | Secret) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


@frozen(kw_only=True)
class Credentials:
    """Client credentials of the provisioning API, from the account's page on cortecs.ai.

    Attributes:
        client_id: The id.
        client_secret: The secret; a plain string is converted to a `Secret`.
    """

    client_id: str
    client_secret: Secret = field(converter=_to_secret)


def credentials_problem(credentials: Any) -> str | None:
    """Return the problem with the result of a credential provider, without showing any of its values."""
    if not isinstance(credentials, Credentials):
        return f"credential_provider must return Credentials, not a {type(credentials).__name__}"
    values: dict[str, Any] = {
        "client_id": credentials.client_id,
        "client_secret": credentials.client_secret.reveal(),
    }
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            return f"{name} must be a non-empty string"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"{name} is not valid Unicode text: was it read from bytes that are not UTF-8?"
    return None


CredentialProvider = Callable[[], Awaitable[Credentials]]
"""An async function that returns credentials. It is called whenever a new access token is needed."""


class Redactor:
    """Removes the secrets that a client has used recently from text."""

    def __init__(self) -> None:
        # Limited, because tokens are replaced, and responses do not repeat a token that is no longer used.
        self._secrets: deque[Secret] = deque(maxlen=16)
        # Computed once, because the request id of every response is redacted.
        self._spellings: tuple[Secret, ...] = ()

    def remember(self, secret: Secret) -> None:
        # The newest last, so that secrets in use are kept.
        if secret in self._secrets:
            self._secrets.remove(secret)
        self._secrets.append(secret)
        spellings = {each for known in self._secrets for each in _spellings(known.reveal())}
        # The longest first, because one secret may begin with another.
        self._spellings = tuple(Secret(each) for each in sorted(spellings, key=len, reverse=True))

    def redact(self, text: str) -> str:
        """Return the text with `***` for every secret in it, in any of its spellings."""
        for spelling in self._spellings:
            text = text.replace(spelling.reveal(), "***")
        return text


def _spellings(secret: str) -> set[str]:
    import html  # noqa: PLC0415  (needed only once there are secrets)

    # Plain, and as in JSON (also as PHP writes it), URLs and HTML.
    quoted = json.dumps(secret)[1:-1]
    return {
        secret,
        quoted,
        quoted.replace("/", r"\/"),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        html.escape(secret),
    }
