"""The emulator: its options, and the ways to reach it."""

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, final

import anyio
import httpx
from starlette.applications import Starlette

from cortecs_async.emulator._asgi import EmulatorApp
from cortecs_async.emulator._catalog import DetailShape, ModelsOption
from cortecs_async.emulator._controls import Controls
from cortecs_async.emulator._messages import ErrorBody
from cortecs_async.emulator._routing import API
from cortecs_async.emulator._settings import EndpointFault, Settings, StartedAt
from cortecs_async.emulator._transport import EmulatorTransport

# The date at which any clock other than the machine's own reads zero: 2025-01-01T00:00:00Z.
_EPOCH: Final = 1_735_689_600.0


@final
class Emulator(Controls):
    """Emulate a Cortecs account: it works over HTTP and costs nothing.

    Serve it with `serve_emulator`, or use it in-process with `http_client`. You can read and change it in
    any thread. The properties show the true state, even if responses lag behind it.

    The emulator has no background tasks. It computes its state on each request, from the earlier requests and
    the time on `clock`.

    Args:
        client_id: The client id that can request a token.
        client_secret: The secret for that client id.
        api_key: The key for the inference endpoints.
        step_seconds: The duration of each provisioning step in seconds.
        num_steps: The number of provisioning steps. A worker is running when it reaches the last one. Each
            additional worker starts one step later.
        stop_seconds: Seconds that an instance stays `stopping`, and billed, after a request to stop it.
        token_seconds: Seconds between two chunks of a streamed inference answer.
        answer_seconds: Seconds that an instance works on each inference request (chat, completions,
            responses, embeddings, rerank, score) before it sends anything. Errors are sent immediately.
        parallel: The number of inference requests that each instance works on in parallel, regardless of its
            workers. Other requests wait in order. Pass None to disable the limit. A caller that disconnects
            while waiting loses its place.
        queue: Maximum number of waiting requests. Any more get a 429 with `Retry-After`. Pass None to disable
            the limit.
        capacity: The number of GPU sets for each hardware type. Default: 10,000. Each worker uses one set.
            `set_capacity` changes it.
        available_lag: How far the list of available hardware lags, in seconds. A start request never lags, so
            hardware can be listed but refused, or not listed although it is there.
        models: Additional models. A list of names: the models run on all hardware. A mapping: the maximum
            context length by name and hardware type, as in `{"org/name": {"NVIDIA_H100_1": 32768}}`. The
            first hardware type is the recommended one.
        model_detail: With `"old"`, the details of a model use the keys that `cortecs-py` 0.1.1 reads.
        balance: The account's initial balance, in `currency`. When it is used up, new start requests are
            rejected, but no instance is stopped.
        currency: The currency of the balance and of the invented prices.
        token_lifetime: Seconds until an access token expires.
        unknown_status: The HTTP status for an unknown instance id: 400 (as documented) or 404.
        num_workers_in_args: If False, leave `num_workers` out of `instance_args`, as in the API reference.
        list_lag: How far the list of instances lags, in seconds. It shows all instances as they were then.
            If you pass several lags, they are used in turn, like replicas that disagree. The bill,
            inference, and requests that change something never lag.
        get_lag: How far requests for a single instance lag, in seconds. Several lags work as in `list_lag`.
            A deleted instance is still shown, and a new one is still unknown, for that long.
        hide_stopped: If True, leave stopped instances out of the list. You can still get them by id.
        clock_skew: Seconds by which the service's clock is ahead, in all of its dates. Negative: behind.
        date_header: Whether responses have a `Date` header, taken from the service's clock. Turn it off if
            your server adds its own.
        started_at: What the `started_at` of an instance means. Before that moment, it is null.

            - `"running"`: when the latest run became running.
            - `"accepted"`: when the latest start or restart was accepted.
            - `"initialized"`: when the latest run reached its second step.
            - `"first_running"`: when any run first became running. A restart does not change it.
            - `"constant"`: always 2020-01-01T00:00:00Z. `"none"`: always null.
            - `"local_time"`: like `"running"`, but two hours ahead and incorrectly labeled as UTC.
        status_words: Replacements for the statuses in responses, keyed by `pending`, `running`,
            `stopping`, or `stopped`.
        error_body: The body of a provisioning error. `"message"` or `"error"`: JSON with the message under
            that key. `"openai"`: the same format as inference errors. `"html"`: an HTML page. `"empty"`: no
            body.
        endpoint_lag: Seconds for which the inference endpoint of an instance still fails after the instance
            starts running.
        endpoint_fault: How it fails until then. `"502"`: with the HTML page of a proxy. `"drop"`: the
            connection is cut. `"hang"`: there is no response. `"garbage"`: with a 200 and an HTML page.
        root_url: The URL at which callers reach the emulator. Serving the emulator sets it.
        clock: Returns the current time in seconds, counted from any fixed point.
        sleep: Waits for a number of seconds, measured by the same clock.

    Raises:
        ValueError: If a number is out of range, a hardware type is unknown, or a model name is invalid.

    Example:
        from cortecs_async.emulator import Emulator

        emulator = Emulator(step_seconds=0.01, balance=5.0)
        async with (
            emulator.http_client() as http,
            AsyncCortecs(
                emulator.client_id,
                emulator.client_secret,
                api_base_url=emulator.api_base_url,
                http_client=http,
                guard="off",  # the reaper is another process and cannot reach it
                journal="off",
            ) as client,
        ):
            print(await client.user.balance())
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
        available_lag: float = 0.0,
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
        endpoint_fault: EndpointFault = "502",
        root_url: str = "http://localhost",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = anyio.sleep,
    ) -> None:
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
            available_lag=available_lag,
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
            endpoint_fault=endpoint_fault,
            # The machine's own clock shows true dates. Any other clock shows the same dates in every run.
            epoch=clock_skew + (time.time() - time.monotonic() if clock is time.monotonic else _EPOCH),
        )
        super().__init__(settings, root_url=root_url, clock=clock, sleep=sleep)
        self._app = EmulatorApp(self)

    def __repr__(self) -> str:
        return f"Emulator(api_base_url={self.api_base_url!r}, client_id={self.client_id!r})"

    @property
    def app(self) -> Starlette:
        """The Starlette application, faults included. Serve it, mount it, or wrap it in middleware.

        Example:
            from starlette.applications import Starlette
            from starlette.routing import Mount

            site = Starlette(routes=[Mount("/cortecs", emulator.app)])
            emulator.root_url = "http://localhost:8000/cortecs"
        """
        return self._app

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport for an `httpx.AsyncClient` that reaches the emulator without a socket.

        The transport streams, respects the client's read timeout, and raises the same exceptions as a real
        connection. It has no tasks of its own and works on asyncio and trio, with a real or a virtual clock.

        Example:
            import httpx

            async with httpx.AsyncClient(transport=emulator.transport()) as http:
                response = await http.get(f"{emulator.api_base_url}/models")
        """
        return EmulatorTransport(self)

    def http_client(self) -> httpx.AsyncClient:
        """Return an HTTP client with this transport, for `AsyncCortecs(http_client=...)`.

        Example:
            async with emulator.http_client() as http:
                response = await http.get(f"{emulator.api_base_url}/models")
        """
        return httpx.AsyncClient(transport=self.transport())

    @property
    def root_url(self) -> str:
        """The URL at which callers reach the emulator. `serve_emulator` and `run_emulator` set it.

        Example:
            emulator.root_url = "https://cortecs.test"
            print(emulator.api_base_url)  # https://cortecs.test/api/v1
        """
        return self._account.root_url

    @root_url.setter
    def root_url(self, value: str) -> None:
        with self._lock:
            self._account.root_url = value.rstrip("/")

    @property
    def api_base_url(self) -> str:
        """The URL of the provisioning API, for `AsyncCortecs(api_base_url=...)`.

        Example:
            print(emulator.api_base_url)
        """
        return self.root_url + API

    @property
    def client_id(self) -> str:
        """The client id of the provisioning credentials, for `AsyncCortecs(client_id=...)`.

        Example:
            print(emulator.client_id)  # emulator-client, unless you pass another one
        """
        return self._settings.client_id

    @property
    def client_secret(self) -> str:
        """The secret for the client id. It does not protect anything.

        Example:
            credentials = emulator.client_id, emulator.client_secret
        """
        return self._settings.client_secret

    def rotate_secret(self, new: str) -> None:
        """Replace the secret of the client id. Tokens issued for the old secret work until they expire.

        Example:
            emulator.rotate_secret("another-secret")
            assert emulator.client_secret == "another-secret"
        """
        with self._lock:
            # `attrs.evolve` would convert the other settings again.
            object.__setattr__(self._settings, "client_secret", new)

    @property
    def api_key(self) -> str:
        """The inference API key that the instances' endpoints accept.

        Example:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.openai_kwargs(api_key=emulator.api_key))
        """
        return self._settings.api_key

    def env(self) -> dict[str, str]:
        """Return the environment variables that make a program use the emulator and ignore profiles.

        Example:
            import os
            import subprocess
            import sys

            program = "import os; print(os.environ['CORTECS_API_BASE_URL'])"
            subprocess.run([sys.executable, "-c", program], env={**os.environ, **emulator.env()}, check=True)
        """
        return {
            "CORTECS_CLIENT_ID": self.client_id,
            "CORTECS_CLIENT_SECRET": self.client_secret,
            "CORTECS_API_BASE_URL": self.api_base_url,
            "OPENAI_API_KEY": self.api_key,
            "CORTECS_CONFIG_FILE": os.devnull,  # or `AsyncCortecs(profile=...)` would rent real GPUs
        }
