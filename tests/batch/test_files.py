"""Test the files of a batch: parsing, errors, writing, and what a crash leaves."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from _world import MODEL
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._aio.threads import StopFlag
from cortecs_async._batch import index as _index
from cortecs_async._batch.format import (
    Request,
    RequestParser,
    Usage,
    digest_custom_id,
    format_answer,
    format_error,
    parse_answer,
)
from cortecs_async._batch.index import Index, Partitions, is_done
from cortecs_async._batch.output import Output, read_complete_lines
from cortecs_async._batch.plan import BatchOptions, Preflight, read_files
from cortecs_async.errors import BatchFileError, BatchWriteError


def line(custom_id: Any = "one", **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {**body, **changes.pop("body", {})},
        **changes,
    }


def parser(*, override_model: bool = False) -> RequestParser:
    return RequestParser("in.jsonl", MODEL, override_model=override_model)


def read(data: Any, **options: Any) -> Request:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    found = parser(**options).parse(7, raw)
    assert found is not None
    return found[0]


class TestRequests:
    def test_a_request_is_parsed(self) -> None:
        request = read(line())
        assert (request.number, request.custom_id, request.path) == (7, "one", "/chat/completions")
        assert json.loads(request.body) == line()["body"]

    @pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
    def test_all_three_urls_are_accepted(self, url: str) -> None:
        assert "/v1" + read(line(url=url)).path == url

    def test_a_missing_model_is_filled_in(self) -> None:
        data = line()
        del data["body"]["model"]
        assert json.loads(read(data).body)["model"] == MODEL

    def test_both_spellings_of_the_model_are_accepted(self) -> None:
        assert read(line(body={"model": MODEL.replace("/", "--")})).body == read(line()).body

    def test_override_model_accepts_another_model(self) -> None:
        assert json.loads(read(line(body={"model": "gpt-4o"}), override_model=True).body)["model"] == MODEL

    @pytest.mark.parametrize("raw", [b"\n", b"  \r\n", b""])
    def test_blank_lines_are_skipped(self, raw: bytes) -> None:
        assert parser().parse(1, raw) is None

    def test_a_byte_order_mark_is_ignored(self) -> None:
        assert read(b"\xef\xbb\xbf" + json.dumps(line()).encode() + b"\r\n").custom_id == "one"

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"{", "not valid JSON"),
            (b'{"custom_id": "\xff"}', "not valid UTF-8"),
            (b"[" * 100_000, "too deep"),
            (b'{"a": ' + b"1" * 5000 + b"}", "too long"),
            ([], "not a JSON object"),
            (line(custom_id=""), "custom_id"),
            (line(custom_id=3), "custom_id"),
            ({"url": "/v1/embeddings", "body": {}}, "custom_id"),
            (line(method="GET"), "method"),
            (line(url="/v1/images/generations"), "url"),
            (line(url=["/v1/embeddings"]), "url"),
            ({**line(), "body": "hello"}, "body"),
            (line(body={"stream": True}), "stream"),
            (line(body={"model": "gpt-4o"}), "'gpt-4o'"),
            (line(body={"model": ["a"]}), "model"),
            (line(body={"temperature": float("nan")}), "NaN"),
            (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"x": 1e999}}', "infinity"),
        ],
    )
    def test_an_invalid_line_is_an_error_with_its_number(self, data: Any, said: str) -> None:
        with pytest.raises(BatchFileError, match=said) as caught:
            read(data)
        assert (caught.value.path, caught.value.line) == ("in.jsonl", 7)
        assert str(caught.value).startswith("in.jsonl, line 7: ")

    def test_the_id_depends_on_the_request_and_not_on_its_custom_id(self) -> None:
        one = read(line())
        assert one.request_id == read(line(custom_id="two")).request_id
        for other in (line(body={"max_tokens": 6}), line(url="/v1/completions")):
            assert read(other).request_id != one.request_id
        assert one.key == digest_custom_id("one") != digest_custom_id("two")


class TestAnswers:
    BODY: ClassVar = {
        "id": "x",
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "text": 'ü "\u2028 \\ud800',
    }

    def test_an_answer_has_the_format_of_the_batch_api(self) -> None:
        request = read(line(custom_id='"\ud800ü'))
        written = format_answer(request, 200, "r-1", json.dumps(self.BODY).encode())
        text = written.text
        assert text.endswith(b"\n")
        assert text.count(b"\n") == 1
        data = json.loads(text)
        assert data == {
            "id": request.request_id,
            "custom_id": '"\ud800ü',
            "response": {"status_code": 200, "request_id": "r-1", "body": self.BODY},
            "error": None,
        }
        assert written.usage == Usage(3, 4)
        answer = parse_answer("out", 1, text)
        assert (answer.key, answer.request_id, answer.succeeded) == (request.key, request.request_id, True)

    def test_an_answer_is_not_encoded_again(self) -> None:
        body = b'{\r\n "n": 1.00000000000000000001,\n "big": 123456789012345678901234567890 }\n'
        text = format_answer(read(line()), 200, None, body).text
        assert b'"n": 1.00000000000000000001' in text
        assert text.count(b"\n") == 1
        assert json.loads(text)["response"]["body"]["big"] == 123456789012345678901234567890

    @pytest.mark.parametrize(
        "body", [b"", b"<html>", b"[1]", b'"text"', b'{"x": NaN}', b"\xff", b"[" * 100_000]
    )
    def test_a_success_without_a_json_object_is_not_an_answer(self, body: bytes) -> None:
        with pytest.raises(ValueError, match="not a JSON object"):
            format_answer(read(line()), 200, None, body)

    def test_a_rejection_is_a_failed_answer(self) -> None:
        written = format_answer(read(line()), 400, None, b'{"error": {"message": "too long"}}')
        text = written.text
        assert json.loads(text)["response"]["body"] == {"error": {"message": "too long"}}
        assert written.usage is None
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

    @pytest.mark.parametrize("usage", [None, 3, {"prompt_tokens": "many"}, {}])
    def test_invalid_usage_counts_as_zero(self, usage: Any) -> None:
        written = format_answer(read(line()), 200, None, json.dumps({"usage": usage}).encode())
        assert written.usage == Usage()

    @pytest.mark.parametrize(
        "data", [b"{", [], {"custom_id": "a"}, {"custom_id": 3, "id": "x", "response": None}, line()]
    )
    def test_an_invalid_answer_is_an_error_with_its_line(self, data: Any) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        with pytest.raises(BatchFileError, match="not a line of a batch output") as caught:
            parse_answer("out.jsonl", 4, raw)
        assert caught.value.line == 4


class TestIndex:
    @given(seed=st.integers(0, 2**32), parts=st.integers(1, 9), size=st.integers(0, 60))
    def test_the_index_finds_what_a_set_would(self, seed: int, parts: int, size: int) -> None:
        rng = random.Random(seed)
        index = Index(parts * _index._PARTITION_SIZE)
        ids = [f"r{number}" for number in range(1, size + 1)]
        answers = rng.sample(ids, rng.randint(0, size))
        for number, name in enumerate(ids, 1):
            index.add_request(
                digest_custom_id(name), "batch_req_" + digest_custom_id(name + "!").hex(), number
            )
        for number, name in enumerate(answers, 1):
            index.add_answer(
                digest_custom_id(name),
                "batch_req_" + digest_custom_id(name + "!").hex(),
                number,
                number * 100,
            )
        result = index.compare(lambda: None)
        assert result.duplicate_request is result.duplicate_answer is result.foreign_answer is None
        assert {name for n, name in enumerate(ids, 1) if is_done(result.done, n)} == set(answers)
        expected = {(ids.index(name) + 1, number * 100) for number, name in enumerate(answers, 1)}
        assert set(index.answer_offsets()) == expected
        index.close()

    def test_the_first_conflict_of_all_partitions_is_reported(self) -> None:
        index = Index(50 * _index._PARTITION_SIZE)
        names = [f"r{number % 40}" for number in range(1, 81)]
        for number, name in enumerate(names, 1):
            index.add_request(digest_custom_id(name), "batch_req_" + "0" * 32, number)
        conflict = index.compare(lambda: None).duplicate_request
        assert conflict is not None
        assert (conflict.line, conflict.other) == (41, 1)
        index.close()

    def test_records_keep_their_order_on_disk(self) -> None:
        parts = Partitions(2)
        count = 3 * _index._BUFFER_SIZE // _index._RECORD.size
        for number in range(count):
            parts.add(bytes([0] * 16), b"r" * 16, number, number)
        assert parts._size > 0
        assert [entry[2] for entry in parts.read(0)] == list(range(count))
        parts.add(bytes([0] * 16), b"r" * 16, count, 0)
        assert [entry[2] for entry in parts.read(0)] == list(range(count + 1))
        parts.close()


def answer_line(custom_id: str, **changes: Any) -> bytes:
    return format_answer(read(line(custom_id, **changes)), 200, None, b'{"id": "x"}').text


class TestOutput:
    def test_append_returns_when_the_lines_are_written(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "out.jsonl")
        assert output.append([b"one\n", b"two\n"]) == 0
        assert (tmp_path / "out.jsonl").read_bytes() == b"one\ntwo\n"
        assert output.append([b"three\n"]) == 8
        output.close()
        assert (tmp_path / "out.jsonl").read_bytes() == b"one\ntwo\nthree\n"

    def test_every_line_is_synced_before_append_returns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            synced.append(os.fstat(descriptor).st_size)

        monkeypatch.setattr(os, "fsync", fsync)
        output = Output(tmp_path / "out.jsonl")
        output.append([b"one\n"])
        assert 4 in synced
        output.close()

    def test_two_processes_cannot_write_one_file(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "out.jsonl")
        with pytest.raises(BatchFileError, match="another process is writing this file"):
            Output(tmp_path / "out.jsonl")
        output.append([b"x\n"])
        output.close()
        Output(tmp_path / "out.jsonl").close()

    def test_an_empty_new_file_is_deleted(self, tmp_path: Path) -> None:
        Output(tmp_path / "out.jsonl").close()
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "mine.jsonl").touch()
        Output(tmp_path / "mine.jsonl").close()
        assert (tmp_path / "mine.jsonl").exists()

    @pytest.mark.parametrize("name", [".", "missing/out.jsonl", "/dev/null"])
    def test_a_path_that_cannot_be_written_is_an_error(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BatchFileError, match=r"cannot be written|not a regular file"):
            Output(tmp_path / name)

    def test_a_pipe_is_an_error_without_waiting(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BatchFileError, match="not a regular file"):
            Output(tmp_path / "pipe")

    @pytest.mark.parametrize("written", [0, 3])
    def test_a_full_disk_leaves_complete_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        output = Output(tmp_path / "out.jsonl")
        output.append([b"one\n"])
        real, calls = os.write, 0

        def write(descriptor: int, data: Any) -> int:
            nonlocal calls
            calls += 1
            if calls == 1 and written:
                return real(descriptor, data[:written])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", write)
        with pytest.raises(BatchWriteError, match="No space left on device"):
            output.append([b"two\n", b"three\n"])
        assert (tmp_path / "out.jsonl").read_bytes() == b"one\n"
        monkeypatch.undo()
        output.append([b"two\n"])
        assert (tmp_path / "out.jsonl").read_bytes() == b"one\ntwo\n"
        output.close()

    @pytest.mark.sockets
    def test_the_file_size_limit_is_an_error(self, tmp_path: Path) -> None:
        program = f"""
import resource, signal
from pathlib import Path
from cortecs_async._batch.output import Output
from cortecs_async.errors import BatchWriteError
# Limit the file size only after the imports. Python would otherwise cache truncated bytecode, and later
# imports fail.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
output = Output(Path({str(tmp_path / "out.jsonl")!r}))
output.append([b"12345\\n"])
try:
    output.append([b"678901234\\n"])
except BatchWriteError as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "File too large" in done.stdout
        assert (tmp_path / "out.jsonl").read_bytes() == b"12345\n"

    def test_too_little_disk_space_is_an_error(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "out.jsonl")
        output.check_free_space(1000)
        with pytest.raises(BatchFileError, match="the disk has"):
            output.check_free_space(1 << 62)
        output.close()

    def test_a_closed_output_is_not_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"one\ntwo\n")
        output = Output(path)
        output.close()
        output.close()
        output.truncate(0)
        output.remove_lines(lambda _: True, lambda: None)
        with pytest.raises(BatchWriteError, match="closed"):
            output.append([b"three\n"])
        assert path.read_bytes() == b"one\ntwo\n"

    def test_lines_are_removed_atomically_under_the_same_lock(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"one\ntwo\nthree\n")
        path.chmod(0o640)
        output = Output(path)
        output.remove_lines(lambda text: text == b"two\n", lambda: None)
        assert path.read_bytes() == b"one\nthree\n"
        assert path.stat().st_mode & 0o777 == 0o640
        with pytest.raises(BatchFileError, match="another process"):
            Output(path)
        assert output.append([b"four\n"]) == 10
        output.close()
        assert path.read_bytes() == b"one\nthree\nfour\n"
        assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]

    def test_a_failed_rewrite_leaves_the_file_unchanged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"two\none\n")
        output = Output(path)

        def fail(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(BatchWriteError, match="is unchanged"):
            output.sort(2, lambda: [(2, 0), (1, 4)], lambda: None)
        monkeypatch.undo()
        assert path.read_bytes() == b"two\none\n"
        assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]
        output.sort(2, lambda: [(2, 0), (1, 4)], lambda: None)
        assert path.read_bytes() == b"one\ntwo\n"
        output.close()

    def test_a_sorted_file_is_not_rewritten(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"one\ntwo\n")
        before = path.stat().st_ino
        output = Output(path)
        output.sort(9, lambda: [(3, 0), (8, 4)], lambda: None)
        assert path.stat().st_ino == before
        output.close()


@pytest.fixture
def files(tmp_path: Path) -> BatchOptions:
    return BatchOptions(source=tmp_path / "in.jsonl", target=tmp_path / "out.jsonl", model=MODEL)


def write(path: Path, *lines: Any) -> None:
    path.write_bytes(b"".join(x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines))


def preflight(files: BatchOptions, output: Output | None = None, *, retry_failed: bool = False) -> Preflight:
    result = read_files(evolve(files, retry_failed=retry_failed), output, StopFlag())
    result.index.close()
    return result


class TestPreflight:
    def test_the_plan_counts_what_is_left(self, files: BatchOptions) -> None:
        write(files.source, line("a"), b"\n", line("b"), line("c"))
        write(files.target, answer_line("c"))
        found = preflight(files)
        assert (found.plan.total, found.plan.succeeded, found.plan.failed, found.plan.left) == (3, 1, 0, 2)
        assert [is_done(found.done, number) for number in (1, 3, 4)] == [False, False, True]

    def test_the_plan_estimates_tokens(self, files: BatchOptions) -> None:
        long = line(
            "b", body={"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 400}]}]}
        )
        other = {"custom_id": "c", "url": "/v1/embeddings", "body": {"input": ["y" * 40, [1, 2, 3]]}}
        write(files.source, line("a"), long, other)
        plan = preflight(files).plan
        assert plan.prompt_tokens == 1 + 100 + 13
        assert plan.max_completion_tokens == 10
        assert (plan.longest_line, plan.longest_tokens) == (2, 105)
        write(files.source, line("a", body={"max_tokens": None}))
        assert preflight(files).plan.max_completion_tokens is None

    def test_a_duplicate_custom_id_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b"), line("a"))
        with pytest.raises(
            BatchFileError, match=r"in.jsonl, line 3: duplicate custom_id \(first used on line 1\)"
        ):
            preflight(files)

    def test_a_duplicate_answer_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        write(files.target, answer_line("a"), answer_line("a"))
        with pytest.raises(
            BatchFileError, match=r"out.jsonl, line 2: duplicate custom_id \(first answered on line 1\)"
        ):
            preflight(files)

    def test_the_output_of_another_input_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b"))
        write(files.target, answer_line("b"), answer_line("z"))
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 2: .*output of another input"):
            preflight(files)

    def test_the_output_of_a_changed_request_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b", body={"max_tokens": 6}))
        write(files.target, answer_line("b"))
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 1: .*another request .*line 2"):
            preflight(files)

    def test_a_file_that_is_not_an_output_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        write(files.target, b"hello\n", b"world")
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 1: not a line of a batch output"):
            preflight(files, Output(files.target))
        assert files.target.read_bytes() == b"hello\nworld"

    def test_another_file_without_lines_is_not_truncated(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        write(files.target, b"PK\x03\x04 a picture, perhaps")
        with pytest.raises(BatchFileError, match="no line break at its end"):
            preflight(files, Output(files.target))
        assert files.target.read_bytes() == b"PK\x03\x04 a picture, perhaps"

    @pytest.mark.parametrize("cut", range(1, len(answer_line("b")), 7))
    def test_an_incomplete_last_line_is_cut_off(self, files: BatchOptions, cut: int) -> None:
        write(files.source, line("a"), line("b"))
        whole, torn = answer_line("a"), answer_line("b")[:cut]
        for before in (whole, b""):
            write(files.target, before, torn)
            output = Output(files.target)
            assert preflight(files).plan.left == (1 if before else 2)
            assert files.target.read_bytes() == before + torn  # only looked at
            assert preflight(files, output).plan.left == (1 if before else 2)
            assert files.target.read_bytes() == before
            assert output.append([answer_line("b")]) == len(before)
            output.close()
            assert files.target.read_bytes() == before + answer_line("b")

    def test_zeros_after_a_power_loss_are_cut_off(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b"))
        write(files.target, answer_line("a"), b"\0" * 100)
        assert list(read_complete_lines(files.target)) == [(1, 0, answer_line("a"))]

    def test_the_output_must_not_be_the_input(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        os.link(files.source, files.target)
        with pytest.raises(BatchFileError, match="the output is the same file as the input"):
            preflight(files)

    @pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "unreadable"])
    def test_an_unreadable_input_is_an_error(self, files: BatchOptions, kind: str) -> None:
        if kind == "folder":
            files.source.mkdir()
        elif kind == "pipe":
            os.mkfifo(files.source)
        elif kind == "unreadable":
            write(files.source, line("a"))
            files.source.chmod(0)
            if os.access(files.source, os.R_OK):
                pytest.skip("root reads everything")
        with pytest.raises(BatchFileError, match=r"cannot be read|not a regular file"):
            preflight(files)

    def test_error_lines_can_be_removed(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b"), line("c"))
        failed = format_error(read(line("b")), "lost", "gone").text
        write(files.target, answer_line("c"), failed, answer_line("a"))
        assert preflight(files).plan.failed == 1
        assert preflight(files, retry_failed=True).plan.left == 1
        assert failed in files.target.read_bytes()
        output = Output(files.target)
        found = preflight(files, output, retry_failed=True)
        assert (found.plan.succeeded, found.plan.failed, found.plan.left) == (2, 0, 1)
        assert files.target.read_bytes() == answer_line("c") + answer_line("a")
        output.close()

    def test_preflight_stops_when_its_caller_is_cancelled(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        stopped = StopFlag()
        stopped.event.set()
        with pytest.raises(RuntimeError, match="was cancelled"):
            read_files(files, None, stopped)

    def test_many_partitions_give_the_same_result(
        self, files: BatchOptions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_index, "_PARTITION_SIZE", 100)
        write(files.source, *(line(f"r{number}") for number in range(500)))
        write(files.target, *(answer_line(f"r{number}") for number in range(0, 500, 3)))
        found = preflight(files)
        assert found.index._requests.count > 100
        left = [number for number in range(500) if not is_done(found.done, number + 1)]
        assert left == [number for number in range(500) if number % 3]


def test_file_descriptors_are_closed_after_an_error(files: BatchOptions) -> None:
    write(files.source, line("a"), line("a"))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limit[1]))
    try:
        for _ in range(256):
            output = Output(files.target)
            with pytest.raises(BatchFileError):
                preflight(files, output)
            output.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
