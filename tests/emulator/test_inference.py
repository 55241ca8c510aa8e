"""The OpenAI-compatible endpoint of an instance, as bare HTTP in process."""

import json
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from _grids import BACKENDS, alternating, grid

from cortecs_async.emulator import Emulator, Fault
from cortecs_async.emulator._generation import text_choice, tokenize

MODEL = "microsoft/phi-4"
SAID = f'This is the cortecs_async emulator in place of {MODEL}; no model was run. You said: "Hello there"'


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], **more}


def events(answer: httpx.Response) -> list[Any]:
    """Return the chunks of a streamed answer, which must end as the protocol says."""
    *lines, end, rest = answer.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.fixture
def http(emulate: Callable[..., Any]) -> Any:
    made = emulate(step_seconds=0.0)
    made.emulator.start_instance(MODEL, context_length=1000)
    return made


ID = "instance-10001"


async def test_the_models_of_an_instance_are_its_own(http: Any) -> None:
    assert (await http.infer(ID, "/models")).json() == {
        "object": "list",
        "data": [
            {
                "id": MODEL,
                "object": "model",
                "created": 1735689600,
                "owned_by": "cortecs-async-emulator",
                "max_model_len": 1000,
            }
        ],
    }


async def test_a_chat(http: Any) -> None:
    answer = await http.infer(ID, "/chat/completions", chat())
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "chatcmpl-instance-10001-1",
        "object": "chat.completion",
        "created": 1735689600,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": SAID, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 6,
            "completion_tokens": len(tokenize(SAID)),
            "total_tokens": 6 + len(tokenize(SAID)),
        },
    }


async def test_it_echoes_the_last_user_message(http: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
    ]
    answer = (await http.infer(ID, "/chat/completions", chat(messages=messages))).json()
    assert answer["choices"][0]["message"]["content"].endswith('You said: "second"')
    silent = (await http.infer(ID, "/chat/completions", chat(messages=messages[:1]))).json()
    assert silent["choices"][0]["message"]["content"].endswith("You said nothing.")


@alternating("field", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_can_be_too_long(field: str, http: Any) -> None:
    answer = (await http.infer(ID, "/chat/completions", chat(**{field: 5}))).json()
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (
        "This is the cortecs_async emulator",
        "length",
    )
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}


async def test_an_answer_that_just_fits_is_complete(http: Any) -> None:
    answer = (await http.infer(ID, "/chat/completions", chat(max_tokens=len(tokenize(SAID))))).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"] == SAID


@alternating(
    "stop,text",
    [
        ("emulator", "This is the cortecs_async "),
        (["nowhere", "emul", " the"], "This is"),
        ([], SAID),
        ("zzz", SAID),
    ],
)
async def test_an_answer_ends_before_the_first_stop(stop: Any, text: str, http: Any) -> None:
    (choice,) = (await http.infer(ID, "/chat/completions", chat(stop=stop))).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


async def test_several_choices(http: Any) -> None:
    answer = (await http.infer(ID, "/chat/completions", chat(n=3))).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == sum(len(tokenize(text)) for text in texts)


async def test_json_can_be_had(http: Any) -> None:
    body = chat(response_format={"type": "json_object"})
    (choice,) = (await http.infer(ID, "/chat/completions", body)).json()["choices"]
    assert json.loads(choice["message"]["content"]) == {
        "emulator": True,
        "model": MODEL,
        "you_said": "Hello there",
        "choice": 1,
    }


@grid(include_usage=[False, True], more=[{}, {"n": 2}, {"max_tokens": 3}], anyio_backend=BACKENDS)
async def test_a_streamed_chat_says_the_same(*, include_usage: bool, more: dict[str, Any], http: Any) -> None:
    plain = (await http.infer(ID, "/chat/completions", chat(**more))).json()
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    answer = await http.infer(ID, "/chat/completions", chat(**options, **more))
    assert answer.headers["content-type"] == "text/event-stream"
    chunks = events(answer)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    if include_usage:
        last = chunks.pop()
        assert (last["choices"], last["usage"]) == ([], plain["usage"])
    assert all(("usage" in chunk) == include_usage for chunk in chunks)
    for choice in plain["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        reasons = [part["finish_reason"] for part in mine]
        assert reasons == [None] * (len(mine) - 1) + [choice["finish_reason"]]


async def test_chunks_are_paced() -> None:
    emulator = Emulator(clock=anyio.current_time, step_seconds=0.0, token_seconds=0.5)
    instance_id = emulator.start_instance(MODEL)
    begun, times = anyio.current_time(), []
    async with (
        httpx.AsyncClient(transport=emulator.transport()) as client,
        client.stream(
            "POST",
            f"{emulator.root_url}/inference/{instance_id}/v1/chat/completions",
            headers={"Authorization": f"Bearer {emulator.api_key}"},
            json=chat(stream=True, max_tokens=3),
        ) as answer,
    ):
        times = [anyio.current_time() - begun async for _ in answer.aiter_raw()]
    # The role, three tokens, the finish reason, the end.
    assert times == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])


@pytest.mark.parametrize("end", ["stop", "vanish"])
async def test_a_stream_is_cut_when_its_instance_ends(end: str) -> None:
    emulator = Emulator(clock=anyio.current_time, step_seconds=0.0, token_seconds=1.0)
    instance_id = emulator.start_instance(MODEL)
    received = []
    async with (
        httpx.AsyncClient(transport=emulator.transport()) as client,
        client.stream(
            "POST",
            f"{emulator.root_url}/inference/{instance_id}/v1/chat/completions",
            headers={"Authorization": f"Bearer {emulator.api_key}"},
            json=chat(stream=True),
        ) as answer,
    ):
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            async for piece in answer.aiter_raw():
                received.append(piece)
                if len(received) == 3:
                    {"stop": emulator.stop_instance, "vanish": emulator.delete_instance}[end](instance_id)
    assert len(received) == 3


async def test_a_slow_stream_runs_into_the_read_time_out() -> None:
    emulator = Emulator(clock=anyio.current_time, step_seconds=0.0, token_seconds=10.0)
    instance_id = emulator.start_instance(MODEL)
    async with httpx.AsyncClient(transport=emulator.transport(), timeout=4.0) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                f"{emulator.root_url}/inference/{instance_id}/v1/chat/completions",
                headers={"Authorization": f"Bearer {emulator.api_key}"},
                json=chat(stream=True),
            )


async def test_a_truncated_stream_breaks_off(http: Any) -> None:
    http.emulator.add_fault(Fault("truncate", "chat"))
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        await http.infer(ID, "/chat/completions", chat(stream=True))


async def test_completions(http: Any) -> None:
    answer = (await http.infer(ID, "/completions", {"model": MODEL, "prompt": "Once upon"})).json()
    text = f' [the cortecs_async emulator in place of {MODEL}, continuing "Once upon"]'
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": len(tokenize(text)),
        "total_tokens": 2 + len(tokenize(text)),
    }


@alternating("stream", [False, True])
async def test_completions_of_several_prompts_with_echo(*, stream: bool, http: Any) -> None:
    body = {"model": MODEL, "prompt": ["One", "Two"], "n": 2, "echo": True, "max_tokens": 2, "stream": stream}
    answer = await http.infer(ID, "/completions", body)
    texts = {0: "", 1: "", 2: "", 3: ""}
    for chunk in events(answer) if stream else [answer.json()]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert list(texts.values()) == ["One [the", "One [the", "Two [the", "Two [the"]


@alternating("path", ["/chat/completions", "/completions"])
async def test_the_context_is_limited(path: str, http: Any) -> None:
    body = chat(prompt="Hello there", max_tokens=999)
    answer = await http.infer(ID, path, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert (await http.infer(ID, path, {**body, "max_tokens": 990})).status_code == 200


def test_an_answer_without_a_limit_stays_within_the_context() -> None:
    assert text_choice("a b c", limit=2, stop=()).text == "a b"
    assert text_choice("a b c", limit=2, stop=()).finish_reason == "length"


@pytest.mark.parametrize("text", ["", "a", " a  b\n", "Ünïcode, (yes) -- 12.5!\t ", "日本語", "\n\n"])
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


@alternating(
    "path",
    [
        *("/models", "/chat/completions", "/completions", "/embeddings"),
        *("/responses", "/rerank", "/score"),
    ],
)
async def test_the_api_key_is_needed_and_no_token_will_do(path: str, http: Any) -> None:
    token = await http.token()
    for key in (None, "wrong", token):
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = await http.infer(ID, path, None if path == "/models" else chat(prompt="x"), headers=headers)
        assert answer.status_code == 401
        assert answer.json() == {
            "error": {
                "message": "Incorrect API key provided.",
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }
        }


async def test_an_instance_serves_while_it_runs(clock: Any, emulate: Callable[..., Any]) -> None:
    http = emulate(stop_seconds=5.0)
    instance_id = http.emulator.start_instance(MODEL)

    async def status() -> tuple[int, str | None]:
        answer = await http.infer(instance_id, "/chat/completions", chat())
        error = answer.json().get("error", {})
        return answer.status_code, error.get("message")

    assert await status() == (503, "Instance instance-10001 is pending.")
    clock.now = 4.0
    assert await status() == (200, None)
    http.emulator.stop_instance(instance_id)
    assert await status() == (503, "Instance instance-10001 is stopping.")
    clock.now = 9.0
    assert await status() == (503, "Instance instance-10001 is stopped.")
    http.emulator.delete_instance(instance_id)
    assert await status() == (404, "Instance instance-10001 does not exist.")


@alternating("path", ["/chat/completions", "/completions"])
async def test_another_model_is_not_served(path: str, http: Any) -> None:
    for name in ("gpt-4", "microsoft--phi-4", ""):
        answer = await http.infer(ID, path, chat(prompt="x", model=name))
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
        assert MODEL in answer.json()["error"]["message"]


@alternating(
    "more",
    [
        {"model": None},
        {"messages": None},
        {"messages": []},
        {"messages": "Hello"},
        {"messages": ["Hello"]},
        {"messages": [{"content": "Hello"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": ["Hello"]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"max_tokens": 0},
        {"max_completion_tokens": "5"},
        {"n": 0},
        {"n": 129},
        {"stop": 5},
        {"stop": [""]},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": []},
        {"stream": True, "stream_options": {"include_usage": 1}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"response_format": "json"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function"}},
    ],
)
async def test_a_malformed_chat_is_rejected(more: dict[str, Any], http: Any) -> None:
    answer = await http.infer(ID, "/chat/completions", chat(**more))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@alternating("prompt", [None, [], [1, 2], [[1, 2]], {"text": "x"}])
async def test_a_malformed_prompt_is_rejected(prompt: Any, http: Any) -> None:
    answer = await http.infer(ID, "/completions", {"model": MODEL, "prompt": prompt})
    assert answer.status_code == 400


async def test_an_invalid_json_body_gets_an_error_in_openai_format(http: Any) -> None:
    headers = {"Authorization": f"Bearer {http.emulator.api_key}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(transport=http.emulator.transport()) as client:
        answer = await client.post(
            f"{http.emulator.root_url}/inference/{ID}/v1/completions", headers=headers, content=b"{"
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The body is not valid JSON."
