"""An emulator for the commands of this process."""

from __future__ import annotations

import httpx
import pytest

import cortecs_async
from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An emulator in this process, which the commands reach without a socket."""
    emulator = Emulator(step_seconds=0.01)
    for name, value in emulator.env().items():
        monkeypatch.setenv(name, value)

    def client(**_: object) -> AsyncCortecs:
        http = httpx.AsyncClient(transport=emulator.transport())
        return AsyncCortecs(http_client=http, guard="off", journal="off")

    monkeypatch.setattr(cortecs_async, "AsyncCortecs", client)
    return emulator
