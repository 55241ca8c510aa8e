"""Test the models of an emulator: those of its catalog, and those that `models` adds."""

from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import Emulator, serve_emulator
from cortecs_async.emulator._catalog import HARDWARE, MODELS

Emulate = Callable[..., Any]

MINE = "org--my-model-7B"
CONFIGS = {"NVIDIA_H100_1": 32768, "NVIDIA_L4_2": 1000}


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: nothing waits."""
    return "asyncio"


async def listed(http: Any) -> dict[str, Any]:
    response = await http.api("GET", "/models/")
    return {model["model_id"]: model for model in response.json()["models"]}


async def detail(http: Any, model_id: str) -> dict[str, Any]:
    response = await http.api("GET", f"/models/{model_id}")
    found: dict[str, Any] = response.json()["model"]
    return found


def max_model_len(model: dict[str, Any]) -> dict[str, int]:
    configs = model["hardware_configs"].items()
    return {hardware: config["params"]["--max-model-len"] for hardware, config in configs}


@pytest.mark.parametrize(
    ("model_id", "hardware", "context_length"),
    [
        ("Qwen--Qwen2-7B-Instruct", "NVIDIA_L4_1", 32000),
        ("cortecs--phi-4-FP8-Dynamic", "NVIDIA_L40S_1", 16384),
        ("neuralmagic--Meta-Llama-3.1-8B-Instruct-FP8", "NVIDIA_L4_1", 32000),
        ("neuralmagic--Meta-Llama-3.1-70B-Instruct-FP8", "NVIDIA_H100_2", 32000),
    ],
)
async def test_the_vendors_models(
    emulate: Emulate, model_id: str, hardware: str, context_length: int
) -> None:
    http = emulate()
    started = (await http.start(model_id=model_id)).json()["instance"]["instance_args"]
    assert (started["hardware_type_id"], started["context_length"]) == (hardware, context_length)


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_the_recommended_hardware_runs_the_model(model: Any) -> None:
    assert model.recommended_config in model.max_model_len
    assert model.max_model_len.keys() <= HARDWARE.keys()


@pytest.mark.parametrize("name", ["org/my-model-7B", MINE])
async def test_a_model_with_its_hardware(emulate: Emulate, name: str) -> None:
    http = emulate(models={name: CONFIGS}, step_seconds=0)
    preview = (await listed(http))[MINE]
    assert (preview["hf_name"], preview["model_name"]) == ("org/my-model-7B", MINE)
    assert preview["hardware_info"] == {"hardware_configs": ["NVIDIA_H100_1", "NVIDIA_L4_2"]}
    model = await detail(http, MINE)
    assert model["recommended_config"] == "NVIDIA_H100_1"
    assert max_model_len(model) == CONFIGS

    for hardware, context_length, status in [
        ("NVIDIA_L4_2", 1000, 202),
        ("NVIDIA_L4_2", 1001, 400),
        ("NVIDIA_L4_1", None, 400),
    ]:
        response = await http.start(model_id=MINE, hardware_type_id=hardware, context_length=context_length)
        assert response.status_code == status
    http.emulator.start_instance("org/my-model-7B", "NVIDIA_L4_2")
    assert [(entry.model_id, entry.hardware_type_id) for entry in http.emulator.ledger] == [
        (MINE, "NVIDIA_L4_2"),
        (MINE, "NVIDIA_L4_2"),
    ]


@pytest.mark.parametrize("models", ["org/my-model-7B", ["org/my-model-7B"], {"org/my-model-7B": None}])
async def test_a_name_alone_runs_on_all_hardware(emulate: Emulate, models: Any) -> None:
    http = emulate(models=models)
    assert max_model_len(await detail(http, MINE)) == dict.fromkeys(HARDWARE, 131072)
    assert len(await listed(http)) == len(MODELS) + 1


async def test_it_serves_the_added_model(emulate: Emulate) -> None:
    http = emulate(models=["org/my-model-7B"], step_seconds=0)
    instance_id = http.emulator.start_instance("org/my-model-7B")
    models = await http.infer(instance_id, "/models")
    assert [model["id"] for model in models.json()["data"]] == ["org/my-model-7B"]
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    for name, status in {"org/my-model-7B": 200, MINE: 404, "microsoft/phi-4": 404}.items():
        answer = await http.infer(instance_id, "/chat/completions", {"model": name, **body})
        assert answer.status_code == status


async def test_a_model_of_the_catalog_can_be_replaced(emulate: Emulate) -> None:
    http = emulate(models={"microsoft/phi-4": {"NVIDIA_L4_1": 2048}})
    assert max_model_len(await detail(http, "microsoft--phi-4")) == {"NVIDIA_L4_1": 2048}
    assert list(await listed(http)) == list(MODELS)
    # Other emulators are not affected.
    assert "NVIDIA_L4_1" not in max_model_len(await detail(emulate(), "microsoft--phi-4"))


async def test_the_openapi_document_names_the_added_model(emulate: Emulate) -> None:
    async with emulate(models=["org/my-model-7B"]).emulator.http_client() as client:
        document = (await client.get("http://localhost/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["ModelId"]["enum"] == [*MODELS, MINE]
    assert schemas["ModelName"]["enum"][-1] == "org/my-model-7B"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"org/a": {"NVIDIA_B200_1": 8}}, r"Unknown hardware type 'NVIDIA_B200_1' for org/a .*NVIDIA_H100_4"),
        ({"org/a": {"NVIDIA_L4_1": 0}}, "context length of org/a on NVIDIA_L4_1 .* positive integer, not 0"),
        ({"org/a": {"NVIDIA_L4_1": "8192"}}, "must be a positive integer, not '8192'"),
        ({"org/a": {}}, "No hardware type for org/a"),
        (["org/a", "org--a"], "Duplicate model 'org/a'"),
        *[
            (name, "Invalid model name .*example: org/name")
            for name in ("", "a", "/a", "a/", "a/b/c", "a/b--c", "a/b c", "a/b?", "a/../b", "a/b\n", "ä/b")
        ],
    ],
)
def test_invalid_models(models: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Emulator(models=models)


def test_a_served_emulator_takes_models() -> None:
    with pytest.raises(ValueError, match="Invalid model name 'a'"):
        serve_emulator(models="a")


async def test_old_model_details(emulate: Emulate) -> None:
    model = await detail(emulate(model_detail="old"), "microsoft--phi-4")
    assert "model_id" not in model
    assert model["model_name"] == "microsoft--phi-4"
    assert model["hardware_configs"]["NVIDIA_H100_1"]["params"] == {"max_context_length": 16384}
    with pytest.raises(ValueError, match="model_detail"):
        Emulator(model_detail="older")  # type: ignore[arg-type]
