"""The endpoints of batches other than chat, completions and embeddings: responses, rerank and score."""

from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import serve_emulator

MODEL = "microsoft/phi-4"
ID = "instance-10001"
CONTEXT = 40

BODIES: dict[str, dict[str, Any]] = {
    "/responses": {"input": "Hello"},
    "/rerank": {"query": "blue sky", "documents": ["green grass", "the sky is blue", "a sky"]},
    "/score": {"text_1": "blue sky", "text_2": ["the sky is blue", "green grass"]},
}


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


@pytest.fixture
def http(emulate: Callable[..., Any]) -> Any:
    made = emulate(step_seconds=0.0)
    made.emulator.start_instance(MODEL, context_length=CONTEXT)
    return made


async def ask(http: Any, path: str, **more: Any) -> Any:
    return await http.infer(ID, path, {"model": MODEL, **BODIES[path], **more})


async def test_a_response(http: Any) -> None:
    answer = await ask(http, "/responses")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", MODEL)
    (message,) = body["output"]
    (part,) = message["content"]
    assert (message["type"], message["role"], part["type"]) == ("message", "assistant", "output_text")
    assert 'You said: "Hello"' in part["text"]
    usage = body["usage"]
    assert usage["input_tokens"] == 5
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_a_response_to_messages_is_that_of_the_same_chat(http: Any) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hm"}]},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "He"}, {"type": "input_text", "text": "y"}],
        },
    ]
    answer = (await ask(http, "/responses", input=messages, max_output_tokens=20)).json()
    chat = [
        {"role": role, "content": text}
        for role, text in (("user", "Hi"), ("assistant", "Hm"), ("user", "Hey"))
    ]
    other = (
        await http.infer(ID, "/chat/completions", {"model": MODEL, "messages": chat, "max_tokens": 20})
    ).json()
    assert answer["output"][0]["content"][0]["text"] == other["choices"][0]["message"]["content"]
    assert answer["usage"]["input_tokens"] == other["usage"]["prompt_tokens"]
    longer = (
        await ask(http, "/responses", input=messages, max_output_tokens=1, instructions="Be kind")
    ).json()
    assert longer["usage"]["input_tokens"] == answer["usage"]["input_tokens"] + 6


async def test_a_response_that_reaches_its_limit_is_incomplete(http: Any) -> None:
    body = (await ask(http, "/responses", max_output_tokens=3)).json()
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["usage"]["output_tokens"] == 3


async def test_rerank_sorts_the_documents_by_the_words_they_share(http: Any) -> None:
    body = (await ask(http, "/rerank")).json()
    assert [each["index"] for each in body["results"]] == [1, 2, 0]
    assert body["results"][0]["document"] == {"text": "the sky is blue"}
    assert [each["relevance_score"] for each in body["results"]] == [0.5, pytest.approx(1 / 3), 0.0]
    assert body["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
    (best,) = (await ask(http, "/rerank", top_n=1)).json()["results"]
    assert best["index"] == 1
    assert len((await ask(http, "/rerank", top_n=0)).json()["results"]) == 3


@pytest.mark.parametrize(
    ("first", "second", "scores"),
    [
        ("blue sky", "sky blue", [1.0]),
        ("blue", ["blue", "green"], [1.0, 0.0]),
        (["blue", "green"], ["blue", "blue"], [1.0, 0.0]),
        ("", "", [0.0]),
    ],
)
async def test_scores_are_in_the_order_of_the_pairs(http: Any, first: Any, second: Any, scores: Any) -> None:
    body = (await ask(http, "/score", text_1=first, text_2=second)).json()
    assert body["object"] == "list"
    assert body["data"] == [
        {"index": index, "object": "score", "score": score} for index, score in enumerate(scores)
    ]
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/responses", {"input": "word " * (CONTEXT + 1)}),
        ("/responses", {"max_output_tokens": CONTEXT}),
        ("/rerank", {"documents": ["fits", "word " * (CONTEXT - 1)]}),
        ("/score", {"text_2": ["fits", "word " * (CONTEXT - 1)]}),
    ],
)
async def test_each_text_must_fit_the_context(http: Any, path: str, more: dict[str, Any]) -> None:
    answer = await ask(http, path, **more)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "more", "problem"),
    [
        ("/responses", {"model": None}, "model is required"),
        ("/responses", {"stream": True}, "does not stream /responses"),
        ("/responses", {"input": None}, "input must be"),
        ("/responses", {"input": []}, "input must be"),
        ("/responses", {"input": [{"type": "item_reference", "id": "x"}]}, "must be a message"),
        ("/responses", {"input": [{"content": "x"}]}, "role is required"),
        ("/responses", {"input": [{"role": "user"}]}, "content must be"),
        (
            "/responses",
            {"input": [{"role": "user", "content": [{"type": {}, "text": ""}]}]},
            "Every content part",
        ),
        (
            "/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "Every content part",
        ),
        ("/responses", {"tools": [{"type": "function", "name": "f"}]}, "does not support tools"),
        ("/responses", {"background": True}, "does not support background"),
        ("/responses", {"previous_response_id": "resp-1"}, "does not support previous_response_id"),
        *(
            ("/responses", {name: ""}, f"support {name}")
            for name in ("tools", "background", "previous_response_id")
        ),
        ("/responses", {"max_output_tokens": 0}, "max_output_tokens must be"),
        ("/responses", {"text": {"format": {"type": "json_schema"}}}, "text must be"),
        ("/responses", {"text": "plain"}, "text must be"),
        ("/rerank", {"query": None}, "query is required"),
        ("/rerank", {"documents": "one"}, "documents must be a list of strings"),
        ("/rerank", {"documents": []}, "documents must be"),
        ("/rerank", {"documents": [1]}, "documents must be"),
        ("/rerank", {"top_n": -1}, "top_n must be"),
        ("/score", {"text_1": None}, "text_1 must be a string or a list"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "as many as text_2"),
        ("/score", {"text_2": ["a"] * 2049}, "1 to 2048 items"),
    ],
)
async def test_malformed_requests_are_rejected(
    http: Any, path: str, more: dict[str, Any], problem: str
) -> None:
    answer = await ask(http, path, **more)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert problem in error["message"]


@pytest.mark.parametrize("path", BODIES)
async def test_another_model_is_not_served(http: Any, path: str) -> None:
    answer = await ask(http, path, model="other")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.sockets
async def test_the_openai_client() -> None:
    openai = pytest.importorskip("openai")
    async with serve_emulator(step_seconds=0.0) as emulator:
        base_url = f"{emulator.root_url}/inference/{emulator.start_instance(MODEL)}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=emulator.api_key) as client:
            answer = await client.responses.create(model=MODEL, input="Hello", instructions="Be kind")
    assert 'You said: "Hello"' in answer.output_text
