"""The cost of an instance, and how long a budget lasts.

The service bills each worker for every interval that starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import anyio
from attrs import Factory, field, frozen

from .._aio.background import BackgroundTask
from .._aio.synchronization import SingleFlight
from .._api.billing import cost_of, interval_seconds, intervals_begun
from .._api.catalog import HardwareType, Model
from .._api.domain import InstanceArgs
from .._api.resources import HardwareTypes, Models
from .._display import Row, money_text
from .._errors import InvalidArgumentError, PriceUnknownError
from .._hints import hinted
from .._logging import Event, log
from .options import LeaseOptions

# Seconds kept in reserve at the end of the last interval, so that the stop arrives before the next one
# begins.
_RESERVE = 5.0

# Timeout in seconds for the price list if it is only needed for a receipt.
_PREFETCH_TIMEOUT = 10.0

# Seconds between two such attempts, so that not every lease requests a list that hangs.
_PREFETCH_PAUSE = 60.0


@frozen(kw_only=True)
class Price:
    """The price of one GPU set.

    Attributes:
        per_minute: The price for billing per minute.
        per_hour: The price for billing per hour. Default: 60 times `per_minute`.
        currency: The currency, as reported by the service, or an empty string if unknown.
    """

    per_minute: float
    per_hour: float = field(default=Factory(lambda self: 60 * self.per_minute, takes_self=True))
    currency: str = ""


@hinted
@frozen(kw_only=True)
class Receipt(Row):
    """The time and estimated cost of a lease: `inst.receipt`.

    The cost is computed from the list price. The service's bill is authoritative.

    Attributes:
        instance_id: The id of the instance.
        seconds: Seconds from the start request to the accepted stop request.
        billing_interval: `per_minute` or `per_hour`.
        intervals: Number of billing intervals billed. Partial intervals are rounded up.
        num_workers: Number of workers. Each one is billed for every interval.
        cost: The cost in `currency`, or None if no price is known.
        currency: The currency, as reported by the service, or an empty string if unknown.
        released: Whether the lease has released the instance. If False, the instance may still be billed:
            during the block, after a block whose instance keeps running, and if the release failed.
        hardware_type_id: The hardware type of each worker, or None if unknown.
        hardware_reason: Why this hardware type was used, such as `second choice: NVIDIA_L40S_1 had no
            capacity` or `cheapest of 3 available`. An empty string if there was no choice.

    Example:
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
            ...
        print(inst.receipt.seconds, inst.receipt.cost, inst.receipt.currency)
    """

    instance_id: str
    seconds: float
    billing_interval: str
    intervals: int
    num_workers: int
    cost: float | None
    currency: str = ""
    released: bool = False
    hardware_type_id: str | None = None
    hardware_reason: str = ""

    @property
    def _intervals(self) -> str:
        unit = "minute" if self.billing_interval == "per_minute" else "hour"
        return f"{self.intervals} {unit}{'' if self.intervals == 1 else 's'}"

    def __str__(self) -> str:
        workers = "" if self.num_workers == 1 else f" for {self.num_workers} workers"
        cost = money_text(self.cost, self.currency)
        cost = f"about {cost}" if cost else "at an unknown price"
        hardware = f", on {self.hardware_type_id} ({self.hardware_reason})" if self.hardware_reason else ""
        return f"{self.seconds:.0f} s, billed as {self._intervals}{workers}, {cost}{hardware}"

    def _columns(self) -> Mapping[str, object]:
        return {
            "instance": self.instance_id,
            "hardware": self.hardware_type_id,
            "seconds": f"{self.seconds:.0f}",
            "billed": self._intervals,
            "workers": self.num_workers,
            "cost": money_text(self.cost, self.currency) or "not known",
            "released": "yes" if self.released else "no",
        }


def interval_cost(price: Price, args: InstanceArgs) -> float:
    """Return the cost of one billing interval for all workers."""
    return (price.per_hour if args.billing_interval == "per_hour" else price.per_minute) * args.num_workers


def hourly_cost(price: Price, args: InstanceArgs) -> float:
    """Return the cost of an hour for all workers, with the billing interval of `args`."""
    return interval_cost(price, args) * 3600.0 / interval_seconds(args.billing_interval)


def receipt(instance_id: str, seconds: float, args: InstanceArgs, price: Price | None) -> Receipt:
    intervals = intervals_begun(seconds, args.billing_interval)
    return Receipt(
        instance_id=instance_id,
        seconds=seconds,
        billing_interval=args.billing_interval or "per_minute",
        intervals=intervals,
        num_workers=args.num_workers,
        cost=None if price is None else cost_of(intervals, interval_cost(price, args)),
        currency=price.currency if price else "",
        hardware_type_id=args.hardware_type_id,
    )


def seconds_for(max_cost: float, price: Price, args: InstanceArgs) -> float:
    """Return the number of seconds an instance can run on a budget.

    Raises:
        InvalidArgumentError: if the budget is less than one billing interval.
    """
    cost = interval_cost(price, args)
    if math.isinf(max_cost / cost):
        return math.inf
    affordable = math.floor(max_cost / cost + 1e-9)
    if affordable < 1:
        workers = f"{args.num_workers} worker{'' if args.num_workers == 1 else 's'}"
        raise InvalidArgumentError(
            f"max_cost={max_cost:g} is less than one billing interval ({args.billing_interval}, "
            f"{workers}), which costs {f'{cost:g} {price.currency}'.rstrip()}. Raise max_cost."
        )
    return affordable * interval_seconds(args.billing_interval) - _RESERVE


def read_price(hardware_type: HardwareType) -> Price | None:
    per_minute, per_hour = hardware_type.price_per_minute, hardware_type.price_per_hour
    if per_minute is None or per_hour is None:
        return None
    return Price(per_minute=per_minute, per_hour=per_hour, currency=hardware_type.currency)


class Prices:
    """The service's price list, fetched once per client."""

    def __init__(self, hardware_types: HardwareTypes, models: Models) -> None:
        self._hardware_types = hardware_types
        self._models = models
        self._known: dict[str, Price | None] = {}
        self._reading = SingleFlight(self._read)
        self._reading_models: dict[str, SingleFlight[Model]] = {}
        self._prefetching: BackgroundTask | None = None
        self._paused_until = -math.inf
        # Hardware types to mark as known after the prefetch, even if they are not in the list.
        self._wanted: set[str] = set()

    def of(self, hardware_type_id: str | None) -> Price | None:
        return self._known.get(hardware_type_id or "")

    def prefetch(self, hardware_type_id: str | None) -> None:
        """Fetch the price list in the background for a receipt. A failure is only logged."""
        if (hardware_type_id or "") in self._known or anyio.current_time() < self._paused_until:
            return
        self._wanted.add(hardware_type_id or "")
        if self._prefetching is None:
            self._prefetching = BackgroundTask(self._prefetch)

    def stop(self) -> None:
        """End the prefetch, because the client is closed."""
        if self._prefetching is not None:
            self._prefetching.stop()

    async def _prefetch(self) -> None:
        try:
            self._paused_until = anyio.current_time() + _PREFETCH_PAUSE
            with anyio.move_on_after(_PREFETCH_TIMEOUT):
                self._add(await self._hardware_types.list_once())
                self._known = {**dict.fromkeys(self._wanted), **self._known}
        except Exception as error:  # noqa: BLE001  (no error about a price may prevent starting an instance)
            log(Event.LEASE_NO_PRICES, error_type=type(error).__name__, error=error)
        finally:
            self._prefetching = None

    async def limit(self, options: LeaseOptions, args: InstanceArgs) -> tuple[float, str]:
        """Return how many seconds an instance with `args` can run, and the limit: `max_lifetime=60 s`."""
        max_lifetime, max_cost = options.max_lifetime, options.max_cost
        lifetime, name = math.inf, ""
        if max_lifetime is not None:
            lifetime, name = max_lifetime, f"max_lifetime={max_lifetime:g} s"
        if max_cost is not None:
            price = await self._get(args)
            affordable = seconds_for(max_cost, price, args)
            if affordable < lifetime:
                lifetime, name = affordable, f"max_cost={max_cost:g} {price.currency}".rstrip()
        return lifetime, name

    async def _get(self, args: InstanceArgs) -> Price:
        hardware = args.hardware_type_id
        if hardware is None:
            hardware = (await self.model(args.model_id)).recommended_config
        await self.fetch(hardware)
        price = self.of(hardware)
        if price is None:
            raise PriceUnknownError(
                f"max_cost needs a price, but the service did not return a usable price for {hardware!r}. "
                "Use max_lifetime (seconds) instead. Nothing was started."
            )
        return price

    async def model(self, model_id: str) -> Model:
        """Return a model. Leases that need it at the same time share a request."""
        read = partial(self._models.get, model_id)
        return await self._reading_models.setdefault(model_id, SingleFlight(read)).get()

    async def fetch(self, *hardware: str | None) -> None:
        """Fetch the price list, unless all of these prices are known."""
        if any(self.of(each) is None for each in hardware):
            await self._reading.get()

    async def _read(self) -> None:
        self._add(await self._hardware_types.list())

    def _add(self, types: tuple[HardwareType, ...]) -> None:
        self._known.update({each.hardware_type_id: read_price(each) for each in types})
