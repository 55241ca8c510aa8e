"""What most tests speak of: a model and its hardware, and a client of an emulator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.lowlevel

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator
from cortecs_async.emulator._emulator import _EPOCH

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HARDWARE = "NVIDIA_H100_1"

World = Callable[..., AbstractAsyncContextManager[tuple[Emulator, AsyncCortecs]]]
"""The fixture `world` of conftest.py."""


def client_of(emulator: Emulator, **options: Any) -> AsyncCortecs:
    """A client with an emulator's address and credentials."""
    return AsyncCortecs(
        **{
            "client_id": emulator.client_id,
            "client_secret": emulator.client_secret,
            "api_base_url": emulator.api_base_url,
            **options,
        }
    )


async def in_the_loop(work: Callable[[], Any], /) -> Any:
    """File work on virtual time, whose clock a thread would not stop."""
    await anyio.lowlevel.checkpoint()
    return work()


def emulated_wall_clock() -> float:
    """Unix time as an emulator on virtual time has it."""
    return _EPOCH + anyio.current_time()
