"""What the fixtures of pytest_plugin.py are made of; loaded with the first test that uses one."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import attrs
import pytest

from .. import AsyncCortecs, ConfigurationError, PollPolicy, RetryPolicy
from ..emulator import Emulator, Fault, LedgerEntry, serve_emulator
from .pytest_plugin import CLIENT, EMULATOR, FAULT

T = TypeVar("T")

_BILLED: Final = frozenset({"pending", "running", "stopping"})

# Seconds between two looks at what is left, and how many without a request show that nobody is at work.
_LOOK: Final = 0.05
_CALM: Final = 20

# A client without a child process and files, which are most of what a lease takes; and quick, because the
# emulator need not be spared, and its next reading shows what it has done.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "guard": "off",
    "journal": "off",
    "poll_policy": PollPolicy(min_interval=0.01, max_interval=0.5, settle=0.0, lost_interval=0.05),
    "retry_policy": RetryPolicy(initial_backoff=0.01, max_backoff=0.1, adoption_window=1.0),
}

# What the client of a test is given by the fixture.
_GIVEN: Final = frozenset(
    {"client_id", "client_secret", "credential_provider", "api_base_url", "http_client", "transport"}
)


def _is_allowance(_: object, __: object, value: object) -> None:
    if not isinstance(value, bool) and value != "stopped":
        raise ValueError(f"allow_leaks must be False, 'stopped' or True, not {value!r}")


@attrs.frozen(kw_only=True)
class Rules:
    """What a test may leave.

    Attributes:
        allow_leaks: Instances: none; `stopped`, which are not billed any more; or any.
        leak_grace: Seconds in which others, such as a reaper, may still release what is left.
        allow_unmet_faults: Whether a fault may be left that has met no request.
    """

    allow_leaks: Literal[False, "stopped", True] = attrs.field(default=False, validator=_is_allowance)
    leak_grace: float = attrs.field(default=10.0, validator=attrs.validators.ge(0))
    allow_unmet_faults: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))


_RULES: Final = frozenset(field.name for field in attrs.fields(Rules))


@attrs.frozen(kw_only=True)
class Account:
    """The account of one test.

    Attributes:
        emulator: It holds the account.
        rules: What may be left in it.
        currency: What it is billed in.
        state_dir: Where the journals of the test lie.
        test: The test's name.
    """

    emulator: Emulator
    rules: Rules
    currency: str
    state_dir: Path
    test: str

    def complaint(self) -> str:
        """What is wrong with what the test has left; empty when nothing is.

        While something is left that somebody may be about to release, it waits, within bounds.
        """
        unmet = () if self.rules.allow_unmet_faults else self.emulator.unmet_faults
        return "\n".join([*self._about_leaks(self._leaks_for_good()), *self._about_faults(unmet)])

    def _leaks_for_good(self) -> list[LedgerEntry]:
        leaks = self._leaks()
        # Whoever has a reaper, which could be at work now, has a journal too, unless told otherwise.
        if leaks and any(self.state_dir.iterdir()):
            calm, asked = 0, -1
            # Counted, because the test may have stopped the clock.
            for _ in range(math.ceil(self.rules.leak_grace / _LOOK)):
                time.sleep(_LOOK)
                leaks = self._leaks()
                before, asked = asked, len(self.emulator.requests)
                # A reaper reads once more that it is gone, and would try for hours without the server.
                calm = calm + 1 if not leaks and asked == before else 0
                if calm == _CALM:
                    break
        return leaks

    def _leaks(self) -> list[LedgerEntry]:
        if self.rules.allow_leaks is True:
            return []
        allowed = {"deleted", self.rules.allow_leaks}
        return [entry for entry in self.emulator.ledger if entry.status not in allowed]

    def _about_leaks(self, leaks: list[LedgerEntry]) -> Iterator[str]:
        if leaks:
            yield f"{len(leaks)} instance{'s' * (len(leaks) > 1)} left behind by {self.test}:"
            yield from map(self._about_leak, leaks)
            yield (
                "What starts an instance must also end it: `async with client.instance(...)` does, and so\n"
                "do client.release(...), or instances.stop and instances.delete. If it is meant to stay:\n"
                f"@pytest.mark.{EMULATOR}(allow_leaks=True), or 'stopped' for what is not billed any more."
            )

    def _about_leak(self, entry: LedgerEntry) -> str:
        workers = f", {entry.num_workers} workers" if entry.num_workers > 1 else ""
        price = f"{entry.price_per_hour:.2f} {self.currency} an hour"
        bill = (
            f"billed for {entry.seconds:.1f} s so far, and still billed, at {price}"
            if entry.status in _BILLED
            else "not billed any more, but not deleted"
        )
        model = entry.model_id.replace("--", "/")
        return f"  {entry.instance_id} ({model} on {entry.hardware_type_id}{workers}): {entry.status}, {bill}"

    def _about_faults(self, unmet: tuple[Fault, ...]) -> Iterator[str]:
        if unmet:
            yield f"{len(unmet)} fault{'s' * (len(unmet) > 1)} of {self.test} met no request:"
            yield from (f"  {_written(fault)}" for fault in unmet)
            yield (
                "What did not happen was not tested. If that is right: "
                f"@pytest.mark.{EMULATOR}(allow_unmet_faults=True),\nor clear_faults() in the test."
            )


@contextmanager
def open_account(item: pytest.Item, state_dir: Path) -> Generator[Account]:
    """An account as the markers of a test want it, reachable, with the environment pointing to it."""
    options = _options(item, EMULATOR)
    parameters = inspect.signature(Emulator).parameters
    _refuse_unknown(EMULATOR, options, {*parameters, *_RULES} - {"root_url"})
    own = {name: options.pop(name) for name in _RULES & options.keys()}
    rules = _make(EMULATOR, lambda: Rules(**own))
    # What runs at once is seen in the answer to its start. Anything else is seen at the next look, which a
    # client with the usual policy takes half a second later.
    options.setdefault("step_seconds", 0.0)
    emulator = _make(EMULATOR, lambda: Emulator(**options))
    for fault in _faults(item):
        emulator.add_fault(fault)
    with serve_emulator(emulator), pytest.MonkeyPatch.context() as environment:
        # The inference key under both of its names: a real one must not win over it.
        others = {"CORTECS_API_KEY": emulator.api_key, "CORTECS_STATE_DIR": str(state_dir)}
        for name, value in {**emulator.env(), **others}.items():
            environment.setenv(name, value)
        yield Account(
            emulator=emulator,
            rules=rules,
            currency=options.get("currency", parameters["currency"].default),
            state_dir=state_dir,
            test=item.nodeid,
        )


def make_client(item: pytest.Item, emulator: Emulator) -> AsyncCortecs:
    """A client that reaches the emulator in process, so that no connection belongs to an event loop."""
    options = _options(item, CLIENT)
    _refuse_unknown(CLIENT, options, inspect.signature(AsyncCortecs).parameters.keys() - _GIVEN)
    options = {**_DEFAULTS, **options}
    return _make(
        CLIENT,
        lambda: AsyncCortecs(
            emulator.client_id,
            emulator.client_secret,
            api_base_url=emulator.api_base_url,
            http_client=emulator.http_client(),
            **options,
        ),
    )


def close_client(client: AsyncCortecs) -> None:
    """Closes a client of `make_client`, whether or not an event loop runs here."""

    def close() -> None:
        asyncio.run(client.aclose())

    # In a thread, because the event loop of this one, if it has any, belongs to somebody else.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(close).result()


def _options(item: pytest.Item, marker: str) -> dict[str, Any]:
    """The keyword arguments of all markers of that name; those nearer to the test win."""
    options: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers(marker))):
        if mark.args:
            raise _wrong(marker, f"it takes keyword arguments only, not {', '.join(map(repr, mark.args))}")
        options.update(mark.kwargs)
    return options


def _faults(item: pytest.Item) -> Iterator[Fault]:
    """The faults of a test's markers, in the order in which they are read."""
    for node in item.listchain():
        marks = [mark for mark in node.own_markers if mark.name == FAULT]
        # Of decorators, the lowest comes first. A module has none, but a list.
        for mark in marks if isinstance(node, pytest.Module) else reversed(marks):
            yield _make(FAULT, functools.partial(Fault, *mark.args, **mark.kwargs))


def _written(fault: Fault) -> str:
    """A fault as somebody would write it."""
    plain = attrs.asdict(Fault(fault.kind), recurse=False)
    others = {
        name: value for name, value in attrs.asdict(fault, recurse=False).items() if value != plain[name]
    }
    return f"Fault({', '.join([repr(fault.kind), *(f'{name}={value!r}' for name, value in others.items())])})"


def _refuse_unknown(marker: str, options: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted({*options} - {*known})
    if unknown:
        raise _wrong(marker, f"it has no option {', '.join(unknown)}, but {', '.join(sorted(known))}")


def _make(marker: str, make: Callable[[], T]) -> T:
    """What `make` makes.

    Raises:
        pytest.fail.Exception: says which marker is wrong.
    """
    try:
        return make()
    except (TypeError, ValueError, ConfigurationError) as error:
        # After the message, attrs has arguments of no interest.
        raise _wrong(marker, error.args[0] if error.args else error) from None


def _wrong(marker: str, problem: object) -> BaseException:
    return pytest.fail.Exception(f"@pytest.mark.{marker}: {problem}", pytrace=False)
