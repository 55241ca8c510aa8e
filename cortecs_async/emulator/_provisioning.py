"""The routes under /api/v1: each a synchronous function from a call to an answer."""

from collections.abc import Mapping
from typing import Any, Final

from cortecs_async.emulator._account import Account, read_arguments
from cortecs_async.emulator._answers import Answer, Call, Refusal, json_answer, json_object, required_string
from cortecs_async.emulator._catalogue import HARDWARE, MODELS

Params = Mapping[str, str]

_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def require_token(account: Account, call: Call, now: float) -> None:
    """Check the bearer token of a call.

    Raises:
        Refusal: 401 when it is missing, unknown or expired.
    """
    scheme, _, token = call.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not account.token_is_good(token.strip(), now):
        raise Refusal(401, "Bearer token missing or invalid.", headers={"www-authenticate": "Bearer"})


def token(account: Account, call: Call, _params: Params, now: float) -> Answer:
    """POST /oauth2/token."""
    body = json_object(call)
    if required_string(body, "grant_type") != "client_credentials":
        raise Refusal(400, "grant_type must be client_credentials.")
    client = required_string(body, "client_id"), required_string(body, "client_secret")
    if client != (account.settings.client_id, account.settings.client_secret):
        raise Refusal(401, "Unknown client_id or wrong client_secret.")
    return json_answer(
        200,
        {
            "access_token": account.issue_token(now),
            "token_type": "Bearer",
            "expires_in": account.settings.token_lifetime,
        },
        {"cache-control": "no-store"},
    )


def balance(account: Account, _call: Call, _params: Params, now: float) -> Answer:
    """GET /user/balance."""
    return json_answer(200, {"current_balance": account.balance(now), "currency": account.settings.currency})


def list_instances(account: Account, _call: Call, _params: Params, now: float) -> Answer:
    """GET /instances/."""
    return json_answer(200, {"instances": [account.wire(machine, now) for machine in account.alive.values()]})


def get_instance(account: Account, _call: Call, params: Params, now: float) -> Answer:
    """GET /instances/{instance_id}."""
    return json_answer(200, {"instance": account.wire(account.get(params["instance_id"]), now)})


def start(account: Account, call: Call, _params: Params, now: float) -> Answer:
    """POST /instances/start."""
    machine = account.start(read_arguments(json_object(call)), now)
    return json_answer(202, {"message": "Instance is starting.", "instance": account.wire(machine, now)})


def restart(account: Account, call: Call, _params: Params, now: float) -> Answer:
    """POST /instances/restart."""
    machine = account.restart(_instance_id(call), now)
    return json_answer(202, {"message": "Instance is starting.", "instance": account.wire(machine, now)})


def stop(account: Account, call: Call, _params: Params, now: float) -> Answer:
    """POST /instances/stop."""
    machine = account.stop(_instance_id(call), now)
    return json_answer(
        200, {"message": "Instance stopped successfully", "instance": account.wire(machine, now)}
    )


def delete(account: Account, _call: Call, params: Params, now: float) -> Answer:
    """DELETE /instances/{instance_id}."""
    machine = account.delete(params["instance_id"], now)
    return json_answer(200, {"message": "Instance deleted successfully.", "instance_id": machine.instance_id})


def stop_all(account: Account, _call: Call, _params: Params, now: float) -> Answer:
    """POST /instances/stop-all. The vendor's client provides for an answer without ids: none affected."""
    answer: dict[str, Any] = {"message": "All instances stopped successfully."}
    if ids := account.stop_all(now):
        answer["instance_ids"] = ids
    return json_answer(200, answer)


def delete_all(account: Account, call: Call, _params: Params, now: float) -> Answer:
    """DELETE /instances/delete-all."""
    ids = account.delete_all(now, force=_boolean_query(call, "force_deletion"))
    return json_answer(200, {"message": "All instances deleted successfully.", "instance_ids": ids})


def models(_account: Account, _call: Call, _params: Params, _now: float) -> Answer:
    """GET /models/."""
    return json_answer(200, {"models": [model.preview() for model in MODELS.values()]})


def model(_account: Account, _call: Call, params: Params, _now: float) -> Answer:
    """GET /models/{model_id}."""
    found = MODELS.get(params["model_id"])
    if found is None:
        raise Refusal(400, f"Unknown model_id {params['model_id']!r}.")
    return json_answer(200, {"model": found.detail()})


def hardware_types(account: Account, _call: Call, _params: Params, _now: float) -> Answer:
    """GET /hardware-types/."""
    currency = account.settings.currency
    return json_answer(200, {"hardware_types": [hardware.wire(currency) for hardware in HARDWARE.values()]})


def available(account: Account, _call: Call, _params: Params, now: float) -> Answer:
    """GET /hardware-types/available."""
    free = [
        hardware for hardware in HARDWARE.values() if account.free_sets(hardware.hardware_type_id, now) > 0
    ]
    return json_answer(
        200, {"hardware_types": [hardware.wire(account.settings.currency) for hardware in free]}
    )


def _instance_id(call: Call) -> str:
    return required_string(json_object(call), "instance_id")


def _boolean_query(call: Call, name: str) -> bool:
    values = [value for key, value in call.query if key == name]
    if not values:
        return False
    # Python's requests writes True and False with a capital.
    found = _BOOLEANS.get(values[0].lower())
    if found is None or len(values) > 1:
        raise Refusal(400, f"{name} must be true or false.")
    return found
