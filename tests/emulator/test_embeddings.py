"""Embeddings: bare HTTP in process, and the OpenAI client on real sockets."""

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest

from cortecs_async.emulator import serve_emulator

MODEL = "microsoft/phi-4"
ID = "instance-10001"


@pytest.fixture
def anyio_backend() -> str:
    """Run on one backend: the tests set the clock, so nothing waits."""
    return "asyncio"


@pytest.fixture
def http(emulate: Callable[..., Any]) -> Any:
    made = emulate(step_seconds=0.0)
    made.emulator.start_instance(MODEL, context_length=10)
    return made


def ask(text: Any, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": text, **more}


async def vectors(http: Any, text: Any, **more: Any) -> Any:
    answer = (await http.infer(ID, "/embeddings", ask(text, **more))).json()
    return [each["embedding"] for each in answer["data"]]


async def test_an_embedding(http: Any) -> None:
    answer = await http.infer(ID, "/embeddings", ask("Hello there"))
    assert answer.status_code == 200
    body = answer.json()
    (found,) = body.pop("data")
    assert body == {"object": "list", "model": MODEL, "usage": {"prompt_tokens": 2, "total_tokens": 2}}
    vector = found.pop("embedding")
    assert found == {"object": "embedding", "index": 0}
    assert len(vector) == 8
    assert math.hypot(*vector) == pytest.approx(1.0)


async def test_only_equal_texts_have_equal_embeddings(http: Any) -> None:
    first, again, other = await vectors(http, ["Hello", "Hello", "hello"])
    assert first == again != other
    assert [first] == await vectors(http, "Hello")


async def test_several_inputs_are_numbered_and_counted_together(http: Any) -> None:
    answer = (await http.infer(ID, "/embeddings", ask(["One", "Two three"]))).json()
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_token_ids_are_one_input_and_lists_of_them_several(http: Any) -> None:
    one = (await http.infer(ID, "/embeddings", ask([1, 2, 3]))).json()
    two = (await http.infer(ID, "/embeddings", ask([[1, 2.0, 3], [4]]))).json()
    assert one["usage"]["prompt_tokens"] == 3
    assert two["usage"]["prompt_tokens"] == 4
    assert one["data"] == two["data"][:1]


async def test_base64_is_the_same_vector(http: Any) -> None:
    (plain,) = await vectors(http, "Hello", encoding_format="float")
    (packed,) = await vectors(http, "Hello", encoding_format="base64")
    assert list(struct.unpack("<8f", base64.b64decode(packed))) == plain


@pytest.mark.parametrize("dimensions", [1, 3, 4096])
async def test_dimensions_are_as_wanted(dimensions: int, http: Any) -> None:
    (vector,) = await vectors(http, "Hello", dimensions=dimensions)
    assert len(vector) == dimensions
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)
    (longest,) = await vectors(http, "Hello", dimensions=4096)
    scale = math.hypot(*longest[:dimensions])
    assert vector == pytest.approx([value / scale for value in longest[:dimensions]], abs=1e-5)


async def test_a_text_that_no_encoding_has(http: Any) -> None:
    headers = {"Authorization": f"Bearer {http.emulator.api_key}", "Content-Type": "application/json"}
    body = b'{"model": "microsoft/phi-4", "input": "\\ud800"}'
    path = f"/inference/{ID}/v1/embeddings"
    assert (await http._client.post(path, headers=headers, content=body)).status_code == 200


@pytest.mark.parametrize("text", ["one " * 11, ["fits", "one " * 11], [1] * 11, [[1], [1] * 11]])
async def test_each_input_must_fit_the_context(text: Any, http: Any) -> None:
    answer = await http.infer(ID, "/embeddings", ask(text))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_a_full_context_is_not_too_much(http: Any) -> None:
    assert (await http.infer(ID, "/embeddings", ask([[1] * 10, [2] * 10]))).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"input": None},
        {"input": ""},
        {"input": []},
        {"input": [""]},
        {"input": ["a", 1]},
        {"input": [1, "a"]},
        {"input": [["a"]]},
        {"input": [[]]},
        {"input": [[1], []]},
        {"input": [-1]},
        {"input": [1.5]},
        {"input": [True]},
        {"input": ["a"] * 2049},
        {"input": {"text": "a"}},
        {"encoding_format": "hex"},
        {"encoding_format": 1},
        {"dimensions": 0},
        {"dimensions": 4097},
        {"dimensions": "8"},
        {"model": None},
    ],
)
async def test_malformed_requests_are_rejected(more: dict[str, Any], http: Any) -> None:
    answer = await http.infer(ID, "/embeddings", {**ask("Hello"), **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_another_model_is_not_served(http: Any) -> None:
    answer = await http.infer(ID, "/embeddings", ask("Hello", model="text-embedding-3-small"))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.sockets
async def test_the_openai_client() -> None:
    openai = pytest.importorskip("openai")
    async with serve_emulator(step_seconds=0.0) as emulator:
        instance_id = emulator.start_instance(MODEL)
        base_url = f"{emulator.root_url}/inference/{instance_id}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=emulator.api_key, max_retries=0) as client:
            # It asks for base64 by default, and unpacks it.
            packed = await client.embeddings.create(model=MODEL, input=["Hello", "there"])
            plain = await client.embeddings.create(
                model=MODEL, input=["Hello", "there"], encoding_format="float"
            )
            with pytest.raises(openai.BadRequestError, match="None can be empty"):
                await client.embeddings.create(model=MODEL, input="")
    assert [each.embedding for each in packed.data] == [
        pytest.approx(each.embedding, abs=1e-7) for each in plain.data
    ]
    assert packed.usage.total_tokens == 2
