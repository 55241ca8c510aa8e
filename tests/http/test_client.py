"""Requests and what comes back: every outcome sorted, retried where that is safe, and told apart."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest
import respx
from _grids import BACKENDS, alternating, grid, on_one_backend
from _scripted import API, CLIENT_ID, SECRET, TOKEN, Answer, Handler, Service, instance, ok
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortecs_async import AsyncCortecs, ConfigurationError, RetryPolicy, errors
from cortecs_async._aio.tasks import DetachedTask
from cortecs_async._errors import (
    APIStatusError,
    ClientClosedError,
    DecodeError,
    NotFoundError,
    RateLimitError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    ServiceUnavailableError,
    TransportError,
)
from cortecs_async._http.client import HTTP
from cortecs_async._http.messages import Call, Failure, Reply

EMPTY_LIST = Answer(json={"instances": []})
START = ("POST", "/instances/start")


@pytest.fixture
def service() -> Service:
    service = Service()
    service.on("GET", "/instances/", EMPTY_LIST)
    return service


async def list_error(service: Service, *answers: Handler, **options: Any) -> RequestError:
    service.on("GET", "/instances/", *answers)
    async with service.client(**{"max_retries": 0, **options}) as client:
        with pytest.raises(RequestError) as caught:
            await client.instances.list()
    return caught.value


async def start_error(service: Service, *answers: Handler, **options: Any) -> RequestError:
    service.on(*START, *answers)
    async with service.client(**options) as client:
        with pytest.raises(RequestError) as caught:
            await client.instances.start("a/b")
    return caught.value


class TestStatuses:
    @alternating(
        "status,name",
        [
            (400, "BadRequestError"),
            (401, "AuthenticationError"),
            (402, "InsufficientBalanceError"),
            (403, "PermissionDeniedError"),
            (404, "NotFoundError"),
            (405, "APIStatusError"),
            (408, "APIStatusError"),
            (409, "ConflictError"),
            (418, "APIStatusError"),
            (422, "UnprocessableEntityError"),
            (429, "RateLimitError"),
            (500, "ServerError"),
            (501, "ServerError"),
            (502, "ServerError"),
            (503, "ServiceUnavailableError"),
            (504, "ServerError"),
            (599, "ServerError"),
        ],
    )
    async def test_each_has_its_error(self, service: Service, status: int, name: str) -> None:
        answer = Answer(
            status=status, json={"message": "words of the service"}, headers={"X-Request-Id": "r-77"}
        )
        error = await list_error(service, answer)
        assert type(error) is getattr(errors, name)
        assert isinstance(error, APIStatusError)
        assert error.status_code == status
        assert error.request_id == "r-77"
        assert error.body == '{"message": "words of the service"}'
        assert (error.method, error.path) == ("GET", "/instances/")
        assert not error.outcome_unknown
        for part in ("GET /instances/", str(status), ": words of the service [", "r-77"):
            assert part in str(error)
        # The service's own words are better than a list of what may be wrong.
        assert (type(error).hint in str(error)) is (status not in {400, 404, 422} or type(error).hint == "")
        assert "{" not in str(error)

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ('{"error": "No free\\n capacity."}', ": No free capacity."),
            ('{"message": "  ", "error": "Busy"}', ": Busy."),
            ('{"message": ["Busy"]}', "."),
            ('["Busy"]', "."),
            ("<html>Busy</html>", "."),
            ('{"error": {"message": "Busy!", "type": "x"}}', ": Busy!."),
            ('{"error": {"type": "Busy"}}', "."),
            ('{"message": "Bus', "."),
            ('{"message": "' + 400 * "x" + '"}', f": {300 * 'x'}."),
        ],
    )
    async def test_the_message_has_the_reason_of_the_service_but_no_raw_response(
        self, service: Service, body: str, reason: str
    ) -> None:
        error = await list_error(service, Answer(status=409, content=body.encode()))
        assert str(error).startswith(f"GET /instances/ returned 409 Conflict{reason} ")

    @alternating(
        "status,unknown",
        [
            (400, False),
            (402, False),
            (404, False),
            (408, True),
            (409, False),
            (429, False),
            (500, True),
            (503, True),
        ],
    )
    async def test_a_refused_start_tells_whether_something_may_run(
        self, *, service: Service, status: int, unknown: bool
    ) -> None:
        error = await start_error(service, Answer(status=status), max_retries=0)
        assert error.outcome_unknown is unknown
        assert ("client.instances.list()" in str(error)) is (unknown or status == 404)
        assert ("may have been started" in str(error)) is unknown
        assert error.attempts == 1

    @alternating(
        "body,unknown",
        [
            (b'{"message": "No capacity"}', False),
            (b'{"error": "No capacity"}', False),
            (b'{"error": {"message": "No capacity"}}', False),
            (b"<html>No capacity</html>", True),
            (b"", True),
            (b"No capacity", True),
            (b'{"code": 503}', True),
            (b'{"message": "No capac', True),
        ],
    )
    async def test_a_start_without_capacity_is_never_sent_again(
        self, *, service: Service, body: bytes, unknown: bool
    ) -> None:
        answer = Answer(status=503, content=body, headers={"Retry-After": "1"})
        error = await start_error(service, answer, max_retries=5)
        assert type(error) is ServiceUnavailableError
        assert error.outcome_unknown is unknown
        assert ("may have been started" in str(error)) is unknown
        assert (error.attempts, error.retry_after) == (1, 1.0)
        assert service.routes == ["POST /instances/start"]
        assert anyio.current_time() == 0

    @alternating("status", [500, 504])
    async def test_words_do_not_make_a_refusal_of_a_failure_inside(
        self, service: Service, status: int
    ) -> None:
        error = await start_error(service, Answer(status=status, json={"message": "Sorry"}), max_retries=5)
        assert type(error) is ServerError
        assert error.outcome_unknown
        assert service.routes == ["POST /instances/start"]

    @alternating("status", [408, 502, 520])
    async def test_a_passing_refusal_of_a_start_is_sent_again(self, service: Service, status: int) -> None:
        service.on(*START, Answer(status=status, json={"error": "Busy"}), ok("instance-9"))
        async with service.client() as client:
            assert (await client.instances.start("a/b")).instance_id == "instance-9"
        assert service.routes == ["POST /instances/start"] * 2

    @alternating(
        "method,path",
        [
            ("GET", "/instances/instance-1"),
            ("POST", "/instances/stop"),
            ("POST", "/instances/restart"),
            ("DELETE", "/instances/instance-1"),
        ],
    )
    async def test_other_requests_are_sent_again_after_503(
        self, service: Service, method: str, path: str
    ) -> None:
        refusal = Answer(status=503, json={"message": "No capacity"})
        service.on(method, path, refusal, Answer(status=503), ok())
        async with service.client() as client:
            call = {"GET": client.instances.get, "DELETE": client.instances.delete}.get(method)
            if call is None:
                call = client.instances.stop if path.endswith("stop") else client.instances.restart
            await call("instance-1")
        assert service.routes == [f"{method} {path}"] * 3

    @alternating(
        "content,content_type,shown",
        [
            (b'{"message": "no such model"}', "application/json", "no such model"),
            (b'{"error": "no such model"}', "application/json", "no such model"),
            (b"no such model", "text/plain", "no such model"),
            (
                b"<html>\n  <h1>no such\n\tmodel</h1></html>",
                "text/html",
                "<html> <h1>no such model</h1></html>",
            ),
            (b"", "application/json", ""),
            (b"   \r\n ", "text/plain", ""),
            (b"[1, 2", "application/json", "[1, 2"),
            ("Modèle".encode("latin-1"), "text/plain; charset=latin-1", "Modèle"),
            ("Modèle".encode("utf-16"), "text/plain; charset=utf-16", "Modèle"),
            (b"no text at all", "text/plain; charset=hex", "no text at all"),
            (b"no text at all", "text/plain; charset=base64", "no text at all"),
            (b"no text at all", "text/plain; charset=undefined", "no text at all"),
            (b"no text at all", "text/plain; charset=rot13", "no text at all"),
            (b"no text at all", "text/plain; charset=nonsense", "no text at all"),
            (b"no text at all", "text/plain; charset=utf-16", None),
            (bytes(range(256)) * 4, "application/octet-stream", None),
            (b"\x1b[2J\x1b]0;evil\x07 plain \xe2\x80\xae", "text/plain", "plain"),
        ],
        ids=ascii,
    )
    async def test_any_error_body(
        self, service: Service, content: bytes, content_type: str, shown: str | None
    ) -> None:
        answer = Answer(status=400, content=content, headers={"Content-Type": content_type})
        error = await list_error(service, answer)
        assert isinstance(error, errors.BadRequestError)
        assert len(error.body) <= 300
        assert error.body == "" or error.body.isprintable()
        if shown is not None:
            assert shown in error.body
            assert error.body == "" or error.body not in str(error)

    @on_one_backend
    @given(
        content=st.binary(max_size=400),
        charset=st.sampled_from(["", "utf-8", "utf-7", "ascii", "utf-32", "hex"]),
    )
    @settings(max_examples=60, derandomize=True)
    async def test_whatever_the_body_is(self, content: bytes, charset: str) -> None:
        headers = {"Content-Type": f"text/html; charset={charset}"} if charset else {}
        error = await list_error(Service(), Answer(status=404, content=content, headers=headers))
        assert isinstance(error, NotFoundError)
        assert len(error.body) <= 300

    async def test_a_compressed_error_body(self, service: Service) -> None:
        answer = Answer(status=400, content=gzip.compress(b"squeezed"), headers={"Content-Encoding": "gzip"})
        error = await list_error(service, answer)
        assert isinstance(error, errors.APIStatusError)
        assert error.body == "squeezed"

    async def test_a_huge_error_body_is_cut(self, service: Service) -> None:
        error = await list_error(service, Answer(status=500, content=b"x" * 1_000_000))
        assert len(str(error)) < 1000

    async def test_no_request_id(self, service: Service) -> None:
        error = await list_error(service, Answer(status=404))
        assert isinstance(error, APIStatusError)
        assert error.request_id is None
        assert "request id" not in str(error)

    async def test_retry_after_is_told(self, service: Service) -> None:
        error = await list_error(service, Answer(status=429, headers={"Retry-After": "300"}), max_retries=5)
        assert isinstance(error, RateLimitError)
        assert error.retry_after == 300.0
        assert "300 s" in str(error)
        assert error.attempts == 1


class TestTransport:
    @alternating(
        "failure,cls,sent",
        [
            (httpx.ConnectError, TransportError, False),
            (httpx.ConnectTimeout, TransportError, False),
            (httpx.PoolTimeout, TransportError, False),
            (httpx.ProxyError, TransportError, False),
            (httpx.ReadError, TransportError, True),
            (httpx.WriteError, TransportError, True),
            (httpx.CloseError, TransportError, True),
            (httpx.RemoteProtocolError, TransportError, True),
            (httpx.LocalProtocolError, TransportError, True),
            (httpx.ReadTimeout, RequestTimeoutError, True),
            (httpx.WriteTimeout, RequestTimeoutError, True),
        ],
    )
    async def test_each_failure_of_a_start(
        self, *, service: Service, failure: type[httpx.TransportError], cls: type[RequestError], sent: bool
    ) -> None:
        error = await start_error(service, Answer(failure=failure), max_retries=2)
        assert type(error) is cls
        assert error.outcome_unknown is sent
        assert error.attempts == (1 if sent else 3)
        assert service.routes == ["POST /instances/start"] * error.attempts
        is_unreachable = not sent and failure is not httpx.PoolTimeout
        assert is_unreachable or failure.__name__ in str(error)
        assert ("Cannot reach https://api.test/v1 after 3 attempts (" in str(error)) is is_unreachable
        assert ("POST /instances/start" in str(error)) is not is_unreachable
        assert ("may have been started" in str(error)) is sent
        assert ("Check the network and api_base_url" in str(error)) is is_unreachable
        assert isinstance(error, TimeoutError) is (cls is RequestTimeoutError)

    @alternating("failure", [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout])
    async def test_a_get_changes_nothing(self, service: Service, failure: type[httpx.TransportError]) -> None:
        error = await list_error(service, Answer(failure=failure), max_retries=1)
        assert not error.outcome_unknown
        assert error.attempts == 2
        assert "2 attempts" in str(error)

    @alternating("failure", [httpx.ConnectError, httpx.ReadError, httpx.ReadTimeout])
    async def test_is_gone_the_next_time(self, service: Service, failure: type[httpx.TransportError]) -> None:
        service.on("GET", "/instances/", Answer(failure=failure), Answer(failure=failure), EMPTY_LIST)
        async with service.client() as client:
            assert await client.instances.list() == ()
        assert len(service.routes) == 3

    async def test_an_unknown_outcome_is_not_forgotten_by_a_later_refusal(self, service: Service) -> None:
        service.on("DELETE", "/instances/delete-all", Answer(failure=httpx.ReadError), Answer(status=403))
        async with service.client() as client:
            with pytest.raises(errors.PermissionDeniedError) as caught:
                await client.instances.delete_all()
        assert caught.value.outcome_unknown
        assert caught.value.attempts == 2

    async def test_the_error_has_no_chain_into_the_http_stack(self, service: Service) -> None:
        error = await list_error(service, Answer(failure=httpx.ReadError))
        assert error.__cause__ is None
        assert error.__context__ is None


class TestTime:
    async def test_an_attempt_has_its_timeout(self, service: Service) -> None:
        error = await list_error(service, Answer(delay=1000.0), timeout=7.0)
        assert isinstance(error, RequestTimeoutError)
        assert isinstance(error, TimeoutError)
        assert "7 s" in str(error)

    async def test_all_attempts_together_have_theirs(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(delay=1000.0))
        async with service.client(
            timeout=30.0, retry_policy=RetryPolicy(max_retries=100, total_timeout=100.0)
        ) as client:
            began = anyio.current_time()
            with pytest.raises(RequestTimeoutError):
                await client.instances.list()
            assert 90.0 - 8.0 <= anyio.current_time() - began <= 100.0

    async def test_a_start_that_takes_too_long_may_run(self, service: Service) -> None:
        error = await start_error(service, Answer(delay=1000.0))
        assert isinstance(error, RequestTimeoutError)
        assert error.outcome_unknown
        assert error.attempts == 1
        assert "may have been started" in str(error)

    async def test_the_callers_own_timeout_is_the_callers(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(delay=1000.0))
        async with service.client() as client:
            with pytest.raises(TimeoutError) as caught:
                with anyio.fail_after(5.0):
                    await client.instances.list()
        assert not isinstance(caught.value, RequestError)
        assert service.routes == ["GET /instances/"]

    async def test_retry_after_is_waited_for(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(status=429, headers={"Retry-After": "33"}), EMPTY_LIST)
        async with service.client() as client:
            await client.instances.list()
        first, second = service.times[-2:]
        assert 33.0 <= second - first <= 33.5

    async def test_retry_after_as_a_date_counts_from_the_answers_date(self, service: Service) -> None:
        headers = {"Retry-After": "Wed, 07 Aug 2030 08:01:00 GMT", "Date": "Wed, 07 Aug 2030 08:00:00 GMT"}
        service.on("GET", "/instances/", Answer(status=503, headers=headers), EMPTY_LIST)
        async with service.client() as client:
            await client.instances.list()
        assert 60.0 <= service.times[-1] - service.times[-2] <= 60.5

    async def test_retry_after_of_a_start(self, service: Service) -> None:
        service.on(*START, Answer(status=429, headers={"Retry-After": "5"}), ok("instance-9", "pending"))
        async with service.client() as client:
            assert (await client.instances.start("a/b")).instance_id == "instance-9"
        assert service.times[-1] - service.times[-2] >= 5.0

    async def test_the_pauses_double_at_most(self, service: Service) -> None:
        await list_error(
            service, Answer(status=500), retry_policy=RetryPolicy(max_retries=7), max_retries=None
        )
        times = service.times[-8:]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        for pause, bound in zip(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0], strict=True):
            assert 0 <= pause <= bound

    async def test_the_connect_timeout_is_the_shorter_one(self, service: Service) -> None:
        # Or a start that never left this machine could not be told from one that was lost.
        for timeout in (1.0, 30.0, 1000.0):
            async with service.client(timeout=timeout) as client:
                await client.instances.list()
            connect = service.requests[-1].extensions["timeout"]["connect"]
            assert 0 < connect < timeout
            assert connect <= 10.0


class TestNotJSON:
    GARBAGE: ClassVar = [
        b"<html>welcome</html>",
        b"{",
        b'{"instances": [',
        b"\xff\xfe\x00",
        b"\x80",
        b"nope",
        b"[" * 100_000,
        b"'single'",
        b'{"instances": []} trailing',
        b"9" * 10_000,
    ]

    @alternating(
        "content,status",
        zip(GARBAGE, itertools.cycle([200, 202, 202]), strict=False),
        ids=lambda value: ascii(value[-12:]) if isinstance(value, bytes) else value,
    )
    async def test_of_a_start(self, service: Service, content: bytes, status: int) -> None:
        error = await start_error(service, Answer(status=status, content=content))
        assert type(error) is DecodeError
        assert error.outcome_unknown
        assert error.attempts == 1
        assert "POST /instances/start" in str(error)
        assert "may have been started" in str(error)
        assert len(str(error)) < 1000

    async def test_is_retried_where_that_is_safe(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(content=b"<html>"), EMPTY_LIST)
        async with service.client() as client:
            assert await client.instances.list() == ()

    async def test_of_a_get(self, service: Service) -> None:
        error = await list_error(service, Answer(content=b"<html>a proxy's login page"))
        assert type(error) is DecodeError
        assert not error.outcome_unknown
        assert "a proxy's login page" not in str(error)
        assert "a proxy's login page" in error.__notes__[0]

    @grid(strength=1, status=[200, 201, 202, 204], content=[b"", b" \n"], anyio_backend=BACKENDS)
    async def test_an_empty_success(self, service: Service, status: int, content: bytes) -> None:
        service.on("DELETE", "/instances/instance-1", Answer(status=status, content=content))
        service.on("POST", "/instances/stop-all", Answer(status=status, content=content))
        async with service.client() as client:
            await client.instances.delete("instance-1")
            assert (await client.instances.stop_all()).instance_ids == ()
        error = await start_error(service, Answer(status=status, content=content))
        assert type(error) is DecodeError
        assert error.outcome_unknown
        assert service.routes.count("POST /instances/start") == 1
        assert "instance" in str(error)

    async def test_a_byte_order_mark_is_no_garbage(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(content=b'\xef\xbb\xbf{"instances": []}'))
        async with service.client() as client:
            assert await client.instances.list() == ()

    async def test_another_shape_says_where_and_shows_no_values(self, service: Service) -> None:
        odd = {"instances": {"v4lue": instance()}}
        error = await list_error(service, Answer(json=odd), max_retries=5)
        assert type(error) is DecodeError
        assert "at $, expected a list, but got a value of type dict" in str(error)
        assert "v4lue" not in str(error)
        assert "newer version of cortecs-async" in str(error)
        assert error.attempts == 1
        assert not error.outcome_unknown

    async def test_an_entry_of_another_shape_says_where_and_shows_no_values(
        self, service: Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        odd = {"instances": [instance(), instance(instance_id=["v4lue"])]}  # type: ignore[arg-type]
        service.on("GET", "/instances/", Answer(json=odd))
        service.on("GET", "/instances/instance-2", Answer(json={"instance": odd["instances"][1]}))
        async with service.client() as client:
            listing = await client.instances.list()
            assert [each.instance_id for each in listing] == ["instance-1"]
            assert [each.entry_id for each in listing.unreadable] == [None]
            assert "at $.instance_id, expected a string" in listing.unreadable[0].problem
            with pytest.raises(DecodeError, match=r"at \$\.instance_id, expected a string") as caught:
                await client.instances.get("instance-2")
        assert service.routes == ["GET /instances/", "GET /instances/instance-2"]
        assert "v4lue" not in f"{listing!r} {caught.value} {caplog.text}"

    async def test_another_shape_after_a_start(self, service: Service) -> None:
        error = await start_error(service, ok(instance_id=None))  # type: ignore[arg-type]
        assert type(error) is DecodeError
        assert error.outcome_unknown
        assert "may have been started" in str(error)

    @alternating("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400], ids=lambda value: value[:9])
    async def test_numbers_that_are_none(self, service: Service, number: str) -> None:
        service.on(
            "GET",
            "/user/balance",
            Answer(content=f'{{"current_balance": {number}, "currency": "EUR"}}'.encode()),
        )
        async with service.client() as client:
            with pytest.raises(DecodeError, match="current_balance"):
                await client.user.balance()


async def test_a_damaged_compressed_body_is_a_lost_answer(service: Service) -> None:
    error = await start_error(service, Answer(content=b"no gzip", headers={"Content-Encoding": "gzip"}))
    assert isinstance(error, TransportError)
    assert error.outcome_unknown
    assert error.attempts == 1


class TestRedirects:
    @grid(
        strength=1,
        status=[301, 302, 303, 307, 308],
        location=[
            f"{API}/instances/all",
            "/v1/instances/all",
            "all",
            "https://API.test:443/v1/instances/all",
        ],
        anyio_backend=BACKENDS,
    )
    async def test_a_get_follows_to_the_same_origin(
        self, service: Service, status: int, location: str
    ) -> None:
        service.on("GET", "/instances/", Answer(status=status, headers={"Location": location}))
        service.on("GET", "/instances/all", EMPTY_LIST)
        async with service.client() as client:
            assert await client.instances.list() == ()
        assert service.routes == ["GET /instances/", "GET /instances/all"]
        assert service.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"

    @alternating("status", [307, 308])
    async def test_a_post_follows_where_method_and_body_stay(self, service: Service, status: int) -> None:
        service.on(*START, Answer(status=status, headers={"Location": "/v1/instances/start2"}))
        service.on("POST", "/instances/start2", ok())
        async with service.client() as client:
            assert (await client.instances.start("a/b")).instance_id == "instance-1"
        assert json.loads(service.requests[-1].content) == json.loads(service.requests[-2].content)

    @grid(
        strength=1,
        status=[300, 301, 302, 303, 304, 305],
        location=["/v1/elsewhere", "https://evil.test/", None],
        anyio_backend=BACKENDS,
    )
    async def test_a_post_does_not_follow_where_it_would_become_a_get(
        self, service: Service, status: int, location: str | None
    ) -> None:
        headers = {} if location is None else {"Location": location}
        error = await start_error(service, Answer(status=status, headers=headers))
        assert type(error) is TransportError
        assert service.routes == ["POST /instances/start"]
        # "See other" is what a service says that has done it.
        assert error.outcome_unknown
        assert str(status) in str(error)
        assert "may have been started" in str(error)

    # The check depends on the location, and other code fetches the token.
    @grid(
        location=[
            "https://evil.test/v1/instances/",
            "//evil.test/v1/instances/",
            "http://api.test/v1/instances/",
            "https://api.test:8443/v1/instances/",
            "https://api.test.evil.test/",
            "https://sub.api.test/",
            "https://api.test@evil.test/",
            "https://user:word@api.test/v1/instances/",
            "https://evil.test\\@api.test/",
            "ftp://api.test/",
            "http://[",
        ],
        status=[302, 307, 308],
        which=["token", "list"],
        anyio_backend=BACKENDS,
    )
    async def test_nothing_is_sent_to_another_origin(
        self, service: Service, status: int, location: str, which: str
    ) -> None:
        redirect = Answer(status=status, headers={"Location": location})
        service.on(*(("POST", "/oauth2/token") if which == "token" else ("GET", "/instances/")), redirect)
        async with service.client() as client:
            with pytest.raises(TransportError, match="redirected") as caught:
                await client.instances.list()
        assert {(each.url.scheme, each.url.host, each.url.port) for each in service.requests} == {
            ("https", "api.test", None)
        }
        assert len(service.requests) == (1 if which == "token" else 2)
        assert caught.value.attempts == 1
        assert "api_base_url" in str(caught.value)
        assert not caught.value.outcome_unknown

    @grid(
        strength=1,
        location=[
            "https://xn--a/",
            "https://xn--zz--/",
            "https://[::1",
            "https://api.test:port/",
            "javascript:alert(1)",
            "data:,x",
        ],
        status=[302, 307],
        anyio_backend=BACKENDS,
    )
    async def test_an_address_that_is_none(self, service: Service, status: int, location: str) -> None:
        # httpx reads it although it is told not to follow, and trips in more than one way.
        error = await list_error(service, Answer(status=status, headers={"Location": location}))
        assert type(error) is TransportError
        assert not error.outcome_unknown
        error = await start_error(service, Answer(status=status, headers={"Location": location}))
        assert type(error) is TransportError
        assert error.outcome_unknown
        assert service.routes.count("POST /instances/start") == 1

    @on_one_backend
    @given(
        location=st.text(max_size=30) | st.from_regex(r"(https?:)?//[a-z0-9.@:\\\[\]%-]*/?", fullmatch=True)
    )
    @example(location="https://xn--\u0080/")
    @settings(max_examples=60, derandomize=True)
    async def test_whatever_the_location_says(self, location: str) -> None:
        service = Service()

        async def redirect(request: httpx.Request) -> httpx.Response:
            return httpx.Response(307, headers=[(b"location", location.encode())])

        service.on("GET", "/instances/", redirect)
        service.on("POST", "/oauth2/token", redirect)
        async with service.client(max_retries=0) as client:
            for call in (client.models.list, client.instances.list):
                with pytest.raises(RequestError):
                    await call()
        assert all(each.url.host == "api.test" and each.url.scheme == "https" for each in service.requests)
        assert all(not each.url.userinfo for each in service.requests)

    @alternating("to", ["/v1/instances/", "https://api.test/v1/instances/"])
    async def test_a_loop_ends(self, service: Service, to: str) -> None:
        error = await list_error(service, Answer(status=307, headers={"Location": to}), max_retries=5)
        assert type(error) is TransportError
        assert len(service.routes) <= 5

    async def test_a_second_hop_is_checked_too(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(status=307, headers={"Location": "/v1/next"}))
        service.on("GET", "/next", Answer(status=307, headers={"Location": "https://evil.test/"}))
        async with service.client() as client:
            with pytest.raises(TransportError):
                await client.instances.list()
        assert {each.url.host for each in service.requests} == {"api.test"}


class TestHeaders:
    async def test_what_every_request_carries(self, service: Service) -> None:
        service.on("GET", "/models/", Answer(json={"models": []}))
        async with service.client(default_headers={"X-Team": "blue"}) as client:
            await client.instances.list()
            await client.models.list()
        assert len(service.requests) == 3
        for request in service.requests:
            assert request.headers["x-team"] == "blue"
            assert request.headers["accept"] == "application/json"
            assert request.headers["user-agent"].startswith("cortecs-async/")

    @alternating("name", ["User-Agent", "user-agent", "USER-AGENT"])
    async def test_a_user_agent_of_the_callers(self, service: Service, name: str) -> None:
        async with service.client(default_headers={name: "mine/1"}) as client:
            await client.instances.list()
        assert service.requests[-1].headers.get_list("user-agent") == ["mine/1"]

    @alternating("name", ["Accept", "accept"])
    async def test_accept_stays_json(self, service: Service, name: str) -> None:
        async with service.client(default_headers={name: "text/html"}) as client:
            await client.instances.list()
        assert service.requests[-1].headers.get_list("accept") == ["application/json"]


class TestCallersClient:
    async def test_is_not_closed(self, service: Service) -> None:
        async with service.http_client() as http_client:
            async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http_client) as client:
                await client.instances.list()
            assert not http_client.is_closed
            assert (await http_client.get(f"{API}/instances/")).status_code == 200

    async def test_its_auth_is_not_used(self, service: Service) -> None:
        service.on("GET", "/models/", Answer(json={"models": []}))
        async with service.http_client(auth=("user", "word")) as http_client:
            async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http_client) as client:
                await client.instances.list()
                await client.models.list()
        sent = [each.headers.get("authorization") for each in service.requests]
        assert sent == [None, f"Bearer {TOKEN}", None]

    async def test_its_redirects_are_not_used(self, service: Service) -> None:
        service.on("GET", "/instances/", Answer(status=302, headers={"Location": "https://evil.test/"}))
        async with service.http_client(follow_redirects=True) as http_client:
            async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http_client) as client:
                with pytest.raises(TransportError):
                    await client.instances.list()
        assert {each.url.host for each in service.requests} == {"api.test"}

    async def test_its_timeout_and_base_url_are_not_used(self, service: Service) -> None:
        async with service.http_client(timeout=0.001, base_url="https://other.test/x") as http_client:
            async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http_client) as client:
                await client.instances.list()
        assert service.requests[-1].url == f"{API}/instances/"
        assert service.requests[-1].extensions["timeout"]["read"] is None

    async def test_once_closed_by_the_caller_says_so(self, service: Service) -> None:
        http_client = service.http_client()
        await http_client.aclose()
        async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http_client) as client:
            with pytest.raises(ClientClosedError, match="http_client"):
                await client.instances.list()


class TestClosed:
    async def test_use_after_close(self, service: Service) -> None:
        async with service.client() as client:
            pass
        for call in (
            client.instances.list,
            client.models.list,
            client.user.balance,
            client.hardware_types.list,
        ):
            with pytest.raises(ClientClosedError, match="closed"):
                await call()
        assert service.requests == []

    async def test_closing_twice_is_closing(self, service: Service) -> None:
        async with service.client() as client:
            await client.aclose()
            await client.aclose()

    @respx.mock
    async def test_between_two_attempts(self) -> None:
        # The client's own pool is gone then, and the message must not blame one of the caller's.
        respx.get(f"{API}/models/").mock(return_value=httpx.Response(500))
        client = AsyncCortecs(api_base_url=API, retry_policy=RetryPolicy(initial_backoff=5.0))
        caught: list[Exception] = []

        async def call() -> None:
            try:
                await client.models.list()
            except ClientClosedError as error:
                caught.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(0.001)
            await client.aclose()
        (error,) = caught
        assert "This AsyncCortecs is closed" in str(error)


class TestHeld:
    """What a lease needs: its release goes out even after the client was closed."""

    @respx.mock(base_url=API)
    async def test_the_pool_stays_open_for_who_holds_it(self, respx_mock: respx.MockRouter) -> None:
        respx_mock.get("/models/").respond(json={"models": []})
        client = AsyncCortecs(api_base_url=API)
        http, call = client._wiring.http, Call(method="GET", path="/models/", authenticated=False)
        http.hold()
        http.hold()
        await client.aclose()
        for _ in range(2):
            with pytest.raises(ClientClosedError):
                await client.models.list()
            assert (await http.request_for_lease(call)).data == {"models": []}
            await http.release()
        assert [pool.client.is_closed for pool in http._transport.connections.pools] == [True]
        with pytest.raises(ClientClosedError):
            await http.request_for_lease(call)

    async def test_an_answer_is_told_although_its_caller_was_cancelled(self, service: Service) -> None:
        service.on(*START, Answer(json={"any": "thing"}, delay=5.0))
        witness = Witness()
        async with service.client() as client:
            call = Call(method=START[0], path=START[1], witness=witness)
            with anyio.move_on_after(1.0) as scope:
                await client._wiring.http.request(call)
                await anyio.lowlevel.checkpoint()
                raise AssertionError("not cancelled")
        assert scope.cancelled_caught
        assert [type(each) for each in witness.told] == [str, Reply]
        assert witness.told[1].data == {"any": "thing"}

    async def test_answers_of_429_leave_the_retries_to_what_fails_after_them(self, service: Service) -> None:
        busy, broken = Answer(status=429), Answer(status=502)
        service.on("GET", "/instances/", busy, busy, busy, busy, broken, busy, broken, EMPTY_LIST)
        async with service.client(max_retries=2) as client:
            assert await client.instances.list() == ()
        error = await list_error(service, busy, busy, broken, broken, broken, EMPTY_LIST, max_retries=2)
        assert isinstance(error, ServerError)

    async def test_every_attempt_is_told(self, service: Service) -> None:
        service.on(*START, Answer(status=429), Answer(status=400))
        witness = Witness()
        async with service.client() as client:
            with pytest.raises(errors.BadRequestError):
                await client._wiring.http.request(Call(method=START[0], path=START[1], witness=witness))
        assert [getattr(each, "status", each) for each in witness.told] == ["sending", 429, "sending", 400]


class Witness:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def sending(self, _: DetachedTask[Reply | Failure], /) -> bool:
        self.told.append("sending")
        return False

    def settled(self, outcome: Reply | Failure) -> None:
        self.told.append(outcome)


class TestOwnPool:
    """The client's own httpx client, with respx in the place of the network."""

    @respx.mock(base_url=API)
    async def test_a_request_from_end_to_end(self, respx_mock: respx.MockRouter) -> None:
        exchange = respx_mock.post(
            "/oauth2/token",
            json={"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": SECRET},
        ).respond(json={"access_token": TOKEN, "expires_in": 3600})
        listing = respx_mock.get("/instances/", headers={"Authorization": f"Bearer {TOKEN}"}).respond(
            json={"instances": [instance()]}
        )
        async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=f"{API}/") as client:
            (found,) = await client.instances.list()
            await client.instances.list()
        assert found.instance_id == "instance-1"
        assert exchange.call_count == 1
        assert listing.call_count == 2

    @respx.mock(base_url=API)
    async def test_a_dropped_connection(self, respx_mock: respx.MockRouter) -> None:
        respx_mock.post("/oauth2/token").respond(json={"access_token": TOKEN, "expires_in": 3600})
        start = respx_mock.post("/instances/start").mock(side_effect=httpx.RemoteProtocolError)
        async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API) as client:
            with pytest.raises(TransportError) as caught:
                await client.instances.start("a/b")
        assert caught.value.outcome_unknown
        assert start.call_count == 1

    @alternating(
        "url,is_used", [("http://127.0.0.1:9/v1", False), ("https://localhost:9/v1", False), (API, True)]
    )
    async def test_a_proxy_of_the_environment_does_not_see_loopback(
        self, *, monkeypatch: pytest.MonkeyPatch, url: str, is_used: bool
    ) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://proxy.test:3128")
        async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=url) as client:
            assert (client._settings.proxy is not None) is is_used
            http = client._wiring.http._transport.connections.pools[0].client
            assert not http._trust_env
            assert isinstance(http._transport, httpx.AsyncHTTPTransport)
            assert isinstance(http._transport._pool, httpcore.AsyncHTTPProxy) is is_used


class TestPlainHTTP:
    def test_is_refused_before_anything_is_sent(self, service: Service) -> None:
        with pytest.raises(ConfigurationError, match="unencrypted"):
            AsyncCortecs(
                CLIENT_ID, SECRET, api_base_url="http://api.test/v1", http_client=service.http_client()
            )
        assert service.requests == []

    async def test_unless_the_caller_insists(self, service: Service) -> None:
        async with service.client(api_base_url="http://api.test/v1", allow_insecure_http=True) as client:
            assert await client.instances.list() == ()
        assert service.requests[0].url.scheme == "http"

    async def test_from_the_environment_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORTECS_API_BASE_URL", "http://api.test/v1")
        with pytest.raises(ConfigurationError, match="unencrypted"):
            AsyncCortecs(CLIENT_ID, SECRET)


async def test_the_jitter_can_be_seeded(service: Service) -> None:
    pauses = []
    for _ in range(2):
        service.on("GET", "/models/", Answer(status=500), Answer(json={"models": []}))
        async with service.client() as client:
            http = HTTP(
                client._settings,
                http_client=client._wiring.http._transport.connections.pools[0].client,
                rng=random.Random(4),
            )
            await http.request(Call(method="GET", path="/models/", authenticated=False))
        pauses.append(service.times[-1] - service.times[-2])
    assert pauses[0] == pytest.approx(pauses[1])
    assert pauses[0] > 0


@on_one_backend
@given(
    outcomes=st.lists(
        st.sampled_from(
            [
                Answer(status=500),
                Answer(status=503),
                Answer(status=408),
                *(Answer(status=each, json={"error": "x"}) for each in (408, 500, 502, 503, 504)),
                Answer(status=429),
                Answer(status=400),
                Answer(status=401),
                Answer(status=302, headers={"Location": "/v1/x"}),
                Answer(status=202, content=b"<"),
                Answer(status=202),
                Answer(failure=httpx.ReadError),
                Answer(failure=httpx.ReadTimeout),
                Answer(failure=httpx.ConnectError),
                Answer(delay=100.0),
                ok("instance-1", "pending"),
            ]
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=100, derandomize=True)
async def test_a_start_is_sent_once_more_only_after_a_sure_refusal(outcomes: list[Answer]) -> None:
    service = Service()
    service.on(*START, *outcomes)
    async with service.client(max_retries=8) as client:
        try:
            await client.instances.start("a/b")
            error = None
        except RequestError as caught:
            error = caught
    starts = service.routes.count("POST /instances/start")  # a rejection is followed by a list of the models
    sent = [outcomes[min(step, len(outcomes) - 1)] for step in range(starts)]
    sure = [
        each.status in {400, 401, 429}
        or (each.status in {408, 502, 503} and each.json is not None)
        or each.failure is httpx.ConnectError
        for each in sent
    ]
    # All but the last did nothing for sure; and the error says rightly whether the last did.
    assert all(sure[:-1])
    assert 503 not in [each.status for each in sent[:-1]]
    if error is not None:
        assert error.outcome_unknown is not sure[-1]
        assert isinstance(error, ServerError) <= (sent[-1].status >= 500)
