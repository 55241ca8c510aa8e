"""Models, hardware types and the balance as frozen classes. They send no requests.

The published API reference does not cover models and hardware types, so their fields follow the vendor's
client. To add a field, see `domain.py`. `ModelPreview` is in `previews.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from .._display import Row, joined, money_text, price_text
from .._hints import hinted
from .._public import publish_loaded
from .prices import read_price


@frozen(kw_only=True)
class HardwareConfig:
    """The configuration of a model on one hardware type.

    Attributes:
        hardware_type_id: The hardware type.
        params: Options for the inference server. Only `--max-model-len` is known, and its older name
            `max_context_length`, which can also be outside `params`.
        requirements: The model's requirements. The keys are undocumented.

    Example:
        model = await client.models.get("meta-llama/Llama-3.1-8B-Instruct")
        for config in model.hardware_configs.values():
            print(config.hardware_type_id, config.max_context_length)
    """

    hardware_type_id: str = ""
    params: Mapping[str, Any] = field(factory=dict)
    requirements: Mapping[str, Any] = field(factory=dict)

    @property
    def max_context_length(self) -> int | None:
        """The maximum context length on this hardware, in tokens, or None if the service does not return it.

        It is taken from `--max-model-len` or the older `max_context_length` in `params`. The value can also
        be text (`"32768"`).
        """
        values = (_to_tokens(self.params.get(name)) for name in ("--max-model-len", "max_context_length"))
        return next((value for value in values if value is not None), None)


def _to_tokens(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,15}", value):
        value = int(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    # vLLM interprets -1 as "as long as the memory allows".
    return int(value) if 0 < value < 1e15 and value == int(value) else None


@hinted
@frozen(kw_only=True)
class Model(Row):
    """One model, with the hardware types it can run on.

    Attributes:
        model_id: The model in the service's spelling (`org--name`).
        hf_name: Its Hugging Face name (`org/name`).
        recommended_config: The id of the hardware type you get if you do not choose one.
        hardware_configs: The hardware types it can run on, by `hardware_type_id`.

    Example:
        model = await client.models.get("meta-llama/Llama-3.1-8B-Instruct")
        print(model.recommended_config, list(model.hardware_configs))
    """

    model_id: str
    hf_name: str = ""
    recommended_config: str | None = None
    hardware_configs: Mapping[str, HardwareConfig] = field(factory=dict)

    def __str__(self) -> str:
        return self.hf_name or self.model_id

    def _columns(self) -> Mapping[str, object]:
        recommended, hardware = self.recommended_config, ", ".join(self.hardware_configs)
        return {"model": str(self), "recommended hardware": recommended, "hardware": hardware}


@hinted
@frozen(kw_only=True)
class HardwareType(Row):
    """A GPU set, with its price.

    Attributes:
        hardware_type_id: The id of the GPU set, such as `NVIDIA_L40S_2`.
        price_info: Its prices. The keys are undocumented.
        hardware_info: Its hardware. The keys are undocumented.

    Example:
        for hardware in await client.hardware_types.list():
            print(hardware.hardware_type_id, hardware.price_per_minute, hardware.currency)
    """

    hardware_type_id: str
    price_info: Mapping[str, Any] = field(factory=dict)
    hardware_info: Mapping[str, Any] = field(factory=dict)

    @property
    def price_per_minute(self) -> float | None:
        """The price of the set per minute, in `currency`, or None if it is unclear.

        A key of `price_info` is used only if all of its words are known. It must contain "minute", "hour", or
        "hourly" once. It can also contain "price", "cost", "rate", "per", and "in"; "eur" or "usd", unless
        that contradicts `currency`; and "cent", "cents", or "ct", which divide the price by 100. For example,
        `price_per_minute`, `pricePerMinute`, and `EUR/minute` are used. `price_per_gpu_minute` and
        `setup_cost_per_hour` are not. The value must be a number and cannot be negative.

        If there is only a price per hour, this is a sixtieth of it. The price is unclear if prices for the
        same period disagree, if a text in `price_info` mentions cents or a unit, or if the price is zero.
        """
        return read_price(self.price_info, "minute")

    @property
    def price_per_hour(self) -> float | None:
        """The price of the set per hour, in `currency`, or None if it is unclear.

        Hourly billing uses it. It is parsed in the same way as `price_per_minute` and is not necessarily 60
        times as much. If there is only a price per minute, this is 60 times that price.
        """
        return read_price(self.price_info, "hour")

    @property
    def currency(self) -> str:
        """The currency of the price, or an empty string if the service does not return it."""
        currency = self.price_info.get("currency")
        return currency if isinstance(currency, str) else ""

    def __str__(self) -> str:
        price = price_text(self.price_per_hour, self.currency)
        return joined(self.hardware_type_id, price and f"{price} per hour")

    def _columns(self) -> Mapping[str, object]:
        return {
            "hardware": self.hardware_type_id,
            "per minute": price_text(self.price_per_minute, self.currency),
            "per hour": price_text(self.price_per_hour, self.currency),
        }


@hinted
@frozen(kw_only=True)
class Balance(Row):
    """The account's balance.

    Attributes:
        current_balance: The amount left, in `currency`.
        currency: The currency, such as `EUR`.

    Example:
        balance = await client.user.balance()
        print(balance.current_balance, balance.currency)
    """

    current_balance: float
    currency: str

    def __str__(self) -> str:
        return money_text(self.current_balance, self.currency)

    def _columns(self) -> Mapping[str, object]:
        return {"balance": str(self)}


# This module may be imported after the client has published the classes of the others.
publish_loaded()
