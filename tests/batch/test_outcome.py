"""Test what the outcome of an attempt says about its request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from _grids import grid

from cortecs_async._batch.answers import AnswerLine
from cortecs_async._batch.format import Request
from cortecs_async._batch.outcome import FailedAttempt, FailureReason, answered_error_delay, classify
from cortecs_async._batch.sender import Reply
from cortecs_async._http.messages import Failure, FailureKind

REQUEST = Request(1, "r1", "/chat/completions", b"{}", "batch_req_1")

REFUSALS = [
    # OpenAI and llama.cpp
    {"error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": 400}},
    # vLLM before 0.10, SGLang and LMDeploy
    {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
    # TGI and TEI
    {"error": "Input validation error: too long", "error_type": "validation"},
    # FastAPI
    {"detail": "too long"},
    {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]},
    # Others
    {"message": "too long"},
    {"error": {"detail": "too long"}},
    {"error": ["too long"]},
    {"detail": {"error": {"message": "too long"}}},
    {"detail": {"prompt": "too long"}},
    {"message": {"prompt": ["too long"]}},
    {"errors": ["too long"]},
    [{"error": "too long"}],
    {"code": 400, "msg": "too long"},
    {"type": "about:blank", "title": "too long", "status": 400},
    "too long",
]

UNCLEAR = [
    b"",
    b"<html>413 Request Entity Too Large</html>",
    b"too long",
    b"[]",
    b"{}",
    b'{"error":null}',
    b'{"error":" "}',
    b'{"error":{}}',
    b'{"error":{"code":400}}',
    b'{"detail":[]}',
    b'{"detail":[{}]}',
    b'{"status":"too long"}',
    b'{"error":' + b"[" * 100 + b"]" * 100 + b"}",
]


@grid(body=REFUSALS, status=[400, 413, 422])
def test_a_refusal_in_the_words_of_any_server_ends_a_request(body: Any, status: int) -> None:
    result = classify(Reply(status, json.dumps(body).encode()), REQUEST)
    assert isinstance(result, AnswerLine)
    line = json.loads(result.text)
    assert line["response"]["body"] == body or isinstance(body, (list, str))
    assert result.usage is None


@pytest.mark.parametrize("body", UNCLEAR)
def test_a_400_that_a_proxy_may_have_sent_is_no_refusal(body: bytes) -> None:
    result = classify(Reply(400, body), REQUEST)
    assert isinstance(result, FailedAttempt)
    assert result.reason is FailureReason.OTHER


@grid(strength=1, body=UNCLEAR, status=[413, 422])
def test_a_status_that_is_about_the_request_ends_it_whatever_the_body_is(body: bytes, status: int) -> None:
    result = classify(Reply(status, body), REQUEST)
    assert isinstance(result, FailedAttempt)
    assert result.reason is FailureReason.REFUSED
    assert json.loads(result.line.text)["response"]["status_code"] == status


@pytest.mark.parametrize("status", [401, 404, 408, 429, 500])
def test_other_statuses_are_no_refusals(status: int) -> None:
    assert isinstance(classify(Reply(status, b'{"error":"no"}'), REQUEST), FailedAttempt)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Failure(kind=FailureKind.NOT_SENT), FailureReason.NOT_SENT),
        (Failure(kind=FailureKind.LOST), FailureReason.LOST),
        (Failure(kind=FailureKind.TIMED_OUT), FailureReason.TIMED_OUT),
        (Failure(kind=FailureKind.UNREADABLE), FailureReason.OTHER),
        (Reply(200, b"<html>"), FailureReason.OTHER),
        (Reply(200, b'{"error":{"message":"overloaded"}}'), FailureReason.ANSWERED_ERROR),
        (Reply(403, b"{}"), FailureReason.KEY_REJECTED),
        (Reply(429, b"{}"), FailureReason.RATE_LIMITED),
        (Reply(503, b"{}"), FailureReason.UNAVAILABLE),
        (Reply(500, b"{}"), FailureReason.OTHER),
        *((Reply(status, b"<html>"), FailureReason.LOST) for status in (502, 504, 520, 524, 527)),
    ],
)
def test_the_reason_of_a_failure(outcome: Reply | Failure, reason: FailureReason) -> None:
    result = classify(outcome, REQUEST)
    assert isinstance(result, FailedAttempt)
    assert result.reason is reason
    assert json.loads(result.line.text)["custom_id"] == "r1"


def test_an_error_in_an_answer_is_retried_slowly() -> None:
    for failures, longest in enumerate((2.0, 4.0, 8.0, 16.0, 30.0, 30.0)):
        assert longest / 2 <= answered_error_delay(failures) <= longest
