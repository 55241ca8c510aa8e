"""A duration is seconds, a `timedelta`, or a string as on the command line, wherever one is taken."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, ConfigurationError, InvalidArgumentError, PollPolicy, RetryPolicy
from cortecs_async._client.batches import BatchMethods
from cortecs_async._durations import as_seconds, check_seconds, parse_duration
from cortecs_async._lease.options import LeaseOptions
from cortecs_async.integrations import web
from cortecs_async.types import Duration

SAME = (5400, timedelta(minutes=90), " 5400 ", "5400s", "90m", "1.5h", "1h30m", " 1H30M ")


@pytest.mark.parametrize("value", SAME)
def test_the_three_spellings_mean_the_same(value: Duration) -> None:
    assert as_seconds(value) == check_seconds("timeout", value) == 5400


@pytest.mark.parametrize("text", ["", "s", "2x", "1h30", "-5s", "nan", "inf", "1e3", "9" * 400, "2 h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is invalid"):
        parse_duration(text)


def test_a_typing_error_of_years() -> None:
    with pytest.raises(ValueError, match="is longer than ten years"):
        parse_duration("36500d")


@pytest.mark.parametrize(
    "value",
    ["3651d", 3651 * 86400, 1e300, 10**400, pytest.param(10**5000, id="no digits"), timedelta.max],
)
def test_ten_years_are_the_limit_in_every_spelling(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^max_lifetime (\S+ )?is longer than ten years$"):
        check_seconds("max_lifetime", value)
    with pytest.raises(
        ConfigurationError, match=r"^RetryPolicy.total_timeout (\S+ )?is longer than ten years"
    ):
        RetryPolicy(total_timeout=value)
    with pytest.raises(ConfigurationError, match=r"^timeout (\S+ )?is longer than ten years"):
        AsyncCortecs("i", "s", timeout=value)


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("-inf"), True, None, [5], "0s", "0m", timedelta(days=-1)]
)
def test_the_error_has_the_name_of_the_argument_and_the_value(value: Any) -> None:
    said = rf"^max_lifetime must be a positive duration .*, not {re.escape(repr(value))}$"
    with pytest.raises(InvalidArgumentError, match=said):
        check_seconds("max_lifetime", value)
    args: Any = None
    if value is not None:
        with pytest.raises(InvalidArgumentError, match=said):
            LeaseOptions(args=args, max_lifetime=value)


def test_text_that_is_no_duration_is_shown_with_examples() -> None:
    said = r'^max_lifetime "abc" is invalid \(examples: 90s, 15m, 2h\)$'
    with pytest.raises(InvalidArgumentError, match=said):
        check_seconds("max_lifetime", "abc")


@pytest.mark.parametrize("value", [1, 0.001, 3e8, float("inf")])
def test_a_number_stays_as_it_is(value: float) -> None:
    assert check_seconds("timeout", value) == value


def durations_of(function: Callable[..., Any]) -> set[str]:
    """Return the arguments that take a duration, by their annotation."""
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if str(parameter.annotation).startswith("Duration")
    }


TIMES = ("timeout", "lifetime", "pause", "linger")


@pytest.mark.parametrize(
    "function",
    [
        AsyncCortecs,
        AsyncCortecs.instance,
        AsyncCortecs.attach,
        AsyncCortecs.acquire,
        AsyncCortecs.release,
        AsyncCortecs.sweep,
        AsyncCortecs.with_options,
        BatchMethods.run_batch,
        web.BackgroundInstance,
        web.SharedInstance,
    ],
)
def test_every_argument_that_is_a_time_takes_a_duration(function: Callable[..., Any]) -> None:
    named = {name for name in inspect.signature(function).parameters if name.endswith(TIMES)}
    assert named
    assert durations_of(function) == named


def test_policies_take_durations_and_have_seconds() -> None:
    retry = RetryPolicy(
        initial_backoff=timedelta(seconds=1), max_backoff="8s", total_timeout="3m", adoption_window="1m"
    )
    poll = PollPolicy(min_interval="1s", settle="0", stall_timeout="5m", max_outage=timedelta(minutes=1))
    assert (retry.initial_backoff, retry.max_backoff, retry.total_timeout) == (1, 8, 180)
    assert (poll.min_interval, poll.settle, poll.stall_timeout, poll.max_outage) == (1, 0, 300, 60)
    assert RetryPolicy(max_retry_after="2m") == RetryPolicy(max_retry_after=120)


def test_the_error_of_a_policy_has_the_name_of_the_field() -> None:
    with pytest.raises(ConfigurationError, match=r'^RetryPolicy[.]total_timeout "3 minutes" is invalid \('):
        RetryPolicy(total_timeout="3 minutes")
    with pytest.raises(ConfigurationError, match=r"max_interval must be a duration of at least 0\.01 s"):
        PollPolicy(max_interval="0s")
    with pytest.raises(ConfigurationError, match=r"PollPolicy\.growth must be a number, not '1m'"):
        PollPolicy(growth="1m")  # type: ignore[arg-type]


def test_a_lease_has_seconds() -> None:
    args: Any = None
    options = LeaseOptions(
        args=args, start_timeout="15m", teardown_timeout=timedelta(minutes=2), max_lifetime="2h"
    )
    assert (options.start_timeout, options.teardown_timeout, options.max_lifetime) == (900, 120, 7200)
    with pytest.raises(InvalidArgumentError, match='teardown_timeout "soon" is invalid'):
        LeaseOptions(args=args, teardown_timeout="soon")


async def test_a_lease_with_durations(world: World) -> None:
    async with world(timeout="30s") as (emu, client):
        async with client.instance(
            MODEL, HARDWARE, max_lifetime=timedelta(hours=2), start_timeout="15m", teardown_timeout="2m"
        ) as inst:
            assert inst.handle.expires_at is not None
            running = await client.instances.wait_until_running(inst.instance_id, timeout="1m")
            assert running.is_usable
        handle = await client.acquire(MODEL, HARDWARE, max_lifetime="2h")
        await client.release(handle, teardown_timeout="2m")
        assert await client.with_options(timeout="5s").models.list()
        assert emu.existing == ()


def test_shared_instances_with_equal_durations_are_one() -> None:
    def shared(pause: Duration, linger: Duration, lifetime: Duration) -> Any:
        return web.SharedInstance(
            MODEL, pause=pause, linger=linger, max_lifetime=lifetime
        )._meeting_point.address

    assert shared(60, 300, 7200) == shared("1m", "5m", "2h") == shared(60.0, timedelta(minutes=5), 7200.0)
    with pytest.raises(InvalidArgumentError, match="linger must be a duration of at least 0"):
        web.SharedInstance(MODEL, linger=-1)
    with pytest.raises(InvalidArgumentError, match="pause must be a duration of at least 0"):
        web.SharedInstance(MODEL, pause="0.05s")
    with pytest.raises(InvalidArgumentError, match='max_lifetime "long" is invalid'):
        web.SharedInstance(MODEL, max_lifetime="long")
