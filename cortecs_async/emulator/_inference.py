"""The routes under /inference: an OpenAI-compatible endpoint for every instance."""

import json
import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from cortecs_async.emulator._account import Account
from cortecs_async.emulator._answers import Answer, Call, Refusal, json_answer, json_object
from cortecs_async.emulator._chat import chat_choices, chat_deltas, message_of
from cortecs_async.emulator._machine import Machine
from cortecs_async.emulator._speech import (
    Choice,
    choose,
    completion_text,
    count_messages,
    split,
    vector,
)

from . import _requests as requests

Params = Mapping[str, str]


@attrs.frozen
class _Frame:
    """What all parts of one answer share."""

    number: int
    """Counts the answers of the account."""
    answer_id: str
    created: int
    model: str
    instance_id: str

    def wrap(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model, **fields}


def require_api_key(account: Account, call: Call) -> None:
    """Check the API key of a call.

    Raises:
        Refusal: 401 when it is missing or wrong.
    """
    scheme, _, key = call.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or key.strip() != account.settings.api_key:
        raise Refusal(
            401, "Incorrect API key provided.", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
        )


def v1_models(account: Account, _call: Call, params: Params, now: float) -> Answer:
    """GET /models: the one model that the instance serves."""
    machine = serving(account, params["instance_id"], now)
    model = {
        "id": machine.arguments.model.hf_name,
        "object": "model",
        "created": int(account.settings.epoch + machine.run.begun_at),
        "owned_by": "cortecs-async-emulator",
        "max_model_len": machine.arguments.context_length,
    }
    return json_answer(200, {"object": "list", "data": [model]})


def chat(account: Account, call: Call, params: Params, now: float) -> Answer:
    """POST /chat/completions."""
    machine = serving(account, params["instance_id"], now)
    ask = requests.read_chat(json_object(call))
    frame = _frame(account, machine, ask.options, "chatcmpl", now)
    prompt_tokens = count_messages(ask.messages)
    limit = _room(machine, prompt_tokens, ask.options.max_tokens)
    choices = chat_choices(ask, limit=limit, answer_number=frame.number)
    usage = _usage(prompt_tokens, choices)
    if ask.options.stream:
        return _stream(frame, ask.options, "chat.completion.chunk", chat_deltas(choices), usage)
    return _plain(
        frame,
        "chat.completion",
        [
            {
                "index": index,
                "message": message_of(choice),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        usage,
    )


def completions(account: Account, call: Call, params: Params, now: float) -> Answer:
    """POST /completions."""
    machine = serving(account, params["instance_id"], now)
    ask = requests.read_completion(json_object(call))
    frame = _frame(account, machine, ask.options, "cmpl", now)
    choices: list[Choice] = []
    for prompt in ask.prompts:
        limit = _room(machine, len(split(prompt)), ask.options.max_tokens)
        for number in range(ask.options.n):
            text = completion_text(ask.options.model, prompt, number)
            choices.append(choose(text, limit=limit, stop=ask.options.stop))
    # An echoed prompt is part of the text, but is counted as prompt only.
    usage = _usage(sum(len(split(prompt)) for prompt in ask.prompts), choices)
    heads = [prompt if ask.echo else "" for prompt in ask.prompts for _ in range(ask.options.n)]
    if ask.options.stream:
        return _stream(frame, ask.options, "text_completion", _text_deltas(heads, choices), usage)
    return _plain(
        frame,
        "text_completion",
        [
            {
                "index": index,
                "text": head + choice.text,
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, (head, choice) in enumerate(zip(heads, choices, strict=True))
        ],
        usage,
    )


def embeddings(account: Account, call: Call, params: Params, now: float) -> Answer:
    """POST /embeddings. That every model has some is the emulator's invention."""
    machine = serving(account, params["instance_id"], now)
    ask = requests.read_embeddings(json_object(call))
    name = _served_name(machine, ask.model)
    for tokens in ask.prompt_tokens:
        _room(machine, tokens, 0)
    data: list[dict[str, Any]] = []
    for index, text in enumerate(ask.inputs):
        packed = vector(text, ask.dimensions)
        shown: Any = (
            b64encode(packed).decode() if ask.as_base64 else struct.unpack(f"<{len(packed) // 4}f", packed)
        )
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(ask.prompt_tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_answer(
        200,
        {"object": "list", "data": data, "model": name, "usage": usage},
        instance_id=machine.instance_id,
    )


def serving(account: Account, instance_id: str, now: float) -> Machine:
    """An instance that runs.

    Raises:
        Refusal: 404 when there is none, 503 when it does not run.
    """
    machine = account.alive.get(instance_id)
    if machine is None:
        raise Refusal(404, f"Instance {instance_id} does not exist.", code="instance_not_found")
    status = account.status(machine, now)
    if status != "running":
        raise Refusal(503, f"Instance {instance_id} is {status}.", code="instance_not_running")
    return machine


def _served_name(machine: Machine, model: str) -> str:
    name = machine.arguments.model.hf_name
    if model != name:
        raise Refusal(404, f"The model {model!r} does not exist; this serves {name}.", code="model_not_found")
    return name


def _frame(account: Account, machine: Machine, options: requests.Options, prefix: str, now: float) -> _Frame:
    name = _served_name(machine, options.model)
    number = account.next_number()
    return _Frame(
        number,
        f"{prefix}-{machine.instance_id}-{number}",
        int(account.settings.epoch + now),
        name,
        machine.instance_id,
    )


def _room(machine: Machine, prompt_tokens: int, max_tokens: int | None) -> int:
    longest = machine.arguments.context_length
    wanted = prompt_tokens + (1 if max_tokens is None else max_tokens)
    if wanted > longest:
        raise Refusal(
            400,
            f"The context is {longest} tokens; the prompt ({prompt_tokens}) and the answer make {wanted}.",
            code="context_length_exceeded",
        )
    return longest - prompt_tokens if max_tokens is None else max_tokens


def _usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, int]:
    completion_tokens = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _plain(frame: _Frame, kind: str, choices: list[dict[str, Any]], usage: dict[str, int]) -> Answer:
    return json_answer(200, frame.wrap(kind, choices=choices, usage=usage), instance_id=frame.instance_id)


def _text_deltas(heads: Sequence[str], choices: Sequence[Choice]) -> Iterator[dict[str, Any]]:
    for index, (head, choice) in enumerate(zip(heads, choices, strict=True)):
        for text in filter(None, (head, *choice.pieces)):
            yield {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        yield {"index": index, "text": "", "logprobs": None, "finish_reason": choice.finish_reason}


def _stream(
    frame: _Frame,
    options: requests.Options,
    kind: str,
    deltas: Iterator[dict[str, Any]],
    usage: dict[str, int],
) -> Answer:
    # With include_usage every chunk has the key, and a last one without choices has the figures.
    blank: dict[str, Any] = {"usage": None} if options.include_usage else {}
    chunks = [frame.wrap(kind, choices=[delta], **blank) for delta in deltas]
    if options.include_usage:
        chunks.append(frame.wrap(kind, choices=[], usage=usage))
    events = (*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n")
    headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
    return Answer(200, headers=headers, events=events, instance_id=frame.instance_id)
