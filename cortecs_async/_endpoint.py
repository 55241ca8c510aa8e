"""Where an instance is talked to, for everything that has a `base_url`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ._errors import ConfigurationError

if TYPE_CHECKING:
    import openai


def inference_key(api_key: str | None = None) -> str:
    """The key for inference, which is not the provisioning secret.

    Args:
        api_key: Default: the environment's CORTECS_API_KEY, else OPENAI_API_KEY (the name in the vendor's
            examples).

    Raises:
        ConfigurationError: when there is no key.
    """
    key = api_key or os.environ.get("CORTECS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    if not key:
        raise ConfigurationError(
            "no key for inference: pass api_key=, or set CORTECS_API_KEY or OPENAI_API_KEY. It is a key "
            "of its own from cortecs.ai; client_id and client_secret are only for provisioning."
        )
    return key


class Endpoint:
    """An OpenAI-compatible endpoint. Subclasses say where it is."""

    __slots__ = ()

    @property
    def _where(self) -> tuple[str, str]:
        """Base URL and model."""
        raise NotImplementedError

    def openai_kwargs(self, *, api_key: str | None = None) -> dict[str, str]:
        """`base_url` and `api_key`, as OpenAI-compatible clients and frameworks take them.

        Args:
            api_key: The key for inference, which is not the provisioning secret. Default: the environment's
                CORTECS_API_KEY, else OPENAI_API_KEY (the name in the vendor's examples).

        Raises:
            ConfigurationError: when there is no key.
        """
        return {"base_url": self._where[0], "api_key": inference_key(api_key)}

    def openai(self, *, api_key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """An `openai.AsyncOpenAI` for this instance; close it, or use it with `async with`.

        Args:
            api_key: As for `openai_kwargs`.
            **options: Passed on to `AsyncOpenAI`.

        Raises:
            ConfigurationError: when there is no key, or the `openai` package is not installed.
        """
        try:
            from openai import AsyncOpenAI  # noqa: PLC0415  (optional, and slow to import)
        except ImportError:
            raise ConfigurationError(
                "inst.openai() needs the openai package: pip install 'cortecs-async[openai]'"
            ) from None
        arguments: dict[str, Any] = {**self.openai_kwargs(api_key=api_key), **options}
        return AsyncOpenAI(**arguments)
