"""Every route of the provisioning API, and every request that it rejects."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import RequestRecord

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"

PROTECTED = [
    ("GET", "/user/balance"),
    ("GET", "/instances/"),
    ("GET", "/instances/instance-10001"),
    ("DELETE", "/instances/instance-10001"),
    ("POST", "/instances/start"),
    ("POST", "/instances/restart"),
    ("POST", "/instances/stop"),
    ("POST", "/instances/stop-all"),
    ("DELETE", "/instances/delete-all?force_deletion=true"),
]


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


def credentials(**changes: Any) -> dict[str, Any]:
    return {
        "grant_type": "client_credentials",
        "client_id": "emulator-client",
        "client_secret": "emulator-secret",
        **changes,
    }


async def test_a_token_opens_the_account(emulate: Callable[..., Any]) -> None:
    http = emulate(token_lifetime=1800.0)
    answer = await http.api("POST", "/oauth2/token", headers={}, json=credentials())
    assert answer.status_code == 200
    token = answer.json()
    assert token == {"access_token": "emulator-token-1", "token_type": "Bearer", "expires_in": 1800.0}
    # The scheme is case-insensitive (RFC 9110, 11.1).
    headers = {"Authorization": f"bearer {token['access_token']}"}
    assert (await http.api("GET", "/user/balance", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (credentials(client_secret="wrong"), 401),
        (credentials(client_id="wrong"), 401),
        (credentials(grant_type="password"), 400),
        (credentials(client_id=None), 400),
        (credentials(client_secret=7), 400),
        ({}, 400),
        ([], 400),
    ],
)
async def test_other_credentials_get_none(body: Any, status: int, emulate: Callable[..., Any]) -> None:
    answer = await emulate().api("POST", "/oauth2/token", headers={}, json=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["message"]


async def test_a_rotated_secret_gets_a_token_and_the_old_one_does_not(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(token_lifetime=60.0)
    headers = {"Authorization": f"Bearer {await http.token()}"}
    http.emulator.rotate_secret("new")
    assert http.emulator.client_secret == http.emulator.env()["CORTECS_CLIENT_SECRET"] == "new"
    for secret, status in (("emulator-secret", 401), ("new", 200)):
        body = credentials(client_secret=secret)
        assert (await http.api("POST", "/oauth2/token", headers={}, json=body)).status_code == status
    # A token of the old secret works until it expires.
    assert (await http.api("GET", "/user/balance", headers=headers)).status_code == 200
    clock.now += 60.0
    assert (await http.api("GET", "/user/balance", headers=headers)).status_code == 401


async def test_the_token_route_reads_json_and_no_form(emulate: Callable[..., Any]) -> None:
    answer = await emulate().api("POST", "/oauth2/token", headers={}, data=credentials())
    assert answer.status_code == 400
    assert "application/x-www-form-urlencoded" in answer.json()["message"]


async def test_a_token_expires_by_the_clock(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(token_lifetime=60.0)
    old = {"Authorization": f"Bearer {await http.token()}"}
    clock.now = 59.9
    assert (await http.api("GET", "/instances/", headers=old)).status_code == 200
    clock.now = 60.0
    refused = await http.api("GET", "/instances/", headers=old)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    fresh = {"Authorization": f"Bearer {await http.token()}"}
    assert fresh != old
    assert (await http.api("GET", "/instances/", headers=fresh)).status_code == 200


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_without_a_good_token_nothing_is_seen_or_done(
    method: str, path: str, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    instance_id = http.emulator.start_instance(LLAMA)
    body = {"model_id": LLAMA, "instance_id": instance_id}
    for headers in ({}, {"Authorization": "Bearer made-up"}, {"Authorization": "Basic eDp5"}):
        answer = await http.api(method, path, headers=headers, json=body)
        assert answer.status_code == 401
        assert answer.json() == {"message": "Bearer token missing or invalid."}
        assert http.emulator.billing == (instance_id,)


async def test_a_start_fills_in_the_defaults(emulate: Callable[..., Any]) -> None:
    answer = await emulate().start()
    assert answer.status_code == 202
    assert answer.json()["message"] == "Instance is starting."
    assert answer.json()["instance"] == {
        "instance_id": "instance-10001",
        "base_url": None,
        "instance_args": {
            "model_id": LLAMA,
            "hardware_type_id": "NVIDIA_L40S_1",
            "context_length": 32000,
            "billing_interval": "per_minute",
            "num_workers": 1,
        },
        "instance_status": {"status": "pending", "started_at": None, "stopped_at": None},
        "worker_statuses": [
            {"init_progress": {"current_step": 1, "num_steps": 5, "description": "Reserving the GPUs"}}
        ],
    }


async def test_null_counts_as_absent_and_a_short_model_shortens_the_default(
    emulate: Callable[..., Any],
) -> None:
    answer = await emulate().start(
        model_id="microsoft--phi-4",
        hardware_type_id=None,
        context_length=None,
        billing_interval=None,
        num_workers=None,
    )
    assert answer.json()["instance"]["instance_args"] == {
        "model_id": "microsoft--phi-4",
        "hardware_type_id": "NVIDIA_L40S_1",
        "context_length": 16384,
        "billing_interval": "per_minute",
        "num_workers": 1,
    }


async def test_a_start_keeps_its_arguments(emulate: Callable[..., Any]) -> None:
    wanted = {
        "model_id": LLAMA,
        "hardware_type_id": "NVIDIA_H100_1",
        "context_length": 131072,
        "billing_interval": "per_hour",
        "num_workers": 8,
    }
    instance = (await emulate().start(**wanted, something_new=True)).json()["instance"]
    assert instance["instance_args"] == wanted
    assert len(instance["worker_statuses"]) == 8


async def test_num_workers_can_be_left_out_as_in_the_documented_examples(emulate: Callable[..., Any]) -> None:
    http = emulate(num_workers_in_args=False)
    instance = (await http.start(num_workers=2)).json()["instance"]
    assert "num_workers" not in instance["instance_args"]
    assert len(instance["worker_statuses"]) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model_id": None}, "model_id is required."),
        ({"model_id": 5}, "model_id must be a string."),
        ({"model_id": "nobody--nothing"}, "Unknown model_id 'nobody--nothing'."),
        # On the wire the id has hyphens; a client that forgets it must get an error.
        ({"model_id": "microsoft/phi-4"}, "Unknown model_id 'microsoft/phi-4'."),
        ({"hardware_type_id": "GPU_9000"}, "Unknown hardware_type_id 'GPU_9000'."),
        ({"hardware_type_id": ["NVIDIA_H100_1"]}, "hardware_type_id must be a string."),
        ({"hardware_type_id": "NVIDIA_H100_4"}, f"{LLAMA} does not run on NVIDIA_H100_4."),
        ({"context_length": 131073}, f"context_length must be at most 131072 for {LLAMA} on NVIDIA_L40S_1."),
        ({"context_length": 0}, "context_length must be at least 1."),
        ({"context_length": "8192"}, "context_length must be an integer."),
        ({"context_length": 0.5}, "context_length must be an integer."),
        ({"context_length": True}, "context_length must be an integer."),
        ({"billing_interval": "per_second"}, "billing_interval must be per_minute or per_hour."),
        ({"billing_interval": 60}, "billing_interval must be a string."),
        ({"num_workers": 0}, "num_workers must be from 1 to 8."),
        ({"num_workers": 9}, "num_workers must be from 1 to 8."),
        ({"num_workers": "1"}, "num_workers must be an integer."),
    ],
)
async def test_a_rejected_start_starts_nothing(body: Any, message: str, emulate: Callable[..., Any]) -> None:
    http = emulate()
    answer = await http.start(**body)
    assert (answer.status_code, answer.json()) == (400, {"message": message})
    assert http.emulator.ledger == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"start"', b'{"model_id": NaN}', b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 9999],
)
async def test_a_body_that_is_not_a_json_object_is_rejected(
    content: bytes, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    headers = {"Authorization": f"Bearer {await http.token()}", "Content-Type": "application/json"}
    for path in ("start", "restart", "stop"):
        answer = await http.api("POST", f"/instances/{path}", headers=headers, content=content)
        assert answer.status_code == 400
        assert "JSON" in answer.json()["message"]


async def test_a_body_needs_its_content_type(emulate: Callable[..., Any]) -> None:
    http = emulate()
    headers = {"Authorization": f"Bearer {await http.token()}"}
    body = json.dumps({"model_id": LLAMA})
    assert (await http.api("POST", "/instances/start", headers=headers, content=body)).status_code == 400
    headers["Content-Type"] = "application/json; charset=utf-8"
    assert (await http.api("POST", "/instances/start", headers=headers, content=body)).status_code == 202


@pytest.mark.parametrize("unknown_status", [400, 404])
async def test_unknown_instances(unknown_status: int, emulate: Callable[..., Any]) -> None:
    http = emulate(unknown_status=unknown_status)
    deleted = http.emulator.start_instance(LLAMA)
    http.emulator.delete_instance(deleted)
    for instance_id in (deleted, "instance-1", "nonsense"):
        body = {"instance_id": instance_id}
        answers = [
            await http.api("GET", f"/instances/{instance_id}"),
            await http.api("DELETE", f"/instances/{instance_id}"),
            await http.api("POST", "/instances/stop", json=body),
            await http.api("POST", "/instances/restart", json=body),
        ]
        for answer in answers:
            assert answer.status_code == unknown_status
            assert answer.json() == {"message": f"Instance {instance_id} does not exist."}


async def test_actions_need_the_right_status(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    instance_id = http.emulator.start_instance(LLAMA)
    body = {"instance_id": instance_id}
    for now, status in ((0.0, "pending"), (4.0, "running")):
        clock.now = now
        deleted = await http.api("DELETE", f"/instances/{instance_id}")
        restarted = await http.api("POST", "/instances/restart", json=body)
        assert (deleted.status_code, restarted.status_code) == (400, 400)
        assert status in deleted.json()["message"]
        assert status in restarted.json()["message"]
    http.emulator.stop_instance(instance_id)
    again = await http.api("POST", "/instances/stop", json=body)
    assert (again.status_code, again.json()) == (
        400,
        {"message": "Instance instance-10001 is already stopped."},
    )
    deleted = await http.api("DELETE", f"/instances/{instance_id}")
    assert deleted.status_code == 200
    assert deleted.json() == {"message": "Instance deleted successfully.", "instance_id": instance_id}
    assert http.emulator.existing == ()


async def test_stop_all_leaves_its_ids_out_when_there_are_none(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    running, stopped = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    http.emulator.stop_instance(stopped)
    clock.now = 4.0
    pending = http.emulator.start_instance(LLAMA)
    answer = await http.api("POST", "/instances/stop-all")
    assert answer.json() == {
        "message": "All instances stopped successfully.",
        "instance_ids": [running, pending],
    }
    again = await http.api("POST", "/instances/stop-all")
    assert (again.status_code, again.json()) == (200, {"message": "All instances stopped successfully."})


async def test_delete_all_deletes_the_stopped_or_by_force_all(emulate: Callable[..., Any]) -> None:
    http = emulate()
    kept, stopped = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    http.emulator.stop_instance(stopped)
    for query, ids in (("", [stopped]), ("?force_deletion=false", []), ("?force_deletion=True", [kept])):
        answer = await http.api("DELETE", f"/instances/delete-all{query}")
        assert answer.status_code == 200
        assert answer.json() == {"message": "All instances deleted successfully.", "instance_ids": ids}
    assert http.emulator.existing == ()
    assert http.emulator.billing == ()


@pytest.mark.parametrize("query", ["perhaps", "", "true&force_deletion=true"])
async def test_a_force_that_is_not_a_boolean_is_rejected(query: str, emulate: Callable[..., Any]) -> None:
    http = emulate()
    http.emulator.start_instance(LLAMA)
    answer = await http.api("DELETE", f"/instances/delete-all?force_deletion={query}")
    assert answer.status_code == 400
    assert len(http.emulator.existing) == 1


async def test_the_list_has_all_that_exist_in_order(emulate: Callable[..., Any]) -> None:
    http = emulate()
    assert (await http.api("GET", "/instances/")).json() == {"instances": []}
    ids = [(await http.start()).json()["instance"]["instance_id"] for _ in range(3)]
    http.emulator.stop_instance(ids[0])
    http.emulator.delete_instance(ids[1])
    listed = (await http.api("GET", "/instances/")).json()["instances"]
    assert listed == [await http.instance(ids[0]), await http.instance(ids[2])]


@pytest.mark.parametrize("path", ["/instances", "/models", "/hardware-types"])
async def test_a_missing_slash_is_redirected(path: str, emulate: Callable[..., Any]) -> None:
    http = emulate()
    answer = await http.api("GET", f"{path}?a=b%20c")
    assert answer.status_code == 307
    assert answer.headers["location"] == f"/api/v1{path}/?a=b+c"
    followed = await http.api("GET", path, follow_redirects=True)
    assert followed.status_code == 200


async def test_models_need_no_token(emulate: Callable[..., Any]) -> None:
    http = emulate()
    listed = (await http.api("GET", "/models/", headers={})).json()["models"]
    assert LLAMA in [model["model_id"] for model in listed]
    for preview in listed:
        answer = await http.api("GET", f"/models/{preview['model_id']}", headers={})
        model = answer.json()["model"]
        assert model["hf_name"] == preview["model_id"].replace("--", "/")
        assert model["recommended_config"] in model["hardware_configs"]
        assert list(model["hardware_configs"]) == preview["hardware_info"]["hardware_configs"]
        assert all(config["params"]["--max-model-len"] > 0 for config in model["hardware_configs"].values())
    unknown = await http.api("GET", "/models/nobody--nothing", headers={})
    assert (unknown.status_code, unknown.json()) == (400, {"message": "Unknown model_id 'nobody--nothing'."})


async def test_hardware_needs_no_token_and_says_that_prices_are_invented(emulate: Callable[..., Any]) -> None:
    http = emulate(currency="USD", capacity={"NVIDIA_L40S_1": 0})
    every = (await http.api("GET", "/hardware-types/", headers={})).json()["hardware_types"]
    free = (await http.api("GET", "/hardware-types/available", headers={})).json()["hardware_types"]
    assert [hardware for hardware in every if hardware not in free] == [
        {
            "hardware_type_id": "NVIDIA_L40S_1",
            "price_info": {
                "price_per_minute": 0.03,
                "price_per_hour": 1.8,
                "currency": "USD",
                "source": "invented by the cortecs_async emulator",
            },
            "hardware_info": {"gpu": "NVIDIA L40S", "num_gpus": 1, "vram_gb": 48},
        }
    ]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/oauth2/token", "POST"),
        ("POST", "/instances/", "GET"),
        # Its own path, not the instance whose id is "start".
        ("GET", "/instances/start", "POST"),
        ("DELETE", "/instances/stop-all", "POST"),
        ("POST", "/instances/instance-10001", "DELETE, GET"),
    ],
)
async def test_a_wrong_method_is_named(
    method: str, path: str, allow: str, emulate: Callable[..., Any]
) -> None:
    answer = await emulate().api(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)


@pytest.mark.parametrize("path", ["/", "/instances//", "/instances/a/b", "/nothing"])
async def test_nothing_is_there(path: str, emulate: Callable[..., Any]) -> None:
    answer = await emulate().api("GET", path)
    assert (answer.status_code, answer.json()) == (404, {"message": f"There is nothing at /api/v1{path}."})


async def test_every_request_is_recorded_and_numbered(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    clock.now = 3.0
    await http.start()
    clock.now = 4.0
    last = await http.api("GET", "/nothing")
    assert last.headers["x-request-id"] == "emulator-request-3"
    assert http.emulator.requests == (
        RequestRecord("POST", "/api/v1/oauth2/token", "token", 200, 3.0, None),
        RequestRecord("POST", "/api/v1/instances/start", "start", 202, 3.0, None),
        RequestRecord("GET", "/api/v1/nothing", None, 404, 4.0, None),
    )
