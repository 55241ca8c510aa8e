"""Answer a chat with text, with a value for a JSON schema, or with tool calls."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cortecs_async.emulator._generation import Choice, ToolCall, chat_text, text_choice, tokenize
from cortecs_async.emulator._inference_requests import ChatRequest
from cortecs_async.emulator._jsonschema.schema import Document
from cortecs_async.emulator._jsonschema.writer import write_value
from cortecs_async.emulator._messages import ApiError
from cortecs_async.emulator._tools import CALL_PREFIX, Tool, Turn, read_turn, tools_to_call


def chat_choices(chat: ChatRequest, *, limit: int, answer_number: int) -> list[Choice]:
    """Generate the choices of an answer, each of at most `limit` tokens."""
    turn = read_turn(chat.messages, chat.toolbox)
    tools = tools_to_call(chat.toolbox, turn)
    if not tools:
        return [text_choice(text, limit=limit, stop=chat.options.stop) for text in _texts(chat, turn)]
    calls = [(tool, tokenize(_to_json(_arguments(tool, turn)))) for tool in tools]
    return [_tool_choice(chat, calls, limit, (answer_number, number)) for number in range(chat.options.n)]


def _tool_choice(
    chat: ChatRequest, calls: Sequence[tuple[Tool, Sequence[str]]], limit: int, numbers: tuple[int, int]
) -> Choice:
    """Build a choice that calls tools. Stop strings apply to text only."""
    sent: list[ToolCall] = []
    remaining = limit
    for index, (tool, tokens) in enumerate(calls):
        if remaining > 0:
            call_id = CALL_PREFIX + "_".join(map(str, (*numbers, index)))
            sent.append(ToolCall(call_id, tool.name, tuple(tokens[:remaining])))
        remaining -= len(tokens)
    if remaining < 0:
        return Choice((), "length", tuple(sent))
    # A call of a named function ends with "stop", as with OpenAI and vLLM.
    return Choice((), "stop" if chat.toolbox.choice == "named" else "tool_calls", tuple(sent))


def _texts(chat: ChatRequest, turn: Turn) -> list[str]:
    """Return the text of each choice. For a JSON schema, all choices are the same."""
    if chat.document is not None:
        return [_to_json(write_value(chat.document, turn.text))] * chat.options.n
    return [
        chat_text(chat.options.model, turn.user_text, turn.results, number, as_json=chat.as_json)
        for number in range(chat.options.n)
    ]


def _arguments(tool: Tool, turn: Turn) -> Any:
    try:
        arguments = write_value(Document({"type": "object", **tool.parameters}), turn.text)
    except ApiError as error:
        raise ApiError(400, f"Tool {tool.name!r}: {error.message}") from error
    if not isinstance(arguments, dict):
        raise ApiError(400, f"Tool {tool.name!r}: the parameters must be a JSON schema for an object.")
    return arguments


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def message_json(choice: Choice) -> dict[str, Any]:
    """Return a choice as the message of a complete response."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message |= {"content": None, "tool_calls": [_call(call, call.arguments) for call in choice.calls]}
    return message


def chat_deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    """Yield a choice as the deltas of a streamed response."""
    yield {"role": "assistant", "content": None if choice.calls else ""}
    for token in choice.tokens:
        yield {"content": token}
    for index, call in enumerate(choice.calls):
        for part in (_call(call, ""), *({"function": {"arguments": token}} for token in call.tokens)):
            yield {"tool_calls": [{"index": index, **part}]}


def _call(call: ToolCall, arguments: str) -> dict[str, Any]:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
