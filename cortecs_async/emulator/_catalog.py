"""The emulator's own models, hardware, and prices. All figures are invented."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import attrs

PRICE_SOURCE: Final = "invented by the cortecs_async emulator"

ModelsOption = str | Iterable[str] | Mapping[str, Mapping[str, int] | None]
"""Names, or maximum context lengths by name and hardware type. For names only: 131072 on all hardware."""

DetailShape = Literal["current", "old"]


@attrs.frozen
class Hardware:
    """A hardware type: the GPU set that one worker uses."""

    hardware_type_id: str
    gpu: str
    gpus: int
    vram_gb: int
    price_per_minute: float
    sets: int = 10_000
    """The default number of free sets: enough for a test with thousands of instances."""

    def json(self, currency: str) -> dict[str, Any]:
        return {
            "hardware_type_id": self.hardware_type_id,
            "price_info": {
                "price_per_minute": self.price_per_minute,
                "price_per_hour": round(self.price_per_minute * 60, 6),
                "currency": currency,
                "source": PRICE_SOURCE,
            },
            "hardware_info": {"gpu": self.gpu, "num_gpus": self.gpus, "vram_gb": self.vram_gb},
        }


@attrs.frozen
class Model:
    """A model that an instance can serve."""

    model_id: str
    screen_name: str
    creator: str
    size: int | None
    """Billions of parameters, if known."""
    recommended_config: str
    max_model_len: Mapping[str, int]
    """The maximum context length in tokens, by hardware type."""

    @property
    def hf_name(self) -> str:
        """The Hugging Face name, used by the inference endpoint."""
        return self.model_id.replace("--", "/")

    def preview(self) -> dict[str, Any]:
        """Return the model as JSON, as shown in the list of models."""
        return {
            "model_id": self.model_id,
            "model_name": self.model_id,
            "hf_name": self.hf_name,
            "instant_provisioned": False,
            "creator": {"name": self.creator},
            "description": f"{self.screen_name}, from the emulator's catalog.",
            "screen_name": self.screen_name,
            "size": self.size,
            "hardware_info": {"hardware_configs": list(self.max_model_len)},
        }

    def detail(self, shape: DetailShape) -> dict[str, Any]:
        """Return the model as JSON, with its hardware configurations.

        In the old shape, `model_id` is missing, and the context length has the name that version 0.1.1 of
        the vendor's client reads.
        """
        key = "--max-model-len"
        detail = self.preview()
        if shape == "old":
            key = "max_context_length"
            del detail["model_id"]
        detail["recommended_config"] = self.recommended_config
        detail["hardware_configs"] = {
            hardware_type_id: {
                "hardware_type_id": hardware_type_id,
                "params": {key: max_model_len},
                "requirements": {"vram_gb": HARDWARE[hardware_type_id].vram_gb},
            }
            for hardware_type_id, max_model_len in self.max_model_len.items()
        }
        return detail


HARDWARE: Final[Mapping[str, Hardware]] = {
    hardware.hardware_type_id: hardware
    for hardware in (
        Hardware("NVIDIA_L4_1", "NVIDIA L4", 1, 24, 0.015),
        Hardware("NVIDIA_L4_2", "NVIDIA L4", 2, 48, 0.03),
        Hardware("NVIDIA_L40S_1", "NVIDIA L40S", 1, 48, 0.03),
        Hardware("NVIDIA_L40S_2", "NVIDIA L40S", 2, 96, 0.06),
        Hardware("NVIDIA_H100_1", "NVIDIA H100", 1, 80, 0.05),
        Hardware("NVIDIA_H100_2", "NVIDIA H100", 2, 160, 0.1),
        Hardware("NVIDIA_H100_4", "NVIDIA H100", 4, 320, 0.2),
    )
}

_LENGTHS_8B: Final = {
    "NVIDIA_L4_1": 16384,
    "NVIDIA_L40S_1": 131072,
    "NVIDIA_L40S_2": 131072,
    "NVIDIA_H100_1": 131072,
}

MODELS: Final[Mapping[str, Model]] = {
    model.model_id: model
    for model in (
        Model("meta-llama--Llama-3.1-8B-Instruct", "Llama 3.1 8B", "Meta", 8, "NVIDIA_L40S_1", _LENGTHS_8B),
        Model(
            "meta-llama--Meta-Llama-3.1-8B-Instruct",
            "Meta Llama 3.1 8B",
            "Meta",
            8,
            "NVIDIA_L40S_1",
            _LENGTHS_8B,
        ),
        Model(
            "meta-llama--Llama-3.3-70B-Instruct",
            "Llama 3.3 70B",
            "Meta",
            70,
            "NVIDIA_H100_4",
            {"NVIDIA_H100_2": 32768, "NVIDIA_H100_4": 131072},
        ),
        Model(
            "mistralai--Mistral-7B-Instruct-v0.3",
            "Mistral 7B v0.3",
            "Mistral AI",
            7,
            "NVIDIA_L4_1",
            {"NVIDIA_L4_1": 32768, "NVIDIA_L40S_1": 32768, "NVIDIA_H100_1": 32768},
        ),
        Model(
            "Qwen--Qwen2.5-32B-Instruct",
            "Qwen 2.5 32B",
            "Qwen",
            32,
            "NVIDIA_L40S_2",
            {"NVIDIA_L40S_2": 65536, "NVIDIA_H100_1": 32768, "NVIDIA_H100_2": 131072},
        ),
        # Its maximum context length is below 32000, the default of a start request.
        Model(
            "microsoft--phi-4",
            "Phi 4",
            "Microsoft",
            14,
            "NVIDIA_L40S_1",
            {"NVIDIA_L40S_1": 16384, "NVIDIA_H100_1": 16384},
        ),
        # The models that the vendor's tests and examples use.
        Model(
            "Qwen--Qwen2-7B-Instruct",
            "Qwen 2 7B",
            "Qwen",
            7,
            "NVIDIA_L4_1",
            {"NVIDIA_L4_1": 32768, "NVIDIA_L4_2": 32768, "NVIDIA_L40S_1": 32768, "NVIDIA_H100_1": 32768},
        ),
        Model(
            "cortecs--phi-4-FP8-Dynamic",
            "Phi 4 FP8",
            "cortecs",
            14,
            "NVIDIA_L40S_1",
            {"NVIDIA_L4_2": 16384, "NVIDIA_L40S_1": 16384, "NVIDIA_H100_1": 16384},
        ),
        Model(
            "neuralmagic--Meta-Llama-3.1-8B-Instruct-FP8",
            "Meta Llama 3.1 8B FP8",
            "Neural Magic",
            8,
            "NVIDIA_L4_1",
            {"NVIDIA_L4_1": 65536, "NVIDIA_L4_2": 131072, "NVIDIA_L40S_1": 131072, "NVIDIA_H100_1": 131072},
        ),
        Model(
            "neuralmagic--Meta-Llama-3.1-70B-Instruct-FP8",
            "Meta Llama 3.1 70B FP8",
            "Neural Magic",
            70,
            "NVIDIA_H100_2",
            {"NVIDIA_H100_1": 16384, "NVIDIA_H100_2": 131072, "NVIDIA_H100_4": 131072},
        ),
    )
}

# A name on Hugging Face. There too, each part starts with a letter or digit and has no double hyphens.
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

_DEFAULT_MAX_MODEL_LEN: Final = 131072


def read_models(models: ModelsOption | None) -> Mapping[str, Model]:
    """Return all models by id. Models in `models` replace the ones from this module with the same names."""
    if models is None:
        return MODELS
    if isinstance(models, str):
        models = [models]
    given = models.items() if isinstance(models, Mapping) else ((name, None) for name in models)
    read: dict[str, Model] = {}
    for name, max_model_len in given:
        model = _read_model(name, max_model_len)
        if model.model_id in read:
            raise ValueError(f"Duplicate model {model.hf_name!r} in models")
        read[model.model_id] = model
    return {**MODELS, **read}


def _read_model(name: str, max_model_len: Mapping[str, int] | None) -> Model:
    hf_name = name.replace("--", "/")
    if not _NAME.fullmatch(hf_name):
        raise ValueError(f"Invalid model name {name!r} in models (example: org/name)")
    if max_model_len is None:
        max_model_len = dict.fromkeys(HARDWARE, _DEFAULT_MAX_MODEL_LEN)
    if not max_model_len:
        raise ValueError(f"No hardware type for {hf_name} in models. Use None for all.")
    for hardware_type_id, length in max_model_len.items():
        if hardware_type_id not in HARDWARE:
            raise ValueError(
                f"Unknown hardware type {hardware_type_id!r} for {hf_name} in models "
                f"(known: {', '.join(HARDWARE)})"
            )
        if not isinstance(length, int) or length < 1:
            raise ValueError(
                f"The context length of {hf_name} on {hardware_type_id} must be a positive integer, "
                f"not {length!r}"
            )
    creator, screen_name = hf_name.split("/")
    return Model(
        model_id=hf_name.replace("/", "--"),
        screen_name=screen_name,
        creator=creator,
        size=None,
        recommended_config=next(iter(max_model_len)),
        max_model_len=dict(max_model_len),
    )
