"""Mutants: clients that do one thing wrong each, and for each the test that finds it out.

`python tests/mutants.py` applies them one by one, `python tests/mutants.py LEASE JOURNAL` those with such a
word in the name. Each is a change of one file in a copy of the package, and the test that is named must fail
with it. All of them are in the default tier or among the proofs: whoever thins out those two sees here
whether they still hold what they held.
"""

from __future__ import annotations

import compileall
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = "cortecs_async"

# What may kill a mutant: the default tier and the proofs, those with sockets too.
TIERS = "(proofs or not (sockets or oracle)) and not nightly"

# Seconds for one test with a mutant, and for all of them without.
PATIENCE, LONG_PATIENCE = 120.0, 900.0

# Exit codes of pytest: https://docs.pytest.org/en/stable/reference/exit-codes.html
PASSED, FAILED = 0, 1


class Mutant(NamedTuple):
    """A client that does one thing wrong.

    Attributes:
        name: What it does.
        file: The file that is changed, below the package.
        old: What stands there, once.
        new: What stands there instead.
        test: The test that fails then, below `tests`.
        hangs: Whether the test may also come to no end.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    hangs: bool = False

    def applied(self, source: str) -> str:
        """The text of the file with the mistake in it.

        Raises:
            ValueError: when the place is not there, or there more than once.
        """
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {source.count(self.old)} times, not once")
        return source.replace(self.old, self.new)


MUTANTS = [
    # The journal
    Mutant(
        "does not wait until a promise is on the disk",
        "_journal.py",
        "            if durable:\n",
        "            if False:\n",
        "test_recovery.py::test_what_must_survive_a_loss_of_power_is_on_the_disk_when_it_is_appended",
    ),
    Mutant(
        "waits for the disk with everything but a promise to start",
        "_books.py",
        '_LOST_BY_POWER = frozenset({"INTENT", ',
        "_LOST_BY_POWER = frozenset({",
        "test_recovery.py::test_a_promise_waits_for_the_disk_and_the_end_of_one_does_not",
    ),
    Mutant(
        "leaves half a line in its journal when the disk is full",
        "_journal.py",
        "os.ftruncate(self._fd, size)",
        "os.fstat(self._fd)",
        "test_journal.py::TestFile::test_a_full_disk_leaves_no_half_line",
    ),
    Mutant(
        "shares the lock of its journal with everybody",
        "_journal.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "test_journal.py::TestFile::test_as_long_as_its_owner_lives_nobody_takes_it",
    ),
    Mutant(
        "does not lock its journal",
        "_journal.py",
        "            _lock(fd)\n            _write(fd, data)",
        "            _write(fd, data)",
        "test_journal.py::TestFile::test_as_long_as_its_owner_lives_nobody_takes_it",
    ),
    Mutant(
        "gives its journal the name before the content is on the disk",
        "_journal.py",
        "            os.fsync(fd)\n            draft.rename(path)",
        "            draft.rename(path)",
        "test_recovery.py::test_a_new_journal_is_on_the_disk_before_it_has_its_name_and_then_so_is_the_name",
    ),
    Mutant(
        "does not sync the folder of its journal",
        "_journal.py",
        "os.fsync(directory)",
        "os.fstat(directory)",
        "test_recovery.py::test_a_new_journal_is_on_the_disk_before_it_has_its_name_and_then_so_is_the_name",
    ),
    Mutant(
        "takes a journal that was replaced while it was opened",
        "_journal.py",
        "    if _is_at(fd, path):\n        return JournalFile",
        "    if True:\n        return JournalFile",
        "test_journal.py::TestFile::test_what_was_replaced_while_it_was_opened_is_not_taken",
    ),
    Mutant(
        "goes on with a journal that was deleted",
        "_journal.py",
        "return os.fstat(self._fd).st_nlink > 0",
        "return True",
        "test_books.py::test_a_directory_that_was_cleared_is_written_anew",
    ),
    Mutant(
        "lets everybody read its journal",
        "_journal.py",
        "os.O_CREAT | os.O_TRUNC, 0o600)",
        "os.O_CREAT | os.O_TRUNC, 0o644)",
        "test_journal.py::TestFile::test_it_is_only_for_its_owner",
    ),
    Mutant(
        "takes somebody who looks at a journal for its owner",
        "_journal.py",
        "for _ in range(_LOOKS):",
        "for _ in range(0):",
        "test_owners.py::TestLooks::test_who_takes_a_journal_waits_for_those_who_only_look",
    ),
    Mutant(
        "starts before its promise is in the journal",
        "_keeper.py",
        "            await self.settle()\n        except BaseException:\n",
        (
            "            for record in self._books._queue:\n"
            "                self._books.book.apply(record)\n"
            "        except BaseException:\n"
        ),
        "test_books.py::test_every_step_of_a_lease_is_in_the_journal_before_it_counts",
    ),
    Mutant(
        "lets its journal grow without bound",
        "_books.py",
        "elif self._is_behind or self._journal.size > _SLACK + 4 * self._worth:",
        "elif self._is_behind:",
        "test_books.py::test_it_does_not_grow_without_bound",
    ),
    Mutant(
        "leaves out of its journal what a full disk did not take",
        "_books.py",
        "self._is_behind = True",
        "self._is_behind = False",
        "test_books.py::test_a_disk_that_was_full_for_a_while_is_caught_up_with",
    ),
    Mutant(
        "removes its journal although something is owed",
        "_books.py",
        "            if self.book.entries:\n                if self._journal is not None:",
        "            if False:\n                if self._journal is not None:",
        "test_acquire.py::test_what_was_acquired_for_a_time_is_swept_after_it",
    ),
    Mutant(
        "starts without the journal that is required",
        "_keeper.py",
        'if self._journal == "required" and problem:',
        "if False:",
        "test_books.py::test_without_a_disk_an_error_where_one_is_required",
    ),
    Mutant(
        "starts without the reaper that is required",
        "_keeper.py",
        'if self._guard == "required" and problem:',
        "if False:",
        "test_recovery.py::test_where_a_reaper_is_required_nothing_is_started_without_one",
    ),
    # Its records
    Mutant(
        "takes a torn line of a journal for a promise",
        "_records.py",
        'data.split(b"\\n")[:-1]',
        'data.split(b"\\n")',
        "test_journal.py::TestLines::test_a_torn_last_line_is_left_out_at_every_length",
    ),
    Mutant(
        "reads no further than the first line that it cannot read",
        "_records.py",
        "            continue\n        if isinstance(record, dict):",
        "            break\n        if isinstance(record, dict):",
        "test_journal.py::TestLines::test_lines_that_cannot_be_read_hide_no_others",
    ),
    Mutant(
        "owes nothing for a start until it is answered",
        "_records.py",
        '    entry.baseline = str(record["baseline"])\n    book.entries[entry.key] = entry',
        '    entry.baseline = str(record["baseline"])',
        "test_journal.py::TestBook::test_an_intent_is_owed_until_it_is_gone",
    ),
    Mutant(
        "releases what was acquired before its time is up",
        "_records.py",
        "return expired if self.held else True",
        "return True",
        "test_journal.py::TestBook::test_what_is_handed_over_with_one_is_owed_from_then_on",
    ),
    Mutant(
        "releases what cannot be told apart",
        "_records.py",
        "        if self.candidates:\n            return False",
        "        if False:\n            return False",
        "test_journal.py::TestBook::test_nobody_touches_what_cannot_be_told_apart",
    ),
    Mutant(
        "forgets the baselines of starts that are under way",
        "_records.py",
        "unused = [name for name in book.baselines if name not in used]",
        "unused = list(book.baselines)",
        "test_recovery.py::test_a_baseline_is_kept_as_long_as_a_start_needs_it",
    ),
    Mutant(
        "forgets that a start got no answer when it rewrites its journal",
        "_records.py",
        "    if entry.unanswered:\n",
        "    if False:\n",
        "test_recovery.py::test_a_snapshot_tells_that_a_start_got_no_answer",
    ),
    # Whose instance it is
    Mutant(
        "starts without a baseline",
        "_starts.py",
        "listing = await self._baseline()",
        "listing = _Listing((), anyio.current_time())",
        "test_adoption.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "starts with a baseline of long ago",
        "_starts.py",
        "_FRESH = 1.0",
        "_FRESH = 1000.0",
        "test_adoption.py::test_every_attempt_of_a_start_knows_what_exists_just_before_it",
    ),
    Mutant(
        "takes an instance that was there before its start",
        "_adoption.py",
        "return instance.instance_id not in self.baseline and fits(",
        "return fits(",
        "test_adoption.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "takes one of several instances that may be its own",
        "_adoption.py",
        "    return given if all(give(instance, set()) for instance in instances) else None",
        "    for instance in instances:\n        give(instance, set())\n    return given",
        "test_adoption.py::TestJudging::test_two_for_one_cannot_be_told_apart",
    ),
    Mutant(
        "gives the first start that comes what another needs",
        "_adoption.py",
        "if start not in given or give(given[start], tried):",
        "if start not in given:",
        "test_adoption.py::TestJudging::test_who_could_have_two_takes_the_one_that_the_other_cannot",
    ),
    Mutant(
        "takes what another process has started",
        "_adoption.py",
        "            and each.instance_id not in others\n",
        "",
        "test_adoption.py::test_a_lost_start_does_not_take_what_another_process_starts_meanwhile",
    ),
    Mutant(
        "takes what another lease of its own has started",
        "_adoption.py",
        "if each.instance_id not in self.ids\n            and",
        "if",
        "test_adoption.py::test_some_lost_before_and_some_after",
    ),
    Mutant(
        "takes an instance with other hardware for its own",
        "_matching.py",
        "        and _same(actual.hardware_type_id, sent.hardware_type_id)\n",
        "",
        "test_adoption.py::TestJudging::test_what_was_left_out_fits_anything",
    ),
    Mutant(
        "judges while another start of its own is under way",
        "_adoption.py",
        "return None if model_id in self._flying else self._landed",
        "return self._landed",
        "test_recovery.py::test_what_a_plain_start_has_made_is_not_taken_while_its_answer_is_on_its_way",
    ),
    Mutant(
        "starts while it looks for the instance of an equal start",
        "_starts.py",
        "    async def _enter(self, model_id: str) -> None:\n",
        (
            "    async def _enter(self, model_id: str) -> None:\n"
            "        await self._turns.enter(Urgency.CALL)\n"
            "        return\n"
        ),
        "test_recovery.py::test_no_lease_starts_while_the_instance_of_an_equal_start_is_looked_for",
    ),
    Mutant(
        "does not look for what a lost answer hid",
        "_starts.py",
        "if start.state is not State.UNKNOWN:",
        "if True:",
        "test_adoption.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "takes a lost start at once for one that did nothing",
        "_starts.py",
        "is_over = listing.began >= start.visible_until + (0.0 if verdict.is_final else _RIVALRY)",
        "is_over = True",
        "test_adoption.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "takes an instance that another process may just be starting",
        "_starts.py",
        "is_final=outcome is None or not is_rivalled",
        "is_final=True",
        "test_recovery.py::test_what_another_process_is_starting_is_not_taken_while_its_answer_is_on_its_way",
    ),
    Mutant(
        "takes an instance that the reaper of a dead process looks for",
        "_starts.py",
        "rivals = [*others.starting, *others.doomed]",
        "rivals = [*others.starting]",
        "test_recovery.py::test_what_the_reaper_of_a_dead_process_looks_for_is_not_taken",
    ),
    Mutant(
        "forgets at once that another process may be starting",
        "_rivals.py",
        "_FLIGHT = 600.0",
        "_FLIGHT = 0.0",
        "test_adoption.py::test_two_processes_that_lose_equal_starts_at_once_share_what_they_find",
    ),
    Mutant(
        "does not see the instances of other processes",
        "_rivals.py",
        "others.ids.add(entry.instance_id)",
        "pass",
        "test_adoption.py::test_another_client_id_of_the_same_account_counts_as_well",
    ),
    Mutant(
        "takes what another process could not tell apart",
        "_rivals.py",
        "others.ids.update(entry.candidates)",
        "pass",
        "test_recovery.py::test_what_another_process_could_not_tell_apart_is_not_ours",
    ),
    Mutant(
        "does not say that an instance cannot be told",
        "_starts.py",
        '        raise AmbiguousStartError(\n            f"a start of',
        '        AmbiguousStartError(\n            f"a start of',
        "test_adoption.py::test_an_equal_instance_of_somebody_else_makes_it_ambiguous_and_is_not_touched",
    ),
    Mutant(
        "releases a lease without looking for the instance of its start",
        "_release.py",
        "await self.starter.resolve(start, eager=True)",
        "pass",
        "test_adoption.py::test_cancelled_while_it_is_looked_for_it_is_found_and_released",
    ),
    Mutant(
        "takes what it releases up again",
        "_instances.py",
        " and each.instance_id not in self.releasing",
        "",
        "test_hardening.py::test_reuse_does_not_take_what_is_being_released",
    ),
    Mutant(
        "starts two instances where two want the same one",
        "_instances.py",
        "        async with self.ensuring:\n",
        "        if True:\n",
        "test_client.py::test_two_ensures_at_once_start_one",
    ),
    # The reaper
    Mutant(
        "has a reaper that Ctrl-C and the end of the terminal end",
        "_reaper.py",
        "signal.signal(number, signal.SIG_IGN)",
        "signal.signal(number, signal.SIG_DFL)",
        "test_crash.py::test_the_reaper_survives_ctrl_c_and_the_end_of_the_terminal",
    ),
    Mutant(
        "has a reaper in the session of its program",
        "_guard.py",
        "start_new_session=True,",
        "start_new_session=False,",
        "test_recovery.py::test_a_reaper_has_a_session_of_its_own_and_no_secret_of_the_environment",
    ),
    Mutant(
        "has a reaper that ends an instance before its owner could",
        "_reaper.py",
        "GRACE = 5.0",
        "GRACE = 0.0",
        "test_recovery.py::test_a_living_parent_has_some_seconds_after_the_time_is_up",
    ),
    Mutant(
        "has a reaper that leaves expired instances to a blocked program",
        "_reaper.py",
        "        if not due:\n            return\n",
        "        if True:\n            return\n",
        "test_books.py::TestReaper::test_it_ends_what_is_past_its_time_though_its_parent_lives",
    ),
    Mutant(
        "has a reaper that ends the same instance twice",
        "_reaper.py",
        "        self._begun.update(entry.key for entry in due)\n",
        "",
        "test_recovery.py::test_a_reaper_that_is_at_work_on_an_instance_does_not_begin_with_it_again",
    ),
    Mutant(
        "has a reaper that does nothing when its parent dies",
        "_reaper.py",
        "        if left:\n",
        "        if False:\n",
        "test_books.py::TestReaper::test_after_its_parents_death_it_keeps_everything_and_removes_the_journal",
    ),
    Mutant(
        "has a reaper that removes the journal although something is owed",
        "_reaper.py",
        "            if self.book.entries:\n                taken.close()",
        "            if False:\n                taken.close()",
        "test_books.py::TestReaper::test_what_it_cannot_keep_stays_in_the_journal",
    ),
    Mutant(
        "has a reaper that does not say that the owner is dead",
        "_reaper.py",
        '            self._report({"kind": "ORPHANED"})\n',
        "",
        "test_recovery.py::test_a_reaper_says_in_the_journal_that_it_has_taken_over_and_what_it_has_done",
    ),
    Mutant(
        "has a reaper that answers what it did not understand",
        "_reaper.py",
        "                if not self.book.apply(message):\n                    return",
        "                self.book.apply(message)",
        "test_books.py::TestReaper::test_it_answers_only_what_it_understood",
    ),
    Mutant(
        "has a reaper that writes nothing of what it did",
        "_reaper.py",
        "os.write(fd, encode([record]))",
        "pass",
        "test_recovery.py::test_a_reaper_says_in_the_journal_that_it_has_taken_over_and_what_it_has_done",
    ),
    Mutant(
        "has a reaper that does not wait for a start under way",
        "_reaping.py",
        "visible_until=anyio.current_time() + _WINDOW",
        "visible_until=anyio.current_time()",
        "test_recovery.py::test_the_reaper_looks_for_a_minute_for_what_a_start_under_way_may_make",
    ),
    Mutant(
        "hands its credentials to the reaper in the environment",
        "_guard.py",
        " if name in _ENVIRONMENT}",
        "}",
        "test_recovery.py::test_a_reaper_has_a_session_of_its_own_and_no_secret_of_the_environment",
    ),
    Mutant(
        "goes on with a reaper that does not answer",
        "_guard.py",
        '        self.discard()\n        raise GuardError("the reaper did not answer")',
        "",
        "test_recovery.py::test_a_reaper_that_does_not_answer_is_ended_and_not_relied_on",
    ),
    Mutant(
        "keeps the pipe to the reaper open in a forked child",
        "_guard.py",
        "            os.dup2(nowhere, process.stdin.fileno(), inheritable=False)\n",
        "",
        "test_crash.py::test_children_that_live_on_do_not_hide_the_death_of_their_parent",
    ),
    Mutant(
        "lets a forked child owe what its parent owes",
        "_books.py",
        'if hasattr(os, "register_at_fork"):\n    os.register_at_fork(',
        'if hasattr(os, "register_at_fork"):\n    dict(',
        "test_crash.py::test_children_that_live_on_do_not_hide_the_death_of_their_parent",
    ),
    Mutant(
        "does not join the books again in a forked child",
        "_keeper.py",
        "        if self._joined != self._books.generation:",
        "        if self._joined is None:",
        "test_recovery.py::test_the_reaper_of_a_forked_child_is_told_its_credentials",
    ),
    Mutant(
        "does not replace a reaper that died",
        "_books.py",
        "if self._users <= 0 or self._guard.is_up or not self.book.entries:",
        "if True:",
        "test_recovery.py::test_a_reaper_that_takes_the_place_of_a_dead_one_is_told_everything_again",
    ),
    Mutant(
        "does not tell a new reaper the credentials",
        "_books.py",
        "*self._where(), *self._armed.values(), *self.book.snapshot()",
        "*self._where(), *self.book.snapshot()",
        "test_recovery.py::test_a_reaper_that_takes_the_place_of_a_dead_one_is_told_everything_again",
    ),
    Mutant(
        "does not tell the reaper new credentials",
        "_keeper.py",
        "            self._arm()\n            # The old ones",
        "            # The old ones",
        "test_recovery.py::test_the_reaper_is_told_new_credentials_at_once_and_nothing_shows_them",
    ),
    Mutant(
        "does not tell the reaper what it promises",
        "_books.py",
        "messages = [*self._where(), *arms, *records]",
        "messages = [*self._where(), *arms]",
        "test_recovery.py::test_the_reaper_knows_of_a_start_before_it_is_sent_and_of_its_instance_after_it",
    ),
    Mutant(
        "shows the credentials that wait for the reaper",
        "_keeper.py",
        '"sealed": Secret(sealed)}',
        '"sealed": sealed}',
        "test_recovery.py::test_a_reaper_that_takes_the_place_of_a_dead_one_is_told_everything_again",
    ),
    # Release
    Mutant(
        "does not verify that an instance is gone after its delete",
        "_teardown.py",
        "return Seen.DELETED",
        "return Seen.GONE",
        "test_lease.py::test_the_clean_path_sends_no_more_than_it_must",
    ),
    Mutant(
        "deletes without a stop",
        "_teardown.py",
        "            return Deed.STOP\n",
        "            return Deed.DELETE\n",
        "test_lease.py::test_the_main_job",
    ),
    Mutant(
        "believes the answer to a stop",
        "_teardown.py",
        "settled = self.goal is Goal.GONE and _is_at_rest(answer)",
        "settled = _is_at_rest(answer)",
        "test_hardening.py::test_a_stop_on_exit_is_read_back",
    ),
    Mutant(
        "takes a refused stop for a release",
        "_teardown.py",
        "                    self.stop_refused = deed is Deed.STOP\n",
        "                    return\n                    self.stop_refused = deed is Deed.STOP\n",
        "test_lease.py::test_teardown_gets_through_faults",
    ),
    Mutant(
        "gives a release up at the first trouble",
        "_teardown.py",
        "                    await self._recover(deed, error)\n",
        "                    raise\n",
        "test_lease.py::test_teardown_gets_through_a_slow_service",
    ),
    Mutant(
        "takes an instance that cannot be read yet for gone",
        "_teardown.py",
        "if unseen and anyio.current_time() < self.settled_at:",
        "if False:",
        "test_hardening.py::test_an_instance_that_cannot_be_read_yet_is_released_all_the_same",
    ),
    Mutant(
        "waits for a Retry-After until the time of its release is up",
        "_teardown.py",
        "(self.deadline - anyio.current_time()) / 3)",
        "self.deadline - anyio.current_time())",
        "test_hardening.py::test_a_long_retry_after_does_not_use_up_the_release",
    ),
    Mutant(
        "asks only once for a stop that shows no effect",
        "_teardown.py",
        "                self.stop_refused = False\n                return Seen.LIVE",
        "                return Seen.STOPPING",
        "test_lease.py::test_a_stop_that_was_accepted_and_shows_no_effect_is_asked_for_again",
    ),
    Mutant(
        "does not say that a release has failed",
        "_teardown.py",
        "        raise TeardownError(\n",
        "        TeardownError(\n",
        "test_lease.py::test_a_teardown_that_cannot_succeed_says_what_may_still_be_billed",
    ),
    Mutant(
        "takes an instance that the service calls deleted for alive",
        "_teardown.py",
        'if instance is None or instance.status.lower() == "deleted":',
        "if instance is None:",
        "test_hardening.py::test_deleted_is_as_good_as_gone",
    ),
    Mutant(
        "lets its release be cancelled on asyncio",
        "_detached.py",
        "return await _on_asyncio(work, resume=resume)",
        "return Ended(value=await work())",
        "test_cancellation.py::test_a_cancellation_during_the_release_still_reaches_the_caller",
    ),
    Mutant(
        "lets its release be cancelled on trio",
        "_detached.py",
        "return await _on_trio(work, resume=resume)",
        "return Ended(value=await work())",
        "test_cancellation.py::test_a_cancellation_during_the_release_still_reaches_the_caller",
    ),
    Mutant(
        "waits for its release only until the next cancellation",
        "_detached.py",
        "                    interruption = cancelled\n",
        "                    raise\n",
        "test_cancellation.py::TestByTheMeansOfAsyncio::test_a_task_cancelled_during_the_release_counts_as_cancelled",
    ),
    Mutant(
        "lets a release end that is cancelled before its first step",
        "_detached.py",
        "        if not task.cancelled():\n            break\n",
        "        break\n",
        "test_every_await.py::test_when_asyncio_run_ends_at_any_turn_of_the_loop_nothing_is_left",
    ),
    Mutant(
        "swallows a cancellation that came during its release",
        "_lease.py",
        "failure, interruption = ended.error or release.failure, ended.interruption",
        "failure, interruption = ended.error or release.failure, None",
        "test_cancellation.py::TestByTheMeansOfAsyncio::test_a_task_cancelled_during_the_release_counts_as_cancelled",
    ),
    Mutant(
        "replaces the exception of a block by that of its release",
        "_lease.py",
        "        if cause is None:\n            if cause := interruption or failure:",
        "        if cause is None or failure:\n            if cause := interruption or failure:",
        "test_lease.py::test_a_failed_teardown_does_not_hide_the_bodys_exception",
    ),
    Mutant(
        "keeps what failed before its block began",
        "_lease.py",
        (
            "            # Nobody has seen it, so nobody could stop what `on_exit` would spare.\n"
            "            self._opening.promise_again()\n"
            '            await self._end(error, "delete")'
        ),
        "            await self._end(error, self._options.on_exit)",
        "test_hardening.py::test_what_fails_before_the_block_is_deleted_whatever_on_exit_says",
    ),
    Mutant(
        "keeps an instance past its time limit",
        "_lease.py",
        'if on_exit == "keep" and isinstance(outcome, LeaseExpiredError):',
        "if False:",
        "test_budget.py::test_an_expired_instance_is_not_billed_whatever_on_exit_says",
    ),
    Mutant(
        "forgets a lease that nobody left",
        "_lease.py",
        "in {_Phase.STARTING, _Phase.RUNNING}:",
        "in set():",
        "test_hardening.py::test_a_lease_that_nobody_leaves_is_left_to_the_reaper",
    ),
    Mutant(
        "does not leave a failed release to the reaper",
        "_release.py",
        "            self.keeper.abandoned(key)\n",
        "            pass\n",
        "test_lease.py::test_a_release_that_fails_in_time_is_left_to_the_reaper",
    ),
    Mutant(
        "never closes what it has promised",
        "_release.py",
        "                self.keeper.done(key)\n",
        "                pass\n",
        "test_books.py::test_every_step_of_a_lease_is_in_the_journal_before_it_counts",
    ),
    Mutant(
        "closes its connections before its leases have released",
        "_http.py",
        "if self._closed and not self._holders:",
        "if self._closed:",
        "test_lease.py::test_a_client_closed_too_early_still_lets_leases_release",
    ),
    Mutant(
        "releases an instance that it only found",
        "_release.py",
        "        case Origin.FOUND:\n            return None",
        "        case Origin.FOUND:\n            return Goal.GONE",
        "test_lease.py::test_reuse_leaves_a_running_instance_running",
    ),
    Mutant(
        "deletes an instance that it has restarted",
        "_release.py",
        'return None if on_exit == "keep" else Goal.STOPPED',
        'return None if on_exit == "keep" else Goal.GONE',
        "test_lease.py::test_reuse_stops_again_what_it_restarted",
    ),
    Mutant(
        "lets an instance outlive its max_lifetime",
        "_watchdog.py",
        "with anyio.CancelScope(deadline=self.expires_at) as time:",
        "with anyio.CancelScope() as time:",
        "test_budget.py::test_the_block_ends_when_its_lifetime_is_up",
    ),
    Mutant(
        "spends the reserve of a budget",
        "_budget.py",
        "return affordable * interval - _RESERVE",
        "return affordable * interval",
        "test_budget.py::TestArithmetic::test_a_budget_lasts_as_long_as_its_intervals_but_for_a_reserve",
    ),
    Mutant(
        "forgets that each worker is billed",
        "_budget.py",
        "each = interval / 60.0 * price.per_minute * args.num_workers",
        "each = interval / 60.0 * price.per_minute",
        "test_budget.py::TestArithmetic::test_a_budget_lasts_as_long_as_its_intervals_but_for_a_reserve",
    ),
    Mutant(
        "takes one odd answer for the loss of its instance",
        "_watchdog.py",
        "                found = await self._next(known=None)\n",
        "",
        "test_loss.py::test_one_odd_answer_is_not_believed",
    ),
    Mutant(
        "does not notice the loss of its instance",
        "_watchdog.py",
        "                if _is_lost(found):\n                    return",
        "                if False:\n                    return",
        "test_loss.py::test_the_block_is_cancelled_with_a_typed_error",
    ),
    Mutant(
        "does not promise the release of what it has acquired",
        "_acquired.py",
        "await shop.keeper.settle_anyhow()",
        "pass",
        "test_acquire.py::test_the_release_of_what_was_acquired_is_promised_before_it_begins",
    ),
    # Ctrl-C
    Mutant(
        "leaves Ctrl-C to asyncio during a release",
        "_interrupts.py",
        "signal.signal(signal.SIGINT, current.receive)",
        "pass",
        "test_interrupts.py::test_every_one_is_a_cancellation",
    ),
    Mutant(
        "keeps Ctrl-C after its last release",
        "_interrupts.py",
        "if signal.getsignal(signal.SIGINT) == self.receive:",
        "if False:",
        "test_interrupts.py::test_it_is_taken_only_while_something_is_held",
    ),
    Mutant(
        "lets a blocked loop hold Ctrl-C off",
        "_interrupts.py",
        "            raise KeyboardInterrupt\n",
        "            pass\n",
        "test_interrupts.py::test_code_that_blocks_the_loop_is_still_reached",
    ),
    Mutant(
        "makes of two Ctrl-C a cancellation of somebody else",
        "_interrupts.py",
        "            self._main.uncancel()\n",
        "            pass\n",
        "test_interrupts.py::test_every_one_is_a_cancellation",
    ),
    Mutant(
        "lets Ctrl-C into the frames of a release on trio",
        "_detached.py",
        "trio.lowlevel.enable_ki_protection(function)",
        "pass",
        "test_hardening.py::TestOnTrio::test_ctrl_c_is_kept_out_of_the_frames_of_the_release_but_not_of_the_body",
    ),
    # Retries
    Mutant(
        "repeats a start whatever has become of it",
        "_retry.py",
        "return is_idempotent(method, path) or not may_have_worked(method, failure)",
        "return True",
        "test_retry.py::TestTable::test_what_is_repeated",
    ),
    Mutant(
        "takes a start for a request that can be repeated",
        "_retry.py",
        '{"/oauth2/token", "/instances/restart",',
        '{"/oauth2/token", "/instances/start", "/instances/restart",',
        "test_retry.py::TestTable::test_what_is_repeated",
    ),
    Mutant(
        "takes the time-out of a proxy for a refusal",
        "_retry.py",
        " or failure.status == 408\n",
        "\n",
        "test_retry.py::TestTable::test_what_an_outcome_means",
    ),
    Mutant(
        "does not wait as long as it is asked to",
        "_retry.py",
        "asked = failure.retry_after or 0.0",
        "asked = 0.0",
        "test_http.py::TestTime::test_retry_after_is_waited_for",
    ),
    Mutant(
        "repeats at once",
        "_retry.py",
        "return rng.uniform(0.0, bound)",
        "return 0.0",
        "test_retry.py::TestBackoff::test_the_jitter_is_full",
    ),
    Mutant(
        "waits however long it is asked to",
        "_retry.py",
        "if asked > policy.max_retry_after:",
        "if False:",
        "test_retry.py::TestNextWait::test_a_long_retry_after_is_refused",
    ),
    Mutant(
        "repeats past the time of a call",
        "_retry.py",
        "return wait if elapsed + wait < policy.total_timeout else None",
        "return wait",
        "test_retry.py::TestNextWait::test_the_deadline_counts_the_wait",
    ),
    Mutant(
        "repeats for ever",
        "_retry.py",
        "policy.max_retries == 0 or counted > policy.max_retries or not",
        "policy.max_retries == 0 or not",
        "test_retry.py::TestNextWait::test_as_often_as_the_policy_says",
    ),
    Mutant(
        "follows a redirection to another host with its token",
        "_transport.py",
        "return target if same and not target.userinfo else None",
        "return target",
        "test_http.py::TestRedirects::test_nothing_is_sent_to_another_origin",
    ),
    Mutant(
        "lets calls take the connections of releases",
        "_slots.py",
        "calls = max(1, size - max(1, size // 5))",
        "calls = size",
        "test_slots.py::test_calls_leave_a_fifth_to_releases",
    ),
    Mutant(
        "loses a turn to a cancellation",
        "_slots.py",
        "                self.leave(urgency)\n            else:",
        "                pass\n            else:",
        "test_slots.py::test_a_slot_given_in_the_moment_of_a_cancellation_goes_on",
    ),
    # Credentials
    Mutant(
        "does not renew a token that is refused",
        "_http.py",
        "if outcome.status == 401 and token is not None and not renewed:",
        "if False:",
        "test_auth.py::TestRefusedToken::test_is_renewed_and_the_request_repeated",
    ),
    Mutant(
        "fetches a token for each caller",
        "_auth.py",
        "            if self._flight is None:\n",
        "            if True:\n",
        "test_auth.py::test_one_fetch_serves_a_hundred_callers",
    ),
    Mutant(
        "drops the new token when it hears late of the old one",
        "_auth.py",
        "        if self._token is token:\n",
        "        if True:\n",
        "test_auth.py::TestRefusedToken::test_is_not_renewed_again_for_one_who_hears_of_it_late",
    ),
    Mutant(
        "uses a token until the moment it expires",
        "_auth.py",
        " - min(60.0, 0.1 * expires_in)",
        "",
        "test_auth.py::TestRenewal::test_a_tenth_before_the_end_at_most_a_minute",
    ),
    Mutant(
        "shows a secret in its repr",
        "_config.py",
        "return \"Secret('***')\"",
        'return f"Secret({self._value!r})"',
        "test_config.py::TestSecret::test_never_shows_itself",
    ),
    Mutant(
        "shows the client secret when the service echoes it",
        "_http.py",
        "        self._redactor.remember(credentials.client_secret)\n",
        "",
        "test_secrets.py::test_an_echo_in_any_spelling",
    ),
    Mutant(
        "shows the token when the service echoes it",
        "_http.py",
        "        self._redactor.remember(value)\n",
        "",
        "test_secrets.py::test_no_error_shows_a_secret",
    ),
    Mutant(
        "shows a secret that is spelled as in a URL",
        "_redact.py",
        '        urllib.parse.quote(secret, safe=""),\n',
        "",
        "test_secrets.py::test_an_echo_in_any_spelling",
    ),
    Mutant(
        "leaves the token in the traceback of a cancellation",
        "_transport.py",
        "            cancelled.__traceback__ = None\n",
        "",
        "test_secrets.py::test_the_callers_cancellation",
    ),
    Mutant(
        "names the account by its client id",
        "_keeper.py",
        'return hashlib.sha256(f"{api_base_url}\\n{client_id}".encode()).hexdigest()[:16]',
        "return client_id",
        "test_recovery.py::test_an_account_is_named_by_what_tells_nothing_of_it",
    ),
    Mutant(
        "sends credentials over plain http",
        "_config.py",
        'if parts.scheme == "http" and not is_loopback_host(host) and not allow_insecure_http:',
        "if False:",
        "test_config.py::TestBaseURL::test_plain_http_beyond_this_machine_takes_insisting",
    ),
    Mutant(
        "takes a base URL with a password in it",
        "_config.py",
        '    if "@" in url:\n',
        "    if False:\n",
        "test_config.py::TestBaseURL::test_what_may_hold_a_secret_is_refused_and_not_shown",
    ),
    Mutant(
        "sends what is for this machine through a proxy",
        "_connections.py",
        "return not settings.is_loopback",
        "return True",
        "test_http.py::TestOwnPool::test_a_proxy_of_the_environment_does_not_see_loopback",
    ),
    # Arguments
    Mutant(
        "deletes all instances for an id that is a route",
        "_arguments.py",
        "if instance_id.casefold() in _ROUTES:",
        "if False:",
        "test_arguments.py::TestInstanceId::test_what_could_mean_something_else_is_refused",
    ),
    Mutant(
        "takes dots for an id",
        "_arguments.py",
        ' or set(value) == {"."} or ".." in value:',
        ":",
        "test_arguments.py::TestInstanceId::test_what_could_mean_something_else_is_refused",
    ),
    Mutant(
        "takes an id with a slash in it",
        "_arguments.py",
        '_SEGMENT = re.compile(r"[A-Za-z0-9._~:-]+")',
        '_SEGMENT = re.compile(r"[A-Za-z0-9._~:/-]+")',
        "test_arguments.py::TestInstanceId::test_what_could_mean_something_else_is_refused",
    ),
    Mutant(
        "looks only at the beginning of an id",
        "_arguments.py",
        "_SEGMENT.fullmatch(value)",
        "_SEGMENT.match(value)",
        "test_arguments.py::TestInstanceId::test_what_could_mean_something_else_is_refused",
    ),
    Mutant(
        "starts with client.request, where no lease knows of it",
        "_calls.py",
        'if path.strip("/").casefold() == "instances/start":',
        "if False:",
        "test_calls.py::TestRequest::test_bad_arguments",
    ),
    Mutant(
        "sends a path with a segment of dots",
        "_calls.py",
        "(/(?!\\.+(/|$))[A-Za-z0-9._~:-]+)+/?",
        "(/[A-Za-z0-9._~:-]+)+/?",
        "test_calls.py::TestRequest::test_bad_arguments",
    ),
    # Waiting
    Mutant(
        "asks once for each wait",
        "_watch.py",
        "                if self._has_leader:\n                    await",
        "                if False:\n                    await",
        "test_watch.py::test_one_request_a_tick_serves_any_number_of_waits",
    ),
    Mutant(
        "looks as seldom as it may",
        "_pace.py",
        "return min(max(policy.min_interval, policy.growth * reach), policy.max_interval)",
        "return policy.max_interval",
        "test_watch.py::test_the_pace_keeps_its_stated_bound",
    ),
    Mutant(
        "takes one answer for the end of an instance",
        "_watch.py",
        "return {instance_id: (await self._read_listed()).get(instance_id)}",
        "return {instance_id: None}",
        "test_watch.py::test_gone_needs_both_the_instance_and_the_list",
    ),
    Mutant(
        "takes the absence from one list for the end of an instance",
        "_watch.py",
        "known = listed.keys() | trusting",
        "known = wanted",
        "test_watch.py::test_a_list_that_lacks_it_is_checked_by_id",
    ),
    Mutant(
        "strands the waits of a task that is cancelled",
        "_watch.py",
        (
            "            # This waiter may have been cancelled just when leadership was handed to it.\n"
            "            self._hand_over()"
        ),
        "",
        "test_watch.py::test_cancelling_leader_and_successor_at_once_strands_nobody",
    ),
    Mutant(
        "asks a service that is busy before the time that it asks for",
        "_watch.py",
        "min(asked or 0.0, _MAX_RETRY_AFTER),",
        "0.0,",
        "test_watch.py::test_retry_after_is_honoured_also_by_newcomers",
    ),
    Mutant(
        "waits longer than it may for a service that is away",
        "_watch.py",
        "now - self.failing_since > patience:",
        "now - self.failing_since > 2 * patience:",
        "test_watch.py::test_an_outage_without_end_ends_the_wait",
    ),
    Mutant(
        "waits until its time is up for what was gone from the first",
        "_waiting.py",
        "            has_reading = subscription.has_reading = False\n",
        "            pass\n",
        "test_lease.py::test_what_has_vanished_just_after_its_start_is_given_up_when_things_have_settled",
    ),
    Mutant(
        "believes bad news of what it has just started",
        "_waiting.py",
        "    if not settled:\n        return Verdict.WAIT\n",
        "",
        "test_lease.py::test_what_was_just_started_may_not_be_shown_yet",
    ),
    # Sweep and owners
    Mutant(
        "sweeps what a living process answers for",
        "_journal.py",
        "        journal = take(path)\n",
        "        journal = JournalFile(path, os.open(path, _FLAGS))\n",
        "test_sweep.py::test_what_a_living_process_answers_for_is_not_touched",
    ),
    Mutant(
        "sweeps what belongs to other credentials",
        "_sweep.py",
        "            if entry.account != keeper.account:\n",
        "            if False:\n",
        "test_sweep.py::test_other_credentials_leave_it_alone",
    ),
    Mutant(
        "sweeps what was acquired before its time is up",
        "_sweep.py",
        "            elif entry.is_left(now):\n",
        "            elif True:\n",
        "test_acquire.py::test_what_was_acquired_for_a_time_is_swept_after_it",
    ),
    Mutant(
        "sweeps when it was only to say what there is",
        "_sweep.py",
        "        if dry_run:\n",
        "        if False:\n",
        "test_sweep.py::test_a_created_instance_is_released_and_the_journal_removed",
    ),
    Mutant(
        "removes a journal that it could not settle",
        "_sweep.py",
        "            if book.entries:\n                journal.close()",
        "            if False:\n                journal.close()",
        "test_sweep.py::test_a_service_that_is_down_leaves_it_for_the_next_time",
    ),
    Mutant(
        "deletes what was only to be stopped",
        "_finishing.py",
        "goal=Goal.STOPPED if entry.goal == Goal.STOPPED.value else Goal.GONE,",
        "goal=Goal.GONE,",
        "test_sweep.py::test_what_only_was_to_be_stopped_is_only_stopped",
    ),
    Mutant(
        "sweeps what a living process may just be starting",
        "_finishing.py",
        (
            "    if any(start.fits(instance) for start in others.starting + others.unanswered):\n"
            "        return False\n"
        ),
        "",
        "test_sweep.py::test_an_instance_that_a_living_process_may_just_be_starting_is_left",
    ),
    Mutant(
        "sweeps what was started long after a crash",
        "_finishing.py",
        "_LATEST, _EARLIEST = 3600.0, 300.0",
        "_LATEST, _EARLIEST = 1e12, 1e12",
        "test_sweep.py::test_what_was_started_long_after_the_crash_is_somebody_elses",
    ),
    Mutant(
        "gives one instance to two of the dead",
        "_finishing.py",
        "                claimed.add(instance_id)\n",
        "",
        "test_recovery.py::test_what_is_released_for_one_start_of_the_dead_is_not_taken_for_that_of_another",
    ),
    Mutant(
        "closes a start of the dead before its instance can appear",
        "_finishing.py",
        "            elif not is_over:\n                continue\n",
        "",
        "test_sweep.py::test_an_intent_without_an_instance_is_waited_for_before_it_is_closed",
    ),
    Mutant(
        "takes one reading for the end of what was acquired",
        "_finishing.py",
        "= 300.0, 30.0, 2",
        "= 300.0, 30.0, 1",
        "test_finishing.py::test_what_only_seems_to_be_gone_is_kept",
    ),
    Mutant(
        "takes the reaper of a dead owner for the owner",
        "_owners.py",
        "    is_living = is_living and not book.is_orphaned\n",
        "",
        "test_owners.py::test_the_living_and_the_dead",
    ),
    Mutant(
        "takes the dead for the living",
        "_owners.py",
        "is_living = is_owned(path) if named else None",
        "is_living = True if named else None",
        "test_owners.py::test_the_living_and_the_dead",
    ),
    # Batches
    Mutant(
        "answers under another custom_id",
        "_batch/_format.py",
        "return Request(number, custom_id, ",
        "return Request(number, str(number), ",
        "test_batch_files.py::TestRequests::test_a_request_is_read",
    ),
    Mutant(
        "counts answers that are not on the disk",
        "_batch/_output.py",
        "                os.fsync(self._fd)\n                if self._is_new",
        "                if self._is_new",
        "test_batch_files.py::TestOutput::test_every_line_is_on_the_disk_when_it_is_counted",
    ),
    Mutant(
        "asks again what is answered",
        "_batch/_work.py",
        "if not line.isspace() and not is_done(self._done, number):",
        "if not line.isspace():",
        "test_batch.py::test_a_run_goes_on_where_the_last_one_stopped",
    ),
    Mutant(
        "asks for as much after a refusal as before",
        "_limit.py",
        "            self._upward = False\n            self._hold(now, int(self._value * _LESS))",
        "            self._upward = False",
        "test_limit.py::test_a_server_that_refuses_is_asked_for_less",
    ),
    Mutant(
        "gives up an endpoint that is away ten times too late",
        "_batch/_health.py",
        "\nPATIENCE = 180.0",
        "\nPATIENCE = 1800.0",
        "test_batch_crew.py::TestOutages::test_for_good_it_is_given_up",
    ),
    Mutant(
        "asks an endpoint that is away for everything that is left",
        "_batch/_crew.py",
        "return self._limit.value if self._health.doubt_since is None else 0",
        "return self._limit.value",
        "test_batch.py::TestFailures::test_an_outage_is_nobodys_fault",
    ),
    Mutant(
        "goes on with the output of another input",
        "_batch/_index.py",
        "if found is None or found[0] != request:",
        "if found is None:",
        "test_batch_files.py::TestSurvey::test_the_output_of_the_same_ids_that_asked_otherwise",
    ),
    Mutant(
        "writes an output that another process writes",
        "_batch/_output.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "test_batch_files.py::TestOutput::test_two_processes_cannot_write_one_file",
    ),
    Mutant(
        "leaves a torn line in an output",
        "_batch/_output.py",
        "            if os.fstat(self._fd).st_size > end:",
        "            if False:",
        "test_batch_files.py::TestSurvey::test_a_torn_tail_is_cut_off",
    ),
    Mutant(
        "leaves half a line in an output when the disk is full",
        "_batch/_output.py",
        "os.ftruncate(self._fd, begin)",
        "os.fstat(self._fd)",
        "test_batch_files.py::TestOutput::test_a_full_disk_leaves_whole_lines",
    ),
    Mutant(
        "loses answers when a batch is cancelled",
        "_batch/_run.py",
        "        finally:\n            await self._flush(sink)",
        "        finally:\n            pass",
        "test_batch.py::TestCancellation::test_what_was_answered_is_written_first",
    ),
    Mutant(
        "loses a request with the instance that it was sent to",
        "_batch/_crew.py",
        "            self._work.give_back(request)\n            raise",
        "            raise",
        "test_batch_crew.py::test_what_is_under_way_when_an_instance_is_lost_is_asked_of_another",
    ),
    Mutant(
        "blames requests for an endpoint that is away",
        "_batch/_crew.py",
        "is_to_blame = request.is_own_fault is not None and request.is_own_fault()",
        "is_to_blame = True",
        "test_batch.py::TestFailures::test_few_requests_are_not_to_blame_for_an_endpoint_that_is_away",
    ),
    # What others may break
    Mutant(
        "lets telemetry that raises end a lease",
        "_telemetry.py",
        "            self._observer.failed(call)\n",
        "            raise error\n",
        "test_telemetry.py::test_telemetry_that_always_raises_changes_nothing",
    ),
    Mutant(
        "lets telemetry that raises end a request",
        "_telemetry.py",
        '            self.failed("retry")\n',
        "            raise\n",
        "test_telemetry.py::test_telemetry_that_always_raises_changes_nothing",
    ),
    Mutant(
        "swallows a signal that hits telemetry",
        "_telemetry.py",
        "            self.interruption = error\n        else:",
        "            pass\n        else:",
        "test_telemetry.py::test_a_signal_that_hits_telemetry_ends_the_program_after_the_release",
    ),
    Mutant(
        "has an emulator that shares code with the client",
        "emulator/_machine.py",
        "import math\n",
        "import math\n\nfrom cortecs_async import _matching as _matching\n",
        "test_layers.py::test_the_package_keeps_its_layers",
    ),
    Mutant(
        "binds itself to an HTTP library in another module",
        "_slots.py",
        "import anyio\n",
        "import anyio\nimport httpx as httpx\n",
        "test_layers.py::test_the_package_keeps_its_layers",
    ),
]


class Outcome(NamedTuple):
    """What a test says.

    Attributes:
        code: pytest's exit code; None when it had to be ended.
        seconds: How long that took.
        output: What it has written.
    """

    code: int | None
    seconds: float
    output: str


class Copy:
    """A copy of the package and its tests, which takes the place of what is installed.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # With nothing of the environment's that could lead elsewhere.
        self._env = {**os.environ, "PYTHONPATH": str(folder)}
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        # By its date and size alone, Python could take a file for the one before the change.
        mode = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(folder / PACKAGE, quiet=1, invalidation_mode=mode)
        # In the way in which tests start programs.
        program = f"import {PACKAGE}; print({PACKAGE}.__file__)"
        found = subprocess.run(
            [sys.executable, "-P", "-c", program], env=self._env, capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_relative_to(folder):
            raise RuntimeError(f"not the copy is imported, but {found}")

    def run(self, tests: Sequence[str], patience: float, *options: str) -> Outcome:
        """Runs tests."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", TIERS, *options]
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [*command, *(f"tests/{test}" for test in tests)],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            code: int | None = None
            try:
                code = process.wait(patience)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if code is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(0)
            return Outcome(code, time.monotonic() - began, output.read().decode(errors="replace"))

    def run_mutated(self, mutant: Mutant) -> Outcome:
        """Runs the test of a mutant with it."""
        path = self._folder / PACKAGE / mutant.file
        source = path.read_text(encoding="utf-8")
        path.write_text(mutant.applied(source), encoding="utf-8")
        try:
            return self.run([mutant.test], PATIENCE, "-x")
        finally:
            path.write_text(source, encoding="utf-8")


def verdict(mutant: Mutant, outcome: Outcome) -> str:
    """What is wrong; empty when the mutant is found out."""
    if outcome.code == FAILED or (outcome.code is None and mutant.hangs):
        return ""
    if outcome.code == PASSED:
        return "SURVIVES"
    said = "comes to no end" if outcome.code is None else f"ends with {outcome.code}"
    return f"ERROR: the test {said}\n{outcome.output}"


def main(words: Sequence[str]) -> int:
    """Runs the mutants with one of these words in the name; 0 when all are found out."""
    chosen = [
        each for each in MUTANTS if not words or any(word.lower() in each.name.lower() for word in words)
    ]
    if not chosen:
        print(f"no mutant has {' or '.join(words)} in its name")
        return 2
    workers = min(os.cpu_count() or 1, len(chosen))
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, ThreadPoolExecutor(workers) as pool:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for number in range(workers):
            (folder := Path(scratch).resolve() / str(number)).mkdir()
            copies.put(Copy(folder))

        def with_copy(work: Callable[[Copy], Outcome]) -> Outcome:
            copy = copies.get()
            try:
                return work(copy)
            finally:
                copies.put(copy)

        tests = sorted({each.test for each in chosen})
        # None is empty: without the name of a test, pytest would run them all.
        shares = [tests[number::workers] for number in range(min(workers, len(tests)))]
        before = pool.map(lambda share: with_copy(lambda copy: copy.run(share, LONG_PATIENCE)), shares)
        bad = [outcome for outcome in before if outcome.code != PASSED]
        if bad:
            print(*(outcome.output for outcome in bad), sep="\n")
            print("without any mutant there are tests that do not pass")
            return 1
        print(f"{len(tests)} tests pass without a mutant; {len(chosen)} mutants:", flush=True)
        outcomes = pool.map(lambda each: with_copy(lambda copy: copy.run_mutated(each)), chosen)
        wrong: list[str] = []
        for mutant, outcome in zip(chosen, outcomes, strict=True):
            problem = verdict(mutant, outcome)
            print(f"{mutant.name} | {mutant.test} | {outcome.seconds:.1f}", problem, flush=True)
            wrong += [mutant.name] if problem else []
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} mutants are found out")
    for name in wrong:
        print(f"not found out: a client that {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
