"""Test details of the journal, the reaper and claims. Each test detects a mutant in `mutants.py`."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _evidence import account_of
from _promises import ARGS, BASELINE, OWNER, created, intent, state_of
from _reapers import SilentProcess, StubReaper, stub_reapers
from _world import HARDWARE, MODEL, World, client_of, emulated_wall_clock

from cortecs_async import RetryPolicy, errors
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.matching import Ambiguous
from cortecs_async._errors import GuardError
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.claims import collect_foreign_claims, unresolved_start_of
from cortecs_async._recovery.journal import JournalFile, is_owned, read_journals
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.reaper import Reaper
from cortecs_async._recovery.reaper_process import ReaperProcess
from cortecs_async._recovery.records import JournalState, Record, encode, fold
from cortecs_async._recovery.recover import reap_account
from cortecs_async._recovery.store import PromiseStore
from cortecs_async._secrets import Credentials
from cortecs_async.emulator import Fault

# --- the journal --------------------------------------------------------------------------------------------


def test_a_new_journal_is_synced_before_it_is_renamed_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename = os.rename

    def sync(fd: int) -> None:
        status = os.fstat(fd)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")

    def note(*args: Any, **more: Any) -> None:
        steps.append("name")
        rename(*args, **more)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", note)
    journal = JournalFile.create(tmp_path, [created()])
    assert steps == [f"{journal.size} bytes", "name", "folder"]
    journal.remove()


def test_a_durable_record_is_synced_when_it_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalFile.create(tmp_path, [created()])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    journal.append([created("e2")], durable=True)
    assert synced == [journal.size]
    journal.append([created("e3")], durable=False)
    assert len(synced) == 1
    journal.remove()


@pytest.mark.parametrize(
    ("record", "durable"),
    [
        (intent(), True),
        (created("e1"), True),
        ({"kind": "HELD", "entry": "e0"}, True),
        ({"kind": "ABANDONED", "entry": "e0"}, True),
        ({"kind": "UNANSWERED", "entry": "e0"}, False),
        ({"kind": "GONE", "entry": "e0"}, False),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_promise_is_durable_and_its_end_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record, *, durable: bool
) -> None:
    store = PromiseStore(tmp_path, journal=True, guard=False)
    store.join()
    store.put(created("e0", expires_at=2000.0))
    store.put(created("stays"))
    store.commit()
    asked: list[bool] = []
    monkeypatch.setattr(JournalFile, "append", lambda _, __, *, durable: asked.append(durable))
    store.put(record)
    store.commit()
    assert asked == [durable]
    assert store._journal is not None
    store._journal.remove()


# --- journal records ----------------------------------------------------------------------------------------


def test_a_baseline_is_kept_as_long_as_a_start_needs_it() -> None:
    state = state_of(BASELINE, intent())
    for number in range(100):
        state.apply({"kind": "BASELINE", "baseline": f"other {number}", "ids": []})
    assert state.baseline_of(state.promises["e1"]) == {"i-1", "i-2"}


def test_a_snapshot_marks_an_unanswered_start() -> None:
    state = state_of(BASELINE, intent(), {"kind": "UNANSWERED", "entry": "e1"})
    assert fold(encode(state.snapshot())).promises["e1"].unanswered


def test_the_fingerprint_of_an_account_does_not_reveal_it() -> None:
    names = {fingerprint(api, who) for api in ("https://a.test", "https://b.test") for who in ("one", "two")}
    assert len(names) == 4
    assert all(set(name) <= set("0123456789abcdef") and len(name) == 16 for name in names)


# --- owners of instances ------------------------------------------------------------------------------------


def listed(instance_id: str) -> Instance:
    """Return an instance that fits `intent()`."""
    args = InstanceArgs(model_id=MODEL.replace("/", "--"), hardware_type_id=HARDWARE)
    status = InstanceStatus(status="running")
    return Instance(instance_id=instance_id, instance_args=args, instance_status=status)


def test_nobody_takes_the_ambiguous_candidates_of_another_process() -> None:
    theirs = state_of(BASELINE, intent(), {"kind": "AMBIGUOUS", "entry": "e1", "candidates": ["i-7", "i-8"]})
    claims = collect_foreign_claims("https://api.test", [(theirs, ())])
    assert (claims.ids, claims.ambiguous_ids, claims.unresolved) == (set(), {"i-7", "i-8"}, [])
    mine = unresolved_start_of(state_of(BASELINE, intent()), state_of(BASELINE, intent()).promises["e1"])
    assert claims.match(mine, [], listed_at=None) is None
    # One of the candidates may be the start's own, so it must not be started again silently.
    assert claims.match(mine, [listed("i-8")], listed_at=None) == Ambiguous(("i-8",))
    both = claims.match(mine, [listed("i-8"), listed("i-9")], listed_at=None)
    assert both == Ambiguous(("i-8", "i-9"))
    assert claims.match(mine, [listed("i-9")], listed_at=None) == listed("i-9")


async def test_a_lease_comes_before_the_reaper_of_an_equal_lost_start(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        # Equal and recent: otherwise, the instance would be more likely that of the lease in any case.
        args = {**ARGS, "billing_interval": "per_minute"}
        theirs = intent(api=emu.api_base_url, args=args, at=emulated_wall_clock() - 1.0)
        # Locked, because its reaper holds the lock.
        dead = JournalFile.create(journals, [OWNER, BASELINE, theirs, {"kind": "ORPHANED"}])
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with client.instance(MODEL, HARDWARE) as inst:
            assert emu.billing == (inst.instance_id,)
            assert client._wiring.promises.store.key_of(inst.instance_id) is not None
        dead.remove()


async def test_an_instance_too_many_is_ambiguous_although_a_reaper_looks_for_one(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        theirs = intent(api=emu.api_base_url)
        dead = JournalFile.create(journals, [OWNER, BASELINE, theirs, {"kind": "ORPHANED"}])
        emu.add_fault(Fault("drop", route="start", when="before"))

        async def late() -> None:
            await anyio.sleep(3.0)
            for _ in range(3):
                emu.start_instance(MODEL, HARDWARE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            with pytest.raises(errors.AmbiguousStartError) as caught:
                async with client.instance(MODEL, HARDWARE):
                    pytest.fail("entered")
        assert caught.value.candidates == emu.billing
        dead.remove()


async def test_an_instance_that_another_process_is_starting_is_not_adopted(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        theirs = intent(api=emu.api_base_url, at=emulated_wall_clock())
        living = JournalFile.create(journals, [OWNER, BASELINE, theirs])
        emu.add_fault(Fault("drop", route="start", when="before"))
        foreign: list[str] = []

        async def start() -> None:
            await anyio.sleep(3.0)
            foreign.append(emu.start_instance(MODEL, HARDWARE))
            await anyio.sleep(20.0)
            living.append(
                [{**created(), **theirs, "kind": "CREATED", "instance_id": foreign[0]}], durable=True
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            async with client.instance(MODEL, HARDWARE):
                assert len(emu.billing) == 2
        assert list(emu.billing) == foreign
        living.remove()


async def test_the_instance_of_a_pending_plain_start_is_not_adopted(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="before"))
        emu.add_fault(Fault("delay", route="start", when="after", seconds=25.0))
        plain: list[str] = []

        async def start() -> None:
            await anyio.sleep(3.0)
            plain.append((await client.instances.start(MODEL, HARDWARE)).instance_id)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            async with client.instance(MODEL, HARDWARE):
                assert len(emu.billing) == 2
        assert list(emu.billing) == plain


async def test_no_lease_starts_while_an_equal_start_is_unresolved(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="before"))

        async def lease(after: float) -> None:
            await anyio.sleep(after)
            async with client.instance(MODEL, HARDWARE):
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease, 0.0)
            tasks.start_soon(lease, 3.0)
        first, *others = [record.at for record in emu.requests if record.route == "start"]
        assert len(others) == 2
        # After a broken connection, the client looks for the instance for that long.
        assert min(others) - first >= RetryPolicy().adoption_window / 6
        assert emu.existing == ()


async def test_sweep_matches_an_instance_to_only_one_start(world: World, journals: Path) -> None:
    async with world(journal="auto", stop_seconds=10.0) as (emu, client):
        account = fingerprint(emu.api_base_url, emu.client_id)
        common = {"account": account, "api": emu.api_base_url, "at": emulated_wall_clock()}
        starts = [intent(key, **common) for key in ("e1", "e2")]
        JournalFile.create(journals, [OWNER, BASELINE, *starts]).close()
        emu.start_instance(MODEL, HARDWARE)

        async def late() -> None:
            await anyio.sleep(20.0)
            emu.start_instance(MODEL, HARDWARE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            assert [each.state for each in await client.sweep()] == ["released", "released"]
        assert emu.existing == ()


# --- the reaper ---------------------------------------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    return stub_reapers(monkeypatch)


async def test_the_reaper_is_told_of_a_start_before_it_is_sent_and_of_its_instance_after(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="required") as (emu, client):
        before: list[str] = []
        exchange = emu.exchange

        async def note(call: Any) -> Any:
            if call.path.endswith("/instances/start"):
                before.extend(reapers[-1].kinds)
            return await exchange(call)

        emu.exchange = note  # type: ignore[method-assign]
        async with client.instance(MODEL, HARDWARE) as inst:
            assert set(before) == {"JOURNAL", "ARM", "OWNER", "BASELINE", "INTENT"}
            created, seen = reapers[-1].sent[-2:]
            assert (created["kind"], created["instance_id"]) == ("CREATED", inst.instance_id)
            assert (seen["kind"], seen["bill"]) == ("SEEN", {"interval_price": 0.05, "currency": "EUR"})
        assert reapers[-1].kinds[-1] == "GONE"


async def test_a_replacement_reaper_is_told_everything_again(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="auto") as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            (guard,) = reapers
            guard.is_running = False
            guard.on_death()
            assert guard.is_running
            assert sorted(guard.kinds) == ["ARM", "BASELINE", "CREATED", "INTENT", "JOURNAL", "OWNER", "SEEN"]
            assert inst.instance_id in str(guard.sent)
            assert emu.client_secret not in repr(guard.sent)


async def test_the_reaper_is_told_new_credentials_at_once_and_no_repr_shows_them(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="auto") as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            promises = client._wiring.promises
            promises.remember_credentials(Credentials(client_id=emu.client_id, client_secret="another"))
            newest = [each for each in reapers[-1].sent if each["kind"] == "ARM"][-1]
            assert "another" in newest["sealed"].reveal()
            assert "another" not in repr(newest)


def test_a_new_reaper_gets_times_by_the_wall_clock_as_it_is_set_now(
    reapers: list[StubReaper], tmp_path: Path
) -> None:
    wall, steady = [1000.0], [0.0]
    store = PromiseStore(tmp_path, journal=False, guard=True, wall_clock=lambda: wall[0])
    store._clock.steady = lambda: steady[0]
    store.join()
    store.put(created("e1", at=1000.0, expires_at=4600.0))
    store.commit()
    steady[0] += 60.0
    wall[0] += 60.0 + 7200.0  # set forward by two hours
    store.put(created("e2", at=8260.0, expires_at=9000.0))
    store.put({"kind": "IDLE", "entry": "e1", "idle_at": 8500.0})
    store.commit()
    wall[0] += 100.0  # and once more
    reapers[-1].is_running = False
    reapers[-1].on_death()
    sent = {each["entry"]: each for each in reapers[-1].sent if each["kind"] == "CREATED"}
    assert (sent["e1"]["at"], sent["e1"]["expires_at"]) == (8300.0, 11900.0)
    assert (sent["e2"]["at"], sent["e2"]["expires_at"]) == (8360.0, 9100.0)
    (idle,) = [each for each in reapers[-1].sent if each["kind"] == "IDLE"]
    assert (idle["entry"], idle["idle_at"]) == ("e1", 8600.0)
    store.put({"kind": "GONE", "entry": "e1"})
    store.commit()
    assert store._clock.offsets.keys() == {"e2"}


def headers_of(reaper: StubReaper) -> list[dict[str, str]]:
    """Return the headers of each account that a reaper got."""
    sealed = [each["sealed"].reveal() for each in reaper.sent if each["kind"] == "ARM"]
    return [json.loads(each)["headers"] for each in sealed]


async def test_another_client_of_the_account_does_not_take_the_reaper_off_its_proven_network(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(guard="auto", journal="auto") as (emu, client), emu.http_client() as http:
        options: dict[str, Any] = {"guard": "auto", "journal": "auto", "http_client": http}
        async with client.instance(MODEL, HARDWARE):
            async with client_of(emu, default_headers={"x-route": "elsewhere"}, **options) as other:
                async with other.instance(MODEL, HARDWARE):
                    pass
            assert headers_of(reapers[-1]) == [{}, {}]
        # Once no promise needs it, the next client counts.
        async with client_of(emu, default_headers={"x-route": "b"}, **options) as other:
            async with other.instance(MODEL, HARDWARE):
                assert headers_of(reapers[-1])[-1] == {"x-route": "b"}


async def test_a_secret_that_the_service_refuses_does_not_replace_the_one_of_the_reaper(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(guard="auto") as (emu, client):
        async with client.instance(MODEL, HARDWARE):

            async def unfinished() -> Credentials:
                return Credentials(client_id=emu.client_id, client_secret="not valid yet")

            client._wiring.http._tokens._provider = unfinished
            emu.add_fault(Fault("status", route="list", status=401))
            with pytest.raises(errors.AuthenticationError):
                await client.instances.list()
            armed = [each["sealed"].reveal() for each in reapers[-1].sent if each["kind"] == "ARM"]
            assert len(armed) == 1
            assert emu.client_secret in armed[0]

            async def provide() -> Credentials:
                return Credentials(client_id=emu.client_id, client_secret=emu.client_secret)

            client._wiring.http._tokens._provider = provide


async def test_nothing_starts_without_a_required_reaper(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="required") as (emu, client):
        assert client._wiring.promises.uses_reaper  # before the first lease, for the next line
        reapers[-1].problem = "no processes here"
        with pytest.raises(errors.GuardError, match=r"no processes here\. Nothing was started"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert emu.ledger == ()


@pytest.mark.parametrize(
    ("records", "end", "has_lock"),
    [
        # The reaper locks the journal next.
        ([created()], "detach", False),
        # The reaper has nothing to do, and the journal is removed after its end.
        ([created(), {"kind": "GONE", "entry": "e1"}], "shutdown", True),
    ],
)
def test_a_process_leaves_its_promises_to_its_reaper(
    tmp_path: Path,
    reapers: list[StubReaper],
    monkeypatch: pytest.MonkeyPatch,
    records: list[Record],
    end: str,
    *,
    has_lock: bool,
) -> None:
    store = PromiseStore(tmp_path, journal=True, guard=True)
    ends: list[tuple[str, bool | None]] = []
    for name in ("shutdown", "detach"):

        def note(name: str = name) -> None:
            ((path, _),) = read_journals(tmp_path)
            ends.append((name, is_owned(path)))

        monkeypatch.setattr(reapers[-1], name, note)
    store.join()
    for record in records:
        store.put(record)
        store.commit()
    store.leave()
    assert ends == [(end, has_lock)]
    assert bool(list(read_journals(tmp_path))) is not has_lock


async def test_the_reaper_of_a_forked_child_is_told_its_credentials(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="auto") as (_emu, client):
        async with client.instance(MODEL, HARDWARE):
            pass
        client._wiring.promises.store.after_fork()
        async with client.instance(MODEL, HARDWARE):
            assert len(reapers) == 2
            assert "ARM" in reapers[-1].kinds


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[SilentProcess]:
    """Replace each new process, and collect the replacements."""
    started: list[SilentProcess] = []

    def start(*arguments: Any, **options: Any) -> SilentProcess:
        started.append(SilentProcess(*arguments, **options))
        return started[-1]

    monkeypatch.setattr("cortecs_async._recovery.reaper_process.subprocess.Popen", start)
    return started


def test_a_reaper_that_does_not_answer_is_killed(
    processes: list[SilentProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortecs_async._recovery.reaper_process._REAPER_ACK_TIMEOUT", 0.05)
    guard = ReaperProcess(lambda: None, lambda _: None, lambda *_: None)
    guard.start()
    with pytest.raises(GuardError, match="did not respond"):
        guard.handshake()
    assert not guard.is_running
    assert [each.returncode for each in processes] == [-9]


def test_a_reaper_has_its_own_session_and_no_secrets_in_its_environment(
    processes: list[SilentProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CORTECS_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hidden")
    guard = ReaperProcess(lambda: None, lambda _: None, lambda *_: None)
    guard.start()
    (process,) = processes
    assert process.options["start_new_session"] is True
    assert "PATH" in process.options["env"]
    assert "hidden" not in process.options["env"].values()
    guard.kill()


def test_a_reaper_does_not_begin_twice_with_the_same_instance() -> None:
    worked: list[str] = []
    end = threading.Event()

    def work(_: JournalState, promises: Iterable[Promise], *__: Any) -> None:
        worked.extend(promise.key for promise in promises)
        end.wait(10)

    reaper = Reaper(lambda _: None, work)
    reaper.receive({**created("e1"), "number": 1})
    reaper.receive({"kind": "ABANDONED", "entry": "e1", "number": 2})
    assert reaper.next_due() == 0.0
    reaper.recover_due()
    reaper.recover_due()
    assert reaper.next_due() is None
    threads = list(reaper._workers.values())
    end.set()
    for thread in threads:
        thread.join()
    assert worked == ["e1"]


def test_a_reaper_records_its_takeover_and_its_releases_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortecs_async._recovery.reaper.time.sleep", lambda _: None)
    journal = JournalFile.create(tmp_path, [created("e1"), created("e2")])
    seen: list[bool] = []

    def work(_: JournalState, promises: Iterable[Promise], __: Any, report: Any, ___: Any) -> None:
        seen.extend(state.is_orphaned for _, state in read_journals(tmp_path))
        report({"kind": "GONE", "entry": next(iter(promises)).key})

    reaper = Reaper(lambda _: None, work)
    reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
    for number, key in enumerate(("e1", "e2"), 2):
        reaper.receive({**created(key), "number": number})
    journal.close()
    reaper.recover_after_parent()
    assert seen == [True]
    assert [state.promises.keys() for _, state in read_journals(tmp_path)] == [{"e2"}]


def test_a_reaper_records_its_takeover_of_what_it_has_begun(tmp_path: Path) -> None:
    journal = JournalFile.create(tmp_path, [created("e1")])
    end = threading.Event()

    def work(*_: Any) -> None:
        end.wait(10)

    reaper = Reaper(lambda _: None, work)
    reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
    reaper.receive({**created("e1"), "number": 2})
    reaper.receive({"kind": "ABANDONED", "entry": "e1", "number": 3})
    reaper.recover_due()
    journal.close()
    not_begun = reaper._not_begun

    def then_end() -> list[Promise]:
        found = not_begun()
        end.set()  # not earlier, so that the reaper finds its work still in progress
        return found

    reaper._not_begun = then_end  # type: ignore[method-assign]
    reaper.recover_after_parent()
    assert reaper.state.is_orphaned
    assert [state.is_orphaned for _, state in read_journals(tmp_path)] == [True]


def test_a_living_parent_has_a_grace_period_after_the_deadline() -> None:
    worked: list[str] = []
    now = 0.0

    def work(_: JournalState, promises: Iterable[Promise], *__: Any) -> None:
        worked.extend(promise.key for promise in promises)

    reaper = Reaper(lambda _: None, work, lambda: now)
    reaper.receive({**created("e1", expires_at=2000.0), "number": 1})
    for now, expected in ((2002.0, []), (2010.0, ["e1"])):  # noqa: B007  (the clock above)
        reaper.recover_due()
        for thread in list(reaper._workers.values()):
            thread.join()
        assert worked == expected


@pytest.mark.parametrize("appears_after", [0.0, 90.0, 270.0, 400.0, None])
async def test_the_reaper_looks_for_the_instance_of_a_lost_start_for_five_minutes(
    world: World, journals: Path, appears_after: float | None
) -> None:
    async with world() as (emu, _client):
        account = account_of(emu)
        state = state_of(OWNER, BASELINE, intent(api=emu.api_base_url, at=emulated_wall_clock()))
        began = anyio.current_time()

        async def appear(after: float) -> None:
            await anyio.sleep(after)
            emu.start_instance(MODEL, HARDWARE)

        async with anyio.create_task_group() as tasks, emu.http_client() as http:
            if appears_after is not None:
                tasks.start_soon(appear, appears_after)
            await reap_account(
                state,
                list(state.promises.values()),
                account,
                lambda record: None if state.apply(record) else pytest.fail(str(record)),
                None,
                http_client=http,
                wall_clock=emulated_wall_clock,
            )
            seconds = anyio.current_time() - began
        assert state.promises == {}
        if appears_after in {400.0, None}:
            assert 300.0 <= seconds <= 306.0
            assert len(emu.existing) == (appears_after is not None)
        else:
            # Not in the first ten seconds, nor before it was listed for five: another candidate may appear.
            earliest = max(10.0, (appears_after or 0.0) + 5.0)
            assert earliest <= seconds < earliest + 11.0
            assert emu.existing == ()
        # Two a second at first, then one in five seconds.
        assert [each.route for each in emu.requests].count("list") <= 40 + 300 / 5
