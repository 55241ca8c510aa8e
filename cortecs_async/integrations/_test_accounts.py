"""The implementation of the fixtures in pytest_plugin.py. The first test that uses one imports it."""

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
from .._durations import Duration, check_seconds
from ..emulator import Emulator, Fault, LedgerEntry, serve_emulator
from ._markers import CLIENT, EMULATOR, FAULT

T = TypeVar("T")

_BILLED: Final = frozenset({"pending", "running", "stopping"})

# Seconds between two checks for leaks, and the number of checks without a request after which the emulator
# counts as idle.
_CHECK_INTERVAL: Final = 0.05
_IDLE_CHECKS: Final = 20

# Without a child process and without files, which take up most of a lease's time. The intervals are short
# because the emulator can take any load, and its next response shows every change.
_CLIENT_DEFAULTS: Final[Mapping[str, Any]] = {
    "guard": "off",
    "journal": "off",
    "poll_policy": PollPolicy(min_interval=0.01, max_interval=0.5, settle=0.0, lost_interval=0.05),
    "retry_policy": RetryPolicy(initial_backoff=0.01, max_backoff=0.1, adoption_window=1.0),
}

# Client arguments that the fixture sets itself.
_FIXTURE_ARGUMENTS: Final = frozenset(
    {"client_id", "client_secret", "credential_provider", "api_base_url", "http_client", "transport"}
)


def _validate_allow_leaks(_: object, __: object, value: object) -> None:
    if not isinstance(value, bool) and value != "stopped":
        raise ValueError(f"allow_leaks must be False, 'stopped', or True, not {value!r}")


def _leak_grace(value: Duration) -> float:
    return min(check_seconds("leak_grace", value, at_least=0), 1e9)  # infinity cannot be counted down


@attrs.frozen(kw_only=True)
class Rules:
    """The rules for what a test can leave behind.

    Attributes:
        allow_leaks: False allows no instances, "stopped" allows stopped ones, which are not billed, and True
            allows any.
        leak_grace: Seconds to wait for another process, such as a reaper, to release leaked instances.
        allow_unmet_faults: Whether to allow faults that no request matched.
    """

    allow_leaks: Literal[False, "stopped", True] = attrs.field(default=False, validator=_validate_allow_leaks)
    leak_grace: float = attrs.field(default=10.0, converter=_leak_grace)
    allow_unmet_faults: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))


_RULE_NAMES: Final = frozenset(field.name for field in attrs.fields(Rules))


@attrs.frozen(kw_only=True)
class Account:
    """The account of one test."""

    emulator: Emulator
    rules: Rules
    currency: str
    state_dir: Path  # for the test's journals
    test: str

    def find_problems(self) -> str:
        """Describe anything the test left behind against the rules, or return an empty string.

        If a reaper may be about to release leaked instances, wait for it, up to `leak_grace`.
        """
        unmet = () if self.rules.allow_unmet_faults else self.emulator.unmet_faults
        return "\n".join([*self._describe_leaks(self._wait_for_release()), *self._describe_faults(unmet)])

    def _wait_for_release(self) -> list[LedgerEntry]:
        """Return the instances that are still leaked after the grace period."""
        leaks = self._leaks()
        # A client with a reaper has a journal too, unless its options say otherwise.
        if leaks and any(self.state_dir.iterdir()):
            idle_checks, num_requests = 0, -1
            # Count, instead of reading the clock, which the test may have stopped.
            for _ in range(math.ceil(self.rules.leak_grace / _CHECK_INTERVAL)):
                time.sleep(_CHECK_INTERVAL)
                leaks = self._leaks()
                before, num_requests = num_requests, len(self.emulator.requests)
                # A reaper polls again to confirm the deletion. Without a server, it retries for hours.
                idle_checks = idle_checks + 1 if not leaks and num_requests == before else 0
                if idle_checks == _IDLE_CHECKS:
                    break
        return leaks

    def _leaks(self) -> list[LedgerEntry]:
        if self.rules.allow_leaks is True:
            return []
        allowed = {"deleted", self.rules.allow_leaks}
        return [entry for entry in self.emulator.ledger if entry.status not in allowed]

    def _describe_leaks(self, leaks: list[LedgerEntry]) -> Iterator[str]:
        if leaks:
            yield f"{len(leaks)} instance{'s' * (len(leaks) > 1)} left behind by {self.test}:"
            yield from map(self._describe_leak, leaks)
            yield (
                "Delete every instance that the test starts: use `async with client.instance(...)`,\n"
                "client.release(...), or instances.stop and instances.delete. To leave one behind on\n"
                f"purpose, mark the test @pytest.mark.{EMULATOR}(allow_leaks=True), or 'stopped' to allow\n"
                "stopped ones."
            )

    def _describe_leak(self, entry: LedgerEntry) -> str:
        workers = f", {entry.num_workers} workers" if entry.num_workers > 1 else ""
        price = f"{entry.price_per_hour:.2f} {self.currency} per hour"
        bill = (
            f"billed for {entry.seconds:.1f} s so far, and still billed at {price}"
            if entry.status in _BILLED
            else "no longer billed, but not deleted"
        )
        model = entry.model_id.replace("--", "/")
        return f"  {entry.instance_id} ({model} on {entry.hardware_type_id}{workers}): {entry.status}, {bill}"

    def _describe_faults(self, unmet: tuple[Fault, ...]) -> Iterator[str]:
        if unmet:
            yield f"{len(unmet)} fault{'s' * (len(unmet) > 1)} of {self.test} did not match any request:"
            yield from (f"  {_source(fault)}" for fault in unmet)
            yield (
                "A fault that does not occur tests nothing. If this is intended, mark the test\n"
                f"@pytest.mark.{EMULATOR}(allow_unmet_faults=True), or call clear_faults() in it."
            )


@contextmanager
def open_account(item: pytest.Item, state_dir: Path) -> Generator[Account]:
    """Serve an account with the options from the test's markers, and point the environment to it."""
    options = _options(item, EMULATOR)
    parameters = inspect.signature(Emulator).parameters
    _reject_unknown(EMULATOR, options, {*parameters, *_RULE_NAMES} - {"root_url"})
    rule_options = {name: options.pop(name) for name in _RULE_NAMES & options.keys()}
    rules = _build(EMULATOR, lambda: Rules(**rule_options))
    # An instance without provisioning steps is running in the response to its start request. Otherwise, a
    # client with the default policy would poll half a second later.
    options.setdefault("step_seconds", 0.0)
    emulator = _build(EMULATOR, lambda: Emulator(**options))
    for fault in _faults(item):
        emulator.add_fault(fault)
    with serve_emulator(emulator), pytest.MonkeyPatch.context() as environment:
        # Set the inference API key under both of its names, so that a real key does not take precedence.
        extra = {"CORTECS_API_KEY": emulator.api_key, "CORTECS_STATE_DIR": str(state_dir)}
        for name, value in {**emulator.env(), **extra}.items():
            environment.setenv(name, value)
        yield Account(
            emulator=emulator,
            rules=rules,
            currency=options.get("currency", parameters["currency"].default),
            state_dir=state_dir,
            test=item.nodeid,
        )


def make_client(item: pytest.Item, emulator: Emulator) -> AsyncCortecs:
    """Return a client that reaches the emulator in-process, so no connection is tied to an event loop."""
    options = _options(item, CLIENT)
    _reject_unknown(CLIENT, options, inspect.signature(AsyncCortecs).parameters.keys() - _FIXTURE_ARGUMENTS)
    options = {**_CLIENT_DEFAULTS, **options}
    return _build(
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
    """Close a client from `make_client`, whether or not an event loop is running in this thread."""
    # Use another thread, because the event loop of this one belongs to the test or to another plugin.
    with ThreadPoolExecutor(max_workers=1) as thread:
        client._wiring.http.loop.unbind()  # noqa: SLF001
        thread.submit(lambda: asyncio.run(client.aclose())).result()


def _options(item: pytest.Item, marker: str) -> dict[str, Any]:
    """Return the keyword arguments of all markers with this name. Those nearer to the test win."""
    options: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers(marker))):
        if mark.args:
            values = ", ".join(map(repr, mark.args))
            raise _marker_error(marker, f"only keyword arguments are allowed, not {values}")
        options.update(mark.kwargs)
    return options


def _faults(item: pytest.Item) -> Iterator[Fault]:
    """Yield the faults from a test's markers, in their order in the source."""
    for node in item.listchain():
        marks = [mark for mark in node.own_markers if mark.name == FAULT]
        # Decorators apply from the bottom up. A module has a list instead.
        for mark in marks if isinstance(node, pytest.Module) else reversed(marks):
            yield _build(FAULT, functools.partial(Fault, *mark.args, **mark.kwargs))


def _source(fault: Fault) -> str:
    """Return a fault as source code, without arguments that have their default value."""
    default = attrs.asdict(Fault(fault.kind), recurse=False)
    arguments = [
        f"{name}={value!r}"
        for name, value in attrs.asdict(fault, recurse=False).items()
        if value != default[name]
    ]
    return f"Fault({', '.join([repr(fault.kind), *arguments])})"


def _reject_unknown(marker: str, options: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted({*options} - {*known})
    if unknown:
        raise _marker_error(
            marker, f"unknown option {', '.join(unknown)}. Valid options are {', '.join(sorted(known))}"
        )


def _build(marker: str, build: Callable[[], T]) -> T:
    """Call `build`, and turn an error about its arguments into one that mentions the marker."""
    try:
        return build()
    except (TypeError, ValueError, ConfigurationError) as error:
        # The errors of attrs carry the attribute and the value after the message.
        raise _marker_error(marker, error.args[0] if error.args else error) from None


def _marker_error(marker: str, problem: object) -> BaseException:
    return pytest.fail.Exception(f"@pytest.mark.{marker}: {problem}", pytrace=False)
