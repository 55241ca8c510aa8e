"""An office on virtual time: the programs of a team, and what can happen to them.

Each program is a process with its own client and reaper, as in `_simulation`, which explains what is
simulated. All of them use one account and one state directory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
from _simulation.actors import ProcessActor, current_actor
from _simulation.data import Process, World
from _simulation.network import Network
from _simulation.run import Simulation, forget_stores

from cortecs_async import AsyncCortecs, InstanceHandle, PollPolicy
from cortecs_async.emulator import Emulator
from cortecs_async.emulator._catalog import HARDWARE

Work = Callable[[AsyncCortecs], Awaitable[Any]]

# Less often than by default, because a day has many polls.
_POLLS = PollPolicy(min_interval=2.0, max_interval=15.0, lost_interval=60.0)

# Seconds for the last reapers to finish.
_REAPERS_TIMEOUT = 600.0


class Office(Simulation):
    """The emulated account, and the machine that the team works on."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__("asyncio", World(processes=()), folder)
        self._options = options

    @property
    def state(self) -> Path:
        """The state directory of all programs."""
        return self.machines[0].state

    async def run_day(self, day: Callable[[], Awaitable[None]]) -> None:
        """Run the script of a day, and wait for the reapers."""
        self.emulator = Emulator(clock=anyio.current_time, root_url="https://emulator.test", **self._options)
        self.transport = self.emulator.transport()
        async with anyio.create_task_group() as self.tasks:
            await day()
            with anyio.fail_after(_REAPERS_TIMEOUT):
                await self._wait_for_reapers()
            self.tasks.cancel_scope.cancel()

    async def at(self, time: str) -> None:
        """Wait until a time of the day, such as `9:30`."""
        seconds = seconds_of(time) - anyio.current_time()
        assert seconds >= 0, f"it is {self.time} already"
        await anyio.sleep(seconds)

    @property
    def time(self) -> str:
        """The time of the day."""
        return time_of(anyio.current_time())

    def start(self, work: Work, *, is_killed_at_start: bool = False) -> Program:
        """Run a program in a process of its own.

        With `is_killed_at_start`, the process and its reaper are killed right after the service has accepted
        the program's start request, before the response arrives.
        """
        program = Program(self, is_killed_at_start=is_killed_at_start)
        self.processes.append(program)
        self.tasks.start_soon(program.run, work)
        return program

    async def run_program(self, work: Work) -> Any:
        """Run a program to its end, and return its result or raise its error."""
        return await self.start(work).outcome()

    def make_client(self, http: httpx.AsyncClient, machine: Any, **options: Any) -> AsyncCortecs:
        forget_stores()
        return AsyncCortecs(
            self.emulator.client_id,
            self.emulator.client_secret,
            api_base_url=self.emulator.api_base_url,
            http_client=http,
            state_dir=machine.state,
            poll_policy=_POLLS,
            **options,
        )

    def set_capacity(self, sets: int) -> None:
        """Change the number of GPU sets of all hardware types."""
        for name in HARDWARE:
            self.emulator.set_capacity(name, sets)


class Program(ProcessActor):
    """A process of the team."""

    def __init__(self, office: Office, *, is_killed_at_start: bool) -> None:
        super().__init__(office, len(office.processes), Process(leases=()), ())
        self.network = _Network(office, self)
        self.is_killed_at_start = is_killed_at_start
        self._result: Any = None
        self._error: Exception | None = None
        self._has_ended = anyio.Event()

    async def run(self, work: Work) -> None:
        """Run until the work is done or the process is killed."""
        current_actor.set(self)
        client = self.make_client()
        with anyio.CancelScope() as scope:
            self.cancel = scope.cancel
            try:
                self._result = await work(client)
            except Exception as error:  # noqa: BLE001  (raised by `outcome`)
                self._error = error
        await self.aclose()
        self._has_ended.set()

    async def outcome(self) -> Any:
        """Wait for the end, and return the result or raise the error."""
        await self._has_ended.wait()
        assert self.is_alive, "the process was killed"
        if self._error is not None:
            raise self._error
        return self._result

    def kill_with_reaper(self) -> None:
        """Kill the process and its reaper, as when a container is killed."""
        for reaper in self.reapers:
            if not reaper.is_done:
                reaper.kill()
        self.kill()

    async def ask(self, inst: Any, question: str) -> str:
        """Send a question to an instance."""
        assert self._http is not None
        response = await self._http.post(
            f"{inst.base_url}/chat/completions",
            json={"model": inst.model, "messages": [{"role": "user", "content": question}]},
            headers={"Authorization": f"Bearer {self.world.emulator.api_key}"},
            timeout=60.0,
        )
        answer: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
        return answer


class _Network(Network):
    async def _start(self, request: httpx.Request) -> httpx.Response:
        program = self._actor
        assert isinstance(program, Program)
        response = await self._carry_out(request)
        if program.is_killed_at_start:
            program.kill_with_reaper()
        if not program.is_alive:
            raise httpx.ReadError("killed", request=request)
        return response


async def ask(inst: InstanceHandle, question: str) -> str:
    """Send a question to an instance, from the program that calls this."""
    program = current_actor.get()
    assert isinstance(program, Program)
    return await program.ask(inst, question)


def seconds_of(time: str) -> float:
    """Return the seconds since midnight of a time of the day."""
    hours, minutes = time.split(":")
    return 3600.0 * int(hours) + 60.0 * int(minutes)


def time_of(seconds: float) -> str:
    """Return the time of the day, such as `9:30`, some seconds after midnight."""
    minutes = int(seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02}"
