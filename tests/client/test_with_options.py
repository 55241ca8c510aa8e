"""Test `with_options` and `request`: options for single calls, and unchanged responses."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from _grids import BACKENDS, alternating, grid
from _scripted import Answer, Service, ok
from _world import MODEL, World

from cortecs_async import RetryPolicy, errors
from cortecs_async.emulator import Fault

ONE = "/instances/instance-1"


@pytest.fixture
def service() -> Service:
    service = Service()
    service.on("GET", ONE, ok())
    return service


def sent(service: Service) -> list[httpx.Request]:
    """Return the requests without those for a token."""
    return [each for each in service.requests if not each.url.path.endswith("/token")]


class TestOptions:
    async def test_a_time_out_for_one_call(self, service: Service) -> None:
        service.on("GET", ONE, Answer(delay=50.0))
        async with service.client(timeout=30.0, max_retries=0) as client:
            began = anyio.current_time()
            with pytest.raises(errors.RequestTimeoutError, match="within 2 s"):
                await client.with_options(timeout=2).instances.get("instance-1")
            assert anyio.current_time() - began == pytest.approx(2)
            with pytest.raises(errors.RequestTimeoutError, match="within 30 s"):
                await client.instances.get("instance-1")

    @alternating("options", [{"max_retries": 0}, {"retry_policy": RetryPolicy(max_retries=0)}])
    async def test_retries_for_one_call(self, service: Service, options: Any) -> None:
        service.on("GET", ONE, Answer(status=500))
        async with service.client(max_retries=2) as client:
            with pytest.raises(errors.ServerError):
                await client.with_options(**options).instances.get("instance-1")
            assert len(sent(service)) == 1
            with pytest.raises(errors.ServerError):
                await client.instances.get("instance-1")
            assert len(sent(service)) == 1 + 3

    async def test_retries_of_which_only_the_number_is_another(self, service: Service) -> None:
        service.on("GET", ONE, Answer(status=500))
        policy = RetryPolicy(max_retries=9, initial_backoff=0.0, max_backoff=0.0)
        async with service.client(retry_policy=policy) as client:
            began = anyio.current_time()
            with pytest.raises(errors.ServerError):
                await client.with_options(max_retries=3).instances.get("instance-1")
            assert (len(sent(service)), anyio.current_time()) == (4, began)

    async def test_headers_come_on_top_and_in_place_of_the_clients(self, service: Service) -> None:
        async with service.client(default_headers={"X-Team": "a", "X-Kept": "k"}) as client:
            calls = client.with_options(headers={"x-team": "b", "X-Trace": "t"})
            for each in (client, calls, client, calls):
                await each.instances.get("instance-1")
        shown = [
            [request.headers.get_list(name) for name in ("X-Team", "X-Kept", "X-Trace")]
            for request in sent(service)
        ]
        assert shown == [[["a"], ["k"], []], [["b"], ["k"], ["t"]]] * 2
        assert {request.headers["authorization"] for request in sent(service)} == {
            sent(service)[0].headers["authorization"]
        }

    async def test_what_is_left_out_is_the_clients(self, service: Service) -> None:
        service.on("GET", ONE, Answer(delay=50.0))
        async with service.client(timeout=7.0, max_retries=0, default_headers={"X-Team": "a"}) as client:
            with pytest.raises(errors.RequestTimeoutError, match="within 7 s"):
                await client.with_options().instances.get("instance-1")
        assert [each.headers["x-team"] for each in sent(service)] == ["a"]

    async def test_token_and_connections_are_shared(self, service: Service) -> None:
        async with service.client() as client:
            for number in range(5):
                await client.with_options(headers={"X-Number": str(number)}).instances.get("instance-1")
        assert service.token_requests == 1
        with pytest.raises(errors.ClientClosedError):
            await client.with_options().instances.get("instance-1")

    async def test_every_resource_has_them(self, world: World) -> None:
        async with world() as (_, client):
            calls = client.with_options(timeout=5)
            assert [each.model_id for each in await calls.models.list()]
            assert await calls.hardware_types.list() == await client.hardware_types.list()
            assert await calls.user.balance() == await client.user.balance()
            started = await calls.instances.start(MODEL)
            # The wait is the client's one poller.
            running = await calls.instances.wait_until_running(started.instance_id)
            assert running.base_url
            await calls.instances.stop(started.instance_id)
            await calls.instances.delete(started.instance_id)
            assert await calls.instances.list() == ()

    async def test_a_start_beside_the_lost_start_of_a_lease_is_not_adopted(self, world: World) -> None:
        async with world() as (emu, client):
            emu.add_fault(Fault("drop", route="start", when="before", times=1))
            emu.add_fault(Fault("delay", route="start", when="before", seconds=3.0, times=1))
            other: list[str] = []

            async def start_one() -> None:
                await anyio.sleep(1)
                other.append((await client.with_options(timeout=60).instances.start(MODEL)).instance_id)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(start_one)
                async with client.instance(MODEL) as inst:
                    assert other
                    assert inst.instance_id not in other
            assert emu.existing == tuple(other)

    @alternating(
        "options,complaint",
        [
            ({"timeout": 0}, "timeout must be a duration of at least"),
            ({"timeout": "5x"}, 'timeout "5x" is invalid'),
            ({"max_retries": -1}, "max_retries"),
            ({"headers": {"Authorization": "x"}}, "headers cannot set Authorization"),
            ({"headers": {"X-A": "two\nlines"}}, "headers: the value of 'X-A'"),
            ({"headers": {"X A": "x"}}, "headers: 'X A'"),
            ({"headers": {1: "x"}}, "headers must be a mapping"),
        ],
    )
    async def test_what_cannot_be_is_told_at_once(
        self, service: Service, options: Any, complaint: str
    ) -> None:
        async with service.client() as client:
            with pytest.raises(errors.ConfigurationError, match=complaint):
                client.with_options(**options)
        assert service.requests == []


class TestLastResponse:
    async def test_the_answer_of_a_call_as_it_came(self, service: Service) -> None:
        answer = ok(brand_new="field")
        answer.headers = {"X-Request-ID": "r-1"}
        service.on("GET", ONE, Answer(status=500), answer)
        async with service.client() as client:
            calls = client.with_options()
            assert calls.last_response is None
            instance = await calls.instances.get("instance-1")
            response = calls.last_response
            assert response is not None
            assert (response.status, response.request_id, response.attempts) == (200, "r-1", 2)
            assert response.data["instance"]["brand_new"] == "field"
            assert response.headers["x-request-id"] == "r-1"
            assert instance.instance_id not in repr(response)

    async def test_it_is_the_newest(self, world: World) -> None:
        async with world() as (_, client):
            calls = client.with_options()
            await calls.models.list()
            first = calls.last_response
            await calls.user.balance()
            assert first is not None
            assert calls.last_response is not None
            assert calls.last_response.request_id != first.request_id
            assert set(calls.last_response.data) != set(first.data)
            assert client.with_options().last_response is None

    async def test_an_error_has_its_own(self, service: Service) -> None:
        service.on("GET", ONE, Answer(status=404, headers={"x-request-id": "r-2"}))
        async with service.client() as client:
            calls = client.with_options()
            with pytest.raises(errors.NotFoundError) as caught:
                await calls.instances.get("instance-1")
            assert caught.value.request_id == "r-2"
            assert calls.last_response is None


class TestRequest:
    async def test_what_has_no_method_here(self, service: Service) -> None:
        service.on("PUT", "/instances/instance-1/labels", Answer(status=201, json={"labels": ["a"]}))
        async with service.client(default_headers={"X-Team": "a"}) as client:
            response = await client.request(
                "PUT", "/instances/instance-1/labels", json={"labels": ["a"]}, params={"dry": "no"}
            )
        assert (response.status, response.data, response.request_id) == (201, {"labels": ["a"]}, None)
        [request] = sent(service)
        assert (request.content, request.url.query) == (b'{"labels":["a"]}', b"dry=no")
        assert request.headers["authorization"].startswith("Bearer ")
        assert request.headers["x-team"] == "a"

    async def test_with_options_too(self, service: Service) -> None:
        service.on("DELETE", "/things/1", Answer(status=204))
        async with service.client() as client:
            calls = client.with_options(headers={"X-Trace": "t"})
            response = await calls.request("DELETE", "/things/1")
            assert calls.last_response == response
        assert (response.status, response.data) == (204, None)
        assert sent(service)[0].headers["x-trace"] == "t"

    @grid(
        strength=1,
        request_=[
            ("GET", "/things", True),
            ("PUT", "/things", True),
            ("DELETE", "/things", True),
            ("POST", "/instances/stop", True),
            # Nobody knows what it does: sent twice it may do it twice.
            ("POST", "/things", False),
            ("PATCH", "/things", False),
            ("PATCH", "/instances/stop", False),
        ],
        failure=[httpx.ReadError, None],
        anyio_backend=BACKENDS,
    )
    async def test_is_repeated_only_where_that_is_safe(
        self, service: Service, request_: tuple[Any, str, bool], failure: Any
    ) -> None:
        method, path, repeated = request_
        service.on(method, path, Answer(status=502, failure=failure), Answer(json={}))
        async with service.client() as client:
            if repeated:
                assert (await client.request(method, path)).attempts == 2
                return
            with pytest.raises(errors.RequestError) as caught:
                await client.request(method, path)
            assert caught.value.outcome_unknown
        assert len(sent(service)) == 1

    async def test_a_post_that_was_refused_for_now_is_repeated(self, service: Service) -> None:
        service.on("POST", "/things", Answer(status=429), Answer(failure=httpx.ConnectError), Answer(json={}))
        async with service.client() as client:
            assert (await client.request("POST", "/things")).attempts == 3

    @alternating(
        "arguments,complaint",
        [
            (("FETCH", "/things"), "method must be one of GET"),
            (("get", "/things"), "method must be one of GET"),
            (("GET", "things"), "below the API base URL"),
            (("GET", ""), "below the API base URL"),
            (("GET", "/"), "below the API base URL"),
            (("GET", "//evil.test/x"), "below the API base URL"),
            (("GET", "https://evil.test/x"), "below the API base URL"),
            (("GET", "/../admin"), "below the API base URL"),
            (("GET", "/instances/.."), "below the API base URL"),
            (("GET", "/instances/..."), "below the API base URL"),
            (("POST", "/instances/./start"), "below the API base URL"),
            (("POST", "/instances/start/."), "below the API base URL"),
            (("POST", "/./instances/start/"), "below the API base URL"),
            (("GET", "/a/%2e%2e/b"), "below the API base URL"),
            (("GET", "/a?b=c"), "pass a query as params="),
            (("GET", "/a#b"), "below the API base URL"),
            (("GET", "/a\n"), "below the API base URL"),
            (("GET", None), "below the API base URL"),
            (("POST", "/instances/start"), r"client\.instances\.start"),
            (("POST", "/Instances/START/"), r"client\.instances\.start"),
        ],
    )
    async def test_bad_arguments(self, service: Service, arguments: Any, complaint: str) -> None:
        async with service.client() as client:
            for each in (client, client.with_options()):
                with pytest.raises(errors.InvalidArgumentError, match=complaint):
                    await each.request(*arguments)
        assert service.requests == []

    @alternating(
        "options",
        [
            {"json": {"a": {1}}},
            {"json": {"a": float("nan")}},
            {"json": {"a": "\ud800"}},
            {"json": ["a"]},
            {"params": {"a": 1}},
            {"params": {1: "a"}},
            {"params": "a=1"},
            {"params": [("a", "1")]},
        ],
        ids=ascii,
    )
    async def test_what_cannot_be_sent(self, service: Service, options: Any) -> None:
        async with service.client() as client:
            with pytest.raises(errors.InvalidArgumentError, match="must be"):
                await client.request("POST", "/things", **options)
        assert service.requests == []
