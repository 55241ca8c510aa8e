"""`AsyncCortecs`: the client's signatures and their documentation.

This module and the mixins import almost nothing, so that `from cortecs_async import AsyncCortecs` is fast.
The first client imports what it needs to send requests (`wiring.py`); the first lease, batch, or share
imports the rest. The mixins in `batches.py`, `leases.py`, `recovery.py`, `sharing.py`, and `with_options.py`
keep this module short.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .._aio.closing import is_closed_coroutine
from .._hints import hinted
from .batches import BatchMethods
from .leases import LeaseMethods
from .recovery import RecoveryMethods
from .sharing import SharingMethods
from .with_options import CallMethods

if TYPE_CHECKING:
    from .._api.instances import Instances
    from .._api.resources import HardwareTypes, Models, User
    from .._config import ProtectionMode, RetryPolicy, Settings, TransportName, URLObject
    from .._durations import Duration
    from .._http.connections import HTTPClient
    from .._poll_policy import PollPolicy
    from .._secrets import CredentialProvider, Secret
    from .._telemetry import Telemetry


@hinted
class AsyncCortecs(LeaseMethods, BatchMethods, CallMethods, RecoveryMethods, SharingMethods):
    """Rent GPU instances on cortecs.ai from asyncio or trio.

    Open one client and rent an instance for each block that needs one. When you leave the block, the instance
    is stopped and deleted.

    Example:
        async with AsyncCortecs() as client:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                print(inst.base_url, inst.model)

    Use the client with `async with`, or call `aclose()` at the end. All tasks of one event loop can share a
    client. In a different event loop or thread, or in a second `asyncio.run`, its methods raise
    `ConfigurationError`.

    A duration is a number of seconds, a `timedelta`, or a string such as "90s", "15m", or "1h30m".

    Args:
        client_id: Your client id. Default: the environment variable CORTECS_CLIENT_ID.
        client_secret: Your client secret. Default: the environment variable CORTECS_CLIENT_SECRET.
        timeout: Timeout for each attempt of a request, from waiting for a connection to the last byte of the
            response. Default: 30 seconds. Polls and releases start with shorter timeouts: 3, 6, 12, ...
            seconds.
        max_retries: Retries after the first attempt of a request. Default: 5. Short for
            `RetryPolicy(max_retries=...)`.
        guard: The reaper, a child process that releases your instances if this process is killed. `auto`
            (default) logs a warning if it cannot run or cannot reach the service. `required` raises
            `GuardError` instead. `off` disables the reaper. There is no reaper on Windows: leases raise
            `GuardError` there unless you pass `off`. The reaper uses the proxy and certificate settings from
            the environment, not `http_client`.

    Other credentials:
        profile: The name of a profile stored by `cortecs-async login`, to use instead of the environment.
            Default: CORTECS_PROFILE if it is set; otherwise `default`, if there are no other credentials.
        credential_provider: An async function that returns `Credentials`, instead of `client_id` and
            `client_secret`. It is called for each new access token, so it can return rotated secrets.
        anonymous: If True, use no credentials. Only `models`, `hardware_types`, and `costs` work then.

    Requests:
        retry_policy: When and how often to repeat failed requests. Default: `RetryPolicy()`.
        poll_policy: Polling intervals. Default: `PollPolicy()`.
        default_headers: Headers to send with every request.

    Network:
        api_base_url: The URL of the provisioning API, as a string or a URL object of httpx or yarl. Default:
            the environment variable CORTECS_API_BASE_URL, then the profile's URL, then
            `https://cortecs.ai/api/v1`.
        http_client: Your own `httpx.AsyncClient` or `httpx2.AsyncClient`, for proxies, certificates, or
            tests. You must close it yourself. Its timeouts, redirects, and authentication are not used. If it
            has no free connection for a second, polls and releases open their own, with the proxy and
            certificate settings from the environment.
        transport: The library that sends the requests: `httpx` (default) or `aiohttp`. aiohttp uses about two
            thirds of the CPU time, works only on asyncio, and needs the `aiohttp` extra.
        max_connections: Maximum number of parallel requests. Default: 100. Further requests wait. Releases go
            first, and a fifth of the number is reserved for them. Polls do not wait.
        allow_insecure_http: If True, allow plain http to other machines, for `api_base_url` and for the
            `base_url` of instances. This exposes your credentials and API keys to the network.

    Crash safety and telemetry:
        journal: The record of your start requests, which `sweep` reads if your program and the reaper
            both died. `auto` (default), `required` (raises `JournalError` if it cannot be written), or `off`.
            With `off`, costs are not recorded either.
        state_dir: The directory of the journals and the cost ledger. Default: the environment variable
            CORTECS_STATE_DIR, or your user's state directory if it is not set. The directory must belong to
            your user and must not be writable by others. It is created if it does not exist. In a container,
            use a directory on a volume that outlives the container.
        tag_starts: If True, request a context length reduced by a random amount of less than 1%. If the
            response to a start request is lost, this distinguishes your instance from identical ones started
            by other people. It works only if the service returns the context length.
        telemetry: Receives lease lifecycle events. `cortecs_async.integrations.opentelemetry.OpenTelemetry()`
            turns them into spans and metrics.

    Attributes:
        instances: The instances in the account: see `Instances`.
        models: The models you can start: see `Models`.
        hardware_types: The hardware types, with prices: see `HardwareTypes`.
        user: The account: see `User`.

    Raises:
        ConfigurationError: if the base URL is invalid or insecure, settings contradict each other, or the
            config file cannot be used. Missing credentials raise `MissingCredentialsError` later: on entry to
            `async with`, or in the first call that needs them.
    """

    _closed = True  # for __del__, in case the constructor raises

    def __init__(
        self,
        client_id: str | None = None,
        client_secret: str | Secret | None = None,
        *,
        credential_provider: CredentialProvider | None = None,
        profile: str | None = None,
        anonymous: bool = False,
        api_base_url: str | URLObject | None = None,
        timeout: Duration = 30.0,
        max_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        poll_policy: PollPolicy | None = None,
        default_headers: Mapping[str, str] | None = None,
        http_client: HTTPClient | None = None,
        allow_insecure_http: bool = False,
        guard: ProtectionMode = "auto",
        journal: ProtectionMode = "auto",
        state_dir: str | os.PathLike[str] | None = None,
        max_connections: int = 100,
        transport: TransportName = "httpx",
        tag_starts: bool = False,
        telemetry: Telemetry | None = None,
    ) -> None:
        # Slow to import, and not needed before the first client exists.
        from .._config import check_mode, resolve_settings  # noqa: PLC0415
        from .._errors import ConfigurationError  # noqa: PLC0415
        from .._logging import set_up_log  # noqa: PLC0415
        from .._secrets import Hidden, to_secret  # noqa: PLC0415
        from .wiring import Wiring  # noqa: PLC0415

        secret = to_secret(client_secret) if client_secret is not None else None
        base_url, headers = Hidden(api_base_url), Hidden(default_headers)
        del client_secret, api_base_url, default_headers  # a traceback that shows locals would show them
        set_up_log(os.environ)
        self._settings: Settings = resolve_settings(
            client_id=client_id,
            client_secret=secret,
            credential_provider=credential_provider,
            profile=profile,
            anonymous=anonymous,
            api_base_url=base_url,
            timeout=timeout,
            max_retries=max_retries,
            retry_policy=retry_policy,
            poll_policy=poll_policy,
            default_headers=headers,
            allow_insecure_http=allow_insecure_http,
            max_connections=max_connections,
            transport=transport,
            tag_starts=tag_starts,
        )
        check_mode("guard", guard)
        check_mode("journal", journal)
        if http_client is not None and transport != "httpx":
            raise ConfigurationError("Pass either http_client or transport, not both.")
        self._wiring = Wiring(
            self._settings,
            http_client=http_client,
            guard=guard,
            journal=journal,
            state_dir=state_dir,
            telemetry=telemetry,
            allow_insecure_http=allow_insecure_http,
        )
        endpoints = self._wiring.own
        self.models: Models = endpoints.models
        self.hardware_types: HardwareTypes = endpoints.hardware_types
        self.user: User = endpoints.user
        self._closed = False

    @cached_property
    def instances(self) -> Instances:
        return self._wiring.own.instances

    async def aclose(self) -> None:
        """Close the client. `async with` does this for you. You can call it more than once.

        Open leases can still release their instances: the connections close with the last lease. `aclose`
        waits for the release of leases whose blocks were dropped without being awaited.

        Raises:
            ConfigurationError: if you call it from a different event loop than the client's.

        Example:
            client = AsyncCortecs()
            try:
                print(await client.user.balance())
            finally:
                await client.aclose()
        """
        self._closed = True
        await self._wiring.http.aclose()

    async def __aenter__(self) -> Self:
        self._wiring.http.check_open()
        try:
            await self._wiring.open()
        except BaseException:
            self._closed = True
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if is_closed_coroutine(exc):
            self._closed = True
            self._wiring.http.close_soon()
            return
        await self.aclose()

    def __repr__(self) -> str:
        # The constructor may have failed.
        settings: Settings | None = getattr(self, "_settings", None)
        shown = settings.api_base_url if settings else "(not set up)"
        return f"<AsyncCortecs {shown}{' closed' if self._closed else ''}>"

    def __reduce__(self) -> str:
        raise TypeError("A client cannot be pickled. Create one in each process, and send handles instead.")

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(
                f"{self!r} was never closed. Use `async with`, or `await client.aclose()`.",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
