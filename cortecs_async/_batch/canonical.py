"""Identify a request by its meaning, not by its spelling. Pure functions.

Two bodies are the same request if they differ only in the order of keys, in the notation of numbers (`1`,
`1.0`, `1e0`), in null fields of the body or of a message, in top-level fields with their default value, or in
empty `tools`, `stop`, and `logit_bias`. The order of lists matters, text is compared as it is, and `true` is
not `1`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from .._lease.inference import Endpoint

# Earlier versions of this package hashed the body as it was written, and their ids have no version number.
_LEGACY_PREFIX = "batch_req_"
_PREFIX = "batch_req_v2_"

# Earlier versions gave answers from fleets random ids.
LEGACY_FLEET_PREFIX = "fleet_req_"

# Fields that mean the same when empty as when left out.
_EMPTY = frozenset({"tools", "stop", "logit_bias"})

_LEGACY_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def identify(endpoint: Endpoint, body: Mapping[str, Any]) -> str:
    """Return the id of a request.

    Raises:
        ValueError: The body has a number that is not JSON: NaN or an infinity.
    """
    defaults = endpoint.defaults
    parts = [_head(endpoint)]
    for key in sorted(body):
        value = body[key]
        is_default = key in defaults and _is_same(value, defaults[key])
        is_empty = key in _EMPTY and value in ([], {})
        if not (value is None or is_default or is_empty):
            parts.append(f"{len(key)}:{key}")
            _append(_without_nulls(value) if key == "messages" else value, parts)
    # `surrogatepass`, because JSON may contain lone surrogates.
    return _PREFIX + _digest("".join(parts).encode("utf-8", "surrogatepass"))


def identify_legacy(endpoint: Endpoint, body: bytes) -> str:
    """Return the id that earlier versions gave to a request with this body."""
    text = _head(endpoint) + _LEGACY_ENCODER.encode(json.loads(body))
    return _LEGACY_PREFIX + _digest(text.encode())


def is_legacy_id(request_id: str) -> bool:
    return not request_id.startswith(_PREFIX)


def _head(endpoint: Endpoint) -> str:
    return f"/v1{endpoint.path}\n"


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _is_same(value: Any, default: Any) -> bool:
    # In Python, `1 == True`.
    return bool(value == default) and isinstance(value, bool) is isinstance(default, bool)


def _without_nulls(messages: Any) -> Any:
    """Return messages without their null fields, which client libraries write for fields that are not set."""
    if not isinstance(messages, list):
        return messages
    return [
        {key: value for key, value in each.items() if value is not None}
        if isinstance(each, dict) and None in each.values()
        else each
        for each in messages
    ]


def _append(value: Any, parts: list[str]) -> None:
    """Append the canonical form of a value.

    The length before each string keeps the forms of different values distinct. JSON with sorted keys would
    work too, but escaping long texts takes several times as long.
    """
    kind = type(value)
    if kind is str:
        parts.append(f"{len(value)}:{value}")
    elif kind is dict:
        parts.append("{")
        for key in sorted(value):
            each = value[key]
            if type(each) is str:  # most are, and a call would take as long as the rest
                parts.append(f"{len(key)}:{key}{len(each)}:{each}")
            else:
                parts.append(f"{len(key)}:{key}")
                _append(each, parts)
        parts.append("}")
    elif kind is list:
        parts.append("[")
        for each in value:
            _append(each, parts)
        parts.append("]")
    elif kind is float and value.is_integer():
        parts.append(f"{int(value)},")
    elif kind is float and not math.isfinite(value):
        raise ValueError(value)
    else:
        parts.append(f"{value},")
