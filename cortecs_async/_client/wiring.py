"""Connect the layers below `AsyncCortecs`. Imported when the first client is created.

A new client has only the parts that send requests. The parts for leases, and those that use the state
directory, are imported when they are first used: many programs never start a lease.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio

from .._aio.closing import is_closed_coroutine
from .._aio.threads import System
from .._api.resources import HardwareTypes, ListReader, Models, Send, User
from .._config import ProtectionMode, Settings
from .._credentials import uses_inference
from .._durations import Duration, check_seconds
from .._errors import APIStatusError, ConfigurationError
from .._http.client import HTTP
from .._http.connections import HTTPClient
from .._http.messages import Call, Reply
from .._logging import Event, log
from .._public import publish_loaded
from .._secrets import Credentials
from .._state_directory import has_files, journal_directory, state_directory

if TYPE_CHECKING:
    from .._api.instances import Instances
    from .._api.unknown_names import UnknownNames
    from .._lease.handle import InstanceHandle
    from .._lease.lease import InstanceLease
    from .._lease.options import LeaseOptions
    from .._lease.state import LeaseServices
    from .._recovery.owners import Owner
    from .._recovery.promises import Promises
    from .._recovery.sweep import Orphan
    from .._telemetry import Observer, Telemetry
    from .costs import CostGroup, CostReport
    from .diagnosis import Finding


class Endpoints:
    """A client's endpoints, which send their requests with the same function."""

    def __init__(self, send: Send, reader: ListReader, new_instances: Callable[[], Instances]) -> None:
        self.models: Models = Models(send, reader)
        self.hardware_types: HardwareTypes = HardwareTypes(send, reader)
        self.user: User = User(send)
        self._new_instances = new_instances

    @cached_property
    def instances(self) -> Instances:
        return self._new_instances()


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
        self.guard: ProtectionMode = guard
        self.journal: ProtectionMode = journal
        self.state_dir: Path = state_directory(state_dir)
        self.allow_insecure_http: bool = allow_insecure_http
        self._credentials: Credentials | None = None
        self._promises: Promises | None = None
        self._lease_services: LeaseServices | None = None
        self._observer = None if telemetry is None else _new_observer(telemetry)
        self.http: HTTP = HTTP(
            settings,
            http_client=http_client,
            on_credentials=self._remember_credentials,
            on_close=self._leave,
            on_retry=None if self._observer is None else self._observer.retry,
        )
        if self._observer is not None:
            self._observer.redact = self.http.redact
        self._reader = ListReader()
        self.own: Endpoints = self.endpoints(self.http.request)
        self._has_checked_key = False

    def endpoints(self, send: Send) -> Endpoints:
        """Return the endpoints with a different `send`. Waits use the client's poller."""

        async def send_and_explain(call: Call) -> Reply:
            try:
                return await send(call)
            except APIStatusError as error:
                await self._names.explain(error, call.json or {})
                raise

        return Endpoints(send_and_explain, self._reader, lambda: self._twin(send_and_explain))

    @cached_property
    def _leased(self) -> Instances:
        from .._api.instances import Instances  # noqa: PLC0415

        publish_loaded()
        leased = Instances(self.http.request_for_lease, self.settings.poll, reader=self._reader)
        leased.poller.loop = self.http.loop
        leased.claims.on_plain_start = self._note_plain_start
        return leased

    def _twin(self, send: Send) -> Instances:
        """Return the endpoints of instances with a different `send`."""
        leased = self._leased
        return type(leased)(send, self.settings.poll, twin=leased)

    @cached_property
    def _releasing(self) -> Instances:
        return self._twin(self.http.request_once)

    @cached_property
    def _names(self) -> UnknownNames:
        """Explains rejected requests."""
        from .._api.unknown_names import UnknownNames  # noqa: PLC0415

        expected = self._leased.poller.expected
        return UnknownNames(self.http.request_for_lease, self._reader, expected, self.http.one_line)

    @property
    def promises(self) -> Promises:
        """The client's promises, from the journal."""
        if self._promises is None:
            from .._recovery.promises import Promises  # noqa: PLC0415

            self._promises = Promises(
                self.settings,
                journal=self.journal,
                guard=self.guard,
                directory=self.state_dir,
                system=self.system,
                is_direct=self.http_client is None,
            )
            if self._credentials is not None:
                self._promises.remember_credentials(self._credentials)
        return self._promises

    @property
    def _services(self) -> LeaseServices:
        if self._lease_services is None:
            from .services import lease_services  # noqa: PLC0415

            self._lease_services = lease_services(
                self.settings,
                self.http,
                self.promises,
                self._observer or _new_observer(None),
                self._names,
                instances=self._leased,
                releasing=self._releasing,
                http_client=self.http_client,
                allow_insecure_http=self.allow_insecure_http,
            )
        return self._lease_services

    def _remember_credentials(self, credentials: Credentials, proven: bool) -> None:  # noqa: FBT001
        if self._promises is not None:
            self._promises.remember_credentials(credentials, proven)
        elif proven or self._credentials is None:  # like `Promises.remember_credentials`
            self._credentials = credentials

    def _note_plain_start(self, instance_id: str) -> None:
        # Without promises, no search can take the instance.
        if self._promises is not None:
            self._promises.note_foreign_start(instance_id)

    async def _leave(self) -> None:
        if self._lease_services is not None:
            self._lease_services.prices.stop()
        if self._observer is not None:
            self._observer.catch_up()
        if self._promises is not None:
            await self._promises.aclose()

    def lease(self, options: LeaseOptions) -> InstanceLease:
        from .._lease.lease import InstanceLease  # noqa: PLC0415

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
        from .._lease.release import release_acquired  # noqa: PLC0415

        seconds = check_seconds("teardown_timeout", timeout)
        self.http.check_open()
        await release_acquired(self._services, handle, seconds)

    async def sweep(self, *, dry_run: bool, force: bool, timeout: Duration) -> tuple[Orphan, ...]:
        from .._api.validation import check_bool  # noqa: PLC0415
        from .._recovery.sweep import sweep  # noqa: PLC0415

        publish_loaded()
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
        from .costs import costs  # noqa: PLC0415

        self.http.check_open()
        return await costs(self.promises, since=since, until=until, by=by)

    async def owners(self) -> Mapping[str, Owner]:
        from .._recovery.owners import owners  # noqa: PLC0415

        publish_loaded()
        self.http.check_open()
        return await owners(self.promises)

    async def diagnose(self) -> tuple[Finding, ...]:
        from .diagnosis import diagnose  # noqa: PLC0415

        self.http.check_open()
        return await diagnose(self.settings, self.http, self.promises)

    async def open(self) -> None:
        """Enter the client if it has credentials, and log if there is something to sweep."""
        try:
            self.settings.sources.check()
            await self._report_orphans()
        except BaseException as error:
            if is_closed_coroutine(error):
                self.http.close_soon()
            else:
                with anyio.CancelScope(shield=True):
                    await self.http.aclose()
            raise

    async def _report_orphans(self) -> None:
        # Usually there are no journals, so their modules need not be imported.
        journals = journal_directory(self.state_dir)
        if self.journal != "off" and await self.system.off_loop(lambda: has_files(journals)):
            await self.promises.report_orphans()


def _new_observer(telemetry: Telemetry | None) -> Observer:
    from .._telemetry import Observer  # noqa: PLC0415  (most clients have no telemetry)

    return Observer(telemetry)


publish_loaded()
