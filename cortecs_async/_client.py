"""`AsyncCortecs`: wires the layers together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from ._arguments import check_seconds, check_start
from ._config import CredentialProvider, PollPolicy, RetryPolicy, Secret, Settings, resolve_settings
from ._errors import InvalidArgumentError
from ._http import HTTP, HTTPClient
from ._instances import Instances
from ._lease import InstanceLease, LeaseOptions, OnExit
from ._resources import HardwareTypes, Models, User
from ._waiting import ProgressCallback


class AsyncCortecs:
    """A client of the cortecs.ai provisioning API, for asyncio and trio.

    Use it with `async with`, or call `aclose()`. One client serves any number of tasks of one event loop.

    Args:
        client_id: Default: the environment's CORTECS_CLIENT_ID.
        client_secret: Default: the environment's CORTECS_CLIENT_SECRET.
        credential_provider: Instead of the two, an async function that returns `Credentials`; called whenever
            an access token is needed, so that rotated secrets are picked up.
        api_base_url: Default: the environment's CORTECS_API_BASE_URL, else `https://cortecs.ai/api/v1`.
        timeout: Seconds for one attempt of a request, from asking for a connection to the last byte of its
            answer.
        max_retries: Short for `RetryPolicy(max_retries=...)`.
        retry_policy: How often and how long requests are repeated.
        poll_policy: How fast the service is asked for changes.
        default_headers: Sent with every request.
        http_client: An `httpx.AsyncClient` of yours, for proxies, certificates or tests. It is not closed
            here, and its own time-outs, redirects and authentication are not used.
        allow_insecure_http: Allows a plain-http base URL beyond this machine, where credentials can be read
            on the way.

    Attributes:
        instances: The instances of the account.
        models: The models that can be provisioned.
        hardware_types: The hardware types.
        user: The account.

    Raises:
        ConfigurationError: for a base URL that is not one or not safe, or contradictory settings. Missing
            credentials are an error of the first request that needs them.
    """

    def __init__(
        self,
        client_id: str | None = None,
        client_secret: str | None = None,
        *,
        credential_provider: CredentialProvider | None = None,
        api_base_url: str | None = None,
        timeout: float = 30.0,
        max_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        poll_policy: PollPolicy | None = None,
        default_headers: Mapping[str, str] | None = None,
        http_client: HTTPClient | None = None,
        allow_insecure_http: bool = False,
    ) -> None:
        self._closed = True  # for __del__, should the next line raise
        secret = Secret(client_secret) if client_secret is not None else None
        del client_secret  # a traceback that shows locals would show it
        self._settings = resolve_settings(
            client_id=client_id,
            client_secret=secret,
            credential_provider=credential_provider,
            api_base_url=api_base_url,
            timeout=timeout,
            max_retries=max_retries,
            retry_policy=retry_policy,
            poll_policy=poll_policy,
            default_headers=default_headers,
            allow_insecure_http=allow_insecure_http,
            environ=os.environ,
        )
        self._http = HTTP(self._settings, http_client=http_client)
        send = self._http.request
        self._leased = Instances(self._http.request_held, self._settings.poll)
        self._releasing = Instances(self._http.request_once, self._settings.poll, twin=self._leased)
        self.instances: Instances = Instances(send, self._settings.poll, twin=self._leased)
        self.models: Models = Models(send)
        self.hardware_types: HardwareTypes = HardwareTypes(send)
        self.user: User = User(send)
        self._closed = False

    def instance(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: str = "per_minute",
        start_timeout: float = 900.0,
        teardown_timeout: float = 120.0,
        on_exit: OnExit = "delete",
        reuse: bool = False,
        on_progress: ProgressCallback | None = None,
    ) -> InstanceLease:
        """An instance that lives as long as a block: `async with client.instance(...) as inst:`.

        Entering starts it and waits until it is usable; leaving, in whatever way, stops and deletes it and
        returns when it is read to be gone. Neither a second cancellation nor a time-out of the caller's cuts
        the release short. Billing begins with the start, not with the block.

        Args:
            model_id: In either spelling, `org/name` or `org--name`.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: min(32000, the longest on this hardware).
            num_workers: 1 to 8; each has a GPU set to itself, and is billed for it. The block is entered as
                soon as one runs.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Seconds from entering until it must be usable.
            teardown_timeout: Seconds for the release, retries included.
            on_exit: `delete`; `stop`, which ends billing but leaves it to be restarted; or `keep`, which
                leaves it **running and billed**. What fails before the block is entered is deleted.
            reuse: Take an instance with these arguments if there is one, as `instances.ensure` does. What was
                there before is left as it was found: running, or stopped again.
            on_progress: Called with a `Progress` at every change while it starts; may be async. What it
                raises ends the start, and the instance with it.

        Raises:
            InvalidArgumentError: for bad arguments, at once and before any request.
        """
        check_seconds("start_timeout", start_timeout)
        check_seconds("teardown_timeout", teardown_timeout)
        if on_exit not in {"delete", "stop", "keep"}:
            raise InvalidArgumentError(f"on_exit must be 'delete', 'stop' or 'keep', not {on_exit!r}")
        if on_progress is not None and not callable(on_progress):
            raise InvalidArgumentError("on_progress must be callable")
        args = check_start(
            model_id,
            hardware_type_id,
            context_length=context_length,
            num_workers=num_workers,
            billing_interval=billing_interval,
        )
        options = LeaseOptions(
            args=args,
            start_timeout=start_timeout,
            teardown_timeout=teardown_timeout,
            on_exit=on_exit,
            reuse=reuse,
            on_progress=on_progress,
        )
        return InstanceLease(self._http, self._leased, self._releasing, self._settings.poll, options)

    async def aclose(self) -> None:
        """Closes the client; calling it again does nothing.

        Leases that are still open can release what they hold: the connections close with the last of them.
        """
        self._closed = True
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        self._http.check_open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        # A traceback may show a client whose constructor raised.
        settings: Settings | None = getattr(self, "_settings", None)
        shown = settings.api_base_url if settings else "(not set up)"
        return f"<AsyncCortecs {shown}{' closed' if self._closed else ''}>"

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(
                f"{self!r} was never closed: use `async with`, or `await client.aclose()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
