"""`client.models`, `client.hardware_types`, and `client.user`: the read-only endpoints.

To add an endpoint, describe its response in `catalog.py` or `domain.py`, add a `decode_...` function to
`catalog_wire.py` or `wire.py`, and add a method here or in `instances.py` that sends the request. Then add
the route to the emulator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .._hints import hinted
from .._http.limiter import Priority
from .._http.messages import Call, Reply
from .._logging import Event, log
from .catalog_wire import decode_balance, decode_hardware_types, decode_model, decode_models
from .listing import Listing, read_date
from .previews import ModelPreview

if TYPE_CHECKING:
    from .catalog import Balance, HardwareType, Model

Send = Callable[[Call], Awaitable[Reply]]

T = TypeVar("T")


class ListReader:
    """Decodes one client's lists. Logs each entry that cannot be parsed only once."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()

    def read(self, reply: Reply, decode: Callable[[object, float | None], Listing[T]]) -> Listing[T]:
        """Decode a list and its `Date` header.

        Raises:
            DecodeError: if the response does not contain a list.
        """
        date = read_date(reply.headers.get("date"))
        listing = reply.decode(lambda data: decode(data, date))
        path = reply.call.path
        kind = path.split("/")[1]  # the same for all hardware types and for the available ones
        for entry in listing.unreadable:
            # Without an id, entries with the same problem are logged as one.
            key = kind, entry.problem if entry.entry_id is None else entry.entry_id
            if key not in self._logged:
                self._logged.add(key)
                log(Event.HTTP_UNREADABLE_ENTRY, path=path, entry_id=entry.entry_id, problem=entry.problem)
        return listing


@hinted
class Models:
    """The models you can start: `client.models`. This does not need credentials.

    Example:
        async with AsyncCortecs(anonymous=True) as client:
            for model in await client.models.list():
                print(model.hf_name)
    """

    def __init__(self, send: Send, reader: ListReader | None = None) -> None:
        self._send = send
        self._reader = reader or ListReader()

    async def list(self) -> Listing[ModelPreview]:
        """Return the models you can start.

        Sends `GET /models/`. An entry that cannot be parsed is skipped, logged, and listed in the result's
        `unreadable`.

        Raises:
            RequestError: if the request fails.

        Example:
            for model in await client.models.list():
                print(model.hf_name, model.hardware_configs)
        """
        reply = await self._send(Call(method="GET", path="/models/", authenticated=False))
        return self._reader.read(reply, decode_models)

    async def get(self, model_id: str) -> Model:
        """Return one model, with the hardware types it can run on.

        Sends `GET /models/{model_id}`.

        Args:
            model_id: The model, as `org/name` or `org--name`.

        Raises:
            InvalidArgumentError: if the id is invalid. No request is sent.
            BadRequestError, NotFoundError: if the service does not have the model.
            RequestError: for any other failure.

        Example:
            model = await client.models.get("meta-llama/Llama-3.1-8B-Instruct")
            print(model.recommended_config)
        """
        from .validation import check_model_id  # noqa: PLC0415  (not needed for lists)

        requested_id = check_model_id(model_id)
        reply = await self._send(Call(method="GET", path=f"/models/{requested_id}", authenticated=False))
        return reply.decode(partial(decode_model, requested_id=requested_id))


@hinted
class HardwareTypes:
    """The hardware types instances can run on: `client.hardware_types`. This does not need credentials.

    Example:
        async with AsyncCortecs(anonymous=True) as client:
            for hardware in await client.hardware_types.list():
                print(hardware.hardware_type_id, hardware.price_per_hour, hardware.currency)
    """

    def __init__(self, send: Send, reader: ListReader | None = None) -> None:
        self._send = send
        self._reader = reader or ListReader()

    async def list(self) -> Listing[HardwareType]:
        """Return all hardware types, with their prices.

        Sends `GET /hardware-types/`. An entry that cannot be parsed is skipped, logged, and listed in the
        result's `unreadable`.

        Raises:
            RequestError: if the request fails.

        Example:
            for hardware in await client.hardware_types.list():
                print(hardware.hardware_type_id, hardware.price_per_hour, hardware.currency)
        """
        reply = await self._send(Call(method="GET", path="/hardware-types/", authenticated=False))
        return self._reader.read(reply, decode_hardware_types)

    async def list_once(self) -> Listing[HardwareType]:
        """Return all hardware types, without retries and without waiting for a free slot."""
        return self._reader.read(await self._send(_once("/hardware-types/")), decode_hardware_types)

    async def list_available(self) -> Listing[HardwareType]:
        """Return the hardware types that currently have free capacity.

        Sends `GET /hardware-types/available`. An entry that cannot be parsed is skipped, logged, and listed
        in the result's `unreadable`.

        Raises:
            RequestError: if the request fails.

        Example:
            available = await client.hardware_types.list_available()
            print([each.hardware_type_id for each in available])
        """
        reply = await self._send(Call(method="GET", path="/hardware-types/available", authenticated=False))
        return self._reader.read(reply, decode_hardware_types)

    async def list_available_once(self) -> Listing[HardwareType]:
        """Return the types with free capacity, without retries and without waiting for a free slot."""
        return self._reader.read(await self._send(_once("/hardware-types/available")), decode_hardware_types)


def _once(path: str) -> Call:
    return Call(method="GET", path=path, authenticated=False, retried=False, priority=Priority.POLL)


@hinted
class User:
    """The account that your credentials belong to: `client.user`.

    Example:
        print(await client.user.balance())
    """

    def __init__(self, send: Send) -> None:
        self._send = send

    async def balance(self) -> Balance:
        """Return the account's balance.

        Sends `GET /user/balance`.

        Raises:
            RequestError: if the request fails.
            ConfigurationError: if there are no credentials.

        Example:
            balance = await client.user.balance()
            print(balance.current_balance, balance.currency)
        """
        reply = await self._send(Call(method="GET", path="/user/balance"))
        return reply.decode(decode_balance)
