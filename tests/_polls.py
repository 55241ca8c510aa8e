"""Short poll intervals for tests on real time."""

from __future__ import annotations

import pytest

from cortecs_async import PollPolicy


def poll_often(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Make clients in this process poll every 20 ms by default, instead of every 500 ms.

    Args:
        monkeypatch: Restores the defaults.
        **seconds: More `PollPolicy` defaults to replace.
    """
    defaults = PollPolicy.__init__.__kwdefaults__
    assert defaults is not None
    for name, value in {"min_interval": 0.02, "settle": 0.0, **seconds}.items():
        monkeypatch.setitem(defaults, name, value)
