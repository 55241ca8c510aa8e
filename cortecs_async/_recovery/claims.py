"""Claims: which instances other processes own, or may be starting, according to their journals.

The search for the instance of an unresolved start uses this: `promises` for a lease, `recover` for a dead
process. An instance that another process claims is never taken.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import attrs
from attrs import field, frozen

from .._api.domain import InstanceArgs
from .._api.matching import UnresolvedStart
from .records import JournalState, Promise

# Maximum seconds for which a start of a living process can be in progress.
_MAX_START_DURATION = 600.0


@frozen
class ForeignClaims:
    """The instances and starts of other processes and clients.

    Attributes:
        ids: Instances that they own, and candidates of their ambiguous starts.
        starting: Starts of living processes that may be in progress.
        unanswered: Starts of living processes that got no response; those processes search for the instances.
        orphaned_starts: Starts of dead processes; their reapers search for the instances.
    """

    ids: set[str] = field(factory=set)
    starting: list[UnresolvedStart] = field(factory=list)
    unanswered: list[UnresolvedStart] = field(factory=list)
    orphaned_starts: list[UnresolvedStart] = field(factory=list)


def collect_foreign_claims(
    api: str, own: JournalState, own_keys: Container[str], foreign: Iterable[JournalState], now: float
) -> ForeignClaims:
    """Return the claims of other promises, of any account: two accounts may be one under two client ids.

    `own_keys` are those of our promises in `own`. In the other states, the same keys are other promises.
    """
    claims = ForeignClaims()
    for state in (own, *foreign):
        for promise in list(state.promises.values()):
            if promise.api != api or (state is own and promise.key in own_keys):
                continue
            if promise.instance_id is not None:
                claims.ids.add(promise.instance_id)
            elif promise.candidates:
                claims.ids.update(promise.candidates)
            elif state.is_orphaned:
                claims.orphaned_starts.append(unresolved_start_of(state, promise))
            elif now - promise.at < _MAX_START_DURATION:
                starts = claims.unanswered if promise.unanswered else claims.starting
                starts.append(unresolved_start_of(state, promise))
    return claims


def unresolved_start_of(state: JournalState, promise: Promise) -> UnresolvedStart:
    """Return the start that a promise records."""
    known = {each.name for each in attrs.fields(InstanceArgs)}
    return UnresolvedStart(
        args=InstanceArgs(**{name: value for name, value in promise.args.items() if name in known}),
        baseline=state.baseline_of(promise),
        order=(promise.at, f"{state.owner.get('id')}{promise.key}"),
    )
