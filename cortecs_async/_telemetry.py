"""Telemetry: the lease events a client reports, isolated from errors in user code.

Nothing here waits, and no error in a `Telemetry` leaves this module, so it cannot prevent or delay a release.
The task that holds or releases the lease calls it. The garbage collector never does, because it could
interrupt an exporter that holds a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from attrs import define, field, frozen

from ._errors import ConfigurationError
from ._http.messages import Failure, FailureKind
from ._logging import Event, log

Phase = Literal["lease", "start", "wait", "body", "teardown"]
Outcome = Literal["ok", "error", "cancelled", "abandoned"]
Operation = Literal["instance", "acquire", "attach", "release"]
Source = Literal["started", "adopted", "restarted", "found"]


@frozen(kw_only=True)
class LeaseInfo:
    """The current state of a lease, as passed to `Telemetry`.

    Attributes:
        operation: The client method that created the lease.
        model: The model's Hugging Face name, or an empty string while unknown.
        hardware_type_id: Hardware type, or None while unknown.
        num_workers: Number of workers, or None while unknown.
        instance_id: Id of the instance, or None while unknown.
        source: The origin of the instance. `started`; `adopted`: started, but the response was lost and the
            instance was found afterward; `restarted`; or `found`: it was already running. The value is None
            while unknown.
        request_id: The service's id for the start request, or None if it did not send one.
        cost: Estimated cost, set at the end of the lease, or None if no price is known, or if the instance
            was `found`, because its owner pays for it.
        currency: The currency of `cost`, as reported by the service.
        hardware_reason: Why this hardware type was used, or an empty string if there was no choice. See
            `Receipt`.
        capacity_wait: Seconds the lease waited for capacity before the start request was sent.

    Example:
        class Bill(Telemetry):
            def end(self, phase, lease, begun, end):
                if phase == "lease":
                    print(lease.instance_id, lease.source, lease.cost, lease.currency)

        async with AsyncCortecs(telemetry=Bill()) as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct"):
                ...
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
    hardware_reason: str = ""
    capacity_wait: float = 0.0


@frozen(kw_only=True)
class PhaseEnd:
    """The outcome of a phase of a lease, as passed to `Telemetry.end`.

    Attributes:
        outcome: `ok`; `error`; `cancelled`: ended by a cancellation, Ctrl-C, or anything else that is not an
            `Exception`; or `abandoned`: the lease was never exited, and the reaper or `sweep` releases the
            instance.
        seconds: Duration of the phase.
        elapsed: Seconds since the lease began. At the end of `wait`, this is the time until the instance was
            running.
        error: The exception, or None if the outcome is `ok` or `abandoned`. If it does not come from this
            package, its text may contain secrets.
        redact: A function that returns a text without the secrets used by the client: credentials, tokens,
            and inference API keys.

    Example:
        class Failures(Telemetry):
            def end(self, phase, lease, begun, end):
                if end.outcome == "error":
                    print(phase, end.seconds, end.redact(str(end.error)))

        async with AsyncCortecs(telemetry=Failures()) as client:
            await client.models.list()
    """

    outcome: Outcome
    seconds: float
    elapsed: float
    error: BaseException | None = None
    redact: Callable[[str], str] = field(default=str, repr=False, eq=False)


@frozen(kw_only=True)
class RequestRetry:
    """A request that failed and will be sent again, as passed to `Telemetry.retry`.

    Attributes:
        method: HTTP method.
        route: Path below the API base URL, with `{id}` in place of an id.
        status: HTTP status of the response, or None if there was no response.
        reason: The status, or how the request failed: `timed out`, `lost`, `not sent`, `unreadable`.
        attempt: Number of times it has been sent so far.
        wait: Seconds until it is sent again.
        request_id: Request id of the response, or None if it has none.

    Example:
        class Retries(Telemetry):
            def retry(self, retry):
                print(retry.method, retry.route, retry.reason, f"again in {retry.wait:.1f} s")

        async with AsyncCortecs(telemetry=Retries()) as client:
            await client.models.list()
    """

    method: str
    route: str
    status: int | None
    reason: str
    attempt: int
    wait: float
    request_id: str | None


class Telemetry:
    """Receive lease lifecycle events: `AsyncCortecs(telemetry=...)`. Override the methods you need.

    The client calls the methods in the event loop, so they must return immediately: queue data and send it in
    another thread. The first exception they raise is logged, and any others are ignored.

    Example:
        from cortecs_async.types import Telemetry

        class Log(Telemetry):
            def end(self, phase, lease, begun, end):
                print(f"{lease.instance_id}: {phase} {end.outcome} after {end.seconds:.1f} s")

        async with AsyncCortecs(telemetry=Log()) as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct"):
                ...
    """

    def begin(self, phase: Phase, lease: LeaseInfo, parent: Any) -> Any:  # noqa: ARG002  (for those who override it)
        """Begin a phase. Called in the task of the phase.

        The phase `lease` spans the whole lease. It contains `start`, `wait`, `body`, and `teardown`, in this
        order. Phases that the lease does not reach are not reported.

        Args:
            phase: The phase.
            lease: The current state of the lease.
            parent: The value this method returned for the phase `lease`. None is passed for that phase
                itself.

        Returns:
            Any value. It is passed to `end`.

        Example:
            class Spans(Telemetry):
                def begin(self, phase, lease, parent):
                    print("begin", phase, lease.model)
                    return phase

            async with AsyncCortecs(telemetry=Spans()) as client:
                await client.models.list()
        """
        return None

    def end(self, phase: Phase, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        """End a phase. Called once for each phase that began.

        Args:
            phase: The phase.
            lease: The current state of the lease.
            begun: The value `begin` returned.
            end: The outcome of the phase.

        Example:
            class TimeToRunning(Telemetry):
                def end(self, phase, lease, begun, end):
                    if phase == "wait" and end.outcome == "ok":
                        print(f"{lease.model} was running after {end.elapsed:.0f} s")

            async with AsyncCortecs(telemetry=TimeToRunning()) as client:
                await client.models.list()
        """

    def retry(self, retry: RequestRetry) -> None:
        """Record that a request failed and will be sent again.

        Example:
            class Retries(Telemetry):
                count = 0

                def retry(self, retry):
                    self.count += 1

            async with AsyncCortecs(telemetry=Retries()) as client:
                await client.models.list()
        """


class Observer:
    """A client's telemetry, if it has one."""

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        if telemetry is not None and not isinstance(telemetry, Telemetry):
            raise ConfigurationError(
                "telemetry must be an instance of a subclass of cortecs_async.types.Telemetry, "
                f"not {telemetry!r}"
            )
        self.telemetry = telemetry
        self.redact: Callable[[str], str] = str
        self._has_failed = False
        # Reports of leases dropped by the garbage collector, which must not call the telemetry itself.
        self.abandoned: deque[Report] = deque()

    def retry(self, method: str, path: str, failure: Failure, *, attempt: int, wait: float) -> None:
        if self.telemetry is None:
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
            self.telemetry.retry(retry)
        except (KeyboardInterrupt, SystemExit):
            raise  # from a signal handler
        except BaseException:  # noqa: BLE001  (code of the user)
            self.failed("retry")

    def failed(self, call: str) -> None:
        """Log the first exception the telemetry raises. Call this where the exception is handled."""
        if not self._has_failed:
            self._has_failed = True
            log(Event.TELEMETRY_FAILED, exc_info=True, call=call)

    def catch_up(self) -> None:
        """Report the abandoned leases."""
        while self.abandoned:
            try:
                report = self.abandoned.popleft()
            except IndexError:  # another thread has taken it
                return
            report.report_abandoned()


class Report:
    """Reports the phases of one lease.

    A KeyboardInterrupt or SystemExit in user code comes from a signal handler. It is raised immediately while
    a lease is entered. During a release, `interruption` keeps it until the release is done.

    `get_info` returns the current state of the lease and must not keep the lease alive.
    """

    def __init__(
        self, observer: Observer, get_info: Callable[[], LeaseInfo], clock: Callable[[], float]
    ) -> None:
        self._observer = observer
        self._get_info = get_info
        self._clock = clock
        self._lease: _Begun | None = None
        self._phase: _Begun | None = None
        self._began_at = 0.0
        self._abandoned_at = 0.0
        self.interruption: BaseException | None = None

    def begin(self) -> None:
        self._observer.catch_up()
        self._began_at = self._clock()
        self._lease = self._begin("lease")
        self.raise_kept_interruption()

    def begin_phase(self, phase: Phase) -> None:
        """End the current phase without an error, and begin this one."""
        self.leave(None)
        self._phase = self._begin(phase)
        self.raise_kept_interruption()

    def tear_down(self) -> None:
        """Begin the teardown, unless it already began before an interruption."""
        if self._phase is None:
            self._phase = self._begin("teardown")

    def leave(self, error: BaseException | None) -> None:
        """End the current phase, if there is one, with `error`."""
        phase, self._phase = self._phase, None
        self._end(phase, _outcome(error), error, self._clock())

    def end(self, error: BaseException | None) -> None:
        self.leave(error)
        lease, self._lease = self._lease, None
        self._end(lease, _outcome(error), error, self._clock())

    def abandon(self) -> None:
        """Leave the lease to the reaper. Safe to call in `__del__`."""
        if self._lease is not None:
            self._abandoned_at = self._clock()
            self._observer.abandoned.append(self)

    def report_abandoned(self) -> None:
        for begun in (self._phase, self._lease):
            self._end(begun, "abandoned", None, self._abandoned_at)
        self._phase = self._lease = None

    def _begin(self, phase: Phase) -> _Begun | None:
        """Begin a phase. Return None if the client does not use telemetry."""
        telemetry = self._observer.telemetry
        if telemetry is None:
            return None
        begun = _Begun(phase, self._clock(), telemetry)
        parent = self._lease.value if self._lease is not None else None
        try:
            begun.value = telemetry.begin(phase, self._get_info(), parent)
        except BaseException as error:  # noqa: BLE001  (code of the user)
            self._caught(error, "begin")
            begun.is_reported = False
        return begun

    def _end(self, begun: _Begun | None, outcome: Outcome, error: BaseException | None, now: float) -> None:
        if begun is None or not begun.is_reported:
            return
        end = PhaseEnd(
            outcome=outcome,
            seconds=now - begun.at,
            elapsed=now - self._began_at,
            error=error,
            redact=self._observer.redact,
        )
        try:
            begun.telemetry.end(begun.phase, self._get_info(), begun.value, end)
        except BaseException as raised:  # noqa: BLE001  (code of the user)
            self._caught(raised, "end")

    def _caught(self, error: BaseException, call: str) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.interruption = error
        else:
            self._observer.failed(call)

    def raise_kept_interruption(self) -> None:
        """Raise the interruption that was kept, if there is one."""
        error, self.interruption = self.interruption, None
        if error is not None:
            raise error


@define(eq=False)
class _Begun:
    """A phase in progress, and the value `Telemetry.begin` returned for it."""

    phase: Phase
    at: float
    telemetry: Telemetry
    value: Any = None
    is_reported: bool = True


def _route(method: str, path: str) -> str:
    head, _, last = path.rpartition("/")
    # Only these methods have an instance id in their path.
    is_instance = head == "/instances" and method in {"GET", "DELETE"} and last != "delete-all"
    return f"{head}/{{id}}" if last and (is_instance or head == "/models") else path


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "ok"
    return "error" if isinstance(error, Exception) else "cancelled"
