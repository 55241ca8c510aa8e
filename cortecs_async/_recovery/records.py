"""What this process has promised, as records: the one format of the journal and of the pipe to the reaper.

A record is a JSON object with a `kind`; folding records in their order gives a `Book` of what is still owed.
Only the standard library, and of that little: the reaper starts with this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Record = dict[str, Any]

FORMAT = 1

# Baselines that are kept though no intent names them.
_SPARE = 16


class Promise:
    """One promise: an instance that must go, or a start that may have made one.

    Attributes:
        key: Its name in the book.
        account: Fingerprint of the base URL and client id that can keep it.
        api: The base URL, for people.
        args: The arguments that were sent, without those left to the service; empty for a restart.
        at: Unix time in seconds, just before the request was sent.
        baseline: Ids that existed before it; None when the id was known from the first.
        instance_id: None as long as no answer has told it.
        goal: "gone" or "stopped".
        expires_at: Unix time in seconds after which the instance goes, whoever lives; None for never.
        held: True once it was handed over (`acquire`): only `expires_at` ends it.
        unanswered: True once its request has ended without an answer that says what it did.
        abandoned: True once its process has given up on it.
        candidates: Ids that it might be, of which some are not ours; nobody but a person decides.
    """

    __slots__ = (
        "abandoned",
        "account",
        "api",
        "args",
        "at",
        "baseline",
        "candidates",
        "expires_at",
        "goal",
        "held",
        "instance_id",
        "key",
        "unanswered",
    )

    def __init__(self, key: str, account: str, api: str, args: dict[str, Any], at: float) -> None:
        self.key: str = key
        self.account: str = account
        self.api: str = api
        self.args: dict[str, Any] = args
        self.at: float = at
        self.baseline: str | None = None
        self.instance_id: str | None = None
        self.goal: str = "gone"
        self.expires_at: float | None = None
        self.held: bool = False
        self.unanswered: bool = False
        self.abandoned: bool = False
        self.candidates: tuple[str, ...] = ()

    def is_due(self, now: float, *, owner_lives: bool, grace: float = 0.0) -> bool:
        """Whether somebody else than its owner should keep the promise now.

        Args:
            now: Unix time in seconds.
            owner_lives: Whether the process that made it can.
            grace: Seconds that a living owner has after `expires_at` to do it itself.
        """
        if self.candidates:
            return False
        expired = self.expires_at is not None and now >= self.expires_at + (grace if owner_lives else 0.0)
        if owner_lives:
            return self.abandoned or (expired and self.instance_id is not None)
        return expired if self.held else True

    def needs_recovery(self, now: float) -> bool:
        """Whether somebody should see to it, now that its owner is dead: its time may not be up."""
        return bool(self.candidates) or self.abandoned or self.is_due(now, owner_lives=False)


class JournalState:
    """What is owed, folded from records.

    Attributes:
        entries: By key.
        baselines: Ids, by the name that entries call them by.
        owner: The record of who made the promises.
        is_orphaned: True once the reaper has taken over from a dead owner.
    """

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}
        self.baselines: dict[str, frozenset[str]] = {}
        self.owner: Record = {}
        self.is_orphaned: bool = False

    def apply(self, record: Record) -> bool:
        """Takes one record; False when it is not understood, and nothing has changed."""
        change = _CHANGES.get(str(record.get("kind")))
        if change is None:
            return False
        try:
            change(self, record)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def baseline_of(self, promise: Promise) -> frozenset[str]:
        """The ids that existed before the start of an entry."""
        # The same set for all starts that share it: each may hold it for as long as it waits.
        return self.baselines.get(promise.baseline or "", frozenset())

    def snapshot(self) -> list[Record]:
        """The records that fold to this book, and no more."""
        records: list[Record] = [self.owner] if self.owner else []
        records += [
            {"kind": "BASELINE", "baseline": name, "ids": sorted(ids)} for name, ids in self.baselines.items()
        ]
        for entry in self.promises.values():
            records += _records_of(entry)
        return records


def _records_of(entry: Promise) -> Iterable[Record]:
    common = {"entry": entry.key, "account": entry.account, "api": entry.api, "at": entry.at}
    if entry.baseline is not None:
        yield {"kind": "INTENT", **common, "args": entry.args, "baseline": entry.baseline}
    if entry.instance_id is not None:
        yield {
            "kind": "CREATED",
            **common,
            "args": entry.args,
            "instance_id": entry.instance_id,
            "goal": entry.goal,
            "expires_at": entry.expires_at,
        }
    if entry.unanswered:
        yield {"kind": "UNANSWERED", "entry": entry.key}
    if entry.held:
        yield {"kind": "HELD", "entry": entry.key}
    if entry.abandoned:
        yield {"kind": "ABANDONED", "entry": entry.key}
    if entry.candidates:
        yield {"kind": "AMBIGUOUS", "entry": entry.key, "candidates": list(entry.candidates)}


def _owner(book: JournalState, record: Record) -> None:
    book.owner = record


def _baseline(book: JournalState, record: Record) -> None:
    book.baselines[str(record["baseline"])] = frozenset(str(each) for each in record["ids"])
    if len(book.baselines) > _SPARE:
        # The newest may be those of intents to come.
        used = {entry.baseline for entry in book.promises.values()}
        unused = [name for name in book.baselines if name not in used]
        for name in unused[:-_SPARE]:
            del book.baselines[name]


def _new(record: Record) -> Promise:
    return Promise(
        str(record["entry"]),
        str(record["account"]),
        str(record["api"]),
        dict(record["args"]),
        float(record["at"]),
    )


def _intent(book: JournalState, record: Record) -> None:
    entry = _new(record)
    entry.baseline = str(record["baseline"])
    book.promises[entry.key] = entry


def _created(book: JournalState, record: Record) -> None:
    entry = book.promises.get(str(record["entry"])) or _new(record)
    expires_at = record.get("expires_at")
    entry.expires_at = None if expires_at is None else float(expires_at)
    entry.goal = str(record["goal"])
    entry.instance_id = str(record["instance_id"])
    entry.held = False  # whoever held it has handed it back
    book.promises[entry.key] = entry


def _held(book: JournalState, record: Record) -> None:
    entry = book.promises.get(str(record["entry"]))
    if entry is not None:
        entry.held = True
        if entry.expires_at is None:
            # Nothing but its holder will ever end it.
            del book.promises[entry.key]


def _unanswered(book: JournalState, record: Record) -> None:
    if (entry := book.promises.get(str(record["entry"]))) is not None:
        entry.unanswered = True


def _abandoned(book: JournalState, record: Record) -> None:
    if (entry := book.promises.get(str(record["entry"]))) is not None:
        entry.abandoned = True


def _ambiguous(book: JournalState, record: Record) -> None:
    candidates = tuple(str(each) for each in record["candidates"])
    if (entry := book.promises.get(str(record["entry"]))) is not None:
        entry.candidates = candidates


def _gone(book: JournalState, record: Record) -> None:
    book.promises.pop(str(record["entry"]), None)


def _orphaned(book: JournalState, _: Record) -> None:
    book.is_orphaned = True


def _note(_: JournalState, __: Record) -> None:
    """A deed of the reaper's, for people."""


_CHANGES = {
    "OWNER": _owner,
    "BASELINE": _baseline,
    "INTENT": _intent,
    "CREATED": _created,
    "UNANSWERED": _unanswered,
    "HELD": _held,
    "ABANDONED": _abandoned,
    "AMBIGUOUS": _ambiguous,
    "GONE": _gone,
    "ORPHANED": _orphaned,
    "NOTE": _note,
}


def encode(records: Iterable[Record]) -> bytes:
    """Records as lines."""
    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in records)


def decode(data: bytes) -> list[Record]:
    """The records in lines. A line without its end was torn, and with it its promise: it is left out.

    So is any other line that cannot be read, as blocks of zeros after a loss of power.
    """
    records: list[Record] = []
    for line in data.split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def fold(data: bytes) -> JournalState:
    """The book that a journal's bytes make."""
    book = JournalState()
    for record in decode(data):
        book.apply(record)
    return book
