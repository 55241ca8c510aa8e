"""The endpoints that only read: models, hardware types, the account. And what all resources share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .._http.messages import Call, Reply
from .domain import Balance, HardwareType, Model, ModelPreview
from .validation import check_model_id
from .wire import decode_balance, decode_hardware_types, decode_model, decode_models

Send = Callable[[Call], Awaitable[Reply]]


class Models:
    """`client.models`. Needs no credentials (the vendor's client sends none)."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def list(self) -> tuple[ModelPreview, ...]:
        """Every model that can be provisioned (`GET /models/`).

        Raises:
            RequestError: when there is no usable answer.
        """
        reply = await self._send(Call(method="GET", path="/models/", authenticated=False))
        return reply.decode(decode_models)

    async def get(self, model_id: str) -> Model:
        """One model with its hardware configurations (`GET /models/{model_id}`).

        Args:
            model_id: In either spelling, `org/name` or `org--name`.

        Raises:
            InvalidArgumentError: for what is no model id, before any request.
            BadRequestError: or `NotFoundError`, for a model that the service does not have.
            RequestError: when there is no usable answer.
        """
        path = f"/models/{check_model_id(model_id)}"
        reply = await self._send(Call(method="GET", path=path, authenticated=False))
        return reply.decode(decode_model)


class HardwareTypes:
    """`client.hardware_types`. Needs no credentials (the vendor's client sends none)."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def list(self) -> tuple[HardwareType, ...]:
        """Every hardware type (`GET /hardware-types/`).

        Raises:
            RequestError: when there is no usable answer.
        """
        reply = await self._send(Call(method="GET", path="/hardware-types/", authenticated=False))
        return reply.decode(decode_hardware_types)

    async def list_once(self) -> tuple[HardwareType, ...]:
        """`list` without retries, for those who can do without."""
        call = Call(method="GET", path="/hardware-types/", authenticated=False, retried=False)
        return (await self._send(call)).decode(decode_hardware_types)

    async def list_available(self) -> tuple[HardwareType, ...]:
        """The hardware types with free capacity now (`GET /hardware-types/available`).

        Raises:
            RequestError: when there is no usable answer.
        """
        reply = await self._send(Call(method="GET", path="/hardware-types/available", authenticated=False))
        return reply.decode(decode_hardware_types)


class User:
    """`client.user`: the account that the credentials belong to."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def balance(self) -> Balance:
        """What the account has left (`GET /user/balance`).

        Raises:
            RequestError: when there is no usable answer.
            ConfigurationError: when there are no credentials.
        """
        reply = await self._send(Call(method="GET", path="/user/balance"))
        return reply.decode(decode_balance)
