"""Convert the service's JSON to instances, and encode the body of a start request.

`decoders.py` decodes each class, field by field. `catalog_wire.py` has the rest of the service's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from .._http.messages import ShapeError
from .decoders import decode, decode_list, member
from .domain import AffectedInstances, Instance, InstanceArgs, InstanceStatus
from .listing import Listing
from .readers import one_line


def decode_instance(data: Any) -> Instance:
    return decode(member(data, "instance"), Instance)


def decode_started(data: Any, args: InstanceArgs) -> Instance:
    """Return the instance created by a start request with these arguments.

    Its id is enough to release the instance. If anything else cannot be parsed, the instance gets the
    arguments sent and counts as pending, as documented.
    """
    try:
        return decode_instance(data)
    except ShapeError:
        entry = member(data, "instance")
        instance_id = entry.get("instance_id") if isinstance(entry, dict) else None
        if not instance_id or not isinstance(instance_id, str):
            raise
        status = InstanceStatus(status="pending")
        return Instance(instance_id=one_line(instance_id), instance_args=args, instance_status=status)


def decode_instances(data: Any, date: float | None = None) -> Listing[Instance]:
    return decode_list(member(data, "instances"), Instance, "instance_id", date)


def decode_affected(data: Any) -> AffectedInstances:
    """Return the instances that `stop-all` or `delete-all` changed. The body or its fields can be missing."""
    return decode({} if data is None else data, AffectedInstances)


def check_deleted(instance_id: str, data: Any) -> None:
    """Check that the response to a delete comes from the service and not from a proxy.

    The body or one of its two fields can be missing.
    """
    is_documented = isinstance(data, Mapping) and (
        data.get("instance_id") == instance_id or isinstance(data.get("message"), str)
    )
    if data is not None and not is_documented:
        raise ShapeError("expected an object with the id of the deleted instance, or with a message")


def encode_start(args: InstanceArgs) -> dict[str, Any]:
    """Return the body of a start request, without the arguments left to the service's defaults."""
    return {name: value for name, value in attrs.asdict(args).items() if value is not None}
