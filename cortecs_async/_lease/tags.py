"""Tag start requests with a slightly smaller context length: `AsyncCortecs(tag_starts=True)`.

The service does not support tags. A start request for 31,847 tokens instead of 32,000 can be distinguished
from another user's identical request, because an instance's description includes its arguments.
"""

from __future__ import annotations

import math
import random

from attrs import define, field

from .._api.domain import Instance, InstanceArgs
from .._api.matching import MAX_TAG_SHARE, with_defaults
from .._api.resources import Models
from .._errors import CortecsError
from .._logging import Event, log


@define
class StartTags:
    """The tags for one client's starts.

    Attributes:
        enabled: Whether start requests are tagged. False once the service does not return a tag.
    """

    models: Models
    rng: random.Random
    enabled: bool
    _defaults: dict[InstanceArgs, int] = field(factory=dict)

    async def new_tag(self, args: InstanceArgs) -> int | None:
        """Return the context length to send as the tag, or None to send the start request without a tag.

        A start request does not get a tag if its context length is neither given nor known, because the model
        might not allow the length that would be sent.
        """
        if not self.enabled:
            return None
        context_length = args.context_length or await self._default(args)
        most = math.ceil(context_length * MAX_TAG_SHARE) - 1
        return context_length - self.rng.randint(1, most) if most >= 1 else None

    async def _default(self, args: InstanceArgs) -> int:
        if args not in self._defaults:
            try:
                model = await self.models.get(args.model_id)
            except CortecsError:
                return 0
            self._defaults[args] = with_defaults(args, model).context_length or 0
        return self._defaults[args]

    def is_returned(self, tag: int, instance: Instance) -> bool:
        """Return whether the response to a start request contains its tag. If not, stop tagging."""
        if instance.instance_args.context_length == tag:
            return True
        if self.enabled:
            self.enabled = False
            log(
                Event.LEASE_TAG_NOT_RETURNED,
                instance_id=instance.instance_id,
                model=instance.instance_args.hf_name,
            )
        return False
