"""What most tests speak of: a model and its hardware, and a client of an emulator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator

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
