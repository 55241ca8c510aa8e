"""The connections of a client: its own pools, one that is lent to it, and the faster transport."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import anyio.abc
import httpx
import pytest
import respx
from _scripted import API, CLIENT_ID, SECRET, TOKEN
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import AsyncCortecs, ConfigurationError, RetryPolicy, errors
from cortecs_async._http import connections as _connections
from cortecs_async._http import transport as _transport
from cortecs_async._http.exchange import HttpxExchange
from cortecs_async._http.messages import FailureKind
from cortecs_async._http.transport import Transport
from cortecs_async.emulator import Emulator, Fault, serve_emulator


def transport_of(client: AsyncCortecs) -> Transport:
    return client._wiring.http._transport


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
    """An emulator on real sockets and a client of it."""
    async with serve_emulator(step_seconds=0.0) as emu:
        defaults = {"guard": "off", "journal": "off", "api_base_url": emu.api_base_url}
        async with AsyncCortecs(emu.client_id, emu.client_secret, **{**defaults, **options}) as client:
            yield emu, client


class TestOwnPools:
    @pytest.mark.sockets
    async def test_requests_are_spread_over_small_pools_and_no_more_than_are_needed(self) -> None:
        async with served(max_connections=10) as (emu, client):
            await client.user.balance()
            assert len(transport_of(client).connections.pools) == 1
            # So that they are under way together.
            emu.add_fault(Fault("delay", route="balance", times=20, seconds=0.05))
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(client.user.balance)
            assert len(transport_of(client).connections.pools) == 8 / _connections._POOL_SIZE
            pools = transport_of(client).connections.pools
            assert [pool.busy for pool in pools] == [0] * len(pools)
            for _ in range(3):
                await client.user.balance()
            assert transport_of(client).connections.pools is pools
        assert all(pool.client.is_closed for pool in pools)

    async def test_a_pool_with_a_cancelled_request_takes_no_more_and_is_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If `task.cancel()` hits httpcore while it closes a response, it keeps the connection for good."""

        async def hang(*_: object) -> httpx.Response:
            await anyio.sleep_forever()
            raise AssertionError

        async def answer(*_: object) -> httpx.Response:
            return httpx.Response(200, json={"models": []})

        client = AsyncCortecs(CLIENT_ID, SECRET, guard="off", journal="off")
        connections = transport_of(client).connections
        (pool,) = connections.pools
        with monkeypatch.context() as patch:
            patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", hang)
            pool.busy += 1  # another request of the pool, which is not cancelled
            with anyio.move_on_after(1.0):
                await client.models.list()
        assert connections.pools == []
        monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)
        await client.models.list()
        assert pool not in connections.pools
        assert not pool.client.is_closed
        pool.busy -= 1
        await client.models.list()
        assert pool.client.is_closed
        await client.aclose()
        assert all(each.client.is_closed for each in connections.pools)

    async def test_no_more_than_max_connections_are_under_way(self, world: World) -> None:
        async with world(max_connections=10) as (emu, client):
            emu.add_fault(Fault("delay", route="balance", times=None, seconds=1.0))
            await client.instances.list()
            began = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for _ in range(80):
                    tasks.start_soon(client.user.balance)
            assert anyio.current_time() == pytest.approx(began + 10.0)

    async def test_the_wait_for_a_turn_is_not_taken_from_a_requests_own_time(self, world: World) -> None:
        async with world(max_connections=1, timeout=5.0) as (emu, client):
            await client.instances.list()
            emu.add_fault(Fault("delay", route="balance", times=None, seconds=4.0))
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(client.user.balance)
            assert anyio.current_time() > 100 * 4.0 - 1.0

    async def test_a_start_that_waits_for_its_turn_is_not_billed_yet(self, world: World) -> None:
        async with world(max_connections=1) as (emu, client):
            await client.instances.list()
            emu.add_fault(Fault("delay", route="balance", times=1, seconds=20.0))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.user.balance)
                await anyio.sleep(1.0)
                async with client.instance(MODEL, HARDWARE, max_lifetime=10.0) as inst:
                    assert inst.receipt.seconds < 10.0
        assert emu.existing == ()

    @pytest.mark.sockets
    async def test_pools_that_a_burst_left_behind_are_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_connections, "_IDLE_TIMEOUT", 0.0)
        async with served(max_connections=10) as (emu, client):
            emu.add_fault(Fault("delay", route="balance", times=8, seconds=0.1))
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(client.user.balance)
            pools = list(transport_of(client).connections.pools)
            assert len(pools) > 1
            for _ in pools:
                await client.user.balance()
            assert transport_of(client).connections.pools == pools[:1]
            assert [pool.client.is_closed for pool in pools] == [False] + [True] * (len(pools) - 1)

    @respx.mock(base_url=API)
    async def test_cookies_are_not_kept(self, respx_mock: respx.MockRouter) -> None:
        route = respx_mock.get("/models/").respond(json={"models": []}, headers={"Set-Cookie": "a=b"})
        async with AsyncCortecs(anonymous=True, api_base_url=API) as client:
            await client.models.list()
            await client.models.list()
        assert [call.request.headers.get("cookie") for call in route.calls] == [None, None]

    @respx.mock(base_url=API)
    async def test_what_httpx_sends_by_itself_is_still_sent(self, respx_mock: respx.MockRouter) -> None:
        respx_mock.post("/oauth2/token").respond(json={"access_token": TOKEN, "expires_in": 3600})
        route = respx_mock.get("/instances/").respond(json={"instances": []})
        async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API) as client:
            await client.instances.list()
            expected = httpx.AsyncClient().build_request("GET", f"{API}/instances/").headers
        sent = route.calls.last.request.headers
        assert set(sent) == {*expected, "authorization"}
        assert sent["accept-encoding"] == "gzip, deflate"
        assert sent["user-agent"] == _transport.USER_AGENT


class TestSurroundings:
    """What the environment says of certificates and proxies is wrong."""

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("SSL_CERT_FILE", "/nowhere/at/all.pem", "No such file or directory"),
            ("HTTPS_PROXY", "gopher://user:passw0rd@proxy.test", "has the scheme 'gopher'"),
            ("HTTPS_PROXY", "http://[::1", "is not a valid URL"),
        ],
    )
    def test_is_a_typed_error_before_anything_is_sent(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
    ) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=f"^{name} .*{problem}") as caught:
            AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API)
        assert "passw0rd" not in "".join(traceback.format_exception(caught.value))

    @respx.mock(base_url=API)
    async def test_later_it_does_not_count(
        self, respx_mock: respx.MockRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answer(_: httpx.Request) -> httpx.Response:
            await anyio.sleep(1.0)
            return httpx.Response(200, json={"models": []})

        respx_mock.get("/models/").mock(side_effect=answer)
        async with (
            AsyncCortecs(anonymous=True, api_base_url=API) as client,
            anyio.create_task_group() as tasks,
        ):
            monkeypatch.setenv("HTTPS_PROXY", "gopher://proxy.test")
            for _ in range(10):
                tasks.start_soon(client.models.list)
            await anyio.sleep(0.5)
            pools = transport_of(client).connections.pools
            assert [pool.busy for pool in pools] == [_connections._POOL_SIZE] * len(pools)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "10", None])
def test_a_bad_max_connections(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_connections"):
        AsyncCortecs(CLIENT_ID, SECRET, max_connections=value)


@pytest.mark.parametrize("value", ["requests", "", None, 1])
def test_a_transport_that_there_is_not(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="transport must be 'httpx' or 'aiohttp'"):
        AsyncCortecs(CLIENT_ID, SECRET, transport=value)


async def occupy(
    http: httpx.AsyncClient, connections: int, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    """Takes all connections of `http` with requests that get no answer, until it is cancelled."""
    arrived = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal arrived
        async with stream:
            await stream.receive()
            arrived += 1
            if arrived == connections:
                task_status.started()
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            for _ in range(connections):
                tasks.start_soon(http.get, f"http://127.0.0.1:{port}/")


async def test_only_the_callers_own_requests_wait_for_a_free_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`TestSharedClient` shows the same on real connections."""
    emulator = Emulator(clock=anyio.current_time, token_lifetime=60.0)
    is_full = False

    class Shared(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if is_full:
                raise httpx.PoolTimeout("no connection is free", request=request)
            return await emulator.transport().handle_async_request(request)

    def spare(_: object) -> HttpxExchange:
        transport = emulator.transport()
        return HttpxExchange(httpx.AsyncClient(transport=transport), transport)

    monkeypatch.setattr(_connections.Connections, "new_exchange", spare)
    options = {"guard": "off", "journal": "off", "max_retries": 0}
    async with (
        httpx.AsyncClient(transport=Shared()) as http,
        client_of(emulator, http_client=http, **options) as client,
    ):
        async with client.instance(MODEL, HARDWARE) as inst:
            is_full = True
            with pytest.raises(errors.TransportError, match="PoolTimeout"):
                await client.instances.list()
            assert (await client.instances.wait_until_running(inst.instance_id, timeout=5.0)).is_usable
            await anyio.sleep(120.0)  # past the token's lifetime: the release fetches another one
        assert emulator.existing == ()


@pytest.mark.sockets
class TestSharedClient:
    """A `http_client` whose connections the caller's own traffic has taken."""

    @pytest.fixture(autouse=True)
    def _hurry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_transport, "_URGENT_POOL_TIMEOUT", 0.05)

    @asynccontextmanager
    async def shared(self, **options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs, httpx.AsyncClient]]:
        limits = httpx.Limits(max_connections=2)
        async with httpx.AsyncClient(limits=limits, timeout=60.0) as http:
            async with served(http_client=http, **options) as (emu, client):
                yield emu, client, http

    async def test_a_lease_sees_and_releases_its_instance(self) -> None:
        async with self.shared() as (emu, client, http), anyio.create_task_group() as tasks:
            with anyio.fail_after(20):
                async with client.instance(MODEL, HARDWARE) as inst:
                    await tasks.start(occupy, http, 2)
                    seen = await client.instances.wait_until_running(inst.instance_id)
                    assert seen.is_usable
                assert emu.existing == ()
            spare = transport_of(client)._spare
            tasks.cancel_scope.cancel()
        assert spare is not None
        assert spare.client.is_closed

    async def test_what_was_acquired_is_released(self) -> None:
        async with self.shared() as (emu, client, http), anyio.create_task_group() as tasks:
            with anyio.fail_after(20):
                handle = await client.acquire(MODEL, HARDWARE)
                await tasks.start(occupy, http, 2)
                await client.release(handle)
            assert emu.existing == ()
            tasks.cancel_scope.cancel()

    async def test_a_start_is_known_not_to_have_been_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with (
            self.shared(timeout=10.0, max_retries=0) as (emu, client, http),
            anyio.create_task_group() as tasks,
        ):
            await client.instances.list()
            await tasks.start(occupy, http, 2)
            # Soon, and on a machine that is busy still long before the attempt is over.
            monkeypatch.setattr(_transport, "_CONNECT_SHARE", 0.01)
            with pytest.raises(errors.TransportError, match="PoolTimeout") as caught:
                await client.instances.start(MODEL, HARDWARE)
            assert not caught.value.outcome_unknown
            assert transport_of(client)._spare is None
            assert emu.ledger == ()
            tasks.cancel_scope.cancel()


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_shared_client_on_aiohttp_holds_up_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its time for a free connection has the connecting in it, and is called a ConnectTimeout.
    httpx_aiohttp = pytest.importorskip("httpx_aiohttp")
    monkeypatch.setattr(_transport, "_URGENT_POOL_TIMEOUT", 0.05)
    # None is kept: an idle one would do for the release.
    limits = httpx.Limits(max_connections=2, keepalive_expiry=0.001)
    async with (
        httpx_aiohttp.HttpxAiohttpClient(limits=limits, timeout=60.0) as http,
        served(http_client=http) as (emu, client),
        anyio.create_task_group() as tasks,
    ):
        with anyio.fail_after(20):
            async with client.instance(MODEL, HARDWARE):
                await tasks.start(occupy, http, 2)
        assert emu.existing == ()
        assert transport_of(client)._spare is not None
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("module", "kind"), [("httpx_aiohttp.transport", FailureKind.LOST), ("httpcore", FailureKind.NOT_SENT)]
)
def test_a_connect_error_of_aiohttp_is_believed_only_for_its_cause(module: str, kind: FailureKind) -> None:
    pytest.importorskip("httpx_aiohttp")
    namespace: dict[str, Any] = {"__name__": module, "httpx": httpx}
    exec("def fails(): raise httpx.ConnectTimeout('no cause')", namespace)  # noqa: S102
    with pytest.raises(httpx.ConnectTimeout) as caught:
        namespace["fails"]()
    assert _connections.kind_of(caught.value) is kind


class TestAiohttp:
    """`transport="aiohttp"`: the same client on another HTTP stack."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.mark.sockets
    async def test_a_lease_from_start_to_gone(self) -> None:
        pytest.importorskip("aiohttp")
        async with served(transport="aiohttp") as (emu, client):
            async with client.instance(MODEL, HARDWARE) as inst:
                assert inst.instance_id in emu.existing
            assert emu.existing == ()
            assert len(transport_of(client).connections.pools) == 1

    @pytest.mark.sockets
    async def test_a_bad_request_is_a_typed_error(self) -> None:
        pytest.importorskip("aiohttp")
        async with served(transport="aiohttp") as (_, client):
            with pytest.raises(errors.APIStatusError):
                await client.instances.get("instance-77")

    @pytest.mark.sockets
    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_start_whose_connection_breaks_is_not_sent_again(
        self, when: Literal["before", "after"]
    ) -> None:
        pytest.importorskip("aiohttp")
        async with served(transport="aiohttp") as (emu, client):
            emu.add_fault(Fault("drop", route="start", when=when))
            with pytest.raises(errors.TransportError) as caught:
                await client.instances.start(MODEL, HARDWARE)
            assert caught.value.outcome_unknown
            assert [each.route for each in emu.requests].count("start") == 1
            assert len(emu.ledger) == (when == "after")

    @pytest.mark.sockets
    async def test_an_answer_cut_in_its_middle_is_lost_not_refused(self) -> None:
        pytest.importorskip("aiohttp")
        async with served(transport="aiohttp") as (emu, client):
            emu.add_fault(Fault("truncate", route="start"))
            with pytest.raises(errors.TransportError) as caught:
                await client.instances.start(MODEL, HARDWARE)
            assert caught.value.outcome_unknown
            assert len(emu.ledger) == 1

    @pytest.mark.sockets
    async def test_a_lost_start_is_found_and_released(self) -> None:
        pytest.importorskip("aiohttp")
        retry = RetryPolicy(adoption_window=0.6)  # a sixth of it, in real time
        async with served(transport="aiohttp", retry_policy=retry) as (emu, client):
            emu.add_fault(Fault("drop", route="start", when="after"))
            async with client.instance(MODEL, HARDWARE):
                assert len(emu.existing) == 1
            assert emu.existing == ()
            assert len(emu.ledger) == 1

    @pytest.mark.sockets
    async def test_a_refused_connection_is_known_not_to_have_been_sent(self) -> None:
        pytest.importorskip("aiohttp")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        async with AsyncCortecs(
            CLIENT_ID, SECRET, api_base_url=url, transport="aiohttp", max_retries=0
        ) as client:
            with pytest.raises(
                errors.TransportError, match=r"Cannot reach http://127.0.0.1:\d+/v1 \(connection refused\)"
            ):
                await client.models.list()

    async def test_is_refused_beside_a_client_of_the_callers(self) -> None:
        async with httpx.AsyncClient() as http:
            with pytest.raises(ConfigurationError, match="not both"):
                AsyncCortecs(CLIENT_ID, SECRET, http_client=http, transport="aiohttp")

    def test_is_refused_at_once_where_it_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "aiohttp", None)
        with pytest.raises(ConfigurationError, match=r"pip install .*\[aiohttp\]"):
            AsyncCortecs(CLIENT_ID, SECRET, transport="aiohttp")


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_aiohttp_on_trio_is_refused_before_anything_is_sent() -> None:
    pytest.importorskip("aiohttp")
    async with AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, transport="aiohttp") as client:
        with pytest.raises(ConfigurationError, match="asyncio"):
            await client.models.list()
        with pytest.raises(ConfigurationError, match="asyncio"):
            async with client.instance(MODEL, HARDWARE):
                raise AssertionError("entered")
