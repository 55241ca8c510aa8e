"""Test the files of a batch: parsing, errors, writing, and what a crash leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _world import MODEL
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._aio.threads import StopFlag
from cortecs_async._batch import index as _index
from cortecs_async._batch.answers import format_answer, format_error
from cortecs_async._batch.format import Request, RequestParser, digest_custom_id
from cortecs_async._batch.index import Index, Partitions, is_done
from cortecs_async._batch.output import Output
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


def read(data: Any) -> Request:
    found = RequestParser("in.jsonl", MODEL, override_model=False).parse(7, json.dumps(data).encode())
    assert found is not None
    return found[0]


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
    return format_answer(
        read(line(custom_id, **changes)), 200, None, b'{"choices": [{"message": {"content": ""}}]}'
    ).text


def legacy(text: bytes) -> bytes:
    """Return a line as earlier versions wrote it, to the request `line` of the same custom_id."""
    data = json.loads(text)
    body = json.dumps(line(data["custom_id"])["body"], separators=(",", ":"))
    digest = hashlib.blake2b(b"/v1/chat/completions\n" + body.encode(), digest_size=16).hexdigest()
    return text.replace(data["id"].encode(), f"batch_req_{digest}".encode())


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
        output.mend(0, 0, is_terminated=False)
        output.remove_lines(lambda _: True, lambda: None)
        with pytest.raises(BatchWriteError, match="closed"):
            output.append([b"three\n"])
        assert path.read_bytes() == b"one\ntwo\n"

    def test_lines_are_removed_atomically_under_the_same_lock(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"one\ntwo\nthree\n")
        path.chmod(0o640)
        output = Output(path)
        output.remove_lines(lambda text: text == b"two", lambda: None)
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
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 2: .*output of a different input"):
            preflight(files)

    def test_the_output_of_a_changed_request_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b", body={"max_tokens": 6}))
        write(files.target, answer_line("b"))
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 1: .*line 2 of .*a different request"):
            preflight(files)

    def test_an_answer_of_a_fleet_is_not_of_a_batch(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        data = {**json.loads(answer_line("a")), "id": f"fleet_req_{1:032x}"}
        write(files.target, data)
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 1: .*line 1 of .*a different request"):
            preflight(files)

    @pytest.mark.parametrize("again", [False, True])
    def test_the_output_of_an_earlier_version_is_continued(self, files: BatchOptions, *, again: bool) -> None:
        write(files.source, line("a"), line("b"), line("c"), line("d"))
        write(files.target, legacy(answer_line("d")), *([answer_line("b")] if again else []))
        found = preflight(files)
        assert (found.plan.succeeded, found.plan.left) == ((2, 2) if again else (1, 3))
        assert [is_done(found.done, number) for number in range(1, 5)] == [False, again, False, True]

    @pytest.mark.parametrize("changed", ["a", "b"])
    def test_the_output_of_an_earlier_version_may_be_of_another_input(
        self, files: BatchOptions, changed: str
    ) -> None:
        write(files.source, *(line(each, body={"max_tokens": 5 + (each == changed)}) for each in "ab"))
        write(files.target, legacy(answer_line("a")), answer_line("b"))
        with pytest.raises(BatchFileError, match=r"out.jsonl, line .: .*a different request"):
            preflight(files)

    def test_a_duplicate_is_found_in_spite_of_earlier_versions(self, files: BatchOptions) -> None:
        write(files.source, line("a"), line("b"), line("b"))
        write(files.target, legacy(answer_line("a")))
        with pytest.raises(BatchFileError, match=r"in.jsonl, line 3: duplicate custom_id"):
            preflight(files)

    def test_an_error_that_an_earlier_version_took_for_an_answer_can_be_retried(
        self, files: BatchOptions
    ) -> None:
        write(files.source, line("a"), line("b"))
        error = answer_line("b").replace(
            b'"choices": [{"message": {"content": ""}}]', b'"error": {"message": "overloaded"}'
        )
        write(files.target, answer_line("a"), legacy(error))
        assert preflight(files).plan.failed == 1
        assert preflight(files, retry_failed=True).plan.left == 1

    @pytest.mark.parametrize(
        ("url", "body", "limit"),
        [
            ("responses", {"instructions": "x" * 40, "input": "y" * 40, "max_output_tokens": 7}, 7),
            ("responses", {"input": [{"role": "user", "content": [{"text": "y" * 80}]}]}, None),
            ("rerank", {"query": "x" * 20, "documents": ["y" * 20, {"text": "z" * 20}]}, 0),
            ("score", {"text_1": "x" * 40, "text_2": ["y" * 40]}, 0),
            ("score", {"queries": "x" * 40, "documents": ["y" * 40]}, 0),
            ("completions", {"prompt": ["x" * 40, list(range(10))], "max_tokens": 7}, 14),
        ],
    )
    def test_the_plan_knows_all_endpoints(
        self, files: BatchOptions, url: str, body: dict[str, Any], limit: int | None
    ) -> None:
        write(files.source, {"custom_id": "a", "url": f"/v1/{url}", "body": body})
        plan = preflight(files).plan
        assert (plan.prompt_tokens, plan.max_completion_tokens) == (20, limit)

    def test_a_file_that_is_not_an_output_is_an_error(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        write(files.target, b"hello\n", b"world")
        with pytest.raises(BatchFileError, match=r"out.jsonl, line 1: not a line of batch output"):
            preflight(files, Output(files.target))
        assert files.target.read_bytes() == b"hello\nworld"

    def test_another_file_without_lines_is_not_truncated(self, files: BatchOptions) -> None:
        write(files.source, line("a"))
        write(files.target, b"PK\x03\x04 a picture, perhaps")
        with pytest.raises(BatchFileError, match="no line break at the end"):
            preflight(files, Output(files.target))
        assert files.target.read_bytes() == b"PK\x03\x04 a picture, perhaps"

    @pytest.mark.parametrize("cut", [1, 10, 18, 60, len(answer_line("b")) - 2])
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
