"""`AsyncCortecs`: the client, its signatures and their documentation.

It imports no httpx, so that its own import is quick: `wiring.py` does, when the first client is created. The
mixins in `batches.py`, `recovery.py` and `with_options.py` keep this module short.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .._aio.closing import is_closed_coroutine
from .._api.validation import BillingInterval, check_instance_id, check_start
from .._config import (
    MAX_CONNECTIONS,
    PollPolicy,
    ProtectionMode,
    RetryPolicy,
    Settings,
    TransportName,
    URLObject,
    check_mode,
    resolve_settings,
)
from .._durations import Duration
from .._errors import ConfigurationError
from .._hints import hinted
from .._lease.options import LeaseOptions, OnExit, OnLoss
from .._secrets import CredentialProvider, Hidden, Secret, to_secret
from .batches import BatchMethods
from .recovery import RecoveryMethods
from .with_options import CallMethods

if TYPE_CHECKING:
    from .._api.instances import Instances
    from .._api.resources import HardwareTypes, Models, User
    from .._api.waiting import ProgressCallback
    from .._http.connections import HTTPClient
    from .._lease.endpoint import InstanceHandle
    from .._lease.lease import InstanceLease
    from .._telemetry import Telemetry


@hinted
class AsyncCortecs(BatchMethods, CallMethods, RecoveryMethods):
    """A client for the cortecs.ai provisioning API, for asyncio and trio.

    Use it with `async with`, or call `aclose()`. Any number of tasks of one event loop can share a client. In
    another event loop, another thread, or a second `asyncio.run`, its methods raise `ConfigurationError`.
    A `Duration` is a number of seconds, a `timedelta`, or a string such as "90s", "15m" or "1h30m".

    Args:
        client_id: Default: the environment variable CORTECS_CLIENT_ID.
        client_secret: Default: the environment variable CORTECS_CLIENT_SECRET.
        credential_provider: Instead of these two, an async function that returns `Credentials`. It is called
            for every new access token, and so picks up rotated secrets.
        profile: The name of a profile that `cortecs-async login` has stored, to use instead of the
            environment. Default: CORTECS_PROFILE, else `default`, if there are no other credentials.
        anonymous: Use no credentials. Only `models` and `hardware_types` work then.
        api_base_url: A string or a URL object, as of httpx or yarl. Default: the environment variable
            CORTECS_API_BASE_URL, else that of the profile, else `https://cortecs.ai/api/v1`.
        timeout: Time for one attempt of a request, from waiting for a connection to the last byte of the
            response. Polls and releases time out sooner at first: after 3, 6, 12, ... seconds.
        max_retries: Short for `RetryPolicy(max_retries=...)`.
        retry_policy: When and how often to repeat failed requests.
        poll_policy: Polling intervals.
        default_headers: Headers to send with every request.
        http_client: Your own `httpx.AsyncClient` or `httpx2.AsyncClient`, for proxies, certificates or tests.
            You close it; its timeouts, redirects and authentication are not used. If it has no free
            connection for a second, polls and releases use a connection of this client, with the proxies and
            certificates of the environment, as the reaper does.
        allow_insecure_http: Allow plain http to other machines, for `api_base_url` and for the `base_url` of
            instances. This exposes your credentials and API keys to the network.
        guard: The reaper, a child process that releases your instances if this process is killed. It starts
            before the first lease. If it cannot run or cannot reach the service, `auto` logs a warning, and
            `required` raises `GuardError`; `off` disables it. There is no reaper on Windows: leases raise
            `GuardError` unless you pass `off`. It uses the proxies and certificates of the environment, not
            `http_client`.
        journal: The file that `sweep` reads if the reaper died as well: `auto`, `required` or `off`.
        state_dir: The directory of the journals. Default: the environment variable CORTECS_STATE_DIR, else
            the user's state directory. It must belong to this user, and must not be writable by other users.
            A missing one is created. In a container, use a directory on a volume that outlives it.
        max_connections: Maximum number of parallel requests. Others queue; releases go first, and a fifth is
            reserved for them. Status checks do not queue.
        transport: `httpx`; or `aiohttp`, which uses about two thirds of the CPU, works on asyncio only, and
            needs the extra `aiohttp`.
        tag_starts: Ask for a slightly smaller context length in each lease, by a random amount of less than
            1 %. If the response to a start is lost, its instance can then be told apart from equal instances
            of other people. This works only if the service returns the context length.
        telemetry: Receives lease lifecycle events. `cortecs_async.integrations.opentelemetry.OpenTelemetry()`
            turns them into spans and metrics.

    Attributes:
        instances: The instances of the account.
        models: The models that you can start.
        hardware_types: The hardware types.
        user: The account.

    Raises:
        ConfigurationError: if the base URL is invalid or insecure, settings contradict each other, or the
            config file cannot be used. Missing credentials raise `MissingCredentialsError` later: on entering
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
        max_connections: int = MAX_CONNECTIONS,
        transport: TransportName = "httpx",
        tag_starts: bool = False,
        telemetry: Telemetry | None = None,
    ) -> None:
        from .._logging import set_up_log  # noqa: PLC0415  (slow, and `--help` need not wait)
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
            raise ConfigurationError("pass either http_client or transport, not both")
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
        self.instances: Instances = endpoints.instances
        self.models: Models = endpoints.models
        self.hardware_types: HardwareTypes = endpoints.hardware_types
        self.user: User = endpoints.user
        self._closed = False

    def instance(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        start_timeout: Duration = 900.0,
        teardown_timeout: Duration = 120.0,
        on_exit: OnExit = "delete",
        reuse: bool = False,
        max_lifetime: Duration | None = None,
        max_cost: float | None = None,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
    ) -> InstanceLease:
        """Rent an instance for a block: `async with client.instance(...) as inst:`.

        Entering the block starts the instance and waits until it is usable. However you leave the block, the
        instance is stopped and deleted, and the block returns once the service confirms that it is gone.
        Cancellations and timeouts cannot interrupt the release. Billing begins with the start request, before
        the block does.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: 32,000, or the longest on this hardware if that is shorter.
            num_workers: 1 to 8. Each worker has its own GPU set and is billed for it. The block begins when
                the first one is running.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Time from entering until the instance must be usable.
            teardown_timeout: Time for the release, retries included.
            on_exit: `delete`; `stop`, which ends billing and keeps the instance for a restart; or `keep`,
                which leaves it **running and billed**. If entering fails, the instance is always deleted.
            reuse: Use an instance with these arguments if there is one, as `instances.ensure` does. It is
                left as it was found: running, or stopped again.
            max_lifetime: Maximum time from the start request to the release. Then the block is cancelled,
                the instance is released, and `LeaseExpiredError` is raised. If the event loop is blocked, the
                reaper releases the instance some seconds later.
            max_cost: The same limit as an amount in the account's currency, at the list price. The limit is
                converted to whole billing intervals.
            on_loss: If the instance stops or disappears during the block, `cancel` ends the block with
                `InstanceLostError`, and `ignore` keeps it running.
            on_progress: Called with a `Progress` at every change while the instance starts; may be async. If
                it raises, the start fails and the instance is deleted.
            require_key: Check the inference API key before the start. True: raise an error if it is missing
                or obviously wrong. None: log a warning if a package for inference is installed. False: no
                check. Only the instance itself can tell whether the key is accepted.

        Raises:
            InvalidArgumentError: if an argument is invalid. No request is sent in either case.
            ConfigurationError: if there are no credentials, or no key with `require_key=True`.
        """
        return self._wiring.lease(
            LeaseOptions(
                args=check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit=on_exit,
                reuse=reuse,
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                on_loss=on_loss,
                on_progress=on_progress,
                require_key=require_key,
            )
        )

    def attach(
        self,
        instance_id: str,
        *,
        start_timeout: Duration = 900.0,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
    ) -> InstanceLease:
        """Attach to a running instance without managing its lifetime.

        Entering `async with client.attach(id) as inst:` waits until the instance is usable. Leaving the block
        never changes the instance.

        Args:
            instance_id: The id of the instance.
            start_timeout: Time from entering until the instance must be usable.
            on_loss: As for `instance`.
            on_progress: As for `instance`.

        Raises:
            InvalidArgumentError: if the id is invalid; no request is sent. Entering raises `BadRequestError`
                or `NotFoundError` if the id is unknown, and `StartFailedError` if the instance is stopped.
        """
        from .._api.domain import InstanceArgs  # noqa: PLC0415  (slow to import)

        return self._wiring.lease(
            LeaseOptions(
                args=InstanceArgs(model_id=""),
                borrowed=check_instance_id(instance_id),
                start_timeout=start_timeout,
                on_exit="keep",
                on_loss=on_loss,
                on_progress=on_progress,
            )
        )

    async def acquire(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        num_workers: int = 1,
        billing_interval: BillingInterval = "per_minute",
        start_timeout: Duration = 900.0,
        teardown_timeout: Duration = 120.0,
        max_lifetime: Duration | None = None,
        max_cost: float | None = None,
        on_progress: ProgressCallback | None = None,
        require_key: bool | None = None,
    ) -> InstanceHandle:
        """Start an instance that outlives this process. You must `release` it.

        Use this if you cannot hold a context manager open. Until the instance is usable, it is as safe as
        with `instance`. After that, **only `max_lifetime` or `max_cost` ends it**, enforced by the reaper, or
        by `sweep` if the reaper died.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens. Default: as for `instance`.
            num_workers: 1 to 8.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Time until the instance must be usable.
            teardown_timeout: Time to release an instance that does not become usable.
            max_lifetime: Maximum time from the start request to the release. Always set a limit.
            max_cost: The same limit as an amount.
            on_progress: As for `instance`.
            require_key: As for `instance`.

        Raises:
            InvalidArgumentError: if an argument is invalid; no request is sent.
            CortecsError: as when you enter `instance(...)`; there is no instance then.
        """
        lease = self._wiring.lease(
            LeaseOptions(
                args=check_start(model_id, hardware_type_id, context_length, num_workers, billing_interval),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit="keep",
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                on_loss="ignore",
                on_progress=on_progress,
                require_key=require_key,
            )
        )
        return await lease.into_handle()

    async def release(self, handle: InstanceHandle | str, *, teardown_timeout: Duration = 120.0) -> None:
        """Stop and delete an acquired instance, and return once the service confirms that it is gone.

        You can call this from any process, any number of times: an instance that is gone is no error.
        Cancellations and timeouts cannot interrupt it.

        Args:
            handle: The handle from `acquire`, or the id of an instance.
            teardown_timeout: Time for the release, retries included.

        Raises:
            InvalidArgumentError: if `handle` is neither, or belongs to another account.
            TeardownError: if the instance is not confirmed deleted in time. It says who continues.
            RequestError: if the instances cannot be listed.
        """
        await self._wiring.release(handle, teardown_timeout)

    async def aclose(self) -> None:
        """Close the client. You can call it again.

        Open leases can still release their instances: the connections close with the last lease. This waits
        for the release of leases whose blocks were dropped or closed without being awaited.

        Raises:
            ConfigurationError: in another event loop than that of the client.
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
        raise TypeError("a client cannot be pickled: create one in each process, and send handles")

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(
                f"{self!r} was never closed: use `async with`, or `await client.aclose()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
