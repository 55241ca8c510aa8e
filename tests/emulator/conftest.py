"""A clock that tests set, and a client that sends plain HTTP requests to an emulator."""

from collections.abc import Callable
from typing import Any, final

import httpx
import pytest

from cortecs_async.emulator import Emulator

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"


@final
class Clock:
    """The present in seconds, set by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@final
class Http:
    """Requests to an emulator in process, with its credentials unless they are given."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self._client = httpx.AsyncClient(transport=emulator.transport(), base_url=emulator.root_url)
        self._token: str | None = None

    async def token(self) -> str:
        emulator = self.emulator
        answer = await self._client.post(
            "/api/v1/oauth2/token",
            json={
                "grant_type": "client_credentials",
                "client_id": emulator.client_id,
                "client_secret": emulator.client_secret,
            },
        )
        return str(answer.json()["access_token"])

    async def api(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """A request under /api/v1."""
        if "headers" not in kwargs:
            if self._token is None:
                self._token = await self.token()
            kwargs["headers"] = {"Authorization": f"Bearer {self._token}"}
        return await self._client.request(method, f"/api/v1{path}", **kwargs)

    async def start(self, **body: Any) -> httpx.Response:
        return await self.api("POST", "/instances/start", json={"model_id": LLAMA, **body})

    async def instance(self, instance_id: str) -> dict[str, Any]:
        answer = await self.api("GET", f"/instances/{instance_id}")
        found: dict[str, Any] = answer.json()["instance"]
        return found

    async def infer(self, instance_id: str, path: str, body: Any = None, **kwargs: Any) -> httpx.Response:
        """A request under the instance's base URL: POST with a body, GET without."""
        kwargs.setdefault("headers", {"Authorization": f"Bearer {self.emulator.api_key}"})
        method = "GET" if body is None else "POST"
        return await self._client.request(method, f"/inference/{instance_id}/v1{path}", json=body, **kwargs)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulate(clock: Clock) -> Callable[..., Http]:
    """Create an emulator on the clock, and a client for it."""

    def make(**options: Any) -> Http:
        return Http(Emulator(clock=clock, **options))

    return make
