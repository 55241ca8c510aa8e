"""The routes under /inference: an OpenAI-compatible endpoint for each instance."""

import json
import struct
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from cortecs_async.emulator import _inference_requests as requests
from cortecs_async.emulator._account import Account
from cortecs_async.emulator._chat import chat_choices, chat_deltas, message_json
from cortecs_async.emulator._generation import (
    Choice,
    completion_text,
    count_prompt_tokens,
    embedding,
    text_choice,
    tokenize,
)
from cortecs_async.emulator._instance import EPSILON, Instance
from cortecs_async.emulator._messages import ApiError, Params, Request, Response, json_object, json_response


def require_api_key(account: Account, request: Request) -> None:
    if request.bearer_token != account.settings.api_key:
        raise ApiError(
            401, "Incorrect API key provided.", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
        )


def v1_models(account: Account, _request: Request, params: Params, now: float) -> Response:
    """Handle GET /models: list the one model served by the instance."""
    instance = running_instance(account, params["instance_id"], now)
    model = {
        "id": instance.args.model.hf_name,
        "object": "model",
        "created": int(account.settings.epoch + instance.run.started_at),
        "owned_by": "cortecs-async-emulator",
        "max_model_len": instance.args.context_length,
    }
    return json_response(200, {"object": "list", "data": [model]})


def chat(account: Account, request: Request, params: Params, now: float) -> Response:
    instance = running_instance(account, params["instance_id"], now)
    chat = requests.read_chat(json_object(request))
    kind = "chat.completion.chunk" if chat.options.stream else "chat.completion"
    answer = _Answer.begin(account, instance, chat.options, now, id_prefix="chatcmpl", kind=kind)
    prompt_tokens = count_prompt_tokens(chat.messages)
    limit = token_limit(instance, prompt_tokens, chat.options.max_tokens)
    choices = chat_choices(chat, limit=limit, answer_number=answer.number)
    if chat.options.stream:
        deltas = [({"delta": delta} for delta in chat_deltas(choice)) for choice in choices]
        return answer.stream(deltas, {"delta": {}}, choices, prompt_tokens)
    messages = [{"message": message_json(choice)} for choice in choices]
    return answer.complete(messages, choices, prompt_tokens)


def completions(account: Account, request: Request, params: Params, now: float) -> Response:
    instance = running_instance(account, params["instance_id"], now)
    completion = requests.read_completion(json_object(request))
    options = completion.options
    answer = _Answer.begin(account, instance, options, now, id_prefix="cmpl", kind="text_completion")
    choices: list[Choice] = []
    for prompt in completion.prompts:
        limit = token_limit(instance, len(tokenize(prompt)), options.max_tokens)
        for number in range(options.n):
            text = completion_text(options.model, prompt, number)
            choices.append(text_choice(text, limit=limit, stop=options.stop))
    # An echoed prompt is part of the text but counts only as prompt.
    prompt_tokens = sum(len(tokenize(prompt)) for prompt in completion.prompts)
    echoes = [prompt if completion.echo else "" for prompt in completion.prompts for _ in range(options.n)]
    if options.stream:
        deltas = [
            ({"text": text} for text in (echo, *choice.tokens) if text)
            for echo, choice in zip(echoes, choices, strict=True)
        ]
        return answer.stream(deltas, {"text": ""}, choices, prompt_tokens)
    texts = [{"text": echo + choice.text} for echo, choice in zip(echoes, choices, strict=True)]
    return answer.complete(texts, choices, prompt_tokens)


def embeddings(account: Account, request: Request, params: Params, now: float) -> Response:
    """Handle POST /embeddings. In the emulator, every model supports embeddings."""
    instance = running_instance(account, params["instance_id"], now)
    body = requests.read_embeddings(json_object(request))
    model = check_model(instance, body.model)
    for tokens in body.prompt_tokens:
        token_limit(instance, tokens, 0)
    data: list[dict[str, Any]] = []
    for index, text in enumerate(body.inputs):
        packed = embedding(text, body.dimensions)
        vector: Any = (
            b64encode(packed).decode() if body.as_base64 else struct.unpack(f"<{len(packed) // 4}f", packed)
        )
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(body.prompt_tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response(
        200,
        {"object": "list", "data": data, "model": model, "usage": usage},
        instance_id=instance.instance_id,
    )


def running_instance(account: Account, instance_id: str, now: float) -> Instance:
    instance = account.instances.get(instance_id)
    if instance is None:
        raise ApiError(404, f"Instance {instance_id} does not exist.", code="instance_not_found")
    status = account.status(instance, now)
    if status != "running":
        raise ApiError(503, f"Instance {instance_id} is {status}.", code="instance_not_running")
    if endpoint_lag(account, instance, now):
        raise ApiError(502, f"The server of instance {instance_id} does not respond.", body="html")
    return instance


def endpoint_lag(account: Account, instance: Instance, now: float) -> float:
    """Return the seconds for which the endpoint of a running instance still fails."""
    settings = account.settings
    remaining = instance.run.started_at + settings.ready_after + settings.endpoint_lag - now
    return remaining if settings.endpoint_lag and remaining > EPSILON else 0.0


def check_model(instance: Instance, model: str) -> str:
    name = instance.args.model.hf_name
    if model != name:
        raise ApiError(
            404,
            f"The model {model!r} does not exist; this instance serves {name}.",
            code="model_not_found",
        )
    return name


def token_limit(instance: Instance, prompt_tokens: int, max_tokens: int | None) -> int:
    """Return the maximum number of tokens in an answer."""
    context_length = instance.args.context_length
    needed = prompt_tokens + (1 if max_tokens is None else max_tokens)
    if needed > context_length:
        raise ApiError(
            400,
            f"The context length is {context_length} tokens, but the prompt ({prompt_tokens}) and the answer "
            f"need {needed}.",
            code="context_length_exceeded",
        )
    return context_length - prompt_tokens if max_tokens is None else max_tokens


@attrs.frozen
class _Answer:
    """An answer with choices, sent complete or as a stream."""

    number: int
    """Counts the answers of the account, from 1."""
    instance_id: str
    options: requests.Options
    common: Mapping[str, Any]
    """The fields of the response or of each of its chunks."""

    @classmethod
    def begin(
        cls,
        account: Account,
        instance: Instance,
        options: requests.Options,
        now: float,
        *,
        id_prefix: str,
        kind: str,
    ) -> "_Answer":
        model = check_model(instance, options.model)
        account.answers += 1
        answer_id = f"{id_prefix}-{instance.instance_id}-{account.answers}"
        created = int(account.settings.epoch + now)
        common = {"id": answer_id, "object": kind, "created": created, "model": model}
        return cls(account.answers, instance.instance_id, options, common)

    def complete(
        self, contents: Sequence[dict[str, Any]], choices: Sequence[Choice], prompt_tokens: int
    ) -> Response:
        """Build a complete response from the content of each choice."""
        parts = [
            _part(index, content, choice.finish_reason)
            for index, (content, choice) in enumerate(zip(contents, choices, strict=True))
        ]
        body = {**self.common, "choices": parts, "usage": _usage(prompt_tokens, choices)}
        return json_response(200, body, instance_id=self.instance_id)

    def stream(
        self,
        contents: Sequence[Iterable[dict[str, Any]]],
        last: dict[str, Any],
        choices: Sequence[Choice],
        prompt_tokens: int,
    ) -> Response:
        """Build a stream from the contents of each choice; `last` is the content of its last chunk."""
        # With include_usage, every chunk has the key, and a last chunk without choices has the numbers.
        usage: dict[str, Any] = {"usage": None} if self.options.include_usage else {}
        chunks = [
            {**self.common, "choices": [part], **usage} for part in _stream_parts(contents, last, choices)
        ]
        if usage:
            usage = {"usage": _usage(prompt_tokens, choices)}
            chunks.append({**self.common, "choices": [], **usage})
        events = (*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n")
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        return Response(200, headers=headers, events=events, instance_id=self.instance_id)


def _stream_parts(
    contents: Sequence[Iterable[dict[str, Any]]], last: dict[str, Any], choices: Sequence[Choice]
) -> Iterator[dict[str, Any]]:
    for index, (parts, choice) in enumerate(zip(contents, choices, strict=True)):
        for content in parts:
            yield _part(index, content, None)
        yield _part(index, last, choice.finish_reason)


def _part(index: int, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def _usage(prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, int]:
    completion_tokens = sum(choice.token_count for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
