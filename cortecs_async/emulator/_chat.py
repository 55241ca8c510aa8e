"""What the emulator's model makes of a chat: a text, an instance of a schema, or calls of tools."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cortecs_async.emulator._answers import Refusal
from cortecs_async.emulator._jsonschema.schema import Document
from cortecs_async.emulator._jsonschema.writer import instance_of
from cortecs_async.emulator._requests import ChatRequest
from cortecs_async.emulator._speech import Choice, ToolCall, chat_text, choose, split
from cortecs_async.emulator._tools import CALL_PREFIX, Tool, Turn, read_turn, tools_to_call


def chat_choices(ask: ChatRequest, *, limit: int, answer_number: int) -> list[Choice]:
    """The choices of an answer, each of at most ``limit`` tokens.

    Raises:
        Refusal: 400 when a schema is not followed or cannot be met.
    """
    turn = read_turn(ask.messages, ask.toolbox)
    tools = tools_to_call(ask.toolbox, turn)
    if not tools:
        texts = (_text(ask, turn, number) for number in range(ask.options.n))
        return [choose(text, limit=limit, stop=ask.options.stop) for text in texts]
    arguments = [(tool, split(_written(_arguments(tool, turn)))) for tool in tools]
    return [_called(ask, arguments, limit, (answer_number, number)) for number in range(ask.options.n)]


def _called(
    ask: ChatRequest, arguments: Sequence[tuple[Tool, Sequence[str]]], limit: int, numbers: tuple[int, int]
) -> Choice:
    """One choice that calls tools. Stop strings do not end it: they are meant for texts."""
    calls: list[ToolCall] = []
    room = limit
    for place, (tool, pieces) in enumerate(arguments):
        if room > 0:
            call_id = CALL_PREFIX + "_".join(map(str, (*numbers, place)))
            calls.append(ToolCall(call_id, tool.name, tuple(pieces[:room])))
        room -= len(pieces)
    if room < 0:
        return Choice((), "length", tuple(calls))
    # A call that was asked for by name ends with "stop", as on OpenAI's service and vLLM.
    return Choice((), "stop" if ask.toolbox.choice == "named" else "tool_calls", tuple(calls))


def _text(ask: ChatRequest, turn: Turn, number: int) -> str:
    if ask.document is None:
        return chat_text(ask.options.model, turn.said, turn.results, number, as_json=ask.as_json)
    return _written(instance_of(ask.document, turn.told or turn.said))


def _arguments(tool: Tool, turn: Turn) -> Any:
    try:
        found = instance_of(Document({"type": "object", **tool.parameters}), turn.told or turn.said)
    except Refusal as refusal:
        raise Refusal(400, f"Tool {tool.name!r}: {refusal.message}") from refusal
    if not isinstance(found, dict):
        raise Refusal(400, f"Tool {tool.name!r}: its parameters must be a JSON schema of objects.")
    return found


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def message_of(choice: Choice) -> dict[str, Any]:
    """A choice as the message of a plain answer."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        calls = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.text}}
            for call in choice.calls
        ]
        message |= {"content": None, "tool_calls": calls}
    return message


def chat_deltas(choices: Sequence[Choice]) -> Iterator[dict[str, Any]]:
    """The choices as those of the chunks of a streamed answer."""
    for index, choice in enumerate(choices):
        for delta in _deltas(choice):
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.finish_reason}


def _deltas(choice: Choice) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None if choice.calls else ""}
    for piece in choice.pieces:
        yield {"content": piece}
    for index, call in enumerate(choice.calls):
        begun: dict[str, Any] = {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        for part in (begun, *({"function": {"arguments": piece}} for piece in call.pieces)):
            yield {"tool_calls": [{"index": index, **part}]}
