"""Test how both files of a batch are read: blank and incomplete lines, compressed inputs, standard input."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from _world import MODEL
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async import ConfigurationError
from cortecs_async._aio.threads import StopFlag
from cortecs_async._batch.answers import format_answer, format_error
from cortecs_async._batch.format import RequestParser
from cortecs_async._batch.index import is_done
from cortecs_async._batch.output import Output
from cortecs_async._batch.plan import BatchOptions, BatchPlan, read_files
from cortecs_async._batch.reader import read_input, read_lines
from cortecs_async._batch.setup import check_path
from cortecs_async.errors import BatchFileError, BatchWriteError

BOM = b"\xef\xbb\xbf"


def request(custom_id: str) -> bytes:
    data = {"custom_id": custom_id, "url": "/v1/chat/completions", "body": {"messages": []}}
    return json.dumps(data).encode()


def answer(custom_id: str, *, failed: bool = False) -> bytes:
    found = RequestParser("in.jsonl", MODEL, override_model=False).parse(1, request(custom_id))
    assert found is not None
    if failed:
        return format_error(found[0], "lost", "gone").text.strip()
    body = b'{"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "y"}}]}'
    return format_answer(found[0], 200, None, body).text.strip()


@pytest.fixture
def options(tmp_path: Path) -> BatchOptions:
    options = BatchOptions(source=tmp_path / "in.jsonl", target=tmp_path / "out.jsonl", model=MODEL)
    options.source.write_bytes(b"".join(request(each) + b"\n" for each in "abc"))
    return options


def read(options: BatchOptions, output: Output | None = None) -> BatchPlan:
    result = read_files(options, output, StopFlag())
    result.close()
    return result.plan


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb\n", [(1, 0, 2, b"a", True), (2, 2, 4, b"b", True)]),
        (b"\n \t\r\na\n\n", [(3, 5, 7, b"a", True)]),
        (b"a\r\nb\r\n", [(1, 0, 3, b"a", True), (2, 3, 6, b"b", True)]),
        (b"a\n\0\0\0\0", [(1, 0, 2, b"a", True), (2, 2, 2, b"", False)]),
        (
            b"a\n\0\0\n\0\0b\0\n",
            [(1, 0, 2, b"a", True), (2, 2, 5, b"", True), (3, 5, 10, b"b", True)],
        ),
        (b"a\nb  \0\0", [(1, 0, 2, b"a", True), (2, 2, 3, b"b", False)]),
        (BOM + b"a\n" + BOM + b"\n" + BOM + b" b", [(1, 0, 5, b"a", True), (3, 9, 14, b"b", False)]),
    ],
)
def test_lines_are_read_without_what_surrounds_them(data: bytes, lines: list[Any]) -> None:
    assert [each[:5] for each in read_lines(io.BytesIO(data))] == lines


def test_a_line_of_zeros_is_removed_from_the_output(options: BatchOptions) -> None:
    lines = [answer(each) + b"\n" for each in "ab"]
    options.target.write_bytes(lines[0] + b"\0" * 100 + b"\n" + lines[1])
    output = Output(options.target)
    assert read(options, output).left == 1
    output.close()
    assert options.target.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_the_queue_finds_every_line_that_the_check_has_read(options: BatchOptions, space: str) -> None:
    options.source.write_text(f"hello\n{space}\n{space}\n" * 10 + f"{space}\n" * 50)
    result = read_files(evolve(options, text=True), None, StopFlag())
    found = [is_done(result.done, line.number) for line in read_input(options.source, "")]
    result.close()
    assert found == [False] * 80
    assert result.plan.total == 10


@pytest.mark.parametrize("option", ["ordered", "retry_failed"])
def test_a_directory_must_be_writable_for_a_new_file(
    options: BatchOptions, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    read(options)
    with pytest.raises(BatchFileError, match=f"{option} needs write access to the directory"):
        read(evolve(options, ordered=option == "ordered", retry_failed=option == "retry_failed"))


def test_a_check_without_an_output_needs_its_directory(options: BatchOptions, tmp_path: Path) -> None:
    with pytest.raises(BatchFileError, match="no directory"):
        read(evolve(options, target=tmp_path / "nowhere" / "out.jsonl"))


BLANK = [b"\n", b"\r\n", b" \t\n", b"\0" * 5000 + b"\n", BOM + b"\n"]


class TestBothFiles:
    """The same oddities in the input and in the output."""

    @pytest.mark.parametrize("blank", BLANK)
    def test_blank_lines_are_skipped(self, options: BatchOptions, blank: bytes) -> None:
        answers = [answer("b"), answer("a", failed=True)]
        for path, lines in ((options.source, [request("a"), request("b")]), (options.target, answers)):
            path.write_bytes(blank.join([b"", *(each + b"\n" for each in lines), b""]))
        output = Output(options.target)
        plan = read(options, output)
        assert (plan.total, plan.succeeded, plan.failed, plan.left) == (2, 1, 1, 0)
        output.close()

    @pytest.mark.parametrize("end", [b"", b"\r", b" ", b"\0", b"\0" * 4096])
    def test_a_last_line_without_a_line_break_is_read(self, options: BatchOptions, end: bytes) -> None:
        options.source.write_bytes(request("a") + b"\n" + request("b") + end)
        options.target.write_bytes(answer("b") + end)
        assert read(options).left == 1
        assert options.target.read_bytes() == answer("b") + end
        output = Output(options.target)
        assert read(options, output).left == 1
        output.append([answer("a") + b"\n"])
        output.close()
        assert options.target.read_bytes() == answer("b") + b"\n" + answer("a") + b"\n"

    @pytest.mark.parametrize("end", [b"\r\n", b"  \n", b"\0\n"])
    def test_the_last_line_break_is_kept(self, options: BatchOptions, end: bytes) -> None:
        options.source.write_bytes(BOM + request("a") + end + request("b") + end)
        options.target.write_bytes(BOM + answer("b") + end)
        output = Output(options.target)
        assert read(options, output).left == 1
        output.append([answer("a") + b"\n"])
        output.close()
        lines = options.target.read_bytes().splitlines()
        assert [json.loads(each.decode("utf-8-sig"))["custom_id"] for each in lines] == ["b", "a"]


class TestPowerFailures:
    """What a power failure leaves of an output: zero bytes instead of data that was not synced."""

    @pytest.mark.parametrize("kept", [0, 1, 30])
    def test_zeros_at_the_end_are_cut_off(self, options: BatchOptions, kept: int) -> None:
        before = answer("a") + b"\n"
        options.target.write_bytes(before + answer("b")[:kept] + b"\0" * 100)
        output = Output(options.target)
        assert read(options, output).left == 2
        output.close()
        assert options.target.read_bytes() == before

    @pytest.mark.parametrize("zeros", [10, 5000])
    def test_zeros_in_place_of_the_beginning_are_removed(self, options: BatchOptions, zeros: int) -> None:
        rest = answer("b") + b"\n"
        options.target.write_bytes(b"\0" * zeros + answer("a")[-9:] + b"\n" + rest)
        output = Output(options.target)
        plan = read(options, output)
        assert (plan.succeeded, plan.left) == (1, 2)
        output.close()
        assert options.target.read_bytes() == rest

    def test_zeros_before_other_lines_are_removed(self, options: BatchOptions) -> None:
        torn = answer("b")[:40] + b"\0" * 5000 + answer("b")[-9:] + b"\n"
        options.target.write_bytes(answer("a") + b"\n" + torn + b"\0" * 100 + answer("c") + b"\n")
        before = options.target.read_bytes()
        assert read(options).left == 1
        assert options.target.read_bytes() == before
        output = Output(options.target)
        plan = read(options, output)
        assert (plan.succeeded, plan.left) == (2, 1)
        output.close()
        assert options.target.read_bytes() == answer("a") + b"\n" + answer("c") + b"\n"

    @given(st.data())
    def test_no_synced_answer_is_lost(self, data: st.DataObject) -> None:
        names = [f"r{number}" for number in range(8)]
        lines = [answer(each) + b"\n" for each in names]
        synced = data.draw(st.integers(1, 8))
        found = bytearray(b"".join(lines))
        del found[data.draw(st.integers(len(b"".join(lines[:synced])), len(found))) :]
        page = data.draw(st.integers(1, 300))
        first, last = len(b"".join(lines[:synced])) // page + 1, len(found) // page
        for each in data.draw(st.sets(st.integers(first, max(first, last)))):
            begin = each * page
            found[begin : begin + page] = bytes(len(found[begin : begin + page]))
        with tempfile.TemporaryDirectory() as folder:
            options = BatchOptions(source=Path(folder, "in"), target=Path(folder, "out"), model=MODEL)
            options.source.write_bytes(b"".join(request(each) + b"\n" for each in names))
            options.target.write_bytes(found)
            output = Output(options.target)
            plan = read(options, output)
            output.close()
            left = options.target.read_bytes().splitlines(keepends=True)
        assert left[:synced] == lines[:synced]
        assert set(left) <= set(lines)
        assert plan.succeeded == len(left) == len(set(left))

    @pytest.mark.parametrize(
        "data", [b"\0\0hello\n", b"\0PNG", b'{"a":1}\0', answer("a") + b"\nhello", b"\0" * 99 + b"x"]
    )
    def test_another_file_is_not_changed(self, options: BatchOptions, data: bytes) -> None:
        options.target.write_bytes(data)
        output = Output(options.target)
        with pytest.raises(BatchFileError, match="not a line of batch output"):
            read(options, output)
        output.close()
        assert options.target.read_bytes() == data


def compress(kind: str, data: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(data)
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    pytest.importorskip(name, exc_type=ImportError)
    compressed: bytes = importlib.import_module(name).compress(data)
    return compressed


@pytest.mark.parametrize("kind", ["gz", "zst"])
class TestCompressedInputs:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bin"])
    def test_the_content_decides(self, tmp_path: Path, kind: str, suffix: str) -> None:
        path = tmp_path / f"in.jsonl{suffix}"
        path.write_bytes(compress(kind, b"one\n\ntwo"))
        assert [(each.number, each.text) for each in read_input(path, "in")] == [(1, b"one"), (3, b"two")]

    def test_a_file_may_have_several_parts(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "in"
        path.write_bytes(compress(kind, b"one\ntw") + compress(kind, b"") + compress(kind, b"o\nthree\n"))
        assert [each.text for each in read_input(path, "in")] == [b"one", b"two", b"three"]

    @pytest.mark.parametrize("cut", [1, 9, 2000])
    def test_a_truncated_file_is_an_error_with_its_line(self, tmp_path: Path, kind: str, cut: int) -> None:
        path = tmp_path / "in"
        # Random, so that it is as long when compressed.
        lines = [os.urandom(60).hex().encode() for _ in range(200)]
        first = compress(kind, b"".join(each + b"\n" for each in lines[:100]))
        second = compress(kind, b"".join(each + b"\n" for each in lines[100:]))
        path.write_bytes(first + second[:-cut])
        found: list[bytes] = []
        with pytest.raises(BatchFileError, match="the compressed data is truncated") as caught:
            found.extend(each.text for each in read_input(path, "in"))
        assert found == lines[: len(found)]
        assert caught.value.line == len(found) + 1 > 100
        assert caught.value.path == "in"

    def test_a_damaged_file_is_an_error_with_its_line(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "in"
        path.write_bytes(compress(kind, b"one\ntwo\n") + compress(kind, b"x")[:4] + b"\xff" * 30)
        found: list[bytes] = []
        with pytest.raises(BatchFileError, match="the compressed data is damaged: ") as caught:
            found.extend(each.text for each in read_input(path, "in"))
        assert (found, caught.value.line) == ([b"one", b"two"], 3)

    def test_a_file_after_the_compressed_data_is_an_error(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "in"
        path.write_bytes(compress(kind, b"one\n") + b"two\n")
        with pytest.raises(BatchFileError, match="in, line 2: the compressed data is damaged"):
            list(read_input(path, "in"))

    def test_both_passes_read_the_same(self, options: BatchOptions, kind: str) -> None:
        options.source.write_bytes(compress(kind, options.source.read_bytes()))
        options.target.write_bytes(answer("b") + b"\n")
        result = read_files(options, None, StopFlag())
        result.close()
        assert (result.plan.total, result.plan.left) == (3, 2)
        assert is_done(result.done, 2)

    def test_an_uncompressed_file_with_its_suffix_is_an_error(self, tmp_path: Path, kind: str) -> None:
        for data in (b"", b"{}\n"):
            path = tmp_path / f"in.{kind}"
            path.write_bytes(data)
            with pytest.raises(BatchFileError, match=rf"not compressed, although its name ends in \.{kind}"):
                list(read_input(path, str(path)))

    def test_the_output_cannot_be_compressed(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(BatchFileError, match=rf"cannot be compressed.* without \.{kind} and"):
            BatchOptions(source=tmp_path / "in", target=tmp_path / f"out.{kind}", model=MODEL)
        assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(ConfigurationError, match=r"in\.zst requires the zstd extra: .*\[zstd\]"):
        list(read_input(path, "in.zst"))


class TestPaths:
    """`-`, pipes and devices are called by the name that was given."""

    def test_a_dash_is_standard_input(self) -> None:
        for value in ("-", Path("-")):
            assert check_path("input", value) == Path("/dev/stdin")

    def test_the_output_cannot_be_standard_output(self) -> None:
        with pytest.raises(BatchFileError, match="cannot go to standard output"):
            check_path("output", "-")

    def test_a_pipe_is_not_a_regular_file(self, options: BatchOptions) -> None:
        reading, writing = os.pipe()
        try:
            path = check_path("input", f"/dev/fd/{reading}")
            with pytest.raises(BatchFileError, match=rf"^/dev/fd/{reading}: not a regular file.* pass -"):
                read(BatchOptions(source=path, target=options.target, model=MODEL))
            with pytest.raises(BatchFileError, match=rf"^/dev/fd/{writing}: not a regular file"):
                Output(check_path("output", f"/dev/fd/{writing}"))
        finally:
            os.close(reading)
            os.close(writing)

    def test_a_link_to_the_output_is_kept(self, options: BatchOptions, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to("out.jsonl")
        answers = [answer(each) + b"\n" for each in "ba"]
        output = Output(link)
        output.append(answers)
        output.sort(2, lambda: [(2, 0), (1, len(answers[0]))], lambda: None)
        assert output.check_unchanged()
        output.close()
        assert link.is_symlink()
        assert options.target.read_bytes() == answers[1] + answers[0]

    def test_an_output_whose_link_is_replaced_is_saved(self, options: BatchOptions, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to("out.jsonl")
        output = Output(link)
        output.append([answer("a") + b"\n"])
        link.unlink()
        link.write_bytes(options.target.read_bytes())
        with pytest.raises(BatchWriteError, match="replaced") as caught:
            output.append([answer("b") + b"\n"])
        output.close()
        assert Path(caught.value.path).read_bytes().count(b"\n") == 2


class TestStandardInput:
    @pytest.fixture
    def pipe(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return a file whose content is standard input."""
        reading, writing = os.pipe()
        saved = os.dup(0)
        os.dup2(reading, 0)
        os.close(reading)
        with os.fdopen(writing, "wb") as file:
            yield file
        os.dup2(saved, 0)
        os.close(saved)

    @pytest.mark.parametrize("is_compressed", [False, True])
    def test_it_is_read_twice(self, options: BatchOptions, pipe: Any, is_compressed: bool) -> None:  # noqa: FBT001
        data = options.source.read_bytes()
        pipe.write(gzip.compress(data) if is_compressed else data)
        pipe.close()
        source = check_path("input", "-")
        result = read_files(BatchOptions(source=source, target=options.target, model=MODEL), None, StopFlag())
        assert result.plan.total == 3
        assert stat.S_ISREG(result.options.source.stat().st_mode)
        again = [each.text for each in read_input(result.options.source, "-")]
        result.close()
        assert again == data.splitlines()

    def test_its_errors_name_it(self, options: BatchOptions, pipe: Any) -> None:
        pipe.write(b"{}\n")
        pipe.close()
        with pytest.raises(BatchFileError, match=r"^standard input, line 1: "):
            read(BatchOptions(source=check_path("input", "-"), target=options.target, model=MODEL))

    def test_it_must_not_be_empty(self, options: BatchOptions, pipe: Any) -> None:
        pipe.close()
        with pytest.raises(BatchFileError, match=r"^standard input: the input is empty"):
            read(BatchOptions(source=check_path("input", "-"), target=options.target, model=MODEL))

    def test_waiting_for_it_ends_when_the_caller_is_cancelled(
        self, options: BatchOptions, pipe: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stopped = StopFlag()

        def select(*_: Any) -> Any:
            stopped.event.set()
            return [], [], []

        monkeypatch.setattr("select.select", select)
        source = check_path("input", "-")
        with pytest.raises(RuntimeError, match="was cancelled"):
            read_files(BatchOptions(source=source, target=options.target, model=MODEL), None, stopped)

    @pytest.mark.sockets
    @pytest.mark.parametrize(("offset", "found"), [(0, "3 /dev/stdin"), (1, "2 /dev/fd/")])
    def test_a_redirected_file_is_read_from_where_it_is(
        self, options: BatchOptions, offset: int, found: str
    ) -> None:
        program = f"""
from pathlib import Path
from cortecs_async._aio.threads import StopFlag
from cortecs_async._batch.plan import BatchOptions, read_files
from cortecs_async._batch.setup import check_path
options = BatchOptions(source=check_path("input", "-"), target=Path({str(options.target)!r}), model={MODEL!r})
result = read_files(options, None, StopFlag())
print(result.plan.total, result.options.source, result.options.source_name)
"""
        with options.source.open("rb") as file:
            for _ in range(offset):
                os.lseek(file.fileno(), len(request("a")) + 1, os.SEEK_SET)
            done = subprocess.run(
                [sys.executable, "-c", program], stdin=file, capture_output=True, text=True, check=True
            )
        assert done.stdout.startswith(found)
        assert done.stdout.endswith(" standard input\n")
