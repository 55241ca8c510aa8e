"""Connect the layers below `AsyncCortecs`. Imported when the first client is created."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio
from attrs import frozen

from .._aio.closing import is_closed_coroutine
from .._aio.threads import System
from .._api.instances import Instances
from .._api.resources import HardwareTypes, Models, Send, User
from .._api.unknown_names import UnknownNames
from .._api.validation import check_bool
from .._config import ProtectionMode, Settings
from .._credentials import uses_inference
from .._durations import Duration, check_seconds
from .._errors import ConfigurationError
from .._http.client import HTTP
from .._http.connections import HTTPClient
from .._lease.capacity import CapacityQueue
from .._lease.handle import InstanceHandle
from .._lease.lease import InstanceLease
from .._lease.options import LeaseOptions
from .._lease.pricing import Prices
from .._lease.release import release_acquired
from .._lease.starter import Starter
from .._lease.state import LeaseServices
from .._logging import Event, log
from .._public import publish_loaded
from .._recovery.owners import Owner, owners
from .._recovery.promises import Promises
from .._recovery.sweep import Orphan, sweep
from .._state_directory import state_directory
from .._telemetry import Observer, Telemetry
from .diagnosis import Finding, diagnose

if TYPE_CHECKING:
    from .costs import CostGroup, CostReport


@frozen
class Endpoints:
    """A client's endpoints, which send their requests with the same function."""

    instances: Instances
    models: Models
    hardware_types: HardwareTypes
    user: User


class Wiring:
    """The parts of one client, connected.

    Attributes:
        system: The clock and the threads of new clients. Tests replace it.
    """

    system: ClassVar[System] = System()

    def __init__(
        self,
        settings: Settings,
        *,
        http_client: HTTPClient | None,
        guard: ProtectionMode,
        journal: ProtectionMode,
        state_dir: str | os.PathLike[str] | None,
        telemetry: Telemetry | None,
        allow_insecure_http: bool,
    ) -> None:
        self.settings: Settings = settings
        self.http_client: HTTPClient | None = http_client
        self.journal: ProtectionMode = journal
        self.state_dir: Path = state_directory(state_dir)
        self.allow_insecure_http: bool = allow_insecure_http
        self.promises: Promises = Promises(
            settings,
            journal=journal,
            guard=guard,
            directory=self.state_dir,
            system=self.system,
            is_direct=http_client is None and settings.transport == "httpx",
        )
        self._observer = Observer(telemetry)
        self.http: HTTP = HTTP(
            settings,
            http_client=http_client,
            on_credentials=self.promises.remember_credentials,
            on_close=self._leave,
            on_retry=self._observer.retry,
        )
        self._observer.redact = self.http.redact
        self._leased = leased = Instances(self.http.request_for_lease, settings.poll)
        leased.poller.loop = self.http.loop
        leased.claims.on_plain_start = self.promises.note_foreign_start
        self._names = UnknownNames(
            self.http.request_for_lease, leased.reader, leased.poller.expected, self.http.one_line
        )
        self._releasing = Instances(self.http.request_once, settings.poll, twin=leased)
        self.own: Endpoints = self.endpoints(self.http.request)
        models = Models(self.http.request_for_lease, leased.reader)
        hardware_types = HardwareTypes(self.http.request_for_lease, leased.reader)
        self._services = LeaseServices(
            http=self.http,
            instances=leased,
            releasing=self._releasing,
            poll=settings.poll,
            promises=self.promises,
            starter=Starter(
                instances=leased,
                models=models,
                promises=self.promises,
                settings=settings,
                observer=self._observer,
            ),
            prices=Prices(hardware_types, models),
            capacity=CapacityQueue(hardware_types, self.http.check_open),
            observer=self._observer,
            names=self._names,
            allow_insecure_http=allow_insecure_http,
            sources=settings.sources,
            http_client=http_client,
        )
        self._has_checked_key = False

    def endpoints(self, send: Send) -> Endpoints:
        """Return the endpoints with a different `send`. Waits use the client's poller."""
        send = self._names.explaining(send)
        return Endpoints(
            Instances(send, self.settings.poll, twin=self._leased),
            Models(send, self._leased.reader),
            HardwareTypes(send, self._leased.reader),
            User(send),
        )

    async def _leave(self) -> None:
        self._services.prices.stop()
        self._observer.catch_up()
        await self.promises.aclose()

    def lease(self, options: LeaseOptions) -> InstanceLease:
        self.check_start(options)
        return InstanceLease(self._services, options)

    def check_start(self, options: LeaseOptions) -> None:
        """Check that there are credentials, and the inference API key if it is needed."""
        self.settings.sources.check()
        if options.require_key is not False:
            self._check_inference_key(is_required=options.require_key is True)

    def _check_inference_key(self, *, is_required: bool) -> None:
        """Check for a missing inference API key before an instance is billed. The warning is logged once."""
        if not is_required and (self._has_checked_key or not uses_inference()):
            return
        self._has_checked_key = True
        if problem := self.settings.sources.inference_key_problem():
            if is_required:
                raise ConfigurationError(f"{problem} Nothing was started (require_key=True).")
            log(Event.CONFIG_INFERENCE_KEY, problem=problem)

    async def release(self, handle: InstanceHandle | str, timeout: Duration) -> None:
        seconds = check_seconds("teardown_timeout", timeout)
        self.http.check_open()
        await release_acquired(self._services, handle, seconds)

    async def sweep(self, *, dry_run: bool, force: bool, timeout: Duration) -> tuple[Orphan, ...]:
        check_bool("dry_run", dry_run)
        check_bool("force", force)
        seconds = check_seconds("timeout", timeout)
        self.http.check_open()
        self.http.hold()
        try:
            return await sweep(self._releasing, self.promises, dry_run=dry_run, force=force, timeout=seconds)
        finally:
            await self.http.release()

    async def costs(
        self, *, since: Duration | date | None, until: Duration | date | None, by: CostGroup | None
    ) -> CostReport:
        from .costs import costs  # noqa: PLC0415  (no lease needs it)

        self.http.check_open()
        return await costs(self.promises, since=since, until=until, by=by)

    async def owners(self) -> Mapping[str, Owner]:
        self.http.check_open()
        return await owners(self.promises)

    async def diagnose(self) -> tuple[Finding, ...]:
        self.http.check_open()
        return await diagnose(self.settings, self.http, self.promises)

    async def open(self) -> None:
        """Enter the client if it has credentials, and log if there is something to sweep."""
        try:
            self.settings.sources.check()
            await self.promises.report_orphans()
        except BaseException as error:
            if is_closed_coroutine(error):
                self.http.close_soon()
            else:
                with anyio.CancelScope(shield=True):
                    await self.http.aclose()
            raise


# The modules of all public names are loaded now.
publish_loaded()
