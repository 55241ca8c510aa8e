"""Explain the names people try first, in error messages: `_hint_tables.py` has them.

`hinted` adds them to a class, and `_public.py` adds them to the modules. Type checkers, completion, `dir`,
and `inspect.signature` show only existing names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ._hint_tables import ARGUMENTS, ATTRIBUTES, ELSEWHERE, METHODS, MISUSES, Hints

C = TypeVar("C", bound=type[Any])

# `inspect.CO_COROUTINE`: the module is slow to import.
_CO_COROUTINE = 0x80


def find_hint(hints: Hints, name: str) -> str | None:
    """Return the replacement for a name."""
    return next((text for names, text in hints.items() if name in names.split()), None)


def explain_argument(
    name: str, hints: Hints, known: Iterable[str], elsewhere: str = "client.instance"
) -> str:
    """Return the end of a sentence about an unknown argument: its replacement, if known.

    The replacement can be `elsewhere`, a method with arguments of its own.
    """
    known, hint = [*known], find_hint(hints, name)
    argument = re.match(r"use (\w+)(?![\w.(])", hint or f"use {name}")
    if argument and argument[1] not in known and argument[1] in ELSEWHERE[elsewhere].split():
        hint = f"use {elsewhere}(..., {argument[1]}=...)"
    if hint:
        return f": {hint}"
    import difflib  # noqa: PLC0415  (only for an error)

    close = difflib.get_close_matches(name, known, n=1)
    return f". {did_you_mean(close)}" if close else ""


def did_you_mean(names: Sequence[str]) -> str:
    """Return a sentence that suggests these names, or an empty string without names."""
    return f"Did you mean {any_of(names)}?" if names else ""


def any_of(names: Sequence[str]) -> str:
    """Return names as a choice: `a`, `a or b`, `a, b, or c`."""
    return " or ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])}, or {names[-1]}"


def hinted(cls: C) -> C:
    """Make a class raise an error with the correct attribute for each name people try first."""
    name = cls.__name__
    if hints := ATTRIBUTES.get(name):
        _set(cls, "__getattr__", _hint_attributes(cls, hints))
    for uses, text in MISUSES.get(name, {}).items():
        for use in uses.split():
            for method in METHODS[use]:
                _set(cls, method, _refuse(name, use, text))
    for method, arguments in ARGUMENTS.get(name, {}).items():
        if method == "__init__":
            # Not around `__init__` itself: in a traceback, its frame would show the secrets.
            _set(cls, "__new__", _hint_constructor(cls, arguments))
        else:
            _set(cls, method, _hint_arguments(vars(cls)[method], arguments))
    return cls


def _set(cls: type[Any], name: str, value: object) -> None:
    setattr(cls, name, value)


def _hint_attributes(cls: type[Any], hints: Hints) -> Callable[[object, str], Any]:
    def getattr_(self: object, name: str) -> Any:
        if hint := find_hint(hints, name):
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}: {hint}", name=name)
        # A subclass may have a second base class with its own `__getattr__`.
        if inherited := getattr(super(cls, self), "__getattr__", None):
            return inherited(name)
        # Raises Python's own error, even if a property raised an AttributeError.
        return object.__getattribute__(self, name)

    return getattr_


def _refuse(cls_name: str, use: str, text: str) -> Callable[..., Any]:
    said = f"{cls_name} cannot be called" if use == "call" else f"{cls_name} does not support `{use}`"
    message = f"{said.replace('-', ' ')}: {text}"

    def refuse(_: object, *__: object) -> Any:
        raise TypeError(message)

    return refuse


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    code = function.__code__
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _problem(function: Callable[..., Any], hints: Hints, given: Iterable[str]) -> str | None:
    known = _parameters(function)
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return None
    is_batch = function.__name__ in {"run_batch", "plan_batch"}
    explained = explain_argument(
        unknown, hints, known, elsewhere="client.run_batch" if is_batch else "client.instance"
    )
    return f"{function.__qualname__}() got an unexpected keyword argument {unknown!r}{explained}"


def _hint_constructor(cls: type[Any], hints: Hints) -> Any:
    owner, init = cls, cls.__init__

    # With the signature of `__init__`, because `inspect.signature` looks at `__new__` first.
    @functools.wraps(init)
    def new(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            # A subclass may have an `__init__` with different arguments, or a test may have replaced it.
            if cls.__init__ is init and (problem := _problem(init, hints, kwargs)):
                raise TypeError(problem)
            # A subclass may have a second base class with its own `__new__`.
            inherited = super(owner, cls).__new__
            return object.__new__(cls) if inherited is object.__new__ else inherited(cls, *args, **kwargs)
        finally:
            del args, kwargs  # a traceback that shows locals would show secrets

    return staticmethod(new)


def _hint_arguments(function: Callable[..., Any], hints: Hints) -> Callable[..., Any]:
    if function.__code__.co_flags & _CO_COROUTINE:

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            try:
                if problem := _problem(function, hints, kwargs):
                    raise TypeError(problem)
                called = function(*args, **kwargs)
            finally:
                del args, kwargs  # as above
            return await called

        return call_async

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if problem := _problem(function, hints, kwargs):
                raise TypeError(problem)
            return function(*args, **kwargs)
        finally:
            del args, kwargs  # as above

    return call
