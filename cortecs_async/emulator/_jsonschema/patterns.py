"""Write short strings for regular expressions.

The strings are candidates: the caller must check that they match. Assertions (`^`, `(?=...)`) are ignored.
"""

import re
import string
from collections.abc import Iterator, Sequence
from typing import Final, final

_DIGITS: Final = "1234567890"
_WORDS: Final = string.ascii_lowercase + _DIGITS + "_"
_CLASSES: Final = {"d": _DIGITS, "w": _WORDS, "s": " ", "D": "abc-", "W": "- .", "S": _WORDS}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
# The characters for a negated set.
_PRINTABLE: Final = _WORDS + string.ascii_uppercase + " -.,:;/!?#+*=@&%$()[]{}<>|~^\"'`\\"
_QUANTIFIER: Final = re.compile(r"([*+?]|\{(\d+)(,?)(\d*)\})[?+]?")
_BOUNDS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_MAX_LENGTH: Final = 10_000
_MAX_EXTRA: Final = 64


class UnsupportedPatternError(ValueError):
    """The expression uses an unsupported feature, such as a backreference."""


def candidates(pattern: str, index: int) -> Iterator[str]:
    """Yield strings that may match, shortest first.

    The pattern must compile. The index selects among the possible characters and alternatives.
    """
    for extra in range(_MAX_EXTRA):
        yield _Generator(pattern, index, extra).alternatives()


@final
class _Generator:
    """Parses an expression and returns a string for each of its parts."""

    def __init__(self, pattern: str, index: int, extra: int) -> None:
        self._pattern = pattern
        self._index = index
        # The number of repetitions beyond the minimum for each quantifier, up to its maximum.
        self._extra = extra
        self._position = 0

    def alternatives(self) -> str:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return branches[self._index % len(branches)]

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._position)
        self._position += len(text) if found else 0
        return found

    def _next(self) -> str:
        self._position += 1
        return self._pattern[self._position - 1]

    def _sequence(self) -> str:
        written = ""
        while self._position < len(self._pattern) and self._pattern[self._position] not in "|)":
            options = self._atom()
            count = self._count()
            if (count and not options) or count * max(map(len, options), default=0) > _MAX_LENGTH:
                raise UnsupportedPatternError(self._pattern)
            written += "".join(options[(self._index + number) % len(options)] for number in range(count))
        return written

    def _count(self) -> int:
        found = _QUANTIFIER.match(self._pattern, self._position)
        if found is None:
            return 1
        self._position = found.end()
        mark, least, comma, most = found.groups()
        if mark in _BOUNDS:
            low, high = _BOUNDS[mark]
        else:
            low, high = int(least), int(most or least) if most or not comma else None
        return low + self._extra if high is None else min(low + self._extra, high)

    def _atom(self) -> Sequence[str]:
        """Return the options for one atom: characters, or the single string of a group."""
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
        assertion = any(self._take(mark) for mark in ("?=", "?!", "?<=", "?<!"))
        if not assertion and not self._take("?:") and self._take("?"):
            if not self._take("P<"):
                raise UnsupportedPatternError(self._pattern)
            self._position = self._pattern.index(">", self._position) + 1
        written = self.alternatives()
        self._take(")")
        return "" if assertion else written

    def _escape(self) -> Sequence[str]:
        letter = self._next()
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in "bBAZ":
            return [""]
        if letter in "xu":
            start = self._position
            self._position += {"x": 2, "u": 4}[letter]
            return [chr(int(self._pattern[start : self._position], 16))]
        if letter in _CONTROLS:
            return [_CONTROLS[letter]]
        if letter.isalnum():
            raise UnsupportedPatternError(self._pattern)
        return [letter]

    def _set(self) -> Sequence[str]:
        negated = self._take("^")
        members: list[str] = []
        first = True
        while first or not self._take("]"):
            first = False
            options = self._escape() if self._take("\\") else [self._next()]
            following = self._pattern[self._position : self._position + 2]
            if len(options) == 1 and following[0] == "-" and following[1] != "]":
                self._position += 1
                last = self._escape()[0] if self._take("\\") else self._next()
                options = [chr(code) for code in range(ord(options[0]), ord(last) + 1)]
            members += options
        printable = [each for each in _PRINTABLE if (each in members) != negated]
        return printable if printable or negated else members
