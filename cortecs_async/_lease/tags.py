"""Tag starts by a context length that is slightly smaller: `AsyncCortecs(tag_starts=True)`.

The service has no tags. A start that asks for 31,847 tokens instead of 32,000 can be told apart from the
equal start of someone else, because the arguments of an instance are part of its description.
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
    """The tags of one client's starts.

    Attributes:
        enabled: Whether starts are tagged. False as soon as the service does not return a tag.
    """

    models: Models
    rng: random.Random
    enabled: bool
    _defaults: dict[InstanceArgs, int] = field(factory=dict)

    async def new_tag(self, args: InstanceArgs) -> int | None:
        """Return the context length to send, which is the tag; None for a start without one.

        A start gets no tag if its context length is neither given nor known: the model might not allow the
        one that would be sent.
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
        """Return whether the response to a start has its tag. If not, tag no more starts."""
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
