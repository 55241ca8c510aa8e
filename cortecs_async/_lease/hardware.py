"""Choose the hardware for a start request: the decisions, without requests.

`choose_hardware` finds the hardware types that a lease may use. A `Selection` records what became of each, so
that the receipt and the errors can say why one was used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from attrs import define, evolve, field, frozen

from .._api.catalog import Model
from .._api.domain import InitProgress, Instance, InstanceArgs, InstanceStatus, Progress, WorkerStatus
from .._api.validation import CHEAPEST
from .._display import duration_text, joined, price_text
from .._errors import CortecsError, InvalidArgumentError, PriceUnknownError, RequestError, add_note
from .._hints import any_of, did_you_mean
from .._http.messages import Failure
from .._logging import Event, log
from .options import LeaseOptions
from .pricing import Price, hourly_cost, interval_cost
from .start_state import StartAttempt, StartState

WAITING = "waiting_for_capacity"
"""The status in a `Progress` before there is an instance."""

# Rejections that can concern the hardware. After any other one, such as 401 or 402, another hardware type
# would be rejected in the same way.
_ABOUT_HARDWARE = frozenset({400, 404, 409, 422})

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def choose_hardware(
    options: LeaseOptions, model: Model | None, price_of: Callable[[str], Price | None]
) -> Selection:
    """Return the hardware types that a lease may use, in order of preference.

    Args:
        options: The options of the lease.
        model: The model, or None if it was not fetched. Then it is not checked whether the hardware fits.
        price_of: Returns the price of a hardware type, or None if it is unknown.

    Raises:
        InvalidArgumentError: if there is no such hardware type.
        PriceUnknownError: if this is only because of unknown prices, or if the cheapest type is unknown.
    """
    args, name = options.args, options.args.hf_name
    is_cheapest = options.hardware == (CHEAPEST,)
    selection = Selection(options=options, wanted=wanted_hardware(options, model))
    if not selection.wanted:
        raise InvalidArgumentError(
            f"The service does not say what hardware {name} runs on. Pass the id of a hardware type. "
            "Nothing was started."
        )
    needs_price = price_argument(options)
    fitting: list[_Candidate] = []
    unpriced: list[str] = []
    for hardware in selection.wanted:
        _check_spelling(hardware, model)
        if problem := _misfit(hardware, args, model):
            selection.passed[hardware] = problem
            continue
        price = price_of(hardware)
        if price is None and needs_price:
            unpriced.append(hardware)
            selection.passed[hardware] = "has no known price"
            continue
        candidate = _Candidate(evolve(args, hardware_type_id=hardware), price)
        if price is not None and (problem := candidate.excess(options)):
            selection.passed[hardware] = problem
            continue
        fitting.append(candidate)
    if unpriced and (is_cheapest or not fitting):
        others = "" if is_cheapest else _listed(selection.passed, unpriced)
        raise PriceUnknownError(
            f"{needs_price} needs a price, but the service did not return a usable price for "
            f"{any_of(unpriced)}.{others} Nothing was started. Use other hardware types."
        )
    if not fitting:
        usable = f" {name} runs on {', '.join(model.hardware_configs)}." if model is not None else ""
        raise InvalidArgumentError(
            f"No allowed hardware type can be used for {name}.{_listed(selection.passed)}{usable} "
            "Nothing was started. Allow other hardware types, or change the limits."
        )
    if is_cheapest:
        # Stable: equal prices stay in the order of the model's configurations.
        fitting.sort(key=lambda each: each.per_hour)
    selection.candidates = [each.args for each in fitting]
    return selection


def price_argument(options: LeaseOptions) -> str:
    """Return the argument that needs a price, or an empty string."""
    if options.hardware == (CHEAPEST,):
        return repr(CHEAPEST)
    if options.max_price_per_hour is not None:
        return "max_price_per_hour"
    return "" if options.max_cost is None else "max_cost"


def wanted_hardware(options: LeaseOptions, model: Model | None) -> tuple[str, ...]:
    """Return the hardware types that the caller allows, before anything is checked."""
    if options.hardware == (CHEAPEST,):
        return tuple(model.hardware_configs) if model is not None else ()
    if options.hardware:
        return options.hardware
    only = options.args.hardware_type_id or (model.recommended_config if model is not None else None)
    return () if only is None else (only,)


def _check_spelling(hardware: str, model: Model | None) -> None:
    """Check that a hardware type is not just a part of an id, such as H100, or an id in lowercase.

    Otherwise, a list with it would be used as if its other types were preferred.

    Raises:
        InvalidArgumentError: if it is.
    """
    if model is None or hardware in model.hardware_configs:
        return
    meant = [each for each in model.hardware_configs if f"_{hardware}_".lower() in f"_{each}_".lower()]
    if meant:
        raise InvalidArgumentError(
            f"There is no hardware type {hardware}. {did_you_mean(meant)} Nothing was started."
        )


def _misfit(hardware: str, args: InstanceArgs, model: Model | None) -> str:
    """Return why a model cannot run on a hardware type with these arguments, or an empty string."""
    if model is None or not model.hardware_configs:
        return ""
    config = model.hardware_configs.get(hardware)
    if config is None:
        return f"does not run {args.hf_name}"
    longest = config.max_context_length
    if args.context_length is None or longest is None or args.context_length <= longest:
        return ""
    return f"supports at most {longest} tokens"


def _listed(problems: dict[str, str], without: Collection[str] = ()) -> str:
    """Return a sentence that says what is wrong with each hardware type."""
    text = "; ".join(f"{each} {problem}" for each, problem in problems.items() if each not in without)
    return f" {text}." if text else ""


@frozen
class _Candidate:
    args: InstanceArgs
    price: Price | None

    @property
    def per_hour(self) -> float:
        return 0.0 if self.price is None else hourly_cost(self.price, self.args)

    def excess(self, options: LeaseOptions) -> str:
        """Return which limit the price exceeds, or an empty string."""
        if self.price is None:
            return ""
        ceiling, budget = options.max_price_per_hour, options.max_cost
        # The tolerance is for prices per minute, which are multiplied.
        if ceiling is not None and self.per_hour > ceiling * (1 + 1e-9):
            cost = price_text(self.per_hour, self.price.currency)
            return f"costs {cost} per hour, more than max_price_per_hour={ceiling:g}"
        cost_of_one = interval_cost(self.price, self.args)
        if budget is not None and cost_of_one > budget * (1 + 1e-9):
            cost = price_text(cost_of_one, self.price.currency)
            return f"costs {cost} per billing interval, more than max_cost={budget:g}"
        return ""


@define(eq=False, kw_only=True)
class Selection:
    """The hardware types that a lease may use, and what became of each.

    Attributes:
        wanted: The types that the caller allows, in order of preference. For `"cheapest"`, all of the model.
        candidates: The start requests for the ones that can be used, in order of preference.
        passed: Why the others were not used, as the end of a sentence that begins with the type.
        available: The types that the service listed as available, or None if that is not known.
        refused: The failures of the start requests since the last `begin_round`.
        waited: Seconds spent waiting for capacity.
    """

    options: LeaseOptions
    wanted: tuple[str, ...] = ()
    candidates: list[InstanceArgs] = field(factory=list)
    passed: dict[str, str] = field(factory=dict)
    available: frozenset[str] | None = None
    refused: dict[str, Failure] = field(factory=dict)
    waited: float = 0.0
    _answers: dict[str, str] = field(factory=dict)

    @property
    def names(self) -> list[str]:
        return [str(each.hardware_type_id) for each in self.candidates]

    @property
    def is_choice(self) -> bool:
        """Whether the caller allows more than one hardware type."""
        return bool(self.options.hardware)

    def begin_round(self, available: Collection[str] | None) -> None:
        """Forget earlier refusals, because there is a new list of available hardware."""
        self.available = None if available is None else frozenset(available)
        self.refused = {}

    def in_order(self) -> list[InstanceArgs]:
        """Return the candidates in the order to try: first the available ones, then the others.

        The list of available types may be outdated, so the others are tried last instead of not at all.
        """
        if self.available is None:
            return list(self.candidates)
        listed = self.available
        return sorted(self.candidates, key=lambda each: each.hardware_type_id not in listed)

    def note_refusal(self, attempt: StartAttempt, error: RequestError) -> bool:
        """Record how a start request failed. Return whether another hardware type may be tried."""
        failure = refusal_of(attempt)
        if failure is None:
            return False
        hardware = str(attempt.args.hardware_type_id or next(iter(self.wanted), ""))
        self.passed[hardware] = "had no capacity" if failure.status == 503 else "was rejected"
        self._answers[hardware] = f"{failure.status} {failure.reason.rstrip('.')}"
        self.refused[hardware] = failure
        if failure.status != 503:
            # Another request would be rejected in the same way.
            self.candidates = [each for each in self.candidates if each != attempt.args]
        log(
            Event.LEASE_HARDWARE_REFUSED,
            model=attempt.args.hf_name,
            hardware_type_id=hardware,
            status=failure.status,
            request_id=failure.request_id,
            error=error,
        )
        return True

    def annotate(self, error: CortecsError) -> None:
        """Add what became of each hardware type, if there was a choice."""
        refused = {each: f"was refused with {text}" for each, text in self._answers.items()}
        told = {**self.passed, **refused}
        if self.is_choice and told:
            is_unknown = isinstance(error, RequestError) and error.outcome_unknown
            what = "Other hardware types:" if is_unknown else "No hardware type could be used."
            add_note(error, f"{what}{_listed(told)}")

    def reason(self, hardware: str | None) -> str:
        """Return why a hardware type was used, or an empty string if there was no choice."""
        waited = f"after waiting {duration_text(self.waited)} for capacity" if self.waited else ""
        return joined(self._choice(hardware or "") if self.is_choice else "", waited)

    def _choice(self, hardware: str) -> str:
        names = self.names
        if hardware not in self.wanted:
            return ""
        if self.options.hardware != (CHEAPEST,):
            position = self.wanted.index(hardware)
            ordinal = _ORDINALS[position] if position < len(_ORDINALS) else f"{position + 1}th"
            return f"{ordinal} choice{self._passed_before(self.wanted[:position])}"
        count = max(len([each for each in names if self._is_available(each)]), 1)
        cheaper = names[: names.index(hardware)] if hardware in names else ()
        what = "" if self.available is None else " available"
        passed = self._passed_before(each for each in cheaper if each in self.refused)
        if count == 1:
            return f"only usable type{what}{passed}"
        return f"cheapest of {count}{what}{passed}"

    def _is_available(self, name: str) -> bool:
        return name not in self.refused and (self.available is None or name in self.available)

    def _passed_before(self, names: Iterable[str]) -> str:
        text = ", ".join(f"{each} {self.passed.get(each, 'was not available')}" for each in names)
        return f": {text}" if text else ""


def refusal_of(attempt: StartAttempt) -> Failure | None:
    """Return the failure of a start request if it is certain that nothing was started, because of hardware.

    Only the service's own words count. After a request whose outcome is unknown, nothing is certain.
    """
    failure = attempt.failure
    if attempt.state is not StartState.NOT_STARTED or attempt.not_seen or failure is None:
        return None
    is_about_hardware = failure.status == 503 or failure.status in _ABOUT_HARDWARE
    return failure if failure.reason and is_about_hardware else None


def waiting_progress(args: InstanceArgs, names: Sequence[str], seconds: float) -> Progress:
    """Return the progress of a lease that waits for capacity. Its instance has no id."""
    minutes = int(seconds // 60)
    text = f"waiting for capacity: {any_of(names)}{f' ({minutes} min)' if minutes else ''}"
    status = WorkerStatus(init_progress=InitProgress(description=text))
    instance = Instance(
        instance_id="",
        instance_args=args,
        instance_status=InstanceStatus(status=WAITING),
        worker_statuses=(status,),
    )
    return Progress(instance=instance, elapsed=seconds)
