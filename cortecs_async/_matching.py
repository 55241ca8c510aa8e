"""Which instance has which arguments, given that the service fills in defaults and leaves things out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._domain import Instance, InstanceArgs, Model

# The vendor's client caps the default context here; so does the published reference of `start`.
_DEFAULT_CONTEXT = 32000


def fits(actual: InstanceArgs, sent: InstanceArgs) -> bool:
    """Whether an instance with these arguments can come from a start that sent those."""
    return (
        actual.model_id == sent.model_id
        and _same(actual.hardware_type_id, sent.hardware_type_id)
        and _same(actual.context_length, sent.context_length)
        and _same(actual.billing_interval, sent.billing_interval)
        # Absent from every documented answer, and read as 1 then: so 1 proves nothing.
        and actual.num_workers in {1, sent.num_workers}
    )


def _same(actual: Any, sent: Any) -> bool:
    return actual is None or sent is None or actual == sent


def with_defaults(args: InstanceArgs, model: Model | None) -> InstanceArgs:
    """The arguments with the service's documented defaults filled in, as far as the model tells them."""
    hardware = args.hardware_type_id or (model.recommended_config if model else None)
    context = args.context_length
    config = model.hardware_configs.get(hardware) if model and hardware else None
    if context is None and config is not None:
        longest = config.max_context_length
        context = None if longest is None else min(_DEFAULT_CONTEXT, longest)
    return InstanceArgs(
        model_id=args.model_id,
        hardware_type_id=hardware,
        billing_interval=args.billing_interval or "per_minute",
        context_length=context,
        num_workers=args.num_workers,
    )


def choose(instances: Iterable[Instance], args: InstanceArgs, model: Model | None) -> Instance | None:
    """The best instance with these arguments: running, else pending, else stopped, else None."""
    wanted = with_defaults(args, model)
    fitting = [each for each in instances if with_defaults(each.instance_args, model) == wanted]
    by_status: list[Instance] = [
        each for status in ("running", "pending", "stopped") for each in fitting if each.status == status
    ]
    return by_status[0] if by_status else None
