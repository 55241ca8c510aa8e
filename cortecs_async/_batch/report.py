"""How far a batch is, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from attrs import frozen

from .._lease.pricing import Receipt
from .writer import Line

# Seconds over which a rate is taken.
_SPAN = 10.0


@frozen(kw_only=True)
class BatchProgress:
    """How far a batch is; what `on_progress` is given. What is counted is on the disk.

    Attributes:
        total: Requests in the input.
        succeeded: Answered, those of earlier runs included.
        failed: Error lines, those of earlier runs included.
        resumed: How many of both were there before this run.
        instances: Instances that run.
        running: Requests that are under way.
        concurrency: How many may be, as of now.
        prompt_tokens: Read by the model in this run, as it counts them.
        completion_tokens: Written by it.
        elapsed: Seconds since this run began.
        rate: Answers a second, lately.
        tokens_per_second: Tokens written a second, lately.
        cost: Of all instances until now, in `currency`; None without a known price.
        currency: As the service names it.
    """

    total: int
    succeeded: int
    failed: int
    resumed: int
    instances: int
    running: int
    concurrency: int
    prompt_tokens: int
    completion_tokens: int
    elapsed: float
    rate: float
    tokens_per_second: float
    cost: float | None
    currency: str = ""

    @property
    def done(self) -> int:
        """Answers and error lines."""
        return self.succeeded + self.failed

    @property
    def eta(self) -> float | None:
        """Seconds until the end, at the present rate; None where there is none yet."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@frozen(kw_only=True)
class BatchReport:
    """What came of a batch.

    Attributes:
        output: The file.
        total: Requests in the input; the output has a line for each.
        succeeded: Answered, those of earlier runs included.
        failed: Error lines, those of earlier runs included.
        resumed: How many of both were there before this run.
        prompt_tokens: Read by the model in this run, as it counts them.
        completion_tokens: Written by it.
        seconds: How long this run took, from the first instance asked for to the last one gone; without
            reading the files, and putting the output into order.
        receipts: What each instance was used and costs.
        incidents: What ended an instance before the work was done, where others went on.
    """

    output: str
    total: int
    succeeded: int
    failed: int
    resumed: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    receipts: tuple[Receipt, ...] = ()
    incidents: tuple[str, ...] = ()

    @property
    def cost(self) -> float | None:
        """What all instances cost, in `currency`; None when a price is not known."""
        costs = [each.cost for each in self.receipts]
        known = [each for each in costs if each is not None]
        return sum(known) if len(known) == len(costs) else None

    @property
    def currency(self) -> str:
        """As the service names it."""
        return next((each.currency for each in self.receipts), "")


class Tally:
    """Counts what is on the disk."""

    def __init__(self, *, succeeded: int, failed: int) -> None:
        self.succeeded = succeeded
        self.failed = failed
        self.resumed = succeeded + failed
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._lately: deque[tuple[float, int, int]] = deque()

    def count(self, now: float, lines: Iterable[Line]) -> None:
        """These are on the disk now."""
        number = written = 0
        for line in lines:
            number += 1
            if line.usage is None:
                self.failed += 1
                continue
            self.succeeded += 1
            self.prompt_tokens += line.usage.prompt_tokens
            self.completion_tokens += line.usage.completion_tokens
            written += line.usage.completion_tokens
        # Groups come often: what falls into one tenth of a second is one entry.
        if self._lately and now - self._lately[-1][0] < 0.1:
            then, before, tokens = self._lately.pop()
            self._lately.append((then, before + number, tokens + written))
        else:
            self._lately.append((now, number, written))

    def rates(self, now: float, began: float) -> tuple[float, float]:
        """Answers and written tokens a second, over the last seconds, but not from before `began`."""
        while self._lately and self._lately[0][0] < now - _SPAN:
            self._lately.popleft()
        span = max(min(now - began, _SPAN), 0.1)
        return sum(each[1] for each in self._lately) / span, sum(each[2] for each in self._lately) / span
