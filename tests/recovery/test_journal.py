"""Test promises as records, and records on disk."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from _promises import ARGS, BASELINE, OWNER, created, intent, state_of
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._recovery.journal import JournalFile, orphaned_journals, read_journals, try_lock
from cortecs_async._recovery.records import Record, decode, encode, fold


class TestJournalState:
    def test_an_intent_is_open_until_it_is_gone(self) -> None:
        state = state_of(BASELINE, intent())
        promise = state.promises["e1"]
        assert promise.instance_id is None
        assert promise.args == ARGS
        assert state.baseline_of(promise) == {"i-1", "i-2"}
        state.apply({"kind": "GONE", "entry": "e1"})
        assert state.promises == {}

    def test_a_created_instance_keeps_the_arguments_of_its_intent(self) -> None:
        promise = state_of(BASELINE, intent(), created()).promises["e1"]
        assert promise.instance_id == "i-of-e1"
        assert promise.args == ARGS

    def test_a_restart_has_no_intent(self) -> None:
        promise = state_of(created("e9", goal="stopped")).promises["e9"]
        assert (promise.goal, promise.baseline, promise.args) == ("stopped", None, {})

    def test_an_instance_handed_over_without_a_deadline_is_no_longer_promised(self) -> None:
        assert state_of(created(), {"kind": "HELD", "entry": "e1"}).promises == {}

    def test_an_instance_handed_over_with_a_deadline_is_due_from_then_on(self) -> None:
        promise = state_of(created(expires_at=2000.0), {"kind": "HELD", "entry": "e1"}).promises["e1"]
        assert not promise.is_due(1999.0, owner_lives=False)
        assert promise.is_due(2000.0, owner_lives=False)

    def test_a_living_owner_keeps_its_promises_unless_abandoned_or_overdue(self) -> None:
        promise = state_of(created(expires_at=2000.0)).promises["e1"]
        assert promise.is_due(0.0, owner_lives=False)
        assert not promise.is_due(2014.0, owner_lives=True, grace=15.0)
        assert promise.is_due(2015.0, owner_lives=True, grace=15.0)
        promise.abandoned = True
        assert promise.is_due(0.0, owner_lives=True)

    def test_an_ambiguous_promise_is_never_due(self) -> None:
        ambiguous = {"kind": "AMBIGUOUS", "entry": "e1", "candidates": ["i-7", "i-8"]}
        promise = state_of(BASELINE, intent(), ambiguous).promises["e1"]
        assert promise.candidates == ("i-7", "i-8")
        assert not promise.is_due(1e12, owner_lives=False)

    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"kind": "SONG"},
            {"kind": "INTENT"},
            {"kind": "CREATED", "entry": "e2", "instance_id": "i-1"},
            {"kind": "HELD"},
            {"kind": "ABANDONED"},
            {"kind": "BASELINE", "baseline": "b2", "ids": 7},
            {"kind": "AMBIGUOUS", "entry": "e1", "candidates": None},
            {**intent("e2"), "at": "yesterday"},
            {**intent("e2"), "at": 10**400},
            {**intent("e2"), "args": {}},
            {**intent("e2"), "args": {"model_id": "m", "more": ["a"]}},
            {**intent("e2"), "tag": float("inf")},
            {**created("e1"), "instance_id": None, "expires_at": 5.0},
            {**created("e1"), "goal": 7, "expires_at": 5.0},
            {"kind": "BASELINE", "baseline": "b2", "ids": [7]},
            {"kind": "PAST", "ids": ["i-1", 7]},
            {"kind": "PAST", "api": 7, "ids": ["i-1"]},
        ],
    )
    def test_an_unknown_or_invalid_record_changes_nothing(self, record: Record) -> None:
        state = state_of(BASELINE, intent())
        before = state.snapshot()
        assert not state.apply(record)
        assert state.snapshot() == before

    @pytest.mark.parametrize("kind", ["HELD", "SEEN", "ABANDONED", "UNANSWERED", "AMBIGUOUS", "GONE"])
    def test_a_record_of_a_closed_promise_is_understood_and_changes_nothing(self, kind: str) -> None:
        state = state_of(BASELINE, intent())
        before = state.snapshot()
        assert state.apply({"kind": kind, "entry": "closed", "candidates": ["i-1"]})
        assert state.snapshot() == before

    def test_an_instance_that_a_reaper_finds_for_a_closed_start_is_a_past_id(self) -> None:
        found = {"kind": "CREATED", "entry": "closed", "instance_id": "i-7", "goal": "gone"}
        state = state_of(found)
        assert state.promises == {}
        assert list(state.past_ids) == [(None, "i-7")]

    def test_gone_may_be_recorded_twice(self) -> None:
        assert state_of(intent(), {"kind": "GONE", "entry": "e1"}).apply({"kind": "GONE", "entry": "e1"})

    def test_unused_baselines_are_dropped(self) -> None:
        state = state_of(BASELINE, intent(), {"kind": "GONE", "entry": "e1"})
        for number in range(100):
            state.apply({"kind": "BASELINE", "baseline": f"b{number}", "ids": []})
        assert len(state.baselines) <= 17

    def test_every_intent_keeps_its_own_baseline(self) -> None:
        other = {"kind": "BASELINE", "baseline": "b2", "ids": ["i-9"]}
        state = state_of(BASELINE, other, intent("e1"), {**intent("e2"), "baseline": "b2"})
        for each in (state, fold(encode(state.snapshot()))):
            assert each.baseline_of(each.promises["e1"]) == {"i-1", "i-2"}
            assert each.baseline_of(each.promises["e2"]) == {"i-9"}

    def test_an_instance_that_its_holder_releases_is_due_at_once(self) -> None:
        state = state_of(created(expires_at=2000.0), {"kind": "HELD", "entry": "e1"}, created())
        assert state.promises["e1"].is_due(0.0, owner_lives=False)
        assert fold(encode(state.snapshot())).promises.keys() == {"e1"}

    def test_a_snapshot_gives_the_same_state(self) -> None:
        state = state_of(
            {"kind": "OWNER", "host": "here", "pid": 1},
            BASELINE,
            intent("e1"),
            intent("e2"),
            created("e2", expires_at=5.0),
            created("e3", goal="stopped", expires_at=7.0),
            {"kind": "HELD", "entry": "e3"},
            {"kind": "SEEN", "entry": "e2"},
            {"kind": "ABANDONED", "entry": "e2"},
            intent("e4"),
            {"kind": "AMBIGUOUS", "entry": "e4", "candidates": ["i-5"]},
        )
        again = fold(encode(state.snapshot()))
        assert again.snapshot() == state.snapshot()
        assert again.owner == state.owner
        for key, promise in state.promises.items():
            assert vars(again.promises[key]) == vars(promise), key


class TestLines:
    def test_a_torn_last_line_is_left_out_at_every_length(self) -> None:
        records = [BASELINE, intent(), created()]
        data = encode(records)
        ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
        for length in range(len(data) + 1):
            assert decode(data[:length]) == records[: sum(end <= length for end in ends)]

    def test_unreadable_lines_are_skipped(self) -> None:
        data = encode([BASELINE]) + b"\0" * 512 + b'\n{"kind":\n[]\n\xff\xfe\n' + encode([intent()])
        assert decode(data) == [BASELINE, intent()]

    @given(st.binary())
    def test_any_bytes_can_be_read(self, data: bytes) -> None:
        fold(data + b"\n")


class TestFile:
    def test_only_its_user_can_read_it(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path / "deep" / "journal", [BASELINE])
        assert journal.path.stat().st_mode & 0o777 == 0o600
        assert journal.path.parent.stat().st_mode & 0o777 == 0o700
        journal.remove()

    def test_a_copy_in_a_forked_child_does_not_keep_it_locked(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path, [BASELINE, intent()])
        copy = os.dup(journal._fd)  # shares the lock, as the copy of a forked child does
        journal.close()
        locked = try_lock(journal.path)
        assert locked is not None
        locked.remove()
        os.close(copy)

    def test_a_forked_child_does_not_unlock_it(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path, [BASELINE, intent()])
        child = JournalFile(journal.path, os.dup(journal._fd))
        child.close_copy()
        assert try_lock(journal.path) is None
        journal.remove()

    def test_it_cannot_be_locked_while_its_owner_lives(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path, [BASELINE, intent()])
        assert list(orphaned_journals(tmp_path)) == []
        assert [state.promises.keys() for _, state in read_journals(tmp_path)] == [{"e1"}]
        journal.close()
        ((locked, state),) = orphaned_journals(tmp_path)
        assert state.promises.keys() == {"e1"}
        assert list(orphaned_journals(tmp_path)) == []
        locked.remove()
        assert list(tmp_path.iterdir()) == []

    def test_a_rewritten_journal_is_still_locked_and_smaller(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path, [BASELINE, intent()])
        journal.append([created()] * 50, durable=True)
        before = journal.size
        journal.rewrite(fold(journal.path.read_bytes()).snapshot())
        assert journal.size < before
        journal.append([{"kind": "GONE", "entry": "e1"}], durable=False)
        assert journal.read().promises == {}
        assert list(orphaned_journals(tmp_path)) == []
        assert [path.name for path in tmp_path.iterdir()] == [journal.path.name]
        journal.remove()

    def test_old_drafts_are_deleted(self, tmp_path: Path) -> None:
        data = encode([OWNER, BASELINE, intent()])
        contents = [data[:length] for length in (0, 5, 20, 60, 200, len(data))] + [b"\0" * 4096]
        for number, content in enumerate(contents):
            (tmp_path / f"{number:032x}.new").write_bytes(content)
        assert list(orphaned_journals(tmp_path)) == []
        assert len(list(tmp_path.iterdir())) == len(contents)
        young = tmp_path / f"{99:032x}.new"
        young.write_bytes(data)
        for path in tmp_path.iterdir():
            os.utime(path, None if path == young else (0, 0))
        assert list(orphaned_journals(tmp_path)) == []
        assert list(tmp_path.iterdir()) == [young]

    def test_a_draft_that_is_still_written_is_kept_at_any_age(self, tmp_path: Path) -> None:
        draft = tmp_path / f"{1:032x}.new"
        draft.write_bytes(encode([OWNER]))
        os.utime(draft, (0, 0))
        with draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert list(orphaned_journals(tmp_path)) == []
        assert list(tmp_path.iterdir()) == [draft]

    def test_a_journal_that_was_replaced_while_it_was_opened_is_not_locked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / f"{1:032x}.jsonl"
        path.write_bytes(b"")
        os_open = os.open

        def replaced(name: Any, *args: Any, **more: Any) -> int:
            fd = os_open(name, *args, **more)
            if name == path.name:
                path.unlink()
                path.write_bytes(b"another")
            return fd

        monkeypatch.setattr(os, "open", replaced)
        assert try_lock(path) is None

    def test_a_directory_that_cannot_be_opened_or_synced_leaves_nothing_unlocked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os_open, os_fsync = os.open, os.fsync

        def refuse_directories(path: Any, *args: Any, **more: Any) -> int:
            if args[0] & os.O_DIRECTORY:
                raise OSError(errno.EMFILE, "too many open files")
            return os_open(path, *args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse_directories)
            with pytest.raises(OSError, match="too many"):
                JournalFile.create(tmp_path, [BASELINE])
        assert list(tmp_path.iterdir()) == []

        def refuse_to_sync_directories(fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
                raise OSError(errno.EINVAL, "not on this file system")
            os_fsync(fd)

        monkeypatch.setattr(os, "fsync", refuse_to_sync_directories)
        journal = JournalFile.create(tmp_path, [BASELINE])
        assert list(orphaned_journals(tmp_path)) == []
        journal.remove()

    def test_a_full_disk_leaves_no_torn_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = JournalFile.create(tmp_path, [BASELINE])
        os_write = os.write
        with monkeypatch.context() as patch:

            def full(fd: int, data: Any) -> int:
                if len(data) < 40:
                    raise OSError(errno.ENOSPC, "no space left on device")
                return os_write(fd, data[:20])

            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="no space"):
                journal.append([intent()], durable=True)
        journal.append([intent("e2")], durable=True)
        assert journal.read().promises.keys() == {"e2"}
        journal.remove()

    def test_a_file_in_place_of_the_directory_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError):  # noqa: PT011  (its text is the system's)
            JournalFile.create(tmp_path / "file", [BASELINE])
        assert list(orphaned_journals(tmp_path / "nowhere")) == []
