"""`SharedInfo`: a shared instance as `client.shared_instances()` returns it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs
from attrs import asdict, frozen

from .._display import Row, joined, money_text, time_text
from .._hints import hinted

SharedState = Literal["starting", "running", "lingering", "kept", "releasing", "unresponsive"]


@hinted
@frozen(kw_only=True)
class SharedInfo(Row):
    """An instance that processes of this machine share: `client.shared_instances()`.

    Attributes:
        name: The name under which it is shared.
        state: The state of the instance.

            - `starting`: it is not usable yet, or waits for capacity.
            - `running`: processes use it.
            - `lingering`: no process uses it, and it is released after `linger`.
            - `kept`: no process uses it, and it runs until a limit or `client.release_shared`.
            - `releasing`: it is being released.
            - `unresponsive`: the owner process does not respond. Only `name` and `owner_pid` are known.
        model: The model, `org/name`.
        hardware_type_id: The GPU set of each worker, or None if it is not known yet.
        instance_id: The id of the instance, or None while there is none.
        base_url: The URL of the OpenAI-compatible endpoint, or None until the instance is usable.
        holders: The process ids of the programs that use it or wait for it.
        is_kept: Whether it keeps running without a process that uses it.
        owner_pid: The id of the owner process, or None if unknown.
        started_at: The Unix time in seconds at which the owner process started, or None if unknown.
        expires_at: The Unix time in seconds at which the instance is released in any case, or None if
            unknown.
        cost: The estimated cost until now, in `currency`, or None if no price is known.
        currency: The currency, as reported by the service, or an empty string if unknown.

    Example:
        for shared in await client.shared_instances():
            print(shared.name, shared.state, shared.base_url)
    """

    name: str
    state: SharedState
    model: str = ""
    hardware_type_id: str | None = None
    instance_id: str | None = None
    base_url: str | None = None
    holders: tuple[int, ...] = ()
    is_kept: bool = False
    owner_pid: int | None = None
    started_at: float | None = None
    expires_at: float | None = None
    cost: float | None = None
    currency: str = ""

    def __str__(self) -> str:
        users = f"{len(self.holders)} processes" if len(self.holders) != 1 else "1 process"
        return joined(f"{self.name} {self.state}", self.model, self.instance_id, self.base_url, users)

    def _columns(self) -> Mapping[str, object]:
        return {
            "name": self.name,
            "state": self.state,
            "model": self.model,
            "hardware": self.hardware_type_id,
            "instance": self.instance_id,
            "processes": " ".join(map(str, self.holders)),
            "started": None if self.started_at is None else time_text(self.started_at),
            "expires": None if self.expires_at is None else time_text(self.expires_at),
            "cost": money_text(self.cost, self.currency),
            "base_url": self.base_url,
        }


def encode_info(info: SharedInfo) -> dict[str, Any]:
    """Return the message of an owner about its instance."""
    return {"info": asdict(info)}


def decode_info(message: dict[str, Any]) -> SharedInfo | None:
    """Return the information in a message, or None if it is not readable."""
    data = message.get("info")
    with contextlib.suppress(TypeError):
        known = {each.name for each in attrs.fields(SharedInfo)}
        if isinstance(data, dict) and data.get("state") in get_args(SharedState):
            fields: dict[str, Any] = {name: value for name, value in data.items() if name in known}
            fields["holders"] = tuple(fields.get("holders", ()))
            return SharedInfo(**fields)
    return None
