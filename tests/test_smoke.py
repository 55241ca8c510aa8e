"""Smoke tests with real sockets, processes and signals. The other tiers test these in detail."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from _command_line import PROGRAM, environment
from _processes import Program, until
from _world import HARDWARE, MODEL, client_of

from cortecs_async.emulator import Emulator, serve_emulator

pytestmark = pytest.mark.smoke

LEASE = f"""
import sys
import anyio
from cortecs_async import AsyncCortecs

async def main():
    async with AsyncCortecs() as client, client.instance("{MODEL}", "{HARDWARE}"):
        print("body", flush=True)
        await anyio.sleep(60)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def program(source: str, *arguments: str, emulator: Emulator, folder: Path) -> Program:
    return Program(source, *arguments, env=environment(emulator, folder), log=folder / "log")


@pytest.mark.parametrize(("number", "backend"), [(signal.SIGKILL, "asyncio"), (signal.SIGINT, "trio")])
async def test_kill_and_ctrl_c_leave_no_instance(
    tmp_path: Path, number: signal.Signals, backend: str
) -> None:
    async with serve_emulator(step_seconds=0.01) as emulator:
        foreign = emulator.start_instance(MODEL, HARDWARE)
        with program(LEASE, backend, emulator=emulator, folder=tmp_path) as lease:
            await until(lambda: lease.has_printed("body") or lease.has_ended)
            assert len(emulator.existing) == 2, lease.output
            lease.send(number)
            await until(lambda: lease.has_ended and not lease.has_left_a_reaper)
            assert ("KeyboardInterrupt" in lease.output) is (number == signal.SIGINT)
        assert emulator.existing == (foreign,)
    assert list((tmp_path / "state" / "journal").iterdir()) == []


async def test_the_command_line_runs_a_command_with_an_instance(tmp_path: Path) -> None:
    async with serve_emulator(step_seconds=0.01) as emulator:
        arguments = ("run", MODEL, HARDWARE, "--", "sh", "-c", 'echo "at $OPENAI_BASE_URL"')
        with program(PROGRAM, *arguments, emulator=emulator, folder=tmp_path) as run:
            await until(lambda: run.has_ended)
            (entry,) = emulator.ledger
            assert f"at {emulator.root_url}" in run.output
            assert run.process.returncode == 0, run.output
        assert (entry.status, emulator.existing) == ("deleted", ())


async def test_a_killed_batch_resumes(tmp_path: Path) -> None:
    ids = [f"r{number}" for number in range(60)]
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    lines = [{"custom_id": each, "url": "/v1/chat/completions", "body": body} for each in ids]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    arguments = ("batch", str(source), "-o", str(target), "--model", MODEL, "--concurrency", "4")

    def answered() -> list[str]:
        return [json.loads(line)["custom_id"] for line in target.read_text().splitlines(keepends=True)]

    async with serve_emulator(step_seconds=0.01, answer_seconds=0.02) as emulator:
        with program(PROGRAM, *arguments, emulator=emulator, folder=tmp_path) as first:
            await until(lambda: first.has_ended or (target.exists() and b"\n" in target.read_bytes()))
            first.send(signal.SIGKILL)
            await until(lambda: not emulator.existing)
        num_answered = target.read_bytes().count(b"\n")
        assert num_answered < len(ids), first.output
        num_requests = sum(each.route == "chat" for each in emulator.requests)
        with program(PROGRAM, *arguments, emulator=emulator, folder=tmp_path) as second:
            await until(lambda: second.has_ended)
            assert second.process.returncode == 0, second.output
        assert emulator.existing == ()
        # The second run sends only the requests whose answers were not written before the kill.
        num_requests = sum(each.route == "chat" for each in emulator.requests) - num_requests
        # The first one only tests that the new instance answers.
        assert num_requests == 1 + len(ids) - num_answered
    assert sorted(answered()) == sorted(ids)


async def test_the_openai_client_chats_with_a_leased_instance() -> None:
    pytest.importorskip("openai")
    async with serve_emulator(step_seconds=0.01) as emulator, client_of(emulator) as client:
        async with client.instance(MODEL) as inst, inst.openai(api_key=emulator.api_key) as llm:
            answer = await llm.chat.completions.create(
                model=inst.model, messages=[{"role": "user", "content": "Are you there?"}]
            )
            assert "Are you there?" in (answer.choices[0].message.content or "")
        assert emulator.existing == ()


async def test_a_lease_works_on_the_aiohttp_transport() -> None:
    pytest.importorskip("aiohttp")
    async with serve_emulator(step_seconds=0.01) as emulator:
        async with client_of(emulator, transport="aiohttp") as client, client.instance(MODEL) as inst:
            assert emulator.billing == (inst.instance_id,)
        assert emulator.existing == ()
