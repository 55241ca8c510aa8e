"""The pace of polls where time is real."""

from __future__ import annotations

import pytest

from cortecs_async import PollPolicy


def poll_often(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Clients in this process that are told nothing else look every 20 ms instead of twice a second.

    Args:
        monkeypatch: Takes it back.
        **seconds: Other defaults of `PollPolicy`.
    """
    defaults = PollPolicy.__init__.__kwdefaults__
    assert defaults is not None
    for name, value in {"min_interval": 0.02, "settle": 0.0, **seconds}.items():
        monkeypatch.setitem(defaults, name, value)
