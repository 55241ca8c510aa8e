"""The entries of the list of models: see `catalog.py`.

They have a module of their own, because programs that only list models do not need the catalog's other
classes. attrs takes 0.3 to 1 ms to create each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from .._display import Row
from .._hints import hinted


@hinted
@frozen(kw_only=True)
class ModelPreview(Row):
    """A model in the list of models.

    Attributes:
        model_id: The model in the service's spelling (`org--name`).
        hf_name: Its Hugging Face name (`org/name`).
        instant_provisioned: Whether the service marks it as fast to start.
        creator: The model's creator. The keys are undocumented.
        description: The service's description.
        screen_name: Its display name.
        size: Its size. The unit is undocumented.
        hardware_configs: The ids of the hardware types it can run on.

    Example:
        for model in await client.models.list():
            print(model.hf_name, model.size, model.hardware_configs)
    """

    model_id: str
    hf_name: str = ""
    instant_provisioned: bool = False
    creator: Mapping[str, Any] | None = None
    description: str | None = None
    screen_name: str | None = None
    size: float | None = None
    hardware_configs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.hf_name or self.model_id

    def _columns(self) -> Mapping[str, object]:
        return {"model": str(self), "size": self.size, "hardware": ", ".join(self.hardware_configs)}
