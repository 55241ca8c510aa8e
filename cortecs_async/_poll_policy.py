"""`PollPolicy`, in a module of its own, because only requests for instances need it."""

from __future__ import annotations

import attrs
from attrs import field, frozen

from ._durations import Duration as Duration  # noqa: PLC0414  (in the annotations that attrs generates)
from ._durations import as_seconds
from ._fields import at_least
from ._hints import hinted


@hinted
@frozen(kw_only=True)
class PollPolicy:
    """The polling intervals. The service does not send events, so the client polls for changes.

    The time between two polls is the time waited so far times `growth`, but at least `min_interval` and at
    most `max_interval`. The response time counts toward it when the client polls for one instance. Even then,
    the client pauses for at least half of the time, so a slow service is polled less often.

    Specify each time as seconds, a `timedelta`, or a string such as "90s". The attributes are seconds.

    Attributes:
        min_interval: Minimum time between two polls, in seconds.
        max_interval: Maximum time between two polls, in seconds. cortecs.ai's own client always waits 5 s.
        growth: The time between two polls as a share of the time waited so far.
        settle: Seconds after starting an instance during which a poll that shows the instance stopped is
            ignored. A poll that does not find the instance is ignored for six times as long.
        lost_interval: Seconds between two polls of a leased instance during the block.
        max_outage: Seconds of failing polls after which a wait raises the last error.
        stall_timeout: Seconds without any change after which starting fails. If None, only the
            deadline counts.

    Example:
        policy = PollPolicy(max_interval=2.0, lost_interval="30s")
        async with AsyncCortecs(poll_policy=policy) as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)
    """

    min_interval: float = field(default=0.5, converter=as_seconds, validator=at_least(0.01))
    max_interval: float = field(default=5.0, converter=as_seconds, validator=at_least(0.01))
    growth: float = field(default=0.1, validator=at_least(0))
    settle: float = field(default=10.0, converter=as_seconds, validator=at_least(0))
    lost_interval: float = field(default=10.0, converter=as_seconds, validator=at_least(0.01))
    max_outage: float = field(default=600.0, converter=as_seconds, validator=at_least(0))
    stall_timeout: float | None = field(
        default=None,
        converter=attrs.converters.optional(as_seconds),
        validator=attrs.validators.optional(at_least(0.01)),
    )
