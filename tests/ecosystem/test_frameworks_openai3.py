"""docs/frameworks.md, the sections of frameworks that run with the newest openai."""

from __future__ import annotations

import pytest
from _sections import run_section

pytestmark = pytest.mark.sockets

PAGE = "frameworks.md"


def test_openai() -> None:
    assert 'You said: "Why is the sky blue?"' in run_section(
        PAGE, "OpenAI", show="answer.choices[0].message.content"
    )


def test_openai_agents() -> None:
    agent, said = run_section(PAGE, "OpenAI Agents", show="result.last_agent.name, result.final_output")
    assert agent == "Forecaster"
    assert 'weather said: "Rain in ' in said


def test_pydantic_ai() -> None:
    output = run_section(PAGE, "Pydantic AI", show="result.output.model_dump()")
    assert 'outside said: "Rain in ' in output["city"]
    assert isinstance(output["celsius"], float)


def test_langchain() -> None:
    said, weather, calls = run_section(
        PAGE, "LangChain", show="answer.text, weather.model_dump(), asked.tool_calls"
    )
    assert 'You said: "Why is the sky blue?"' in said
    assert weather["city"] == "What is the weather in Vienna?"
    assert [(call["name"], list(call["args"])) for call in calls] == [("outside", ["city"])]


def test_agent_framework() -> None:
    assert 'weather said: "Rain in ' in run_section(PAGE, "Agent Framework", show="answer.text")


def test_a_lookup_is_noticed() -> None:
    """The other tests would pass without this check if lookups were not recorded."""
    with pytest.raises(AssertionError, match=r"127\.0\.0\.2"):
        run_section(PAGE, "OpenAI", show="__import__('socket').getaddrinfo('127.0.0.2', 80) and 0")
