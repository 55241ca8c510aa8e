"""Promises as records: the format of the journal and the pipe to the reaper.

A record is a JSON object with a `kind`. Applied in order, records produce a `JournalState`: the promises that
are still open. All other modules here write records or make decisions based on this state.

The reaper imports this module when it starts, so it imports only what is needed to apply a record.
"""

from __future__ import annotations

from .promise import Promise

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Record = dict[str, Any]
else:
    Record = dict

# The version of the format, in the OWNER record. Records may gain fields without a new version.
FORMAT = 1

# The first bytes of a record, and of the first record in a journal.
_RECORD_START = b'{"'
_OWNER_START = b'{"kind":"OWNER","format":%d,' % FORMAT

# Records that must survive a power loss, like any record with `durable`. Losing any other record only costs
# extra requests.
DURABLE_KINDS = frozenset({"INTENT", "CREATED", "HELD", "ABANDONED", "AMBIGUOUS"})

# The maximum number of baselines to keep that no start request without a known instance uses.
_MAX_UNUSED_BASELINES = 16

# The maximum number of past ids to keep.
_MAX_PAST_IDS = 1000


class JournalState:
    """The open promises of one process.

    Attributes:
        baselines: Sets of ids, by the names that promises refer to.
        past_ids: Instances whose promises are closed, oldest first: the URL of the service (None if unknown)
            and the id. A list may still show such an instance for a while after its deletion, or permanently
            if it was handed over. No search may take it.
        owner: The record of the process that made the promises.
        is_orphaned: Whether the reaper has taken over from a dead owner.
        num_unreadable: Number of journal lines that were not understood.
    """

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}
        self.baselines: dict[str, frozenset[str]] = {}
        self.past_ids: dict[tuple[str | None, str], None] = {}
        self.owner: Record = {}
        self.is_orphaned: bool = False
        self.num_unreadable: int = 0

    @property
    def has_other_format(self) -> bool:
        """Whether the journal's format differs from the one that this version writes."""
        return bool(self.owner.get("format", FORMAT) != FORMAT)

    @property
    def problem(self) -> str:
        """The reason the journal must not be removed or rewritten, or an empty string if there is none."""
        if self.has_other_format:
            return f"written by another version of this package (format {self.owner['format']!r})"
        if "format" not in self.owner:
            return "the file does not look like a journal of this package"
        if self.num_unreadable == 1:
            return "1 line is unreadable"
        return f"{self.num_unreadable} lines are unreadable" if self.num_unreadable else ""

    @property
    def owner_name(self) -> str:
        """The host and process id of the owner, for people."""
        return f"{self.owner.get('host', '?')}, process {self.owner.get('pid', '?')}"

    @property
    def shared_name(self) -> str:
        """The name under which the owner shares its instance, or an empty string."""
        name = self.owner.get("shared")
        return name if isinstance(name, str) else ""

    def apply(self, record: Record) -> bool:
        """Apply a record. If it is not understood, return False without a change."""
        apply = _APPLY.get(str(record.get("kind")))
        if apply is None:
            return False
        try:
            apply(self, record)
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
        return True

    def has_unresolved(self) -> bool:
        """Return whether the search for the instance of a start request is still open."""
        return any(each.instance_id is None and not each.candidates for each in self.promises.values())

    def close(self, key: str) -> None:
        """Remove a promise and add its instance to the past ids."""
        promise = self.promises.pop(key, None)
        if promise is not None and promise.instance_id is not None:
            self.add_past(promise.instance_id, promise.api)

    def add_past(self, instance_id: str, api: str | None = None) -> None:
        """Add the instance of a closed promise to the past ids. Other services may use the same id."""
        self.past_ids.pop((api, instance_id), None)
        self.past_ids[api, instance_id] = None
        if len(self.past_ids) > _MAX_PAST_IDS:
            del self.past_ids[next(iter(self.past_ids))]

    def baseline_of(self, promise: Promise) -> frozenset[str] | None:
        """Return the ids that existed before a promise's start request, or None if no longer known."""
        # Start requests with the same baseline share one set, because each may hold it for a long time.
        return self.baselines.get(promise.baseline or "")

    def idle_times(self) -> list[Record]:
        """Return the records that a journal does not have, for a new reaper."""
        return [
            {"kind": "IDLE", "entry": promise.key, "idle_at": promise.idle_at}
            for promise in self.promises.values()
            if promise.idle_at is not None
        ]

    def snapshot(self) -> list[Record]:
        """Return the smallest list of records that produces this state, without `idle_times`."""
        records: list[Record] = [self.owner] if self.owner else []
        for api in dict.fromkeys(each for each, _ in self.past_ids):
            ids = [instance_id for each, instance_id in self.past_ids if each == api]
            records.append({"kind": "PAST", "api": api, "ids": ids})
        # Each baseline directly before its first use, because unused ones may be dropped on applying.
        baselines = {
            name: {"kind": "BASELINE", "baseline": name, "ids": sorted(ids)}
            for name, ids in self.baselines.items()
        }
        for promise in self.promises.values():
            if promise.baseline in baselines:
                records.append(baselines.pop(promise.baseline))
            records += _records_of(promise)
        return [*records, *baselines.values()]


def _records_of(promise: Promise) -> Iterable[Record]:
    common: Record = {"entry": promise.key, "account": promise.account, "api": promise.api, "at": promise.at}
    if promise.bill:
        common["bill"] = promise.bill
    if promise.baseline is not None:
        more = {"service_at": promise.service_at, "tag": promise.tag}
        yield {"kind": "INTENT", **common, "args": promise.args, "baseline": promise.baseline, **more}
    if promise.instance_id is not None:
        yield {
            "kind": "CREATED",
            **common,
            "args": promise.args,
            "instance_id": promise.instance_id,
            "goal": promise.goal,
            "expires_at": promise.expires_at,
        }
    if promise.seen:
        yield {"kind": "SEEN", "entry": promise.key}
    if promise.unanswered:
        yield {"kind": "UNANSWERED", "entry": promise.key}
    if promise.held:
        yield {"kind": "HELD", "entry": promise.key, **({"watched": True} if promise.is_watched else {})}
    if promise.abandoned:
        yield {"kind": "ABANDONED", "entry": promise.key}
    if promise.candidates:
        yield {"kind": "AMBIGUOUS", "entry": promise.key, "candidates": list(promise.candidates)}


def _apply_owner(state: JournalState, record: Record) -> None:
    state.owner = record


def _apply_baseline(state: JournalState, record: Record) -> None:
    state.baselines[_text(record["baseline"])] = frozenset(map(_text, record["ids"]))
    if len(state.baselines) > _MAX_UNUSED_BASELINES:
        # Once its instance is known, a promise no longer needs the baseline.
        used = {each.baseline for each in state.promises.values() if each.instance_id is None}
        unused = [name for name in state.baselines if name not in used]
        for name in unused[:-_MAX_UNUSED_BASELINES]:
            del state.baselines[name]


def _new_promise(record: Record) -> Promise:
    args: dict[str, Any] = dict(record["args"])
    if not all(value is None or isinstance(value, (str, int, float)) for value in args.values()):
        raise TypeError("an argument of a start request is a JSON object or array")
    promise = Promise(
        _text(record["entry"]), _text(record["account"]), _text(record["api"]), args, float(record["at"])
    )
    _add_bill(promise, record)
    return promise


def _add_bill(promise: Promise, record: Record) -> None:
    # Anything else is ignored: a bill must not keep an instance from being released.
    if isinstance(bill := record.get("bill"), dict):
        promise.bill = {**promise.bill, **bill}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _apply_intent(state: JournalState, record: Record) -> None:
    promise = _new_promise(record)
    _text(promise.args["model_id"])
    promise.baseline = _text(record["baseline"])
    service_at, tag = record.get("service_at"), record.get("tag")
    promise.service_at = None if service_at is None else float(service_at)
    promise.tag = None if tag is None else int(tag)
    state.promises[promise.key] = promise


def _apply_created(state: JournalState, record: Record) -> None:
    promise = state.promises.get(_text(record["entry"]))
    instance_id, goal, expires_at = (
        _text(record["instance_id"]),
        _text(record["goal"]),
        record.get("expires_at"),
    )
    if promise is None and "account" not in record:
        # The start request was closed while the reaper searched for its instance.
        state.add_past(instance_id)
        return
    promise = promise or _new_promise(record)
    _add_bill(promise, record)
    promise.expires_at = None if expires_at is None else float(expires_at)
    promise.goal, promise.instance_id = goal, instance_id
    promise.held = promise.is_watched = False  # this package manages it again
    state.promises[promise.key] = promise


def _apply_held(state: JournalState, record: Record) -> None:
    if promise := state.promises.get(_text(record["entry"])):
        promise.held, promise.is_watched = True, record.get("watched") is True
        _close_unlimited(state, promise)


def _close_unlimited(state: JournalState, promise: Promise) -> None:
    if promise.held and promise.expires_at is None and not promise.is_watched:
        # Only the holder will ever release it.
        state.close(promise.key)


def _end_watches(state: JournalState) -> None:
    """Forget the idle times, which only a reaper whose parent lives acts on."""
    for promise in [*state.promises.values()]:
        promise.is_watched = False
        _close_unlimited(state, promise)


def _apply_seen(state: JournalState, record: Record) -> None:
    if promise := state.promises.get(_text(record["entry"])):
        promise.seen = True
        _add_bill(promise, record)


def _apply_idle(state: JournalState, record: Record) -> None:
    idle_at = float(record["idle_at"])
    if promise := state.promises.get(_text(record["entry"])):
        promise.idle_at = idle_at


def _apply_unanswered(state: JournalState, record: Record) -> None:
    if promise := state.promises.get(_text(record["entry"])):
        promise.unanswered = True


def _apply_abandoned(state: JournalState, record: Record) -> None:
    if promise := state.promises.get(_text(record["entry"])):
        promise.abandoned = True


def _apply_ambiguous(state: JournalState, record: Record) -> None:
    candidates = tuple(map(_text, record["candidates"]))
    if promise := state.promises.get(_text(record["entry"])):
        promise.candidates = candidates


def _apply_untagged(state: JournalState, record: Record) -> None:
    if promise := state.promises.get(_text(record["entry"])):
        promise.tag = None


def _apply_gone(state: JournalState, record: Record) -> None:
    state.close(_text(record["entry"]))


def _apply_past(state: JournalState, record: Record) -> None:
    api = record.get("api")
    api = None if api is None else _text(api)
    for instance_id in [*map(_text, record["ids"])]:
        state.add_past(instance_id, api)


def _apply_orphaned(state: JournalState, _: Record) -> None:
    state.is_orphaned = True
    _end_watches(state)


def _apply_note(_: JournalState, __: Record) -> None:
    """Do nothing, because a note only shows people the reaper's steps."""


_APPLY = {
    "OWNER": _apply_owner,
    "BASELINE": _apply_baseline,
    "INTENT": _apply_intent,
    "CREATED": _apply_created,
    "SEEN": _apply_seen,
    "IDLE": _apply_idle,
    "UNANSWERED": _apply_unanswered,
    "HELD": _apply_held,
    "ABANDONED": _apply_abandoned,
    "AMBIGUOUS": _apply_ambiguous,
    "UNTAGGED": _apply_untagged,
    "GONE": _apply_gone,
    "PAST": _apply_past,
    "ORPHANED": _apply_orphaned,
    "NOTE": _apply_note,
}


def encode(records: Iterable[Record]) -> bytes:
    """Encode records as lines."""
    import json  # noqa: PLC0415  (not needed by a reaper whose parent lives)

    return b"".join(json.dumps(each, separators=(",", ":")).encode() + b"\n" for each in records)


def decode(data: bytes) -> list[Record]:
    """Return the records in lines.

    Leave out unreadable lines, such as a last line that is cut off, or zeros after a power loss.
    """
    return [record for record in map(_decode_line, data.split(b"\n")[:-1]) if record is not None]


def _decode_line(line: bytes) -> Record | None:
    import json  # noqa: PLC0415  (not needed by a reaper whose parent lives)

    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def fold(data: bytes) -> JournalState:
    """Return the state produced by a journal's records.

    In a journal of a different format, the instances it lists count as past ids, so no search takes them.
    """
    state = JournalState()
    *lines, rest = data.split(b"\n")
    for record in map(_decode_line, lines):
        if record is None or not state.apply(record):
            state.num_unreadable += 1
    state.num_unreadable += not is_torn(rest)
    _end_watches(state)
    if state.has_other_format:
        for record in decode(data):
            candidates = record.get("candidates")
            for each in [record.get("instance_id"), *(candidates if isinstance(candidates, list) else ())]:
                if isinstance(each, str):
                    state.add_past(each)
    return state


def is_torn(rest: bytes) -> bool:
    """Return whether the end of a journal, after its last line, is a partly written record.

    A crash or power loss cut it off before the process acted on it. Also True without a partial record.
    """
    return _begins_like(rest, _RECORD_START)


def is_draft(data: bytes) -> bool:
    """Return whether this is a partly written journal, or a journal of known records only."""
    return _begins_like(data, _OWNER_START) and (b"\n" not in data or not fold(data).problem)


def _begins_like(data: bytes, start: bytes) -> bool:
    text = data.rstrip(b"\0")[: len(start)]
    return text == start[: len(text)]
