"""Names shared by most tests: a model, its hardware, and an emulator's client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cortecs_async import AsyncCortecs
from cortecs_async._aio.threads import System
from cortecs_async.emulator import Emulator, serve_emulator
from cortecs_async.emulator._emulator import _EPOCH

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HARDWARE = "NVIDIA_H100_1"

World = Callable[..., AbstractAsyncContextManager[tuple[Emulator, AsyncCortecs]]]
"""The type of the `world` fixture in conftest.py."""


def client_of(emulator: Emulator, **options: Any) -> AsyncCortecs:
    """Create a client with an emulator's address and credentials."""
    return AsyncCortecs(
        **{
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
            "api_base_url": emulator.api_base_url,
            **options,
        }
    )


@asynccontextmanager
async def service(monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[Emulator]:
    """Serve an emulator, and put its address and credentials into the environment."""
    async with serve_emulator(**{"step_seconds": 0.02, **options}) as emu:
        for name, value in emu.env().items():
            monkeypatch.setenv(name, value)
        yield emu


async def in_the_loop(work: Callable[[], Any], /) -> Any:
    """Run file work in the event loop, because virtual time does not wait for threads."""
    await anyio.lowlevel.checkpoint()
    return work()


def emulated_wall_clock() -> float:
    """Return the Unix time of an emulator on virtual time."""
    return _EPOCH + anyio.current_time()


SYSTEM = System(emulated_wall_clock, off_loop=in_the_loop, in_background=lambda work: work())
"""Use an emulator's clock and no threads."""
