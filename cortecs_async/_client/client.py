"""`AsyncCortecs`: wires the layers together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .._api.domain import InstanceArgs
from .._api.validation import check_instance_id, check_start
from .._config import (
    MAX_CONNECTIONS,
    Mode,
    PollPolicy,
    RetryPolicy,
    Settings,
    TransportName,
    check_mode,
    resolve_settings,
)
from .._errors import ConfigurationError
from .._lease.options import LeaseOptions, OnExit, OnLoss
from .._logging import set_up_log
from .._secrets import CredentialProvider, Secret
from .batches import BatchMethods
from .with_options import CallMethods

if TYPE_CHECKING:
    from .._api.instances import Instances
    from .._api.resources import HardwareTypes, Models, User
    from .._api.waiting import ProgressCallback
    from .._http.connections import HTTPClient
    from .._lease.endpoint import InstanceHandle
    from .._lease.lease import InstanceLease
    from .._recovery.owners import Owner
    from .._recovery.sweep import Orphan
    from .._telemetry import Telemetry
    from .diagnosis import Finding


class AsyncCortecs(BatchMethods, CallMethods):
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
            here, and its own time-outs, redirects and authentication are not used. When it has no connection
            free for a second, looks and releases go out on one of ours, with the proxies and certificates of
            the environment, as the reaper's do.
        allow_insecure_http: Allows a plain-http base URL beyond this machine, where credentials can be read
            on the way.
        guard: The reaper, a child process that hands instances back should this one be killed, started before
            the first lease. `auto` goes on with a warning where there can be none; `required` refuses to
            start anything then; `off` has none. It connects by itself, with the environment's proxies and
            certificates, not through `http_client`.
        journal: The same three for the journal, the file that `sweep` reads when the reaper died as well.
        state_dir: Where journals lie. Default: the environment's CORTECS_STATE_DIR, else the user's state
            directory. In a container, a volume that outlives it.
        max_connections: How many requests are under way at once; more wait for their turn, releases first. A
            fifth is kept for releases, and the looks of the waits, few at a time, come on top.
        transport: What carries requests: `httpx`; or `aiohttp`, which takes about two thirds of the CPU, on
            asyncio only, and needs the extra of that name.
        telemetry: Is told about leases. `cortecs_async.integrations.opentelemetry.OpenTelemetry()` makes
            spans and metrics of it.

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
        guard: Mode = "auto",
        journal: Mode = "auto",
        state_dir: str | os.PathLike[str] | None = None,
        max_connections: int = MAX_CONNECTIONS,
        transport: TransportName = "httpx",
        telemetry: Telemetry | None = None,
    ) -> None:
        self._closed = True  # for __del__, should the next line raise
        set_up_log(os.environ)
        secret = Secret(client_secret) if client_secret is not None else None
        del client_secret  # a traceback that shows locals would show it
        self._settings: Settings = resolve_settings(
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
            max_connections=max_connections,
            transport=transport,
            environ=os.environ,
        )
        check_mode("guard", guard)
        check_mode("journal", journal)
        if http_client is not None and transport != "httpx":
            raise ConfigurationError("give either http_client or transport, not both")
        # Here, because it brings httpx and everything else along: a program that imports the package and
        # makes no client, such as one that prints its --help, need not wait for that.
        from .wiring import Wiring  # noqa: PLC0415

        self._wiring = Wiring(
            self._settings,
            http_client=http_client,
            guard=guard,
            journal=journal,
            state_dir=state_dir,
            telemetry=telemetry,
        )
        self.instances: Instances = self._wiring.instances
        self.models: Models = self._wiring.models
        self.hardware_types: HardwareTypes = self._wiring.hardware_types
        self.user: User = self._wiring.user
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
        max_lifetime: float | None = None,
        max_cost: float | None = None,
        on_loss: OnLoss = "cancel",
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
            max_lifetime: Seconds that the instance may live, from the request that starts it. Then the block
                is cancelled, the instance released, and `LeaseExpiredError` raised. Where the event loop is
                blocked, the reaper releases the instance some seconds later.
            max_cost: The same as an amount in the account's currency: as long as the intervals last that it
                pays for, at the list price.
            on_loss: `cancel` ends the block with `InstanceLostError` when the instance stops or vanishes
                under it; `ignore` lets it go on.
            on_progress: Called with a `Progress` at every change while it starts; may be async. What it
                raises ends the start, and the instance with it.

        Raises:
            InvalidArgumentError: for bad arguments, at once and before any request.
        """
        return self._wiring.lease(
            LeaseOptions(
                args=check_start(
                    model_id,
                    hardware_type_id,
                    context_length=context_length,
                    num_workers=num_workers,
                    billing_interval=billing_interval,
                ),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit=on_exit,
                reuse=reuse,
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                on_loss=on_loss,
                on_progress=on_progress,
            )
        )

    def attach(
        self,
        instance_id: str,
        *,
        start_timeout: float = 900.0,
        on_loss: OnLoss = "cancel",
        on_progress: ProgressCallback | None = None,
    ) -> InstanceLease:
        """Borrows an instance that somebody else answers for: `async with client.attach(id) as inst:`.

        Entering waits until it is usable; leaving does nothing to it, ever.

        Args:
            instance_id: Which one.
            start_timeout: Seconds from entering until it must be usable.
            on_loss: As for `instance`.
            on_progress: As for `instance`.

        Raises:
            InvalidArgumentError: for what is no id, at once. Entering raises `BadRequestError` or
                `NotFoundError` for an unknown one, and `StartFailedError` for one that is stopped.
        """
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
        billing_interval: str = "per_minute",
        start_timeout: float = 900.0,
        teardown_timeout: float = 120.0,
        max_lifetime: float | None = None,
        max_cost: float | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> InstanceHandle:
        """Starts an instance that outlives this process, for those who cannot hold a context manager.

        Until it is usable it is as safe as in `instance`. Then it is the holder's of the handle, who must
        `release` it: **nothing else ends it but `max_lifetime` or `max_cost`**, which the reaper enforces,
        and `sweep` if that died.

        Args:
            model_id: As for `instance`, and so are the others.
            hardware_type_id: Default: the model's `recommended_config`.
            context_length: Tokens.
            num_workers: 1 to 8.
            billing_interval: `per_minute` or `per_hour`.
            start_timeout: Seconds until it must be usable.
            teardown_timeout: Seconds for the release of one that does not become usable.
            max_lifetime: Seconds that the instance may live. Give it.
            max_cost: The same as an amount.
            on_progress: Called with every change while it starts.

        Raises:
            InvalidArgumentError: for bad arguments, before any request.
            CortecsError: as entering `instance(...)`; there is no instance then.
        """
        lease = self._wiring.lease(
            LeaseOptions(
                args=check_start(
                    model_id,
                    hardware_type_id,
                    context_length=context_length,
                    num_workers=num_workers,
                    billing_interval=billing_interval,
                ),
                start_timeout=start_timeout,
                teardown_timeout=teardown_timeout,
                on_exit="keep",
                max_lifetime=max_lifetime,
                max_cost=max_cost,
                on_loss="ignore",
                on_progress=on_progress,
            )
        )
        return await lease.into_handle()

    async def release(self, handle: InstanceHandle | str, *, teardown_timeout: float = 120.0) -> None:
        """Stops and deletes an acquired instance, and returns when it is read to be gone.

        From any process, any number of times: one that is gone already is no error. Out of reach of
        cancellation, as the end of a lease.

        Args:
            handle: What `acquire` gave, or an instance's id.
            teardown_timeout: Seconds, retries included.

        Raises:
            InvalidArgumentError: for what is neither, or a handle of another account.
            TeardownError: when it could not be done in time; the reaper goes on.
            RequestError: when the service refuses to list instances.
        """
        await self._wiring.release(handle, teardown_timeout)

    async def sweep(self, *, dry_run: bool = False, timeout: float = 300.0) -> tuple[Orphan, ...]:
        """Releases what processes that died have left behind, as far as their journals prove it.

        Never what a living process answers for, nor what cannot be told from somebody else's.

        Args:
            dry_run: Only say what there is.
            timeout: Seconds.

        Returns:
            What became of each; see `Orphan.state`.

        Raises:
            InvalidArgumentError: for a bad timeout.
            RequestError: when the service cannot be asked.
        """
        return await self._wiring.sweep(dry_run=dry_run, timeout=timeout)

    async def orphans(self) -> tuple[Orphan, ...]:
        """What `sweep` would find.

        Raises:
            RequestError: when the service cannot be asked.
        """
        return await self.sweep(dry_run=True)

    async def owners(self) -> Mapping[str, Owner]:
        """Who answers for the instances that the journals in the state directory name, by their ids.

        Nobody there does for one that is not among them: it was started by hand, on another machine, or with
        `acquire` without a limit. Reads files only; asks the service nothing.
        """
        return await self._wiring.owners()

    async def diagnose(self) -> tuple[Finding, ...]:
        """Checks credentials, service, token, clock, journal and reaper, one by one, in bounded time.

        Starts nothing that is billed, and raises for nothing that it finds.
        """
        return await self._wiring.diagnose()

    async def aclose(self) -> None:
        """Closes the client; calling it again does nothing.

        Leases that are still open can release what they hold: the connections close with the last of them.
        """
        self._closed = True
        await self._wiring.http.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self._wiring.open()
        except BaseException:
            self._closed = True
            raise
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

    def __reduce__(self) -> str:
        raise TypeError("a client stays in its process: make one in each, and send handles between them")

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(
                f"{self!r} was never closed: use `async with`, or `await client.aclose()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
