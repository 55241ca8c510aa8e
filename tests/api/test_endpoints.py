"""Test every endpoint: its request, its result, and that no id reaches another route."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from _grids import BACKENDS, alternating, grid, on_one_backend
from _ids import ANY_TEXT, HOSTILE_IDS
from _scripted import CLIENT_ID, TOKEN, Answer, Service, instance, ok
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortecs_async import AsyncCortecs, InvalidArgumentError
from cortecs_async._api.catalog import Balance, HardwareConfig, HardwareType, Model
from cortecs_async._api.domain import AffectedInstances, InstanceArgs
from cortecs_async._api.matching import choose, with_defaults
from cortecs_async._api.wire import decode_instance
from cortecs_async._errors import (
    APIStatusError,
    BadRequestError,
    ConflictError,
    DecodeError,
    InstanceGoneError,
    NotFoundError,
    RequestError,
    TransportError,
)

LOST = Answer(failure=httpx.ReadError)
REFUSALS = [400, 404, 409]
ALL = Answer(json={"message": "done", "instance_ids": ["instance-1", "instance-2"]})

Call = Callable[[AsyncCortecs], Awaitable[Any]]


@pytest.fixture
def service() -> Service:
    return Service()


def body(request: httpx.Request) -> Any:
    return json.loads(request.content) if request.content else None


EACH: list[tuple[Call, Answer, str, Any]] = [
    (lambda c: c.instances.list(), Answer(json={"instances": [instance()]}), "GET /instances/", None),
    (lambda c: c.instances.get("instance-1"), ok(), "GET /instances/instance-1", None),
    (
        lambda c: c.instances.start(
            "a/b", "NVIDIA_H100_1", context_length=8192, num_workers=2, billing_interval="per_hour"
        ),
        ok(status="pending"),
        "POST /instances/start",
        {
            "model_id": "a--b",
            "hardware_type_id": "NVIDIA_H100_1",
            "context_length": 8192,
            "num_workers": 2,
            "billing_interval": "per_hour",
        },
    ),
    (
        lambda c: c.instances.start("a--b"),
        ok(status="pending"),
        "POST /instances/start",
        {"model_id": "a--b", "num_workers": 1, "billing_interval": "per_minute"},
    ),
    (lambda c: c.instances.restart("i"), ok(), "POST /instances/restart", {"instance_id": "i"}),
    (lambda c: c.instances.stop("i"), ok(), "POST /instances/stop", {"instance_id": "i"}),
    (lambda c: c.instances.stop_all(), ALL, "POST /instances/stop-all", None),
    (lambda c: c.instances.delete("i"), Answer(json={"message": "gone"}), "DELETE /instances/i", None),
    (lambda c: c.instances.delete_all(), ALL, "DELETE /instances/delete-all?force_deletion=false", None),
    (
        lambda c: c.instances.delete_all(force=True),
        ALL,
        "DELETE /instances/delete-all?force_deletion=true",
        None,
    ),
    (lambda c: c.models.list(), Answer(json={"models": []}), "GET /models/", None),
    (lambda c: c.models.get("a/b"), Answer(json={"model": {"model_id": "a--b"}}), "GET /models/a--b", None),
    (lambda c: c.models.get("a--b"), Answer(json={"model": {"model_id": "a--b"}}), "GET /models/a--b", None),
    (lambda c: c.hardware_types.list(), Answer(json={"hardware_types": []}), "GET /hardware-types/", None),
    (
        lambda c: c.hardware_types.list_available(),
        Answer(json={"hardware_types": []}),
        "GET /hardware-types/available",
        None,
    ),
    (
        lambda c: c.user.balance(),
        Answer(json={"current_balance": 1, "currency": "EUR"}),
        "GET /user/balance",
        None,
    ),
]


class TestEach:
    @alternating(
        "call,answer,sent,sent_body", EACH, ids=lambda value: value if isinstance(value, str) else ""
    )
    async def test_sends_the_documented_request(
        self, service: Service, call: Call, answer: Answer, sent: str, sent_body: Any
    ) -> None:
        method, path = sent.split(" ")
        service.on(method, path.split("?")[0], answer)
        async with service.client() as client:
            await call(client)
        assert service.routes == [sent]
        assert body(service.requests[-1]) == sent_body
        anonymous = path.startswith(("/models", "/hardware-types"))
        assert service.requests[-1].headers.get("authorization") == (None if anonymous else f"Bearer {TOKEN}")
        assert service.token_requests == (0 if anonymous else 1)

    @pytest.mark.parametrize("body", [{"message": "gone"}, {"instance_id": "instance-1", "more": 1}, None])
    async def test_a_delete_may_be_answered_in_part(self, service: Service, body: Any) -> None:
        service.on("DELETE", "/instances/instance-1", Answer(json=body))
        async with service.client() as client:
            await client.instances.delete("instance-1")

    @pytest.mark.parametrize("body", [{}, {"instance_id": "instance-2"}, {"message": None}, [], "gone", 1])
    async def test_a_delete_that_another_may_have_answered_is_an_error(
        self, service: Service, body: Any
    ) -> None:
        service.on("DELETE", "/instances/instance-1", Answer(json=body))
        async with service.client() as client:
            with pytest.raises(DecodeError, match="id of the deleted instance"):
                await client.instances.delete("instance-1")

    async def test_returns_the_decoded_answer(self, service: Service) -> None:
        expected = decode_instance({"instance": instance()})
        service.on("GET", "/instances/", Answer(json={"instances": [instance(), instance("instance-2")]}))
        service.on("GET", "/instances/instance-1", ok())
        service.on("POST", "/instances/start", ok())
        service.on("POST", "/instances/restart", ok())
        service.on("POST", "/instances/stop", ok())
        service.on("POST", "/instances/stop-all", ALL)
        service.on("DELETE", "/instances/delete-all", Answer(json={"message": "nothing to do"}))
        service.on("DELETE", "/instances/instance-1", Answer(json={"instance_id": "instance-1"}))
        service.on("GET", "/models/a--b", Answer(json={"model": {"model_id": "a--b"}}))
        service.on("GET", "/models/", Answer(json={"models": [{"model_id": "a--b"}]}))
        service.on("GET", "/hardware-types/", Answer(json={"hardware_types": [{"hardware_type_id": "X"}]}))
        service.on("GET", "/hardware-types/available", Answer(json={"hardware_types": []}))
        service.on("GET", "/user/balance", Answer(json={"current_balance": 1.5, "currency": "EUR"}))
        async with service.client() as client:
            assert [each.instance_id for each in await client.instances.list()] == [
                "instance-1",
                "instance-2",
            ]
            assert await client.instances.get("instance-1") == expected
            assert await client.instances.start("a/b") == expected
            assert await client.instances.restart("instance-1") == expected
            assert await client.instances.stop("instance-1") == expected
            assert await client.instances.stop_all() == AffectedInstances(
                instance_ids=("instance-1", "instance-2"), message="done"
            )
            assert await client.instances.delete_all() == AffectedInstances(message="nothing to do")
            await client.instances.delete("instance-1")
            assert await client.models.get("a/b") == Model(model_id="a--b")
            assert [each.model_id for each in await client.models.list()] == ["a--b"]
            assert await client.hardware_types.list() == (HardwareType(hardware_type_id="X"),)
            assert await client.hardware_types.list_available() == ()
            assert await client.user.balance() == Balance(current_balance=1.5, currency="EUR")

    @alternating("status", [400, 404])
    async def test_an_unknown_instance(self, service: Service, status: int) -> None:
        service.on("GET", "/instances/nope", Answer(status=status, json={"message": "unknown instance"}))
        async with service.client() as client:
            with pytest.raises((BadRequestError, NotFoundError)) as caught:
                await client.instances.get("nope")
        assert "unknown instance" in caught.value.body

    @alternating("how", ["start", "ensure"])
    async def test_bad_arguments_send_nothing(self, service: Service, how: str) -> None:
        async with service.client() as client:
            for name, value in (
                ("num_workers", 9),
                ("billing_interval", "hourly"),
                ("context_length", -1),
                ("model_id", ""),
                ("hardware_type_id", "a/b"),
            ):
                with pytest.raises(InvalidArgumentError, match=name):
                    await getattr(client.instances, how)(**{"model_id": "a/b", name: value})
        assert service.requests == []

    @alternating("how", ["ensure", "wait_until_running"])
    async def test_bad_timeouts_send_nothing(self, service: Service, how: str) -> None:
        async with service.client() as client:
            for timeout in (0, -1, float("nan"), "5x", True):
                with pytest.raises(InvalidArgumentError, match="timeout"):
                    await getattr(client.instances, how)("instance-1", timeout=timeout)
        assert service.requests == []


# --- ids never reach another route ---------------------------------------------------------------


async def watch_first(client: AsyncCortecs, instance_id: str) -> Any:
    async for snapshot in client.instances.watch(instance_id):
        return snapshot
    return None


IN_PATH: dict[str, Callable[[AsyncCortecs, Any], Awaitable[Any]]] = {
    "get": lambda client, instance_id: client.instances.get(instance_id),
    "delete": lambda client, instance_id: client.instances.delete(instance_id),
    "wait_until_running": lambda client, instance_id: client.instances.wait_until_running(instance_id),
    "watch": watch_first,
    "read_one": lambda client, instance_id: client.instances.read_one(instance_id),
}
IN_BODY: dict[str, Callable[[AsyncCortecs, Any], Awaitable[Any]]] = {
    "stop": lambda client, instance_id: client.instances.stop(instance_id),
    "restart": lambda client, instance_id: client.instances.restart(instance_id),
}


# `test_validation.py` tests everything that the checks refuse. A few values of each kind show that an
# endpoint runs the check, and that it runs the stricter one if the id is part of its path.
NO_SEGMENTS = ["delete-all", "Stop-All", "../stop-all", "a%2Fb", "a?b", "a/b", "."]
NO_TEXTS: list[Any] = ["", "  ", "\ud800", None, 5, b"instance-1"]


@alternating("how", IN_PATH)
async def test_an_id_that_could_reach_another_route_sends_nothing(service: Service, how: str) -> None:
    async with service.client() as client:
        for instance_id in [*NO_SEGMENTS, *NO_TEXTS]:
            with pytest.raises(InvalidArgumentError, match="instance_id"):
                await IN_PATH[how](client, instance_id)
    assert service.requests == []


@alternating("how", IN_BODY)
async def test_an_id_in_a_body_reaches_only_its_own_route(service: Service, how: str) -> None:
    service.on("POST", f"/instances/{how}", ok())
    async with service.client() as client:
        for instance_id in NO_SEGMENTS:
            await IN_BODY[how](client, instance_id)
            assert body(service.requests[-1]) == {"instance_id": instance_id}
    assert service.routes == [f"POST /instances/{how}"] * len(NO_SEGMENTS)


@alternating("how", IN_BODY)
async def test_an_id_that_no_body_can_hold_sends_nothing(service: Service, how: str) -> None:
    async with service.client() as client:
        for instance_id in NO_TEXTS:
            with pytest.raises(InvalidArgumentError, match="instance_id"):
                await IN_BODY[how](client, instance_id)
    assert service.requests == []


@alternating("how,method", [("get", "GET"), ("delete", "DELETE")])
async def test_a_valid_id_is_sent_unchanged(service: Service, how: str, method: str) -> None:
    async with service.client() as client:
        for instance_id in ("instance-12345", "a_b.c~d:e", "-", "stop-all-2", "A" * 200):
            service.on(method, f"/instances/{instance_id}", ok(instance_id))
            await IN_PATH[how](client, instance_id)
            assert service.routes[-1] == f"{method} /instances/{instance_id}"
            assert not service.requests[-1].url.query


@alternating("how", [*IN_PATH, *IN_BODY])
@given(
    instance_id=ANY_TEXT
    | st.sampled_from(HOSTILE_IDS)
    | st.from_regex(r"[A-Za-z./%?#-]{1,12}", fullmatch=True)
)
@example(instance_id="delete-all")
@settings(max_examples=60, derandomize=True)
async def test_no_id_reaches_another_route(how: str, instance_id: str) -> None:
    service = Service()
    async with service.client(max_retries=0) as client:
        with contextlib.suppress(InvalidArgumentError, NotFoundError, InstanceGoneError):
            await {**IN_PATH, **IN_BODY}[how](client, instance_id)
    method = "DELETE" if how == "delete" else "POST" if how in IN_BODY else "GET"
    own = f"POST /instances/{how}" if how in IN_BODY else f"{method} /instances/{instance_id}"
    # "GET /instances/" is the poller, which checks the list before an instance counts as gone.
    assert set(service.routes) <= {own, "GET /instances/"}
    assert not {route.casefold() for route in service.routes} & {
        "delete /instances/delete-all",
        "delete /instances/",
        "post /instances/stop-all",
        "post /instances/start",
    }
    assert all(request.url.host == "api.test" and not request.url.query for request in service.requests)


@on_one_backend
async def test_an_invalid_model_id_sends_nothing(service: Service) -> None:
    odd: list[Any] = ["", "..", "../instances/", "a/../../instances", "a?b", "a%2fb", "a\nb", "a/b/c", None]
    async with service.client() as client:
        for model_id in odd:
            with pytest.raises(InvalidArgumentError, match="model_id"):
                await client.models.get(model_id)
    assert service.requests == []


@on_one_backend
@given(model_id=ANY_TEXT | st.from_regex(r"[A-Za-z./%?#-]{1,12}", fullmatch=True))
@settings(max_examples=60, derandomize=True)
async def test_no_model_id_reaches_another_route(model_id: str) -> None:
    service = Service()
    async with service.client(max_retries=0) as client:
        with pytest.raises((InvalidArgumentError, NotFoundError)):
            await client.models.get(model_id)
    for route in service.routes[:1]:  # after a rejection, the list is read
        assert route == f"GET /models/{model_id.replace('/', '--')}"
        assert route.count("/") == 2


# --- lost, then refused ---------------------------------------------------------------------------


class TestLostThenRefused:
    """The first attempt worked, but its answer was lost. So the service rejects the second one."""

    @grid(strength=1, refusal=REFUSALS, status=["stopped", "stopping", "terminated"], anyio_backend=BACKENDS)
    async def test_a_stop_is_done_when_the_state_says_so(
        self, service: Service, refusal: int, status: str
    ) -> None:
        service.on("POST", "/instances/stop", LOST, Answer(status=refusal))
        service.on("GET", "/instances/", Answer(json={"instances": [instance(status=status)]}))
        async with service.client() as client:
            assert (await client.instances.stop("instance-1")).status == status
        assert service.routes == ["POST /instances/stop"] * 2 + ["GET /instances/"]

    @grid(strength=1, refusal=REFUSALS, status=["running", "pending"], anyio_backend=BACKENDS)
    async def test_a_stop_is_not_done_while_it_runs(
        self, service: Service, refusal: int, status: str
    ) -> None:
        service.on("POST", "/instances/stop", LOST, Answer(status=refusal, json={"message": "not now"}))
        service.on("GET", "/instances/", Answer(json={"instances": [instance(status=status)]}))
        async with service.client() as client:
            with pytest.raises(APIStatusError) as caught:
                await client.instances.stop("instance-1")
        assert "not now" in caught.value.body
        assert caught.value.status_code == refusal
        assert caught.value.path == "/instances/stop"

    @grid(strength=1, refusal=REFUSALS, status=["pending", "running", "queued"], anyio_backend=BACKENDS)
    async def test_a_restart_is_done_when_it_is_up_again(
        self, service: Service, refusal: int, status: str
    ) -> None:
        service.on("POST", "/instances/restart", LOST, Answer(status=refusal))
        service.on("GET", "/instances/", Answer(json={"instances": [instance(status=status)]}))
        async with service.client() as client:
            assert (await client.instances.restart("instance-1")).status == status

    async def test_a_restart_is_not_done_while_it_is_stopped(self, service: Service) -> None:
        service.on("POST", "/instances/restart", LOST, Answer(status=409, json={"message": "not now"}))
        service.on("GET", "/instances/", Answer(json={"instances": [instance(status="stopped")]}))
        async with service.client() as client:
            with pytest.raises(ConflictError) as caught:
                await client.instances.restart("instance-1")
        assert "not now" in caught.value.body

    @alternating("refusal", REFUSALS)
    async def test_a_delete_is_done_when_the_list_says_so(self, service: Service, refusal: int) -> None:
        service.on("DELETE", "/instances/instance-1", LOST, Answer(status=refusal))
        service.on("GET", "/instances/", Answer(json={"instances": [instance("instance-2")]}))
        async with service.client() as client:
            await client.instances.delete("instance-1")
        # Readings of 5 s agree, by its id and in the list.
        readings = ["GET /instances/", *["GET /instances/instance-1", "GET /instances/"] * 3]
        assert service.routes == ["DELETE /instances/instance-1"] * 2 + readings
        assert service.times[-1] - service.times[-5] == pytest.approx(5.0)

    @alternating("refusal", REFUSALS)
    async def test_a_delete_is_not_done_while_it_is_listed(self, service: Service, refusal: int) -> None:
        service.on(
            "DELETE", "/instances/instance-1", LOST, Answer(status=refusal, json={"message": "not now"})
        )
        service.on("GET", "/instances/", Answer(json={"instances": [instance("instance-1")]}))
        async with service.client() as client:
            with pytest.raises(APIStatusError) as caught:
                await client.instances.delete("instance-1")
        assert "not now" in caught.value.body

    @alternating("odd", [{}, "", None, {"instance-1": {}}], ids=repr)
    async def test_a_delete_is_not_done_because_the_list_is_unreadable(
        self, service: Service, odd: Any
    ) -> None:
        service.on("DELETE", "/instances/instance-1", LOST, Answer(status=404))
        service.on("GET", "/instances/", Answer(json={"instances": odd}))
        async with service.client() as client:
            with pytest.raises(RequestError):
                await client.instances.delete("instance-1")

    @grid(strength=1, refusal=REFUSALS, how=["stop", "restart", "delete"], anyio_backend=BACKENDS)
    async def test_a_rejection_is_not_repeated(self, service: Service, refusal: int, how: str) -> None:
        service.on("POST", f"/instances/{how}", Answer(status=refusal))
        service.on("DELETE", "/instances/instance-1", Answer(status=refusal))
        async with service.client() as client:
            with pytest.raises(APIStatusError) as caught:
                await getattr(client.instances, how)("instance-1")
        assert caught.value.status_code == refusal
        assert not caught.value.outcome_unknown
        # The list says whether the instance exists.
        assert service.routes[1:] == ["GET /instances/"] * (refusal != 409)

    @alternating("how", ["stop", "restart", "delete"])
    async def test_a_rejection_after_a_429_sends_no_further_request(self, service: Service, how: str) -> None:
        # An attempt that got a 429 changed nothing, so there is nothing to check.
        for method, path in (("POST", f"/instances/{how}"), ("DELETE", "/instances/instance-1")):
            service.on(method, path, Answer(status=429), Answer(status=409))
        async with service.client() as client:
            with pytest.raises(ConflictError):
                await getattr(client.instances, how)("instance-1")
        assert len(service.routes) == 2

    @alternating("how", ["stop", "restart", "delete"])
    async def test_the_error_after_only_lost_answers_has_an_unknown_outcome(
        self, service: Service, how: str
    ) -> None:
        for method, path in (("POST", f"/instances/{how}"), ("DELETE", "/instances/instance-1")):
            service.on(method, path, LOST)
        async with service.client(max_retries=2) as client:
            with pytest.raises(TransportError) as caught:
                await getattr(client.instances, how)("instance-1")
        assert caught.value.outcome_unknown
        assert caught.value.attempts == len(service.routes) == 3

    @alternating("how", ["stop", "restart", "delete"])
    async def test_lost_and_then_answered(self, service: Service, how: str) -> None:
        for method, path in (("POST", f"/instances/{how}"), ("DELETE", "/instances/instance-1")):
            service.on(method, path, LOST, Answer(status=502), ok(status="stopped"))
        async with service.client() as client:
            await getattr(client.instances, how)("instance-1")
        assert len(service.routes) == 3


# --- choosing for `ensure` ------------------------------------------------------------------------

MODEL = Model(
    model_id="org--model",
    recommended_config="H1",
    hardware_configs={
        name: HardwareConfig(params={"--max-model-len": longest})
        for name, longest in (("H1", 131072), ("H2", 4096))
    },
)


class TestDefaults:
    @pytest.mark.parametrize(
        ("given_", "hardware", "context"),
        [
            ({}, "H1", 32000),
            ({"hardware_type_id": "H2"}, "H2", 4096),
            ({"hardware_type_id": "H3"}, "H3", None),
            ({"context_length": 100}, "H1", 100),
        ],
    )
    def test_are_the_documented_ones(
        self, given_: dict[str, Any], hardware: str, context: int | None
    ) -> None:
        filled = with_defaults(InstanceArgs(model_id="org--model", **given_), MODEL)
        assert (filled.hardware_type_id, filled.context_length) == (hardware, context)
        assert filled.billing_interval == "per_minute"
        assert filled.num_workers == 1

    def test_an_unknown_model_has_none(self) -> None:
        args = InstanceArgs(model_id="org--model", billing_interval="per_hour")
        assert with_defaults(args, None) == args

    def test_running_comes_before_pending_before_stopped(self) -> None:
        wanted = InstanceArgs(model_id="org--model", hardware_type_id="NVIDIA_H100_1")
        have = [
            decode_instance({"instance": instance(f"i-{status}", status)}) for status in ("stopped", "odd")
        ]
        assert [each.instance_id for each in [choose(have, wanted, None)] if each] == ["i-stopped"]
        have.append(decode_instance({"instance": instance("i-pending", "pending")}))
        assert (chosen := choose(have, wanted, None)) is not None
        assert chosen.instance_id == "i-pending"
        have.append(decode_instance({"instance": instance("i-running", "running")}))
        assert (chosen := choose(have, wanted, None)) is not None
        assert chosen.instance_id == "i-running"

    @pytest.mark.parametrize(
        "other",
        [
            {"hardware_type_id": "H2"},
            {"context_length": 100},
            {"num_workers": 2},
            {"billing_interval": "per_hour"},
            {"model_id": "org--other"},
        ],
        ids=repr,
    )
    def test_other_arguments_do_not_fit(self, other: dict[str, Any]) -> None:
        running = decode_instance({"instance": instance(instance_args={"model_id": "org--model"})})
        same: dict[str, Any] = {"model_id": "org--model"}
        assert choose([running], InstanceArgs(**same), MODEL) is running
        assert choose([running], InstanceArgs(**{**same, **other}), MODEL) is None


async def test_the_client_id_is_not_in_any_address(service: Service) -> None:
    service.on("GET", "/instances/", Answer(json={"instances": []}))
    async with service.client() as client:
        await client.instances.list()
    assert all(CLIENT_ID not in str(request.url) for request in service.requests)
