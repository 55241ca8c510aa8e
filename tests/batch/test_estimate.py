"""The estimate of a batch: what it reads, and the bound of what it writes."""

from __future__ import annotations

from typing import Any

import pytest

from cortecs_async._batch.estimate import Sizes
from cortecs_async._lease.inference import ENDPOINTS

TEXT = "x" * 400
"""A hundred tokens."""

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + TEXT}}


def sizes(path: str, **body: Any) -> Sizes:
    result = Sizes()
    result.add(1, ENDPOINTS[path.removeprefix("/v1")], body)
    return result


def chat(content: Any = TEXT, **body: Any) -> Sizes:
    return sizes("/chat/completions", messages=[{"role": "user", "content": content}], **body)


@pytest.mark.parametrize(
    ("body", "written"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 10}, 10),
        ({"max_completion_tokens": 10, "max_tokens": 20}, 20),
        ({"max_tokens": 10, "n": 4}, 40),
        ({"max_tokens": 10, "best_of": 4}, 40),
        ({"max_tokens": 10, "n": 2, "best_of": 3}, 30),
        ({"max_tokens": 10, "n": None}, 10),
        ({"max_tokens": 10.0, "n": "4"}, 40),
    ],
)
def test_the_answers_of_a_chat(body: dict[str, Any], written: int) -> None:
    assert chat(**body).max_completion_tokens(None) == written


@pytest.mark.parametrize("limit", [None, -1, "many", True, 1.5, 1 << 60, [5]])
@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_without_a_usable_limit_can_fill_the_context(limit: Any, n: int) -> None:
    found = chat(max_tokens=limit, n=n)
    assert found.max_completion_tokens(None) is None
    assert found.max_completion_tokens(1000) == 1000 * n
    assert found.unlimited == n


@pytest.mark.parametrize("n", [-1, "many", True, [2], 1 << 60])
def test_an_unknown_number_of_answers_is_not_bounded(n: Any) -> None:
    assert chat(max_tokens=10, n=n).max_completion_tokens(1000) is None


def test_each_prompt_of_a_list_has_its_answers_and_its_own_context() -> None:
    found = sizes("/completions", prompt=[TEXT, "y" * 800, [1, 2, 3]], max_tokens=10, n=2, best_of=4)
    assert found.max_completion_tokens(None) == 3 * 4 * 10
    assert found.prompt == 100 + 200 + 3
    assert found.longest == (210, 1)


@pytest.mark.parametrize(("prompt", "tokens"), [(TEXT, 100), ([7] * 30, 30), ([[7] * 30], 30), ("", 0)])
def test_one_prompt(prompt: Any, tokens: int) -> None:
    found = sizes("/completions", prompt=prompt, max_tokens=10)
    assert (found.prompt, found.max_completion_tokens(None)) == (tokens, 10)


def test_a_completion_has_no_max_completion_tokens() -> None:
    assert sizes("/completions", prompt="x", max_completion_tokens=10).max_completion_tokens(None) is None


def test_a_response() -> None:
    found = sizes(
        "/responses",
        instructions=TEXT,
        input=[{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}],
        max_output_tokens=10,
        max_tokens=99,
    )
    assert (found.prompt, found.max_completion_tokens(None)) == (200, 10)
    assert sizes("/responses", input=TEXT, max_tokens=10).unlimited == 1


def test_tools_that_the_server_runs_lead_to_more_answers() -> None:
    def written(kind: Any) -> int | None:
        found = sizes("/responses", input="x", max_output_tokens=10, tools=[{"type": kind, "name": "f"}])
        return found.max_completion_tokens(1000)

    assert (written("function"), written("web_search"), written(["odd"])) == (10, None, None)
    assert sizes("/responses", input="x", max_output_tokens=10, tools=5).max_completion_tokens(None) == 10


@pytest.mark.parametrize(
    ("path", "body", "prompt", "longest"),
    [
        ("/embeddings", {"input": TEXT}, 100, 100),
        ("/embeddings", {"input": [TEXT, "y" * 800]}, 300, 200),
        ("/embeddings", {"messages": [{"role": "user", "content": TEXT}]}, 100, 100),
        ("/rerank", {"query": TEXT, "documents": [TEXT, {"text": "y" * 800}]}, 500, 300),
        ("/score", {"text_1": TEXT, "text_2": [TEXT, "y" * 800]}, 500, 300),
        ("/score", {"text_1": [TEXT, TEXT], "text_2": [TEXT, "y" * 800]}, 500, 300),
    ],
)
def test_requests_that_write_nothing(path: str, body: dict[str, Any], prompt: int, longest: int) -> None:
    found = sizes(path, **body)
    assert (found.prompt, found.longest[0]) == (prompt, longest)
    assert found.max_completion_tokens(None) == 0


@pytest.mark.parametrize(
    ("content", "prompt", "attachments"),
    [
        ([{"type": "text", "text": TEXT}, IMAGE, IMAGE], 100, 2),
        ([{"type": "text", "text": TEXT}, {"image_url": {"url": TEXT}}], 100, 1),
        ([{"type": "input_audio", "input_audio": {"data": TEXT}}], 0, 1),
        ([{"type": "file", "file": {"file_data": TEXT}}], 0, 1),
        ([{"type": ["odd"], "text": TEXT}], 0, 1),
        ([TEXT, None, {"type": "text"}], 100, 0),
        (None, 0, 0),
    ],
)
def test_attachments_are_counted_and_not_measured(content: Any, prompt: int, attachments: int) -> None:
    found = chat(content, max_tokens=1)
    assert (found.prompt, found.attachments) == (prompt, attachments)


def test_tools_and_tool_calls_are_part_of_the_prompt() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": TEXT, "parameters": {}}}
    assert 110 < chat("", tools=[tool]).prompt < 130
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": TEXT}}]
    messages = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": TEXT}]
    assert sizes("/chat/completions", messages=messages).prompt == 200


def test_other_scripts_have_fewer_characters_a_token() -> None:
    assert chat("日" * 400).prompt == 300
    assert chat("\ud800" * 4).prompt == 3


def test_the_sizes_of_all_requests_are_added_up() -> None:
    found = Sizes()
    found.add(
        1, ENDPOINTS["/chat/completions"], {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 5}
    )
    found.add(4, ENDPOINTS["/chat/completions"], {"messages": [{"role": "user", "content": [IMAGE]}]})
    found.add(7, ENDPOINTS["/completions"], {"prompt": TEXT, "max_tokens": 500})
    assert (found.total, found.prompt, found.attachments, found.unlimited) == (3, 200, 1, 1)
    assert found.longest == (600, 7)
    assert found.max_completion_tokens(1000) == 5 + 500 + 1000
