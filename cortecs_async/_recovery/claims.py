"""Claims: instances that other processes own, or may be starting, according to their journals.

The search for the instance of an unresolved start uses claims: `promises` searches for a lease, and `recover`
for a dead process. An instance claimed by another process is never taken.

The list and the journals cannot be obtained at the same moment. So the claims are read both before and after
the list, and the claims from both readings count. Then the decision is made and recorded under the lock that
all processes with this state directory share (see `locks.decision_lock`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import attrs
from attrs import evolve, field, frozen

from .._api.domain import Instance, InstanceArgs
from .._api.matching import Ambiguous, Outcome, UnresolvedStart, match_start
from .promise import Promise
from .records import JournalState


@frozen
class ForeignClaims:
    """The instances and starts of other processes and clients.

    Attributes:
        ids: Instances that the other processes own or owned.
        ambiguous_ids: Candidates of ambiguous starts. No process takes these.
        in_progress: Starts by living processes that do not have a response yet.
        unresolved: Start requests whose outcome is unknown. Their processes, or the reapers of these
            processes, search for the instances.
    """

    ids: set[str] = field(factory=set)
    ambiguous_ids: set[str] = field(factory=set)
    in_progress: list[UnresolvedStart] = field(factory=list)
    unresolved: list[UnresolvedStart] = field(factory=list)

    def with_earlier(self, earlier: ForeignClaims) -> ForeignClaims:
        """Return these claims plus the instances that were claimed `earlier`, before the list was fetched.

        In the meantime, such an instance may have been deleted and its promise closed.
        """
        return evolve(
            self, ids=self.ids | earlier.ids, ambiguous_ids=self.ambiguous_ids | earlier.ambiguous_ids
        )

    def match(
        self,
        start: UnresolvedStart,
        instances: Iterable[Instance],
        own: Iterable[UnresolvedStart] = (),
        *,
        listed_at: float | None,
    ) -> Outcome:
        """Return the outcome of `match_start` for the instances that are not claimed.

        `own` are other unresolved starts of the caller. If no instance is left for the start request, but it
        could have created a candidate of an ambiguous start, its outcome is ambiguous too.
        """
        candidates = [
            each
            for each in instances
            if each.instance_id not in self.ids and each.status.lower() != "deleted"
        ]
        outcome = match_start(
            start,
            dict.fromkeys([*own, start, *self.unresolved]),
            [each for each in candidates if each.instance_id not in self.ambiguous_ids],
            in_progress=self.in_progress,
            listed_at=listed_at,
        )
        doubtful = [
            each.instance_id
            for each in candidates
            if each.instance_id in self.ambiguous_ids and start.can_have_created(each, listed_at)
        ]
        if not doubtful or (isinstance(outcome, Instance) and start.has_tag_of(outcome)):
            return outcome
        if isinstance(outcome, Instance):
            more: tuple[str, ...] = (outcome.instance_id,)
        else:
            more = () if outcome is None else outcome.candidates
        return Ambiguous(tuple(dict.fromkeys([*doubtful, *more])))


def collect_foreign_claims(
    api: str, states: Iterable[tuple[JournalState, Container[str | None]]]
) -> ForeignClaims:
    """Return the claims of other promises to instances of the service at `api`.

    The accounts may differ, because two accounts may be one account under two client ids. Each state comes
    with the keys of the promises that the caller decides about. These are left out.
    """
    claims = ForeignClaims()
    for state, own_keys in states:
        claims.ids.update(past for service, past in list(state.past_ids) if service in {None, api})
        for promise in list(state.promises.values()):
            if promise.api != api or promise.key in own_keys:
                continue
            if promise.instance_id is not None:
                claims.ids.add(promise.instance_id)
            elif promise.candidates:
                claims.ambiguous_ids.update(promise.candidates)
            elif state.is_orphaned or promise.abandoned or promise.unanswered:
                claims.unresolved.append(unresolved_start_of(state, promise))
            else:
                claims.in_progress.append(unresolved_start_of(state, promise))
    return claims


def unresolved_start_of(state: JournalState, promise: Promise) -> UnresolvedStart:
    """Return the start request that a promise records."""
    known = {each.name for each in attrs.fields(InstanceArgs)}
    start = UnresolvedStart(
        args=InstanceArgs(**{name: value for name, value in promise.args.items() if name in known}),
        baseline=state.baseline_of(promise),
        service_at=promise.service_at,
        tag=promise.tag,
        account=promise.account,
        order=(False, promise.at, f"{state.owner.get('id')}{promise.key}"),
    )
    # No lease is waiting for it any longer.
    return start.as_last() if state.is_orphaned or promise.abandoned else start
