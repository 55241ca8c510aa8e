"""What a client tells about its leases, and the seam through which it does, so that it never does harm.

Nothing here waits, and nothing that a `Telemetry` raises gets out: a release happens all the same, and when
it would have. It is called by the task that has the lease, or that releases it; never by the garbage
collector, which may interrupt the very code that an exporter holds a lock in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from attrs import frozen

from ._errors import ConfigurationError
from ._http.messages import Failure, FailureKind
from ._logging import Event, log

Phase = Literal["lease", "start", "wait", "body", "teardown"]
Outcome = Literal["ok", "error", "cancelled", "abandoned"]
Operation = Literal["instance", "acquire", "attach", "release"]
Source = Literal["started", "adopted", "restarted", "found"]


@frozen(kw_only=True)
class LeaseInfo:
    """A lease as it is at the moment.

    Attributes:
        operation: The method of the client that it comes from.
        model: Hugging Face name; empty while it is not known.
        hardware_type_id: None while it is not known.
        num_workers: None while it is not known.
        instance_id: None while it is not known.
        source: Where the instance came from: `started`; `adopted`, which is started as well, but the answer
            was lost and the instance found again; `restarted`; or `found`, running. None while it is not
            known.
        request_id: The service's name for the start's request, where it gave one.
        cost: At the end of the lease, about what it has cost, where a price is known. None for what was
            found: somebody else pays for that.
        currency: Of `cost`, as the service names it.
    """

    operation: Operation
    model: str = ""
    hardware_type_id: str | None = None
    num_workers: int | None = None
    instance_id: str | None = None
    source: Source | None = None
    request_id: str | None = None
    cost: float | None = None
    currency: str = ""


@frozen(kw_only=True)
class PhaseEnd:
    """How a phase ended.

    Attributes:
        outcome: `ok`; `error`; `cancelled`, by whatever is no `Exception`: a cancellation, Ctrl-C; or
            `abandoned`: nobody could release it here, and the reaper does.
        seconds: How long it took.
        elapsed: Seconds from the beginning of the lease. At the end of `wait`: how long it took to run.
        error: What it raised, unless the outcome is `ok` or `abandoned`.
    """

    outcome: Outcome
    seconds: float
    elapsed: float
    error: BaseException | None = None


@frozen(kw_only=True)
class RequestRetry:
    """A request that is sent again.

    Attributes:
        method: HTTP method.
        route: Path below the API base URL, with `{id}` where an id stands.
        status: HTTP status of the answer; None when there was none.
        reason: That status, or what happened to the request: `timed out`, `lost`, `not sent`, `unreadable`.
        attempt: How often it was sent so far.
        wait: Seconds until it is sent again.
        request_id: The service's name for it, where it gave one.
    """

    method: str
    route: str
    status: int | None
    reason: str
    attempt: int
    wait: float
    request_id: str | None


class Telemetry:
    """Is told what a client does: `AsyncCortecs(telemetry=...)`. Does nothing; override what is wanted.

    Its methods are called in the event loop and must return at once: hand things on, and send nothing. What
    they raise is logged once and otherwise ignored.
    """

    def begin(self, phase: Phase, lease: LeaseInfo, parent: Any) -> Any:  # noqa: ARG002  (for those who override it)
        """A phase begins, in the task that goes through it.

        A lease consists of `start`, `wait`, `body` and `teardown`, one after the other, as far as it comes.

        Args:
            phase: Which.
            lease: The lease as it is now.
            parent: What this method returned for the lease, when it is a phase of one.

        Returns:
            Whatever is to be handed to `end`.
        """
        return None

    def end(self, phase: Phase, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        """A phase has ended: once for each that began.

        Args:
            phase: Which.
            lease: The lease as it is now.
            begun: What `begin` returned.
            end: How it ended.
        """

    def retry(self, retry: RequestRetry) -> None:
        """A request failed and will be sent again."""


class Observer:
    """One client's telemetry, or none."""

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        if telemetry is not None and not isinstance(telemetry, Telemetry):
            raise ConfigurationError(
                "telemetry must be an instance of a subclass of cortecs_async.types.Telemetry, "
                f"not {telemetry!r}"
            )
        self._telemetry = telemetry
        self._has_failed = False
        self._abandoned: deque[Report] = deque()

    @property
    def is_on(self) -> bool:
        """Whether anybody listens."""
        return self._telemetry is not None

    def begin(self, phase: Phase, lease: LeaseInfo, parent: Any) -> Any:
        """See `Telemetry`."""
        return None if self._telemetry is None else self._telemetry.begin(phase, lease, parent)

    def end(self, phase: Phase, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        """See `Telemetry`."""
        if self._telemetry is not None:
            self._telemetry.end(phase, lease, begun, end)

    def retry(self, method: str, path: str, failure: Failure, *, attempt: int, wait: float) -> None:
        """See `Telemetry`."""
        if self._telemetry is None:
            return
        retry = RequestRetry(
            method=method,
            route=_route(method, path),
            status=failure.status,
            reason=str(failure.status) if failure.kind is FailureKind.STATUS else failure.kind.value,
            attempt=attempt,
            wait=wait,
            request_id=failure.request_id,
        )
        try:
            self._telemetry.retry(retry)
        except (KeyboardInterrupt, SystemExit):
            raise  # a signal's
        except BaseException:  # noqa: BLE001  (somebody else's code)
            self.failed("retry")

    def failed(self, call: str) -> None:
        """Says once that telemetry is broken; called where its exception is handled."""
        if not self._has_failed:
            self._has_failed = True
            log(Event.TELEMETRY_FAILED, exc_info=True, call=call)

    def abandon(self, report: Report) -> None:
        """Keeps what the garbage collector found, which must not be told by it."""
        if self._telemetry is not None:
            self._abandoned.append(report)

    def catch_up(self) -> None:
        """Tells what was kept."""
        while self._abandoned:
            try:
                report = self._abandoned.popleft()
            except IndexError:  # another thread's collector is here as well
                return
            report.tell_abandoned()


class Report:
    """Tells of one lease.

    A KeyboardInterrupt or SystemExit out of somebody else's code is a signal's, not that code's. It is let
    through where a lease is opened; where one is released it is kept in `interruption` until that is done.

    Args:
        observer: The client's.
        look: Gives the lease as it is; must not refer to it so that it lives on when everybody drops it.
        clock: That of the event loop.
    """

    def __init__(self, observer: Observer, look: Callable[[], LeaseInfo], clock: Callable[[], float]) -> None:
        self._observer = observer
        self._look = look
        self._clock = clock
        self._lease: _Begun | None = None
        self._phase: _Begun | None = None
        self._began_at = 0.0
        self._abandoned_at = 0.0
        self.interruption: BaseException | None = None

    def begin(self) -> None:
        """The lease is entered."""
        if not self._observer.is_on:
            return
        self._observer.catch_up()
        self._began_at = self._clock()
        self._lease = self._begin("lease")
        self.let_through()

    def turn(self, phase: Phase) -> None:
        """The phase that was has ended well, and this one begins."""
        if not self._observer.is_on:
            return
        self.leave(None)
        self._phase = self._begin(phase)
        self.let_through()

    def tear_down(self) -> None:
        """`turn` to the teardown, which may be begun again after an interruption."""
        if self._observer.is_on and self._phase is None:
            self._phase = self._begin("teardown")

    def leave(self, error: BaseException | None) -> None:
        """The phase, if one was begun, has ended; `error` went out of it."""
        phase, self._phase = self._phase, None
        self._end(phase, _outcome(error), error, self._clock)

    def end(self, error: BaseException | None) -> None:
        """The lease has ended, all told."""
        self.leave(error)
        lease, self._lease = self._lease, None
        self._end(lease, _outcome(error), error, self._clock)

    def abandon(self) -> None:
        """It is left to the reaper. Safe wherever it is called, in a `__del__` say."""
        if self._lease is not None:
            self._abandoned_at = self._clock()
            self._observer.abandon(self)

    def tell_abandoned(self) -> None:
        """Tells that, later."""
        for begun in (self._phase, self._lease):
            self._end(begun, "abandoned", None, lambda: self._abandoned_at)
        self._phase = self._lease = None

    def _begin(self, phase: Phase) -> _Begun:
        begun = _Begun(phase, self._clock())
        parent = self._lease.value if self._lease is not None else None
        try:
            begun.value = self._observer.begin(phase, self._look(), parent)
        except BaseException as error:  # noqa: BLE001  (somebody else's code)
            self._caught(error, "begin")
            begun.is_told = False
        return begun

    def _end(
        self,
        begun: _Begun | None,
        outcome: Outcome,
        error: BaseException | None,
        clock: Callable[[], float],
    ) -> None:
        if begun is None or not begun.is_told:
            return
        now = clock()
        end = PhaseEnd(outcome=outcome, seconds=now - begun.at, elapsed=now - self._began_at, error=error)
        try:
            self._observer.end(begun.phase, self._look(), begun.value, end)
        except BaseException as raised:  # noqa: BLE001  (somebody else's code)
            self._caught(raised, "end")

    def _caught(self, error: BaseException, call: str) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.interruption = error
        else:
            self._observer.failed(call)

    def let_through(self) -> None:
        """Raises what was kept.

        Raises:
            BaseException: a KeyboardInterrupt or SystemExit.
        """
        error, self.interruption = self.interruption, None
        if error is not None:
            raise error


class _Begun:
    """A phase that has begun, and what telemetry made of it."""

    __slots__ = ("at", "is_told", "phase", "value")

    def __init__(self, phase: Phase, at: float) -> None:
        self.phase: Phase = phase
        self.at = at
        self.value: Any = None
        self.is_told = True


def _route(method: str, path: str) -> str:
    head, _, last = path.rpartition("/")
    # Of an instance, the id stands in the path of these methods only.
    is_instance = head == "/instances" and method in {"GET", "DELETE"} and last != "delete-all"
    return f"{head}/{{id}}" if last and (is_instance or head == "/models") else path


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "ok"
    return "error" if isinstance(error, Exception) else "cancelled"
