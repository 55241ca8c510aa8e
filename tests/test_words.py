"""Words that must not come back, in all texts that a person reads, and the style of error messages.

The list is in words.toml. To allow a text that it finds by mistake, make the expression more precise.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortecs_async import errors

ROOT = Path(__file__).parent.parent
WORDS = tomllib.loads((Path(__file__).parent / "words.toml").read_text())["word"]

# Between two words: a space or a line break, also in a comment, in a quotation, or between two strings.
_SPACE = r"""[\s"'`*]+(?:[#>]+\s+|[fr]{1,2}["'])?"""


def files() -> Iterator[Path]:
    """Yield the files whose words are checked, as far as they exist: the package has no .github."""
    yield from (
        path
        for name in ("README.md", "CHANGELOG.md", "noxfile.py", "pyproject.toml")
        if (path := ROOT / name).exists()
    )
    for folder, suffixes in (
        ("cortecs_async", {".py"}),
        ("docs", {".md", ".svg", ".py"}),
        ("benchmarks", {".md", ".svg", ".py"}),
        (".github", {".md", ".yml"}),
    ):
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def expression(word: dict[str, str]) -> re.Pattern[str]:
    """Return an expression for text in lower case whose group `found` is the word; `except` is without it.

    It does not require the beginning of a word, because it is several times as fast without that.
    """
    allowed = rf"(?:{word['except']})\b|" if "except" in word else ""
    return re.compile(rf"{allowed}(?P<found>{word['not']})\b".replace(" ", _SPACE))


EXPRESSIONS = [(expression(word), word) for word in WORDS]


def problems(text: str, where: str) -> list[str]:
    """Return each place of a word of the list, and what to say instead."""
    lower = text.lower().replace("&#160;", " ")  # how the pictures of the command line write a space
    return [
        f"{where}:{1 + lower.count(chr(10), 0, match.start())}: {' '.join(match['found'].split())!r}: "
        f"say {word['say']} ({word['why']})"
        for pattern, word in EXPRESSIONS
        for match in pattern.finditer(lower)
        if match["found"] and not re.match(r"\w", lower[match.start() - 1 : match.start()])
    ]


def test_no_word_of_the_list_is_used() -> None:
    assert [
        each for path in files() for each in problems(path.read_text(), str(path.relative_to(ROOT)))
    ] == []


def test_the_package_and_the_pages_are_checked() -> None:
    checked = {str(path.relative_to(ROOT)) for path in files()}
    assert {"cortecs_async/_errors/base.py", "docs/index.md", "docs/reference/types.md"} <= checked


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word["not"])
def test_every_entry_says_what_to_write_instead(word: dict[str, str]) -> None:
    assert word.keys() - {"except"} == {"not", "say", "why"}
    assert problems(word["say"], "") == [], "advice that is itself on the list"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("first\nIt hands the instance back.\n", "x.md:2: 'hands the instance back': say release"),
        ("# Up to so\n    # many seconds.", "x.md:1: 'so # many seconds'"),
        ('"at " "the most"', "x.md:1: 'at"),
        ("'0' is no duration", "x.md:1: 'is no duration': say is not a"),
        ("Nobody waits.", "x.md:1: 'nobody': say name the actor"),
        ("of another task than the one", "x.md:1: 'another task than': say a different"),
        ("`A`, else `B`", "x.md:1: ', else': say or"),
        ("less than 1 %. If so", "x.md:1: '1': say 30%"),
        ("It starts\nnothing.", "x.md:1: 'starts nothing': say does not start"),
    ],
)
def test_a_word_of_the_list_is_found(text: str, found: str) -> None:
    (problem,) = problems(text, "x.md")
    assert problem.startswith(found)


@pytest.mark.parametrize(
    "text",
    [
        "the handbook",
        "There\nis no answer.",
        "It is no longer there.",
        "mindset",
        "goes on the next line",
        "besides",
        "before any more requests",
        "nothing was started; rather than `x`",
        "else `x`",
        "number // 60 % 24",
    ],
)
def test_similar_text_is_allowed(text: str) -> None:
    assert problems(text, "x.md") == []


# --- error messages -----------------------------------------------------------------------------------------

PUBLIC = {name for name in dir(errors) if name.endswith("Error")}

# A message begins with a capital letter, or with the name of an argument, a variable, a method or a path.
_ORDINARY = re.compile(
    r"(an?|the|this|these|another|no|there|it|its|pass|use|call|take|start|run|set|instance|model|lease|"
    r"client|cannot|could|unknown|invalid|duplicate|only|reading|some|every|each|either|none)\b"
)
# Their texts follow a colon: in the message of another error, or after a path and a line.
_FRAGMENTS = {"reaper_process.py", "reaper_check.py"}


def beginnings(source: str) -> Iterator[str]:
    """Yield the texts of the public errors that a module creates, up to the first value in them."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        has_path = any(each.arg == "path" for each in node.keywords) and "Batch" in node.func.id
        text = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        if node.func.id in PUBLIC and not has_path and isinstance(text, ast.Constant):
            yield str(text.value)


def test_errors_begin_with_a_capital_letter_or_a_name() -> None:
    found = {
        f"{path.name}: {text}"
        for path in (ROOT / "cortecs_async").rglob("*.py")
        if path.name not in _FRAGMENTS
        for text in beginnings(path.read_text())
        if _ORDINARY.match(text)
    }
    assert found == set()


def test_an_error_that_begins_otherwise_is_found() -> None:
    (text,) = beginnings("raise InvalidArgumentError(f'the lease {name} has ended')")
    assert _ORDINARY.match(text)
    (text,) = beginnings("raise InvalidArgumentError(f'timeout must be positive, not {timeout}')")
    assert not _ORDINARY.match(text)
