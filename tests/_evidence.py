"""Processes on one machine, for tests of ownership. Each has its own client and journal."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import httpx
from _world import HARDWARE, MODEL, client_of, emulated_wall_clock

from cortecs_async import AsyncCortecs, errors
from cortecs_async._environment import Environment
from cortecs_async._recovery.journal import read_journals, try_lock
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.reaper import Reaper
from cortecs_async._recovery.reaper_process import revealed
from cortecs_async._recovery.records import JournalState, Record
from cortecs_async._recovery.recover import reap_account
from cortecs_async._recovery.store import PromiseStore
from cortecs_async.emulator import Emulator

PROXY_PAGE = "<html><body>The proxy received no valid response.</body></html>"
"""A body that makes the outcome of a start unknown. An error in JSON would be a rejection."""


class FakeReaper:
    """Replaces the reaper process. Stores the messages it receives and does nothing else."""

    def __init__(self, *_: Any) -> None:
        self.is_running = False
        self.start()
        self.is_running = False

    @property
    def promises(self) -> list[Promise]:
        """The promises that it would fulfill if its parent died now."""
        return list(self.reaper.state.promises.values())

    def start(self) -> None:
        self.reaper = Reaper(lambda _: None, lambda *_: None)
        self.is_running = True

    def handshake(self) -> None:
        """Do nothing, because it always responds."""

    def send(self, messages: Iterable[Record]) -> None:
        for number, message in enumerate(messages):
            self.reaper.receive({**revealed(message), "number": number})

    def rehearsed(self, _: str) -> str:
        return ""

    def detach(self) -> None:
        self.is_running = False

    shutdown = kill = close_in_child = detach


class _MortalTransport(httpx.AsyncBaseTransport):
    """A transport whose requests hang forever once its process is dead."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.is_dead = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_dead:
            await anyio.sleep_forever()
        return await self.inner.handle_async_request(request)


class Process:
    """A client with its own journal."""

    def __init__(
        self, emu: Emulator, client: AsyncCortecs, transport: _MortalTransport, journals: Path
    ) -> None:
        self.emu = emu
        self.client = client
        self.store = PromiseStore(journals, journal=True, guard=False, wall_clock=emulated_wall_clock)
        client._wiring.promises.store = self.store
        self._transport = transport

    @property
    def journal(self) -> Path:
        """The path of its journal."""
        assert self.store._journal is not None
        return self.store._journal.path

    @property
    def promises(self) -> list[Promise]:
        """Its open promises on disk."""
        states = dict(read_journals(self.journal.parent))
        return list(states[self.journal].promises.values())

    async def start_and_die(self, options: dict[str, Any] | None = None) -> None:
        """Start an instance in a process that is killed before the instance is running."""
        with contextlib.suppress(errors.CortecsError):  # its requests hang until they time out
            async with self.client.instance(MODEL, HARDWARE, teardown_timeout=1.0, **(options or {})):
                await anyio.sleep_forever()
        assert self._transport.is_dead

    def kill(self) -> Path | None:
        """End it without a release. It stops sending and writing. Return the journal it leaves behind."""
        self._transport.is_dead = True
        journal, self.store._journal = self.store._journal, None
        self.store._uses_journal = False
        if journal is None:
            return None
        journal.close()
        return journal.path

    async def reap(self, path: Path | None) -> None:
        """Do its reaper's work after its death."""
        if path is None or (locked := try_lock(path)) is None:
            return
        state = locked.read()

        def report(record: Record) -> None:
            state.apply(record)
            locked.append([record], durable=False)

        report({"kind": "ORPHANED"})
        if state.promises:
            await reap(self.emu, state, list(state.promises.values()), report, path)
        locked.retire(state)


def account_of(emu: Emulator) -> Record:
    """Return an emulator's account as sent to the reaper."""
    return {
        "api_base_url": emu.api_base_url,
        "client_id": emu.client_id,
        "client_secret": emu.client_secret,
        "headers": {},
        "timeout": 30.0,
        "environment": Environment().to_data(),
    }


def applying(state: JournalState) -> Callable[[Record], None]:
    """Return a function that applies records like a dead process's reaper, but without a journal."""

    def report(record: Record) -> None:
        state.apply(record)

    return report


async def reap(
    emu: Emulator,
    state: Any,
    promises: list[Promise],
    report: Callable[[Record], None],
    path: Path | None,
) -> None:
    """Fulfill promises as a reaper does, on the test's clock."""
    account = account_of(emu)
    async with emu.http_client() as http:
        await reap_account(
            state, promises, account, report, path, http_client=http, wall_clock=emulated_wall_clock
        )


@contextlib.asynccontextmanager
async def process(emu: Emulator, journals: Path, **options: Any) -> AsyncIterator[Process]:
    """Open a client that behaves like one in another process on this machine."""
    transport = _MortalTransport(emu.transport())
    async with (
        httpx.AsyncClient(transport=transport) as http,
        client_of(emu, http_client=http, **{"guard": "off", "journal": "auto", **options}) as client,
    ):
        yield Process(emu, client, transport, journals)


def open_promises(journals: Path) -> list[Promise]:
    """Return the open promises in all journals of a directory."""
    return [promise for _, state in read_journals(journals) for promise in state.promises.values()]
