"""Test single lines of a batch: of the input, of what is sent, and of the output."""

from __future__ import annotations

import hashlib
import json
import math
import random
from typing import Any

import pytest
from _world import MODEL
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._batch.answers import Usage, format_answer, format_error, parse_answer
from cortecs_async._batch.canonical import is_legacy_id
from cortecs_async._batch.format import BodyDefaults, Request, RequestParser, digest_custom_id
from cortecs_async._batch.outcome import probe_request
from cortecs_async._lease.inference import ENDPOINT_OF_URL, ENDPOINTS
from cortecs_async.errors import BatchFileError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "hello"}
ANSWERS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]},
    "/completions": {"choices": [{"text": "hi"}], "error": None},
    "/embeddings": {"object": "list", "data": [{"embedding": [0.5]}]},
    "/score": {"data": [{"score": 0.5}]},
    "/rerank": {"results": []},
    "/responses": {"object": "response", "status": "incomplete", "output": [], "error": None},
}


def line(custom_id: Any = "one", **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [USER], "max_tokens": 5}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {**body, **changes.pop("body", {})},
        **changes,
    }


def read(data: Any, *, override_model: bool = False, is_text: bool = False, **defaults: Any) -> Request:
    parser = RequestParser(
        "in.jsonl",
        MODEL,
        override_model=override_model,
        is_text=is_text,
        defaults=BodyDefaults(**defaults) if defaults else None,
    )
    found = parser.parse(7, data if isinstance(data, bytes) else json.dumps(data).encode())
    assert found is not None
    # What the plan sees is what is sent.
    assert found[1] == json.loads(found[0].body)
    return found[0]


def sent(data: Any, **options: Any) -> Any:
    return json.loads(read(data, **options).body)


def chat(**fields: Any) -> str:
    """Return the id of a chat with these fields in its body."""
    return read({"custom_id": "a", "url": "/v1/chat/completions", "body": fields}).request_id


def post(path: str) -> Request:
    return Request(1, "a", path, b"{}", "batch_req_v2_" + "0" * 32)


class TestRequests:
    def test_a_request_is_parsed(self) -> None:
        request = read(line())
        assert (request.number, request.custom_id, request.path) == (7, "one", "/chat/completions")
        assert json.loads(request.body) == line()["body"]

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("/v1/chat/completions", "/chat/completions"),
            ("/v1/completions", "/completions"),
            ("/v1/responses", "/responses"),
            ("/v1/embeddings", "/embeddings"),
            ("/v1/score", "/score"),
            ("/score", "/score"),
            ("/v1/rerank", "/rerank"),
            ("/rerank", "/rerank"),
            ("/v2/rerank", "/rerank"),
        ],
    )
    def test_the_urls_of_vllm_are_sent_below_v1(self, url: str, path: str) -> None:
        assert read(line(url=url)).path == path
        assert read(line(url=url)).request_id == read(line(url="/v1" + path)).request_id
        assert ENDPOINT_OF_URL[url] is ENDPOINTS[path]

    def test_a_missing_model_is_filled_in(self) -> None:
        data = line()
        del data["body"]["model"]
        request = read(data)
        assert list(json.loads(request.body)) == ["messages", "max_tokens", "model"]
        assert request.request_id == read(line()).request_id
        assert sent({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}) == {
            "model": MODEL
        }

    @pytest.mark.parametrize("model", [MODEL.replace("/", "--"), None])
    def test_other_spellings_of_the_model_are_accepted(self, model: str | None) -> None:
        assert sent(line(body={"model": model})) == line()["body"]
        assert read(line(body={"model": model})).request_id == read(line()).request_id

    def test_override_model_accepts_another_model(self) -> None:
        assert sent(line(body={"model": "gpt-4o"}), override_model=True)["model"] == MODEL

    @pytest.mark.parametrize("raw", [b"\n", b"  \r\n", b""])
    @pytest.mark.parametrize("is_text", [False, True])
    def test_blank_lines_are_skipped(self, raw: bytes, *, is_text: bool) -> None:
        parser = RequestParser("in.jsonl", MODEL, override_model=False, is_text=is_text)
        assert parser.parse(1, raw) is None

    @pytest.mark.parametrize("data", [line(), {"prompt": "x", "id": "one"}])
    def test_a_byte_order_mark_is_ignored(self, data: Any) -> None:
        assert read(b"\xef\xbb\xbf" + json.dumps(data).encode() + b"\r\n").custom_id == "one"

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"{", "not valid JSON: [^;]*$"),
            (b"\xef\xbb\xbf{", "not valid JSON: [^;]*$"),
            (b"Why is the sky blue?", r"not valid JSON: .*\. If each line is a prompt, .*--text"),
            (b'"Why is the sky blue?"', r"not a JSON object\. If each line is a prompt"),
            (b"{} {}", "not valid JSON: extra text at column 3"),
            (json.dumps(line()).encode() + b"}", "not valid JSON: extra text"),
            (b'{"custom_id": "\xff"}', "not valid UTF-8"),
            (b"[" * 100_000, "too deep"),
            (json.dumps(line()).replace("5", "[" * 300 + "]" * 300).encode(), "too deeply"),
            (b'{"a": ' + b"1" * 5000 + b"}", "too long"),
            ([], r"not a JSON object. Write one object per line, without \[ \]"),
            (line(custom_id=""), "custom_id must be a non-empty string, not ''"),
            (line(custom_id=3), "custom_id must be a non-empty string, not 3"),
            ({"url": "/v1/embeddings", "body": {}}, "custom_id is missing$"),
            ({"custom_id": "a", "body": {}}, "url is missing$"),
            ({"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}, "body is missing$"),
            ({"method": "POST"}, "custom_id, url and body are missing$"),
            (
                {"custom_id": "a", "text": "b"},
                "^[^;]*: a line needs prompt or messages, or custom_id",
            ),
            (
                {"id": "a", "promt": "b"},
                r"unknown key 'promt' \(did you mean prompt\?\); a line needs prompt",
            ),
            ({"prompt": "a", "url": "/v1/completions"}, "custom_id and body are missing$"),
            (line(method="GET"), "method must be POST, not 'GET'"),
            (line(url="/v1/images/generations"), "url must be one of /v1/chat/completions, "),
            (line(url=["/v1/embeddings"]), "url must be a string"),
            ({**line(), "body": "hello"}, "body must be a JSON object, not 'hello'"),
            (line(body={"stream": True}), "stream"),
            (line(url="/v1/responses", body={"background": True}), "background"),
            (line(body={"model": "gpt-4o"}), "'gpt-4o'"),
            (line(body={"model": ["a"]}), "model"),
            (line(body={"temperature": float("nan")}), "NaN"),
            (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"x": 1e999}}', "infinity"),
            (b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"x":[-1e999]}}', "infinity"),
            ({"prompt": "a", "messages": []}, "either prompt or messages"),
            ({"prompt": ["a"]}, "prompt must be a string"),
            ({"messages": "a"}, "messages must be a list"),
            ({"prompt": "a", "id": ""}, "custom_id must be a non-empty string"),
            ({"prompt": "a", "id": None}, "custom_id must be a non-empty string"),
            ({"prompt": "a", "id": True}, "custom_id must be a non-empty string"),
        ],
    )
    def test_an_invalid_line_is_an_error_with_its_number(self, data: Any, said: str) -> None:
        with pytest.raises(BatchFileError, match=said) as caught:
            read(data)
        assert (caught.value.path, caught.value.line) == ("in.jsonl", 7)
        assert str(caught.value).startswith("in.jsonl, line 7: ")

    @pytest.mark.parametrize(
        "data",
        [
            line(custom_id=["x" * 5000]),
            line(method="x" * 5000),
            line(url="x" * 5000),
            line(url=["x" * 5000]),
            line(body={"model": "x" * 5000}),
            {**line(), "body": "x" * 5000},
            {"prompt": ["x" * 5000]},
            {"messages": "x" * 5000},
        ],
    )
    def test_long_values_are_cut_in_messages(self, data: Any) -> None:
        with pytest.raises(BatchFileError, match="xxx…") as caught:
            read(data)
        assert len(str(caught.value)) < 400

    def test_the_id_depends_on_the_request_and_not_on_its_custom_id(self) -> None:
        one = read(line())
        assert one.request_id == read(line(custom_id="two")).request_id
        for other in (line(body={"max_tokens": 6}), line(url="/v1/completions")):
            assert read(other).request_id != one.request_id
        assert one.key == digest_custom_id("one") != digest_custom_id("two")

    def test_every_endpoint_has_a_probe(self) -> None:
        for path, endpoint in ENDPOINTS.items():
            assert json.loads(probe_request(path, MODEL).body) == {"model": MODEL, **endpoint.probe}


class TestWire:
    @pytest.mark.parametrize("is_escaped", [False, True])
    @pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
    @pytest.mark.parametrize("sort_keys", [False, True])
    def test_text_is_sent_as_utf8(self, separators: Any, *, is_escaped: bool, sort_keys: bool) -> None:
        data = line(body={"messages": [{"role": "user", "content": "語😀é" * 1000}]})
        raw = json.dumps(data, ensure_ascii=is_escaped, separators=separators, sort_keys=sort_keys)
        body = read(raw.encode()).body
        assert len(body) < 9500  # nine bytes for each three characters
        assert json.loads(body.decode()) == data["body"]

    def test_a_lone_surrogate_is_escaped_and_nothing_else(self) -> None:
        data = line("\ud800é", body={"messages": [{"role": "user", "content": "\\é\udfff\\"}]})
        request = read(data)
        assert '"\\\\é\\udfff\\\\"'.encode() in request.body
        assert json.loads(request.body) == data["body"]
        text = format_error(request, "lost", "é").text
        assert '"custom_id":"\\ud800é"'.encode() in text
        assert '"message":"é"'.encode() in text

    def test_a_body_is_sent_as_it_was_written(self) -> None:
        body = b'{ "b" : 1.0, "a":1e0,  "c":0.10, "messages":[]'
        for model in (b', "model": "' + MODEL.encode() + b'"}', b"}"):
            raw = (
                b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + body + model + b"}"
            )
            assert read(raw).body.startswith(body)
            # A line that is not as usual is encoded again.
            assert read(b'{"x":1,' + raw[1:]).body.startswith(b'{"b":1.0,"a":1.0,"c":0.1,"messages":[]')


class TestShortLines:
    def test_a_prompt_becomes_a_chat(self) -> None:
        request = read({"prompt": "hello", "id": "q-1", "temperature": 0.5})
        assert (request.custom_id, request.path) == ("q-1", "/chat/completions")
        assert json.loads(request.body) == {"messages": [USER], "temperature": 0.5, "model": MODEL}
        same = {"custom_id": "z", "url": "/v1/chat/completions"}
        assert (
            request.request_id == read({**same, "body": {"messages": [USER], "temperature": 0.5}}).request_id
        )

    def test_messages_become_a_chat(self) -> None:
        request = read({"custom_id": "a", "id": "not this", "messages": [SYSTEM, USER], "n": 2})
        assert (request.custom_id, request.path) == ("a", "/chat/completions")
        assert json.loads(request.body) == {"messages": [SYSTEM, USER], "n": 2, "model": MODEL}

    def test_without_an_id_it_is_the_number_of_the_line(self) -> None:
        assert read({"prompt": "hello"}).custom_id == "line-7"
        assert read({"messages": [USER]}).custom_id == "line-7"
        assert read({"prompt": "hello", "id": 12}).custom_id == "12"

    def test_a_line_of_text_is_a_prompt(self) -> None:
        request = read('{"prompt": "ü"}\r\n'.encode(), is_text=True)
        assert request.custom_id == "line-7"
        assert json.loads(request.body)["messages"] == [{"role": "user", "content": '{"prompt": "ü"}'}]
        with pytest.raises(BatchFileError, match="not valid UTF-8"):
            read(b"\xff", is_text=True)


class TestDefaults:
    def test_they_are_added_to_a_chat(self) -> None:
        body = sent({"prompt": "hello"}, system="Be brief.", max_tokens=9, temperature=0.0)
        assert body == {"messages": [SYSTEM, USER], "max_tokens": 9, "temperature": 0.0, "model": MODEL}

    @pytest.mark.parametrize(
        ("url", "added"),
        [
            ("/v1/completions", {"max_tokens": 9, "temperature": 0.5}),
            ("/v1/responses", {"instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5}),
            ("/v1/embeddings", {}),
            ("/v1/score", {}),
            ("/v1/rerank", {}),
        ],
    )
    def test_they_are_added_where_the_endpoint_has_them(self, url: str, added: dict[str, Any]) -> None:
        data = {"custom_id": "a", "url": url, "body": {"input": "x"}}
        body = sent(data, system="Be brief.", max_tokens=9, temperature=0.5)
        assert body == {"input": "x", "model": MODEL, **added}

    @pytest.mark.parametrize(
        ("url", "body"),
        [
            ("/v1/chat/completions", {"messages": [SYSTEM, USER], "max_tokens": 1, "temperature": 2}),
            (
                "/v1/chat/completions",
                {
                    "messages": [USER, {"role": "developer", "content": ""}],
                    "max_completion_tokens": 1,
                    "temperature": 0,
                },
            ),
            ("/v1/responses", {"instructions": "", "max_output_tokens": 1, "temperature": 1, "input": "x"}),
            ("/v1/responses", {"input": [SYSTEM], "max_output_tokens": 1, "temperature": 1}),
        ],
    )
    def test_they_do_not_override_what_the_line_says(self, url: str, body: dict[str, Any]) -> None:
        data = {"custom_id": "a", "method": "POST", "url": url, "body": body}
        assert sent(data, system="Other.", max_tokens=9, temperature=0.5) == {**body, "model": MODEL}

    def test_null_is_the_same_as_left_out(self) -> None:
        one = read({"prompt": "x", "max_tokens": None, "temperature": None}, max_tokens=9, temperature=0.5)
        assert one.request_id == read({"prompt": "x"}, max_tokens=9, temperature=0.5).request_id

    @pytest.mark.parametrize("options", [{"system": "Other."}, {"max_tokens": 10}, {"temperature": 0.6}])
    def test_they_are_part_of_the_request(self, options: dict[str, Any]) -> None:
        given: dict[str, Any] = {"system": "Be brief.", "max_tokens": 9, "temperature": 0.5}
        one = read({"prompt": "x"}, **given)
        assert read({"prompt": "x"}, **{**given, **options}).request_id != one.request_id
        body = {"messages": [SYSTEM, {"role": "user", "content": "x"}], "max_tokens": 9, "temperature": 0.5}
        assert one.request_id == chat(**body)


# Text and numbers that are written in several ways.
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["", "1", "true", "\ud800", "語", 0, 1, -0.0, 1.0, 1e22, 2**53 + 1, 10**30])
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return inner | st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)


_JSON = _nested(_nested(_SCALARS))
_BODIES = st.dictionaries(st.sampled_from(["messages", "n", "logprobs", "x", "é", "y"]), _JSON, max_size=5)


def rewrite(data: Any, rng: random.Random) -> Any:
    """Return the same data with other keys first and other numbers."""
    if isinstance(data, dict):
        keys = rng.sample(list(data), len(data))
        return {key: rewrite(data[key], rng) for key in keys}
    if isinstance(data, list):
        return [rewrite(each, rng) for each in data]
    if type(data) is int and abs(data) < 1e300 and float(data) == data and rng.random() < 0.5:
        return float(data)
    if type(data) is float and data.is_integer() and rng.random() < 0.5:
        return int(data)
    return data


def reference(data: Any) -> Any:
    """Return a value that is equal for the same requests alone."""
    if isinstance(data, dict):
        return ("dict", frozenset((key, reference(value)) for key, value in data.items()))
    if isinstance(data, list):
        return ("list", *map(reference, data))
    # In Python, whole numbers of any type are equal.
    return (isinstance(data, bool), isinstance(data, str), data)


class TestSameRequest:
    @given(body=_BODIES, seed=st.integers(0, 2**32))
    def test_it_may_be_written_in_any_way(self, body: dict[str, Any], seed: int) -> None:
        rng = random.Random(seed)
        data = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        more = {"z": None, "stream": False, "model": MODEL.replace("/", "--")}
        again = rewrite({**data, "body": {**body, **more}}, rng)
        text = json.dumps(data, ensure_ascii=rng.random() < 0.5)
        request = read(text.encode("utf-8", "backslashreplace"))
        assert json.loads(request.body) == {**body, "model": MODEL}
        assert read(again).request_id == request.request_id

    @given(one=_BODIES, two=_BODIES)
    def test_other_requests_have_other_ids(self, one: dict[str, Any], two: dict[str, Any]) -> None:
        defaults = {"n": 1, "logprobs": False}

        def meaning(body: dict[str, Any]) -> Any:
            return reference(
                {
                    key: value
                    for key, value in body.items()
                    if value is not None
                    and not (key in defaults and reference(value) == reference(defaults[key]))
                }
            )

        assert (chat(**one) == chat(**two)) == (meaning(one) == meaning(two))

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            ({"x": [1, 2]}, {"x": [2, 1]}),
            ({"x": 1}, {"x": True}),
            ({"x": 0}, {"x": False}),
            ({"x": 1}, {"x": "1"}),
            ({"x": "1,"}, {"x": [1]}),
            ({"x": 0.1}, {"x": 0.2}),
            ({"x": 2**53 + 1}, {"x": float(2**53)}),
            ({"x": "a"}, {"x": "A"}),
            ({"x": "a "}, {"x": "a"}),
            ({"x": "é"}, {"x": "e\u0301"}),
            ({"x": ["ab", "c"]}, {"x": ["a", "bc"]}),
            ({"x": [[1], 2]}, {"x": [[1, 2]]}),
            ({"x": {"y": None}}, {"x": {}}),
            ({"x": [None]}, {"x": []}),
            ({"n": True}, {}),
            ({"n": 2}, {}),
            ({"temperature": 1}, {}),
            ({"top_p": 1}, {}),
            ({"max_tokens": 16}, {}),
        ],
    )
    def test_these_are_different(self, one: dict[str, Any], two: dict[str, Any]) -> None:
        assert chat(**one) != chat(**two)

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            ({"tools": [], "stop": [], "logit_bias": {}}, {}),
            (
                {
                    "messages": [
                        {"role": "assistant", "content": None, "name": None, "tool_calls": [{"id": "1"}]}
                    ]
                },
                {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            ),
        ],
    )
    def test_these_are_the_same(self, one: dict[str, Any], two: dict[str, Any]) -> None:
        assert chat(**one) == chat(**two)

    @pytest.mark.parametrize(
        ("url", "defaults"),
        [
            (
                "/v1/chat/completions",
                {
                    "stream": False,
                    "n": 1.0,
                    "frequency_penalty": 0,
                    "presence_penalty": -0.0,
                    "logprobs": False,
                    "response_format": {"type": "text"},
                    "stop": None,
                },
            ),
            ("/v1/completions", {"stream": False, "n": 1, "echo": False, "suffix": None}),
            ("/v1/responses", {"stream": False, "background": False}),
            ("/v1/embeddings", {"encoding_format": "float", "dimensions": None}),
            ("/v1/score", {"stream": False}),
            ("/v1/rerank", {"top_n": None}),
        ],
    )
    def test_a_default_may_be_left_out(self, url: str, defaults: dict[str, Any]) -> None:
        short = read({"custom_id": "a", "url": url, "body": {"x": 1}})
        request = read({"custom_id": "a", "method": "POST", "url": url, "body": {"x": 1, **defaults}})
        assert request.request_id == short.request_id
        assert json.loads(request.body) == {"x": 1, **defaults, "model": MODEL}

    def test_the_ids_of_this_version_are_stable(self) -> None:
        """If this fails, outputs of this version can no longer be continued: the ids need a new version."""
        body = {"messages": [USER], "x": [1.5, True, None, {"b": "語", "a": -3}], "model": "a/b"}
        raw = json.dumps({"custom_id": "a", "url": "/v1/chat/completions", "body": body}).encode()
        found = RequestParser("", "a/b", override_model=False).parse(1, raw)
        assert found is not None
        text = (
            "/v1/chat/completions\n8:messages[{7:content5:hello4:role4:user}]5:model3:a/b"
            "1:x[1.5,True,None,{1:a-3,1:b1:語}]"
        )
        digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        assert found[0].request_id == f"batch_req_v2_{digest}"

    @pytest.mark.parametrize(
        "body",
        [
            {"messages": [USER], "max_tokens": 5},
            {"temperature": 1.0, "model": MODEL, "messages": [{"role": "user", "content": "語\ud800"}]},
            {"model": MODEL.replace("/", "--"), "seed": 10**30, "stop": None},
        ],
    )
    def test_the_ids_of_earlier_versions_are_known(self, body: dict[str, Any]) -> None:
        data = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        then = json.dumps({**body, "model": MODEL}, separators=(",", ":")).encode()
        digest = hashlib.blake2b(b"/v1/chat/completions\n" + then, digest_size=16).hexdigest()
        for raw in (json.dumps(data), json.dumps(data, sort_keys=True)):
            if list(json.loads(raw)["body"]) == list(body):
                request = read(raw.encode())
                assert request.legacy_id == f"batch_req_{digest}"
                assert is_legacy_id(request.legacy_id)
                assert not is_legacy_id(request.request_id)


class TestAnswers:
    def test_an_answer_has_the_format_of_the_batch_api(self) -> None:
        request = read(line(custom_id='"\ud800ü'))
        body = {
            "choices": [{"text": 'ü "\u2028 \\ud800'}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        }
        written = format_answer(request, 200, "r-1", json.dumps(body).encode())
        text = written.text
        assert text.endswith(b"\n")
        assert text.count(b"\n") == 1
        assert json.loads(text) == {
            "id": request.request_id,
            "custom_id": '"\ud800ü',
            "response": {"status_code": 200, "request_id": "r-1", "body": body},
            "error": None,
        }
        assert (written.usage, written.problem) == (Usage(3, 4), None)
        answer = parse_answer("out", 1, text)
        assert (answer.key, answer.request_id, answer.succeeded) == (request.key, request.request_id, True)

    def test_an_answer_is_not_encoded_again(self) -> None:
        choices = '{\r\n "choices": [{"text": ""}]'
        body = f'{choices}, "n": 1.00000000000000000001,\n "big": 1234567890123456789, "é": "語" }}\n'
        text = format_answer(read(line()), 200, None, body.encode()).text
        assert body.strip().replace("\r", " ").replace("\n", " ").encode() in text
        assert text.count(b"\n") == 1

    @pytest.mark.parametrize("path", ENDPOINTS)
    def test_each_endpoint_has_answers_of_its_own(self, path: str) -> None:
        written = format_answer(post(path), 200, None, json.dumps(ANSWERS[path]).encode())
        assert written.problem is None
        assert written.usage == Usage()
        assert parse_answer("out", 1, written.text).succeeded
        for other, body in ANSWERS.items():
            keys = (ENDPOINTS[each].content_keys for each in (path, other))
            is_same = set(next(keys)) == set(next(keys))
            written = format_answer(post(path), 200, None, json.dumps(body).encode())
            assert (written.problem is None) == is_same

    @pytest.mark.parametrize("path", ENDPOINTS)
    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({}, "has no"),
            ({"error": {"message": "upstream overloaded", "code": 502}}, "upstream overloaded"),
            ({"error": "overloaded"}, "an error: overloaded"),
            ({"error": True}, "an error"),
            ({"error": {"message": "x" * 5000}}, "xxx…"),
            ({"object": "error", "message": "too busy", "choices": [{}], "data": [{}]}, "too busy"),
            ({**ANSWERS["/completions"], **ANSWERS["/score"], "error": {"code": 1}}, "an error"),
            ({"choices": [], "data": [], "results": None, "output": {}}, "has no"),
            ({"choices": {}, "data": "x", "results": 3, "output": None}, "has no"),
        ],
    )
    def test_a_success_that_says_it_failed_is_an_error_line(
        self, path: str, body: dict[str, Any], said: str
    ) -> None:
        raw = json.dumps({**body, "usage": {"prompt_tokens": 3}}).encode()
        written = format_answer(post(path), 200, "r-1", raw)
        assert written.problem is not None
        assert said in written.problem
        assert len(written.problem) < 600
        assert written.usage is None
        data = json.loads(written.text)
        assert data["response"] == {"status_code": 200, "request_id": "r-1", "body": json.loads(raw)}
        assert data["error"] == {"code": "error_in_answer", "message": written.problem}
        assert not parse_answer("out", 1, written.text).succeeded
        # Earlier versions wrote no `error`.
        assert not parse_answer("out", 1, json.dumps({**data, "error": None}).encode()).succeeded

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/responses", {"status": "failed", "output": []}),
            ("/responses", {"status": "cancelled", "output": [{}], "error": None}),
            ("/chat/completions", {"choices": [{"finish_reason": "error", "message": {"content": "He"}}]}),
            ("/completions", {"choices": [{"text": "a"}, {"error": {"message": "failed", "code": 502}}]}),
            ("/chat/completions", {"choices": [{"finish_reason": "abort", "message": {"content": ""}}]}),
            ("/chat/completions", {"choices": [None]}),
            ("/chat/completions", {"choices": [{}]}),
            ("/chat/completions", {"choices": [{"message": None}]}),
            ("/chat/completions", {"choices": [{"delta": {}}]}),
            ("/responses", {"status": "queued", "output": []}),
            ("/responses", {"status": "in_progress", "output": []}),
            ("/embeddings", {"data": [None]}),
            ("/embeddings", {"data": [{"embedding": []}]}),
            ("/embeddings", {"data": [{"error": "failed"}]}),
            ("/score", {"data": [{"index": 0, "score": None}]}),
            ("/rerank", {"results": [None]}),
        ],
    )
    def test_an_answer_may_fail_in_other_places(self, path: str, body: dict[str, Any]) -> None:
        written = format_answer(post(path), 200, None, json.dumps(body).encode())
        assert written.problem is not None
        line = json.loads(written.text)
        assert not parse_answer("out", 1, json.dumps({**line, "error": None}).encode()).succeeded

    @pytest.mark.parametrize("status", ["another", ["failed"], {"a": 1}, None, 3])
    def test_other_values_of_the_status_are_kept(self, status: Any) -> None:
        body = json.dumps({**ANSWERS["/responses"], "status": status}).encode()
        assert format_answer(post("/responses"), 200, None, body).problem is None

    @pytest.mark.parametrize(
        ("received", "content"),
        [(b"a\tb\nc", "a\tb\nc"), (b"a\xffb", "a\ufffdb"), (b"\x01\xe8\xaa\x9e NaN", "\x01\ufffd\x9e NaN")],
    )
    def test_an_answer_that_is_almost_json_is_mended(self, received: bytes, content: str) -> None:
        body = b'{"choices":[{"message":{"content":"' + received + b'"},"logprob":-Infinity}]}'
        written = format_answer(read(line()), 200, None, body)
        assert written.problem is None
        found = json.loads(written.text)["response"]["body"]["choices"][0]
        assert found["message"]["content"] in (content, received.decode("utf-8", "replace"))
        assert found["logprob"] is None

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[1]", b'"text"', b'{"x": NaNa}', b"NaN", b"\xff", b"{} {}", b"[" * 100_000]
    )
    def test_a_success_without_a_json_object_is_not_an_answer(self, body: bytes) -> None:
        with pytest.raises(ValueError, match="not a JSON object"):
            format_answer(read(line()), 200, None, body)

    def test_constants_that_are_not_json_become_null(self) -> None:
        body = (
            rb'{"choices": [{"NaN": NaN, "a": [-Infinity,Infinity, 1.50], "b": "\"NaN, Infinity\\", "": ""}]}'
        )
        text = format_answer(read(line()), 200, None, body).text
        kept = rb'{"choices": [{"NaN": null, "a": [null,null, 1.50], "b": "\"NaN, Infinity\\", "": ""}]}'
        assert b'"body":' + kept + b"}" in text

    @given(data=st.dictionaries(st.text(), _JSON | st.sampled_from([math.nan, math.inf, -math.inf])))
    def test_all_else_of_such_an_answer_is_kept(self, data: dict[str, Any]) -> None:
        raw = json.dumps({"choices": [{"text": ""}], "NaN": -math.inf, "data": data}).encode()
        body = json.loads(format_answer(read(line()), 200, None, raw).text)["response"]["body"]

        def without_constants(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        expected = {key: without_constants(value) for key, value in data.items()}
        assert json.dumps(body) == json.dumps({"choices": [{"text": ""}], "NaN": None, "data": expected})

    def test_a_rejection_is_a_failed_answer(self) -> None:
        written = format_answer(read(line()), 400, None, b'{"error": {"message": "too long"}}')
        text = written.text
        assert json.loads(text)["response"]["body"] == {"error": {"message": "too long"}}
        assert written.usage is written.problem is None
        assert not parse_answer("out", 1, text).succeeded

    def test_a_rejection_that_is_not_json_becomes_json(self) -> None:
        text = format_answer(read(line()), 502, None, b"<html>\xff bad gateway").text
        assert json.loads(text)["response"]["body"]["error"]["message"] == "<html>\ufffd bad gateway"

    def test_an_error_line(self) -> None:
        text = format_error(read(line()), "timed_out", 'no "answer"').text
        data = json.loads(text)
        assert data["response"] is None
        assert data["error"] == {"code": "timed_out", "message": 'no "answer"'}
        assert not parse_answer("out", 1, text).succeeded

    @pytest.mark.parametrize(
        ("path", "usage", "expected"),
        [
            ("/chat/completions", {"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4)),
            ("/responses", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}, Usage(3, 4)),
            ("/embeddings", {"prompt_tokens": 3, "total_tokens": 3}, Usage(3, 0)),
            ("/rerank", {"total_tokens": 3}, Usage(3, 0)),
            ("/completions", None, Usage()),
            ("/completions", 3, Usage()),
            ("/completions", {"prompt_tokens": "many", "completion_tokens": -1}, Usage()),
            ("/completions", {"prompt_tokens": 1 << 60, "completion_tokens": 2}, Usage(0, 2)),
        ],
    )
    def test_tokens_are_counted_if_they_are_plausible(self, path: str, usage: Any, expected: Usage) -> None:
        body = json.dumps({**ANSWERS[path], "usage": usage}).encode()
        assert format_answer(post(path), 200, None, body).usage == expected

    @pytest.mark.parametrize(
        "data", [b"{", [], {"custom_id": "a"}, {"custom_id": 3, "id": "x", "response": None}, line()]
    )
    def test_an_invalid_answer_is_an_error_with_its_line(self, data: Any) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        with pytest.raises(BatchFileError, match="not a line of batch output") as caught:
            parse_answer("out.jsonl", 4, raw)
        assert caught.value.line == 4
