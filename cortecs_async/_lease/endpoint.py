"""Clients and settings for the OpenAI-compatible endpoint of an instance."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

from attrs import asdict, field, fields, frozen

from .._errors import ConfigurationError, InvalidArgumentError

if TYPE_CHECKING:
    import openai
    from langchain_openai import ChatOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel

    from .mapping import Results

T = TypeVar("T")
R = TypeVar("R")


def inference_key(api_key: str | None = None) -> str:
    """Return the inference API key: the argument, or else that of the environment."""
    key = api_key or os.environ.get("CORTECS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    # Secrets that orchestrators mount as files often end with a newline.
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        del api_key, key  # a traceback that shows locals would show them
        raise ConfigurationError("the inference API key has characters that an HTTP header cannot contain")
    if not key:
        raise ConfigurationError(
            "no inference API key: pass api_key=, or set CORTECS_API_KEY or OPENAI_API_KEY. Create the key "
            "on cortecs.ai; client_id and client_secret are only for provisioning."
        )
    return key


class OpenAIKwargs(TypedDict):
    """Keyword arguments for OpenAI-compatible clients and frameworks."""

    base_url: str
    api_key: str


class Endpoint:
    """An OpenAI-compatible endpoint. Subclasses have its `base_url` and `model`."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def base_url(self) -> str: ...

        @property
        def model(self) -> str: ...

    def openai_kwargs(self, *, api_key: str | None = None) -> OpenAIKwargs:
        """Return `base_url` and `api_key` as keyword arguments for OpenAI-compatible clients.

        Args:
            api_key: Your inference API key (not the provisioning credentials). Default: the environment
                variable CORTECS_API_KEY, else OPENAI_API_KEY (the name in the vendor's examples).

        Raises:
            ConfigurationError: if there is no key.
        """
        return {"base_url": self.base_url, "api_key": inference_key(api_key)}

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
        """Call `await fn(item)` for each item in parallel; iterate over the results with `async for`.

        Items are read as fast as you take results: at most `2 * concurrency` results are pending or waiting
        to be consumed, so a stream of any length needs little memory. If you leave the loop or the lease, the
        running calls are cancelled.

        Args:
            fn: An async function of one argument.
            items: The arguments, an iterable or async iterable. If it raises, you get the earlier results
                first.
            concurrency: Maximum number of calls to run in parallel.
            ordered: Yield results in item order; False yields each as soon as it is ready.
            return_exceptions: Yield an exception of `fn` as a result. Otherwise it is raised in place of the
                result, the other calls are cancelled, and no further call begins.

        Raises:
            InvalidArgumentError: if an argument is invalid, or the lease has ended.
        """
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise InvalidArgumentError(
                f"concurrency must be a whole number of at least 1, not {concurrency!r}"
            )
        from .mapping import new_map  # noqa: PLC0415  (imports anyio, which a handle does not need)

        return new_map(self, fn, items, concurrency, ordered=ordered, return_exceptions=return_exceptions)

    def openai(self, *, api_key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """Return an `openai.AsyncOpenAI` for this instance. Close it, or use it with `async with`.

        Args:
            api_key: Your inference API key. Default: as for `openai_kwargs`.
            **options: Passed to `AsyncOpenAI`.

        Raises:
            ConfigurationError: if there is no key, or the `openai` package is not installed.
        """
        try:
            from openai import AsyncOpenAI  # noqa: PLC0415  (optional, and slow to import)
        except ImportError:
            raise _missing("openai") from None
        arguments: dict[str, Any] = {**self.openai_kwargs(api_key=api_key), **options}
        return AsyncOpenAI(**arguments)

    def langchain(self, *, api_key: str | None = None, **options: Any) -> ChatOpenAI:
        """Return a `langchain_openai.ChatOpenAI` for this instance.

        It has its own connections, which `await llm.root_async_client.close()` or the garbage collector
        closes. If you create `ChatOpenAI` yourself, all objects with one URL share their connections: the
        second `asyncio.run` that uses the URL fails, and closing one object closes all.

        Args:
            api_key: Your inference API key. Default: as for `openai_kwargs`.
            **options: Passed to `ChatOpenAI`.

        Raises:
            ConfigurationError: if there is no key, or the `langchain-openai` package is not installed.
        """
        try:
            import openai  # noqa: PLC0415  (as above)
            from langchain_openai import ChatOpenAI  # noqa: PLC0415
            from pydantic import SecretStr  # noqa: PLC0415
        except ImportError:
            raise _missing("langchain") from None
        timeout = options.pop("request_timeout", options.pop("timeout", None))
        if timeout is None:
            timeout = openai.DEFAULT_TIMEOUT
        elif isinstance(timeout, int | float | tuple):
            timeout = openai.Timeout(timeout)
        arguments: dict[str, Any] = {
            "model": self.model,
            "base_url": self.base_url,
            # A plain string would show in the error message if an option is invalid.
            "api_key": SecretStr(inference_key(api_key)),
            **options,
            # LangChain shares connections if all options are hashable, as a number is. A Timeout is not.
            "timeout": timeout,
        }
        return ChatOpenAI(**arguments)

    def pydantic_ai(self, *, api_key: str | None = None, **options: Any) -> OpenAIChatModel:
        """Return a Pydantic AI model for this instance: `Agent(inst.pydantic_ai())`.

        Use `async with model:` to close its connections.

        Args:
            api_key: Your inference API key. Default: as for `openai_kwargs`.
            **options: Passed to `OpenAIChatModel`.

        Raises:
            ConfigurationError: if there is no key, or the `pydantic-ai` package is not installed.
        """
        try:
            from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415  (as above)
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415
        except ImportError:
            raise _missing("pydantic-ai") from None
        provider = OpenAIProvider(base_url=self.base_url, api_key=inference_key(api_key))
        return OpenAIChatModel(self.model, provider=provider, **options)


def _missing(extra: Literal["openai", "langchain", "pydantic-ai"]) -> ConfigurationError:
    method = extra.replace("-", "_")
    package = {"langchain": "langchain-openai"}.get(extra, extra)
    return ConfigurationError(
        f"inst.{method}() needs the {package} package: pip install 'cortecs-async[{extra}]'"
    )


@frozen(kw_only=True)
class InstanceHandle(Endpoint):
    """An instance as data, to send to other processes, pickled or as JSON. It contains no secret.

    Attributes:
        instance_id: The id of the instance.
        base_url: The URL of the OpenAI-compatible endpoint; ends in `/v1`.
        model: The name to pass as `model` to the endpoint.
        account: A fingerprint of the account.
        expires_at: Unix time in seconds at which the instance is released automatically; None for never.
    """

    instance_id: str
    base_url: str  # pyright: ignore[reportIncompatibleMethodOverride]  # a field may be read like a property
    model: str  # pyright: ignore[reportIncompatibleMethodOverride]
    account: str = field(repr=False)
    expires_at: float | None = None

    def to_json(self) -> str:
        """Return the handle as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InstanceHandle:
        """Return the handle from the JSON text of `to_json`.

        Raises:
            InvalidArgumentError: if the text is not the JSON of a handle.
        """
        try:
            data = json.loads(text)
            return cls(**{each.name: data[each.name] for each in fields(cls)})
        except (ValueError, TypeError, KeyError):
            raise InvalidArgumentError("this is not the JSON of an InstanceHandle") from None
