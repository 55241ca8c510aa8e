"""Spans and metrics of leases. Needs the `opentelemetry` extra.

The extra contains only the API. Your program sets up the OpenTelemetry SDK and its exporters. Without an SDK,
nothing is recorded.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define

from .. import ConfigurationError, __version__
from .._extras import install_command
from ..types import LeaseInfo, PhaseEnd, RequestRetry, Telemetry

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider


# In seconds. OpenTelemetry's default buckets suit requests, not durations of minutes and hours.
_STARTS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 450.0, 600.0, 900.0, 1800.0)
_TEARDOWNS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_LEASES = (10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0, 86400.0)


class OpenTelemetry(Telemetry):
    """Record the leases of a client as spans and metrics: `AsyncCortecs(telemetry=OpenTelemetry())`.

    The span of a lease's body is the current span inside the block, so your own spans there become its
    children.

    Args:
        tracer_provider: The source of tracers. Default: the global one.
        meter_provider: The source of meters. Default: the global one.

    Raises:
        ConfigurationError: If opentelemetry-api is not installed.

    Example:
        from cortecs_async.integrations.opentelemetry import OpenTelemetry

        async with AsyncCortecs(telemetry=OpenTelemetry()) as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url)  # within the span cortecs.lease.body
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        try:
            from opentelemetry import context, metrics, trace  # noqa: PLC0415  (optional)
        except ModuleNotFoundError:
            raise ConfigurationError(
                f"OpenTelemetry() requires the opentelemetry extra: {install_command('opentelemetry')}"
            ) from None
        self._context = context
        self._trace = trace
        self._key = context.create_key("cortecs_async")
        self._tracer = trace.get_tracer("cortecs_async", __version__, tracer_provider)
        meter = metrics.get_meter("cortecs_async", __version__, meter_provider)
        self._time_to_running = meter.create_histogram(
            "cortecs.lease.time_to_running",
            unit="s",
            description="Time until the instance of a lease is running, without waits for capacity.",
            explicit_bucket_boundaries_advisory=_STARTS,
        )
        self._duration = meter.create_histogram(
            "cortecs.lease.duration",
            unit="s",
            description="Time from entering a lease until it is released.",
            explicit_bucket_boundaries_advisory=_LEASES,
        )
        self._teardown = meter.create_histogram(
            "cortecs.lease.teardown.duration",
            unit="s",
            description="Time to stop and delete an instance, until it is confirmed deleted.",
            explicit_bucket_boundaries_advisory=_TEARDOWNS,
        )
        self._active = meter.create_up_down_counter(
            "cortecs.lease.active", unit="{lease}", description="Open leases."
        )
        self._completed = meter.create_counter(
            "cortecs.lease.completed", unit="{lease}", description="Ended leases."
        )
        self._cost = meter.create_counter(
            "cortecs.lease.cost",
            unit="{currency}",
            description="Cost of leases, at the list price.",
        )
        self._retries = meter.create_counter(
            "cortecs.request.retries", unit="{retry}", description="Retries of requests."
        )

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        """Start the span of a phase. The client calls this.

        Override it to add your own handling.

        Example:
            class Logged(OpenTelemetry):
                def begin(self, phase, lease, parent):
                    print("begin", phase, lease.model)
                    return super().begin(phase, lease, parent)

            async with AsyncCortecs(telemetry=Logged()) as client:
                await client.models.list()
        """
        current = self._context.get_current()
        context = current if parent is None else self._trace.set_span_in_context(parent.span, current)
        name = "cortecs.lease" if phase == "lease" else f"cortecs.lease.{phase}"
        begun = _PhaseSpan(self._tracer.start_span(name, context, attributes=_lease_attributes(lease)))
        if phase == "lease":
            self._active.add(1, {"cortecs.operation": lease.operation})
        else:
            self._make_current(begun, current)
        return begun

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        """End the span of a phase and record its metrics. The client calls this.

        Override it to add your own handling.

        Example:
            class Logged(OpenTelemetry):
                def end(self, phase, lease, begun, end):
                    super().end(phase, lease, begun, end)
                    print("end", phase, end.outcome, end.seconds)

            async with AsyncCortecs(telemetry=Logged()) as client:
                await client.models.list()
        """
        self._restore_context(begun)
        # Record the metrics first, because a span processor may raise an error.
        self._record_metrics(phase, lease, end)
        span: Span = begun.span
        span.set_attributes({**_lease_attributes(lease), **_outcome_attributes(end)})
        if phase == "lease" and lease.cost is not None:
            span.set_attributes({"cortecs.cost": lease.cost, "cortecs.currency": lease.currency})
        if end.outcome == "error" and end.error is not None:
            # Record an exception once, in the phase that raised it.
            if phase != "lease":
                # Not `record_exception`, which would read the exception's text itself.
                span.add_event("exception", _exception_attributes(end.error, end.redact))
            description = end.redact(f"{type(end.error).__name__}: {_text(end.error)}")
            span.set_status(self._trace.StatusCode.ERROR, description)
        elif end.outcome == "abandoned":
            span.set_status(self._trace.StatusCode.ERROR, "not released: left to the reaper or `sweep`")
        span.end()

    def retry(self, retry: RequestRetry) -> None:
        """Count a retry of a request. The client calls this.

        Override it to add your own handling.

        Example:
            class Logged(OpenTelemetry):
                def retry(self, retry):
                    super().retry(retry)
                    print(retry.method, retry.route, retry.reason)

            async with AsyncCortecs(telemetry=Logged()) as client:
                await client.models.list()
        """
        self._retries.add(
            1,
            {
                "http.request.method": retry.method,
                "url.template": retry.route,
                "error.type": retry.reason.replace(" ", "_"),
            },
        )

    def _record_metrics(self, phase: str, lease: LeaseInfo, end: PhaseEnd) -> None:
        # No ids, because each value of an attribute creates another time series.
        attributes: dict[str, str] = {"cortecs.operation": lease.operation}
        if lease.model:
            attributes["cortecs.model"] = lease.model
        if lease.hardware_type_id is not None:
            attributes["cortecs.hardware_type"] = lease.hardware_type_id
        if phase == "wait" and end.outcome == "ok":
            source = {"cortecs.instance.source": str(lease.source)}
            self._time_to_running.record(end.elapsed - lease.capacity_wait, attributes | source)
        elif phase == "teardown":
            self._teardown.record(end.seconds, attributes | _outcome_attributes(end))
        elif phase == "lease":
            self._active.add(-1, {"cortecs.operation": lease.operation})
            self._completed.add(1, attributes | _outcome_attributes(end))
            self._duration.record(end.seconds, attributes | _outcome_attributes(end))
            if lease.cost is not None:
                self._cost.add(lease.cost, {**attributes, "cortecs.currency": lease.currency})

    def _make_current(self, begun: _PhaseSpan, current: Context) -> None:
        begun.before = current
        begun.here = self._context.set_value(
            self._key, begun, self._trace.set_span_in_context(begun.span, current)
        )
        self._context.attach(begun.here)

    def _restore_context(self, begun: _PhaseSpan) -> None:
        """Restore the span that was current before this one, if this one is on top.

        This does not use the token from `attach`, which works only in the task that entered the block. In any
        other task, an error is logged. Blocks can be left in the order in which they were entered: the last
        one to be left restores the context from before all of them.
        """
        begun.has_ended = True
        current = found = self._context.get_current()
        top = self._context.get_value(self._key, current)
        while (
            isinstance(top, _PhaseSpan) and top.has_ended and top.here is current and top.before is not None
        ):
            current = top.before
            top = self._context.get_value(self._key, current)
        if current is not found:
            self._context.attach(current)


@define(eq=False)
class _PhaseSpan:
    """A span. If it was made current, also the contexts before and after that."""

    span: Span
    before: Context | None = None
    here: Context | None = None
    has_ended: bool = False


def _lease_attributes(lease: LeaseInfo) -> dict[str, str | float]:
    """Return the known attributes, none named `gen_ai`: tools would treat such a span as a model call."""
    attributes: dict[str, str | float | None] = {
        "cortecs.operation": lease.operation,
        "cortecs.model": lease.model or None,
        "cortecs.hardware_type": lease.hardware_type_id,
        "cortecs.num_workers": lease.num_workers,
        "cortecs.instance.id": lease.instance_id,
        "cortecs.instance.source": lease.source,
        "cortecs.start.request_id": lease.request_id,
        "cortecs.hardware_reason": lease.hardware_reason or None,
        "cortecs.capacity_wait": lease.capacity_wait or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (anyone's exception)
        return "(message not available)"


def _exception_attributes(error: BaseException, redact: Callable[[str], str]) -> dict[str, str]:
    """Return the attributes that the SDK would record, without the secrets that an error may contain."""
    kind = type(error)
    return {
        "exception.type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        "exception.message": redact(_text(error)),
        "exception.stacktrace": redact("".join(traceback.format_exception(error))),
    }


def _outcome_attributes(end: PhaseEnd) -> dict[str, str]:
    """Return the outcome, and the error's type if there is one. A cancellation is not an error."""
    attributes: dict[str, str] = {"cortecs.outcome": end.outcome}
    if end.outcome == "error":
        attributes["error.type"] = type(end.error).__qualname__
    elif end.outcome == "abandoned":
        attributes["error.type"] = "abandoned"
    return attributes
