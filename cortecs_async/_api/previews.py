"""`ModelPreview`, an entry in the list of models. The other classes of the catalog are in `catalog.py`.

Programs that only list models do not need those, and attrs takes about half a millisecond to create each.
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
