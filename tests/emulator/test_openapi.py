"""The emulator against its own OpenAPI document, tested by schemathesis."""

import contextlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import hypothesis
import hypothesis.errors
import pytest

from cortecs_async.emulator import Emulator
from cortecs_async.emulator._catalog import HARDWARE, MODELS
from cortecs_async.emulator._routing import ROUTES

schemathesis = pytest.importorskip("schemathesis")

pytestmark = pytest.mark.oracle

# A check that a body which fits the schema is accepted must let 400 pass on these, for two reasons that
# OpenAPI cannot say: which hardware runs which model for how long a context, and in which state an
# instance must be. All other checks, and this one on all other operations, are schemathesis' own.
INFERENCE = ["chat", "completions", "embeddings", "responses", "rerank", "score"]
MEANING_MATTERS = ["start", "stop", "restart", "get", "delete", *INFERENCE]
ACCEPTED = ["2xx", "3xx", "400", "401", "403", "404", "409", "429", "5xx"]

MODEL = "microsoft--phi-4"


def document(prefix: str = "/") -> dict[str, Any]:
    """The document, or those of its paths that begin with the prefix."""
    text = resources.files("cortecs_async.emulator").joinpath("openapi.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    found["paths"] = {path: item for path, item in found["paths"].items() if path.startswith(prefix)}
    return found


def emulator(unknown_status: int) -> Emulator:
    # Instances run at once, so that everything that an instance can do is within reach of a few requests.
    return Emulator(step_seconds=0, unknown_status=unknown_status, balance=1e9, clock=lambda: 100.0)


def schema_for(target: Emulator, raw: Mapping[str, Any], examples: int) -> Any:
    """The document over the emulator's ASGI app, with its credentials and a bound on the work."""
    config = schemathesis.Config.from_dict(
        {
            "generation": {"deterministic": True, "max-examples": examples, "database": "none"},
            "operations": [
                {
                    "include-operation-id": MEANING_MATTERS,
                    "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
                }
            ],
        }
    )
    schema = schemathesis.openapi.from_dict(dict(raw), config=config)
    schema.app = target.app

    class Token:
        def get(self, case: Any, context: Any) -> str:
            answer = case.operation.schema["/api/v1/oauth2/token"]["POST"].Case(
                body={
                    "grant_type": "client_credentials",
                    "client_id": target.client_id,
                    "client_secret": target.client_secret,
                },
                media_type="application/json",
            )
            return str(answer.call().json()["access_token"])

        def set(self, case: Any, data: str, context: Any) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    class ApiKey:
        def get(self, case: Any, context: Any) -> str:
            return target.api_key

        def set(self, case: Any, data: str, context: Any) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    schema.auth().apply_to(path_regex="^/api/")(Token)
    schema.auth().apply_to(path_regex="^/inference/")(ApiKey)
    return schema


def inference_document(instance_id: str) -> dict[str, Any]:
    """The document narrowed to one instance and its model: past the 404 is where the bodies are read."""
    raw = document("/inference/")
    schemas = raw["components"]["schemas"]
    schemas["InstanceId"] = {"enum": [instance_id]}
    schemas["ModelName"] = {"enum": [MODEL.replace("--", "/")]}
    return raw


provisioning = schema_for(emulator(400), document("/api/"), 25)
# The instance runs and nothing here can stop it, so that no 503 is in order.
speaking = emulator(400)
inference = schema_for(speaking, inference_document(speaking.start_instance(MODEL)), 60)


def does_as_documented(case: Any) -> None:
    case.call_and_validate()


test_provisioning_does_as_documented = provisioning.parametrize()(does_as_documented)
test_inference_does_as_documented = inference.parametrize()(does_as_documented)


def test_sequences_of_requests_do_as_documented() -> None:
    """Start, get, stop, delete and get again, in the orders that schemathesis derives from the document."""
    # A deleted instance answers 404 here: schemathesis wants it to be gone, and takes 400 for a rejection.
    target = emulator(404)
    schema = schema_for(target, document("/api/"), 25)
    wanted = {("start", 202), ("get", 200), ("stop", 200)}
    # Which orders are tried depends on what else was imported (hypothesis takes constants from there), so
    # that one round may miss one of these; four rounds of other lengths do not.
    for steps in (8, 10, 12, 14):
        # What schemathesis does next depends on earlier responses, and the emulator has a history: an order
        # that hypothesis tries again can go another way, which it then calls flaky. A failure is not that.
        with contextlib.suppress(hypothesis.errors.FlakyStrategyDefinition):
            schema.as_state_machine().run(
                settings=hypothesis.settings(
                    max_examples=25, stateful_step_count=steps, derandomize=True, deadline=None, database=None
                )
            )
        if wanted <= {(record.route, record.status) for record in target.requests}:
            return
    pytest.fail("the rounds never got from a start to a look and a stop")


def test_every_route_is_documented() -> None:
    documented = {
        (operation["operationId"], method.upper(), path)
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }
    assert documented == {
        (route.name, route.method, route.path) for route in ROUTES if route.name != "openapi"
    }


def test_the_catalog_is_documented() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["ModelId"]["enum"] == list(MODELS)
    assert schemas["ModelName"]["enum"] == [model.hf_name for model in MODELS.values()]
    assert schemas["HardwareTypeId"]["enum"] == list(HARDWARE)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.needs is not None], ids=lambda route: route.name
)
def test_the_credential_of_every_route_is_documented(route: Any) -> None:
    raw = document()
    operation = raw["paths"][route.path][route.method.lower()]
    scheme = {"token": "accessToken", "api_key": "apiKey"}[route.needs]
    assert operation.get("security", raw["security"]) == [{scheme: []}]
