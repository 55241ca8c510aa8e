"""The routes under /api/v1. Each is a function from a request to a response."""

from collections.abc import Iterable
from typing import Any, Final

from cortecs_async.emulator._account import Account, read_args
from cortecs_async.emulator._catalog import HARDWARE
from cortecs_async.emulator._messages import (
    ApiError,
    Params,
    Request,
    Response,
    json_object,
    json_response,
    required_string,
)

_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def require_token(account: Account, request: Request, now: float) -> None:
    if not account.is_valid_token(request.bearer_token or "", now):
        raise ApiError(401, "Bearer token missing or invalid.", headers={"www-authenticate": "Bearer"})


def token(account: Account, request: Request, _params: Params, now: float) -> Response:
    body = json_object(request)
    if required_string(body, "grant_type") != "client_credentials":
        raise ApiError(400, "grant_type must be client_credentials.")
    credentials = required_string(body, "client_id"), required_string(body, "client_secret")
    if credentials != (account.settings.client_id, account.settings.client_secret):
        raise ApiError(401, "Unknown client_id or wrong client_secret.")
    return json_response(
        200,
        {
            "access_token": account.issue_token(now),
            "token_type": "Bearer",
            "expires_in": account.settings.token_lifetime,
        },
        {"cache-control": "no-store"},
    )


def balance(account: Account, _request: Request, _params: Params, now: float) -> Response:
    return json_response(
        200, {"current_balance": account.balance(now), "currency": account.settings.currency}
    )


def list_instances(account: Account, _request: Request, _params: Params, now: float) -> Response:
    return json_response(200, {"instances": account.list_json(now)})


def get_instance(account: Account, _request: Request, params: Params, now: float) -> Response:
    return json_response(200, {"instance": account.get_json(params["instance_id"], now)})


def start(account: Account, request: Request, _params: Params, now: float) -> Response:
    args = read_args(json_object(request), account.settings.models)
    instance = account.start(args, now)
    return json_response(202, {"message": "Instance is starting.", "instance": account.json(instance, now)})


def restart(account: Account, request: Request, _params: Params, now: float) -> Response:
    instance = account.restart(_instance_id(request), now)
    return json_response(202, {"message": "Instance is starting.", "instance": account.json(instance, now)})


def stop(account: Account, request: Request, _params: Params, now: float) -> Response:
    instance = account.stop(_instance_id(request), now)
    return json_response(
        200, {"message": "Instance stopped successfully", "instance": account.json(instance, now)}
    )


def delete(account: Account, _request: Request, params: Params, now: float) -> Response:
    instance_id = params["instance_id"]
    account.delete(instance_id, now)
    return json_response(200, {"message": "Instance deleted successfully.", "instance_id": instance_id})


def stop_all(account: Account, _request: Request, _params: Params, now: float) -> Response:
    """Handle POST /instances/stop-all. The response has no ids if no instance was stopped."""
    body: dict[str, Any] = {"message": "All instances stopped successfully."}
    if ids := account.stop_all(now):
        body["instance_ids"] = ids
    return json_response(200, body)


def delete_all(account: Account, request: Request, _params: Params, now: float) -> Response:
    ids = account.delete_all(now, force=_boolean_query(request, "force_deletion"))
    return json_response(200, {"message": "All instances deleted successfully.", "instance_ids": ids})


def models(account: Account, _request: Request, _params: Params, _now: float) -> Response:
    return json_response(200, {"models": [model.preview() for model in account.settings.models.values()]})


def model(account: Account, _request: Request, params: Params, _now: float) -> Response:
    model = account.settings.models.get(params["model_id"])
    if model is None:
        raise ApiError(400, f"Unknown model_id {params['model_id']!r}.")
    return json_response(200, {"model": model.detail(account.settings.model_detail)})


def hardware_types(account: Account, _request: Request, _params: Params, _now: float) -> Response:
    return _hardware_types(account, HARDWARE)


def available(account: Account, _request: Request, _params: Params, now: float) -> Response:
    return _hardware_types(account, account.available(now))


def _hardware_types(account: Account, ids: Iterable[str]) -> Response:
    currency = account.settings.currency
    shown = [{**HARDWARE[each].json(currency), **account.price_infos.get(each, {})} for each in ids]
    return json_response(200, {"hardware_types": shown})


def _instance_id(request: Request) -> str:
    return required_string(json_object(request), "instance_id")


def _boolean_query(request: Request, name: str) -> bool:
    values = [value for key, value in request.query if key == name]
    if not values:
        return False
    # Python's requests library capitalizes True and False.
    value = _BOOLEANS.get(values[0].lower())
    if value is None or len(values) > 1:
        raise ApiError(400, f"{name} must be true or false.")
    return value
