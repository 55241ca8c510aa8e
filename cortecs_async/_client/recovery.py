"""The methods of a client that read the files in the state directory, and `client.diagnose`.

`RecoveryMethods` is a mixin, because `client.py` would be too long with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .._public import shown_as_client

if TYPE_CHECKING:
    from datetime import date

    from .._durations import Duration
    from .._recovery.owners import Owner
    from .._recovery.sweep import Orphan
    from .costs import CostGroup, CostReport
    from .diagnosis import Finding
    from .wiring import Wiring


@shown_as_client
class RecoveryMethods:
    """The methods of `AsyncCortecs` that read the state directory, and `diagnose`."""

    _wiring: Wiring

    async def diagnose(self) -> tuple[Finding, ...]:
        """Check your setup: credentials, inference API key, service, token, clock, journal, and reaper.

        This does not start anything billable. Each check takes at most 20 seconds. Problems are returned, not
        raised. If you call this on a client you have not entered, missing credentials are also reported.

        Returns:
            One `Finding` for each check.

        Example:
            for finding in await client.diagnose():
                print(finding)
        """
        return await self._wiring.diagnose()

    async def costs(
        self,
        since: Duration | date | None = "30d",
        until: Duration | date | None = None,
        *,
        by: CostGroup | None = "project",
    ) -> CostReport:
        """Return what the leases that ended on this machine cost, from the cost ledger.

        **This is an estimate from list prices. Your invoice is authoritative.** It includes all accounts that
        used this state directory with the client's `api_base_url`. See "See what you spent" in docs/costs.md
        for what is missing. This only reads files: it sends no requests and works without credentials.

        Args:
            since: The start of the period: a duration before now, such as "30d" (the default); a date, which
                begins at midnight in your time zone; a datetime; or one of these in ISO 8601, such as
                "2026-11-01". None means everything.
            until: The end of the period, like `since`. A lease that ends at this moment does not count.
                Default: now.
            by: `project` (default), `model`, `hardware`, `day` (in your time zone), or `outcome`. With None,
                there is one row for each lease.

        Returns:
            The costs by group, the total, and all leases. A lease belongs to the day on which it ended.

        Raises:
            InvalidArgumentError: if an argument is invalid, or `since` is not before `until`.
            JournalError: if the state directory cannot be used.

        Example:
            report = await client.costs(since="7d", by="model")
            for row in report.rows:
                print(row.key, row.cost, row.currency)
        """
        return await self._wiring.costs(since=since, until=until, by=by)

    async def sweep(
        self, *, dry_run: bool = False, force: bool = False, timeout: Duration = 330.0
    ) -> tuple[Orphan, ...]:
        """Release the instances that dead processes left behind.

        A sweep reads the journals on this machine. It releases only instances that a journal proves to belong
        to these processes. Instances that a reaper is still releasing are only reported, as `releasing`.

        Args:
            dry_run: If True, only report what a sweep would release.
            force: If True, also release instances that a reaper is still trying to release, for example with
                a client secret that was rotated. This is safe even while the reaper is working. Instances of
                running processes are left alone, unless the process tried to release them and failed.
            timeout: Maximum time for the whole sweep. Default: 330 seconds, which is long enough to settle a
                start that was just sent. Anything unfinished by then is reported as `left` or `unsettled`.

        Returns:
            One `Orphan` for each instance. Its `state` says what happened.

        Raises:
            InvalidArgumentError: if the timeout is invalid.
            JournalError: if the state directory cannot be used.
            RequestError: if the service rejects a request, or cannot be reached.

        Example:
            for orphan in await client.sweep():
                print(orphan)
        """
        return await self._wiring.sweep(dry_run=dry_run, force=force, timeout=timeout)

    async def orphans(self) -> tuple[Orphan, ...]:
        """Return what `sweep` would find, without releasing anything.

        Raises:
            JournalError: if the state directory cannot be used.
            RequestError: if the service rejects a request, or cannot be reached.

        Example:
            for orphan in await client.orphans():
                print(orphan)
        """
        return await self.sweep(dry_run=True)

    async def owners(self) -> Mapping[str, Owner]:
        """Return the owners of the instances in this machine's journals, by instance id.

        An instance that is missing from the result was started by hand, on another machine, or with `acquire`
        without a limit. This only reads files and does not send any requests.

        Raises:
            JournalError: if the state directory cannot be used.

        Example:
            owners = await client.owners()
            for instance in await client.instances.list():
                print(instance, owners.get(instance.instance_id))
        """
        return await self._wiring.owners()
