"""`client.sweep`, `client.orphans` and `client.owners`: the instances in the journals; and `client.diagnose`.

`RecoveryMethods` is a mixin, because `client.py` would be too long with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .._durations import Duration
from .._public import shown_as_client

if TYPE_CHECKING:
    from .._recovery.owners import Owner
    from .._recovery.sweep import Orphan
    from .diagnosis import Finding
    from .wiring import Wiring


@shown_as_client
class RecoveryMethods:
    """The methods of `AsyncCortecs` that read the journals, and `diagnose`."""

    _wiring: Wiring

    async def diagnose(self) -> tuple[Finding, ...]:
        """Check credentials, inference API key, service, token, clock, journal and reaper, in bounded time.

        This starts nothing that is billed. Problems are reported in the findings, not raised. Missing
        credentials are one of them, so call this on a client that you have not entered.
        """
        return await self._wiring.diagnose()

    async def sweep(
        self, *, dry_run: bool = False, force: bool = False, timeout: Duration = 330.0
    ) -> tuple[Orphan, ...]:
        """Release instances that dead processes left behind.

        Only instances that a journal proves to be theirs are touched. Instances that a reaper is still
        `releasing` are only reported.

        Args:
            dry_run: Only report what a sweep would release.
            force: Also release what a reaper is still releasing, for example because its client secret was
                rotated. This is safe even while the reaper is working. Instances of running processes are not
                touched, except those that they failed to release.
            timeout: Time for the whole sweep. What is not done by then is `left` or `unsettled`. The
                default is long enough to decide about a start that was just sent.

        Returns:
            One `Orphan` for each; its `state` says what happened.

        Raises:
            InvalidArgumentError: if the timeout is invalid.
            JournalError: if the state directory cannot be used.
            RequestError: if the service rejects a request, or cannot be reached.
        """
        return await self._wiring.sweep(dry_run=dry_run, force=force, timeout=timeout)

    async def orphans(self) -> tuple[Orphan, ...]:
        """Return what `sweep` would find. This changes nothing.

        Raises:
            JournalError: if the state directory cannot be used.
            RequestError: if the service rejects a request, or cannot be reached.
        """
        return await self.sweep(dry_run=True)

    async def owners(self) -> Mapping[str, Owner]:
        """Return the owners of all instances in the journals of the state directory, by instance id.

        An instance that is missing here was started by hand, on another machine, or with `acquire` without a
        limit. This reads files only and sends no request.

        Raises:
            JournalError: if the state directory cannot be used.
        """
        return await self._wiring.owners()
