"""Test what the reaper does when the service refuses its credentials, because the secret was rotated.

It unlocks the journal after minutes, so that a `sweep` with the new secret can release the instance. It does
not conclude this from less, and it tries again later, because the service may have been wrong.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from _evidence import PROXY_PAGE, account_of
from _promises import OWNER
from _promises import created as recorded
from _world import HARDWARE, MODEL, World, client_of, emulated_wall_clock
from anyio.abc import TaskGroup

from cortecs_async._errors import error_class_for
from cortecs_async._http.messages import EXCHANGE_PATH
from cortecs_async._recovery import recover
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.journal import JournalFile, is_owned, read_journals
from cortecs_async._recovery.reaper import Reaper
from cortecs_async._recovery.records import Record, encode
from cortecs_async._recovery.recover import _REAPER_TIMEOUT, _REFUSED_PAUSE, reap_account
from cortecs_async._recovery.refusal import _MIN_REFUSED_TIME, is_refusal
from cortecs_async.emulator import Emulator, Fault

# Seconds in which a reaper with a refused secret must unlock the journal, and until it has tried again.
LIMIT = 180.0
TRIED_AGAIN = _REFUSED_PAUSE + LIMIT

REFUSED = {"message": "Unknown client_id or wrong client_secret."}


class Scene:
    """An instance of a dead process, and its reaper, which has the lock of the journal.

    Attributes:
        tasks: Are cancelled at the end of the scene.
        foreign: An equal instance of someone else.
        unlocked_at: When the reaper first unlocked the journal, in seconds since it began.
        has_ended: Whether the reaper has ended.
    """

    def __init__(self, emu: Emulator, journals: Path, tasks: TaskGroup, **more: Any) -> None:
        self.emu = emu
        self.tasks = tasks
        self.foreign = emu.start_instance(MODEL, HARDWARE)
        self.instance_id = emu.start_instance(MODEL, HARDWARE)
        self.journal = JournalFile.create(journals, [OWNER, *self.records(**more)])
        self.state = self.journal.read()
        self.notes: list[str] = []
        self.unlocked_at: float | None = None
        self.has_ended = False
        self._account = account_of(emu)
        self._began = anyio.current_time()

    def records(self, **more: Any) -> list[Record]:
        """Return the records of the instance."""
        account = fingerprint(self.emu.api_base_url, self.emu.client_id)
        common: Record = {"account": account, "api": self.emu.api_base_url, "at": emulated_wall_clock()}
        held = [{"kind": "HELD", "entry": "e1"}] if "expires_at" in more else []
        return [recorded("e1", instance_id=self.instance_id, **common, **more), *held]

    @property
    def is_locked(self) -> bool | None:
        return is_owned(self.journal.path)

    @property
    def tokens(self) -> int:
        """Number of requests for a token."""
        return sum(each.route == "token" for each in self.emu.requests)

    async def reap(self, *, owner_lives: bool = False) -> None:
        """Do what the reaper does."""
        if not owner_lives:
            self._report({"kind": "ORPHANED"})
        async with self.emu.http_client() as http:
            await reap_account(
                *(self.state, list(self.state.promises.values()), self._account, self._report),
                self.journal.path,
                unlock_journal=self._unlock_journal,
                http_client=http,
                wall_clock=emulated_wall_clock,
            )
        self.has_ended = True

    def _report(self, record: Record) -> None:
        self.state.apply(record)
        if record["kind"] == "NOTE":
            self.notes.append(record["text"])
        if self.journal.path.exists():
            with self.journal.path.open("ab") as file:
                file.write(encode([record]))

    def _unlock_journal(self) -> None:
        if self.unlocked_at is None:
            self.unlocked_at = anyio.current_time() - self._began
            self.journal.close()


@asynccontextmanager
async def scene(world: World, journals: Path, **more: Any) -> AsyncIterator[Scene]:
    """Yield a scene whose reaper is told the first secret of a service that is not on this machine."""
    async with world(root_url="https://emulator.test") as (emu, _), anyio.create_task_group() as tasks:
        it = Scene(emu, journals, tasks, **more)
        yield it
        if it.unlocked_at is None:
            it.journal.close()
        tasks.cancel_scope.cancel()


async def sweep(it: Scene, **options: Any) -> list[str]:
    """Sweep with the current secret, and return the states of the results."""
    async with it.emu.http_client() as http:
        async with client_of(it.emu, http_client=http, guard="off", journal="auto") as client:
            return [each.state for each in await client.sweep(**options)]


# --- a rotated secret ---------------------------------------------------------------------------------------


async def test_a_reaper_whose_secret_was_rotated_leaves_the_instance_to_a_sweep_with_the_new_one(
    world: World, journals: Path
) -> None:
    async with scene(world, journals) as it:
        it.emu.rotate_secret("new")
        it.tasks.start_soon(it.reap)
        await anyio.sleep(_MIN_REFUSED_TIME - 1.0)
        assert await sweep(it) == ["releasing"]
        assert it.is_locked
        await anyio.sleep(LIMIT - _MIN_REFUSED_TIME)
        assert it.is_locked is False
        assert "refuses the credentials: POST /oauth2/token returned 401" in it.notes[-1]
        assert it.emu.billing == (it.foreign, it.instance_id)
        assert await sweep(it, dry_run=True) == ["found"]
        assert await sweep(it) == ["released"]
        assert it.emu.existing == (it.foreign,)
        assert list(read_journals(journals)) == []
        tokens = it.tokens
        await anyio.sleep(TRIED_AGAIN)
        assert it.has_ended
        assert it.tokens == tokens  # the reaper has read that nothing is left


async def test_a_reaper_tries_refused_credentials_again_but_rarely(world: World, journals: Path) -> None:
    async with scene(world, journals) as it:
        it.emu.rotate_secret("new")
        it.tasks.start_soon(it.reap)
        await anyio.sleep(3600.0)
        assert it.tokens < 150
        it.emu.rotate_secret(it._account["client_secret"])
        await anyio.sleep(TRIED_AGAIN)
        assert it.has_ended
        assert it.emu.existing == (it.foreign,)
        assert [state.promises for _, state in read_journals(journals)] == [{}]


async def test_a_reaper_with_refused_credentials_gives_up_in_the_end(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 2 * 3600.0
    monkeypatch.setattr(recover, "_REAPER_TIMEOUT", limit)
    async with scene(world, journals) as it:
        it.emu.rotate_secret("new")
        it.tasks.start_soon(it.reap)
        await anyio.sleep(limit - 2 * TRIED_AGAIN)
        assert not it.has_ended
        await anyio.sleep(2 * TRIED_AGAIN + 60.0)
        assert it.has_ended
        assert await sweep(it) == ["released"]


async def test_while_its_owner_lives_a_reaper_waits_for_new_credentials(world: World, journals: Path) -> None:
    async with scene(world, journals) as it:
        it.emu.rotate_secret("new")
        with anyio.fail_after(LIMIT):
            await it.reap(owner_lives=True)
        assert it.unlocked_at is None
        it._account = account_of(it.emu)  # as its owner has sent them
        it.tasks.start_soon(partial(it.reap, owner_lives=True))
        await anyio.sleep(LIMIT)
        assert it.emu.existing == (it.foreign,)


async def test_what_was_acquired_is_not_forgotten_while_its_secret_is_refused(
    world: World, journals: Path
) -> None:
    lifetime = 2 * _REAPER_TIMEOUT
    expires_at = emulated_wall_clock() + lifetime
    async with scene(world, journals, expires_at=expires_at) as it:
        it.emu.rotate_secret("new")
        it.tasks.start_soon(it.reap)
        await anyio.sleep(lifetime - 10.0)
        assert await sweep(it) == ["held"]
        it.emu.rotate_secret(it._account["client_secret"])
        await anyio.sleep(10.0 + TRIED_AGAIN)
        assert it.emu.existing == (it.foreign,)


# --- less than that -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("status", route="token", status=401, body=PROXY_PAGE, times=None), id="a proxy"),
        pytest.param(Fault("status", route=None, status=403, body=PROXY_PAGE, times=None), id="a firewall"),
        pytest.param(Fault("status", route=None, status=503, body=REFUSED, times=None), id="an outage"),
        pytest.param(Fault("drop", route=None, times=None), id="no network"),
        # The token works: the list succeeds.
        pytest.param(Fault("status", route="stop", status=403, body=REFUSED, times=None), id="only the stop"),
    ],
)
async def test_what_is_no_refusal_keeps_the_reaper_at_work(
    world: World, journals: Path, fault: Fault
) -> None:
    async with scene(world, journals) as it:
        it.emu.add_fault(fault)
        it.tasks.start_soon(it.reap)
        await anyio.sleep(1200.0)
        assert it.unlocked_at is None
        it.emu.clear_faults()
        await anyio.sleep(60.0)
        assert it.has_ended
        assert it.emu.existing == (it.foreign,)


async def test_refusals_with_a_success_in_between_are_not_added_up(world: World, journals: Path) -> None:
    async with scene(world, journals) as it:
        it.emu.add_fault(Fault("status", route="stop", status=500, times=None))
        it.tasks.start_soon(it.reap)
        for _ in range(5):
            it.emu.add_fault(Fault("status", route=None, status=401, body=REFUSED, times=None))
            await anyio.sleep(_MIN_REFUSED_TIME - 20.0)
            it.emu.clear_faults()
            it.emu.add_fault(Fault("status", route="stop", status=500, times=None))
            await anyio.sleep(60.0)
        assert it.unlocked_at is None


@pytest.mark.parametrize(
    ("status", "path", "body", "expected"),
    [
        (401, EXCHANGE_PATH, '{"message":"Unknown client_id"}', True),
        (401, "/instances/", ' {"error":"invalid_token"}', True),
        (403, "/instances/", '{"message":"Forbidden"}', True),
        (400, EXCHANGE_PATH, '{"error":"invalid_client"}', True),
        (400, "/instances/stop", '{"message":"already stopped"}', False),
        (401, EXCHANGE_PATH, "<html>Unauthorized</html>", False),
        (401, EXCHANGE_PATH, "", False),
        (404, EXCHANGE_PATH, '{"message":"Not Found"}', False),
        (429, EXCHANGE_PATH, '{"message":"slow down"}', False),
        (503, EXCHANGE_PATH, '{"message":"unavailable"}', False),
    ],
)
def test_refusals(status: int, path: str, body: str, *, expected: bool) -> None:
    error = error_class_for(status)("text", method="POST", path=path, status_code=status, body=body)
    assert is_refusal(error) is expected


# --- what another process has done --------------------------------------------------------------------------


async def test_a_suspended_reaper_does_not_stop_what_its_user_restarted_after_a_sweep(
    world: World, journals: Path
) -> None:
    async with scene(world, journals, goal="stopped") as it:
        it.emu.add_fault(Fault("status", route="stop", status=500, times=None))
        it.tasks.start_soon(it.reap)
        stops = 0
        while stops < 8:  # then it pauses for ten seconds, as if it was suspended
            await anyio.sleep(1.0)
            stops = sum(each.route == "stop" for each in it.emu.requests)
        it.emu.clear_faults()
        assert await sweep(it, force=True) == ["released"]
        assert not it.has_ended
        it.emu.restart_instance(it.instance_id)
        await anyio.sleep(LIMIT)
        assert it.has_ended
        assert it.emu.billing == (it.foreign, it.instance_id)


# --- the lock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_done", [True, False])
def test_a_reaper_unlocks_the_journal_and_removes_it_only_if_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_done: bool
) -> None:
    monkeypatch.setattr("cortecs_async._recovery.reaper.time.sleep", lambda _: None)
    journal = JournalFile.create(tmp_path, [OWNER, recorded("e1")])
    locked: list[bool | None] = []

    def work(_: Any, __: Any, ___: Any, report: Any, path: Path | None) -> None:
        assert path is not None
        locked.append(is_owned(path))
        # In another thread, as for what it began while its parent lived.
        thread = threading.Thread(target=reaper._unlock_journal)
        thread.start()
        thread.join()
        reaper._unlock_journal()
        locked.append(is_owned(path))
        if is_done:
            report({"kind": "GONE", "entry": "e1"})

    reaper = Reaper(lambda _: None, work)
    reaper.receive({"kind": "JOURNAL", "journal": str(journal.path), "number": 1})
    reaper.receive({**recorded("e1"), "number": 2})
    journal.close()
    reaper.recover_after_parent()
    assert locked == [True, False]
    assert journal.path.exists() is not is_done
