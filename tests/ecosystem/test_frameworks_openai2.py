"""docs/frameworks.md, the sections of frameworks beside which CrewAI and its openai 2 can be installed."""

from __future__ import annotations

import pytest
from _sections import run_section

pytestmark = pytest.mark.sockets

PAGE = "frameworks.md"


def test_openai() -> None:
    assert 'You said: "Why is the sky blue?"' in run_section(
        PAGE, "OpenAI", show="answer.choices[0].message.content"
    )


def test_llama_index() -> None:
    assert 'weather said: "Rain in ' in run_section(PAGE, "LlamaIndex", show="str(answer)")


def test_crewai() -> None:
    assert 'weather said: "Rain in ' in run_section(PAGE, "CrewAI", show="answer.raw")


def test_litellm() -> None:
    assert 'You said: "Why is the sky blue?"' in run_section(PAGE, "LiteLLM", show="answer")


def test_dspy() -> None:
    city, celsius = run_section(PAGE, "DSPy", show="answer.city, answer.celsius")
    assert "What is the weather in Vienna?" in city
    assert isinstance(celsius, float)


def test_smolagents() -> None:
    assert 'weather said: "' in run_section(PAGE, "smolagents", show="answer")
