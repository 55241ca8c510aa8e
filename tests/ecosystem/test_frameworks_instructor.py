"""docs/frameworks.md, the section of Instructor, which holds back openai."""

from __future__ import annotations

import pytest
from _sections import run_section

pytestmark = pytest.mark.sockets


def test_instructor() -> None:
    weather = run_section("frameworks.md", "Instructor", show="weather.model_dump()")
    assert weather["city"] == "What is the weather in Vienna?"
    assert isinstance(weather["celsius"], float)
