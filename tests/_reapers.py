"""Replacements for the reaper process."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cortecs_async._config import RetryPolicy, Settings
from cortecs_async._environment import Environment
from cortecs_async._errors import GuardError
from cortecs_async._recovery.accounts import describe
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.records import JournalState, Record
from cortecs_async._secrets import Credentials, Secret


class StubReaper:
    """Replaces the reaper process and keeps the messages sent to it."""

    def __init__(
        self,
        on_death: Callable[[], None],
        _on_action: Callable[[Record], None],
        on_rehearsed: Callable[[str, str], None],
        *_: object,
    ) -> None:
        self.on_death = on_death
        self._on_rehearsed = on_rehearsed
        # The outcomes of the next rehearsals. After these, empty for success. None means no outcome at all.
        self.outcomes: list[str | None] = []
        self._outcome: str | None = ""
        self.sent: list[Record] = []
        self.is_running = False
        self.problem = ""

    @property
    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.sent]

    @property
    def promises(self) -> list[Promise]:
        """The promises that a real reaper would have open."""
        state = JournalState()
        for message in self.sent:
            state.apply(message)
        return [*state.promises.values()]

    def start(self) -> None:
        if self.problem:
            raise GuardError(self.problem)
        self.is_running = True
        self.sent = []

    def handshake(self) -> None:
        """Do nothing, because the reaper is always there."""

    def send(self, messages: Iterable[Record]) -> None:
        for message in messages:
            self.sent.append(message)
            if message["kind"] == "ARM":
                self._outcome = self.outcomes.pop(0) if self.outcomes else ""

    def rehearsed(self, _: str) -> str | None:
        return self._outcome

    def rehearse(self, account: str, outcome: str) -> None:
        """End the rehearsal in progress."""
        self._outcome = outcome
        self._on_rehearsed(account, outcome)

    def detach(self) -> None:
        self.is_running = False

    shutdown = kill = close_in_child = detach


def stub_reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    """Replace each new reaper and collect the replacements."""
    stubs: list[StubReaper] = []

    def create(*arguments: Any) -> StubReaper:
        stubs.append(StubReaper(*arguments))
        return stubs[-1]

    monkeypatch.setattr("cortecs_async._recovery.store.ReaperProcess", create)
    return stubs


class SilentProcess:
    """A process that reads everything and never responds."""

    pid = 0

    def __init__(self, _: list[str], **options: Any) -> None:
        self.options = options
        self.returncode: int | None = None
        source, target = os.pipe()
        self._taken = os.fdopen(source, "rb")
        self.stdin = os.fdopen(target, "wb", buffering=0)
        source, self._says = os.pipe()
        self.stdout: io.BufferedReader = os.fdopen(source, "rb")

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9
        self._taken.close()
        os.close(self._says)

    def wait(self) -> int | None:
        return self.returncode


async def _no_credentials() -> Credentials:
    raise AssertionError("the account has its credentials")


def sealed(api_base_url: str = "https://service.test/v1", environment: Environment | None = None) -> Secret:
    """Return the description of an account with these proxies and certificates."""
    settings = Settings(
        api_base_url=api_base_url,
        credential_provider=_no_credentials,
        timeout=30.0,
        retry=RetryPolicy(),
        headers={},
        environment=environment or Environment(),
    )
    return describe(settings, Credentials(client_id="an id", client_secret="a secret"))
