"""Blanks secrets out of what the service sends back before it stands in an error."""

from __future__ import annotations

import html
import json
import urllib.parse
from collections import deque

from ._config import Secret


class Redactor:
    """Knows the secrets that a client has used lately."""

    def __init__(self) -> None:
        # Bounded, because tokens come and go; an answer cannot echo one that is long out of use.
        self._secrets: deque[Secret] = deque(maxlen=16)
        # Worked out once: every answer has a request id to look through.
        self._spelled: tuple[Secret, ...] = ()

    def remember(self, secret: Secret) -> None:
        """From now on, this must not show."""
        # The newest last, so that what is in use is what is kept.
        if secret in self._secrets:
            self._secrets.remove(secret)
        self._secrets.append(secret)
        spellings = {each for known in self._secrets for each in _spellings(known.reveal())}
        # The longest first: one secret may begin with another.
        self._spelled = tuple(Secret(each) for each in sorted(spellings, key=len, reverse=True))

    def redact(self, text: str) -> str:
        """The text with `***` for every secret in it, however it is spelled there."""
        for spelling in self._spelled:
            text = text.replace(spelling.reveal(), "***")
        return text


def _spellings(secret: str) -> set[str]:
    # As it is, and as JSON (PHP's too), URLs and HTML write it.
    quoted = json.dumps(secret)[1:-1]
    return {
        secret,
        quoted,
        quoted.replace("/", r"\/"),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        html.escape(secret),
    }
