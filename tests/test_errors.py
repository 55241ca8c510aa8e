"""The exception tree: what can be caught as what, and that errors survive pickling and copying."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator

import pytest

from cortecs_async import _errors, errors
from cortecs_async._errors import (
    STATUS_ERRORS,
    AmbiguousStartError,
    APIStatusError,
    BatchFileError,
    BatchWriteError,
    CortecsError,
    LifecycleError,
    RequestError,
    ServerError,
    error_class_for,
)

CLASSES = [
    value for _, value in inspect.getmembers(_errors, inspect.isclass) if issubclass(value, CortecsError)
]


def make(cls: type[CortecsError]) -> CortecsError:
    if issubclass(cls, APIStatusError):
        return cls(
            "what happened",
            method="GET",
            path="/instances/",
            status_code=418,
            body="short and stout",
            request_id="r-1",
            retry_after=3.0,
            attempts=2,
            outcome_unknown=True,
        )
    if issubclass(cls, RequestError):
        return cls("what happened", method="GET", path="/instances/", attempts=2, outcome_unknown=True)
    if issubclass(cls, LifecycleError):
        return cls("what happened", instance_id="instance-1")
    if issubclass(cls, AmbiguousStartError):
        return cls("what happened", candidates=("instance-1", "instance-2"))
    if issubclass(cls, (BatchFileError, BatchWriteError)):
        return cls("what happened", path="out.jsonl")
    return cls("what happened")


def duplicates(error: CortecsError) -> Iterator[CortecsError]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))  # noqa: S301
    yield copy.copy(error)
    yield copy.deepcopy(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_pickles_and_copies_keep_everything(cls: type[CortecsError]) -> None:
    error = make(cls)
    error.add_note("a note")
    for twin in duplicates(error):
        assert type(twin) is cls
        assert twin is not error
        assert "what happened" in str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_has_neither_traceback_nor_chain(duplicate: Callable[[CortecsError], CortecsError]) -> None:
    # Copies go to the other waiters of one fetch: frames of the first caller are none of their business.
    try:
        raise make(APIStatusError) from KeyError("cause")
    except APIStatusError as error:
        twin = duplicate(error)
    assert twin.__traceback__ is None
    assert twin.__cause__ is None
    assert twin.__context__ is None


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_says_what_happened_why_and_what_to_do(cls: type[CortecsError]) -> None:
    paragraphs = inspect.cleandoc(vars(cls)["__doc__"]).split("\n\n")
    assert paragraphs[0].endswith(".")
    assert "\n" not in paragraphs[0]
    assert [each.partition(":")[0] for each in paragraphs[1:3]] == ["Why", "What to do"]
    example = paragraphs[-1]
    assert example.startswith("Example:\n")
    assert 2 <= len(example.splitlines()) - 1 <= 6
    assert cls.__name__ in example


def test_the_public_module_has_all_of_them() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(vars(errors))
    assert all(getattr(errors, cls.__name__) is cls for cls in CLASSES)


@pytest.mark.parametrize(
    ("cls", "also"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.InvalidArgumentError, ValueError),
        (errors.ClientClosedError, RuntimeError),
        (errors.RequestTimeoutError, TimeoutError),
        (errors.StartTimeoutError, TimeoutError),
        (errors.RequestTimeoutError, errors.TransportError),
        (errors.ServiceUnavailableError, errors.ServerError),
    ],
)
def test_the_builtin_that_a_caller_may_expect(cls: type[Exception], also: type[Exception]) -> None:
    assert issubclass(cls, also)
    assert issubclass(cls, CortecsError)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (402, "InsufficientBalanceError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (409, "ConflictError"),
        (422, "UnprocessableEntityError"),
        (429, "RateLimitError"),
        (500, "ServerError"),
        (502, "ServerError"),
        (503, "ServiceUnavailableError"),
        (504, "ServerError"),
        (599, "ServerError"),
        (405, "APIStatusError"),
        (418, "APIStatusError"),
        (451, "APIStatusError"),
    ],
)
def test_a_class_for_every_status(status: int, expected: str) -> None:
    assert error_class_for(status).__name__ == expected


def test_every_status_class_says_what_to_do() -> None:
    classes: list[type[APIStatusError]] = [*STATUS_ERRORS.values(), ServerError]
    assert [cls for cls in classes if not cls.hint.endswith(".")] == []


def test_no_two_statuses_share_a_class() -> None:
    assert len(set(STATUS_ERRORS.values())) == len(STATUS_ERRORS)
