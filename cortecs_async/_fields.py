"""The validators of the settings and of the retry and poll policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ._durations import duration_problem, is_number
from ._errors import ConfigurationError


def _name(instance: object, attribute: attrs.Attribute[Any]) -> str:
    # Users do not see `Settings`: its fields are arguments of `AsyncCortecs`.
    return f"{type(instance).__name__}.{attribute.name}".removeprefix("Settings.")


def at_least(minimum: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """Return a validator that requires a number, or a duration if the field has a converter."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if attribute.converter is not None:
            problem = duration_problem(value, at_least=minimum)
        elif not is_number(value):
            problem = f"must be a number, not {value!r}"
        else:
            problem = f"must be at least {minimum:g}, not {value!r}" if value < minimum else None
        if problem:
            raise ConfigurationError(f"{_name(instance, attribute)} {problem}")

    return check


def whole(minimum: int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """Return a validator that requires a whole number."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigurationError(
                f"{_name(instance, attribute)} must be a whole number of at least {minimum}, not {value!r}"
            )

    return check
