"""One start: how far it is, and the witness of its requests."""

from __future__ import annotations

import enum
from collections.abc import Callable

import anyio
from attrs import define

from .._api.domain import Instance, InstanceArgs
from .._api.matching import Claims, UnresolvedStart
from .._api.wire import decode_instance
from .._config import RetryPolicy
from .._errors import DecodeError
from .._http.messages import Failure, FailureKind, Reply
from .._http.retry import may_have_taken_effect


class StartState(enum.Enum):
    """How far a start is."""

    NOT_STARTED = "nothing was started"
    SENT = "sent, and no answer yet"
    UNKNOWN = "nobody knows whether it worked"
    STARTED = "its instance is known"
    AMBIGUOUS = "its instance cannot be told from others"
    GIVEN_UP = "nobody here looks for it any more"


@define(eq=False)
class StartAttempt:
    """One lease's start, and the witness of its requests.

    Attributes:
        args: What to start.
        policy: For the time in which a lost start may still show itself.
        claims: What else its client has started.
        on_started: Called with the instance as soon as it is known, cancelled or not.
        key: Its entry in the books, while it is open.
        adopted: Whether its answer was lost, and its instance found again.
        request_id: The service's name for the last attempt, where it gave one.
        sent_at: When the last attempt was sent, from which billing counts, in seconds of
            `anyio.current_time`.
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
    visible_until: float = 0.0
    candidates: tuple[str, ...] = ()

    def sending(self) -> None:
        """See `Witness`."""
        self.state = StartState.SENT
        self.sent_at = anyio.current_time()
        self.claims.begin_request(self.args.model_id)

    def settled(self, outcome: Reply | Failure) -> None:
        """See `Witness`."""
        self.claims.end_request(self.args.model_id)
        self.request_id = outcome.request_id
        if isinstance(outcome, Reply):
            try:
                self.started(outcome.decode(decode_instance))
            except DecodeError:
                self._lose(Failure(kind=FailureKind.UNREADABLE, status=outcome.status))
        elif may_have_taken_effect("POST", outcome):
            self._lose(outcome)
        else:
            self.state = StartState.NOT_STARTED
            self.failure = outcome

    def started(self, instance: Instance) -> None:
        """Its instance is known."""
        self.resolved(StartState.STARTED)
        self.claims.ids.add(instance.instance_id)
        self.on_started(instance)

    def resolved(self, state: StartState) -> None:
        """It is known what it made, or nobody looks for it any more."""
        self.state = state
        if self.unresolved is not None:
            self.claims.resolve(self.args.model_id, self.unresolved)

    def interrupted(self) -> None:
        """No outcome will be told any more: the loop was broken off in the middle of the request."""
        if self.state is StartState.SENT:
            self.settled(Failure(kind=FailureKind.TIMED_OUT))

    def _lose(self, failure: Failure) -> None:
        self.state = StartState.UNKNOWN
        self.failure = failure
        if self.unresolved is not None:
            self.claims.add_unresolved(self.args.model_id, self.unresolved)
        window = self.policy.adoption_window
        # A service that has hung up or answered is done; one that is slow may come to it yet.
        self.visible_until = anyio.current_time() + (
            window if failure.kind is FailureKind.TIMED_OUT else window / 6
        )
