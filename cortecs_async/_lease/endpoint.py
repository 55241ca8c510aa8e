"""Clients and settings for the OpenAI-compatible endpoint of an instance."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypedDict, TypeVar, overload

from .._credentials import Sources, environment_sources
from .._errors import ConfigurationError
from .._extras import install_command
from .._hints import hinted
from .._secrets import Hidden, Secret
from .activity import Activity, counting

if TYPE_CHECKING:
    import openai
    from langchain_openai import ChatOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel

    from .mapping import Results

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


def counted(endpoint: Endpoint, call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Return `call`, or an async function that also counts its calls as requests of an endpoint."""
    activity = endpoint._get_activity()  # noqa: SLF001  (for the methods of other packages)
    return call if activity is None else activity.counted(call)


class OpenAIKwargs(TypedDict):
    """Keyword arguments for OpenAI-compatible clients and frameworks."""

    base_url: str
    api_key: str


@hinted
class Endpoint:
    """An OpenAI-compatible endpoint. Subclasses provide its `base_url` and `model`."""

    # Where the client finds the inference API key, and what counts requests for an `idle_timeout`. They are
    # not set in a parsed or unpickled handle, so they are not fields.
    __slots__ = ("_activity", "_sources")
    _sources: Sources | None
    _activity: Activity | None

    if TYPE_CHECKING:

        @property
        def base_url(self) -> str: ...

        @property
        def model(self) -> str: ...

    def _release_check(self) -> Callable[[], None]:
        """Return a function that raises once the instance has been released. A handle cannot detect that."""
        return lambda: None

    def _get_activity(self) -> Activity | None:
        """Return what counts the requests, or None if they do not matter."""
        return getattr(self, "_activity", None)

    def _inference_key(self, given: Hidden[str | Secret | None]) -> Secret:
        sources = getattr(self, "_sources", None) or environment_sources(given)
        return sources.inference_key(given).value

    def openai_kwargs(self, *, api_key: str | Secret | None = None) -> OpenAIKwargs:
        """Return `base_url` and `api_key` as keyword arguments for OpenAI-compatible clients.

        Args:
            api_key: Your inference API key (not the provisioning credentials). Default: the environment
                variable CORTECS_API_KEY, then OPENAI_API_KEY (the name in the vendor's examples), then the
                key in the profile whose credentials are used. A profile that you name takes precedence. This
                is also true for a handle, until it is sent to another process.

        Raises:
            ConfigurationError: if there is no key.
            InvalidArgumentError: if the lease has released the instance.

        Example:
            from openai import AsyncOpenAI

            async with AsyncOpenAI(**inst.openai_kwargs()) as llm:
                print(await llm.models.list())
        """
        given = Hidden(api_key)
        del api_key  # a traceback that shows locals would show it
        self._release_check()()
        return {"base_url": self.base_url, "api_key": self._inference_key(given).reveal()}

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
        """Call `await fn(item)` for many items in parallel, and iterate over the results.

        Items are read as fast as you take results. At most `2 * concurrency` results are pending or waiting
        for you, so a stream of any length needs little memory. If you leave the loop or the lease, the
        running calls are cancelled. Items that have an `aclose` method, such as an async generator, are
        closed: see `Results`.

        Args:
            fn: An async function of one argument.
            items: An iterable or async iterable of arguments. If it raises, you get the earlier results
                first.
            concurrency: Maximum number of parallel calls. Default: 16. To change it later, set
                `results.concurrency`.
            ordered: If True (the default), yield the results in the order of the items. If False, yield each
                result as soon as it is ready.
            return_exceptions: If True, yield an exception from `fn` as a result. If False (the default),
                raise it in place of the result. Before that, the other calls are cancelled and have ended,
                and no further call begins.

        Raises:
            InvalidArgumentError: if an argument is invalid or the lease has ended.

        Example:
            async def double(number: int) -> int:
                return 2 * number

            async for result in inst.map(double, range(100), concurrency=8):
                print(result)
        """
        from .mapping import new_map  # noqa: PLC0415  (imports anyio, which a handle does not need)

        fn = counted(self, fn) if callable(fn) else fn
        return new_map(self, fn, items, concurrency, ordered=ordered, return_exceptions=return_exceptions)

    def openai(self, *, api_key: str | Secret | None = None, **options: Any) -> openai.AsyncOpenAI:
        """Return an `openai.AsyncOpenAI` client for this instance.

        Close it, or use it with `async with`. Once the lease has released the instance, its requests raise
        `InvalidArgumentError`.

        Args:
            api_key: Your inference API key. Same default as in `openai_kwargs`.
            **options: Passed to `AsyncOpenAI`.

        Raises:
            ConfigurationError: if there is no key, or the `openai` package is not installed.
            InvalidArgumentError: if the lease has released the instance.

        Example:
            async with inst.openai() as llm:
                messages = [{"role": "user", "content": "Why is the sky blue?"}]
                answer = await llm.chat.completions.create(model=inst.model, messages=messages)
                print(answer.choices[0].message.content)
        """
        given, others = Hidden(api_key), Hidden(options)
        del api_key, options  # a traceback that shows locals would show the key, and headers
        try:
            from openai import AsyncOpenAI  # noqa: PLC0415  (optional, and slow to import)
        except ImportError:
            raise _missing("openai") from None
        check = self._release_check()
        check()
        key = self._inference_key(given)
        arguments: Hidden[dict[str, Any]] = Hidden(
            {"base_url": self.base_url, "api_key": key.reveal(), **others.reveal()}
        )
        return _hooked(AsyncOpenAI(**arguments.reveal()), check, self._get_activity())

    def langchain(self, *, api_key: str | Secret | None = None, **options: Any) -> ChatOpenAI:
        """Return a `langchain_openai.ChatOpenAI` model for this instance.

        It has its own connections. `await llm.root_async_client.close()` or the garbage collector closes
        them. If you create `ChatOpenAI` yourself, all objects with the same URL share their connections: a
        second `asyncio.run` that uses the URL fails, and closing one object closes them all.

        Args:
            api_key: Your inference API key. Same default as in `openai_kwargs`.
            **options: Passed to `ChatOpenAI`.

        Raises:
            ConfigurationError: if there is no key, or the `langchain-openai` package is not installed.
            InvalidArgumentError: if the lease has released the instance.

        Example:
            llm = inst.langchain(temperature=0)
            answer = await llm.ainvoke("Why is the sky blue?")
            print(answer.content)
            await llm.root_async_client.close()
        """
        given, others = Hidden(api_key), Hidden(options)
        del api_key, options  # as above
        try:
            import openai  # noqa: PLC0415  (as above)
            from langchain_openai import ChatOpenAI  # noqa: PLC0415
            from pydantic import SecretStr  # noqa: PLC0415
        except ImportError:
            raise _missing("langchain") from None
        check = self._release_check()
        check()
        timeout = others.reveal().pop("request_timeout", others.reveal().pop("timeout", None))
        if timeout is None:
            timeout = openai.DEFAULT_TIMEOUT
        elif isinstance(timeout, int | float | tuple):
            timeout = openai.Timeout(timeout)
        key = self._inference_key(given)
        arguments: Hidden[dict[str, Any]] = Hidden(
            {
                "model": self.model,
                "base_url": self.base_url,
                # A plain string would be visible in the error message for an invalid option.
                "api_key": SecretStr(key.reveal()),
                **others.reveal(),
                # LangChain shares connections if all options are hashable. A number is, but a Timeout is not.
                "timeout": timeout,
            }
        )
        llm = ChatOpenAI(**arguments.reveal())
        activity = self._get_activity()
        _hooked(llm.root_async_client, check, activity)
        if llm.root_client is not None:  # for `invoke` in a thread
            _hooked(llm.root_client, check, activity)
        return llm

    def pydantic_ai(self, *, api_key: str | Secret | None = None, **options: Any) -> OpenAIChatModel:
        """Return a Pydantic AI model for this instance.

        Use `async with model:` to close its connections.

        Args:
            api_key: Your inference API key. Same default as in `openai_kwargs`.
            **options: Passed to `OpenAIChatModel`.

        Raises:
            ConfigurationError: if there is no key, or the `pydantic-ai` package is not installed.
            InvalidArgumentError: if the lease has released the instance.

        Example:
            from pydantic_ai import Agent

            async with inst.pydantic_ai() as model:
                answer = await Agent(model).run("Why is the sky blue?")
                print(answer.output)
        """
        given = Hidden(api_key)
        del api_key  # as above
        try:
            from pydantic_ai.models.openai import OpenAIChatModel  # noqa: PLC0415  (as above)
            from pydantic_ai.providers.openai import OpenAIProvider  # noqa: PLC0415
        except ImportError:
            raise _missing("pydantic-ai") from None
        check = self._release_check()
        check()
        provider = OpenAIProvider(base_url=self.base_url, api_key=self._inference_key(given).reveal())
        _hooked(provider.client, check, self._get_activity())
        return OpenAIChatModel(self.model, provider=provider, **options)


Client = TypeVar("Client")


def _hooked(client: Client, check: Callable[[], None], activity: Activity | None) -> Client:
    """Make each request of an openai client call `check` first, and count for `activity`.

    The openai package has a hook for subclasses that every attempt of a request calls. A client without it
    still works, but with a less clear error. The copies returned by `with_options` have the same class.
    """
    kind: Any = type(client)
    methods: dict[str, Any] = {}
    if inspect.iscoroutinefunction(prepare := getattr(kind, "_prepare_options", None)):

        async def check_first_async(self: object, options: Any) -> Any:
            check()
            return await prepare(self, options)

        methods["_prepare_options"] = check_first_async
    elif prepare is not None:

        def check_first(self: object, options: Any) -> Any:
            check()
            return prepare(self, options)

        methods["_prepare_options"] = check_first
    if activity is not None:
        methods["request"] = counting(kind, activity)
    shown = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    client.__class__ = type(kind.__name__, (kind,), {**shown, **methods})
    return client


def _missing(extra: Literal["openai", "langchain", "pydantic-ai"]) -> ConfigurationError:
    method = extra.replace("-", "_")
    package = {"langchain": "langchain-openai"}.get(extra, extra)
    return ConfigurationError(f"inst.{method}() needs the {package} package: {install_command(extra)}")
