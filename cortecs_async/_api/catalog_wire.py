"""Convert the service's JSON to models, hardware types, and the balance.

`decoders.py` decodes each class, field by field. `catalog.py` is imported inside the functions, because a
program that only lists models does not need its classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .decoders import decode, decode_list, member
from .listing import Listing
from .previews import ModelPreview

if TYPE_CHECKING:
    from .catalog import Balance, HardwareType, Model


def decode_models(data: Any, date: float | None = None) -> Listing[ModelPreview]:
    previews = member(data, "models")
    if isinstance(previews, list):
        previews = [_with_hardware(each) for each in previews]
    return decode_list(previews, ModelPreview, "model_id", date)


def decode_model(data: Any, requested_id: str | None = None) -> Model:
    """Return one model. If the data does not contain an id, the model gets the requested one."""
    from .catalog import Model  # noqa: PLC0415

    model = member(data, "model")
    return decode(_with_context_lengths(model, requested_id) if isinstance(model, dict) else model, Model)


def decode_hardware_types(data: Any, date: float | None = None) -> Listing[HardwareType]:
    from .catalog import HardwareType  # noqa: PLC0415

    return decode_list(member(data, "hardware_types"), HardwareType, "hardware_type_id", date)


def decode_balance(data: Any) -> Balance:
    from .catalog import Balance  # noqa: PLC0415

    return decode(data, Balance)


def _with_hardware(preview: Any) -> Any:
    # The vendor's client takes the hardware from `hardware_info`.
    if not isinstance(preview, dict):
        return preview
    hardware = preview.get("hardware_info")
    return {
        **preview,
        "model_id": _model_id(preview),
        "hardware_configs": hardware.get("hardware_configs") if isinstance(hardware, dict) else None,
    }


def _with_context_lengths(model: dict[Any, Any], requested_id: str | None) -> dict[Any, Any]:
    configs = model.get("hardware_configs")
    if isinstance(configs, dict):
        configs = {name: _with_context_length(config) for name, config in configs.items()}
    return {**model, "model_id": _model_id(model) or requested_id, "hardware_configs": configs}


def _with_context_length(config: Any) -> Any:
    # The vendor's client before 0.1.2 reads `max_context_length` next to `params`.
    if not isinstance(config, dict) or config.get("max_context_length") is None:
        return config
    params = config.get("params")
    if params is not None and not isinstance(params, dict):
        return config
    return {**config, "params": {"max_context_length": config["max_context_length"], **(params or {})}}


def _model_id(model: dict[Any, Any]) -> Any:
    # The vendor's client prefers `model_name`, an older spelling of `model_id`. It does not read either from
    # a single model, so both may be missing there.
    name = model.get("model_name")
    return name if name and isinstance(name, str) else model.get("model_id")
