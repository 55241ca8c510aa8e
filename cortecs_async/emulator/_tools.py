"""Which tools the emulator's model calls."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from cortecs_async.emulator._answers import Refusal, boolean_field, required_string
from cortecs_async.emulator._speech import Message

# Every id of a call begins so: frameworks that write calls out as text are recognised by it.
CALL_PREFIX: Final = "call_emulator_"


@attrs.frozen
class Tool:
    """A tool that is offered."""

    name: str
    parameters: Mapping[str, Any]
    """A JSON schema; it is read when the tool is called."""


@attrs.frozen
class Toolbox:
    """The tools of a request, and what may be done with them."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "none", "required", "named"] = "none"
    """``named``: there is only the one tool, and it must be called."""
    all_at_once: bool = False


@attrs.frozen
class Turn:
    """What has been said since the user spoke last."""

    said: str
    """By the user."""
    called: frozenset[str]
    """The names of the tools that were called since."""
    results: tuple[tuple[str, str], ...]
    """What they answered, each with the name of its tool."""

    @property
    def told(self) -> str:
        """The results, as a text."""
        return " ".join(f'{name} said: "{text}"' for name, text in self.results)


def read_toolbox(body: Mapping[str, Any]) -> Toolbox:
    """Read what a chat request says of tools.

    Raises:
        Refusal: 400 for a malformed body.
    """
    offered = body.get("tools")
    if offered is not None and not isinstance(offered, list):
        raise Refusal(400, "tools must be a list.")
    tools = tuple(_tool(tool) for tool in offered or ())
    all_at_once = boolean_field(body, "parallel_tool_calls")
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return Toolbox(tools, choice or "auto", all_at_once) if tools else Toolbox()
    if not tools:
        raise Refusal(400, "This tool_choice needs tools.")
    if choice == "required":
        return Toolbox(tools, "required", all_at_once)
    function = (
        choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    )
    if not isinstance(function, dict):
        raise Refusal(400, "tool_choice must be auto, none, required, or name a function.")
    named = tuple(tool for tool in tools if tool.name == function.get("name"))
    if not named:
        raise Refusal(400, "tool_choice names a function that is not among the tools.")
    return Toolbox(named[:1], "named")


def _tool(value: Any) -> Tool:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict):
        raise Refusal(400, "Every tool must be an object of type function, with a function.")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise Refusal(400, "The parameters of a tool must be a JSON schema, which is an object.")
    return Tool(required_string(function, "name"), parameters or {})


def read_turn(messages: Sequence[Message], toolbox: Toolbox) -> Turn:
    """Find what has been said since the user spoke last.

    Some frameworks (smolagents) write a call out as text of the assistant, id and all, and its result as a
    message of the user; these are read as what they stand for.
    """
    said, called, results = "", set[str](), list[tuple[str, str]]()
    names: dict[str, str] = {}
    written: list[str] = []
    for message in messages:
        if message.role == "user" and written:
            results.append((" and ".join(written), message.content))
        elif message.role == "user":
            said, called, results = message.content, set(), []
        elif message.role == "tool":
            name = message.name or names.get(message.tool_call_id or "") or "A tool"
            results.append((name, message.content))
        names |= {call.call_id: call.name for call in message.calls}
        called.update(call.name for call in message.calls)
        if message.role == "user" or (message.role == "assistant" and CALL_PREFIX not in message.content):
            written = []
        elif message.role == "assistant":
            written = [tool.name for tool in toolbox.tools if _is_named(tool, message.content)]
            called.update(written)
    return Turn(said, frozenset(called), tuple(results))


def tools_to_call(toolbox: Toolbox, turn: Turn) -> tuple[Tool, ...]:
    """The tools that the model calls now; none when it answers.

    Each tool is called once for what the user said, in the order in which they are offered: one an answer, or
    all in one when ``parallel_tool_calls`` is true. When the user names tools, only those are. After that the
    model answers; where it must call one, it calls the last. Frameworks put their tool for the final answer
    there.
    """
    if toolbox.choice in ("none", "named"):
        return toolbox.tools if toolbox.choice == "named" else ()
    named = [tool for tool in toolbox.tools if _is_named(tool, turn.said)]
    left = [tool for tool in named or toolbox.tools if tool.name not in turn.called]
    if not left and toolbox.choice == "required":
        left = [toolbox.tools[-1]]
    return tuple(left if toolbox.all_at_once else left[:1])


def _is_named(tool: Tool, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(tool.name)}(?!\w)", text) is not None
