"""Structured output and tools of a chat, as bare HTTP in process."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cortecs_async.emulator._generation import tokenize

MODEL = "microsoft/phi-4"
ID = "instance-10001"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


def tool(name: str, parameters: Any = CITY) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        **more,
    }


@pytest.fixture
def http(emulate: Callable[..., Any]) -> Any:
    made = emulate(step_seconds=0.0)
    made.emulator.start_instance(MODEL, context_length=1000)
    return made


@pytest.fixture
def ask(http: Any) -> Callable[..., Any]:
    """Send a chat and return its first choice."""

    async def asked(messages: Any = None, **more: Any) -> Any:
        body = {"model": MODEL, "messages": messages or [user("Berlin")], **more}
        answer = await http.infer(ID, "/chat/completions", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]

    return asked


@pytest.fixture
def refused(http: Any) -> Callable[..., Any]:
    """Send a chat and return the message with which it is rejected."""

    async def asked(**more: Any) -> str:
        body = {"model": MODEL, "messages": [user("Berlin")], **more}
        answer = await http.infer(ID, "/chat/completions", body)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])

    return asked


def call_of(choice: Any) -> tuple[str, Any]:
    """Return the name and arguments of a choice's only call."""
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    return call["function"]["name"], json.loads(call["function"]["arguments"])


async def run(
    ask: Any, *, results: Callable[[str], str] = lambda name: f"{name} done", **body: Any
) -> list[str]:
    """Act as an agent: run the tools that the model calls, until it answers. At most ten times."""
    messages, seen = [user(body.pop("said", "Berlin"))], list[str]()
    for _ in range(10):
        message = (await ask(messages, **body))["message"]
        messages.append(message)
        if "tool_calls" not in message:
            return [*seen, message["content"]]
        for call in message["tool_calls"]:
            seen.append(call["function"]["name"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": results(seen[-1])})
    pytest.fail(f"no end: {seen}")


async def test_a_schema_gives_a_valid_value(ask: Any) -> None:
    choice = await ask(**schema(CITY))
    assert json.loads(choice["message"]["content"]) == {"city": "Berlin"}
    assert choice["finish_reason"] == "stop"


async def test_an_instance_can_be_too_long(ask: Any) -> None:
    choice = await ask(**schema(CITY), max_tokens=4)
    assert choice["message"]["content"] == '{"city"'
    assert choice["finish_reason"] == "length"


async def test_an_instance_is_streamed(http: Any, ask: Any) -> None:
    plain = (await ask(**schema(CITY)))["message"]["content"]
    body = {"model": MODEL, "messages": [user("Berlin")], "stream": True, **schema(CITY)}
    deltas = [chunk["delta"] for chunk in chunks(await http.infer(ID, "/chat/completions", body))]
    assert [delta.get("content") for delta in deltas] == ["", *tokenize(plain), None]


def chunks(answer: httpx.Response) -> list[Any]:
    """Return the choices of a streamed answer."""
    *lines, end, rest = answer.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]


@pytest.mark.parametrize(
    ("choice", "finish"),
    [
        ("required", "tool_calls"),
        ("auto", "tool_calls"),
        (None, "tool_calls"),
        ({"type": "function", "function": {"name": "look"}}, "stop"),
    ],
)
async def test_a_tool_is_called(choice: Any, finish: str, http: Any, ask: Any) -> None:
    found = await ask(tools=[tool("look")], tool_choice=choice)
    assert call_of(found) == ("look", {"city": "Berlin"})
    assert found["finish_reason"] == finish
    assert found["message"]["tool_calls"][0]["id"] == "call_emulator_1_0_0"
    assert found["message"]["tool_calls"][0]["type"] == "function"


async def test_a_named_tool_is_called_again_and_again(ask: Any) -> None:
    body = {
        "tools": [tool("first"), tool("second")],
        "tool_choice": {"type": "function", "function": {"name": "second"}},
    }
    before = await ask(**body)
    assert call_of(before)[0] == "second"
    told = {"role": "tool", "tool_call_id": before["message"]["tool_calls"][0]["id"], "content": "sunny"}
    again = await ask([user("Berlin"), before["message"], told], **body)
    assert call_of(again) == ("second", {"city": 'second said: "sunny"'})


async def test_none_calls_no_tool(ask: Any) -> None:
    choice = await ask(tools=[tool("look")], tool_choice="none")
    assert choice["message"]["content"].endswith('You said: "Berlin"')
    assert "tool_calls" not in choice["message"]


async def test_every_tool_is_called_once_and_then_there_is_an_answer(ask: Any) -> None:
    *called, answer = await run(ask, tools=[tool("one"), tool("two")])
    assert called == ["one", "two"]
    assert answer.endswith('no model was run. You said: "Berlin" one said: "one done" two said: "two done"')


async def test_the_user_may_name_the_tools(ask: Any) -> None:
    *called, _ = await run(ask, said="Please use two.", tools=[tool("one"), tool("two"), tool("two_b")])
    assert called == ["two"]


async def test_required_calls_the_last_tool_at_the_end(ask: Any) -> None:
    body = {"tools": [tool("one"), tool("final_result")], "tool_choice": "required"}
    messages = [user("Berlin")]
    called = []
    for _ in range(3):
        message = (await ask(messages, **body))["message"]
        called.append(message["tool_calls"][0]["function"]["name"])
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "no"}
        messages += [message, result]
    assert called == ["one", "final_result", "final_result"]


async def test_the_next_user_message_starts_a_new_turn(ask: Any) -> None:
    first = await ask(tools=[tool("look")])
    told = {"role": "tool", "tool_call_id": first["message"]["tool_calls"][0]["id"], "content": "sunny"}
    messages = [
        user("Berlin"),
        first["message"],
        told,
        {"role": "assistant", "content": "Sunny."},
        user("Rome"),
    ]
    assert call_of(await ask(messages, tools=[tool("look")])) == ("look", {"city": "Rome"})


async def test_calls_that_a_framework_writes_out_count(ask: Any) -> None:
    first = await ask(tools=[tool("look"), tool("final_answer")], tool_choice="required")
    messages = [
        user("Berlin"),
        {"role": "assistant", "content": f"Calling tools:\n{first['message']['tool_calls']}"},
        user("Observation:\nsunny"),
    ]
    then = await ask(messages, tools=[tool("look"), tool("final_answer")], tool_choice="required")
    assert call_of(then) == ("final_answer", {"city": 'look said: "Observation:\nsunny"'})


async def test_a_handoff_is_not_repeated_by_whom_it_reaches(ask: Any) -> None:
    handed = await ask(tools=[tool("transfer_to_other", {})])
    call = handed["message"]["tool_calls"][0]
    messages = [
        user("Berlin"),
        handed["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "{'assistant': 'other'}"},
    ]
    assert call["function"]["arguments"] == "{}"
    assert "tool_calls" not in (await ask(messages, tools=[tool("transfer_to_other", {})]))["message"]
    assert call_of(await ask(messages, tools=[tool("look")]))[0] == "look"


async def test_several_calls_in_one_answer(http: Any, ask: Any) -> None:
    body = {"tools": [tool("one"), tool("two")], "parallel_tool_calls": True}
    choice = await ask(**body)
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["one", "two"]
    assert len({call["id"] for call in calls}) == 2
    assert len((await ask(tools=body["tools"], parallel_tool_calls=False))["message"]["tool_calls"]) == 1

    streaming = {"model": MODEL, "messages": [user("Berlin")], "stream": True, **body}
    parts = chunks(await http.infer(ID, "/chat/completions", streaming))
    assert parts[0]["delta"] == {"role": "assistant", "content": None}
    assert (parts[-1]["delta"], parts[-1]["finish_reason"]) == ({}, "tool_calls")
    joined: dict[int, Any] = {}
    for part in parts[1:-1]:
        (piece,) = part["delta"]["tool_calls"]
        if piece["index"] in joined:
            assert piece.keys() == {"index", "function"}
            joined[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
        else:
            assert piece["function"]["arguments"] == ""
            joined[piece.pop("index")] = piece
    assert [call["function"] for call in joined.values()] == [call["function"] for call in calls]
    assert len(parts) > 6


async def test_arguments_can_be_too_long(ask: Any) -> None:
    choice = await ask(tools=[tool("one"), tool("two")], parallel_tool_calls=True, max_tokens=13)
    assert choice["finish_reason"] == "length"
    first, second = (call["function"]["arguments"] for call in choice["message"]["tool_calls"])
    assert json.loads(first) == {"city": "Berlin"}
    assert second == '{"city"'


async def test_a_call_that_was_not_begun_is_not_there(ask: Any) -> None:
    choice = await ask(tools=[tool("one"), tool("two")], parallel_tool_calls=True, max_tokens=9)
    assert choice["finish_reason"] == "length"
    assert call_of(choice) == ("one", {"city": "Berlin"})


async def test_stop_strings_leave_arguments_alone(ask: Any) -> None:
    assert call_of(await ask(tools=[tool("look")], stop=["Berlin"])) == ("look", {"city": "Berlin"})


async def test_tools_come_before_structured_output(ask: Any) -> None:
    *called, answer = await run(ask, tools=[tool("look")], **schema(CITY))
    assert called == ["look"]
    assert json.loads(answer) == {"city": 'look said: "look done"'}


async def test_json_includes_the_tool_results(ask: Any) -> None:
    *_, answer = await run(ask, tools=[tool("look")], response_format={"type": "json_object"})
    assert json.loads(answer)["tools_said"] == [{"tool": "look", "said": "look done"}]


async def test_calls_and_their_results_count_as_prompt(http: Any) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}
    messages = [
        user("Berlin"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny there"},
    ]
    usage = (await http.infer(ID, "/chat/completions", {"model": MODEL, "messages": messages})).json()[
        "usage"
    ]
    assert usage["prompt_tokens"] == 3 * 4 + 1 + 1 + len(tokenize('{"city": "Rome"}')) + 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tools": {}}, "tools must be a list"),
        ({"tools": ["look"]}, "Every tool"),
        ({"tools": [{"type": "function"}]}, "Every tool"),
        ({"tools": [{"type": "function", "function": {}}]}, "name is required"),
        ({"tools": [tool("x", "string")]}, "A tool's parameters"),
        ({"tools": [tool("x", {"type": "string"})]}, "Tool 'x'"),
        ({"tools": [tool("x", {"not": {}})]}, "Tool 'x': The emulator does not support 'not'"),
        ({"tools": [tool("x")], "tool_choice": "always"}, "tool_choice must be"),
        ({"tools": [tool("x")], "tool_choice": {"type": "function"}}, "tool_choice must be"),
        (
            {"tools": [tool("x")], "tool_choice": {"type": "function", "function": {"name": "y"}}},
            "not in tools",
        ),
        ({"tools": [], "tool_choice": "required"}, "needs tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls must be a boolean"),
        ({"response_format": {"type": "grammar"}}, "response_format must have the type"),
        ({"response_format": {"type": "json_schema"}}, "needs a json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "name is required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "must be an object"),
        (schema({"enum": []}), "'enum' at #"),
        (schema({"type": "object", "patternProperties": {}}), "does not support 'patternProperties'"),
        (schema([]), "must be an object"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "tool_calls must be a list"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "Every tool call"),
        (
            {"messages": [{"role": "tool", "tool_call_id": 5, "content": "x"}]},
            "tool_call_id must be a string",
        ),
    ],
)
async def test_malformed_or_unsupported_requests_are_rejected(more: Any, words: str, refused: Any) -> None:
    assert words in await refused(**more)
