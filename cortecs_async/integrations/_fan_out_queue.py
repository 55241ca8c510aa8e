"""The items and outcomes of a fan-out, and the state of its instances."""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen
from typing_extensions import override

from .. import InstanceHandle
from .._aio.feeds import Feed
from .._batch.health import EndpointHealth
from .._batch.outcome import FailureReason
from .._batch.request_queue import WorkQueue
from ..errors import EndpointError
from ._worker import Failure, Result

T = TypeVar("T")

# The minimum of returned items with which no new ones are taken.
_MAX_RETRIES = 16


@frozen(kw_only=True)
class Outcome(Generic[T]):
    """The result of one item of a `fan_out`.

    Attributes:
        item: The item.
        value: What `work` returned for it.
        error: The reason why there is no value, or None if there is one.

    Example:
        async def parse(inst, items):
            return [int(item) if item.isdigit() else ValueError(item) for item in items]

        leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct")]
        async with fan_out(parse, ["1", "two"], leases) as outcomes:
            async for outcome in outcomes:
                print(outcome.item, outcome.value, outcome.error)
    """

    item: T
    value: Any = None
    error: Failure | None = None


@define(eq=False)
class Task(Generic[T]):
    """An item.

    Attributes:
        failures: The number of failed attempts.
        own_failures: The failed attempts during which the instance answered other items. The rest do not
            count, because the instance may have been down.
        failed_at: The time of the last failure.
    """

    item: T
    failures: int = 0
    own_failures: int = 0
    failed_at: float | None = None


@define(eq=False)
class FanOutInstance:
    """An instance, and whether it responds. While it may be down, it gets one chunk at a time."""

    handle: InstanceHandle
    health: EndpointHealth = field(factory=EndpointHealth)
    chunks: int = 0  # in progress
    is_probing: bool = False
    probe_at: float = 0.0
    error: EndpointError | None = None
    is_key_rejected: bool = False

    def record_silence(self, failure: Failure, began: float, now: float) -> None:
        """Record that no item of a chunk was answered. Raise if the instance is silent for too long."""
        health = self.health
        health.record_failure(now, concurrency=1, is_unclear=health.last_success < began)
        reason = FailureReason.KEY_REJECTED if failure.status in {401, 403} else FailureReason.OTHER
        if health.has_timed_out(reason, now) and not self.chunks:
            instance_id = self.handle.instance_id
            self.is_key_rejected = reason is FailureReason.KEY_REJECTED
            what = "rejected the workers' inference API key" if self.is_key_rejected else "not responded"
            raise EndpointError(
                f"Instance {instance_id} has {what} for {health.down_seconds(now):.0f} s: {failure}",
                instance_id=instance_id,
            )
        if health.down_since is not None and now >= self.probe_at:  # chunks that fail together count as one
            self.probe_at = now + health.next_probe_delay()


@define(eq=False)
class FanOutQueue(WorkQueue[Task[T]], Generic[T]):
    """The items to do, and their outcomes."""

    limit: int
    """The limits of items to read ahead, of items in progress, and of outcomes that were not taken yet."""
    new: deque[Task[T]] = field(factory=deque)
    outcomes: deque[Outcome[T]] = field(factory=deque)

    async def read(self, feed: Feed[T]) -> None:
        """Read the items, up to the limit of items to read ahead."""
        while True:
            while len(self.new) >= self.limit:
                await self.changed.wait()
            try:
                item = await feed.next()
            except StopAsyncIteration:
                return
            self.new.append(Task(item))
            self.notify()

    def end_reading(self) -> None:
        self._is_read = True
        self.notify()

    @property
    def num_waiting(self) -> int:
        """Number of items that no instance has taken, or that came back."""
        return len(self.new) + len(self._returned) + len(self._delayed)

    @property
    def is_full(self) -> bool:
        return len(self.outcomes) >= self.limit

    @property
    def has_new(self) -> bool:
        return bool(self.new) or not self._is_read

    def take(self, size: int) -> list[Task[T]]:
        """Take up to `size` items. The list is empty if there are none right now."""
        chunk: list[Task[T]] = []
        while len(chunk) < size and (task := self.get_nowait()) is not None:
            chunk.append(task)
        if chunk:
            self.notify()
        return chunk

    def complete(self, task: Task[T], result: Result) -> None:
        self.outcomes.append(Outcome(item=task.item, value=result.value, error=result.failure))
        self.task_done()

    @override
    def _next(self) -> Task[T] | None:
        if self.is_full:
            return None
        task = self._next_returned()
        if task is None and self.new and len(self._delayed) < max(self.limit, _MAX_RETRIES):
            task = self.new.popleft()
        return task

    @override
    def _has_more(self) -> bool:
        return bool(self.new)
