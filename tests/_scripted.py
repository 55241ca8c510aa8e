"""An in-process service with scripted answers that no working service would give.

It records all requests, so that a test can check what was sent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
from attrs import define, field

from cortecs_async import AsyncCortecs

API = "https://api.test/v1"
CLIENT_ID = "id-of-the-client"
SECRET = "s3cret-of-the-client"
TOKEN = "t0ken-of-the-service"


@define(kw_only=True)
class Answer:
    """One answer, or a `failure` instead of it, after `delay` seconds."""

    status: int = 200
    json: Any = None
    content: bytes | None = None
    headers: dict[str, str] = field(factory=dict)
    delay: float = 0.0
    failure: type[httpx.TransportError] | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.delay:
            await anyio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure("the script says so", request=request)
        content = self.content
        if content is None:
            content = b"" if self.json is None else json.dumps(self.json).encode()
        return httpx.Response(self.status, content=content, headers=self.headers)


Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Service:
    """Answers requests by (method, path below the API base URL). A route's last answer repeats."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []
        self._script: dict[tuple[str, str], list[Handler]] = {}
        self._served: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.on("POST", "/oauth2/token", token())

    def on(self, method: str, path: str, *answers: Handler) -> None:
        self._script[method, path] = list(answers)
        self._served[method, path] = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(anyio.current_time())
        path = request.url.raw_path.decode().split("?")[0]
        key = request.method, path.removeprefix("/v1")
        script = self._script.get(key)
        if script is None:
            return httpx.Response(404, json={"message": f"no such route: {key}"})
        step = min(self._served[key], len(script) - 1)
        self._served[key] += 1
        return await script[step](request)

    @property
    def routes(self) -> list[str]:
        """The routes of all requests except token requests."""
        routes = [f"{each.method} {each.url.raw_path.decode().removeprefix('/v1')}" for each in self.requests]
        return [each for each in routes if each != "POST /oauth2/token"]

    @property
    def token_requests(self) -> int:
        return sum(each.url.path.endswith("/oauth2/token") for each in self.requests)

    def http_client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), **options)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[AsyncCortecs]:
        """Open a client connected to this service."""
        if "credential_provider" not in options:
            options = {"client_id": CLIENT_ID, "client_secret": SECRET, **options}
        async with self.http_client() as http_client:
            async with AsyncCortecs(**{"api_base_url": API, "http_client": http_client, **options}) as client:
                yield client


def token(value: str = TOKEN, expires_in: Any = 3600, **options: Any) -> Answer:
    return Answer(json={"access_token": value, "token_type": "Bearer", "expires_in": expires_in}, **options)


def instance(instance_id: str = "instance-1", status: str = "running", **fields: Any) -> dict[str, Any]:
    return {
        "instance_id": instance_id,
        "base_url": "https://abcd.test/v1",
        "instance_args": {"model_id": "org--model", "hardware_type_id": "NVIDIA_H100_1"},
        "instance_status": {"status": status, "started_at": None, "stopped_at": None},
        "worker_statuses": [],
        **fields,
    }


def ok(instance_id: str = "instance-1", status: str = "running", **fields: Any) -> Answer:
    """Return the answer to a get, start, stop, or restart."""
    return Answer(json={"message": "fine", "instance": instance(instance_id, status, **fields)})
