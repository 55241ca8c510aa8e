"""Where an instance is talked to, for everything that has a `base_url`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ._errors import ConfigurationError, InvalidArgumentError

if TYPE_CHECKING:
    import openai

    from ._mapping import Results

T = TypeVar("T")
R = TypeVar("R")


def inference_key(api_key: str | None = None) -> str:
    """The key for inference, which is not the provisioning secret.

    Args:
        api_key: Default: the environment's CORTECS_API_KEY, else OPENAI_API_KEY (the name in the vendor's
            examples).

    Raises:
        ConfigurationError: when there is no key.
    """
    key = api_key or os.environ.get("CORTECS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    # Files and secrets of orchestrators often end a line.
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        del api_key, key  # a traceback that shows locals would show them
        raise ConfigurationError("the key for inference has characters that no header may have")
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

    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        concurrency: int = 16,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
    ) -> Results[R]: ...

    @overload
    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        concurrency: int = 16,
        ordered: bool = True,
        return_exceptions: bool,
    ) -> Results[R | Exception]: ...

    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        concurrency: int = 16,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> Results[R] | Results[R | Exception]:
        """Calls `await fn(item)` for each item, so many at once, and gives the results to `async for`.

        Items are read only as fast as results are taken: at most `2 * concurrency` are begun and not taken,
        so that a stream of any length needs no more memory than that. Leaving the loop or the lease cancels
        what runs.

        Args:
            fn: An async function of one argument.
            items: Its arguments, from an iterable or async iterable. An error in it is raised after the
                results before it.
            concurrency: How many calls run at once at most.
            ordered: Results come in the order of the items; False gives each as soon as it is there.
            return_exceptions: An exception of `fn` is a result. Else it is raised at its item's turn, the
                rest is cancelled, and no item is begun once it is known.

        Raises:
            InvalidArgumentError: at once, for arguments that cannot be, or after the lease was left.
        """
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidArgumentError(f"concurrency must be a whole number from 1, not {concurrency!r}")
        from ._mapping import maps_of, start_map  # noqa: PLC0415  (brings anyio, which a handle does without)

        return start_map(
            fn,
            items,
            limit=lambda: concurrency,
            ordered=ordered,
            return_exceptions=return_exceptions,
            maps=maps_of(self),
        )

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
