"""The emulator: its options, and what tests read and change."""

import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, final

import anyio
import httpx
from starlette.applications import Starlette

from cortecs_async.emulator._account import read_args
from cortecs_async.emulator._asgi import EmulatorApp
from cortecs_async.emulator._catalog import DetailShape, ModelsOption
from cortecs_async.emulator._faults import Fault
from cortecs_async.emulator._messages import ErrorBody
from cortecs_async.emulator._records import LedgerEntry, RequestRecord
from cortecs_async.emulator._routing import API
from cortecs_async.emulator._service import Service
from cortecs_async.emulator._settings import Settings, StartedAt
from cortecs_async.emulator._transport import EmulatorTransport

# The date at zero of a clock that is not the machine's own: 2025-01-01T00:00:00Z.
_EPOCH: Final = 1_735_689_600.0


@final
class Emulator(Service):
    """A Cortecs account that costs nothing.

    Its state depends only on the requests so far and on `clock()`: it has no background tasks and computes
    its state on each request. You can read and change it from any thread. The properties show the true state,
    even if responses lag.
    """

    def __init__(
        self,
        *,
        client_id: str = "emulator-client",
        client_secret: str = "emulator-secret",  # noqa: S107 - it protects nothing
        api_key: str = "emulator-key",
        step_seconds: float = 1.0,
        num_steps: int = 5,
        stop_seconds: float = 0.0,
        token_seconds: float = 0.0,
        answer_seconds: float = 0.0,
        parallel: int | None = None,
        queue: int | None = None,
        capacity: Mapping[str, int] | None = None,
        models: ModelsOption | None = None,
        model_detail: DetailShape = "current",
        balance: float = 1000.0,
        currency: str = "EUR",
        token_lifetime: float = 3600.0,
        unknown_status: int = 400,
        num_workers_in_args: bool = True,
        list_lag: float | Sequence[float] = 0.0,
        get_lag: float | Sequence[float] = 0.0,
        hide_stopped: bool = False,
        clock_skew: float = 0.0,
        date_header: bool = True,
        started_at: StartedAt = "running",
        status_words: Mapping[str, str] | None = None,
        error_body: ErrorBody = "message",
        endpoint_lag: float = 0.0,
        root_url: str = "http://localhost",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = anyio.sleep,
    ) -> None:
        """Create the account.

        Args:
            client_id: The client id that gets a token.
            client_secret: The secret of that client id.
            api_key: The key for the inference endpoints.
            step_seconds: Seconds that each provisioning step takes.
            num_steps: The number of provisioning steps. A worker is running when it reaches the last one;
                each additional worker starts one step later.
            stop_seconds: Seconds that an instance is `stopping` (and billed) after a stop.
            token_seconds: Seconds between two chunks of a streamed inference answer.
            answer_seconds: Seconds that an instance works on each inference answer (chat, completions,
                responses, embeddings, rerank, score) before it sends anything. Errors are sent immediately.
            parallel: How many answers each instance works on in parallel, regardless of its workers; more
                wait in order. None for no limit. A caller that disconnects while it waits releases its
                place to the next that arrives.
            queue: How many answers may wait; further ones get a 429 with `Retry-After`. None for no limit.
            capacity: GPU sets by hardware type, 10,000 by default. Each worker uses one set.
            models: Additional models: names, for all hardware, or the maximum context lengths by name and
                hardware type, `{"org/name": {"NVIDIA_H100_1": 32768}}`. The first type is recommended.
            model_detail: With "old", the details of a model have the keys that `cortecs-py` 0.1.1 reads.
            balance: The account's balance before the first start, in `currency`. When it is used up, starts
                are rejected, but no instance is stopped.
            currency: The currency of the balance and of the invented prices.
            token_lifetime: Seconds until an access token expires.
            unknown_status: The HTTP status for an unknown instance id: 400, as documented, or 404.
            num_workers_in_args: False leaves `num_workers` out of `instance_args`, as the reference does.
            list_lag: Seconds that the list of instances lags: it shows all instances as they were that long
                ago. With several lags, lists use them in turn, like replicas that disagree. Requests that
                change something, the bill, and inference never lag.
            get_lag: The same for requests for one instance. A deleted instance is shown that much longer,
                and a new one is unknown that long.
            hide_stopped: True leaves stopped instances out of the list; they can still be requested by id.
            clock_skew: Seconds that the service's clock is ahead (negative: behind), in all its dates.
            date_header: Whether responses have a `Date` header, by the service's clock. Turn it off under a
                server that adds its own.
            started_at: What the `started_at` of an instance means. Before that moment, it is null.
                `"running"`: when the latest run became running.
                `"accepted"`: when the latest start or restart was accepted.
                `"initialized"`: when the latest run reached its second step.
                `"first_running"`: when any run first became running; a restart does not change it.
                `"constant"`: always 2020-01-01T00:00:00Z. `"none"`: always null.
                `"local_time"`: as `"running"`, but in a time zone two hours ahead, falsely marked as UTC.
            status_words: Other words for statuses in responses, by `pending`, `running`, `stopping` or
                `stopped`.
            error_body: The body of a provisioning error: `"message"` and `"error"` are JSON with the message
                under that key, `"openai"` is the error of inference, `"html"` a page, `"empty"` nothing.
            endpoint_lag: Seconds after an instance has become running in which its inference endpoint still
                returns a 502 with HTML.
            root_url: The URL at which callers reach it; serving the emulator sets it.
            clock: Returns the current time in seconds, from any fixed point.
            sleep: Waits for a number of seconds on the same clock.

        Raises:
            ValueError: For a number out of range, an unknown hardware type or an invalid model name.
        """
        settings = Settings(
            client_id=client_id,
            client_secret=client_secret,
            api_key=api_key,
            step_seconds=step_seconds,
            num_steps=num_steps,
            stop_seconds=stop_seconds,
            token_seconds=token_seconds,
            answer_seconds=answer_seconds,
            parallel=parallel,
            queue=queue,
            capacity=dict(capacity or {}),
            models=models,
            model_detail=model_detail,
            balance=balance,
            currency=currency,
            token_lifetime=token_lifetime,
            unknown_status=unknown_status,
            num_workers_in_args=num_workers_in_args,
            list_lag=list_lag,
            get_lag=get_lag,
            hide_stopped=hide_stopped,
            clock_skew=clock_skew,
            date_header=date_header,
            started_at=started_at,
            status_words=dict(status_words or {}),
            error_body=error_body,
            endpoint_lag=endpoint_lag,
            # The machine's own clock gives true dates, any other clock the same dates in every run.
            epoch=clock_skew + (time.time() - time.monotonic() if clock is time.monotonic else _EPOCH),
        )
        super().__init__(settings, root_url=root_url, clock=clock, sleep=sleep)
        self._app = EmulatorApp(self)

    def __repr__(self) -> str:
        return f"Emulator(api_base_url={self.api_base_url!r}, client_id={self.client_id!r})"

    @property
    def app(self) -> Starlette:
        """The Starlette application, faults included: serve it, mount it, or wrap it in middleware."""
        return self._app

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport for an `httpx.AsyncClient` that reaches the emulator without a socket.

        It streams, respects the client's read timeout, and raises the exceptions of a real connection. It
        needs no task of its own, and works on asyncio and trio, on real and on virtual time.
        """
        return EmulatorTransport(self)

    def http_client(self) -> httpx.AsyncClient:
        """Return an HTTP client with this transport, for `AsyncCortecs(http_client=...)`."""
        return httpx.AsyncClient(transport=self.transport())

    @property
    def root_url(self) -> str:
        """The URL at which callers reach the emulator."""
        return self._account.root_url

    @root_url.setter
    def root_url(self, value: str) -> None:
        with self._lock:
            self._account.root_url = value.rstrip("/")

    @property
    def api_base_url(self) -> str:
        """The URL of the provisioning API."""
        return self.root_url + API

    @property
    def client_id(self) -> str:
        """The client id that gets a token."""
        return self._settings.client_id

    @property
    def client_secret(self) -> str:
        """The secret of that client id."""
        return self._settings.client_secret

    def rotate_secret(self, new: str) -> None:
        """Replace the secret of the client id. Tokens of the old one work until they expire."""
        with self._lock:
            # `attrs.evolve` would convert the other settings again.
            object.__setattr__(self._settings, "client_secret", new)

    @property
    def api_key(self) -> str:
        """The key for the inference endpoints."""
        return self._settings.api_key

    def env(self) -> dict[str, str]:
        """Return the environment variables that make a program use the emulator, and no profile."""
        return {
            "CORTECS_CLIENT_ID": self.client_id,
            "CORTECS_CLIENT_SECRET": self.client_secret,
            "CORTECS_API_BASE_URL": self.api_base_url,
            "OPENAI_API_KEY": self.api_key,
            "CORTECS_CONFIG_FILE": os.devnull,  # or `AsyncCortecs(profile=...)` would rent real GPUs
        }

    def add_fault(self, fault: Fault) -> None:
        """Add a fault for future requests; faults added earlier take precedence."""
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """Remove all faults. Requests in progress keep theirs."""
        with self._lock:
            self._faults.clear()

    @property
    def unmet_faults(self) -> tuple[Fault, ...]:
        """The faults that have affected no request so far, except those that were cleared."""
        with self._lock:
            return self._faults.unmet()

    def add_entry(self, entry: Any) -> None:
        """Add any JSON value to the end of the list of instances, as if the service had written it.

        Raises:
            TypeError: If it is not a JSON value.
        """
        copy = json.loads(json.dumps(entry))
        with self._lock:
            self._account.entries.append(copy)

    def clear_entries(self) -> None:
        """Remove all values that `add_entry` has added."""
        with self._lock:
            self._account.entries.clear()

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """The bill of every instance, deleted ones included, in the order of their starts."""
        with self._lock:
            return self._account.ledger(self._now())

    @property
    def existing(self) -> tuple[str, ...]:
        """The ids of the instances that are not deleted, regardless of their status."""
        with self._lock:
            self._now()
            return tuple(self._account.instances)

    @property
    def billing(self) -> tuple[str, ...]:
        """The ids of the instances that are being billed: pending, running or stopping."""
        with self._lock:
            return self._account.billing(self._now())

    @property
    def total_cost(self) -> float:
        """The cost of all instances so far."""
        with self._lock:
            return self._account.total_cost(self._now())

    @property
    def balance_now(self) -> float:
        """The remaining balance; may be negative."""
        with self._lock:
            return self._account.balance(self._now())

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """Every request that arrived, in order."""
        with self._lock:
            return tuple(self._requests)

    def start_instance(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        billing_interval: str | None = None,
        num_workers: int | None = None,
    ) -> str:
        """Start an instance without HTTP, as another user of the account would.

        Returns:
            Its id.

        Raises:
            ValueError: If the service would reject the start.
        """
        args = read_args(
            {
                "model_id": model_id.replace("/", "--"),
                "hardware_type_id": hardware_type_id,
                "context_length": context_length,
                "billing_interval": billing_interval,
                "num_workers": num_workers,
            },
            self._settings.models,
        )
        with self._lock:
            return self._account.start(args, self._now()).instance_id

    def restart_instance(self, instance_id: str) -> None:
        """Restart a stopped instance without HTTP.

        Raises:
            ValueError: If it is unknown, not stopped, or the service would reject the restart.
        """
        with self._lock:
            self._account.restart(instance_id, self._now())

    def stop_instance(self, instance_id: str) -> None:
        """Stop an instance without HTTP.

        Raises:
            ValueError: If it is unknown or already stopped.
        """
        with self._lock:
            self._account.stop(instance_id, self._now())

    def delete_instance(self, instance_id: str) -> None:
        """Delete an instance without HTTP, regardless of its status.

        Raises:
            ValueError: If it is unknown.
        """
        with self._lock:
            self._account.delete(instance_id, self._now(), force=True)
