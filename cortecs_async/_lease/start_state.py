"""The state of a start or restart request: the data sent, and the known facts about the outcome."""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from attrs import define, field

from .._aio.clock import suspended
from .._aio.tasks import DetachedTask
from .._api.domain import Instance, InstanceArgs
from .._api.matching import Claims, UnresolvedStart
from .._api.recent_lists import RecentLists
from .._api.wire import decode_started
from .._config import RetryPolicy
from .._errors import DecodeError
from .._http.messages import Failure, FailureKind, Reply
from .._http.retry import may_have_taken_effect
from .._recovery.records import Record


class StartState(enum.Enum):
    """The progress of a start request."""

    NOT_STARTED = "nothing was started"
    SENT = "sent, no response yet"
    UNKNOWN = "no usable response: it may have worked"
    STARTED = "its instance is known"
    AMBIGUOUS = "several instances match it"
    NOT_SEEN = "no instance has appeared yet"
    GIVEN_UP = "search given up in this process"


@define(eq=False)
class StartAttempt:
    """A lease's attempts to start an instance. Receives the outcome of its requests.

    Attributes:
        policy: The policy that sets how long to search for the instance of an unresolved start.
        claims: The client's other starts.
        on_started: Called with the instance as soon as it is known, even if the caller was cancelled.
        on_sent: Called each time the request is sent.
        on_refused: Called each time it is certain that the request did not start anything.
        bill: Returns the bill of the promise for a request with these arguments (see `Promise.bill`).
        key: The key of its open record, or None if there is none.
        instance_id: The id of its instance, once it is known.
        adopted: Whether the instance was found in a list, without a response.
        request_id: The service's id for the last request, if it sent one.
        sent_at: The time the last request was sent, in seconds of `anyio.current_time`; billing starts here.
        suspended_before: The value of `suspended` at that time.
        unresolved: The start request in the form that is matched with instances; set before the request is
            sent.
        failure: How the last request failed.
        window: Seconds the lease waits for the instance of an unresolved start.
        recent: The instances shown by lists since the last request.
        not_seen: Earlier requests whose instance did not appear in time, by the keys of their records.
    """

    args: InstanceArgs
    policy: RetryPolicy
    claims: Claims
    on_started: Callable[[Instance], None]
    on_sent: Callable[[], object] = bool
    on_refused: Callable[[], object] = bool
    bill: Callable[[InstanceArgs], Record] = lambda _: {}
    state: StartState = StartState.NOT_STARTED
    key: str | None = None
    instance_id: str | None = None
    adopted: bool = False
    request_id: str | None = None
    sent_at: float = 0.0
    suspended_before: float = 0.0
    unresolved: UnresolvedStart | None = None
    failure: Failure | None = None
    window: float = 0.0
    recent: RecentLists = field(factory=lambda: RecentLists(0.0))
    not_seen: list[str] = field(factory=list)
    _request: DetachedTask[Reply | Failure] | None = None
    _visible_until: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it may have created an unknown instance."""
        return self.state in {StartState.SENT, StartState.UNKNOWN}

    @property
    def visible_until(self) -> float:
        """The time at which to stop waiting for the instance, in seconds of `anyio.current_time`."""
        has_response = self._request is None or not self._request.is_running
        return self._visible_until if has_response else math.inf

    def sending(self, request: DetachedTask[Reply | Failure], /) -> bool:
        self.state = StartState.SENT
        self.sent_at = anyio.current_time()
        self.suspended_before = suspended()
        self.claims.begin_request(self.args.model_id)
        self._request = request
        self.on_sent()
        return True

    def settled(self, outcome: Reply | Failure) -> None:
        """Classify the outcome of the request: started, nothing started, or unknown."""
        if self.state is StartState.SENT:
            self.claims.end_request(self.args.model_id)
        self.request_id = outcome.request_id
        if isinstance(outcome, Reply):
            try:
                instance = outcome.decode(partial(decode_started, args=self.args))
            except DecodeError:
                outcome = Failure(kind=FailureKind.UNREADABLE, status=outcome.status)
            else:
                # Better evidence than a list in which the lease found an instance in the meantime.
                self.adopted = False
                self.started(instance)
                return
        if not self.is_open:
            return
        if may_have_taken_effect("POST", outcome):
            self._set_unknown(outcome)
        else:
            self.resolved(StartState.NOT_STARTED)
            self.failure = outcome
            self.on_refused()

    def started(self, instance: Instance) -> None:
        self.resolved(StartState.STARTED)
        self.instance_id = instance.instance_id
        self.claims.ids.add(instance.instance_id)
        self.on_started(instance)

    def resolved(self, state: StartState) -> None:
        """Set the state and end the search for the instance."""
        self.state = state
        if self.unresolved is not None:
            self.claims.resolve(self.args.model_id, self.unresolved)

    def interrupted(self) -> None:
        """Count a request without a response as unresolved, because its caller was cancelled."""
        if self.state is StartState.SENT:
            self.claims.end_request(self.args.model_id)
            self._set_unknown(Failure(kind=FailureKind.TIMED_OUT))

    def give_up(self) -> None:
        """Leave the search to the reaper and `sweep`."""
        self.interrupted()
        self.resolved(StartState.GIVEN_UP)

    async def wait_for_response(self, timeout: float) -> bool:
        """Wait for the response to a request in progress, for at most `timeout` seconds.

        Returns:
            Whether the outcome of the start request is known.
        """
        if self._request is not None and self._request.is_running:
            with anyio.move_on_after(timeout):
                await self._request.join()
        else:
            await anyio.sleep(timeout)
        return not self.is_open

    async def end_request(self) -> None:
        """Close the connection of a request that is still in progress and whose outcome is not needed."""
        if self._request is not None:
            await self._request.cancel()

    def _set_unknown(self, failure: Failure) -> None:
        if self.state is not StartState.UNKNOWN and self.unresolved is not None:
            self.claims.add_unresolved(self.args.model_id, self.unresolved)
        self.state = StartState.UNKNOWN
        self.failure = failure
        # After a timeout, the service may still be working on the request. Otherwise, it has probably
        # finished.
        self.window = self.policy.adoption_window / (1 if failure.kind is FailureKind.TIMED_OUT else 6)
        self._visible_until = anyio.current_time() + self.window


@define(eq=False)
class RestartAttempt:
    """A lease's attempts to restart an instance. Receives the outcome of its requests.

    Attributes:
        disown: A function that forgets the instance, because nothing was restarted. It returns the key of the
            open record, if any.
        failure: How the last request failed.
        may_have_worked: Whether any request may have worked.
    """

    disown: Callable[[], str | None]
    failure: Failure | None = None
    may_have_worked: bool = False
    _request: DetachedTask[Reply | Failure] | None = None
    _has_outcome: bool = True

    def sending(self, request: DetachedTask[Reply | Failure], /) -> bool:
        self.failure, self._has_outcome, self._request = None, False, request
        return True

    def settled(self, outcome: Reply | Failure) -> None:
        self._has_outcome = True
        self.failure = outcome if isinstance(outcome, Failure) else None
        if self.failure is None or may_have_taken_effect("POST", self.failure):
            self.may_have_worked = True

    def is_refused(self) -> bool:
        """Return whether nothing was restarted because the service rejected every request sent."""
        return self._has_outcome and not self.may_have_worked

    @property
    def lacked_capacity(self) -> bool:
        """Whether nothing was restarted because the service itself reported that there is no capacity."""
        failure = self.failure
        return self.is_refused() and failure is not None and failure.status == 503 and bool(failure.reason)

    async def end(self, is_restarted: Callable[[], Awaitable[object]]) -> None:
        """Wait until the request has an outcome or `is_restarted` returns, so that no stop overtakes it."""
        if self._request is None or not self._request.is_running:
            return
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                # If the instance cannot be parsed, only the response shows the outcome.
                with contextlib.suppress(Exception):
                    await is_restarted()
                    tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._request.join()
            tasks.cancel_scope.cancel()
        await self._request.cancel()
