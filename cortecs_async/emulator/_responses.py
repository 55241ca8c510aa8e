"""The part of OpenAI's Responses API that batches need: one text for one input, not streamed."""

from collections.abc import Mapping
from typing import Any

from cortecs_async.emulator._account import Account
from cortecs_async.emulator._chat import chat_choices
from cortecs_async.emulator._generation import Choice, Message, count_prompt_tokens
from cortecs_async.emulator._inference import check_model, running_instance, token_limit
from cortecs_async.emulator._inference_requests import ChatRequest, Options
from cortecs_async.emulator._messages import (
    ApiError,
    Params,
    Request,
    Response,
    boolean_field,
    integer_field,
    json_object,
    json_response,
    required_string,
    string_field,
)
from cortecs_async.emulator._tools import Toolbox

# A tuple, because the type of a part may not be hashable.
_TEXT_PARTS = ("text", "input_text", "output_text")


def responses(account: Account, request: Request, params: Params, now: float) -> Response:
    """Handle POST /responses."""
    instance = running_instance(account, params["instance_id"], now)
    chat = _read(json_object(request))
    model = check_model(instance, chat.options.model)
    prompt_tokens = count_prompt_tokens(chat.messages)
    limit = token_limit(instance, prompt_tokens, chat.options.max_tokens)
    account.answers += 1
    (choice,) = chat_choices(chat, limit=limit, answer_number=account.answers)
    is_cut = choice.finish_reason == "length"
    body = {
        "id": f"resp-{instance.instance_id}-{account.answers}",
        "object": "response",
        "created_at": int(account.settings.epoch + now),
        "model": model,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "error": None,
        "output": [_message_json(choice, f"msg-{instance.instance_id}-{account.answers}")],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": choice.token_count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + choice.token_count,
        },
    }
    return json_response(200, body, instance_id=instance.instance_id)


def _message_json(choice: Choice, message_id: str) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "status": "incomplete" if choice.finish_reason == "length" else "completed",
        "content": [{"type": "output_text", "text": choice.text, "annotations": []}],
    }


def _read(body: Mapping[str, Any]) -> ChatRequest:
    """Read a request as the equivalent chat."""
    if boolean_field(body, "stream"):
        raise ApiError(400, "The emulator does not stream /responses.")
    # The value for "none" in each field that the emulator does not support.
    for name, nothing in (("tools", []), ("background", False), ("previous_response_id", None)):
        value = body.get(name)
        if value is not None and not (type(value) is type(nothing) and value == nothing):
            raise ApiError(400, f"The emulator does not support {name} in /responses.")
    messages = _messages(body.get("input"))
    if (instructions := string_field(body, "instructions")) is not None:
        messages = (Message("system", instructions), *messages)
    options = Options(
        model=required_string(body, "model"),
        max_tokens=integer_field(body, "max_output_tokens", least=1),
        n=1,
        stop=(),
        stream=False,
        include_usage=False,
    )
    return ChatRequest(options, messages, Toolbox(), as_json=_as_json(body.get("text")), document=None)


def _as_json(text: Any) -> bool:
    if text is None:
        return False
    text_format = text.get("format", {"type": "text"}) if isinstance(text, dict) else None
    kind = text_format.get("type") if isinstance(text_format, dict) else None
    if kind not in ("text", "json_object"):
        raise ApiError(400, "text must be an object whose format has the type text or json_object.")
    return bool(kind == "json_object")


def _messages(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        raise ApiError(400, "input must be a string or a non-empty list.")
    if not all(isinstance(item, dict) and item.get("type", "message") == "message" for item in value):
        raise ApiError(400, "Every item of input must be a message.")
    return tuple(Message(required_string(item, "role"), _content(item.get("content"))) for item in value)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ApiError(400, "content must be a string or a list of parts.")
    if not all(isinstance(part, dict) and part.get("type") in _TEXT_PARTS for part in value):
        raise ApiError(400, "Every content part must be an object of type input_text or output_text.")
    return "".join(required_string(part, "text") for part in value)
