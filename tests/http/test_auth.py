"""The access token: fetched once for any number of waiting callers, renewed in time, and once on a 401."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from _grids import alternating
from _scripted import CLIENT_ID, SECRET, Answer, Service, token
from hypothesis import given, settings
from hypothesis import strategies as st

from cortecs_async import AsyncCortecs, ConfigurationError, Credentials, RetryPolicy, Secret
from cortecs_async._errors import AuthenticationError, BadRequestError, DecodeError, RequestError, ServerError
from cortecs_async._http.auth import Token, TokenSource, renewal_time

EMPTY_LIST = Answer(json={"instances": []})


@pytest.fixture
def service() -> Service:
    service = Service()
    service.on("GET", "/instances/", EMPTY_LIST)
    return service


def bearers(service: Service) -> list[str | None]:
    return [
        each.headers.get("authorization") for each in service.requests if each.url.path != "/v1/oauth2/token"
    ]


def only_for(*good: str) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """An answer that refuses every token but these."""

    async def answer(request: httpx.Request) -> httpx.Response:
        fits = request.headers["authorization"].removeprefix("Bearer ") in good
        return await (EMPTY_LIST if fits else Answer(status=401, json={"message": "token expired"}))(request)

    return answer


async def in_parallel(count: int, call: Callable[[], Awaitable[object]]) -> list[object]:
    """What each of so many concurrent calls came to, exceptions included."""
    outcomes: list[object] = []

    async def one() -> None:
        try:
            outcomes.append(await call())
        except Exception as error:  # noqa: BLE001
            outcomes.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return outcomes


async def test_the_exchange_is_a_json_body(service: Service) -> None:
    async with service.client() as client:
        await client.instances.list()
    request = service.requests[0]
    assert (request.method, request.url.path) == ("POST", "/v1/oauth2/token")
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers
    assert json.loads(request.content) == {
        "grant_type": "client_credentials",
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
    }


async def test_a_secret_of_any_text_arrives_as_it_is(service: Service) -> None:
    odd = 'ä"\\/\u2028 \0&=%'
    async with service.client(client_secret=f"{odd}\r\n") as client:
        await client.instances.list()
    assert json.loads(service.requests[0].content)["client_secret"] == odd


async def test_one_fetch_serves_a_hundred_callers(service: Service) -> None:
    service.on("POST", "/oauth2/token", token(delay=1.0))
    async with service.client() as client:
        outcomes = await in_parallel(100, client.instances.list)
        assert outcomes == [()] * 100
        assert service.token_requests == 1
        await client.instances.list()
        assert service.token_requests == 1
    assert set(bearers(service)) == {"Bearer t0ken-of-the-service"}


async def test_one_fetch_serves_all_even_when_its_token_is_due_at_once(service: Service) -> None:
    service.on("POST", "/oauth2/token", token(expires_in=1e-9, delay=1.0))
    async with service.client() as client:
        assert await in_parallel(100, client.instances.list) == [()] * 100
    assert service.token_requests == 1


async def test_a_cancelled_leader_hands_over(service: Service) -> None:
    service.on("POST", "/oauth2/token", token("first", delay=10.0), token("second", delay=1.0))
    outcomes: list[object] = []

    async def follower(client: AsyncCortecs) -> None:
        outcomes.append(await client.instances.list())

    async with service.client() as client:
        async with anyio.create_task_group() as tasks:
            leader = anyio.CancelScope()

            async def lead() -> None:
                with leader:
                    await client.instances.list()
                    outcomes.append("the leader was not cancelled")

            tasks.start_soon(lead)
            await anyio.sleep(1.0)
            for _ in range(20):
                tasks.start_soon(follower, client)
            await anyio.sleep(1.0)
            leader.cancel()
    assert outcomes == [()] * 20
    assert service.token_requests == 2
    assert set(bearers(service)) == {"Bearer second"}


async def test_a_cancelled_follower_changes_nothing(service: Service) -> None:
    service.on("POST", "/oauth2/token", token(delay=2.5))
    async with service.client() as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.instances.list)
            await anyio.sleep(0.5)
            with anyio.move_on_after(1.0) as scope:
                await client.instances.list()
            assert scope.cancelled_caught
    assert service.token_requests == 1
    assert len(bearers(service)) == 1


async def test_a_failure_is_shared_by_all_who_waited_and_by_no_one_after(service: Service) -> None:
    service.on(
        "POST", "/oauth2/token", Answer(status=401, json={"error": "invalid_client"}, delay=1.0), token()
    )
    async with service.client() as client:
        outcomes = await in_parallel(100, client.instances.list)
        assert service.token_requests == 1
        errors = [each for each in outcomes if isinstance(each, AuthenticationError)]
        assert len(errors) == 100
        # Everyone has an object of his own: a traceback and notes would pile up on a shared one.
        assert len({id(error) for error in errors}) == 100
        assert len({str(error) for error in errors}) == 1
        assert errors[0].path == "/oauth2/token"
        assert "invalid_client" in errors[0].body
        assert await client.instances.list() == ()
    assert service.token_requests == 2


@alternating("status", [400, 401, 403])
async def test_a_wrong_secret_points_at_the_credentials(service: Service, status: int) -> None:
    service.on("POST", "/oauth2/token", Answer(status=status, json={"error": "invalid_client"}))
    async with service.client() as client:
        with pytest.raises(RequestError) as caught:
            await client.instances.list()
    message = str(caught.value)
    assert "POST /oauth2/token" in message
    assert str(status) in message
    assert "CORTECS_CLIENT_SECRET" in message
    assert "model id" not in message
    assert service.token_requests == 1


@alternating("failure", [httpx.ReadError, httpx.ReadTimeout])
async def test_a_start_without_a_token_has_started_nothing_for_sure(
    service: Service, failure: type[httpx.TransportError]
) -> None:
    # Whoever catches it decides by `outcome_unknown` whether to look for an instance.
    service.on("POST", "/oauth2/token", Answer(failure=failure))
    async with service.client(max_retries=1) as client:
        with pytest.raises(RequestError) as caught:
            await client.instances.start("a/b")
    assert caught.value.path == "/oauth2/token"
    assert not caught.value.outcome_unknown
    assert service.routes == []


class TestRenewal:
    @pytest.mark.parametrize(
        ("expires_in", "renew_at"), [(3600.0, 3540.0), (600.0, 540.0), (100.0, 90.0), (10.0, 9.0), (0.0, 0.0)]
    )
    def test_a_tenth_before_the_end_at_most_a_minute(self, expires_in: float, renew_at: float) -> None:
        assert renewal_time(1000.0, expires_in) == pytest.approx(1000.0 + renew_at)

    @given(st.floats(0, 1e9), st.floats(0, 1e9))
    @settings(max_examples=50, derandomize=True)
    def test_never_after_it_expires(self, now: float, expires_in: float) -> None:
        assert now <= renewal_time(now, expires_in) <= now + expires_in

    async def test_before_it_expires(self, service: Service) -> None:
        service.on("POST", "/oauth2/token", token("first", 3600), token("second", 3600))
        async with service.client() as client:
            await client.instances.list()
            await anyio.sleep(3539.0)
            await client.instances.list()
            assert service.token_requests == 1
            await anyio.sleep(2.0)
            await client.instances.list()
        assert service.token_requests == 2
        assert bearers(service) == ["Bearer first", "Bearer first", "Bearer second"]

    async def test_its_life_counts_from_when_it_was_asked_for(self, service: Service) -> None:
        # An answer that took 2 s brings a token that is 2 s old, for all that is known.
        service.on("POST", "/oauth2/token", token("first", 100, delay=2.0), token("second", 100))
        async with service.client() as client:
            await client.instances.list()
            await anyio.sleep(87.0)
            await client.instances.list()
            await anyio.sleep(2.0)
            await client.instances.list()
        assert bearers(service) == ["Bearer first", "Bearer first", "Bearer second"]

    @alternating(
        "odd",
        [None, "3600", "soon", [], float("nan"), float("inf"), -5, 0, 10**400, True],
        ids=lambda value: repr(value)[:8],
    )
    async def test_an_odd_lifetime_does_no_harm(self, service: Service, odd: Any) -> None:
        service.on("POST", "/oauth2/token", token(expires_in=odd))
        async with service.client() as client:
            assert await client.instances.list() == ()
            assert await client.instances.list() == ()

    async def test_no_lifetime_is_the_documented_hour(self, service: Service) -> None:
        service.on("POST", "/oauth2/token", Answer(json={"access_token": "t"}))
        async with service.client() as client:
            await client.instances.list()
            await anyio.sleep(3500.0)
            await client.instances.list()
            assert service.token_requests == 1
            await anyio.sleep(100.0)
            await client.instances.list()
            assert service.token_requests == 2


class TestRefusedToken:
    async def test_is_renewed_and_the_request_repeated(self, service: Service) -> None:
        service.on("POST", "/oauth2/token", token("old"), token("new"))
        service.on("GET", "/instances/", only_for("new"))
        async with service.client() as client:
            assert await client.instances.list() == ()
        assert service.token_requests == 2
        assert bearers(service) == ["Bearer old", "Bearer new"]

    async def test_is_renewed_once_for_many(self, service: Service) -> None:
        service.on("POST", "/oauth2/token", token("old"), token("new", delay=0.5))
        service.on("GET", "/instances/", EMPTY_LIST)
        async with service.client() as client:
            await client.instances.list()
            service.on("GET", "/instances/", only_for("new"))
            assert await in_parallel(100, client.instances.list) == [()] * 100
        assert service.token_requests == 2

    async def test_is_not_renewed_again_for_one_who_hears_of_it_late(self, service: Service) -> None:
        async def slow_refusal(request: httpx.Request) -> httpx.Response:
            await anyio.sleep(5.0)
            return await only_for("new")(request)

        service.on("POST", "/oauth2/token", token("old"), token("new"), token("too many"))
        service.on("GET", "/instances/", only_for("new"))
        service.on("GET", "/user/balance", slow_refusal)
        async with service.client() as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(in_parallel, 1, client.user.balance)
                await anyio.sleep(1.0)
                await client.instances.list()
        assert service.token_requests == 2

    @alternating("max_retries", [0, 5])
    async def test_twice_is_an_error(self, service: Service, max_retries: int) -> None:
        service.on("GET", "/instances/", Answer(status=401, json={"message": "no"}))
        async with service.client(max_retries=max_retries) as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.instances.list()
        assert len(service.routes) == 2
        assert service.token_requests == 2
        assert caught.value.attempts == 2
        assert caught.value.path == "/instances/"
        assert not caught.value.outcome_unknown

    async def test_a_start_is_repeated_too(self, service: Service) -> None:
        # A 401 is a refusal: nothing was started.
        service.on("POST", "/oauth2/token", token("old"), token("new"))
        service.on(
            "POST", "/instances/start", Answer(status=401), Answer(status=402, json={"message": "empty"})
        )
        async with service.client() as client:
            with pytest.raises(RequestError) as caught:
                await client.instances.start("a/b")
        assert service.routes == ["POST /instances/start"] * 2
        assert not caught.value.outcome_unknown

    async def test_a_refused_request_without_a_token_is_not_repeated(self, service: Service) -> None:
        service.on("GET", "/models/", Answer(status=401))
        async with service.client() as client:
            with pytest.raises(AuthenticationError):
                await client.models.list()
        assert service.routes == ["GET /models/"]
        assert service.token_requests == 0


class TestProvider:
    async def test_is_asked_at_every_fetch_so_that_secrets_can_rotate(self, service: Service) -> None:
        asked = 0

        async def provide() -> Credentials:
            nonlocal asked
            await anyio.sleep(0.1)
            asked += 1
            return Credentials(client_id=f"id-{asked}", client_secret=f"secret-{asked}")

        service.on("GET", "/instances/", Answer(status=401), EMPTY_LIST)
        async with service.client(credential_provider=provide) as client:
            assert await client.instances.list() == ()
        bodies = [json.loads(each.content) for each in service.requests if each.url.path.endswith("token")]
        assert [(each["client_id"], each["client_secret"]) for each in bodies] == [
            ("id-1", "secret-1"),
            ("id-2", "secret-2"),
        ]

    async def test_is_asked_once_for_many(self, service: Service) -> None:
        asked = 0

        async def provide() -> Credentials:
            nonlocal asked
            asked += 1
            await anyio.sleep(1.0)
            return Credentials(client_id="a", client_secret="b")

        async with service.client(credential_provider=provide) as client:
            assert await in_parallel(100, client.instances.list) == [()] * 100
        assert asked == 1

    async def test_its_exception_reaches_all_who_waited_and_the_next_try_is_new(
        self, service: Service
    ) -> None:
        class VaultError(Exception):
            pass

        trouble: list[Exception] = [VaultError("sealed")]

        async def provide() -> Credentials:
            await anyio.sleep(1.0)
            if trouble:
                raise trouble.pop()
            return Credentials(client_id="a", client_secret="b")

        async with service.client(credential_provider=provide) as client:
            outcomes = await in_parallel(50, client.instances.list)
            assert Counter(map(type, outcomes)) == {VaultError: 50}
            assert service.requests == []
            assert await client.instances.list() == ()

    @alternating(
        "odd",
        [None, ("id", "t0p-s3cret"), {"client_secret": "t0p-s3cret"}, "t0p-s3cret"],
        ids=lambda v: type(v).__name__,
    )
    async def test_that_gives_something_else_is_a_configuration_error(
        self, service: Service, odd: Any
    ) -> None:
        async def provide() -> Any:
            return odd

        async with service.client(credential_provider=provide) as client:
            with pytest.raises(ConfigurationError, match=r"Credentials.*" + type(odd).__name__) as caught:
                await client.instances.list()
        assert "t0p-s3cret" not in str(caught.value)
        assert service.requests == []

    @alternating(
        "credentials,named",
        [
            ({"client_id": "", "client_secret": "b"}, "client_id"),
            ({"client_id": "a", "client_secret": ""}, "client_secret"),
            ({"client_id": 5, "client_secret": "b"}, "client_id"),
            ({"client_id": "a", "client_secret": b"t0p-s3cret"}, "client_secret"),
            ({"client_id": "a", "client_secret": "t0p-s3cret\udcff"}, "client_secret"),
        ],
        ids=repr,
    )
    async def test_unusable_credentials_are_named(
        self, service: Service, credentials: dict[str, Any], named: str
    ) -> None:
        async def provide() -> Credentials:
            return Credentials(**credentials)

        async with service.client(credential_provider=provide) as client:
            with pytest.raises(ConfigurationError, match=named) as caught:
                await client.instances.list()
        assert "t0p-s3cret" not in str(caught.value)
        assert service.requests == []

    async def test_is_not_asked_where_no_token_is_needed(self, service: Service) -> None:
        async def provide() -> Credentials:
            raise AssertionError("asked")

        service.on("GET", "/models/", Answer(json={"models": []}))
        async with service.client(credential_provider=provide) as client:
            assert await client.models.list() == ()
            assert "authorization" not in service.requests[0].headers

    async def test_a_slow_one_does_not_send_a_start_that_nobody_waits_for(self, service: Service) -> None:
        async def provide() -> Credentials:
            await anyio.sleep(500.0)
            return Credentials(client_id="a", client_secret="b")

        async with service.client(credential_provider=provide) as client:
            with pytest.raises(TimeoutError) as caught:
                await client.instances.start("a/b")
        assert isinstance(caught.value, RequestError)
        assert not caught.value.outcome_unknown
        assert caught.value.attempts == 0
        assert service.routes == []


class TestExchangeTrouble:
    @alternating(
        "answer",
        [Answer(status=503), Answer(status=429), Answer(failure=httpx.ReadError), Answer(content=b"<html>")],
        ids=lambda answer: f"{answer.status} {answer.failure}",
    )
    async def test_is_retried(self, service: Service, answer: Answer) -> None:
        service.on("POST", "/oauth2/token", answer, answer, token())
        async with service.client() as client:
            assert await client.instances.list() == ()
        assert service.token_requests == 3

    async def test_is_given_up_by_the_policy(self, service: Service) -> None:
        service.on("POST", "/oauth2/token", Answer(status=500))
        async with service.client(retry_policy=RetryPolicy(max_retries=2)) as client:
            with pytest.raises(ServerError) as caught:
                await client.instances.list()
        assert service.token_requests == caught.value.attempts == 3
        assert service.routes == []

    @alternating(
        "data",
        [
            None,
            [],
            {},
            {"access_token": None},
            {"access_token": ""},
            {"access_token": 5},
            {"token": "t"},
            "t",
        ],
        ids=repr,
    )
    async def test_an_answer_without_a_token(self, service: Service, data: Any) -> None:
        service.on("POST", "/oauth2/token", Answer(json=data))
        async with service.client() as client:
            with pytest.raises(DecodeError, match="access_token") as caught:
                await client.instances.start("a/b")
        assert not caught.value.outcome_unknown
        assert service.routes == []

    @alternating("bad", ["t0ken\r\nX-Evil: 1", "t0ken\n", "t0ken\0", "t0k en", "t0kén", "\ud800"], ids=ascii)
    async def test_a_token_that_no_header_can_carry(self, service: Service, bad: str) -> None:
        service.on("POST", "/oauth2/token", token(bad))
        async with service.client() as client:
            with pytest.raises(DecodeError, match="access_token") as caught:
                await client.instances.list()
        assert "t0k" not in str(caught.value)
        assert service.routes == []

    async def test_a_bad_request_after_a_lost_one_is_still_about_the_token(self, service: Service) -> None:
        service.on("POST", "/oauth2/token", Answer(failure=httpx.ReadError), Answer(status=400))
        async with service.client() as client:
            with pytest.raises(BadRequestError) as caught:
                await client.instances.stop("instance-1")
        assert caught.value.path == "/oauth2/token"
        assert service.routes == []


async def test_a_token_source_on_its_own() -> None:
    made: list[Token] = []

    async def provide() -> Credentials:
        return Credentials(client_id="a", client_secret="b")

    async def exchange(credentials: Credentials) -> Token:
        assert credentials.client_secret == Secret("b")
        made.append(Token(value=Secret(f"t{len(made)}"), renew_at=anyio.current_time() + 10.0))
        return made[-1]

    source = TokenSource(provide, exchange)
    first = await source.get()
    assert await source.get() is first
    source.invalidate(first)
    second = await source.get()
    assert second is not first
    source.invalidate(first)  # old news
    assert await source.get() is second
    await anyio.sleep(10.0)
    assert await source.get() is made[2]
    assert "t0" not in repr(first)
