"""What may be repeated, and when: pure functions, so these are tables and properties."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortecs_async import RetryPolicy
from cortecs_async._http.messages import Failure, FailureKind, error_reason, is_start
from cortecs_async._http.retry import (
    backoff,
    can_repeat,
    counts_as_retry,
    is_transient,
    is_transient_status,
    may_have_taken_effect,
    next_wait,
    parse_retry_after,
)

START = ("POST", "/instances/start")
OTHERS = [
    ("GET", "/instances/"),
    ("GET", "/instances/instance-1"),
    ("GET", "/user/balance"),
    ("POST", "/instances/stop"),
    ("POST", "/instances/restart"),
    ("POST", "/instances/stop-all"),
    ("DELETE", "/instances/instance-1"),
    ("DELETE", "/instances/delete-all"),
    ("POST", "/oauth2/token"),
]
REQUESTS = st.sampled_from([START, *OTHERS])
FAILURES = st.builds(
    Failure,
    kind=st.sampled_from([kind for kind in FailureKind if kind is not FailureKind.STATUS]),
    status=st.none() | st.integers(200, 399),
) | st.builds(
    Failure,
    kind=st.just(FailureKind.STATUS),
    status=st.none() | st.integers(100, 699),
    retry_after=st.none() | st.floats(0, 1e6),
    reason=st.sampled_from(["", "No capacity"]),
)
POLICIES = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 8),
    initial_backoff=st.floats(0, 10),
    max_backoff=st.floats(0, 30),
    max_retry_after=st.floats(0, 200),
    total_timeout=st.floats(0.1, 500),
)


def failed(kind: FailureKind | int, **fields: Any) -> Failure:
    if isinstance(kind, int):
        return Failure(kind=FailureKind.STATUS, status=kind, **fields)
    return Failure(kind=kind, **fields)


def ids(value: object) -> str | None:
    return value.name if isinstance(value, FailureKind) else None


#            outcome           passing  may have worked (of what changes something)
OUTCOMES: list[tuple[FailureKind | int, bool, bool]] = [
    (FailureKind.NOT_SENT, True, False),
    (FailureKind.LOST, True, True),
    (FailureKind.TIMED_OUT, True, True),
    (FailureKind.UNREADABLE, True, True),
    (FailureKind.REDIRECTED, False, True),
    (400, False, False),
    (401, False, False),
    (402, False, False),
    (403, False, False),
    (404, False, False),
    (408, True, True),
    (409, False, False),
    (413, False, False),
    (422, False, False),
    (425, False, False),
    (429, True, False),
    (500, True, True),
    (501, False, True),
    (502, True, True),
    (503, True, True),
    (504, True, True),
    (505, False, True),
    (520, True, True),
]


class TestTable:
    @pytest.mark.parametrize(("outcome", "passing", "worked"), OUTCOMES, ids=ids)
    def test_how_each_outcome_is_classified(
        self, *, outcome: FailureKind | int, passing: bool, worked: bool
    ) -> None:
        assert is_transient(failed(outcome)) is passing
        if isinstance(outcome, int):
            assert is_transient_status(outcome) is passing
        assert may_have_taken_effect("POST", failed(outcome)) is worked
        assert may_have_taken_effect("DELETE", failed(outcome)) is worked
        assert may_have_taken_effect("GET", failed(outcome)) is False

    @pytest.mark.parametrize(("outcome", "passing", "worked"), OUTCOMES, ids=ids)
    def test_which_requests_are_repeated(
        self, *, outcome: FailureKind | int, passing: bool, worked: bool
    ) -> None:
        for request in OTHERS:
            assert can_repeat(*request, failed(outcome)) is passing, request
        # A start is repeated only if it did nothing. An unknown request is treated the same way.
        for request in (START, ("POST", "/unheard-of"), ("PATCH", "/instances/instance-1")):
            assert can_repeat(*request, failed(outcome)) is (passing and not worked), request
        # Spelled out, because each of these in the wrong list is money: only two failures are repeated.
        assert can_repeat(*START, failed(outcome)) is (outcome in {FailureKind.NOT_SENT, 429})

    def test_only_start_is_start(self) -> None:
        assert is_start(*START)
        assert not is_start("GET", "/instances/start")
        assert not any(is_start(*request) for request in OTHERS)


# With an error in the service's own words. Everything else is as without: only these are different.
#   outcome    passing  may have worked (of what changes something)
REFUSALS: list[tuple[int, bool, bool]] = [
    (400, False, False),
    (403, False, False),
    (404, False, False),
    (408, True, False),
    (409, False, False),
    (429, True, False),
    (500, True, True),
    (501, False, False),
    (502, True, False),
    (503, True, False),
    (504, True, True),
    (505, False, False),
    (520, True, False),
    (529, True, False),
]


class TestRefusals:
    @pytest.mark.parametrize(("status", "passing", "worked"), REFUSALS)
    def test_an_error_in_the_services_words_started_nothing(
        self, *, status: int, passing: bool, worked: bool
    ) -> None:
        refusal = failed(status, reason="No capacity")
        assert is_transient(refusal) is passing
        assert may_have_taken_effect("POST", refusal) is worked
        assert may_have_taken_effect("DELETE", refusal) is worked
        assert may_have_taken_effect("GET", refusal) is False
        for request in OTHERS:
            assert can_repeat(*request, refusal) is passing, request
        for request in (START, ("POST", "/unheard-of"), ("PATCH", "/instances/instance-1")):
            assert can_repeat(*request, refusal) is (passing and not worked and status != 503), request
        # Spelled out: a start without capacity is the caller's to repeat, and 500 and 504 may have started.
        assert can_repeat(*START, refusal) is (status in {408, 429, 502, 520, 529})

    @given(st.sampled_from([kind for kind in FailureKind if kind is not FailureKind.STATUS]))
    @settings(derandomize=True)
    def test_words_change_nothing_without_an_error_status(self, kind: FailureKind) -> None:
        worked = may_have_taken_effect("POST", failed(kind))
        assert may_have_taken_effect("POST", failed(kind, reason="No capacity")) is worked

    @given(st.integers(100, 699), st.sampled_from(["POST", "DELETE", "PATCH"]))
    @settings(derandomize=True)
    def test_which_statuses_may_have_worked(self, status: int, method: str) -> None:
        assert may_have_taken_effect(method, failed(status, reason="x")) is (status in {500, 504})
        assert may_have_taken_effect(method, failed(status)) is (status >= 500 or status == 408)

    @pytest.mark.parametrize("reason", ["", "No capacity"])
    @pytest.mark.parametrize("retry_after", [None, 1.0])
    def test_a_start_is_never_repeated_after_503(self, reason: str, retry_after: float | None) -> None:
        failure = failed(503, reason=reason, retry_after=retry_after)
        assert ask(failure, request=START, max_retries=8) is None
        for request in OTHERS:
            assert ask(failure, request=request, max_retries=8) is not None, request


class TestErrorReason:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            ({"message": "No capacity"}, "No capacity"),
            ({"error": "No capacity"}, "No capacity"),
            ({"error": {"message": "No capacity", "type": "x", "code": None}}, "No capacity"),
            ({"message": " No\n  capacity\t"}, "No capacity"),
            ({"message": "first", "error": "second"}, "first"),
            ({"message": "first", "error": {"message": "second"}}, "first"),
            ({"message": "", "error": "second"}, "second"),
            ({"message": None, "error": {"message": "second"}}, "second"),
            ({"message": ["x"], "error": "second"}, "second"),
            # Control characters could clear a terminal, and a lone surrogate cannot be printed.
            ({"message": "No \x1b[2J capacity\x07 \ud800"}, "No [2J capacity"),
            # The phrase of a status is what a gateway writes that knows nothing of the service.
            ({"message": "Service Unavailable"}, ""),
            ({"error": "internal server error"}, ""),
            ({"error": {"message": " Bad Gateway "}}, ""),
            ({"message": "Service unavailable: no capacity"}, "Service unavailable: no capacity"),
            ({"message": "0"}, "0"),
            # No text where an error of the service has it: nothing is known of who wrote it.
            ({}, ""),
            ({"message": ""}, ""),
            ({"message": " \n"}, ""),
            ({"message": None}, ""),
            ({"message": 503}, ""),
            ({"message": True}, ""),
            ({"message": {"message": "x"}}, ""),
            ({"error": None}, ""),
            ({"error": True}, ""),
            ({"error": {}}, ""),
            ({"error": {"message": " "}}, ""),
            ({"error": {"message": {"message": "x"}}}, ""),
            ({"error": {"error": "x"}}, ""),
            ({"error": ["x"]}, ""),
            ({"errors": "x", "detail": "y", "Message": "z"}, ""),
            ([{"message": "x"}], ""),
            ("message", ""),
            (503, ""),
            (None, ""),
        ],
        ids=repr,
    )
    def test_json(self, data: Any, reason: str) -> None:
        assert error_reason(json.dumps(data).encode()) == reason

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" \n",
            b"No capacity",
            b'<html><body>{"message": "x"}</body></html>',
            b'{"message": "No capaci',
            b'{"message": "No capacity"',
            b'{"message": "No capacity"}<!-- proxy -->',
            b'{"message": "\xff"}',
            b"\x1f\x8b\x08",
            b"[" * 100_000,
        ],
        ids=lambda body: repr(body[:40]),
    )
    def test_what_is_no_json(self, body: bytes) -> None:
        assert error_reason(body) == ""

    @given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: json.dumps(text).encode()))
    @settings(max_examples=200, derandomize=True)
    def test_any_bytes(self, body: bytes) -> None:
        assert error_reason(body) == ""


def ask(
    failure: Failure,
    *,
    request: tuple[str, str] = ("GET", "/instances/"),
    attempt: int = 1,
    counted: int | None = None,
    elapsed: float = 0.0,
    seed: int = 0,
    **policy: Any,
) -> float | None:
    return next_wait(
        *request,
        failure,
        attempt=attempt,
        counted=attempt if counted is None else counted,
        elapsed=elapsed,
        policy=RetryPolicy(**policy),
        rng=random.Random(seed),
    )


class TestNextWait:
    @given(REQUESTS, FAILURES, st.integers(1, 12), st.floats(0, 600), POLICIES, st.integers())
    @settings(max_examples=400, derandomize=True)
    def test_a_start_that_may_have_worked_is_never_repeated(
        self,
        request: tuple[str, str],
        failure: Failure,
        attempt: int,
        elapsed: float,
        policy: RetryPolicy,
        seed: int,
    ) -> None:
        wait = next_wait(
            *request,
            failure,
            attempt=attempt,
            counted=attempt,
            elapsed=elapsed,
            policy=policy,
            rng=random.Random(seed),
        )
        if wait is None:
            return
        assert not (request == START and may_have_taken_effect(request[0], failure))
        assert attempt <= policy.max_retries
        assert elapsed + wait < policy.total_timeout
        asked = failure.retry_after or 0.0
        assert asked <= policy.max_retry_after
        assert asked <= wait <= asked + policy.max_backoff
        assert wait >= 0

    @pytest.mark.parametrize("request_", [START, *OTHERS], ids=" ".join)
    def test_no_retries_means_none(self, request_: tuple[str, str]) -> None:
        for outcome, _, _ in OUTCOMES:
            # A 429 does not count as a retry. With `max_retries=0`, it is not repeated either.
            counted = int(counts_as_retry(failed(outcome)))
            assert ask(failed(outcome), request=request_, counted=counted, max_retries=0) is None, outcome

    @pytest.mark.parametrize(("attempt", "goes_on"), [(1, True), (2, True), (3, False), (4, False)])
    def test_as_often_as_the_policy_says(self, *, attempt: int, goes_on: bool) -> None:
        assert (ask(failed(500), attempt=attempt, max_retries=2) is not None) is goes_on

    def test_too_many_requests_is_repeated_until_the_time_is_up(self) -> None:
        assert not counts_as_retry(failed(429))
        assert counts_as_retry(failed(503))
        assert ask(failed(429), attempt=100, counted=2, max_retries=2, elapsed=170.0) is not None
        assert ask(failed(429), attempt=100, counted=2, max_retries=2, elapsed=180.0) is None
        assert ask(failed(502), attempt=100, counted=2, max_retries=2) is not None
        assert ask(failed(502), attempt=100, counted=3, max_retries=2) is None

    @pytest.mark.parametrize(
        ("asked", "goes_on"), [(0.0, True), (119.9, True), (120.0, True), (120.1, False)]
    )
    def test_a_long_retry_after_is_refused(self, *, asked: float, goes_on: bool) -> None:
        wait = ask(failed(429, retry_after=asked))
        assert (wait is not None) is goes_on
        assert wait is None or asked <= wait <= asked + 0.5

    def test_the_deadline_counts_the_wait(self) -> None:
        # Half a second at most: whether it fits is known before it is slept.
        assert ask(failed(500), elapsed=179.4) is not None
        assert ask(failed(500), elapsed=180.0) is None
        assert ask(failed(429, retry_after=100.0), elapsed=80.0) is None
        assert ask(failed(429, retry_after=100.0), elapsed=79.0) is not None

    def test_the_same_seed_gives_the_same_wait(self) -> None:
        assert ask(failed(500), attempt=3, seed=7) == ask(failed(500), attempt=3, seed=7)


class TestBackoff:
    @given(st.integers(1, 100_000), POLICIES, st.integers())
    @example(10**18, RetryPolicy(), 0)
    @settings(max_examples=200, derandomize=True)
    def test_is_within_its_bounds(self, attempt: int, policy: RetryPolicy, seed: int) -> None:
        wait = backoff(attempt, policy=policy, rng=random.Random(seed))
        assert 0 <= wait <= policy.max_backoff
        assert wait <= policy.initial_backoff * 2.0 ** min(attempt - 1, 64)

    @pytest.mark.parametrize(
        ("attempt", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0)]
    )
    def test_the_jitter_is_full(self, attempt: int, bound: float) -> None:
        rng = random.Random(1)
        waits = sorted(backoff(attempt, policy=RetryPolicy(), rng=rng) for _ in range(2000))
        assert waits[0] < 0.01 * bound
        assert waits[-1] > 0.99 * bound
        assert waits[1000] == pytest.approx(bound / 2, rel=0.1)

    def test_none_at_all_is_possible(self) -> None:
        assert backoff(9, policy=RetryPolicy(initial_backoff=0), rng=random.Random()) == 0


NOW = datetime(2024, 8, 7, 8, 0, 0, tzinfo=UTC)


def parse(value: str, date: str | None = None) -> float | None:
    return parse_retry_after({"retry-after": value, **({} if date is None else {"date": date})}, now=NOW)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("0", 0.0),
            ("1", 1.0),
            ("120", 120.0),
            (" 7 ", 7.0),
            ("007", 7.0),
            ("0" * 20 + "120", 120.0),
            ("", None),
            ("   ", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1e3", None),
            ("0x10", None),
            ("1_000", None),
            ("٣", None),
            ("²", None),
            ("soon", None),
            ("1, 2", None),
            ("nan", None),
            ("inf", None),
            ("None", None),
        ],
    )
    def test_seconds(self, value: str, expected: float | None) -> None:
        assert parse(value) == expected

    def test_no_header(self) -> None:
        assert parse_retry_after({}, now=NOW) is None

    @pytest.mark.parametrize("digits", [13, 400, 5000])
    def test_a_number_without_end_is_long(self, digits: int) -> None:
        found = parse("9" * digits)
        assert found is not None
        assert found > 120
        assert ask(failed(429, retry_after=found)) is None

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("Wed, 07 Aug 2024 08:00:30 GMT", 30.0),
            ("Wed, 07 Aug 2024 08:00:00 GMT", 0.0),
            ("Wed, 07 Aug 2024 07:00:00 GMT", 0.0),
            ("Wednesday, 07-Aug-24 08:01:00 GMT", 60.0),
            ("Wed Aug  7 08:02:00 2024", 120.0),
            ("Wed, 07 Aug 2024 08:00:30 -0000", 30.0),
            ("Wed, 07 Aug 2024 10:00:30 +0200", 30.0),
            ("Wed, 07 Aug 99999 08:00:30 GMT", None),
            ("Wed, 07 Aug 99999999999999999999 08:00:30 GMT", None),
            ("Wed, 07 Aug 2024 08:00:30 +99999999999999999999", None),
            ("Wed, 99 Aug 2024 08:00:30 GMT", None),
            ("Wed, 07 Foo 2024 08:00:30 GMT", None),
        ],
    )
    def test_a_date_counts_from_now(self, value: str, expected: float | None) -> None:
        assert parse(value) == expected

    @pytest.mark.parametrize(
        ("date", "expected"),
        [
            ("Wed, 07 Aug 2030 08:00:00 GMT", 30.0),
            ("Wed, 07 Aug 2030 08:00:30 GMT", 0.0),
            ("Wed, 07 Aug 2030 09:00:00 GMT", 0.0),
        ],
    )
    def test_a_date_counts_from_the_answers_own(self, date: str, expected: float) -> None:
        # This machine's clock is years behind, and it does not matter.
        assert parse("Wed, 07 Aug 2030 08:00:30 GMT", date) == expected

    @pytest.mark.parametrize("date", ["", "noon", "Wed, 07 Aug 99999999999999999999 08:00:00 GMT"])
    def test_an_odd_date_of_the_answer_is_ignored(self, date: str) -> None:
        assert parse("Wed, 07 Aug 2024 08:00:30 GMT", date) == 30.0

    @given(st.integers(0, 10**9))
    @settings(max_examples=100, derandomize=True)
    def test_any_number_of_seconds(self, seconds: int) -> None:
        assert parse(str(seconds)) == seconds

    @given(st.timedeltas(timedelta(0), timedelta(days=400)))
    @settings(max_examples=100, derandomize=True)
    def test_any_date(self, ahead: timedelta) -> None:
        value = (NOW + ahead).strftime("%a, %d %b %Y %H:%M:%S GMT")
        assert parse(value) == pytest.approx(ahead.total_seconds(), abs=1.0)

    @given(st.text(st.characters(), max_size=30), st.none() | st.text(st.characters(), max_size=30))
    @settings(max_examples=300, derandomize=True)
    def test_any_text_at_all(self, value: str, date: str | None) -> None:
        found = parse(value, date)
        assert found is None or found >= 0

    @given(
        st.from_regex(
            r"(Mon, )?[0-9]{1,22}[ -](Jan|Feb|Foo|[0-9]{1,3})[ -][0-9]{1,22} "
            r"[0-9]{1,3}:[0-9]{1,22}(:[0-9]{1,3})? ?(GMT|[+-][0-9]{1,22}|)",
            fullmatch=True,
        )
    )
    @settings(max_examples=100, derandomize=True)
    def test_nearly_a_date(self, value: str) -> None:
        found = parse(value, value)
        assert found is None or found == 0
