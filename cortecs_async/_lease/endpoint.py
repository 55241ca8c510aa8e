"""Clients and settings for the OpenAI-compatible endpoint of an instance."""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

from attrs import asdict, field, fields, frozen

from .._config import check_api_base_url
from .._errors import ConfigurationError, InvalidArgumentError
from .._secrets import (
    INFERENCE_KEY_VARIABLES,
    Hidden,
    Secret,
    has_line_break,
    remember_inference_key,
    to_secret,
)

if TYPE_CHECKING:
    import openai
    from langchain_openai import ChatOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel

    from .mapping import Results

T = TypeVar("T")
R = TypeVar("R")


def inference_key(given: Hidden[str | Secret | None]) -> Secret:
    """Return the inference API key: the argument, or else that of the environment.

    The argument is hidden, because a traceback that shows locals would show it.
    """
    if given.reveal() is not None and not isinstance(given.reveal(), (str, Secret)):
        raise ConfigurationError(f"api_key must be a string, not {type(given.reveal()).__name__}")
    variables = (Secret(os.environ.get(name, "")) for name in INFERENCE_KEY_VARIABLES)
    # Stripped, because a key that is read from a file often ends with a line break.
    keys = map(to_secret, (given.reveal() or "", *variables))
    key = next(filter(None, keys), Secret(""))
    if has_line_break(key.reveal()):
        raise ConfigurationError("the inference API key contains a line break")
    if not (key.reveal().isascii() and key.reveal().isprintable()):
        raise ConfigurationError("the inference API key has characters that an HTTP header cannot contain")
    if any(character in key.reveal() for character in " \"'"):
        # From a file whose quotes were kept, or a whole header.
        raise ConfigurationError("the inference API key contains a space or a quote; set it to the key alone")
    if not key:
        raise ConfigurationError(
            "no inference API key: pass api_key=, or set CORTECS_API_KEY or OPENAI_API_KEY. Create the key "
            "on cortecs.ai; client_id and client_secret are only for provisioning."
        )
    for name in ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"):
        if key == Secret(os.environ.get(name, "").strip()):
            raise ConfigurationError(
                f"the inference API key is the value of {name}; create an inference API key on cortecs.ai"
            )
    remember_inference_key(key)
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

    def openai_kwargs(self, *, api_key: str | Secret | None = None) -> OpenAIKwargs:
        """Return `base_url` and `api_key` as keyword arguments for OpenAI-compatible clients.

        Args:
            api_key: Your inference API key (not the provisioning credentials). Default: the environment
                variable CORTECS_API_KEY, else OPENAI_API_KEY (the name in the vendor's examples).

        Raises:
            ConfigurationError: if there is no key.
        """
        given = Hidden(api_key)
        del api_key  # a traceback that shows locals would show it
        return {"base_url": self.base_url, "api_key": inference_key(given).reveal()}

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
        running calls are cancelled, and the items are closed if they have an `aclose`, as an async generator
        does: see `Results`.

        Args:
            fn: An async function of one argument.
            items: The arguments, an iterable or async iterable. If it raises, you get the earlier results
                first.
            concurrency: Maximum number of calls to run in parallel. To change it later, set
                `results.concurrency`.
            ordered: Yield results in item order; False yields each as soon as it is ready.
            return_exceptions: Yield an exception of `fn` as a result. Otherwise it is raised in place of the
                result once the other calls, which are cancelled, have ended. No further call begins.

        Raises:
            InvalidArgumentError: if an argument is invalid, or the lease has ended.
        """
        from .mapping import new_map  # noqa: PLC0415  (imports anyio, which a handle does not need)

        return new_map(self, fn, items, concurrency, ordered=ordered, return_exceptions=return_exceptions)

    def openai(self, *, api_key: str | Secret | None = None, **options: Any) -> openai.AsyncOpenAI:
        """Return an `openai.AsyncOpenAI` for this instance. Close it, or use it with `async with`.

        Args:
            api_key: Your inference API key. Default: as for `openai_kwargs`.
            **options: Passed to `AsyncOpenAI`.

        Raises:
            ConfigurationError: if there is no key, or the `openai` package is not installed.
        """
        given, others = Hidden(api_key), Hidden(options)
        del api_key, options  # a traceback that shows locals would show the key, and headers
        try:
            from openai import AsyncOpenAI  # noqa: PLC0415  (optional, and slow to import)
        except ImportError:
            raise _missing("openai") from None
        key = inference_key(given)
        arguments: Hidden[dict[str, Any]] = Hidden(
            {"base_url": self.base_url, "api_key": key.reveal(), **others.reveal()}
        )
        return AsyncOpenAI(**arguments.reveal())

    def langchain(self, *, api_key: str | Secret | None = None, **options: Any) -> ChatOpenAI:
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
        given, others = Hidden(api_key), Hidden(options)
        del api_key, options  # as above
        try:
            import openai  # noqa: PLC0415  (as above)
            from langchain_openai import ChatOpenAI  # noqa: PLC0415
            from pydantic import SecretStr  # noqa: PLC0415
        except ImportError:
            raise _missing("langchain") from None
        timeout = others.reveal().pop("request_timeout", others.reveal().pop("timeout", None))
        if timeout is None:
            timeout = openai.DEFAULT_TIMEOUT
        elif isinstance(timeout, int | float | tuple):
            timeout = openai.Timeout(timeout)
        key = inference_key(given)
        arguments: Hidden[dict[str, Any]] = Hidden(
            {
                "model": self.model,
                "base_url": self.base_url,
                # A plain string would show in the error message if an option is invalid.
                "api_key": SecretStr(key.reveal()),
                **others.reveal(),
                # LangChain shares connections if all options are hashable, as a number is. A Timeout is not.
                "timeout": timeout,
            }
        )
        return ChatOpenAI(**arguments.reveal())

    def pydantic_ai(self, *, api_key: str | Secret | None = None, **options: Any) -> OpenAIChatModel:
        """Return a Pydantic AI model for this instance: `Agent(inst.pydantic_ai())`.

        Use `async with model:` to close its connections.

        Args:
            api_key: Your inference API key. Default: as for `openai_kwargs`.
            **options: Passed to `OpenAIChatModel`.

        Raises:
            ConfigurationError: if there is no key, or the `pydantic-ai` package is not installed.
        """
        given = Hidden(api_key)
        del api_key  # as above
        try:
            from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415  (as above)
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415
        except ImportError:
            raise _missing("pydantic-ai") from None
        provider = OpenAIProvider(base_url=self.base_url, api_key=inference_key(given).reveal())
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
        allow_insecure_http: Whether `base_url` may be plain http on another machine, as for `AsyncCortecs`.

    Raises:
        InvalidArgumentError: if an attribute has a wrong type, or `base_url` is not safe to send a key to:
            it must use https, except on this machine or with `allow_insecure_http`.
    """

    instance_id: str
    base_url: str  # pyright: ignore[reportIncompatibleMethodOverride]  # a field may be read like a property
    model: str  # pyright: ignore[reportIncompatibleMethodOverride]
    account: str = field(repr=False)
    expires_at: float | None = None
    allow_insecure_http: bool = field(default=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in ("instance_id", "base_url", "model", "account"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.isprintable() or not text:
                raise InvalidArgumentError(f"the {name} of a handle must be a non-empty, printable string")
        number = self.expires_at
        is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if number is not None and not is_number:
            raise InvalidArgumentError("the expires_at of a handle must be a number or None")
        if not isinstance(self.allow_insecure_http, bool):
            raise InvalidArgumentError("the allow_insecure_http of a handle must be True or False")
        if problem := url_problem(self.base_url, allow_insecure_http=self.allow_insecure_http):
            raise InvalidArgumentError(f"no key can be sent to instance {self.instance_id}: {problem}")

    def to_json(self) -> str:
        """Return the handle as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InstanceHandle:
        """Return the handle from the JSON text of `to_json`.

        Raises:
            InvalidArgumentError: if the text is not the JSON of a handle, or `base_url` is not safe.
        """
        try:
            data: dict[str, Any] = {"allow_insecure_http": False, **json.loads(text)}
            arguments = {each.name: data[each.name] for each in fields(cls)}
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InvalidArgumentError("this is not the JSON of an InstanceHandle") from None
        return cls(**arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would not check the attributes when it is unpickled.
        return _restore, (asdict(self),)


def _restore(arguments: dict[str, Any]) -> InstanceHandle:
    return InstanceHandle(**arguments)


def url_problem(base_url: str, *, allow_insecure_http: bool) -> str | None:
    """Return why a key must not be sent to the URL of an endpoint; None if it is safe."""
    try:
        check_api_base_url(base_url, allow_insecure_http=allow_insecure_http)
    except ConfigurationError as error:
        return str(error).replace("api_base_url", "its base_url", 1)
    return None
