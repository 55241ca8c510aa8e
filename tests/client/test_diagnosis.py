"""Test that `client.diagnose()` finds each problem, and starts nothing."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import anyio
import httpx
import pytest
from _grids import alternating
from _processes import reapers_of
from _scripted import API, SECRET, TOKEN, Answer, Service, token
from _world import SYSTEM, World

from cortecs_async import AsyncCortecs, Credentials, errors
from cortecs_async._client.diagnosis import _Checks
from cortecs_async._client.wiring import Wiring
from cortecs_async._errors import GuardError
from cortecs_async._recovery import promises as _promises
from cortecs_async._recovery.journal import JournalFile
from cortecs_async._recovery.reaper_process import ReaperProcess
from cortecs_async._recovery.records import Record
from cortecs_async.emulator import Fault
from cortecs_async.types import Finding

NAMES = ["credentials", "inference key", "service", "token", "clock", "journal", "reaper"]
# The date of a new emulator on virtual time, which begins at zero.
NOW = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _virtual_wall_clock(journals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wiring, "system", SYSTEM)


async def found(client: AsyncCortecs) -> dict[str, Finding]:
    findings = await client.diagnose()
    assert [each.name for each in findings] == NAMES
    assert SECRET not in repr(findings)
    assert TOKEN not in repr(findings)
    return {each.name: each for each in findings}


def wrong(findings: dict[str, Finding]) -> set[str]:
    return {each.name for each in findings.values() if not each.ok}


def files(directory: Path) -> int:
    return len(list(directory.iterdir())) if directory.exists() else 0


async def test_all_is_well_and_nothing_is_started_or_left(world: World, journals: Path) -> None:
    async with world(journal="auto") as (emu, client):
        findings = await found(client)
        assert wrong(findings) == set()
        assert [each.hint for each in findings.values()] == [""] * len(NAMES)
        assert str(journals) in findings["journal"].detail
        assert findings["clock"].detail == "in sync with the service"
        assert emu.ledger == ()
        assert [each.route for each in emu.requests] == ["hardware_types", "token", "balance"]
    assert files(journals) == 0


async def test_missing_credentials(world: World) -> None:
    async with world() as (emu, _):
        async with httpx.AsyncClient(transport=emu.transport()) as http:
            client = AsyncCortecs(api_base_url=emu.api_base_url, http_client=http, guard="off")
            findings = await found(client)
            await client.aclose()
        assert wrong(findings) == {"credentials", "token"}
        assert findings["credentials"].detail == "missing: CORTECS_CLIENT_ID and CORTECS_CLIENT_SECRET"
        assert "cortecs-async login" in findings["credentials"].hint
        assert "no credentials" in findings["token"].detail


async def test_one_missing_variable_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_CLIENT_ID", "id")
    client = AsyncCortecs(api_base_url=API, guard="off", max_retries=0)
    finding = await _Checks(
        settings=client._settings, http=client._wiring.http, promises=client._wiring.promises
    ).credentials()
    await client.aclose()
    assert finding.detail == "missing: CORTECS_CLIENT_SECRET"
    assert finding.hint.endswith("Set it, or unset CORTECS_CLIENT_ID to use your profile.")


async def test_a_provider_that_fails_shows_nothing_of_what_it_says() -> None:
    async def provider() -> Credentials:
        raise RuntimeError(SECRET)

    async with Service().client(credential_provider=provider, guard="off") as client:
        findings = await found(client)
    assert findings["credentials"].detail == "credential_provider raised RuntimeError"


async def test_refused_credentials(world: World) -> None:
    async with world(client_secret="another") as (emu, _):
        async with httpx.AsyncClient(transport=emu.transport()) as http:
            async with AsyncCortecs(
                emu.client_id, SECRET, api_base_url=emu.api_base_url, http_client=http, guard="off"
            ) as client:
                findings = await found(client)
    assert wrong(findings) == {"token"}
    assert "401" in findings["token"].detail
    assert "OPENAI_API_KEY" in findings["token"].hint


async def test_a_service_that_cannot_be_reached_is_asked_once() -> None:
    service = Service()
    service.on("GET", "/hardware-types/", Answer(failure=httpx.ConnectError))
    async with service.client(guard="off") as client:
        findings = await found(client)
    assert wrong(findings) == {"service", "token"}
    assert API in findings["service"].detail
    assert "CORTECS_API_BASE_URL" in findings["service"].hint
    assert len(service.requests) == 1


@alternating(
    "answer,reached",
    [
        (Answer(status=401), True),
        (Answer(status=429), True),
        (Answer(status=404), False),
        (Answer(status=503), False),
        (Answer(content=b"<html>Welcome to this hotel</html>"), False),
    ],
)
async def test_whether_it_is_the_service_that_answers(answer: Answer, *, reached: bool) -> None:
    service = Service()
    service.on("GET", "/hardware-types/", answer)
    async with service.client(guard="off") as client:
        assert (await found(client))["service"].ok is reached


async def test_every_check_is_bounded(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="balance", seconds=3600, times=None))
        start = anyio.current_time()
        findings = await found(client)
        assert anyio.current_time() - start <= 60
        assert wrong(findings) == {"token"}


@alternating(
    "apart,age,said",
    [
        (timedelta(seconds=59), 0, None),
        (timedelta(seconds=-59), 0, None),
        (timedelta(seconds=61), 0, "61 s behind"),
        (timedelta(hours=-2), 0, "7200 s ahead of"),
        (timedelta(seconds=-90), 90, None),  # from a cache on the way
    ],
)
async def test_clocks_that_are_apart(apart: timedelta, age: int, said: str | None) -> None:
    headers = {"Date": format_datetime(NOW + apart, usegmt=True), "Age": str(age)}
    findings = await found_with(headers)
    assert findings["clock"].ok is (said is None)
    assert (said or "in sync") in findings["clock"].detail


@alternating("date", ["yesterday", "", "Mon, 99 May 2026 12:00:00 GMT", "0"])
async def test_a_date_that_is_none_is_not_compared(date: str) -> None:
    findings = await found_with({"Date": date})
    assert findings["clock"] == Finding(
        name="clock", ok=True, detail="not checked: the service does not send a valid Date header"
    )


async def found_with(headers: dict[str, str]) -> dict[str, Finding]:
    service = Service()
    service.on("POST", "/oauth2/token", token())
    service.on("GET", "/hardware-types/", Answer(json={"hardware_types": []}))
    service.on(
        "GET", "/user/balance", Answer(json={"current_balance": 1, "currency": "EUR"}, headers=headers)
    )
    async with service.client(guard="off") as client:
        return await found(client)


async def test_a_directory_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with world(journal="auto", state_dir=tmp_path / "file") as (_, client):
        findings = await found(client)
    assert wrong(findings) == {"journal"}
    assert "CORTECS_STATE_DIR" in findings["journal"].hint


async def test_a_disk_without_locks(world: World, journals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortecs_async._recovery.journal.lock", lambda _: None)
    async with world(journal="auto") as (_, client):
        findings = await found(client)
    assert wrong(findings) == {"journal"}
    assert "locks" in findings["journal"].detail
    assert files(journals) == 0


async def test_what_the_dead_left_is_counted_and_left_alone(world: World, journals: Path) -> None:
    created = {"kind": "CREATED", "entry": "1", "account": "a", "api": "x", "at": 5.0, "args": {}}
    for number in range(2):
        record = {**created, "instance_id": f"i{number}", "goal": "gone"}
        JournalFile.create(journals, [record]).close()
    living = JournalFile.create(journals, [{**created, "instance_id": "i", "goal": "gone"}])
    orphaned = {"kind": "ORPHANED"}
    reaper = JournalFile.create(journals, [{**created, "instance_id": "o", "goal": "gone"}, orphaned])
    async with world(journal="auto") as (_, client):
        findings = await found(client)
    assert wrong(findings) == set()
    assert "2 journal(s) of dead processes" in findings["journal"].detail
    assert "1 journal(s) that a reaper is still working on" in findings["journal"].detail
    assert "sweep --force" in findings["journal"].hint
    assert files(journals) == 4
    living.remove()
    reaper.remove()


async def test_a_reaper_that_is_working_is_counted(world: World, journals: Path) -> None:
    common = {"entry": "1", "account": "a", "api": "x", "at": 5.0, "args": {}, "goal": "gone"}
    created: Record = {"kind": "CREATED", **common, "instance_id": "i"}
    given_up = JournalFile.create(journals, [created, {"kind": "ABANDONED", "entry": "1"}])
    acquired: list[Record] = [
        {**created, "expires_at": 1e12},
        {"kind": "HELD", "entry": "1"},
        {"kind": "ORPHANED"},
    ]
    held = JournalFile.create(journals, acquired)
    async with world(journal="auto") as (_, client):
        findings = await found(client)
    assert findings["journal"].detail.endswith("; 1 journal(s) that a reaper is still working on")
    given_up.remove()
    held.remove()


async def test_what_is_switched_off_is_not_checked(world: World, journals: Path) -> None:
    async with world() as (_, client):
        findings = await found(client)
    assert 'journal="off"' in findings["journal"].detail
    assert 'guard="off"' in findings["reaper"].detail
    assert files(journals) == 0


async def test_no_reaper_to_be_had(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise GuardError("no Python here")

    monkeypatch.setattr(_promises, "check_reaper", none)
    async with world(guard="auto") as (_, client):
        findings = await found(client)
    assert wrong(findings) == {"reaper"}
    assert "no Python here" in findings["reaper"].detail
    assert "sweep" in findings["reaper"].hint


@pytest.mark.sockets
async def test_a_reaper_is_started_and_goes_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    greet = ReaperProcess.handshake

    def greeted(guard: ReaperProcess) -> None:
        greet(guard)
        seen.extend(reapers_of(os.getpid()))

    monkeypatch.setattr(ReaperProcess, "handshake", greeted)
    async with world(guard="auto") as (_, client):
        findings = await found(client)
    # This emulator has no socket.
    assert not findings["reaper"].ok
    assert findings["reaper"].detail.startswith("the reaper cannot reach the service: cannot connect to ")
    assert len(seen) == 1
    assert reapers_of(os.getpid()) == ()


async def test_a_closed_client_says_so(world: World) -> None:
    async with world() as (_, client):
        await client.aclose()
        with pytest.raises(errors.ClientClosedError):
            await client.diagnose()
