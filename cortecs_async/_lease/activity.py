"""The activity of a lease with an `idle_timeout`: the requests that the client sees, and `inst.touch()`."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

# The base classes of streams in httpx and httpx2.
_BYTE_STREAMS = frozenset({"AsyncByteStream", "SyncByteStream"})

T = TypeVar("T")
P = ParamSpec("P")

# Seconds for which an open response counts without a chunk if its client has no read timeout.
_MAX_SILENCE = 600.0

# Seconds between two messages to the reaper: a share of the timeout, within limits.
_INTERVAL_SHARE, _MIN_INTERVAL, _MAX_INTERVAL = 0.125, 1.0, 30.0

# The share of the timeout, and the maximum in seconds, between two checks of the requests in flight.
_CHECK_SHARE, _MAX_CHECK_INTERVAL = 0.25, 10.0


class Activity:
    """When a lease was last used. All methods can be called in any thread, even by the garbage collector.

    There is no lock, because each method makes a single change, which is atomic in Python.

    Requests in flight count whenever `check` is called. A blocked event loop does not call it, so the lease
    of a hung program becomes idle. Once it is idle, it stays idle: the reaper may have acted already.

    Args:
        timeout: Seconds after which the lease is idle.
        now: The clock, which includes suspensions.
        announce: Called with the seconds after which the reaper should act, whenever they have changed by a
            relevant amount. Until then, the living client has time to announce more activity, and to release
            the instance itself.
    """

    def __init__(self, timeout: float, now: Callable[[], float], announce: Callable[[float], object]) -> None:
        self.timeout = timeout
        self._now = now
        self._announce: Callable[[float], object] | None = announce
        self._interval = min(max(timeout * _INTERVAL_SHARE, _MIN_INTERVAL), _MAX_INTERVAL)
        self._last = now()
        self._announced = -math.inf
        # By request or open response: the time until which it counts.
        self._open: dict[object, float] = {}

    @property
    def idle_at(self) -> float:
        """The time at which the lease becomes idle, or became idle."""
        return self._last + self.timeout

    @property
    def check_interval(self) -> float:
        """Maximum seconds between two calls of `check`."""
        return min(self.timeout * _CHECK_SHARE, _MAX_CHECK_INTERVAL)

    def begin(self) -> None:
        """Start counting, because the block begins."""
        self._last = self._now()
        self.touch()

    def end(self) -> None:
        """Stop announcing, because the block has ended."""
        self._announce = None

    def touch(self) -> None:
        """Record that the instance is in use now."""
        now = self._now()
        if now >= self.idle_at:
            return
        self._last = max(self._last, now)
        if now - self._announced >= self._interval and (announce := self._announce) is not None:
            self._announced = now
            # Twice, because on a busy machine, the next message may be late.
            announce(self.timeout + 2 * self._interval)

    def check(self) -> None:
        """Record the requests in flight."""
        now = self._now()
        for key, until in list(self._open.items()):
            if until > now:
                self.touch()
            else:
                self._open.pop(key, None)

    @contextmanager
    def request(self) -> Generator[None]:
        """Count a request, or any other use of the instance, until the end of this block."""
        key = object()
        self._open[key] = math.inf
        self.touch()
        try:
            yield
        finally:
            self.touch()
            self._open.pop(key, None)

    def counted(self, call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Return an async function that does the same as `call`, and whose calls count."""

        @functools.wraps(call)
        def count(*args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
            returned = call(*args, **kwargs)
            # Otherwise, the function is not async, which the caller reports.
            return self._count(returned) if inspect.isawaitable(returned) else returned

        return count

    async def _count(self, awaitable: Awaitable[T]) -> T:
        with self.request():
            return await awaitable

    def open_response(self, silence: float | None) -> OpenResponse:
        """Count a response that is still being received, until it ends.

        Args:
            silence: Seconds for which it counts after a chunk. Without a limit, a response that is never
                read would keep the instance running.
        """
        response = OpenResponse(self, self._open, _MAX_SILENCE if silence is None else silence, self._now)
        response.record_chunk()
        return response


class OpenResponse:
    """A response of which more chunks may arrive."""

    def __init__(
        self, activity: Activity, open_until: dict[object, float], silence: float, now: Callable[[], float]
    ) -> None:
        self._activity = activity
        self._open_until = open_until
        self._silence = silence
        self._now = now
        self._key = object()

    def record_chunk(self) -> None:
        self._open_until[self._key] = self._now() + self._silence
        self._activity.touch()

    def end(self) -> None:
        if self._open_until.pop(self._key, None) is not None:
            self._activity.touch()


def counting(kind: Any, activity: Activity) -> Callable[..., Any]:
    """Return the `request` method of a subclass of an openai client, whose requests count.

    All requests of the openai package go through this public method, with their retries. For a stream, it
    returns before the response has ended.
    """
    if inspect.iscoroutinefunction(kind.request):

        async def request_async(self: object, *args: Any, **kwargs: Any) -> Any:
            with activity.request():
                result = await kind.request(self, *args, **kwargs)
                _follow(result, activity)
                return result

        return request_async

    def request(self: object, *args: Any, **kwargs: Any) -> Any:
        with activity.request():
            result = kind.request(self, *args, **kwargs)
            _follow(result, activity)
            return result

    return request


def _follow(result: object, activity: Activity) -> None:
    """Count the response of a request until it ends, if its client has not received all of it.

    The wrapped stream belongs to this response alone, so the HTTP client, which may be the user's, is not
    changed.
    """
    for name in ("response", "http_response"):  # of a stream, and of a raw response
        response: Any = getattr(result, name, None)
        stream = getattr(response, "stream", None)
        base = _byte_stream(type(stream))
        if base is not None and not response.is_closed:
            timeouts = response.request.extensions.get("timeout", {})
            response.stream = _counted_stream(base)(stream, activity.open_response(timeouts.get("read")))


def _byte_stream(kind: type) -> type | None:
    """Return the base class of a response's stream, for the httpx that the openai package uses."""
    return next((each for each in kind.__mro__ if each.__name__ in _BYTE_STREAMS), None)


@functools.cache
def _counted_stream(base: Any) -> type[Any]:
    """Return a class of streams whose chunks count."""

    class CountedStream(base):  # type: ignore[misc]
        def __init__(self, stream: Any, response: OpenResponse) -> None:
            self._stream = stream
            self._response = response

        def __aiter__(self) -> AsyncIterator[bytes]:
            return _AsyncChunks(aiter(self._stream), self._response)

        async def aclose(self) -> None:
            self._response.end()
            await self._stream.aclose()

        def __iter__(self) -> Iterator[bytes]:
            return _Chunks(iter(self._stream), self._response)

        def close(self) -> None:
            self._response.end()
            self._stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    return CountedStream


class _AsyncChunks:
    # Not a generator: one that is dropped halfway is closed late, and trio warns about it.

    def __init__(self, chunks: Any, response: OpenResponse) -> None:
        self._chunks = chunks
        self._response = response

    def __aiter__(self) -> _AsyncChunks:
        return self

    async def __anext__(self) -> bytes:
        chunk: bytes = await anext(self._chunks)
        self._response.record_chunk()
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks, name)  # `aclose` of a generator


class _Chunks:
    def __init__(self, chunks: Any, response: OpenResponse) -> None:
        self._chunks = chunks
        self._response = response

    def __iter__(self) -> _Chunks:
        return self

    def __next__(self) -> bytes:
        chunk: bytes = next(self._chunks)
        self._response.record_chunk()
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks, name)
