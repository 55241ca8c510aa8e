"""The text of `cortecs-async help` for an error: its docstring, wrapped to the terminal's width."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping

import click

from .. import CortecsError, errors
from .suggestions import nearest

_SECTION = re.compile(r"^(Args|Attributes|Example):\n", re.MULTILINE)
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_ATTRIBUTE = re.compile(r"^(\w+): (.*(?:\n .*)*)", re.MULTILINE)


def public_errors() -> Mapping[str, type[CortecsError]]:
    """Return all public errors by name."""
    from ..integrations.web import NotReadyError  # noqa: PLC0415  (only for this command)

    found = {name: each for name, each in vars(errors).items() if name.endswith("Error")}
    return {**found, NotReadyError.__name__: NotReadyError}


def find_error(name: str) -> type[CortecsError] | None:
    """Find an error by its name in any case, even with its module or without `Error`."""
    wanted = name.rpartition(".")[2].lower()
    by_name = {each.lower(): error for each, error in public_errors().items()}
    return by_name.get(wanted) or by_name.get(f"{wanted}error")


def similar_errors(name: str) -> list[str]:
    """Return the errors with a similar name, best first, or the ones whose names contain it."""
    stem = name.rpartition(".")[2].lower().removesuffix("error")
    names = {each.removesuffix("Error").lower(): each for each in public_errors()}
    return [names[each] for each in nearest(stem, names) or [each for each in names if stem and stem in each]]


def summary(error: type[CortecsError]) -> str:
    """Return the error's meaning in one sentence."""
    return inspect.cleandoc(error.__doc__ or "").partition("\n")[0]


def write_error(error: type[CortecsError], formatter: click.HelpFormatter) -> None:
    """Write an error's meaning, and what to do about it."""
    text, sections = _split(error)
    formatter.write_text(f"{error.__name__}: {text}")
    attributes = {}
    for base in reversed(error.__mro__):
        if issubclass(base, CortecsError):
            attributes.update(_attributes(base))
    if attributes:
        with formatter.section("Attributes"):
            formatter.write_dl(list(attributes.items()))
    if example := sections.get("Example"):
        with formatter.section("Example"):
            # Code is not wrapped.
            formatter.write(textwrap.indent(example, " " * formatter.current_indent))
    formatter.write_paragraph()
    bases = [each.__name__ for each in error.__mro__[1:] if each not in Exception.__mro__]
    also = f" Also caught as {', '.join(bases)}." if bases else ""
    formatter.write_text(f"Import it from {error.__module__}.{also}")


def _split(error: type[CortecsError]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its paragraphs and sections."""
    text, *rest = _SECTION.split(_BOLD.sub(r"\1", inspect.cleandoc(error.__doc__ or "")))
    bodies = (f"{textwrap.dedent(each).strip()}\n" for each in rest[1::2])
    return text, dict(zip(rest[::2], bodies, strict=True))


def _attributes(error: type[CortecsError]) -> dict[str, str]:
    found = _ATTRIBUTE.findall(_split(error)[1].get("Attributes", ""))
    return {name: " ".join(meaning.split()) for name, meaning in found}
