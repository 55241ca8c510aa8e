"""Releasing what `client.acquire` gave away, from whatever process."""

from __future__ import annotations

import anyio
from attrs import define

from ._aio.clock import clock
from ._aio.tasks import run_to_end
from ._api.instances import Origin
from ._api.validation import check_named_id
from ._errors import InvalidArgumentError
from ._handle import InstanceHandle
from ._release import Holding, Release
from ._telemetry import LeaseInfo, Report
from ._workshop import Workshop


async def release_acquired(shop: Workshop, handle: InstanceHandle | str, timeout: float) -> None:
    """Stops and deletes an instance, and returns when it is read to be gone, whatever becomes of the caller.

    Raises:
        InvalidArgumentError: for what is no handle and no id, or a handle of another account.
        TeardownError: when it could not be done in `timeout` seconds.
        RequestError: when the service refuses to list instances.
    """
    account = handle.account if isinstance(handle, InstanceHandle) else None
    instance_id = check_named_id(handle.instance_id if isinstance(handle, InstanceHandle) else handle)
    info = LeaseInfo(operation="release", instance_id=instance_id)
    report = Report(shop.observer, lambda: info, clock())
    returning = _Return(shop, instance_id, account, anyio.current_time() + timeout, report)
    shop.http.hold()
    try:
        ended = await run_to_end(returning.run, resume=True)
        report.leave(ended.error)
        ended.interruption = ended.interruption or report.interruption
        ended.unwrap()
    finally:
        await shop.http.release()


@define(eq=False)
class _Return:
    """One release; can be taken up again after an interruption."""

    shop: Workshop
    instance_id: str
    account: str | None
    deadline: float
    report: Report
    release: Release | None = None

    async def run(self) -> None:
        """Works until it is done."""
        shop = self.shop
        if self.release is None:
            # And with the list the token, which tells the account.
            listed = {each.instance_id for each in await shop.instances.list_now()}
            key = shop.keeper.key_of(self.instance_id)
            if self.instance_id not in listed:
                if self.account not in {None, shop.keeper.account}:
                    raise InvalidArgumentError(
                        f"instance {self.instance_id} was acquired with other credentials, "
                        "and these do not show it"
                    )
                if key is not None:
                    shop.keeper.done(key)
                return
            # Promised, so that it happens even when this process is killed meanwhile.
            key = shop.keeper.created(key, self.instance_id, goal="gone")
            self.release = Release(
                instances=shop.releasing,
                starter=shop.starter,
                keeper=shop.keeper,
                holding=Holding(instance_id=self.instance_id, origin=Origin.STARTED, key=key),
                on_exit="delete",
                deadline=self.deadline,
                on_work=self.report.tear_down,
            )
        await shop.keeper.settle_anyhow()
        await self.release.run()
        if self.release.failure is not None:
            raise self.release.failure
