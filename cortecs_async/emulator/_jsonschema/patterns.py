"""Strings for regular expressions: a reader that writes the shortest of what it reads.

What it writes is a proposal, and whoever asks looks whether it matches: assertions (``^``, ``(?=...)``) are
read as nothing, and what would follow from them is not.
"""

import re
import string
from collections.abc import Iterator, Sequence
from typing import Final, final

_DIGITS: Final = "1234567890"
_WORDS: Final = string.ascii_lowercase + _DIGITS + "_"
_CLASSES: Final = {"d": _DIGITS, "w": _WORDS, "s": " ", "D": "abc-", "W": "- .", "S": _WORDS}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
# What a class of all but some is taken from.
_ORDINARY: Final = _WORDS + string.ascii_uppercase + " -.,:;/!?#+*=@&%$()[]{}<>|~^\"'`\\"
_QUANTIFIER: Final = re.compile(r"([*+?]|\{(\d+)(,?)(\d*)\})[?+]?")
_BOUNDS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_LONGEST: Final = 10_000
_TRIES: Final = 64


class Unreadable(ValueError):  # noqa: N818 - it is a finding, not an error of the emulator
    """The expression has something that is not followed, such as a reference back."""


def matching(pattern: str, number: int) -> Iterator[str]:
    """Proposals, shorter ones first.

    Args:
        pattern: A regular expression that compiles.
        number: Which of the possible characters and alternatives are taken.

    Raises:
        Unreadable: When there are none.
    """
    for extra in range(_TRIES):
        yield _Reader(pattern, number, extra).read()


@final
class _Reader:
    def __init__(self, pattern: str, number: int, extra: int) -> None:
        self._pattern = pattern
        self._number = number
        # How many times more than the least everything is repeated that may be.
        self._extra = extra
        self._at = 0

    def read(self) -> str:
        return self._alternatives()

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _next(self) -> str:
        self._at += 1
        return self._pattern[self._at - 1]

    def _alternatives(self) -> str:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return branches[self._number % len(branches)]

    def _sequence(self) -> str:
        written = ""
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            options = self._atom()
            count = self._count()
            if count * max(map(len, options), default=0) > _LONGEST:
                raise Unreadable(self._pattern)
            if count and not options:
                raise Unreadable(self._pattern)
            written += "".join(options[(self._number + place) % len(options)] for place in range(count))
        return written

    def _count(self) -> int:
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None:
            return 1
        self._at = found.end()
        mark, least, comma, most = found.groups()
        if mark in _BOUNDS:
            low, high = _BOUNDS[mark]
        else:
            low, high = int(least), int(most or least) if most or not comma else None
        return low + self._extra if high is None else min(low + self._extra, high)

    def _atom(self) -> Sequence[str]:
        """What may stand here: characters, or the one text of a group."""
        if self._take("("):
            return [self._group()]
        if self._take("["):
            return self._set()
        if self._take("\\"):
            return self._escape()
        if self._take("^") or self._take("$"):
            return [""]
        return _WORDS if self._take(".") else [self._next()]

    def _group(self) -> str:
        silent = any(self._take(mark) for mark in ("?=", "?!", "?<=", "?<!"))
        if not silent and not self._take("?:") and self._take("?"):
            if not self._take("P<"):
                raise Unreadable(self._pattern)
            self._at = self._pattern.index(">", self._at) + 1
        written = self._alternatives()
        self._take(")")
        return "" if silent else written

    def _escape(self) -> Sequence[str]:
        letter = self._next()
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in "bBAZ":
            return [""]
        if letter in "xu":
            size = {"x": 2, "u": 4}[letter]
            self._at += size
            return [chr(int(self._pattern[self._at - size : self._at], 16))]
        if letter in _CONTROLS:
            return [_CONTROLS[letter]]
        if letter.isalnum():
            raise Unreadable(self._pattern)
        return [letter]

    def _set(self) -> Sequence[str]:
        others = self._take("^")
        members: list[str] = []
        first = True
        while first or not self._take("]"):
            first = False
            options = self._escape() if self._take("\\") else [self._next()]
            if len(options) == 1 and self._pattern[self._at] == "-" and self._pattern[self._at + 1] != "]":
                self._at += 1
                last = self._escape()[0] if self._take("\\") else self._next()
                options = [chr(code) for code in range(ord(options[0]), ord(last) + 1)]
            members += options
        ordinary = [each for each in _ORDINARY if (each in members) != others]
        return ordinary if ordinary or others else members
