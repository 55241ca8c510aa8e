"""What an instance costs, and how long a budget lasts. Billed is each interval begun, for each worker."""

from __future__ import annotations

import math

import anyio
from attrs import frozen

from .._api.domain import HardwareType, InstanceArgs
from .._api.resources import HardwareTypes, Models
from .._errors import InvalidArgumentError, PriceUnknownError
from .._logging import Event, log

_SECONDS = {"per_minute": 60.0, "per_hour": 3600.0}

# Seconds of the last interval that are kept back, so that the stop arrives before the next one begins.
_RESERVE = 5.0

# Seconds for a price that would be nice to have.
_PRICES_TIMEOUT = 10.0


@frozen(kw_only=True)
class Price:
    """The price of one GPU set.

    Attributes:
        per_minute: In `currency`.
        currency: As the service names it; empty where it does not.
    """

    per_minute: float
    currency: str = ""


@frozen(kw_only=True)
class Receipt:
    """What a lease used. Its cost is worked out here from the list price; the service's bill is what counts.

    Attributes:
        instance_id: The instance.
        seconds: From the start's request to the accepted stop.
        billing_interval: `per_minute` or `per_hour`.
        intervals: Intervals begun.
        num_workers: Workers, each billed for every interval.
        cost: In `currency`; None where no price is known.
        currency: As the service names it.
    """

    instance_id: str
    seconds: float
    billing_interval: str
    intervals: int
    num_workers: int
    cost: float | None
    currency: str = ""

    def __str__(self) -> str:
        unit = "minute" if self.billing_interval == "per_minute" else "hour"
        plural = "" if self.intervals == 1 else "s"
        workers = "" if self.num_workers == 1 else f" for {self.num_workers} workers"
        cost = (
            "at an unknown price" if self.cost is None else f"about {self.cost:.2f} {self.currency}".rstrip()
        )
        return f"{self.seconds:.0f} s, {self.intervals} {unit}{plural} begun{workers}, {cost}"


def intervals_begun(seconds: float, billing_interval: str | None) -> int:
    """How many billing intervals are billed for so many seconds: each one begun, and at least one."""
    return max(1, math.ceil(seconds / _interval(billing_interval) - 1e-9))


def cost_of(price: Price, seconds: float, args: InstanceArgs) -> float:
    """What an instance with these arguments costs in so many seconds."""
    minutes = intervals_begun(seconds, args.billing_interval) * _interval(args.billing_interval) / 60.0
    return minutes * price.per_minute * args.num_workers


def receipt(instance_id: str, seconds: float, args: InstanceArgs, price: Price | None) -> Receipt:
    """The receipt for so many seconds."""
    return Receipt(
        instance_id=instance_id,
        seconds=seconds,
        billing_interval=args.billing_interval or "per_minute",
        intervals=intervals_begun(seconds, args.billing_interval),
        num_workers=args.num_workers,
        cost=None if price is None else cost_of(price, seconds, args),
        currency=price.currency if price else "",
    )


def seconds_for(max_cost: float, price: Price, args: InstanceArgs) -> float:
    """How long an instance may live on a budget.

    Raises:
        InvalidArgumentError: when it does not pay for one interval.
    """
    interval = _interval(args.billing_interval)
    each = interval / 60.0 * price.per_minute * args.num_workers
    if each <= 0:
        return math.inf
    if math.isinf(max_cost / each):
        return math.inf
    affordable = math.floor(max_cost / each + 1e-9)
    if affordable < 1:
        raise InvalidArgumentError(
            f"max_cost={max_cost:g} does not pay for one interval ({args.billing_interval}, "
            f"{args.num_workers} worker(s)), which costs {each:g} {price.currency}".rstrip()
        )
    return affordable * interval - _RESERVE


def _interval(billing_interval: str | None) -> float:
    return _SECONDS.get(billing_interval or "", 60.0)


def read_price(hardware_type: HardwareType) -> Price | None:
    """The price of a hardware type; None where it gives none that can be read."""
    per_minute = hardware_type.price_per_minute
    return None if per_minute is None else Price(per_minute=per_minute, currency=hardware_type.currency)


class Prices:
    """The price list, asked for once a client: it changes rarely, and every lease wants it."""

    def __init__(self, hardware_types: HardwareTypes, models: Models) -> None:
        self._hardware_types = hardware_types
        self._models = models
        self._known: dict[str, Price | None] = {}
        self._asking: anyio.Event | None = None

    def of(self, hardware_type_id: str | None) -> Price | None:
        """A price, if it is known already."""
        return self._known.get(hardware_type_id or "")

    async def prefetch(self, hardware_type_id: str | None) -> None:
        """Looks a price up, if that can be done quickly."""
        if hardware_type_id in self._known:
            return
        if self._asking is not None:
            # One asks for all that start together; they do without if it does not get an answer.
            with anyio.move_on_after(_PRICES_TIMEOUT):
                await self._asking.wait()
            return
        asking = self._asking = anyio.Event()
        try:
            with anyio.move_on_after(_PRICES_TIMEOUT):
                self._take(await self._hardware_types.list_once())
                self._known.setdefault(hardware_type_id or "", None)
        except Exception as error:  # noqa: BLE001  (nothing about a price may end a start)
            log(Event.LEASE_NO_PRICES, error_type=type(error).__name__, error=error)
        finally:
            self._asking = None
            asking.set()

    async def limit(
        self, args: InstanceArgs, *, max_lifetime: float | None, max_cost: float | None
    ) -> tuple[float, str]:
        """How long an instance may live, in seconds, and what says so, for people.

        Raises:
            InvalidArgumentError: when `max_cost` does not pay for one interval.
            PriceUnknownError: when it needs a price and there is none.
            RequestError: when the service cannot be asked.
        """
        lifetime, name = math.inf, ""
        if max_lifetime is not None:
            lifetime, name = max_lifetime, f"max_lifetime={max_lifetime:g} s"
        if max_cost is not None:
            price = await self.get(args)
            affordable = seconds_for(max_cost, price, args)
            if affordable < lifetime:
                lifetime, name = affordable, f"max_cost={max_cost:g} {price.currency}".rstrip()
        return lifetime, name

    async def get(self, args: InstanceArgs) -> Price:
        """The price for these arguments.

        Raises:
            PriceUnknownError: when there is none.
            RequestError: when the service cannot be asked.
        """
        hardware = args.hardware_type_id
        if hardware is None:
            hardware = (await self._models.get(args.model_id)).recommended_config
        if self.of(hardware) is None:
            self._take(await self._hardware_types.list())
        price = self.of(hardware)
        if price is None:
            raise PriceUnknownError(
                f"max_cost needs a price, and the service gives none that can be read for {hardware!r}: "
                "use max_lifetime (seconds) instead. Nothing was started."
            )
        return price

    def _take(self, types: tuple[HardwareType, ...]) -> None:
        self._known.update({each.hardware_type_id: read_price(each) for each in types})
