"""Whose instance is it? The service has no tags, so a start without an answer is found by what it must be.

An instance can be of a start when it was not there before it and has the arguments that were sent. It counts
as proven when no more such instances exist than there are starts that can have made them. What cannot be told
apart, nobody touches.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from attrs import define, field, frozen

from .domain import Instance, InstanceArgs, Model


@frozen(kw_only=True, eq=False)
class UnresolvedStart:
    """A start that may have made an instance.

    Attributes:
        args: What was sent; None stands for a default of the service's, which matches anything.
        baseline: Ids that existed before it.
        order: What to sort by, so that all who judge do so in the same order.
    """

    args: InstanceArgs
    baseline: frozenset[str]
    order: tuple[float, str] = (0.0, "")

    def fits(self, instance: Instance) -> bool:
        """Whether this start can have made the instance."""
        return instance.instance_id not in self.baseline and fits(instance.instance_args, self.args)


@frozen
class Ambiguous:
    """More instances than starts that can have made them."""

    candidates: tuple[str, ...]


def match_start(
    start: UnresolvedStart, starts: Sequence[UnresolvedStart], instances: Iterable[Instance]
) -> Instance | Ambiguous | None:
    """What one unknown start has made: an instance, nothing that can be seen, or it cannot be told.

    Whoever judges from the same starts, in the same order, gives every instance to the same one.

    Args:
        mine: The start in question.
        starts: All starts whose outcome is unknown, with `mine`.
        instances: What exists, without what is known to belong to somebody.
    """
    group, contested = _involved(start, starts, instances)
    given = _assign(contested, group)
    if given is None:
        return Ambiguous(tuple(each.instance_id for each in contested if start.fits(each)))
    return given.get(start)


def _involved(
    mine: UnresolvedStart, starts: Sequence[UnresolvedStart], instances: Iterable[Instance]
) -> tuple[list[UnresolvedStart], list[Instance]]:
    """The starts and instances that `mine` cannot be judged without: each fits another of them."""
    left = sorted(instances, key=lambda each: each.instance_id)
    group, contested = {mine}, list[Instance]()
    news = [mine]
    while news:
        found = [each for each in left if any(start.fits(each) for start in news)]
        left = [each for each in left if each not in found]
        contested += found
        news = [start for start in starts if start not in group and any(start.fits(each) for each in found)]
        group.update(news)
    # Sorted, so that the assignment does not depend on the start in question.
    return [start for start in starts if start in group], sorted(contested, key=lambda each: each.instance_id)


def _assign(
    instances: Sequence[Instance], starts: Sequence[UnresolvedStart]
) -> dict[UnresolvedStart, Instance] | None:
    """Every instance to a start of its own (a bipartite matching); None when there are not enough."""
    given: dict[UnresolvedStart, Instance] = {}

    def give(instance: Instance, tried: set[UnresolvedStart]) -> bool:
        fitting = [start for start in starts if start not in tried and start.fits(instance)]
        # A free one first: without that, many starts alike would hand theirs down a long row.
        for start in sorted(fitting, key=lambda each: each in given):
            if start in tried:
                continue
            tried.add(start)
            if start not in given or give(given[start], tried):
                given[start] = instance
                return True
        return False

    return given if all(give(instance, set()) for instance in instances) else None


@define
class Claims:
    """What a client knows of its starts: which ids are theirs, and which requests are under way.

    Attributes:
        ids: Instances whose start is known.
        unknown: Starts without an answer, by model, from the lost answer until it is known what they made.
    """

    ids: set[str] = field(factory=set)
    unresolved: dict[str, list[UnresolvedStart]] = field(factory=dict)
    _flying: dict[str, int] = field(factory=dict)
    _landed: int = 0

    def begin_request(self, model_id: str) -> None:
        """A start is sent."""
        self._flying[model_id] = self._flying.get(model_id, 0) + 1

    def end_request(self, model_id: str) -> None:
        """Its outcome, known or unknown, is settled."""
        self._landed += 1
        self._flying[model_id] -= 1
        if not self._flying[model_id]:
            del self._flying[model_id]

    def add_unresolved(self, model_id: str, start: UnresolvedStart) -> None:
        """A start has got no answer."""
        self.unresolved.setdefault(model_id, []).append(start)

    def resolve(self, model_id: str, start: UnresolvedStart) -> None:
        """It is known what it made, or it is given up."""
        starts = self.unresolved.get(model_id, [])
        if start in starts:
            starts.remove(start)
        if not starts:
            self.unresolved.pop(model_id, None)

    def idle_generation(self, model_id: str) -> int | None:
        """A number that stays the same as long as no start of the model is under way; None while one is."""
        return None if model_id in self._flying else self._landed

    def without_claimed(self, instances: Iterable[Instance], others: Container[str]) -> list[Instance]:
        """The instances that belong to nobody known."""
        return [
            each
            for each in instances
            if each.instance_id not in self.ids
            and each.instance_id not in others
            and each.status.lower() != "deleted"
        ]


# The vendor's client caps the default context here; so does the published reference of `start`.
_DEFAULT_CONTEXT = 32000


def fits(actual: InstanceArgs, sent: InstanceArgs) -> bool:
    """Whether an instance with these arguments can come from a start that sent those."""
    return (
        actual.model_id == sent.model_id
        and _same(actual.hardware_type_id, sent.hardware_type_id)
        and _same(actual.context_length, sent.context_length)
        and _same(actual.billing_interval, sent.billing_interval)
        # Absent from every documented answer, and read as 1 then: so 1 proves nothing.
        and actual.num_workers in {1, sent.num_workers}
    )


def _same(actual: Any, sent: Any) -> bool:
    return actual is None or sent is None or actual == sent


def with_defaults(args: InstanceArgs, model: Model | None) -> InstanceArgs:
    """The arguments with the service's documented defaults filled in, as far as the model tells them."""
    hardware = args.hardware_type_id or (model.recommended_config if model else None)
    context = args.context_length
    config = model.hardware_configs.get(hardware) if model and hardware else None
    if context is None and config is not None:
        longest = config.max_context_length
        context = None if longest is None else min(_DEFAULT_CONTEXT, longest)
    return InstanceArgs(
        model_id=args.model_id,
        hardware_type_id=hardware,
        billing_interval=args.billing_interval or "per_minute",
        context_length=context,
        num_workers=args.num_workers,
    )


def choose(instances: Iterable[Instance], args: InstanceArgs, model: Model | None) -> Instance | None:
    """The best instance with these arguments: running, else pending, else stopped, else None."""
    wanted = with_defaults(args, model)
    fitting = [each for each in instances if with_defaults(each.instance_args, model) == wanted]
    by_status: list[Instance] = [
        each for status in ("running", "pending", "stopped") for each in fitting if each.status == status
    ]
    return by_status[0] if by_status else None
