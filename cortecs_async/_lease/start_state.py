"""The state of one start: what was sent, and what is known of the outcome."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial

import anyio
from attrs import define, field

from .._api.domain import Instance, InstanceArgs
from .._api.listing import RecentLists
from .._api.matching import Claims, UnresolvedStart
from .._api.wire import decode_started
from .._config import RetryPolicy
from .._errors import DecodeError
from .._http.messages import Failure, FailureKind, Reply
from .._http.retry import may_have_taken_effect


class StartState(enum.Enum):
    """How far a start is."""

    NOT_STARTED = "nothing was started"
    SENT = "sent, no response yet"
    UNKNOWN = "no usable response: it may have worked"
    STARTED = "its instance is known"
    AMBIGUOUS = "several instances match it"
    NOT_SEEN = "no instance has appeared yet"
    GIVEN_UP = "search given up in this process"


@define(eq=False)
class StartAttempt:
    """The start of one lease. It receives the outcome of its requests.

    Attributes:
        policy: Sets how long the instance of an unresolved start is searched for.
        claims: The other starts of the client.
        on_started: Called with the instance as soon as it is known, even if the caller was cancelled.
        key: The key of its open record; None without one.
        adopted: Whether the response was lost and the instance was found in a list.
        request_id: The service's id of the last request, if it sent one.
        sent_at: When the last request was sent, in seconds of `anyio.current_time`; billing counts from here.
        unresolved: This start, as it is matched with instances; set before the request is sent.
        failure: How the last request failed.
        window: For how many seconds the lease waits for the instance of an unresolved start.
        visible_until: When that ends, on the same clock.
        recent: What the lists since the last request have shown.
        not_seen: Earlier requests whose instance has not appeared in time, by the keys of their records.
    """

    args: InstanceArgs
    policy: RetryPolicy
    claims: Claims
    on_started: Callable[[Instance], None]
    state: StartState = StartState.NOT_STARTED
    key: str | None = None
    adopted: bool = False
    request_id: str | None = None
    sent_at: float = 0.0
    unresolved: UnresolvedStart | None = None
    failure: Failure | None = None
    window: float = 0.0
    visible_until: float = 0.0
    recent: RecentLists = field(factory=lambda: RecentLists(0.0))
    not_seen: list[str] = field(factory=list)

    @property
    def is_open(self) -> bool:
        """Whether it may have created an instance that is not known."""
        return self.state in {StartState.SENT, StartState.UNKNOWN}

    def sending(self) -> None:
        self.state = StartState.SENT
        self.sent_at = anyio.current_time()
        self.claims.begin_request(self.args.model_id)

    def settled(self, outcome: Reply | Failure) -> None:
        """Classify the outcome of the request: started, nothing started, or unknown."""
        self.claims.end_request(self.args.model_id)
        self.request_id = outcome.request_id
        if isinstance(outcome, Reply):
            try:
                self.started(outcome.decode(partial(decode_started, args=self.args)))
            except DecodeError:
                self._set_unknown(Failure(kind=FailureKind.UNREADABLE, status=outcome.status))
        elif may_have_taken_effect("POST", outcome):
            self._set_unknown(outcome)
        else:
            self.state = StartState.NOT_STARTED
            self.failure = outcome

    def started(self, instance: Instance) -> None:
        self.resolved(StartState.STARTED)
        self.claims.ids.add(instance.instance_id)
        self.on_started(instance)

    def resolved(self, state: StartState) -> None:
        """Set the state, and end the search for the instance."""
        self.state = state
        if self.unresolved is not None:
            self.claims.resolve(self.args.model_id, self.unresolved)

    def interrupted(self) -> None:
        """Set the outcome of a request that is still open: its event loop was stopped in the middle of it."""
        if self.state is StartState.SENT:
            self.settled(Failure(kind=FailureKind.TIMED_OUT))

    def _set_unknown(self, failure: Failure) -> None:
        self.state = StartState.UNKNOWN
        self.failure = failure
        if self.unresolved is not None:
            self.claims.add_unresolved(self.args.model_id, self.unresolved)
        # After a timeout, the service may still be at work. Otherwise it has most likely finished.
        self.window = self.policy.adoption_window / (1 if failure.kind is FailureKind.TIMED_OUT else 6)
        self.visible_until = anyio.current_time() + self.window
