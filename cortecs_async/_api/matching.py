"""Find the instance that a start request created when its response was lost.

The service does not support tags, so the instance is found by its properties. A start request could have
created an instance if the instance did not exist before the start request (it is not in the `baseline`) and
has the arguments sent. The instance's timestamp cannot prove this, because its meaning is undocumented, but
it can be evidence against it: see `UnresolvedStart.is_confirmed_by`.

Several starts can be unresolved at the same time and match the same instances. So all starts and instances
that share possible matches, directly or through others, are considered together. If each of these instances
can be assigned to a different start request, the assignment is accepted: each start request gets its
instance, or none yet. If there are more instances than start requests, another process created one of them,
and it is unknown which one. Then the result is `Ambiguous`, and none of the instances is touched. If the
extra instance may come from a start request that has not received its response yet, the result is `Contested`
until it has.

With `tag_starts=True`, the context length distinguishes a start request from others: see
`UnresolvedStart.has_tag_of`.

`ensure` and `reuse` also compare arguments here: see `choose`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import astuple, define, evolve, field, frozen

from .catalog import Model
from .domain import DEFAULT_CONTEXT_LENGTH, Instance, InstanceArgs
from .recent_lists import RecentLists

# Seconds after a start request within which its instance may appear. An instance that appears later more
# likely belongs to another user's identical request.
LATE_WINDOW = 300.0

# Seconds by which an instance's timestamp can be before or after its start request. Before: the clocks of the
# service's machines may disagree. After: the service may process a start request late, and initialization
# takes time.
_MAX_BEFORE_START, _MAX_AFTER_START = 120.0, 1800.0

# A tag reduces the context length of a start request by less than this share.
MAX_TAG_SHARE = 0.01

# A timestamp older than this number of seconds is ignored. It may be a constant, for example.
_MAX_STAMP_AGE = 30 * 86400.0


@frozen(kw_only=True, eq=False)
class UnresolvedStart:
    """A start request that may have created an instance.

    Attributes:
        args: The arguments sent. None means the service's default and fits any value.
        baseline: The ids of the instances that existed before the start request, or None if they are no
            longer known.
        service_at: The time the baseline was fetched, by the service's clock, as Unix time in seconds, or
            None if the service does not send dates.
        tag: The context length sent instead of the one in `args`, to tag the start request, or None without a
            tag.
        account: The fingerprint of the account used.
        order: The sort key for start requests with the same arguments, so that every process assigns the
            instances in the same way.
    """

    args: InstanceArgs
    baseline: frozenset[str] | None
    service_at: float | None = None
    tag: int | None = None
    account: str = ""
    order: tuple[bool, float, str] = (False, 0.0, "")

    @property
    def generality(self) -> int:
        """The number of arguments for which an instance with a different value fits; see `fits`."""
        return list(astuple(self.args)).count(None) + (self.args.num_workers != 1)

    def as_last(self) -> UnresolvedStart:
        """Return a copy ordered after all start requests that a lease waits for.

        Using an instance is better than releasing it.
        """
        return evolve(self, order=(True, *self.order[1:]))

    def fits(self, instance: Instance) -> bool:
        """Return whether this request could have created the instance, judging by its id and arguments."""
        return self._is_new(instance) and (
            self.has_tag_of(instance) or fits(instance.instance_args, self.args)
        )

    def _is_new(self, instance: Instance) -> bool:
        return self.baseline is None or instance.instance_id not in self.baseline

    def has_tag_of(self, instance: Instance) -> bool:
        """Return whether the instance is new and has this start request's tag."""
        args = instance.instance_args
        return (
            self.tag is not None
            and args.context_length == self.tag
            and self._is_new(instance)
            and fits(args, evolve(self.args, context_length=self.tag))
        )

    def is_confirmed_by(self, instance: Instance, listed_at: float | None) -> bool | None:
        """Return whether the instance's timestamp fits this start request, or None if it is not evidence.

        Only the service's clock counts: the dates of its responses for the baseline and for this list
        (`listed_at`). An instance that is clearly older than the baseline but not in it may have been stopped
        at that time, not listed, and then restarted by another user. An instance that is clearly younger was
        started later. A timestamp in the future of this clock, or an implausibly old one, is not evidence.
        """
        stamp = instance.instance_status.started_at
        if stamp is None or self.service_at is None:
            return None
        age = stamp.timestamp() - self.service_at
        is_ahead = listed_at is not None and stamp.timestamp() > listed_at + _MAX_BEFORE_START
        if is_ahead or age < -_MAX_STAMP_AGE:
            return None
        return -_MAX_BEFORE_START <= age <= _MAX_AFTER_START

    def can_have_created(self, instance: Instance, listed_at: float | None) -> bool:
        """Return whether the instance fits and there is no evidence against it."""
        return self.fits(instance) and not self.is_contradicted_by(instance, listed_at)

    def is_too_old_for(self, instance: Instance, other: UnresolvedStart) -> bool:
        """Return whether the instance appeared too late: after a much later start request was sent."""
        return (
            other.order[1] - self.order[1] > LATE_WINDOW
            # Only an identical start request in the same account knows whether the instance existed before
            # it.
            and other.baseline is not None
            and other.account == self.account
            and other.fits(instance)
        )

    def is_contradicted_by(self, instance: Instance, listed_at: float | None) -> bool:
        """Return whether the tag or timestamp is evidence that another start request created the instance.

        Without a baseline, the instance may have existed before the start request.
        """
        context_length = instance.instance_args.context_length
        # According to the API reference, the service returns the length.
        has_other_length = self.tag is not None and context_length not in {None, self.tag}
        is_unlikely = has_other_length or self.is_confirmed_by(instance, listed_at) is False
        return self.baseline is None or is_unlikely


@frozen
class Ambiguous:
    """It is unclear which instance the start request created, for example because several instances match.

    Attributes:
        candidates: The ids of the instances that the start request could have created.
    """

    candidates: tuple[str, ...]


@frozen
class Contested:
    """The instances may belong to start requests that have not received their responses yet.

    Attributes:
        candidates: The ids of the instances that the start request could have created.
    """

    candidates: tuple[str, ...]


@frozen
class Disagreement:
    """The last lists do not agree on the instances yet.

    Attributes:
        candidates: The ids of the instances that the start request could have created.
    """

    candidates: tuple[str, ...]


Outcome = Instance | Ambiguous | Contested | Disagreement | None
"""The instance a start request created, None if there is none yet, or the reason it is uncertain."""

_Fits = Callable[[UnresolvedStart, Instance], bool]


def agreed(outcome: Outcome, recent: RecentLists, *, seconds: float) -> Outcome:
    """Return the outcome, or `Disagreement` while the lists of the last `seconds` disagree about it."""
    if not isinstance(outcome, (Instance, Ambiguous)):
        return outcome
    ids = (outcome.instance_id,) if isinstance(outcome, Instance) else outcome.candidates
    return outcome if recent.agree_on(*ids, seconds=seconds) else Disagreement(ids)


def match_start(
    start: UnresolvedStart,
    starts: Iterable[UnresolvedStart],
    instances: Sequence[Instance],
    *,
    in_progress: Sequence[UnresolvedStart] = (),
    listed_at: float | None = None,
) -> Outcome:
    """Return the instance a start request created, None if there is none yet, or the reason it is uncertain.

    The same start requests always get the same instances, regardless of which of them is `start`. `starts`
    are all unresolved starts, including `start`; `in_progress` are the start requests without an outcome.
    `instances` must not include any that are known to belong to others. `listed_at` is the time they were
    listed, by the service's clock, as Unix time in seconds.
    """
    # The start requests that fit the fewest instances come first, because the others have more alternatives.
    starts = sorted(starts, key=lambda each: (each.generality, each.order))
    all_starts = [*starts, *in_progress]
    with_tag = [each for each in all_starts if each.tag is not None]
    tagged = {each.instance_id for each in instances if any(other.has_tag_of(each) for other in with_tag)}
    latest = max((each.order[1] for each in all_starts), default=0.0)

    def fits(start: UnresolvedStart, instance: Instance) -> bool:
        return (
            start.fits(instance)
            and (instance.instance_id not in tagged or start.has_tag_of(instance))
            and not (
                latest - start.order[1] > LATE_WINDOW
                and any(start.is_too_old_for(instance, other) for other in all_starts)
            )
            and not start.is_contradicted_by(instance, listed_at)
        )

    group, candidates = _connected(start, starts, instances, fits)
    assignment = _assign(candidates, group, fits)
    if assignment is None:
        ids = tuple(each.instance_id for each in candidates if fits(start, each))
        # The extra instances may belong to the start requests in progress.
        return Ambiguous(ids) if _assign(candidates, [*group, *in_progress], fits) is None else Contested(ids)
    found = assignment.get(start)
    if found is not None and any(fits(other, each) for other in in_progress for each in candidates):
        return Contested((found.instance_id,))
    return found


def _connected(
    start: UnresolvedStart, starts: Sequence[UnresolvedStart], instances: Iterable[Instance], fits: _Fits
) -> tuple[list[UnresolvedStart], list[Instance]]:
    """Return the start requests and instances that share possible matches with `start`, in a fixed order.

    They share matches directly or through other requests and instances.
    """
    remaining = sorted(instances, key=lambda each: each.instance_id)
    group, candidates = {start}, list[Instance]()
    new_starts = [start]
    while new_starts:
        found = [each for each in remaining if any(fits(new, each) for new in new_starts)]
        remaining = [each for each in remaining if each not in found]
        candidates += found
        new_starts = [
            other for other in starts if other not in group and any(fits(other, each) for each in found)
        ]
        group.update(new_starts)
    # Sorted, so that the assignment does not depend on which start is matched.
    return (
        [other for other in starts if other in group],
        sorted(candidates, key=lambda each: each.instance_id),
    )


def _assign(
    instances: Sequence[Instance], starts: Sequence[UnresolvedStart], fits: _Fits
) -> dict[UnresolvedStart, Instance] | None:
    """Assign each instance to a different request (bipartite matching), or return None if impossible."""
    assignment: dict[UnresolvedStart, Instance] = {}

    def assign(instance: Instance, tried: set[UnresolvedStart]) -> bool:
        fitting = [start for start in starts if start not in tried and fits(start, instance)]
        # Free requests first: otherwise many identical requests would reassign their instances in a long
        # chain.
        for start in sorted(fitting, key=lambda each: each in assignment):
            if start in tried:
                continue
            tried.add(start)
            if start not in assignment or assign(assignment[start], tried):
                assignment[start] = instance
                return True
        return False

    return assignment if all(assign(instance, set()) for instance in instances) else None


@define
class Claims:
    """One client's start requests: the instances they created, and the requests in progress.

    Attributes:
        ids: The ids of the instances whose start requests are known.
        unresolved: The start requests whose outcome is unknown because they got no response, by model.
        on_plain_start: Called with the id of an instance started by a plain request.
    """

    ids: set[str] = field(factory=set)
    unresolved: dict[str, list[UnresolvedStart]] = field(factory=dict)
    on_plain_start: Callable[[str], None] | None = None
    _in_progress: Counter[str] = field(factory=Counter)
    _ended: int = 0

    def begin_request(self, model_id: str) -> None:
        """Count a start request that is about to be sent."""
        self._in_progress[model_id] += 1

    def end_request(self, model_id: str) -> None:
        """Record that a start request was completed, with or without a response."""
        self._ended += 1
        self._in_progress[model_id] -= 1

    def add_unresolved(self, model_id: str, start: UnresolvedStart) -> None:
        """Add a start request that got no response."""
        self.unresolved.setdefault(model_id, []).append(start)

    def resolve(self, model_id: str, start: UnresolvedStart) -> None:
        """Remove a start request, because its outcome is known or the search ended."""
        starts = self.unresolved.get(model_id, [])
        if start in starts:
            starts.remove(start)
        if not starts:
            self.unresolved.pop(model_id, None)

    def idle_generation(self, model_id: str) -> int | None:
        """Return the number of completed start requests, or None while one for the model is in progress.

        Call this before and after a list request. If both calls return the same number, no start request for
        the model was in progress during the request. Then each new instance in the list is claimed or belongs
        to an unresolved start.
        """
        return None if self._in_progress[model_id] else self._ended

    def without_claimed(self, instances: Iterable[Instance]) -> list[Instance]:
        """Return the instances that do not belong to any known start of this client."""
        return [each for each in instances if each.instance_id not in self.ids]


def fits(actual: InstanceArgs, sent: InstanceArgs) -> bool:
    """Return whether an instance with the actual arguments could come from a start request with these."""
    return (
        actual.model_id == sent.model_id
        and _agrees(actual.hardware_type_id, sent.hardware_type_id)
        and _agrees(actual.context_length, sent.context_length)
        and _agrees(actual.billing_interval, sent.billing_interval)
        # No documented response contains this field, and the number is read as 1 without it. So 1 fits any
        # number.
        and actual.num_workers in {1, sent.num_workers}
    )


def _agrees(actual: Any, sent: Any) -> bool:
    return actual is None or sent is None or actual == sent


def with_defaults(args: InstanceArgs, model: Model | None) -> InstanceArgs:
    """Return the arguments completed with the service's documented defaults, if the model has them."""
    hardware = args.hardware_type_id or (model.recommended_config if model else None)
    context = args.context_length
    config = model.hardware_configs.get(hardware) if model and hardware else None
    if context is None and config is not None:
        longest = config.max_context_length
        context = None if longest is None else min(DEFAULT_CONTEXT_LENGTH, longest)
    billing_interval = args.billing_interval or "per_minute"
    return evolve(args, hardware_type_id=hardware, billing_interval=billing_interval, context_length=context)


def choose(
    instances: Iterable[Instance], args: InstanceArgs, model: Model | None, *, tagged: bool = False
) -> Instance | None:
    """Return the best instance with these arguments: preferably running, then pending, then stopped.

    Return None if there is none. An argument that was left out means the model's default on both sides. With
    `tagged`, the context length can be smaller by a tag.
    """
    wanted = with_defaults(args, model)

    def is_wanted(instance: Instance) -> bool:
        actual = with_defaults(instance.instance_args, model)
        if tagged and actual.context_length is not None and wanted.context_length is not None:
            lowered_by = wanted.context_length - actual.context_length
            if 0 <= lowered_by < wanted.context_length * MAX_TAG_SHARE:
                actual = evolve(actual, context_length=wanted.context_length)
        return actual == wanted

    fitting = [each for each in instances if is_wanted(each)]
    by_status = [
        each
        for status in ("running", "pending", "stopped")
        for each in fitting
        if each.status.lower() == status
    ]
    return by_status[0] if by_status else None
