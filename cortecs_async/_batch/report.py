"""The progress and result of a batch, as shown to users."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from attrs import asdict, define, field, frozen

from .._display import Row, Share, duration_text, joined, money_text
from .._hints import hinted
from .._lease.pricing import Receipt
from .answers import AnswerLine

# Seconds over which rates are averaged, and seconds per entry.
_RATE_SPAN = 10.0
_RATE_STEP = 0.1


@frozen(kw_only=True)
class BatchProgress(Row):
    """The progress of a batch, passed to `on_progress`. Only answers on disk are counted.

    Attributes:
        total: Requests in the input.
        succeeded: Answered requests, including those from earlier runs.
        failed: Error lines, including those from earlier runs.
        resumed: Answers and error lines from earlier runs.
        instances: Number of running instances.
        running: Number of requests in flight.
        concurrency: The current limit of requests in flight.
        prompt_tokens: Prompt tokens of this run, as counted by the model.
        completion_tokens: Completion tokens of this run.
        elapsed: Seconds since this run started.
        rate: Answers per second, over the last 10 s.
        tokens_per_second: Completion tokens per second, over the last 10 s.
        cost: Estimated cost of all instances so far, in `currency`, or None before the first instance is
            started or if a price is not known.
        currency: The currency of `cost`, as reported by the service.

    Example:
        def show(progress):
            print(f"{progress.done}/{progress.total}, {progress.rate:.1f} answers/s, {progress.cost}")

        model = "meta-llama/Llama-3.1-8B-Instruct"
        await client.run_batch("requests.jsonl", "answers.jsonl", model, on_progress=show)
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
        """Number of answers and error lines so far."""
        return self.succeeded + self.failed

    @property
    def eta(self) -> float | None:
        """Estimated seconds until the end, at the current rate, or None if there is no rate yet."""
        seconds = (self.total - self.done) / self.rate if self.rate > 0 else math.inf
        return seconds if math.isfinite(seconds) else None

    def __str__(self) -> str:
        left = self.eta if self.done < self.total else None
        return joined(
            f"{self.done:,} of {self.total:,} done",
            self.failed and f"{self.failed:,} failed",
            f"{self.rate:.1f} answers/s",
            f"{duration_text(self.elapsed)} elapsed",
            left is not None and f"about {duration_text(left)} left",
            money_text(self.cost, self.currency),
        )

    def _columns(self) -> Mapping[str, object]:
        left = self.eta if self.done < self.total else None
        return {
            "done": f"{self.done:,} of {self.total:,}",
            "progress": Share(self.done / max(self.total, 1)),
            "failed": f"{self.failed:,}",
            "answers/s": f"{self.rate:.1f}",
            "elapsed": duration_text(self.elapsed),
            "left": None if left is None else duration_text(left),
            "cost": money_text(self.cost, self.currency),
        }


BatchProgressCallback = Callable[[BatchProgress], Awaitable[None] | None]


# The attribute of an exception that holds the report.
_ATTRIBUTE = "_batch_report"


@hinted
@frozen(kw_only=True)
class BatchReport(Row):
    """The result of a batch, complete or not. Only answers on disk are counted.

    Attributes:
        output: The output file.
        total: Requests in the input.
        succeeded: Answered requests, including those from earlier runs.
        failed: Error lines, including those from earlier runs.
        resumed: Answers and error lines from earlier runs.
        prompt_tokens: Prompt tokens of this run, as counted by the model.
        completion_tokens: Completion tokens of this run.
        seconds: Duration of this run, from the first request for an instance until the last instance is gone.
            Reading the files and sorting the output are not included.
        receipts: The time and estimated cost of each instance.
        incidents: The reasons why instances ended before the batch did, and the failed releases.

    Example:
        model = "meta-llama/Llama-3.1-8B-Instruct"
        report = await client.run_batch("requests.jsonl", "answers.jsonl", model)
        print(report.succeeded, report.failed, report.cost, report.currency)
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
        """Estimated cost of all instances, in `currency`, or None if a price is not known.

        Example:
            model = "meta-llama/Llama-3.1-8B-Instruct"
            report = await client.run_batch("requests.jsonl", "answers.jsonl", model)
            print(report.cost, report.currency)
        """
        return total_cost(self.receipts)

    @property
    def currency(self) -> str:
        """The currency of `cost`, as the service reports it, or an empty string if nothing was started."""
        return currency_of(self.receipts)

    @property
    def left(self) -> int:
        """Number of requests without a line in the output, which is 0 for a finished batch."""
        return self.total - self.succeeded - self.failed

    @property
    def unreleased(self) -> tuple[str, ...]:
        """The ids of instances whose release failed. They may still be billed.

        Example:
            model = "meta-llama/Llama-3.1-8B-Instruct"
            report = await client.run_batch("requests.jsonl", "answers.jsonl", model)
            assert report.unreleased == ()
        """
        return tuple(each.instance_id for each in self.receipts if not each.released)

    def __str__(self) -> str:
        return joined(
            f"{self.succeeded:,} of {self.total:,} answered",
            self.failed and f"{self.failed:,} failed",
            self.left and f"{self.left:,} left",
            duration_text(self.seconds),
            money_text(self.cost, self.currency),
            self.output,
            self.unreleased and f"NOT RELEASED: {' '.join(self.unreleased)}",
        )

    def _columns(self) -> Mapping[str, object]:
        return {
            "answered": f"{self.succeeded:,} of {self.total:,}",
            "failed": f"{self.failed:,}",
            "left": f"{self.left:,}",
            "time": duration_text(self.seconds),
            "cost": money_text(self.cost, self.currency),
            "output": self.output,
            "not released": ", ".join(self.unreleased),
        }

    @staticmethod
    def of(error: BaseException) -> BatchReport | None:
        """Return the report of a batch that raised this error or was cancelled with it.

        Returns:
            The report, or None if the batch ended while its arguments and files were checked. In that case,
            nothing was started.

        Example:
            model = "meta-llama/Llama-3.1-8B-Instruct"
            try:
                await client.run_batch("requests.jsonl", "answers.jsonl", model, max_cost=5)
            except CortecsError as error:
                report = BatchReport.of(error)
                print(report)
        """
        found = getattr(error, _ATTRIBUTE, None)
        return found if isinstance(found, BatchReport) else None

    def attach(self, error: BaseException) -> None:
        """Attach this report to an error, so that `of` finds it. The client does this for you.

        Example:
            model = "meta-llama/Llama-3.1-8B-Instruct"
            report = await client.run_batch("requests.jsonl", "answers.jsonl", model)
            error = RuntimeError("the batch was too expensive")
            report.attach(error)
            assert BatchReport.of(error) == report
        """
        # Some exceptions do not allow new attributes.
        with contextlib.suppress(AttributeError):
            setattr(error, _ATTRIBUTE, self)


def total_cost(receipts: Sequence[Receipt]) -> float | None:
    """Return the sum of the costs, or None if any cost is not known."""
    costs = [each.cost for each in receipts if each.cost is not None]
    return round(sum(costs), 6) if len(costs) == len(receipts) else None


def currency_of(receipts: Sequence[Receipt]) -> str:
    return next((each.currency for each in receipts), "")


@define
class AnswerCounter:
    """Counts the lines of the output. It has the fields common to `BatchProgress` and `BatchReport`."""

    total: int
    succeeded: int
    failed: int
    resumed: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # Time, lines, and completion tokens in the last seconds.
    _recent: deque[tuple[float, int, int]] = field(factory=deque)

    def add(self, now: float, lines: Sequence[AnswerLine]) -> None:
        usages = [line.usage for line in lines if line.usage is not None]
        tokens = sum(usage.completion_tokens for usage in usages)
        self.succeeded += len(usages)
        self.failed += len(lines) - len(usages)
        self.prompt_tokens += sum(usage.prompt_tokens for usage in usages)
        self.completion_tokens += tokens
        if self._recent and now - self._recent[-1][0] < _RATE_STEP:
            then, earlier_lines, earlier_tokens = self._recent.pop()
            self._recent.append((then, earlier_lines + len(lines), earlier_tokens + tokens))
        else:
            self._recent.append((now, len(lines), tokens))

    def counts(self) -> dict[str, int]:
        return asdict(self, filter=lambda attribute, _: not attribute.name.startswith("_"))

    def rates(self, now: float, since: float) -> tuple[float, float]:
        """Return answers and completion tokens per second over the last seconds, but not before `since`."""
        while self._recent and self._recent[0][0] < now - _RATE_SPAN:
            self._recent.popleft()
        span = max(min(now - since, _RATE_SPAN), 0.1)
        return sum(each[1] for each in self._recent) / span, sum(each[2] for each in self._recent) / span
