"""Test batches whose output another program removes or changes, and the files that a batch creates."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs
from cortecs_async._batch.output import Output
from cortecs_async.emulator import Emulator
from cortecs_async.errors import BatchWriteError
from cortecs_async.types import BatchProgress, BatchReport

REQUESTS = 40


def remove(path: Path) -> None:
    path.unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.write_text("now a file")


def move(path: Path) -> None:
    path.rename(path.with_name("moved.jsonl"))


def edit(path: Path) -> None:
    """Change a file as `sed -i`, rsync and editors do."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


def truncate(path: Path) -> None:
    path.open("w").close()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)


def touch(path: Path) -> None:
    path.touch()


Change = Callable[[Path], None]

# What is done, what the error calls it, and where the answers end that can still be read.
CHANGES: dict[Change, tuple[str, int | None]] = {
    remove: ("removed", None),
    remove_folder: ("removed", None),
    replace_folder: ("removed", None),
    move: ("removed", None),
    edit: ("replaced", None),
    truncate: ("truncated", 0),
    cut: ("truncated", -1),
    extend: ("wrote to", None),
}


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "out.jsonl"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for number in range(REQUESTS):
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 2}
            request = {"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")
    return path


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def text(custom_id: str) -> bytes:
    return json.dumps({"custom_id": custom_id}).encode() + b"\n"


def restore(path: Path, target: Path) -> None:
    """Do what the error says."""
    if not target.parent.is_dir():
        target.parent.unlink(missing_ok=True)
        target.parent.mkdir()
    shutil.move(path, target)


class TestOutput:
    @pytest.mark.parametrize("change", CHANGES)
    def test_a_change_is_an_error_that_names_the_saved_answers(self, target: Path, change: Change) -> None:
        word, end = CHANGES[change]
        output = Output(target)
        output.append([text("a"), text("b")])
        target.chmod(0o640)
        change(target)
        with pytest.raises(BatchWriteError) as caught:
            output.append([text("c")])
        saved = Path(caught.value.path)
        kept = ["a", "b"][:end]
        assert ids(saved) == [*kept, "c"]
        count = f"{len(kept) + 1} of 3"
        assert str(caught.value) == (
            f"Another program {word} {target} while the batch was running. {count} answers are saved in "
            f"{saved}. To continue, move this file to {target} and run the same batch again."
        )
        assert saved.stat().st_mode & 0o777 == 0o640
        assert re.fullmatch(r"out\.jsonl\.recovered-[0-9a-f]{8}", saved.name)
        assert saved.parent == (target.parent if target.parent.is_dir() else Path(tempfile.gettempdir()))
        # Answers that were under way are saved too.
        with pytest.raises(BatchWriteError) as again:
            output.append([text("d")])
        assert again.value is caught.value
        output.close()
        assert ids(saved) == [*kept, "c", "d"]

    @pytest.mark.parametrize("change", CHANGES)
    def test_a_change_after_the_last_answer_is_an_error(self, target: Path, change: Change) -> None:
        output = Output(target)
        output.append([text("a"), text("b")])
        assert output.check_unchanged()
        change(target)
        with pytest.raises(BatchWriteError, match=CHANGES[change][0]) as caught:
            output.check_unchanged()
        output.close()
        assert ids(Path(caught.value.path)) == ["a", "b"][: CHANGES[change][1]]

    @pytest.mark.parametrize(
        ("before", "said"), [(0, "The file had no answers"), (2, "None of its 2 answers")]
    )
    def test_without_answers_there_is_no_new_file(self, target: Path, before: int, said: str) -> None:
        output = Output(target)
        if before:
            output.append([text("a"), text("b")])
            truncate(target)
        else:
            extend(target)
        with pytest.raises(BatchWriteError, match=f"{said}.* Run the same batch again") as caught:
            output.check_unchanged()
        assert caught.value.path == str(target)
        assert [each.name for each in target.parent.iterdir()] == ["out.jsonl"]
        with pytest.raises(BatchWriteError, match=f"1 of {before + 1} answers") as caught:
            output.append([text("c")])
        output.close()
        assert ids(Path(caught.value.path)) == ["c"]

    def test_a_change_while_the_disk_writes_is_noticed(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = Output(target)
        sync = os.fsync

        def slow_sync(fd: int) -> None:
            os.utime(target, ns=(5, 5))
            sync(fd)

        monkeypatch.setattr(os, "fsync", slow_sync)
        output.append([text("a")])
        monkeypatch.undo()
        assert not output.check_unchanged()
        output.close()

    def test_a_change_in_place_is_noticed_until_it_is_read(self, target: Path) -> None:
        output = Output(target)
        output.append([text("a")])
        os.utime(target, ns=(0, 0))
        output.append([text("b")])
        assert not output.check_unchanged()
        output.mend(target.stat().st_size, 2, is_terminated=True)
        assert output.check_unchanged()
        output.close()

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("rewrite", ["sort", "remove"])
    def test_a_rewrite_does_not_replace_a_changed_file(
        self, target: Path, change: Change, rewrite: str
    ) -> None:
        output = Output(target)
        output.append([text("b"), text("a")])
        changes = iter([change])

        def check() -> None:
            for each in changes:
                each(target)

        with pytest.raises(BatchWriteError, match=CHANGES[change][0]) as caught:
            if rewrite == "sort":
                output.sort(2, lambda: [(2, 0), (1, len(text("b")))], check)
            else:
                output.remove_lines(lambda line: line == text("a"), check)
        output.close()
        assert ids(Path(caught.value.path)) == ["b", "a"][: CHANGES[change][1]]
        assert not list(target.parent.rglob(".cortecs*"))

    def test_a_link_to_the_moved_file_is_no_change(self, target: Path) -> None:
        output = Output(target)
        output.append([text("a")])
        move(target)
        target.symlink_to("moved.jsonl")
        output.append([text("b")])
        assert output.check_unchanged()
        output.close()
        assert ids(target) == ["a", "b"]

    def test_the_working_directory_may_change(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(target.parent)
        output = Output(Path(target.name))
        output.append([text("b")])
        monkeypatch.chdir(target.parent.parent)
        output.append([text("a")])
        output.sort(2, lambda: [(2, 0), (1, len(text("b")))], lambda: None)
        assert output.check_unchanged()
        output.close()
        assert ids(target) == ["a", "b"]

    def test_a_full_disk_leaves_no_partial_copy(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        output = Output(target)
        output.append([text("a")])
        move(target)

        def fail(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", fail)
        for _ in range(2):
            with pytest.raises(BatchWriteError, match=r"removed .* could not be saved: No space left"):
                output.append([text("b")])
        assert [each.name for each in target.parent.iterdir()] == ["moved.jsonl"]
        monkeypatch.undo()
        with pytest.raises(BatchWriteError, match="2 of 2 answers"):
            output.append([text("b")])
        output.close()

    def test_answers_are_saved_elsewhere_if_the_disk_of_the_output_is_full(
        self, target: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
        output = Output(target)
        output.append([text("a")])
        target.unlink()
        calls = iter([OSError(errno.ENOSPC, "No space left on device")])
        real = os.write

        def write(*arguments: Any) -> int:
            for error in calls:
                raise error
            return real(*arguments)

        monkeypatch.setattr(os, "write", write)
        with pytest.raises(BatchWriteError, match="2 of 2 answers") as caught:
            output.append([text("b")])
        output.close()
        assert Path(caught.value.path).parent == elsewhere
        assert ids(Path(caught.value.path)) == ["a", "b"]
        assert list(target.parent.iterdir()) == []

    def test_an_output_that_cannot_be_looked_up_is_not_taken_for_removed(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = Output(target)
        output.append([text("a")])

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", fail)
            with pytest.raises(BatchWriteError, match="cannot be written: Input/output error"):
                output.append([text("b")])
        output.append([text("b")])
        output.close()
        assert ids(target) == ["a", "b"]

    def test_an_empty_file_of_another_program_is_not_deleted(self, target: Path) -> None:
        output = Output(target)
        target.unlink()
        target.touch()
        output.close()
        assert target.exists()


class TestDrafts:
    @pytest.mark.parametrize("victim", ["file", "link", "broken link"])
    def test_a_draft_is_never_a_file_that_exists(
        self, target: Path, monkeypatch: pytest.MonkeyPatch, victim: str
    ) -> None:
        output = Output(target)
        output.append([text("b"), text("a")])
        monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
        foreign, draft = target.parent / "foreign", target.parent / f"{output._draft_prefix}{'0' * 32}.new"
        if victim != "broken link":
            foreign.write_text("not yours")
        (draft.hardlink_to if victim == "file" else draft.symlink_to)(foreign)
        with pytest.raises(BatchWriteError, match="File exists"):
            output.sort(2, lambda: [(2, 0), (1, len(text("b")))], lambda: None)
        output.close()
        assert ids(target) == ["b", "a"]
        assert foreign.exists() == (victim != "broken link")
        assert victim == "broken link" or foreign.read_text() == "not yours"

    def test_saved_answers_are_never_written_to_a_file_that_exists(
        self, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = Output(target)
        output.append([text("a")])
        monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
        foreign = target.parent / "foreign"
        foreign.write_text("not yours")
        target.with_name("out.jsonl.recovered-00000000").symlink_to(foreign)
        target.unlink()
        with pytest.raises(BatchWriteError) as caught:
            output.check_unchanged()
        output.close()
        assert foreign.read_text() == "not yours"
        assert ids(Path(caught.value.path)) == ["a"]

    def test_names_cannot_be_predicted(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names: list[str] = []
        real = Path.replace

        def note(path: Path, other: Path) -> Path:
            names.append(path.name)
            return real(path, other)

        monkeypatch.setattr(Path, "replace", note)
        output = Output(target)
        output.append([text("a")])
        for _ in range(3):
            output.remove_lines(lambda _: False, lambda: None)
        output.close()
        assert len(set(names)) == 3

    def test_drafts_of_killed_processes_are_deleted(self, target: Path) -> None:
        output = Output(target)
        prefix = output._draft_prefix
        output.close()
        folder = target.parent
        ours = folder / f"{prefix}{'a' * 32}.new"
        ours.write_text("cut sho")
        others = [
            folder / f"{prefix}{'a' * 31}.new",
            folder / f"{prefix}{'a' * 32}.new.bak",
            folder / f".cortecs-batch-{'0' * 16}-{'a' * 32}.new",
            folder / f"out.jsonl.recovered-{'a' * 8}",
        ]
        for each in others:
            each.touch()
        link, sub = folder / f"{prefix}{'b' * 32}.new", folder / f"{prefix}{'c' * 32}.new"
        link.symlink_to(others[0])
        sub.mkdir()
        Output(target).close()
        assert not ours.exists()
        assert all(each.exists() for each in [*others, link, sub])

    def test_drafts_of_other_users_are_kept(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        output = Output(target)
        draft = target.parent / f"{output._draft_prefix}{'a' * 32}.new"
        output.close()
        draft.touch()
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
        Output(target).close()
        assert draft.exists()


async def run(
    client: AsyncCortecs, emulator: Emulator, source: Path, target: Path, **options: Any
) -> BatchReport:
    options = {"api_key": emulator.api_key, "concurrency": 4, **options}
    return await client.run_batch(source, target, MODEL, HARDWARE, **options)


def once(done: int, action: Callable[[], Any]) -> Callable[[BatchProgress], None]:
    """Return an `on_progress` that acts once, when so many answers are written."""
    actions = [action]

    def on_progress(progress: BatchProgress) -> None:
        if progress.done >= done and actions:
            actions.pop()()

    return on_progress


@pytest.mark.usefixtures("batch_without_threads")
class TestBatch:
    @grid(change=CHANGES, done=[8, REQUESTS], ordered=[False, True], anyio_backend=BACKENDS)
    async def test_a_changed_output_ends_the_batch_at_once(
        self,
        world: World,
        source: Path,
        target: Path,
        change: Change,
        done: int,
        ordered: bool,  # noqa: FBT001
    ) -> None:
        async with world(answer_seconds=1.0) as (emulator, client):
            on_progress = once(done, lambda: change(target))
            with pytest.raises(BatchWriteError, match=CHANGES[change][0]) as caught:
                await run(client, emulator, source, target, ordered=ordered, on_progress=on_progress)
            assert emulator.existing == ()
            asked = sum(each.route == "chat" for each in emulator.requests)
            assert asked <= done + 12
            saved = Path(caught.value.path)
            answered = Counter(ids(saved))
            assert answered.total() == len(answered) >= len(range(done)[: CHANGES[change][1]])
            restore(saved, target)
            report = await run(client, emulator, source, target)
            assert report.resumed == len(answered)
        assert Counter(ids(target)) == {f"r{number}": 1 for number in range(REQUESTS)}

    async def test_a_removed_output_is_reported_when_the_batch_is_cancelled(
        self, world: World, source: Path, target: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with world(answer_seconds=1.0) as (emulator, client):
            with anyio.CancelScope() as scope:

                def end() -> None:
                    target.unlink()
                    scope.cancel()

                await run(client, emulator, source, target, on_progress=once(8, end))
            assert scope.cancelled_caught
            assert emulator.existing == ()
        (saved,) = target.parent.iterdir()
        assert len(ids(saved)) >= 8
        assert f"answers are saved in {saved}" in caplog.text

    async def test_answers_that_were_overwritten_are_missed(
        self, world: World, source: Path, target: Path
    ) -> None:
        async with world(answer_seconds=1.0) as (emulator, client):

            def change() -> None:
                overwrite(target)
                os.utime(target, ns=(0, 0))

            on_progress = once(REQUESTS, change)
            with pytest.raises(BatchWriteError, match=f"changed .*. {REQUESTS} answers are missing"):
                await run(client, emulator, source, target, on_progress=on_progress)
            report = await run(client, emulator, source, target)
            assert (report.resumed, report.succeeded) == (0, REQUESTS)

    async def test_a_line_that_was_damaged_is_named(self, world: World, source: Path, target: Path) -> None:
        async with world(answer_seconds=1.0) as (emulator, client):

            def change() -> None:
                with target.open("r+b") as file:
                    file.write(b"x")
                os.utime(target, ns=(0, 0))

            with pytest.raises(BatchWriteError, match=r"changed .*out.jsonl, line 1: not a line"):
                await run(client, emulator, source, target, on_progress=once(REQUESTS, change))

    async def test_a_file_that_was_only_touched_is_complete(
        self, world: World, source: Path, target: Path
    ) -> None:
        async with world(answer_seconds=1.0) as (emulator, client):

            def change() -> None:
                # Also swap two lines of the same length, which the offsets for `ordered` would mix up.
                lines = target.read_bytes().splitlines(keepends=True)
                target.write_bytes(b"".join(reversed(lines)))
                os.utime(target, ns=(0, 0))

            report = await run(
                client, emulator, source, target, ordered=True, on_progress=once(REQUESTS, change)
            )
        assert report.succeeded == REQUESTS
        assert ids(target) == [f"r{number}" for number in range(REQUESTS)]
