"""Promises as records, and records on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from _promises import ARGS, BASELINE, book_of, created, intent
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._recovery.journal import JournalFile, orphaned_journals, read_journals, try_lock
from cortecs_async._recovery.records import Record, decode, encode, fold


class TestBook:
    def test_an_intent_is_owed_until_it_is_gone(self) -> None:
        book = book_of(BASELINE, intent())
        entry = book.promises["e1"]
        assert entry.instance_id is None
        assert entry.args == ARGS
        assert book.baseline_of(entry) == {"i-1", "i-2"}
        book.apply({"kind": "GONE", "entry": "e1"})
        assert book.promises == {}

    def test_a_created_instance_keeps_the_arguments_of_its_intent(self) -> None:
        entry = book_of(BASELINE, intent(), created()).promises["e1"]
        assert entry.instance_id == "i-of-e1"
        assert entry.args == ARGS

    def test_a_restart_has_no_intent(self) -> None:
        entry = book_of(created("e9", goal="stopped")).promises["e9"]
        assert (entry.goal, entry.baseline, entry.args) == ("stopped", None, {})

    def test_what_is_handed_over_without_a_time_limit_is_owed_by_nobody_here(self) -> None:
        assert book_of(created(), {"kind": "HELD", "entry": "e1"}).promises == {}

    def test_what_is_handed_over_with_one_is_owed_from_then_on(self) -> None:
        entry = book_of(created(expires_at=2000.0), {"kind": "HELD", "entry": "e1"}).promises["e1"]
        assert not entry.is_due(1999.0, owner_lives=False)
        assert entry.is_due(2000.0, owner_lives=False)

    def test_the_living_answer_for_their_own_but_for_what_they_gave_up_or_overran(self) -> None:
        entry = book_of(created(expires_at=2000.0)).promises["e1"]
        assert entry.is_due(0.0, owner_lives=False)
        assert not entry.is_due(2014.0, owner_lives=True, grace=15.0)
        assert entry.is_due(2015.0, owner_lives=True, grace=15.0)
        entry.abandoned = True
        assert entry.is_due(0.0, owner_lives=True)

    def test_nobody_touches_what_cannot_be_told_apart(self) -> None:
        ambiguous = {"kind": "AMBIGUOUS", "entry": "e1", "candidates": ["i-7", "i-8"]}
        entry = book_of(BASELINE, intent(), ambiguous).promises["e1"]
        assert entry.candidates == ("i-7", "i-8")
        assert not entry.is_due(1e12, owner_lives=False)

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
        ],
    )
    def test_what_is_not_understood_changes_nothing(self, record: Record) -> None:
        book = book_of(BASELINE, intent())
        before = book.snapshot()
        assert not book.apply(record)
        assert book.snapshot() == before

    @pytest.mark.parametrize("kind", ["HELD", "ABANDONED", "UNANSWERED", "AMBIGUOUS", "GONE"])
    def test_news_of_what_is_closed_already_is_understood_and_changes_nothing(self, kind: str) -> None:
        book = book_of(BASELINE, intent())
        before = book.snapshot()
        assert book.apply({"kind": kind, "entry": "closed", "candidates": ["i-1"]})
        assert book.snapshot() == before

    def test_gone_twice_is_no_matter(self) -> None:
        assert book_of(intent(), {"kind": "GONE", "entry": "e1"}).apply({"kind": "GONE", "entry": "e1"})

    def test_baselines_that_nobody_needs_are_forgotten(self) -> None:
        book = book_of(BASELINE, intent(), {"kind": "GONE", "entry": "e1"})
        for number in range(100):
            book.apply({"kind": "BASELINE", "baseline": f"b{number}", "ids": []})
        assert len(book.baselines) <= 17

    def test_every_intent_keeps_its_own_baseline(self) -> None:
        other = {"kind": "BASELINE", "baseline": "b2", "ids": ["i-9"]}
        book = book_of(BASELINE, other, intent("e1"), {**intent("e2"), "baseline": "b2"})
        for each in (book, fold(encode(book.snapshot()))):
            assert each.baseline_of(each.promises["e1"]) == {"i-1", "i-2"}
            assert each.baseline_of(each.promises["e2"]) == {"i-9"}

    def test_what_its_holder_hands_back_is_owed_at_once(self) -> None:
        book = book_of(created(expires_at=2000.0), {"kind": "HELD", "entry": "e1"}, created())
        assert book.promises["e1"].is_due(0.0, owner_lives=False)
        assert fold(encode(book.snapshot())).promises.keys() == {"e1"}

    def test_a_snapshot_folds_to_the_same_book(self) -> None:
        book = book_of(
            {"kind": "OWNER", "host": "here", "pid": 1},
            BASELINE,
            intent("e1"),
            intent("e2"),
            created("e2", expires_at=5.0),
            created("e3", goal="stopped", expires_at=7.0),
            {"kind": "HELD", "entry": "e3"},
            {"kind": "ABANDONED", "entry": "e2"},
            intent("e4"),
            {"kind": "AMBIGUOUS", "entry": "e4", "candidates": ["i-5"]},
        )
        again = fold(encode(book.snapshot()))
        assert again.snapshot() == book.snapshot()
        assert again.owner == book.owner
        for key, entry in book.promises.items():
            for name in entry.__slots__:
                assert getattr(again.promises[key], name) == getattr(entry, name), (key, name)


class TestLines:
    def test_a_torn_last_line_is_left_out_at_every_length(self) -> None:
        records = [BASELINE, intent(), created()]
        data = encode(records)
        ends = [index + 1 for index, byte in enumerate(data) if byte == 10]
        for length in range(len(data) + 1):
            assert decode(data[:length]) == records[: sum(end <= length for end in ends)]

    def test_lines_that_cannot_be_read_hide_no_others(self) -> None:
        data = encode([BASELINE]) + b"\0" * 512 + b'\n{"kind":\n[]\n\xff\xfe\n' + encode([intent()])
        assert decode(data) == [BASELINE, intent()]

    @given(st.binary())
    def test_no_bytes_break_the_reading(self, data: bytes) -> None:
        fold(data + b"\n")


class TestFile:
    def test_it_is_only_for_its_owner(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path / "deep" / "journal", [BASELINE])
        assert journal.path.stat().st_mode & 0o777 == 0o600
        assert journal.path.parent.stat().st_mode & 0o777 == 0o700
        journal.remove()

    def test_as_long_as_its_owner_lives_nobody_takes_it(self, tmp_path: Path) -> None:
        journal = JournalFile.create(tmp_path, [BASELINE, intent()])
        assert list(orphaned_journals(tmp_path)) == []
        assert [book.promises.keys() for _, book in read_journals(tmp_path)] == [{"e1"}]
        journal.close()
        (taken,) = orphaned_journals(tmp_path)
        assert taken.read().promises.keys() == {"e1"}
        assert list(orphaned_journals(tmp_path)) == []
        taken.remove()
        assert list(tmp_path.iterdir()) == []

    def test_a_rewritten_one_is_locked_as_before_and_shorter(self, tmp_path: Path) -> None:
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

    def test_drafts_of_the_dead_are_cleared_away_in_time(self, tmp_path: Path) -> None:
        old, young = tmp_path / "old.new", tmp_path / "young.new"
        for path in (old, young):
            path.write_bytes(b"")
        os.utime(old, (0, 0))
        assert list(orphaned_journals(tmp_path)) == []
        assert list(tmp_path.iterdir()) == [young]

    def test_what_was_replaced_while_it_was_opened_is_not_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "j.jsonl"
        path.write_bytes(b"")
        os_open = os.open

        def replaced(*args: Any, **more: Any) -> int:
            fd = os_open(*args, **more)
            path.unlink()
            path.write_bytes(b"another")
            return fd

        monkeypatch.setattr(os, "open", replaced)
        assert try_lock(path) is None

    def test_a_directory_that_cannot_be_synced_leaves_nothing_unlocked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os_open, os_fsync = os.open, os.fsync

        def refuse_directories(path: Any, *args: Any, **more: Any) -> int:
            if Path(path).is_dir():
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

    def test_a_full_disk_leaves_no_half_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_a_directory_that_is_none_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError):  # noqa: PT011  (its text is the system's)
            JournalFile.create(tmp_path / "file", [BASELINE])
        assert list(orphaned_journals(tmp_path / "nowhere")) == []
