"""Spans and metrics of leases; needs `pip install 'cortecs-async[opentelemetry]'`, which is the API alone.

Where they go is for the program to say, with the OpenTelemetry SDK. Without one, nothing is recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import ConfigurationError, __version__
from ..types import LeaseInfo, PhaseEnd, RequestRetry, Telemetry

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

_SPANS = {
    "lease": "cortecs.lease",
    "start": "cortecs.lease.start",
    "wait": "cortecs.lease.wait",
    "body": "cortecs.lease.body",
    "teardown": "cortecs.lease.teardown",
}

# Seconds. The default buckets of OpenTelemetry are for requests, not for what takes minutes and hours.
_STARTS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1800.0)
_TEARDOWNS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_LEASES = (10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0, 86400.0)


class OpenTelemetry(Telemetry):
    """Makes spans and metrics of what a client does: `AsyncCortecs(telemetry=OpenTelemetry())`.

    The span of a lease's body is the current one in the body, so that what is traced there nests beneath it.

    Args:
        tracer_provider: Default: the global one.
        meter_provider: Default: the global one.

    Raises:
        ConfigurationError: when opentelemetry-api is not installed.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        try:
            from opentelemetry import context, metrics, trace  # noqa: PLC0415  (optional)
        except ModuleNotFoundError:
            raise ConfigurationError(
                "OpenTelemetry() needs the opentelemetry-api package: "
                "pip install 'cortecs-async[opentelemetry]'"
            ) from None
        self._context = context
        self._trace = trace
        self._key = context.create_key("cortecs_async")
        self._tracer = trace.get_tracer("cortecs_async", __version__, tracer_provider)
        meter = metrics.get_meter("cortecs_async", __version__, meter_provider)
        self._time_to_running = meter.create_histogram(
            "cortecs.lease.time_to_running",
            unit="s",
            description="From entering a lease until its instance runs.",
            explicit_bucket_boundaries_advisory=_STARTS,
        )
        self._duration = meter.create_histogram(
            "cortecs.lease.duration",
            unit="s",
            description="From entering a lease to the end of its release.",
            explicit_bucket_boundaries_advisory=_LEASES,
        )
        self._teardown = meter.create_histogram(
            "cortecs.lease.teardown.duration",
            unit="s",
            description="Of stopping and deleting an instance, until it is read to be gone.",
            explicit_bucket_boundaries_advisory=_TEARDOWNS,
        )
        self._active = meter.create_up_down_counter(
            "cortecs.lease.active", unit="{lease}", description="Leases that are open."
        )
        self._completed = meter.create_counter(
            "cortecs.lease.completed", unit="{lease}", description="Leases that have ended."
        )
        self._cost = meter.create_counter(
            "cortecs.lease.cost",
            unit="{currency}",
            description="What leases have cost, at the list price.",
        )
        self._retries = meter.create_counter(
            "cortecs.request.retries", unit="{retry}", description="Requests that are sent again."
        )

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        """See `Telemetry`."""
        current = self._context.get_current()
        above = current if parent is None else self._trace.set_span_in_context(parent.span, current)
        span = self._tracer.start_span(_SPANS[phase], above, attributes=_described(lease))
        begun = _Begun(span)
        if phase == "lease":
            self._active.add(1, {"cortecs.operation": lease.operation})
        else:
            self._make_current(begun, current)
        return begun

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        """See `Telemetry`."""
        self._make_current_no_longer(begun)
        # The metrics first: a span processor may raise.
        self._measure(phase, lease, end)
        span: Span = begun.span
        span.set_attributes({**_described(lease), **_ending(end)})
        if phase == "lease" and lease.cost is not None:
            span.set_attributes({"cortecs.cost": lease.cost, "cortecs.currency": lease.currency})
        if end.outcome == "error" and end.error is not None:
            # Once, where it happened.
            if phase != "lease":
                span.record_exception(end.error)
            text = f"{type(end.error).__name__}: {end.error}"
            span.set_status(self._trace.StatusCode.ERROR, text)
        elif end.outcome == "abandoned":
            span.set_status(self._trace.StatusCode.ERROR, "never released: left to the reaper")
        span.end()

    def retry(self, retry: RequestRetry) -> None:
        """See `Telemetry`."""
        self._retries.add(
            1,
            {
                "http.request.method": retry.method,
                "url.template": retry.route,
                "error.type": retry.reason.replace(" ", "_"),
            },
        )

    def _measure(self, phase: str, lease: LeaseInfo, end: PhaseEnd) -> None:
        # No ids: each value of an attribute is a time series of its own.
        what: dict[str, str] = {"cortecs.operation": lease.operation}
        if lease.model:
            what["cortecs.model"] = lease.model
        if lease.hardware_type_id is not None:
            what["cortecs.hardware_type"] = lease.hardware_type_id
        if phase == "wait" and end.outcome == "ok":
            self._time_to_running.record(end.elapsed, {**what, "cortecs.instance.source": str(lease.source)})
        elif phase == "teardown":
            self._teardown.record(end.seconds, what | _ending(end))
        elif phase == "lease":
            self._active.add(-1, {"cortecs.operation": lease.operation})
            self._completed.add(1, what | _ending(end))
            self._duration.record(end.seconds, what | _ending(end))
            if lease.cost is not None:
                self._cost.add(lease.cost, {**what, "cortecs.currency": lease.currency})

    def _make_current(self, begun: _Begun, current: Context) -> None:
        begun.before = current
        begun.here = self._context.set_value(
            self._key, begun, self._trace.set_span_in_context(begun.span, current)
        )
        self._context.attach(begun.here)

    def _make_current_no_longer(self, begun: _Begun) -> None:
        """Takes the span off the current context, if it is on top there.

        Not with the token of `attach`: where a block is left in another task than it was entered in, that is
        of no use, and logged as an error. Of blocks that are left in the order in which they were entered,
        the last one restores what was before all of them.
        """
        begun.is_over = True
        current = found = self._context.get_current()
        top = self._context.get_value(self._key, current)
        while isinstance(top, _Begun) and top.is_over and top.here is current and top.before is not None:
            current = top.before
            top = self._context.get_value(self._key, current)
        if current is not found:
            self._context.attach(current)


class _Begun:
    """A span, and the context that it was made current in, where it was."""

    __slots__ = ("before", "here", "is_over", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.before: Context | None = None
        self.here: Context | None = None
        self.is_over = False


def _described(lease: LeaseInfo) -> dict[str, str | int]:
    """What is known of a lease. Of no `gen_ai` name: tools take a span with such for a call of the model."""
    found: dict[str, str | int | None] = {
        "cortecs.operation": lease.operation,
        "cortecs.model": lease.model or None,
        "cortecs.hardware_type": lease.hardware_type_id,
        "cortecs.num_workers": lease.num_workers,
        "cortecs.instance.id": lease.instance_id,
        "cortecs.instance.source": lease.source,
        "cortecs.start.request_id": lease.request_id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _ending(end: PhaseEnd) -> dict[str, str]:
    """How it ended. A cancellation is no error."""
    found: dict[str, str] = {"cortecs.outcome": end.outcome}
    if end.outcome == "error":
        found["error.type"] = type(end.error).__qualname__
    elif end.outcome == "abandoned":
        found["error.type"] = "abandoned"
    return found
