"""`client.models`, `client.hardware_types` and `client.user`: the endpoints that only read.

To add an endpoint, describe its response in `domain.py`, add a `decode_...` function to `wire.py`, and a
method here or in `instances.py` that sends the request. Then add the route to the emulator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .._http.messages import Call, Reply
from .domain import Balance, HardwareType, Model, ModelPreview
from .validation import check_model_id
from .wire import decode_balance, decode_hardware_types, decode_model, decode_models

Send = Callable[[Call], Awaitable[Reply]]


class Models:
    """`client.models`. It needs no credentials: the vendor's client sends none."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def list(self) -> tuple[ModelPreview, ...]:
        """Return the models that can be provisioned (`GET /models/`).

        Raises:
            RequestError: the request failed.
        """
        reply = await self._send(Call(method="GET", path="/models/", authenticated=False))
        return reply.decode(decode_models)

    async def get(self, model_id: str) -> Model:
        """Return one model with its hardware configurations (`GET /models/{model_id}`).

        Args:
            model_id: The model, as `org/name` or `org--name`.

        Raises:
            InvalidArgumentError: `model_id` is not valid; no request was sent.
            BadRequestError: or `NotFoundError`: the service does not have the model.
            RequestError: the request failed in another way.
        """
        path = f"/models/{check_model_id(model_id)}"
        reply = await self._send(Call(method="GET", path=path, authenticated=False))
        return reply.decode(decode_model)


class HardwareTypes:
    """`client.hardware_types`. It needs no credentials: the vendor's client sends none."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def list(self) -> tuple[HardwareType, ...]:
        """Return all hardware types (`GET /hardware-types/`).

        Raises:
            RequestError: the request failed.
        """
        reply = await self._send(Call(method="GET", path="/hardware-types/", authenticated=False))
        return reply.decode(decode_hardware_types)

    async def list_once(self) -> tuple[HardwareType, ...]:
        """Return all hardware types, without retries."""
        call = Call(method="GET", path="/hardware-types/", authenticated=False, retried=False)
        return (await self._send(call)).decode(decode_hardware_types)

    async def list_available(self) -> tuple[HardwareType, ...]:
        """Return the hardware types that have free capacity now (`GET /hardware-types/available`).

        Raises:
            RequestError: the request failed.
        """
        reply = await self._send(Call(method="GET", path="/hardware-types/available", authenticated=False))
        return reply.decode(decode_hardware_types)


class User:
    """`client.user`: the account that the credentials belong to."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def balance(self) -> Balance:
        """Return the account's balance (`GET /user/balance`).

        Raises:
            RequestError: the request failed.
            ConfigurationError: there are no credentials.
        """
        reply = await self._send(Call(method="GET", path="/user/balance"))
        return reply.decode(decode_balance)
