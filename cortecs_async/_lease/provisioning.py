"""From nothing to a running instance, with every step promised before it is made."""

from __future__ import annotations

import anyio
from attrs import define

from .._api.domain import Instance
from .._api.instances import Origin
from .._api.waiting import wait_until_running
from .._errors import LeaseExpiredError, RequestTimeoutError, StartTimeoutError
from .._logging import Event, log
from .start_state import State
from .state import Tenure


@define(eq=False, repr=False)
class Opening:
    """The opening of one lease."""

    tenure: Tenure

    async def limit(self) -> None:
        """Finds out how long it may live.

        Raises:
            InvalidArgumentError: when `max_cost` does not pay for one interval.
            PriceUnknownError: when it needs a price and there is none.
            RequestError: when the service cannot be asked.
        """
        tenure = self.tenure
        options = tenure.options
        tenure.lifetime, tenure.limit = await tenure.shop.prices.limit(
            options.args, max_lifetime=options.max_lifetime, max_cost=options.max_cost
        )

    async def start(self) -> None:
        """Starts an instance, or finds one.

        Raises:
            RequestTimeoutError: when none could be had by the deadline.
            CortecsError: as `Starter.start` and `Instances.find_or_start`.
        """
        tenure = self.tenure
        shop, options, holding = tenure.shop, tenure.options, tenure.holding
        start = holding.start = shop.starter.prepare(options.args, self._started)
        with anyio.CancelScope(deadline=tenure.began + options.start_timeout):
            if options.borrowed is not None:
                await self._found(await shop.instances.get(options.borrowed), Origin.FOUND)
            elif options.reuse:
                # Newer than what was found, after a restart.
                tenure.newest = await shop.instances.find_or_start(
                    options.args, start=lambda: shop.starter.start(start), found=self._found
                )
            else:
                await shop.starter.start(start)
            # The intent covers it until this is written.
            await shop.keeper.settle_anyhow()
        if tenure.newest is None:
            # The deadline fell between two attempts, or while the instance of a lost one was looked for.
            unknown = start.state is State.UNKNOWN
            raise RequestTimeoutError(
                f"nothing could be started within start_timeout={options.start_timeout:g} s: the service was "
                "busy or out of reach again and again. "
                + ("Whether one attempt worked is being found out." if unknown else "Nothing was started.")
                + " The log of cortecs_async.http says how.",
                method="POST",
                path="/instances/start",
                outcome_unknown=unknown,
            )
        if holding.origin is Origin.STARTED:
            await shop.prices.hope_for(tenure.newest.instance_args.hardware_type_id)

    def _started(self, instance: Instance) -> None:
        # The answer holds the only copy of the id: from here on the release knows it, whatever comes between.
        tenure = self.tenure
        holding, keeper = tenure.holding, tenure.shop.keeper
        if holding.key is not None:
            keeper.done(holding.key)  # of a restart that came to nothing
        tenure.newest = instance
        holding.instance_id, holding.origin = instance.instance_id, Origin.STARTED
        holding.key = keeper.created(
            holding.start.key if holding.start else None,
            instance.instance_id,
            goal="gone",
            expires_at=tenure.expiry(),
        )
        log(
            Event.LEASE_STARTED,
            "instance %s started",
            instance.instance_id,
            instance_id=instance.instance_id,
            model=instance.instance_args.hf_name,
            request_id=holding.start.request_id if holding.start else None,
        )

    async def _found(self, instance: Instance, origin: Origin) -> None:
        tenure = self.tenure
        holding, keeper = tenure.holding, tenure.shop.keeper
        tenure.newest = instance
        holding.instance_id, holding.origin = instance.instance_id, origin
        if holding.key is not None:
            keeper.done(holding.key)  # of a restart that somebody else was faster with
            holding.key = None
        log(
            Event.LEASE_RESTARTED if origin is Origin.RESTARTED else Event.LEASE_FOUND,
            "instance %s %s",
            instance.instance_id,
            origin.value,
            instance_id=instance.instance_id,
            model=instance.instance_args.hf_name,
        )
        if origin is Origin.RESTARTED:
            holding.key = keeper.created(
                None, instance.instance_id, goal="stopped", expires_at=tenure.expiry()
            )
            await keeper.settle()

    async def wait(self) -> None:
        """Waits until it is usable.

        Raises:
            LeaseExpiredError: when its time was up before that.
            CortecsError: as `wait_until_running`.
        """
        tenure = self.tenure
        options, poll = tenure.options, tenure.shop.poll
        instance_id = tenure.instance.instance_id
        try:
            tenure.newest = await wait_until_running(
                tenure.shop.instances.poller,
                instance_id,
                poll,
                timeout=min(options.start_timeout, tenure.expires_at - tenure.began),
                began=tenure.began,
                settle=0.0 if options.borrowed else poll.settle,
                known=tenure.newest,
                on_progress=options.on_progress,
            )
        except StartTimeoutError as error:
            if tenure.age < tenure.lifetime:
                raise
            raise LeaseExpiredError(
                f"instance {instance_id} has used up {tenure.limit} before it ran ({error})",
                instance_id=instance_id,
            ) from None

    async def hand_over(self) -> None:
        """From here on `on_exit` says what is owed, also should this process be killed."""
        tenure = self.tenure
        holding, options, keeper = tenure.holding, tenure.options, tenure.shop.keeper
        if holding.key is None or options.on_exit == "delete":
            return
        if options.on_exit == "keep":
            keeper.held(holding.key)
        else:
            instance_id = tenure.instance.instance_id
            keeper.created(holding.key, instance_id, goal="stopped", expires_at=tenure.expiry())
        await keeper.settle_anyhow()

    def promise_again(self) -> None:
        """It may have been handed over just before."""
        tenure = self.tenure
        holding = tenure.holding
        is_ours = holding.key is not None and holding.origin is Origin.STARTED
        if is_ours and tenure.options.on_exit != "delete":
            instance_id = tenure.instance.instance_id
            tenure.shop.keeper.created(holding.key, instance_id, goal="gone", expires_at=tenure.expiry())
