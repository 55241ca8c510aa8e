"""Find the route of a request and handle the request."""

import functools
import json
import re
from collections.abc import Callable
from importlib import resources
from typing import Final, Literal
from urllib.parse import urlencode

import attrs
from starlette.routing import compile_path

from cortecs_async.emulator._account import Account
from cortecs_async.emulator._messages import ApiError, Params, Request, Response, json_response

from . import _inference as inference
from . import _provisioning as provisioning
from ._ranking import rerank, score
from ._responses import responses

API: Final = "/api/v1"
INFERENCE: Final = "/inference"

Handler = Callable[[Account, Request, Params, float], Response]
Credential = Literal["token", "api_key"]


@attrs.frozen
class Route:
    """One route. A path segment in braces matches anything except a slash."""

    name: str
    method: str
    path: str
    handler: Handler
    needs: Credential | None = "token"

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches a path; its groups are the parameters."""
        return compile_path(self.path)[0]


def _openapi(account: Account, _request: Request, _params: Params, _now: float) -> Response:
    document = json.loads(resources.files("cortecs_async.emulator").joinpath("openapi.json").read_bytes())
    models = account.settings.models
    schemas = document["components"]["schemas"]
    schemas["ModelId"]["enum"] = list(models)
    schemas["ModelName"]["enum"] = [model.hf_name for model in models.values()]
    return json_response(200, document)


# Literal segments come before a parameter that would also match them.
ROUTES: Final = (
    Route("token", "POST", f"{API}/oauth2/token", provisioning.token, None),
    Route("balance", "GET", f"{API}/user/balance", provisioning.balance),
    Route("list", "GET", f"{API}/instances/", provisioning.list_instances),
    Route("start", "POST", f"{API}/instances/start", provisioning.start),
    Route("restart", "POST", f"{API}/instances/restart", provisioning.restart),
    Route("stop", "POST", f"{API}/instances/stop", provisioning.stop),
    Route("stop_all", "POST", f"{API}/instances/stop-all", provisioning.stop_all),
    Route("delete_all", "DELETE", f"{API}/instances/delete-all", provisioning.delete_all),
    Route("get", "GET", f"{API}/instances/{{instance_id}}", provisioning.get_instance),
    Route("delete", "DELETE", f"{API}/instances/{{instance_id}}", provisioning.delete),
    Route("models", "GET", f"{API}/models/", provisioning.models, None),
    Route("model", "GET", f"{API}/models/{{model_id}}", provisioning.model, None),
    Route("hardware_types", "GET", f"{API}/hardware-types/", provisioning.hardware_types, None),
    Route("available", "GET", f"{API}/hardware-types/available", provisioning.available, None),
    Route("v1_models", "GET", f"{INFERENCE}/{{instance_id}}/v1/models", inference.v1_models, "api_key"),
    Route("chat", "POST", f"{INFERENCE}/{{instance_id}}/v1/chat/completions", inference.chat, "api_key"),
    Route(
        "completions", "POST", f"{INFERENCE}/{{instance_id}}/v1/completions", inference.completions, "api_key"
    ),
    Route(
        "embeddings", "POST", f"{INFERENCE}/{{instance_id}}/v1/embeddings", inference.embeddings, "api_key"
    ),
    Route("responses", "POST", f"{INFERENCE}/{{instance_id}}/v1/responses", responses, "api_key"),
    Route("rerank", "POST", f"{INFERENCE}/{{instance_id}}/v1/rerank", rerank, "api_key"),
    Route("score", "POST", f"{INFERENCE}/{{instance_id}}/v1/score", score, "api_key"),
    Route("openapi", "GET", "/openapi.json", _openapi, None),
)
ROUTE_NAMES: Final = frozenset(route.name for route in ROUTES)
INFERENCE_ROUTES: Final = frozenset(route.name for route in ROUTES if route.path.startswith(INFERENCE))


@attrs.frozen
class Match:
    """The result of routing a request: a route, a redirect, a wrong method, or nothing."""

    route: Route | None = None
    params: Params = attrs.field(factory=dict)
    allow: tuple[str, ...] = ()
    """The methods that the path allows, if the request uses a different one."""
    location: str | None = None
    """The redirect, if the slash at the end of the path is missing."""

    @property
    def name(self) -> str | None:
        return None if self.route is None else self.route.name


# Under load, the same few paths repeat. The limit is for paths that callers make up.
@functools.lru_cache(maxsize=4096)
def find_route(method: str, path: str) -> Match:
    same_path: str | None = None
    allow: list[str] = []
    for route in ROUTES:
        found = route.pattern.fullmatch(path)
        # /instances/start is its own path: a GET there has a wrong method and does not mean an instance.
        if found is None or same_path not in (None, route.path):
            continue
        if route.method == method:
            return Match(route, found.groupdict())
        same_path = route.path
        allow.append(route.method)
    if allow:
        return Match(allow=tuple(sorted(allow)))
    if any(route.path == f"{path}/" for route in ROUTES):
        return Match(location=f"{path}/")
    return Match()


def handle(account: Account, request: Request, match: Match, now: float) -> Response:
    if match.location is not None:
        query = urlencode(request.query)
        return Response(307, headers={"location": f"{match.location}?{query}" if query else match.location})
    if match.allow:
        raise ApiError(
            405, f"{request.method} is not allowed here.", headers={"allow": ", ".join(match.allow)}
        )
    if match.route is None:
        raise ApiError(404, f"There is nothing at {request.path}.")
    if match.route.needs == "token":
        provisioning.require_token(account, request, now)
    elif match.route.needs == "api_key":
        inference.require_api_key(account, request)
    return match.route.handler(account, request, match.params, now)
