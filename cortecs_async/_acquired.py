"""Releasing what `client.acquire` gave away, from whatever process."""

from __future__ import annotations

import anyio

from ._arguments import check_named_id
from ._detached import run_to_end
from ._errors import InvalidArgumentError
from ._handle import InstanceHandle
from ._instances import Origin
from ._release import Holding, Release
from ._workshop import Workshop


async def release_acquired(shop: Workshop, handle: InstanceHandle | str, timeout: float) -> None:
    """Stops and deletes an instance, and returns when it is read to be gone.

    Raises:
        InvalidArgumentError: for what is no handle and no id, or a handle of another account.
        TeardownError: when it could not be done in `timeout` seconds.
        RequestError: when the service refuses to list instances.
    """
    account = handle.account if isinstance(handle, InstanceHandle) else None
    instance_id = check_named_id(handle.instance_id if isinstance(handle, InstanceHandle) else handle)
    shop.http.hold()
    try:
        # And with the list the token, which tells the account.
        listed = {each.instance_id for each in await shop.instances.list()}
        key = shop.keeper.key_of(instance_id)
        if instance_id not in listed:
            if account not in {None, shop.keeper.account}:
                raise InvalidArgumentError(
                    f"{handle!r} was acquired with other credentials, and these do not show it"
                )
            if key is not None:
                shop.keeper.done(key)
            return
        # Promised, so that it happens even when this process is killed meanwhile.
        key = shop.keeper.created(key, instance_id, goal="gone")
        release = Release(
            instances=shop.releasing,
            starter=shop.starter,
            keeper=shop.keeper,
            holding=Holding(instance_id=instance_id, origin=Origin.STARTED, key=key),
            on_exit="delete",
            deadline=anyio.current_time() + timeout,
        )
        await shop.keeper.settle_anyhow()
        (await run_to_end(release.run, resume=True)).unwrap()
        if release.failure is not None:
            raise release.failure
    finally:
        await shop.http.release()
