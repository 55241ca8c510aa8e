"""Decide which tools the emulated model calls."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import attrs

from cortecs_async.emulator._generation import Message
from cortecs_async.emulator._messages import ApiError, boolean_field, required_string

# Every call id starts with this, which identifies calls sent back as text by a framework.
CALL_PREFIX: Final = "call_emulator_"


@attrs.frozen
class Tool:
    name: str
    parameters: Mapping[str, Any]
    """A JSON schema, checked when the tool is called."""


@attrs.frozen
class Toolbox:
    """The tools of a request, and how they may be called."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "none", "required", "named"] = "none"
    """`named`: there is only one tool, and it must be called."""
    parallel: bool = False


@attrs.frozen
class Turn:
    """The conversation since the user's last message."""

    user_text: str
    called: frozenset[str]
    """The names of the tools that have been called."""
    results: tuple[tuple[str, str], ...]
    """Their results, each with the name of its tool."""

    @property
    def text(self) -> str:
        """The results as text, or the user's text if there are none."""
        return " ".join(f'{name} said: "{text}"' for name, text in self.results) or self.user_text


def read_toolbox(body: Mapping[str, Any]) -> Toolbox:
    offered = body.get("tools")
    if offered is not None and not isinstance(offered, list):
        raise ApiError(400, "tools must be a list.")
    tools = tuple(_tool(tool) for tool in offered or ())
    parallel = boolean_field(body, "parallel_tool_calls")
    choice = body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return Toolbox(tools, choice or "auto", parallel) if tools else Toolbox()
    if not tools:
        raise ApiError(400, "This tool_choice needs tools.")
    if choice == "required":
        return Toolbox(tools, "required", parallel)
    function = _function(choice)
    if function is None:
        raise ApiError(400, "tool_choice must be auto, none, or required, or specify a function.")
    named = tuple(tool for tool in tools if tool.name == function.get("name"))
    if not named:
        raise ApiError(400, "tool_choice specifies a function that is not in tools.")
    return Toolbox(named[:1], "named")


def _function(value: Any) -> dict[str, Any] | None:
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    return function if isinstance(function, dict) else None


def _tool(value: Any) -> Tool:
    function = _function(value)
    if function is None:
        raise ApiError(400, "Every tool must be an object of type function, with a function.")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ApiError(400, "A tool's parameters must be a JSON schema object.")
    return Tool(required_string(function, "name"), parameters or {})


def read_turn(messages: Sequence[Message], toolbox: Toolbox) -> Turn:
    """Read the conversation since the user's last message.

    Some frameworks (smolagents) send a call, including its id, as text from the assistant, and the result as
    a message from the user. These count as a call and its result.
    """
    user_text, called, results = "", set[str](), list[tuple[str, str]]()
    names: dict[str, str] = {}
    called_in_text: list[str] = []
    for message in messages:
        if message.role == "user" and called_in_text:
            results.append((" and ".join(called_in_text), message.content))
        elif message.role == "user":
            user_text, called, results = message.content, set(), []
        elif message.role == "tool":
            name = message.name or names.get(message.tool_call_id or "") or "A tool"
            results.append((name, message.content))
        names |= {call.call_id: call.name for call in message.calls}
        called.update(call.name for call in message.calls)
        if message.role == "user" or (message.role == "assistant" and CALL_PREFIX not in message.content):
            called_in_text = []
        elif message.role == "assistant":
            called_in_text = [tool.name for tool in toolbox.tools if _is_named(tool, message.content)]
            called.update(called_in_text)
    return Turn(user_text, frozenset(called), tuple(results))


def tools_to_call(toolbox: Toolbox, turn: Turn) -> tuple[Tool, ...]:
    """Choose the tools that the model calls now: none if it answers with text.

    For each message from the user, each tool is called once, in the order offered: one per answer, or all in
    one answer if `parallel_tool_calls` is true. If the user mentions tools, only those tools are called.
    After that, the model answers with text. If it must call a tool, it calls the last one, because frameworks
    put their tool for the final answer there.
    """
    if toolbox.choice in ("none", "named"):
        return toolbox.tools if toolbox.choice == "named" else ()
    named = [tool for tool in toolbox.tools if _is_named(tool, turn.user_text)]
    remaining = [tool for tool in named or toolbox.tools if tool.name not in turn.called]
    if not remaining and toolbox.choice == "required":
        remaining = [toolbox.tools[-1]]
    return tuple(remaining if toolbox.parallel else remaining[:1])


def _is_named(tool: Tool, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(tool.name)}(?!\w)", text) is not None
