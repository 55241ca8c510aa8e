"""Find secrets in everything that an error report could show."""

from __future__ import annotations

import html
import json
import pickle
import traceback
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from _scripted import SECRET, TOKEN
from rich.pretty import pretty_repr

from cortecs_async import CortecsError
from cortecs_async._http.reasons import causes_of

HERE = Path(__file__).parent
SECRETS = (SECRET, TOKEN)


def frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of a traceback, except the tests' own frames, which can contain the secrets."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if HERE not in Path(frame.f_code.co_filename).parents:
            yield frame


def safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  (an object that is not initialized yet)
        return f"no repr: {error}"


def reported(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yield every text that an error report could contain, and its origin."""
    for each in causes_of(error):
        name = type(each).__name__
        yield f"{name}: str", str(each)
        yield f"{name}: repr", repr(each)
        yield f"{name}: args", repr(each.args)
        yield f"{name}: vars", repr(vars(each))
        yield f"{name}: format", "".join(traceback.format_exception(each))
        for frame in frames(each):
            for variable, value in frame.f_locals.items():
                # Sentry and pytest show the repr of each local variable.
                yield f"{name}: {frame.f_code.co_qualname} {variable}", safe_repr(value)
                # As rich does for `show_locals`: it also looks into attrs classes and tuples.
                shown = pretty_repr(value, max_length=10, max_string=80)
                yield f"{name}: {frame.f_code.co_qualname} {variable}: rich", shown
        if isinstance(each, CortecsError):
            yield f"{name}: pickle", repr(pickle.dumps(each, 0))


def encodings(secret: str) -> set[str]:
    """Return the encodings of a secret that must not appear."""
    escaped = json.dumps(secret)[1:-1]
    return {
        secret,
        escaped,
        escaped.replace("/", "\\/"),
        urllib.parse.quote(secret, safe=""),
        html.escape(secret),
        secret[: len(secret) // 2],  # what remains if a text is cut before it is redacted
    }


def leaks(error: BaseException, *secrets: str) -> list[str]:
    """Return the origins and texts of an error report that contain a secret."""
    hidden = {each for secret in secrets or SECRETS for each in encodings(secret)}
    return [
        f"{origin}: {text[:200]}" for origin, text in reported(error) if any(each in text for each in hidden)
    ]
