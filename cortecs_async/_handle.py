"""What `client.acquire` gives: an instance as data, to be released by whoever has it."""

from __future__ import annotations

import json

from attrs import asdict, field, fields, frozen

from ._endpoint import Endpoint
from ._errors import InvalidArgumentError


@frozen(kw_only=True)
class InstanceHandle(Endpoint):
    """An acquired instance. Holds no secret: it can be pickled, or written as JSON, and sent anywhere.

    Attributes:
        instance_id: Its id.
        base_url: Its OpenAI-compatible endpoint; ends in `/v1`.
        model: The name to give as `model` to the endpoint.
        account: Fingerprint of the account that it belongs to.
        expires_at: Unix time in seconds at which it is released by itself; None for never.
    """

    instance_id: str
    base_url: str
    model: str
    account: str = field(repr=False)
    expires_at: float | None = None

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InstanceHandle:
        """From the text that `to_json` gave.

        Raises:
            InvalidArgumentError: for any other text.
        """
        try:
            data = json.loads(text)
            return cls(**{each.name: data[each.name] for each in fields(cls)})
        except (ValueError, TypeError, KeyError):
            raise InvalidArgumentError("this is not the JSON of an InstanceHandle") from None

    @property
    def _where(self) -> tuple[str, str]:
        return self.base_url, self.model
