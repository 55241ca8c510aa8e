"""Where an instance is talked to, for everything that has a `base_url`."""

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


class OpenAIKwargs(TypedDict):
    """What OpenAI-compatible clients and frameworks take as keyword arguments."""

    base_url: str
    api_key: str


class Endpoint:
    """An OpenAI-compatible endpoint. Subclasses say where it is."""

    __slots__ = ()

    @property
    def _where(self) -> tuple[str, str]:
        """Base URL and model."""
        raise NotImplementedError

    def openai_kwargs(self, *, api_key: str | None = None) -> OpenAIKwargs:
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
        from .mapping import maps_of, start_map  # noqa: PLC0415  (brings anyio, which a handle does without)

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
            raise _missing("openai") from None
        arguments: dict[str, Any] = {**self.openai_kwargs(api_key=api_key), **options}
        return AsyncOpenAI(**arguments)

    def langchain(self, *, api_key: str | None = None, **options: Any) -> ChatOpenAI:
        """A `langchain_openai.ChatOpenAI` for this instance.

        It has connections of its own. Made by hand, all of one URL share theirs, so that the second
        `asyncio.run` to use a URL fails, and closing one closes all. `await llm.root_async_client.close()`
        closes them, as does the garbage collector.

        Args:
            api_key: As for `openai_kwargs`.
            **options: Passed on to `ChatOpenAI`.

        Raises:
            ConfigurationError: when there is no key, or the `langchain-openai` package is not installed.
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
        base_url, model = self._where
        arguments: dict[str, Any] = {
            "model": model,
            "base_url": base_url,
            # A plain one would show in the message when it refuses an option.
            "api_key": SecretStr(inference_key(api_key)),
            **options,
            # LangChain caches connections by what can be hashed. A Timeout cannot, which a number can.
            "timeout": timeout,
        }
        return ChatOpenAI(**arguments)

    def pydantic_ai(self, *, api_key: str | None = None, **options: Any) -> OpenAIChatModel:
        """A Pydantic AI model for this instance: `Agent(inst.pydantic_ai())`.

        `async with model:` closes its connections.

        Args:
            api_key: As for `openai_kwargs`.
            **options: Passed on to `OpenAIChatModel`.

        Raises:
            ConfigurationError: when there is no key, or the `pydantic-ai` package is not installed.
        """
        try:
            from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415  (as above)
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415
        except ImportError:
            raise _missing("pydantic-ai") from None
        provider = OpenAIProvider(base_url=self._where[0], api_key=inference_key(api_key))
        return OpenAIChatModel(self._where[1], provider=provider, **options)


def _missing(extra: Literal["openai", "langchain", "pydantic-ai"]) -> ConfigurationError:
    method = extra.replace("-", "_")
    package = {"langchain": "langchain-openai"}.get(extra, extra)
    return ConfigurationError(
        f"inst.{method}() needs the {package} package: pip install 'cortecs-async[{extra}]'"
    )


@frozen(kw_only=True)
class InstanceHandle(Endpoint):
    """An acquired instance. Holds no secret: it can be pickled, or written as JSON, and sent anywhere.

    Attributes:
        instance_id: Its id.
        base_url: Its OpenAI-compatible endpoint; ends in `/v1`.
        model: The name to give as `model` to the endpoint.
        account: Fingerprint of the account that it belongs to.
        expires_at: Unix time in seconds at which it is released by itself; None for never.
    """

    instance_id: str
    base_url: str
    model: str
    account: str = field(repr=False)
    expires_at: float | None = None

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InstanceHandle:
        """From the text that `to_json` gave.

        Raises:
            InvalidArgumentError: for any other text.
        """
        try:
            data = json.loads(text)
            return cls(**{each.name: data[each.name] for each in fields(cls)})
        except (ValueError, TypeError, KeyError):
            raise InvalidArgumentError("this is not the JSON of an InstanceHandle") from None

    @property
    def _where(self) -> tuple[str, str]:
        return self.base_url, self.model
