"""The reaper's work, with the HTTP stack: everything that it owes, on every account that it was given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anyio

from ._api.instances import Instances
from ._config import PollPolicy, RetryPolicy, Settings
from ._finishing import Debt, Finisher
from ._http.client import HTTP
from ._journal import books
from ._records import Book, Entry, Record
from ._rivals import claims_of_others
from ._secrets import Credentials, Secret

# Seconds until the reaper gives up; what is left stays in the journal.
_LIMIT = 24 * 3600.0

# The same for a service on this machine: an emulator, most likely, which died with its program.
_LOCAL_LIMIT = 300.0

# Seconds after its parent's death in which a start that was under way may still show itself.
_WINDOW = 60.0


def reap(
    book: Book,
    entries: Sequence[Entry],
    accounts: dict[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    """Finishes these entries. Returns when they are, or cannot be."""
    anyio.run(_reap, book, entries, accounts, report, journal)


async def _reap(
    book: Book,
    entries: Sequence[Entry],
    accounts: dict[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    async with anyio.create_task_group() as tasks:
        for account in {entry.account for entry in entries}:
            if account in accounts:
                mine = [entry for entry in entries if entry.account == account]
                tasks.start_soon(_reap_in_any_case, book, mine, accounts[account], report, journal)


async def _reap_in_any_case(
    book: Book,
    entries: Sequence[Entry],
    arms: Record,
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    try:
        await _reap_account(book, entries, arms, report, journal)
    except Exception as error:  # noqa: BLE001  (one account's trouble must not end the others' work)
        report({"kind": "NOTE", "text": f"giving up: {error!r}", "at": time.time()})


async def _reap_account(
    book: Book,
    entries: Sequence[Entry],
    arms: Record,
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    credentials = Credentials(client_id=arms["client_id"], client_secret=Secret(arms["client_secret"]))

    async def provide() -> Credentials:
        return credentials

    settings = Settings(
        api_base_url=arms["api_base_url"],
        credential_provider=provide,
        timeout=min(float(arms["timeout"]), 30.0),
        retry=RetryPolicy(),
        poll=PollPolicy(),
        headers=arms["headers"],
    )
    http = HTTP(settings)
    try:
        keys = {each.key for each in entries}
        finisher = Finisher(
            instances=Instances(http.request_once, settings.poll),
            others=lambda: claims_of_others(settings.api_base_url, book, keys, _others(journal), time.time()),
            note=lambda text: report({"kind": "NOTE", "text": text, "at": time.time()}),
            patience=_LOCAL_LIMIT if settings.is_loopback else _LIMIT,
            visible_until=anyio.current_time() + _WINDOW,
            wall_clock=time.time,
        )
        await finisher.finish([Debt(book, entry, report) for entry in entries])
    finally:
        await http.aclose()


def _others(journal: Path | None) -> Iterable[Book]:
    return [book for path, book in books(journal.parent) if path != journal] if journal is not None else []
