"""The owner of each instance, according to the journals. Only reads files and does not send requests.

`client.owners()` and `cortecs-async top` use this module.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from attrs import frozen

from .._state_directory import check_state_directory
from .journal import is_owned, read_journals
from .promise import Promise
from .promises import Promises
from .records import JournalState
from .store import all_stores

OwnerKind = Literal["mine", "process", "orphan", "held"]

# If several journals list an instance, the first of these kinds wins, because it acts first.
_PRECEDENCE: tuple[OwnerKind, ...] = ("mine", "process", "orphan", "held")


@frozen(kw_only=True)
class Owner:
    """The owner of an instance, according to the journals: `client.owners()`.

    Attributes:
        kind: Who owns the instance.

            - `mine`: this process.
            - `process`: another living process.
            - `orphan`: a process that died or gave up on it. Its reaper or `sweep` releases it.
            - `held`: the holder of a handle from `acquire`, until `expires_at`.
        owner: The host and process id of the process that requested the instance.
        started_at: The Unix time in seconds at which this owner sent the start request or took over the
            instance, as `release` does.
        expires_at: The Unix time in seconds at which the instance is released in any case, or None if it
            never expires.
        shared: The name of the shared instance if the owner is the owner process of one: see `client.shared`.
            Otherwise, an empty string.

    Example:
        for instance_id, owner in (await client.owners()).items():
            print(instance_id, owner.kind, owner.owner)
    """

    kind: OwnerKind
    owner: str
    started_at: float
    expires_at: float | None = None
    shared: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.owner}" + (f", shared as {self.shared}" if self.shared else "")


async def owners(promises: Promises) -> Mapping[str, Owner]:
    """Return the owners of all instances listed in journals, by instance id.

    Raises:
        JournalError: If the state directory cannot be used.
    """
    if not promises.uses_journal:
        return _by_instance(_of_this_process(promises))
    return await promises.system.off_loop(
        lambda: _by_instance([*_of_this_process(promises), *_of_other_processes(promises)])
    )


def _of_this_process(promises: Promises) -> Iterator[tuple[str, Owner]]:
    owner_name = f"{socket.gethostname()}, process {os.getpid()}"
    # All clients in this process with this directory, including clients without a journal.
    for store in all_stores():
        if store.directory != promises.store.directory:
            continue
        for promise in list(store.state.promises.values()):
            if promise.instance_id is not None and promise.api == promises.api:
                kind = _own_kind(promise)
                name = str(store.owner_note.get("shared", ""))
                yield promise.instance_id, _owner(promise, kind, owner_name, name)


def _own_kind(promise: Promise) -> OwnerKind:
    # An abandoned lease was never exited, perhaps because its event loop ended, so no task owns its instance.
    if promise.abandoned:
        return "orphan"
    return "held" if promise.held else "mine"


def _of_other_processes(promises: Promises) -> Iterator[tuple[str, Owner]]:
    check_state_directory(promises.store.directory)
    own_ids = {store.state.owner.get("id") for store in all_stores()} - {None}
    for path, state in read_journals(promises.store.directory):
        if state.owner.get("id") in own_ids:
            continue
        named = [each for each in state.promises.values() if each.instance_id and each.api == promises.api]
        # Only if needed, because this costs a system call or two.
        is_living = is_owned(path) if named else None
        if is_living is not None:
            now = promises.system.wall_clock()
            for promise in named:
                kind = _kind(state, promise, now, is_living=is_living)
                yield str(promise.instance_id), _owner(promise, kind, state.owner_name, state.shared_name)


def _kind(state: JournalState, promise: Promise, now: float, *, is_living: bool) -> OwnerKind:
    # Once the owner is dead, its reaper has the lock.
    is_living = is_living and not state.is_orphaned
    if promise.held and not promise.is_due(now, owner_lives=is_living):
        return "held"
    return "process" if is_living and not promise.abandoned else "orphan"


def _owner(promise: Promise, kind: OwnerKind, owner_name: str, shared: str) -> Owner:
    return Owner(
        kind=kind, owner=owner_name, started_at=promise.at, expires_at=promise.expires_at, shared=shared
    )


def _by_instance(found: Iterable[tuple[str, Owner]]) -> Mapping[str, Owner]:
    best: dict[str, Owner] = {}
    for instance_id, owner in found:
        known = best.get(instance_id)
        if known is None or _PRECEDENCE.index(owner.kind) < _PRECEDENCE.index(known.kind):
            best[instance_id] = owner
    return best
