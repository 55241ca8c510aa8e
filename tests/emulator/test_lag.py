"""Test lists and reads that lag, replicas that disagree, and readings that lack an instance."""

from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from _grids import alternating

from cortecs_async.emulator import Emulator, Fault

LLAMA = "meta-llama--Llama-3.1-8B-Instruct"
DROPPED = "Server disconnected without sending a response."


async def listed(http: Any) -> dict[str, str]:
    """Return the status of each instance of the list."""
    answer = await http.api("GET", "/instances/")
    return {each["instance_id"]: each["instance_status"]["status"] for each in answer.json()["instances"]}


async def read(http: Any, instance_id: str) -> str | int:
    """Return the status of an instance, or the HTTP status of an error."""
    answer = await http.api("GET", f"/instances/{instance_id}")
    if answer.status_code != 200:
        assert answer.json() == {"message": f"Instance {instance_id} does not exist."}
        return int(answer.status_code)
    return str(answer.json()["instance"]["instance_status"]["status"])


async def stop(http: Any, instance_id: str) -> int:
    return int((await http.api("POST", "/instances/stop", json={"instance_id": instance_id})).status_code)


async def restart(http: Any, instance_id: str) -> int:
    return int((await http.api("POST", "/instances/restart", json={"instance_id": instance_id})).status_code)


async def delete(http: Any, instance_id: str) -> int:
    return int((await http.api("DELETE", f"/instances/{instance_id}")).status_code)


async def life(http: Any, clock: Any, look: Callable[[str], Any]) -> list[tuple[float, Any]]:
    """Start, stop, restart, stop and delete an instance, read it often, and return the changes."""
    clock.now = 100.0
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    actions = {110.0: stop, 120.0: restart, 130.0: stop, 140.0: delete}
    seen: list[tuple[float, Any]] = []
    for tenth in range(1000, 1500, 5):
        clock.now = tenth / 10
        if clock.now in actions:
            assert await actions[clock.now](http, instance_id) in {200, 202}
        shown = await look(instance_id)
        if not seen or seen[-1][1] != shown:
            seen.append((clock.now, shown))
    return seen


STATUSES = [
    (104.0, "running"),
    (110.0, "stopping"),
    (112.0, "stopped"),
    (120.0, "pending"),
    (124.0, "running"),
    (130.0, "stopping"),
    (132.0, "stopped"),
]


@alternating("lag", [0.0, 3.0, 7.5])
async def test_a_list_shows_the_account_of_earlier(
    lag: float, clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(list_lag=lag, stop_seconds=2.0)

    async def look(instance_id: str) -> str | None:
        return (await listed(http)).get(instance_id)

    expected = [(100.0, "pending"), *STATUSES, (140.0, None)]
    late = [(at + lag, status) for at, status in expected]
    assert await life(http, clock, look) == (late if not lag else [(100.0, None), *late])


@alternating("lag,unknown_status", [(0.0, 400), (3.0, 404), (7.5, 400)])
async def test_a_read_shows_the_instance_of_earlier(
    lag: float, unknown_status: int, clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(get_lag=lag, stop_seconds=2.0, unknown_status=unknown_status)

    async def look(instance_id: str) -> str | int:
        return await read(http, instance_id)

    expected = [(100.0, "pending"), *STATUSES, (140.0, unknown_status)]
    late = [(at + lag, status) for at, status in expected]
    assert await life(http, clock, look) == (late if not lag else [(100.0, unknown_status), *late])


async def test_a_lagging_entry_is_exactly_that_of_earlier(clock: Any, emulate: Callable[..., Any]) -> None:
    fresh, lagging = emulate(), emulate(list_lag=5.0, get_lag=5.0)
    ids = [http.emulator.start_instance(LLAMA, num_workers=2) for http in (fresh, lagging)]
    assert ids == ["instance-10001"] * 2
    for now in (1.5, 4.0, 6.0):
        clock.now = now
        before = await fresh.instance("instance-10001")
        clock.now = now + 5.0
        assert await lagging.instance("instance-10001") == before
        assert (await lagging.api("GET", "/instances/")).json() == {"instances": [before]}


async def test_what_acts_sees_the_truth(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(list_lag=60.0, get_lag=60.0, balance=1.0)
    started = (await http.start()).json()["instance"]
    instance_id = started["instance_id"]
    assert started["instance_status"]["status"] == "pending"
    assert (await listed(http), await read(http, instance_id)) == ({}, 400)
    assert http.emulator.billing == http.emulator.existing == (instance_id,)
    clock.now = 10.0
    assert (await http.infer(instance_id, "/models")).status_code == 200
    assert await delete(http, instance_id) == 400
    assert await stop(http, instance_id) == 200
    assert await stop(http, instance_id) == 400
    assert http.emulator.billing == ()
    assert await delete(http, instance_id) == 200
    assert [await act(http, instance_id) for act in (stop, restart, delete)] == [400] * 3
    assert http.emulator.existing == ()
    assert [(entry.status, entry.seconds) for entry in http.emulator.ledger] == [("deleted", 10.0)]
    # A minute later the list shows the past.
    clock.now = 65.0
    assert (await listed(http), await read(http, instance_id)) == ({instance_id: "running"}, "running")
    assert (await http.infer(instance_id, "/models")).status_code == 404
    clock.now = 70.0
    assert (await listed(http), await read(http, instance_id)) == ({}, 400)


async def test_a_forced_deletion_in_any_status_leaves_the_past(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(list_lag=5.0, stop_seconds=4.0)
    running, stopping, gone = (http.emulator.start_instance(LLAMA) for _ in range(3))
    clock.now = 10.0
    http.emulator.delete_instance(gone)
    clock.now = 20.0
    http.emulator.stop_instance(stopping)
    clock.now = 22.0
    pending = http.emulator.start_instance(LLAMA)
    for instance_id in (running, stopping, pending):
        http.emulator.delete_instance(instance_id)
    assert http.emulator.existing == ()
    seen = {}
    for now in (14.9, 15.0, 24.9, 25.0, 26.9, 27.0):
        clock.now = now
        seen[now] = await listed(http)
    assert seen == {
        14.9: {running: "running", stopping: "running", gone: "running"},
        15.0: {running: "running", stopping: "running"},
        24.9: {running: "running", stopping: "running"},
        25.0: {running: "running", stopping: "stopping"},
        # The last one existed for no time at all.
        26.9: {running: "running", stopping: "stopping"},
        27.0: {},
    }
    # Oldest first, however they were deleted.
    clock.now = 26.0
    assert list(await listed(http)) == [running, stopping]


async def test_replicas_answer_in_turn(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(list_lag=[0.0, 5.0, 20.0], get_lag=(0, 5))
    instance_id = http.emulator.start_instance(LLAMA)
    clock.now = 6.0
    running, pending = {instance_id: "running"}, {instance_id: "pending"}
    assert [await listed(http) for _ in range(4)] == [running, pending, {}, running]
    # Each route has its own turn, and a request without a token takes none.
    assert (await http.api("GET", "/instances/", headers={})).status_code == 401
    assert [await read(http, instance_id) for _ in range(3)] == ["running", "pending", "running"]
    assert await listed(http) == pending


async def test_replicas_disagree_about_a_deletion(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(list_lag=[0.0, 5.0], get_lag=[5.0, 0.0])
    instance_id = http.emulator.start_instance(LLAMA)
    clock.now = 10.0
    http.emulator.delete_instance(instance_id)
    clock.now = 14.0
    assert [await listed(http) for _ in range(4)] == [{}, {instance_id: "running"}] * 2
    assert [await read(http, instance_id) for _ in range(4)] == ["running", 400] * 2


async def test_the_list_can_hide_stopped_instances(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(hide_stopped=True, stop_seconds=2.0, list_lag=[0.0, 5.0])
    first, second = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    clock.now = 10.0
    http.emulator.stop_instance(first)
    seen = {}
    for now in (11.0, 12.0, 16.0, 17.0):
        clock.now = now
        seen[now] = [await listed(http), await listed(http)]
    stopped, both = {second: "running"}, {first: "running", second: "running"}
    stopping = {first: "stopping", second: "running"}
    assert seen == {
        11.0: [stopping, both],
        12.0: [stopped, both],
        16.0: [stopped, stopping],
        17.0: [stopped, stopped],
    }
    assert await read(http, first) == "stopped"
    http.emulator.restart_instance(first)
    assert await listed(http) == {first: "pending", second: "running"}


async def test_another_user_can_restart_an_instance(clock: Any) -> None:
    emulator = Emulator(clock=clock)
    instance_id = emulator.start_instance(LLAMA)
    with pytest.raises(ValueError, match="only a stopped one"):
        emulator.restart_instance(instance_id)
    emulator.stop_instance(instance_id)
    emulator.restart_instance(instance_id)
    assert emulator.billing == (instance_id,)
    with pytest.raises(ValueError, match="does not exist"):
        emulator.restart_instance("instance-1")


ODD = [
    None,
    "instance-7",
    7,
    {"instance_id": None},
    {"instance_id": "theirs", "instance_args": {"context_length": "8192"}, "instance_status": None},
]


async def test_odd_entries_are_shown_as_they_are(emulate: Callable[..., Any]) -> None:
    http = emulate()
    instance_id = http.emulator.start_instance(LLAMA)
    for entry in ODD:
        http.emulator.add_entry(entry)
    entries = (await http.api("GET", "/instances/")).json()["instances"]
    assert entries == [await http.instance(instance_id), *ODD]
    assert await read(http, "theirs") == 400
    assert http.emulator.existing == (instance_id,)
    assert (await http.api("DELETE", "/instances/delete-all?force_deletion=true")).json()["instance_ids"] == [
        instance_id
    ]
    http.emulator.clear_entries()
    assert await listed(http) == {}


async def test_an_entry_is_copied_and_must_be_json(emulate: Callable[..., Any]) -> None:
    http = emulate(hide_stopped=True, list_lag=[0.0, 9.0])
    entry = {"instance_id": "theirs", "instance_status": {"status": "stopped"}}
    http.emulator.add_entry(entry)
    entry.clear()
    with pytest.raises(TypeError, match="not JSON serializable"):
        http.emulator.add_entry({1, 2})
    for _ in range(2):
        assert await listed(http) == {"theirs": "stopped"}


async def test_one_list_lacks_an_instance(emulate: Callable[..., Any]) -> None:
    http = emulate()
    first, second = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    http.emulator.add_entry({"instance_id": "theirs", "instance_status": {"status": "running"}})
    http.emulator.add_fault(Fault("omit", "list", instance_id=first, skip=1))
    http.emulator.add_fault(Fault("omit", "list", skip=3))
    both = {first: "pending", second: "pending", "theirs": "running"}
    without = {second: "pending", "theirs": "running"}
    assert [await listed(http) for _ in range(5)] == [both, without, both, {}, both]
    assert await read(http, first) == "pending"
    assert [record.fault for record in http.emulator.requests if record.route == "list"] == [
        None,
        "omit",
        None,
        "omit",
        None,
    ]
    assert http.emulator.existing == (first, second)


async def test_one_read_does_not_know_an_instance(emulate: Callable[..., Any]) -> None:
    http = emulate(unknown_status=404)
    first, second = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    http.emulator.add_fault(Fault("omit", instance_id=first, times=2, skip=1))
    # Reads of another instance are not affected and not counted; lists are both.
    assert [await read(http, each) for each in (second, first, second, first)] == [
        "pending",
        "pending",
        "pending",
        404,
    ]
    assert [await listed(http) for _ in range(2)] == [
        {second: "pending"},
        {first: "pending", second: "pending"},
    ]
    http.emulator.add_fault(Fault("omit", "get", times=2))
    assert [await read(http, each) for each in (first, second, second)] == [404, 404, "pending"]


async def test_an_omission_never_affects_what_acts(emulate: Callable[..., Any]) -> None:
    http = emulate(answer_seconds=0.0)
    http.emulator.add_fault(Fault("omit", times=None))
    instance_id = (await http.start()).json()["instance"]["instance_id"]
    assert await listed(http) == {}
    assert await stop(http, instance_id) == 200
    assert await restart(http, instance_id) == 202
    assert await stop(http, instance_id) == 200
    assert await delete(http, instance_id) == 200
    assert [entry.status for entry in http.emulator.ledger] == ["deleted"]
    assert {record.fault for record in http.emulator.requests if record.route != "list"} == {None}


async def test_an_omission_needs_a_token_too_and_takes_its_replica(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate(list_lag=[0.0, 5.0])
    first, second = http.emulator.start_instance(LLAMA), http.emulator.start_instance(LLAMA)
    clock.now = 6.0
    http.emulator.delete_instance(first)
    http.emulator.add_fault(Fault("omit", "list", instance_id=first, skip=1, times=2))
    assert await listed(http) == {second: "running"}
    assert (await http.api("GET", "/instances/", headers={})).status_code == 401
    # The deleted instance of the lagging replica is omitted as well.
    assert [await listed(http) for _ in range(3)] == [
        {second: "pending"},
        {second: "running"},
        {first: "pending", second: "pending"},
    ]


async def token(client: httpx.AsyncClient, emulator: Emulator) -> dict[str, str]:
    credentials = {
        "grant_type": "client_credentials",
        "client_id": emulator.client_id,
        "client_secret": emulator.client_secret,
    }
    answer = await client.post(f"{emulator.api_base_url}/oauth2/token", json=credentials)
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def test_a_late_start_is_carried_out_later_and_listed_later_still() -> None:
    emulator = Emulator(clock=anyio.current_time, list_lag=15.0, step_seconds=0.0)
    async with httpx.AsyncClient(transport=emulator.transport()) as client:
        headers = await token(client, emulator)
        begun = anyio.current_time()
        emulator.add_fault(Fault("late", "start", seconds=75.0))
        with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
            await client.post(
                f"{emulator.api_base_url}/instances/start", headers=headers, json={"model_id": LLAMA}
            )
        # The connection is cut at once.
        assert anyio.current_time() == begun
        record = emulator.requests[-1]
        assert (record.route, record.status, record.fault) == ("start", None, "late")
        seen = []
        for at in (74.0, 76.0, 89.0, 91.0):
            await anyio.sleep_until(begun + at)
            answer = await client.get(f"{emulator.api_base_url}/instances/", headers=headers)
            seen.append((len(emulator.existing), len(answer.json()["instances"])))
    assert seen == [(0, 0), (1, 0), (1, 0), (1, 1)]
    assert emulator.ledger[0].started_at == pytest.approx(begun + 75.0)


async def test_all_that_acts_can_be_late(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate()
    instance_id = http.emulator.start_instance(LLAMA)
    http.emulator.add_fault(Fault("late", seconds=10.0, times=None))
    await listed(http)
    seen = []
    for act in (stop, restart, stop, delete):
        with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
            await act(http, instance_id)
        clock.now += 9.9
        before = await read(http, instance_id)
        clock.now += 0.1
        seen.append((before, await read(http, instance_id)))
    assert seen == [("running", "stopped"), ("stopped", "pending"), ("running", "stopped"), ("stopped", 400)]
    assert http.emulator.ledger[0].seconds == pytest.approx(20.0)
    second = http.emulator.start_instance(LLAMA)
    for path, method in (("/instances/stop-all", "POST"), ("/instances/delete-all", "DELETE")):
        with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
            await http.api(method, path)
    assert http.emulator.billing == (second,)
    clock.now += 10.0
    assert http.emulator.existing == ()


async def test_a_late_request_that_has_become_wrong_does_nothing(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    instance_id = http.emulator.start_instance(LLAMA)
    http.emulator.add_fault(Fault("late", "stop", seconds=10.0))
    with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
        await stop(http, instance_id)
    clock.now = 5.0
    assert await stop(http, instance_id) == 200
    http.emulator.restart_instance(instance_id)
    # It stops a later run than the one that it was meant for. The service cannot tell.
    clock.now = 10.0
    assert await read(http, instance_id) == "stopped"
    http.emulator.add_fault(Fault("late", "stop", seconds=10.0))
    with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
        await stop(http, instance_id)
    http.emulator.delete_instance(instance_id)
    clock.now = 30.0
    assert [entry.deleted_at for entry in http.emulator.ledger] == [10.0]


async def test_late_requests_are_carried_out_in_the_order_of_their_times(
    clock: Any, emulate: Callable[..., Any]
) -> None:
    http = emulate()
    for seconds, model in ((30.0, LLAMA), (20.0, "microsoft--phi-4")):
        http.emulator.add_fault(Fault("late", "start", seconds=seconds))
        with pytest.raises(httpx.RemoteProtocolError, match=DROPPED):
            await http.start(model_id=model)
    clock.now = 60.0
    assert [(entry.model_id, entry.started_at) for entry in http.emulator.ledger] == [
        ("microsoft--phi-4", 20.0),
        (LLAMA, 30.0),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "omit", "route": "start"},
        {"kind": "omit", "route": "delete"},
        {"kind": "late", "route": "get"},
        {"kind": "late", "route": "chat"},
        {"kind": "drop", "instance_id": "instance-10001"},
        {"kind": "late", "seconds": -1.0},
    ],
)
def test_an_impossible_omission_or_delay_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Fault(**wrong)
