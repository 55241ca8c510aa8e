"""`InstanceHandle`: an instance as data, for other processes."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

from attrs import asdict, field, fields, frozen

from .._config import check_api_base_url
from .._credentials import Sources
from .._errors import ConfigurationError, InvalidArgumentError
from .._hints import hinted
from .activity import Activity
from .endpoint import Endpoint


@hinted
@frozen(kw_only=True)
class InstanceHandle(Endpoint):
    """An instance as data, to send to other processes by pickle or as JSON. It does not contain secrets.

    You get one from `client.acquire` or as `inst.handle`. Like a lease, it provides clients for the endpoint.

    Attributes:
        instance_id: The id of the instance.
        base_url: The URL of the OpenAI-compatible endpoint. It ends in `/v1`.
        model: The name to pass to the endpoint as `model`.
        account: A fingerprint of the account.
        expires_at: Unix time in seconds at which the instance is released automatically, or None if it never
            expires.
        allow_insecure_http: Whether `base_url` may be plain http on another machine, as in `AsyncCortecs`.

    Raises:
        InvalidArgumentError: if an attribute has the wrong type, or `base_url` is not safe to send a key to.
            The URL must use https, except on this machine or with `allow_insecure_http`.

    Example:
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
            text = inst.handle.to_json()

            # In another process:
            handle = InstanceHandle.from_json(text)
            print(handle.base_url, handle.model)
    """

    instance_id: str
    base_url: str  # pyright: ignore[reportIncompatibleMethodOverride]  # a field may be read like a property
    model: str  # pyright: ignore[reportIncompatibleMethodOverride]
    account: str = field(repr=False)
    expires_at: float | None = None
    allow_insecure_http: bool = field(default=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in ("instance_id", "base_url", "model", "account"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.isprintable() or not text:
                raise InvalidArgumentError(f"The {name} of a handle must be a non-empty, printable string")
        number = self.expires_at
        is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if number is not None and not is_number:
            raise InvalidArgumentError("A handle's expires_at must be a number or None")
        if not isinstance(self.allow_insecure_http, bool):
            raise InvalidArgumentError("A handle's allow_insecure_http must be True or False")
        if problem := url_problem(self.base_url, allow_insecure_http=self.allow_insecure_http):
            raise InvalidArgumentError(
                f"The inference API key cannot be sent to instance {self.instance_id}: {problem}"
            )

    def to_json(self) -> str:
        """Return the handle as JSON text for `from_json` in another process.

        Example:
            print(handle.to_json())
        """
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InstanceHandle:
        """Return the handle that `to_json` or `cortecs-async start --json` wrote.

        Args:
            text: The JSON text. Its `expires_at` can be a Unix time or an ISO 8601 time.

        Raises:
            InvalidArgumentError: if the text is not a handle in JSON, or `base_url` is not safe.

        Example:
            text = handle.to_json()
            same = InstanceHandle.from_json(text)
            print(same.base_url, same.model)
        """
        try:
            data: dict[str, Any] = {"allow_insecure_http": False, **json.loads(text)}
            arguments = {each.name: data[each.name] for each in fields(cls)}
            if isinstance(arguments["expires_at"], str):
                arguments["expires_at"] = datetime.fromisoformat(arguments["expires_at"]).timestamp()
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InvalidArgumentError("This is not the JSON of an InstanceHandle") from None
        return cls(**arguments)

    def __copy__(self) -> InstanceHandle:
        copy = with_sources(_restore(asdict(self)), getattr(self, "_sources", None))
        return with_activity(copy, self._get_activity())

    def __deepcopy__(self, _: dict[int, Any]) -> InstanceHandle:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would not check the attributes when it is unpickled.
        return _restore, (asdict(self),)


def with_sources(handle: InstanceHandle, sources: Sources | None) -> InstanceHandle:
    """Make a handle find the inference API key where its client does. Return the handle."""
    object.__setattr__(handle, "_sources", sources)  # the class is frozen
    return handle


def with_activity(handle: InstanceHandle, activity: Activity | None) -> InstanceHandle:
    """Make the requests of a handle count for its lease, while both are in one process. Return the handle."""
    object.__setattr__(handle, "_activity", activity)
    return handle


def _restore(arguments: dict[str, Any]) -> InstanceHandle:
    return InstanceHandle(**arguments)


def url_problem(base_url: str, *, allow_insecure_http: bool) -> str | None:
    """Return the reason a key must not be sent to an endpoint URL, or None if it is safe."""
    try:
        check_api_base_url(base_url, allow_insecure_http=allow_insecure_http)
    except ConfigurationError as error:
        return str(error).replace("api_base_url", "its base_url", 1)
    return None
