"""Tag starts by a context length that is slightly smaller: `AsyncCortecs(tag_starts=True)`.

The service has no tags. A start that asks for 31,847 tokens instead of 32,000 can be told apart from the
equal start of somebody else, because the arguments of an instance are part of its description.
"""

from __future__ import annotations

import math
import random

from attrs import define, evolve, field

from .._api.domain import Instance, InstanceArgs
from .._api.matching import MAX_TAG_SHARE, with_defaults
from .._api.resources import Models
from .._errors import CortecsError
from .._logging import Event, log


@define
class StartTags:
    """The tags of one client's starts.

    Attributes:
        enabled: Whether starts are tagged. It ends when the service does not return a tag.
    """

    models: Models
    rng: random.Random
    enabled: bool
    _defaults: dict[InstanceArgs, int] = field(factory=dict)

    async def apply(self, args: InstanceArgs) -> tuple[InstanceArgs, int | None]:
        """Return the arguments with a tag, and the context length without it; None if there is no tag.

        Without a given or known context length, the start gets no tag: the model might not allow the length.
        """
        if not self.enabled:
            return args, None
        context_length = args.context_length or await self._default(args)
        most = math.ceil(context_length * MAX_TAG_SHARE) - 1
        if most < 1:
            return args, None
        return evolve(args, context_length=context_length - self.rng.randint(1, most)), context_length

    async def _default(self, args: InstanceArgs) -> int:
        if args not in self._defaults:
            try:
                model = await self.models.get(args.model_id)
            except CortecsError:
                return 0
            self._defaults[args] = with_defaults(args, model).context_length or 0
        return self._defaults[args]

    def check_echo(self, sent: InstanceArgs, instance: Instance) -> None:
        """Stop tagging if the service does not return the tag."""
        if self.enabled and instance.instance_args.context_length != sent.context_length:
            self.enabled = False
            log(Event.LEASE_TAG_NOT_RETURNED, instance_id=instance.instance_id, model=sent.hf_name)
