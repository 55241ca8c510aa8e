"""Argument checks before a request is sent. Each raises `InvalidArgumentError`.

`DELETE /instances/delete-all` deletes every instance in the account. So an id that could reach a different
route is rejected here, regardless of how the HTTP stack encodes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from .._errors import InvalidArgumentError
from .model_ids import to_model_id

if TYPE_CHECKING:
    from .domain import InstanceArgs

MAX_WORKERS = 8
BillingInterval = Literal["per_minute", "per_hour"]

# Instead of hardware types: whichever costs least.
CHEAPEST = "cheapest"

# The routes below /instances/ in the published API.
ROUTES = frozenset({"start", "restart", "stop", "stop-all", "delete-all"})

# RFC 3986's unreserved characters and the colon. A path segment carries them unencoded, so nothing on the way
# to the service (a proxy that decodes %2F, a router that strips spaces) can change the segment.
_SEGMENT = r"[A-Za-z0-9._~:-]+"


def check_instance_id(instance_id: str) -> str:
    """Check an instance id for use in a path and return it."""
    _check_segment("instance_id", instance_id)
    if instance_id.casefold() in ROUTES:
        raise InvalidArgumentError(
            f"instance_id {instance_id!r} is reserved by the API (it is part of another endpoint's URL). "
            "Pass an instance id."
        )
    return str.__str__(instance_id)  # in an f-string, a member of a `str` enum may become its name


def check_body_id(instance_id: str) -> str:
    """Check an instance id for use in a body and return it.

    Any text is allowed, because it cannot reach a different route. So an instance whose id is not allowed in
    a path can be stopped but not deleted.
    """
    _check_text("instance_id", instance_id)
    if any("\ud800" <= character <= "\udfff" for character in instance_id):
        raise InvalidArgumentError(f"instance_id {instance_id[:80]!r} is not valid Unicode text")
    return instance_id


def check_model_id(model_id: str) -> str:
    """Check a model id, `a/b` or `a--b`, and return it in the service's spelling."""
    _check_text("model_id", model_id)
    for part in model_id.split("/", 1):
        _check_segment("model_id", part, typed=model_id)
    return to_model_id(model_id)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise InvalidArgumentError(f"{name} is empty")


def _check_segment(name: str, value: str, *, typed: str | None = None) -> None:
    _check_text(name, value)
    if not re.fullmatch(_SEGMENT, value) or set(value) == {"."} or ".." in value:
        raise InvalidArgumentError(
            f"{name} {(typed or value)[:80]!r} is not a valid id. Use only letters, digits, and the "
            f"characters . _ ~ : -{'' if typed is None else '. Write org/name or org--name.'}"
        )


def check_start(
    model_id: str,
    hardware_type_id: str | None,
    context_length: int | None,
    num_workers: int,
    billing_interval: BillingInterval,
) -> InstanceArgs:
    """Check the arguments of a start request against the published reference and return them."""
    if hardware_type_id == CHEAPEST or isinstance(hardware_type_id, (list, tuple)):
        raise InvalidArgumentError(
            f"hardware_type_id must be a single id here, not {hardware_type_id!r}. client.instance, acquire, "
            "and run_batch accept a list or 'cheapest'."
        )
    if hardware_type_id is not None:
        _check_segment("hardware_type_id", hardware_type_id)
    if context_length is not None:
        _check_integer("context_length", context_length)
        if context_length < 1:
            raise InvalidArgumentError(f"context_length must be at least 1 token, not {context_length}")
    _check_integer("num_workers", num_workers)
    if not 1 <= num_workers <= MAX_WORKERS:
        raise InvalidArgumentError(f"num_workers must be 1 to {MAX_WORKERS}, not {num_workers}")
    if billing_interval not in get_args(BillingInterval):
        choices = ", ".join(get_args(BillingInterval))
        raise InvalidArgumentError(f"billing_interval must be one of {choices}, not {billing_interval!r}")
    from .domain import InstanceArgs  # noqa: PLC0415  (slow to import, and not needed until here)

    return InstanceArgs(
        model_id=check_model_id(model_id),
        hardware_type_id=hardware_type_id,
        billing_interval=billing_interval,
        context_length=context_length,
        num_workers=num_workers,
    )


def check_hardware(hardware_type_id: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the allowed hardware types in order of preference, or `(CHEAPEST,)`.

    Empty for None: the model's recommended hardware.
    """
    if hardware_type_id is None:
        return ()
    if isinstance(hardware_type_id, str):
        hardware_type_id = (hardware_type_id,)
    if not isinstance(hardware_type_id, (list, tuple)) or not hardware_type_id:
        raise InvalidArgumentError(
            "hardware_type_id must be an id, a list of ids in order of preference, or 'cheapest', not "
            f"{hardware_type_id!r}"
        )
    for each in hardware_type_id:
        if isinstance(each, str) and "," in each:
            ids = [part.strip() for part in each.split(",") if part.strip()]
            raise InvalidArgumentError(f"hardware_type_id {each!r} is not one id. Pass a list: {ids}")
        _check_segment("hardware_type_id", each)
        if each != CHEAPEST and each.lower() == CHEAPEST:
            raise InvalidArgumentError(f"hardware_type_id must be {CHEAPEST!r} in lowercase, not {each!r}")
    if len(set(hardware_type_id)) < len(hardware_type_id):
        raise InvalidArgumentError(f"hardware_type_id contains an id twice: {list(hardware_type_id)}")
    if CHEAPEST in hardware_type_id and len(hardware_type_id) > 1:
        raise InvalidArgumentError(f"'{CHEAPEST}' already considers all hardware types: pass it alone")
    return tuple(hardware_type_id)


def check_bool(name: str, value: object) -> None:
    """Check that a value is True or False. The text "false" must not count as true."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be True or False, not {value!r}")


def _check_integer(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(f"{name} must be a whole number, not {value!r}")


def check_amount(name: str, value: float | None) -> None:
    """Check that a value is a positive amount of money, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InvalidArgumentError(f"{name} must be a positive amount, not {value!r}")
