"""Mutants: each makes one change to the package, and names a test that must fail with it.

`python tests/mutants.py` applies each mutant to a copy of the package and runs its test.
`python tests/mutants.py LEASE JOURNAL` does so for the mutants with one of these words in their names.

All of the tests are in `tests` or `proofs`. If you remove tests from these tiers, the mutants show whether
the tiers still detect the same mistakes.
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

# The tiers whose tests may detect a mutant: the default tier and the proofs, including proofs that use
# sockets.
TIERS = "(proofs or not (sockets or oracle)) and not nightly"

# Timeouts in seconds: for one test with a mutant, and for a worker's share of the tests without mutants.
TIMEOUT, LONG_TIMEOUT = 120.0, 900.0

# Exit codes of pytest: https://docs.pytest.org/en/stable/reference/exit-codes.html
PASSED, FAILED = 0, 1


class Mutant(NamedTuple):
    """A client that does one thing wrong.

    Attributes:
        name: Completes the sentence "a client that ...".
        file: The file to change, relative to the package.
        old: The text to replace, which occurs once.
        new: The replacement.
        test: The test that then fails, relative to `tests`.
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    def applied(self, source: str) -> str:
        """Return the source with the text replaced.

        Raises:
            ValueError: if the text does not occur exactly once.
        """
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {source.count(self.old)} times, not once")
        return source.replace(self.old, self.new)


MUTANTS = [
    # The journal
    Mutant(
        "does not sync its promises to disk",
        "_recovery/journal.py",
        "            if durable:\n",
        "            if False:\n",
        "recovery/test_mutations.py::test_a_durable_record_is_synced_when_it_is_appended",
    ),
    Mutant(
        "does not sync the promise of a start to disk",
        "_recovery/store.py",
        '_DURABLE_KINDS = frozenset({"INTENT", ',
        "_DURABLE_KINDS = frozenset({",
        "recovery/test_mutations.py::test_a_promise_is_durable_and_its_end_is_not",
    ),
    Mutant(
        "leaves a partial line in its journal when the disk is full",
        "_recovery/journal.py",
        "os.ftruncate(self._fd, size)",
        "os.fstat(self._fd)",
        "recovery/test_journal.py::TestFile::test_a_full_disk_leaves_no_torn_line",
    ),
    Mutant(
        "takes only a shared lock on its journal",
        "_recovery/locks.py",
        "kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX",
        "kind = fcntl.LOCK_SH",
        "recovery/test_journal.py::TestFile::test_it_cannot_be_locked_while_its_owner_lives",
    ),
    Mutant(
        "does not lock its journal",
        "_recovery/journal.py",
        "            lock(fd)\n            _write(fd, data)",
        "            _write(fd, data)",
        "recovery/test_journal.py::TestFile::test_it_cannot_be_locked_while_its_owner_lives",
    ),
    Mutant(
        "renames a new journal into place before it is synced",
        "_recovery/journal.py",
        "            os.fsync(fd)\n            folder.rename",
        "            folder.rename",
        "recovery/test_mutations.py::test_a_new_journal_is_synced_before_it_is_renamed_and_its_directory_after",
    ),
    Mutant(
        "does not sync the directory of its journal",
        "_recovery/journal.py",
        "os.fsync(folder.fileno())",
        "os.fstat(folder.fileno())",
        "recovery/test_mutations.py::test_a_new_journal_is_synced_before_it_is_renamed_and_its_directory_after",
    ),
    Mutant(
        "takes over a journal that was replaced while it was opened",
        "_recovery/journal.py",
        "    if _is_at(fd, path):\n        return journal",
        "    if True:\n        return journal",
        "recovery/test_journal.py::TestFile::test_a_journal_that_was_replaced_while_it_was_opened_is_not_locked",
    ),
    Mutant(
        "keeps writing to a deleted journal",
        "_recovery/journal.py",
        "return os.fstat(self._fd).st_nlink > 0",
        "return True",
        "recovery/test_store.py::test_a_journal_that_was_deleted_is_written_again",
    ),
    Mutant(
        "makes its journal readable by other users",
        "_state_directory.py",
        "os.fchmod(fd, 0o600)",
        "os.fchmod(fd, 0o644)",
        "recovery/test_journal.py::TestFile::test_only_its_user_can_read_it",
    ),
    Mutant(
        "mistakes a reader of a journal for its owner",
        "_recovery/locks.py",
        "for _ in range(_LOCK_RETRIES):",
        "for _ in range(0):",
        "recovery/test_owners.py::TestSharedLocks::test_a_sweep_waits_for_a_shared_lock",
    ),
    Mutant(
        "sends a start before its promise is in the journal",
        "_recovery/promises.py",
        "            await self.flush(strict=True)\n        except GeneratorExit:\n",
        (
            "            for record in self.store._queue:\n"
            "                self.store.state.apply(record)\n"
            "        except GeneratorExit:\n"
        ),
        "recovery/test_store.py::test_every_step_of_a_lease_is_in_the_journal_before_it_counts",
    ),
    Mutant(
        "does not compact its journal",
        "_recovery/store.py",
        "elif self.journal_problem is not None or self._is_oversized(self._journal):",
        "elif self.journal_problem is not None:",
        "recovery/test_store.py::test_the_journal_does_not_grow_without_bound",
    ),
    Mutant(
        "loses the records that did not fit on a full disk",
        "_recovery/store.py",
        "elif self.journal_problem is not None or self._is_oversized(self._journal):",
        "elif self._is_oversized(self._journal):",
        "recovery/test_store.py::test_records_that_did_not_fit_on_a_full_disk_are_written_later",
    ),
    Mutant(
        "removes its journal while it still has promises",
        "_recovery/store.py",
        "            if self.state.promises:\n                if self._journal is not None:",
        "            if False:\n                if self._journal is not None:",
        "lease/test_acquire.py::test_what_was_acquired_for_a_time_is_swept_after_it",
    ),
    Mutant(
        "starts without a required journal",
        "_recovery/promises.py",
        'if self._journal == "required" and problem is not None:',
        "if False:",
        "recovery/test_store.py::test_without_a_disk_a_required_journal_is_an_error",
    ),
    Mutant(
        "takes an error without a text for a working journal",
        "_recovery/promises.py",
        'if self._journal == "required" and problem is not None:',
        'if self._journal == "required" and problem:',
        "recovery/test_store.py::test_an_error_without_a_text_is_a_missing_journal_all_the_same",
    ),
    Mutant(
        "starts without a required reaper",
        "_recovery/promises.py",
        'if self._guard == "required" and problem is not None:',
        "if False:",
        "recovery/test_mutations.py::test_nothing_starts_without_a_required_reaper",
    ),
    # Journal records
    Mutant(
        "reads a torn line of a journal as a record",
        "_recovery/records.py",
        'data.split(b"\\n")[:-1]',
        'data.split(b"\\n")',
        "recovery/test_journal.py::TestLines::test_a_torn_last_line_is_left_out_at_every_length",
    ),
    Mutant(
        "stops reading a journal at the first invalid line",
        "_recovery/records.py",
        "    except (ValueError, RecursionError):\n        return None",
        "    except (ValueError, RecursionError):\n        raise",
        "recovery/test_journal.py::TestLines::test_unreadable_lines_are_skipped",
    ),
    Mutant(
        "records no promise for a start until it is answered",
        "_recovery/records.py",
        "else int(tag)\n    state.promises[promise.key] = promise",
        "else int(tag)",
        "recovery/test_journal.py::TestJournalState::test_an_intent_is_open_until_it_is_gone",
    ),
    Mutant(
        "releases an acquired instance before its deadline",
        "_recovery/records.py",
        "return self.expires_at if self.held else 0.0",
        "return 0.0",
        "recovery/test_journal.py::TestJournalState::test_an_instance_handed_over_with_a_deadline_is_due_from_then_on",
    ),
    Mutant(
        "releases the candidates of an ambiguous start",
        "_recovery/records.py",
        "        if self.candidates:\n            return None",
        "        if False:\n            return None",
        "recovery/test_journal.py::TestJournalState::test_an_ambiguous_promise_is_never_due",
    ),
    Mutant(
        "forgets the baselines of pending starts",
        "_recovery/records.py",
        "unused = [name for name in state.baselines if name not in used]",
        "unused = list(state.baselines)",
        "recovery/test_mutations.py::test_a_baseline_is_kept_as_long_as_a_start_needs_it",
    ),
    Mutant(
        "loses the mark of an unanswered start when it rewrites its journal",
        "_recovery/records.py",
        "    if promise.unanswered:\n",
        "    if False:\n",
        "recovery/test_mutations.py::test_a_snapshot_marks_an_unanswered_start",
    ),
    # Owners of instances
    Mutant(
        "starts without a baseline",
        "_lease/starter.py",
        "listing = await self._baseline()",
        "listing = _Listing((), anyio.current_time())",
        "lease/test_starter.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "starts with a stale baseline",
        "_lease/starter.py",
        "_BASELINE_MAX_AGE = 1.0",
        "_BASELINE_MAX_AGE = 1000.0",
        "lease/test_starter.py::test_every_attempt_of_a_start_knows_what_exists_just_before_it",
    ),
    Mutant(
        "matches the same instances in another order for each start",
        "_api/matching.py",
        "sorted(candidates, key=lambda each: each.instance_id)",
        "candidates",
        "lease/test_starter.py::TestJudging::test_nothing_is_given_twice_or_to_whom_it_does_not_fit",
    ),
    Mutant(
        "adopts an instance that existed before its start",
        "_api/matching.py",
        "return self.baseline is None or instance.instance_id not in self.baseline",
        "return True",
        "lease/test_starter.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "adopts one of several matching instances",
        "_api/matching.py",
        "    return assignment if all(assign(instance, set()) for instance in instances) else None",
        "    for instance in instances:\n        assign(instance, set())\n    return assignment",
        "lease/test_starter.py::TestJudging::test_two_for_one_cannot_be_told_apart",
    ),
    Mutant(
        "matches instances to starts first come, first served",
        "_api/matching.py",
        "if start not in assignment or assign(assignment[start], tried):",
        "if start not in assignment:",
        "lease/test_starter.py::TestJudging::test_who_could_have_two_takes_the_one_that_the_other_cannot",
    ),
    Mutant(
        "adopts an instance that another process has started",
        "_recovery/claims.py",
        'if each.instance_id not in self.ids and each.status.lower() != "deleted"',
        'if each.status.lower() != "deleted"',
        "lease/test_starter.py::test_a_lost_start_does_not_take_what_another_process_starts_meanwhile",
    ),
    Mutant(
        "adopts an instance that another call of the client has started",
        "_api/matching.py",
        "return [each for each in instances if each.instance_id not in self.ids]",
        "return list(instances)",
        "lease/test_starter.py::test_a_plain_start_of_the_same_client_is_not_taken_for_a_lost_one",
    ),
    Mutant(
        "adopts an instance with other hardware",
        "_api/matching.py",
        "        and _agrees(actual.hardware_type_id, sent.hardware_type_id)\n",
        "",
        "lease/test_starter.py::TestJudging::test_what_was_left_out_fits_anything",
    ),
    Mutant(
        "adopts an instance while another of its starts is pending",
        "_api/matching.py",
        "return None if self._in_progress[model_id] else self._ended",
        "return self._ended",
        "recovery/test_mutations.py::test_the_instance_of_a_pending_plain_start_is_not_adopted",
    ),
    Mutant(
        "starts while an equal start is unresolved",
        "_lease/starter.py",
        "while self._claims.unresolved.get(model_id):  # noqa: ASYNC110  (rare, and bounded)\n"
        "                await anyio.sleep(self.settings.poll.min_interval)\n"
        "            await self._slots.acquire(Priority.CALL)\n"
        "            if not self._claims.unresolved.get(model_id):\n",
        "await self._slots.acquire(Priority.CALL)\n            if True:\n",
        "recovery/test_mutations.py::test_no_lease_starts_while_an_equal_start_is_unresolved",
    ),
    Mutant(
        "does not look for the instance of an unanswered start",
        "_lease/starter.py",
        "if start.state is not StartState.UNKNOWN:",
        "if True:",
        "lease/test_starter.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "assumes at once that an unanswered start had no effect",
        "_lease/start_search.py",
        "is_over = view.began >= over_at\n",
        "is_over = True\n",
        "lease/test_starter.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "decides at the release from a single list",
        "_lease/start_search.py",
        "            return agreed(outcome, recent, seconds=seconds)\n",
        "            return outcome\n",
        "lease/test_starter.py::test_the_time_to_start_is_up_and_one_list_more_does_not_decide",
    ),
    Mutant(
        "trusts lists although one of several replicas disagrees",
        "_api/listing.py",
        "_MIN_LISTS, _MAX_LAG = 4, 60.0",
        "_MIN_LISTS, _MAX_LAG = 0, 60.0",
        "api/test_listing.py::test_lists_agree_after_several_in_a_row",
    ),
    Mutant(
        "does not require that lists agree on an instance",
        "_api/listing.py",
        "            if listed.last < previous:\n                listed.since, listed.count = now, 0\n",
        "",
        "lease/test_starter.py::test_a_replica_that_still_shows_a_deleted_instance_delays_the_decision",
    ),
    Mutant(
        "does not wait for lists to agree after an outage",
        "_lease/start_search.py",
        "                if is_over and isinstance(outcome, (Ambiguous, Contested)):\n",
        '                outcome = Contested(("?",)) if isinstance(outcome, Disagreement) else outcome\n'
        "                if is_over and isinstance(outcome, (Ambiguous, Contested)):\n",
        "lease/test_starter.py::test_when_lists_fail_for_long_the_search_waits_until_they_agree",
    ),
    Mutant(
        "gives the only instance to a start that could have created another",
        "_api/matching.py",
        "key=lambda each: (each.generality, each.order)",
        "key=lambda each: each.order",
        "lease/test_starter.py::TestJudging::test_of_two_starts_the_one_with_fewer_defaults_comes_first",
    ),
    Mutant(
        "takes an instance that it has stopped for gone, although nothing can have deleted it",
        "_api/teardown.py",
        "agree_at = max(agree_at, self.stopped_at + _SINCE_STOP)",
        "pass",
        "api/test_teardown.py::test_one_that_stops_slowly_is_not_gone_because_no_reading_shows_it",
    ),
    Mutant(
        "does not repeat a delete that may not have arrived",
        "_api/teardown.py",
        "is_lost = self.may_be_deleted and self.stopped_at is not None",
        "is_lost = False",
        "api/test_teardown.py::test_a_delete_that_never_arrived_is_sent_again_although_nothing_shows_the_instance",
    ),
    Mutant(
        "takes an instance whose description it cannot read for missing",
        "_api/polling.py",
        "if reading is None and unreadable is not None:",
        "if False:",
        "api/test_teardown.py::test_a_response_that_cannot_be_read_does_not_count_as_missing",
    ),
    Mutant(
        "forgets the instance of an earlier start when its release is interrupted",
        "_lease/release.py",
        "                if key not in self._late:\n",
        "                if True:\n",
        "lease/test_starter.py::test_an_interrupted_release_goes_on_with_the_instance_of_an_earlier_start",
    ),
    Mutant(
        "hands over an instance whose lifetime has ended",
        "_lease/provisioning.py",
        "    if state.age >= state.lifetime:\n        raise",
        "    if False:\n        raise",
        "lease/test_acquire.py::test_an_instance_that_is_found_after_its_lifetime_is_not_handed_over",
    ),
    Mutant(
        "takes any response for an accepted delete",
        "_api/wire.py",
        "    if data is not None and not is_documented:\n",
        "    if False:\n",
        "api/test_endpoints.py::TestEach::test_a_delete_that_another_may_have_answered_is_an_error",
    ),
    Mutant(
        "does not wait until lists agree on the instance of an earlier start",
        "_lease/start_search.py",
        "            if not isinstance(outcome, Disagreement):\n",
        "            if True:\n",
        "recovery/test_evidence.py::test_a_lease_that_started_again_does_not_leave_its_first_instance",
    ),
    Mutant(
        "has a sweep that does not notice what a reaper finds out",
        "_recovery/sweep.py",
        "catch_up(each.state, each.path, keys)",
        "pass",
        "recovery/test_search.py::test_a_sweep_notices_what_a_reaper_without_the_lock_has_done",
    ),
    Mutant(
        "does not notice that another process has found an instance",
        "_recovery/journal.py",
        "elif state.promises[key].instance_id is None and (found := still_open[key].instance_id):",
        "elif found := None:",
        "recovery/test_search.py::test_a_sweep_notices_what_a_reaper_without_the_lock_has_done",
    ),
    Mutant(
        "has a reaper that does not say that it takes over what it has begun",
        "_recovery/reaper.py",
        "if self.state.promises:",
        "if pending:",
        "recovery/test_mutations.py::test_a_reaper_records_its_takeover_of_what_it_has_begun",
    ),
    Mutant(
        "adopts an instance that another process may be starting",
        "_api/matching.py",
        "if found is not None and any(fits(other, each) for other in in_progress for each in candidates):",
        "if False:",
        "recovery/test_mutations.py::test_an_instance_that_another_process_is_starting_is_not_adopted",
    ),
    Mutant(
        "has a reaper that takes the instance of an equal start of a lease",
        "_api/matching.py",
        "return evolve(self, order=(True, *self.order[1:]))",
        "return self",
        "recovery/test_mutations.py::test_a_lease_comes_before_the_reaper_of_an_equal_lost_start",
    ),
    Mutant(
        "ignores the unresolved starts of other processes",
        "_recovery/claims.py",
        "claims.unresolved.append(unresolved_start_of(state, promise))",
        "pass",
        "lease/test_starter.py::test_two_processes_that_lose_equal_starts_at_once_share_what_they_find",
    ),
    Mutant(
        "ignores the instances of other processes",
        "_recovery/claims.py",
        "claims.ids.add(promise.instance_id)",
        "pass",
        "lease/test_starter.py::test_another_client_id_of_the_same_account_counts_as_well",
    ),
    Mutant(
        "adopts an ambiguous candidate of another process",
        "_recovery/claims.py",
        "claims.ambiguous_ids.update(promise.candidates)",
        "pass",
        "recovery/test_mutations.py::test_nobody_takes_the_ambiguous_candidates_of_another_process",
    ),
    Mutant(
        "does not raise AmbiguousStartError",
        "_lease/start_search.py",
        "                    raise error\n",
        "",
        "lease/test_starter.py::test_an_equal_instance_of_another_user_makes_it_ambiguous_and_is_not_touched",
    ),
    Mutant(
        "releases a lease without resolving its start",
        "_lease/release.py",
        "await self.services.starter.search.resolve(start, to_release=True)",
        "pass",
        "lease/test_starter.py::test_cancelled_while_it_is_looked_for_it_is_found_and_released",
    ),
    Mutant(
        "reuses an instance that it is releasing",
        "_api/instances.py",
        " and each.instance_id not in self.releasing",
        "",
        "lease/test_hardening.py::test_reuse_does_not_take_what_is_being_released",
    ),
    # Where keys are sent
    Mutant(
        "sends keys to any URL that the service returns",
        "_lease/provisioning.py",
        "    _check_base_url(state)\n",
        "    state.base_url = state.instance.base_url or ''\n",
        "lease/test_endpoint_urls.py::test_a_lease_with_an_unsafe_url_is_an_error_and_released",
    ),
    Mutant(
        "unpickles a handle without a check",
        "_lease/endpoint.py",
        "    return InstanceHandle(**arguments)\n",
        "    handle = object.__new__(InstanceHandle)\n"
        "    [object.__setattr__(handle, name, value) for name, value in arguments.items()]\n"
        "    return handle\n",
        "lease/test_endpoint_urls.py::test_the_types_of_a_handle_are_checked",
    ),
    # Another event loop
    Mutant(
        "waits in another event loop than its own",
        "_api/polling.py",
        "        self.loop.check()\n",
        "",
        "client/test_loops.py::test_each_call_raises_at_once",
    ),
    Mutant(
        "is closed by an attempt to enter it in another event loop",
        "_client/client.py",
        "        self._wiring.http.check_open()\n        try:\n",
        "        try:\n",
        "client/test_loops.py::test_each_call_raises_at_once",
    ),
    # Starts and restarts that hang
    Mutant(
        "waits for the response to a start that hangs, although its lease was cancelled",
        "_lease/start_state.py",
        "        self.on_sent()\n        return True\n",
        "        self.on_sent()\n        return False\n",
        "lease/test_hanging_start.py::test_its_instance_is_found_in_the_list",
    ),
    Mutant(
        "gives up a search before the request has ended",
        "_lease/start_state.py",
        "return self._visible_until if has_response else math.inf",
        "return self._visible_until",
        "lease/test_hanging_start.py::test_a_search_in_vain_waits_for_the_response",
    ),
    Mutant(
        "records another instance than that of the response",
        "_lease/start_search.py",
        "                    self._correct(start)\n",
        "",
        "lease/test_hanging_start.py::test_a_response_during_the_decision_counts",
    ),
    Mutant(
        "waits half a minute for each list of a search",
        "_http/timeouts.py",
        "FIRST_TIMEOUT = 3.0",
        "FIRST_TIMEOUT = 30.0",
        "lease/test_hanging_start.py::test_a_list_that_hangs_as_well_costs_seconds",
    ),
    Mutant(
        "reuses an instance that a cancelled lease is about to find",
        "_api/instances.py",
        "while self.claims.unresolved.get(args.model_id):",
        "while False:",
        "lease/test_hanging_start.py::test_ensure_does_not_return_it",
    ),
    Mutant(
        "lets a stop overtake a restart",
        "_lease/release.py",
        "            await self._end_restart()\n",
        "",
        "lease/test_hanging_start.py::test_a_restart_that_hangs_is_stopped_once_it_has_an_effect",
    ),
    Mutant(
        "stops an instance whose restart was rejected after a cancellation",
        "_lease/release.py",
        "if restart.is_refused() and (key",
        "if False and (key",
        "lease/test_hanging_start.py::test_a_restart_that_is_rejected_late_leaves_the_instance_alone",
    ),
    Mutant(
        "has one lock for ensure of all models",
        "_api/instances.py",
        "self.ensure_locks[args.model_id]",
        "self.ensure_locks['all']",
        "api/test_instances.py::test_ensures_of_different_models_do_not_wait_for_each_other",
    ),
    Mutant(
        "starts an instance for each of two concurrent ensure calls",
        "_api/instances.py",
        "        async with self.ensure_locks[args.model_id]:\n",
        "        if True:\n",
        "api/test_instances.py::test_concurrent_ensures_start_one_instance",
    ),
    # What cannot be read
    Mutant(
        "starts another instance in place of one that it cannot read",
        "_api/instances.py",
        "if found is None and instance_id in existing_ids(instances):",
        "if False:",
        "api/test_listing.py::test_ensure_does_not_replace_an_instance_that_became_unreadable",
    ),
    Mutant(
        "forgets the ids of the entries that it cannot read",
        "_api/listing.py",
        "frozenset(unreadable.union(each.instance_id for each in instances))",
        "frozenset(each.instance_id for each in instances)",
        "api/test_wire.py::TestUnreadableEntries::test_an_instance_among_others",
    ),
    Mutant(
        "logs an unreadable entry with every list",
        "_api/resources.py",
        "self._logged.add(key)",
        "pass",
        "api/test_listing.py::test_an_unreadable_instance_is_logged_once_per_client",
    ),
    Mutant(
        "reads a price in cents as a price in euros",
        "_api/prices.py",
        "value if _CENTS.isdisjoint(words) else value / 100",
        "value",
        "lease/test_pricing.py::TestArithmetic::test_prices_are_read_liberally_but_never_guessed",
    ),
    Mutant(
        "takes a price of zero for a price",
        "_api/prices.py",
        "return price or None",
        "return price",
        "lease/test_pricing.py::TestArithmetic::test_prices_are_read_liberally_but_never_guessed",
    ),
    Mutant(
        "reads the price list once for each lease",
        "_lease/pricing.py",
        "await self._reading.get()",
        "await self._read()",
        "lease/test_pricing.py::test_leases_read_the_price_list_once",
    ),
    Mutant(
        "counts hours by the price per minute",
        "_lease/pricing.py",
        'price.per_hour if args.billing_interval == "per_hour" else price.per_minute',
        '60 * price.per_minute if args.billing_interval == "per_hour" else price.per_minute',
        "lease/test_pricing.py::TestArithmetic::test_hourly_billing_counts_by_the_hourly_price",
    ),
    # The reaper
    Mutant(
        "has a reaper that dies on Ctrl-C or when the terminal closes",
        "_recovery/reaper.py",
        "signal.signal(number, signal.SIG_IGN)",
        "signal.signal(number, signal.SIG_DFL)",
        "recovery/test_crash.py::test_the_reaper_survives_ctrl_c_and_the_end_of_the_terminal",
    ),
    Mutant(
        "runs the reaper in the session of the program",
        "_recovery/reaper_process.py",
        "start_new_session=True,",
        "start_new_session=False,",
        "recovery/test_mutations.py::test_a_reaper_has_its_own_session_and_no_secrets_in_its_environment",
    ),
    Mutant(
        "has a reaper without a grace period",
        "_recovery/reaper.py",
        "GRACE = 5.0",
        "GRACE = 0.0",
        "recovery/test_mutations.py::test_a_living_parent_has_a_grace_period_after_the_deadline",
    ),
    Mutant(
        "has a reaper that does not release the expired instances of a blocked program",
        "_recovery/reaper.py",
        "        if due:\n            thread",
        "        if False:\n            thread",
        "recovery/test_store.py::TestReaper::test_it_releases_what_expired_though_its_parent_lives",
    ),
    Mutant(
        "has a reaper that releases the same instance twice",
        "_recovery/reaper.py",
        "            self._workers.update(dict.fromkeys((promise.key for promise in due), thread))\n",
        "",
        "recovery/test_mutations.py::test_a_reaper_does_not_begin_twice_with_the_same_instance",
    ),
    Mutant(
        "has a reaper that does nothing when its parent dies",
        "_recovery/reaper.py",
        "        if pending:\n",
        "        if False:\n",
        "recovery/test_store.py::TestReaper::test_after_its_parents_death_it_keeps_all_promises_and_removes_the_journal",
    ),
    Mutant(
        "has a reaper that removes a journal with promises in it",
        "_recovery/reaper.py",
        "locked.retire(self.state)",
        "locked.remove()",
        "recovery/test_store.py::TestReaper::test_promises_that_it_cannot_keep_stay_in_the_journal",
    ),
    Mutant(
        "has a reaper that does not record the death of its parent",
        "_recovery/reaper.py",
        'self._report({"kind": "ORPHANED"})',
        "pass",
        "recovery/test_mutations.py::test_a_reaper_records_its_takeover_and_its_releases_in_the_journal",
    ),
    Mutant(
        "has a reaper that keeps the lock although its credentials are refused",
        "_recovery/recover.py",
        "                unlock_journal()\n",
        "",
        "recovery/test_refusal.py::test_a_reaper_whose_secret_was_rotated_leaves_the_instance_to_a_sweep_with_the_new_one",
    ),
    Mutant(
        "has a reaper that does not try refused credentials again",
        "_recovery/recover.py",
        "await anyio.sleep(_REFUSED_PAUSE)",
        "return",
        "recovery/test_refusal.py::test_a_reaper_tries_refused_credentials_again_but_rarely",
    ),
    Mutant(
        "has a reaper that tries refused credentials again while its owner may have new ones",
        "_recovery/recover.py",
        "                if not state.is_orphaned:\n                    return\n",
        "",
        "recovery/test_refusal.py::test_while_its_owner_lives_a_reaper_waits_for_new_credentials",
    ),
    Mutant(
        "has a reaper that believes a single refusal",
        "_recovery/refusal.py",
        "if self._count >= _MIN_REFUSALS and now - self._since >= _MIN_REFUSED_TIME:",
        "if True:",
        "recovery/test_refusal.py::test_refusals_with_a_success_in_between_are_not_added_up",
    ),
    Mutant(
        "has a reaper that adds up refusals with a success in between",
        "_recovery/refusal.py",
        "        self._count = 0\n        return reply",
        "        return reply",
        "recovery/test_refusal.py::test_refusals_with_a_success_in_between_are_not_added_up",
    ),
    Mutant(
        "has a reaper that takes the page of a proxy for a refusal",
        "_recovery/refusal.py",
        "if not error.has_json_body:",
        "if False:",
        "recovery/test_refusal.py::test_what_is_no_refusal_keeps_the_reaper_at_work",
    ),
    Mutant(
        "has a suspended reaper that does not notice what a forced sweep has done",
        "_api/teardown.py",
        " and self.is_wanted():",
        ":",
        "recovery/test_refusal.py::test_a_suspended_reaper_does_not_stop_what_its_user_restarted_after_a_sweep",
    ),
    Mutant(
        "has a reaper that does not unlock the journal",
        "_recovery/reaper.py",
        "                self._locked.close()\n",
        "",
        "recovery/test_refusal.py::test_a_reaper_unlocks_the_journal_and_removes_it_only_if_nothing_is_left",
    ),
    Mutant(
        "has a reaper that acknowledges messages it did not understand",
        "_recovery/reaper.py",
        "                    return self.state.apply(message)",
        "                    self.state.apply(message)",
        "recovery/test_store.py::TestReaper::test_it_acknowledges_only_what_it_understood",
    ),
    Mutant(
        "has a reaper that does not record its releases",
        "_recovery/reaper.py",
        "os.write(fd, encode([record]))",
        "pass",
        "recovery/test_mutations.py::test_a_reaper_records_its_takeover_and_its_releases_in_the_journal",
    ),
    Mutant(
        "has a reaper that does not wait for the instance of an unresolved start",
        "_recovery/search.py",
        "each: began + LATE_WINDOW - age_of(each.promise, self.wall_clock()) for",
        "each: began for",
        "recovery/test_mutations.py::test_the_reaper_looks_for_the_instance_of_a_lost_start_for_five_minutes",
    ),
    Mutant(
        "gives a lost start the instance of an equal start of the same dead process",
        "_recovery/recover.py",
        "claimed.add(pending.promise.instance_id)",
        "pass",
        "recovery/test_recover.py::test_the_instance_of_an_equal_start_is_not_taken_for_that_of_a_lost_start",
    ),
    Mutant(
        "gives a lost start the instance of an equal start that is not due",
        "_recovery/sweep.py",
        "due_keys = [{each.promise.key for each in due if each.state is state} for state in states]",
        "due_keys = [set(state.promises) for state in states]",
        "recovery/test_sweep.py::test_the_instance_of_an_equal_start_that_is_not_due_is_not_touched",
    ),
    Mutant(
        "passes its whole environment to the reaper",
        "_recovery/reaper_process.py",
        " if name in _ENVIRONMENT}",
        "}",
        "recovery/test_mutations.py::test_a_reaper_has_its_own_session_and_no_secrets_in_its_environment",
    ),
    Mutant(
        "relies on a reaper that does not answer",
        "_recovery/reaper_process.py",
        '        self.kill()\n        raise GuardError("the reaper did not respond")',
        "",
        "recovery/test_mutations.py::test_a_reaper_that_does_not_answer_is_killed",
    ),
    Mutant(
        "keeps the pipe to the reaper open in a forked child",
        "_recovery/reaper_process.py",
        "            os.dup2(devnull, process.stdin.fileno(), inheritable=False)\n",
        "",
        "recovery/test_crash.py::test_surviving_children_do_not_hide_the_death_of_their_parent",
    ),
    Mutant(
        "lets a forked child inherit the promises of its parent",
        "_recovery/store.py",
        'if hasattr(os, "register_at_fork"):\n    os.register_at_fork(',
        'if hasattr(os, "register_at_fork"):\n    dict(',
        "recovery/test_crash.py::test_surviving_children_do_not_hide_the_death_of_their_parent",
    ),
    Mutant(
        "does not send its credentials again in a forked child",
        "_recovery/promises.py",
        "        if self._joined_generation != self.store.generation:",
        "        if self._joined_generation is None:",
        "recovery/test_mutations.py::test_the_reaper_of_a_forked_child_is_told_its_credentials",
    ),
    Mutant(
        "does not replace a dead reaper",
        "_recovery/store.py",
        "if self._clients <= 0 or self._reaper.is_running or not self.state.promises:",
        "if True:",
        "recovery/test_mutations.py::test_a_replacement_reaper_is_told_everything_again",
    ),
    Mutant(
        "does not send the credentials to a replacement reaper",
        "_recovery/store.py",
        "*self._path_message(), *self._credential_records.values(), *state",
        "*self._path_message(), *state",
        "recovery/test_mutations.py::test_a_replacement_reaper_is_told_everything_again",
    ),
    Mutant(
        "does not send new credentials to the reaper",
        "_recovery/promises.py",
        "            self._put_credentials()\n            # The old ones",
        "            # The old ones",
        "recovery/test_mutations.py::test_the_reaper_is_told_new_credentials_at_once_and_no_repr_shows_them",
    ),
    Mutant(
        "does not send its promises to the reaper",
        "_recovery/store.py",
        "messages = [*path_message, *owner, *credential_records, *records]",
        "messages = [*path_message, *owner, *credential_records]",
        "recovery/test_mutations.py::test_the_reaper_is_told_of_a_start_before_it_is_sent_and_of_its_instance_after",
    ),
    Mutant(
        "shows credentials in the repr of messages to the reaper",
        "_recovery/promises.py",
        '"sealed": sealed}',
        '"sealed": sealed.reveal()}',
        "recovery/test_mutations.py::test_a_replacement_reaper_is_told_everything_again",
    ),
    Mutant(
        "starts without a required reaper that reaches the service",
        "_recovery/promises.py",
        'if self._guard == "required" and problem:',
        "if False:",
        "recovery/test_rehearsal.py::test_nothing_starts_without_a_required_reaper_that_reaches_the_service",
    ),
    Mutant(
        "refuses a start because the service was down when the reaper was armed",
        "_recovery/promises.py",
        "        self._put_credentials()\n        await self._off_loop",
        "        await self._off_loop",
        "recovery/test_rehearsal.py::test_a_reaper_that_reaches_the_service_at_the_second_time_is_as_good",
    ),
    Mutant(
        "waits as long for a reaper that is not required",
        "_recovery/promises.py",
        '        if self._guard != "required":\n            return await',
        "        if False:\n            return await",
        "recovery/test_rehearsal.py::test_a_reaper_that_is_not_required_delays_a_start_by_a_second_at_most",
    ),
    Mutant(
        "sends the reaper a relative path of certificates",
        "_environment.py",
        "return os.path.abspath(path)",
        "return path",
        "recovery/test_rehearsal.py::test_the_reaper_uses_what_its_client_read_although_both_have_moved_since",
    ),
    Mutant(
        "rehearses with a request",
        "_http/transport.py",
        "                raise _ConnectedError",
        "                return",
        "recovery/test_rehearsal.py::test_an_open_connection_is_enough_and_nothing_is_sent",
    ),
    Mutant(
        "changes the state of the reaper without its lock",
        "_recovery/reaper.py",
        "                with self._lock:\n                    return self.state.apply(message)",
        "                return self.state.apply(message)",
        "recovery/test_reaper.py::test_the_state_is_changed_and_iterated_only_under_the_lock",
    ),
    Mutant(
        "believes a reaper before its handshake",
        "_recovery/reaper_process.py",
        "return self._is_ready and self._process is not None",
        "return self._process is not None",
        "recovery/test_reaper.py::test_it_counts_as_running_only_after_the_handshake",
    ),
    Mutant(
        "gives up a promise whose thread failed",
        "_recovery/reaper.py",
        "                    self._workers.pop(promise.key)\n",
        "",
        "recovery/test_reaper.py::test_a_promise_whose_thread_failed_is_fulfilled_after_the_parents_death",
    ),
    Mutant(
        "lets a line of noise end the listener to the reaper",
        "_recovery/reaper_process.py",
        "with contextlib.suppress(KeyError, TypeError, ValueError):",
        "if True:",
        "recovery/test_reaper.py::test_noise_does_not_end_the_listener_and_death_is_told",
    ),
    Mutant(
        "deadlocks if the reaper is started with a fork",
        "_recovery/store.py",
        "_fork_lock = threading.RLock()\n\n",
        "_fork_lock = threading.Lock()\n\n",
        "recovery/test_reaper.py::test_a_reaper_may_be_started_by_a_fork_that_runs_python",
    ),
    Mutant(
        "lets the reaper's clock jump with the wall clock",
        "_aio/clock.py",
        "return boottime() + self._offset",
        "return time.time()",
        "recovery/test_reaper.py::test_the_reapers_clock_counts_suspended_time_and_ignores_that_the_wall_clock_is_set",
    ),
    # Release
    Mutant(
        "waits thirty seconds for a request that hangs",
        "_http/timeouts.py",
        "FIRST_TIMEOUT = 3.0",
        "FIRST_TIMEOUT = 30.0",
        "http/test_timeouts.py::test_the_reaper_is_done_within_ten_seconds_although_a_request_hangs",
    ),
    Mutant(
        "gives up on a service that is slow",
        "_http/timeouts.py",
        "needed = 2 * (timeout if is_timeout else seconds)",
        "needed = 2 * (0.0 if is_timeout else seconds)",
        "http/test_timeouts.py::test_each_timeout_doubles_the_next_one_up_to_the_limit",
    ),
    Mutant(
        "never begins its pauses again",
        "_api/teardown.py",
        "                    self._backoffs.pop(action, None)\n",
        "",
        "api/test_teardown.py::test_the_pauses_of_an_action_begin_again_after_its_own_success",
    ),
    Mutant(
        "counts a 429 as a failure of a release",
        "_api/teardown.py",
        "except RateLimitError as error:",
        "except ZeroDivisionError as error:",
        "api/test_teardown.py::test_a_429_is_no_failure",
    ),
    Mutant(
        "does not delete an instance whose status is unknown",
        "_api/teardown.py",
        "instance.status.lower() not in _NOT_STOPPED",
        "False",
        "api/test_teardown.py::test_after_a_stop_an_unknown_status_does_not_block_the_delete",
    ),
    Mutant(
        "does not confirm that an instance is deleted",
        "_api/teardown.py",
        "return ObservedState.DELETED",
        "return ObservedState.GONE",
        "lease/test_lease.py::test_the_clean_path_sends_no_more_than_it_must",
    ),
    Mutant(
        "deletes an instance without stopping it",
        "_api/teardown.py",
        "            return Action.STOP\n",
        "            return Action.DELETE\n",
        "lease/test_lease.py::test_the_main_job",
    ),
    Mutant(
        "trusts the answer to a stop without a status check",
        "_api/teardown.py",
        "is_enough = self.goal is Goal.GONE and is_stopped(instance, self.goal)",
        "is_enough = is_stopped(instance, self.goal)",
        "lease/test_hardening.py::test_a_stop_on_exit_is_read_back",
    ),
    Mutant(
        "treats a refused stop as a release",
        "_api/teardown.py",
        "                    self.stop_refused = action is Action.STOP\n",
        "                    return\n",
        "lease/test_lease.py::test_teardown_gets_through_faults",
    ),
    Mutant(
        "gives up a release at the first error",
        "_api/teardown.py",
        "transport's own)\n                    await self._recover(action, error)\n",
        "transport's own)\n                    raise\n",
        "lease/test_lease.py::test_teardown_gets_through_a_slow_service",
    ),
    Mutant(
        "treats a new instance that is not readable yet as deleted",
        "_api/teardown.py",
        "now >= max(agree_at, self.visible_at)",
        "now >= agree_at",
        "recovery/test_evidence.py::test_a_new_instance_that_nothing_shows_for_long_is_released",
    ),
    Mutant(
        "spends the whole release timeout on one Retry-After",
        "_api/teardown.py",
        "(self.deadline - anyio.current_time()) / 3)",
        "self.deadline - anyio.current_time())",
        "lease/test_hardening.py::test_a_long_retry_after_does_not_use_up_the_release",
    ),
    Mutant(
        "does not repeat a stop that has no effect",
        "_api/teardown.py",
        "return ObservedState.STOPPED if can_delete else ObservedState.LIVE",
        "return ObservedState.STOPPING",
        "lease/test_lease.py::test_an_accepted_stop_without_effect_is_sent_again",
    ),
    Mutant(
        "does not raise TeardownError",
        "_api/teardown.py",
        "        raise TeardownError(\n",
        "        TeardownError(\n",
        "lease/test_lease.py::test_a_teardown_that_cannot_succeed_says_what_may_still_be_billed",
    ),
    Mutant(
        "treats an instance with the status deleted as existing",
        "_api/teardown.py",
        '    if instance.status.lower() == "deleted":\n        return ObservedState.GONE\n',
        "",
        "lease/test_hardening.py::test_deleted_is_as_good_as_gone",
    ),
    Mutant(
        "lets a cancellation interrupt its release on asyncio",
        "_aio/tasks.py",
        "return await _on_asyncio(work, restart_if_cancelled=restart_if_cancelled)",
        "return TaskResult(value=await work())",
        "lease/test_cancellation.py::test_a_cancellation_during_the_release_still_reaches_the_caller",
    ),
    Mutant(
        "lets a cancellation interrupt its release on trio",
        "_aio/tasks.py",
        "return await _on_trio(work, restart_if_cancelled=restart_if_cancelled)",
        "return TaskResult(value=await work())",
        "lease/test_cancellation.py::test_a_cancellation_during_the_release_still_reaches_the_caller",
    ),
    Mutant(
        "stops waiting for its release when it is cancelled",
        "_aio/tasks.py",
        "                interruption = cancelled\n",
        "                    raise\n",
        "lease/test_cancellation.py::TestByTheMeansOfAsyncio::test_a_task_cancelled_during_the_release_counts_as_cancelled",
    ),
    Mutant(
        "swallows a cancellation during its release",
        "_lease/lease.py",
        "failure, interruption = ended.error or release.failure, ended.interruption",
        "failure, interruption = ended.error or release.failure, None",
        "lease/test_cancellation.py::TestByTheMeansOfAsyncio::test_a_task_cancelled_during_the_release_counts_as_cancelled",
    ),
    Mutant(
        "replaces the exception of a block with that of its release",
        "_lease/lease.py",
        "        if cause is None:\n            if cause := interruption or failure:",
        "        if cause is None or failure:\n            if cause := interruption or failure:",
        "lease/test_lease.py::test_a_failed_teardown_does_not_hide_the_bodys_exception",
    ),
    Mutant(
        "applies on_exit to a lease that fails before its block begins",
        "_lease/lease.py",
        (
            "            # The caller never got the instance, so `on_exit` does not apply.\n"
            "            provisioning.revoke_hand_over(state)\n"
            '            await self._end(error, "delete")'
        ),
        "            await self._end(error, self._options.on_exit)",
        "lease/test_hardening.py::test_what_fails_before_the_block_is_deleted_whatever_on_exit_says",
    ),
    Mutant(
        "keeps an expired instance if on_exit is keep",
        "_lease/lease.py",
        'return "delete" if expired and self._options.on_exit == "keep" else self._options.on_exit',
        "return self._options.on_exit",
        "lease/test_pricing.py::test_an_expired_instance_is_not_billed_whatever_on_exit_says",
    ),
    Mutant(
        "forgets a lease that is never exited",
        "_lease/lease.py",
        "in {_Phase.STARTING, _Phase.RUNNING}:",
        "in set():",
        "lease/test_unawaited.py::test_a_lease_that_cannot_be_awaited_is_released_in_the_background",
    ),
    Mutant(
        "hides the loss of an instance behind the error of its endpoint",
        "_lease/watchdog.py",
        'if self._state.options.on_loss == "cancel" and is_endpoint_error(raised):',
        "if False:",
        "lease/test_watchdog.py::test_an_error_of_the_endpoint_of_a_lost_instance_comes_out_as_the_loss",
    ),
    Mutant(
        "replaces an exception of the user with the loss of the instance",
        "_lease/watchdog.py",
        'if self._state.options.on_loss == "cancel" and is_endpoint_error(raised):',
        'if self._state.options.on_loss == "cancel" and raised is not None:',
        "lease/test_watchdog.py::test_any_other_exception_gets_a_note_that_the_instance_was_lost",
    ),
    Mutant(
        "takes an instance for lost that its own stop has stopped",
        "_api/teardown.py",
        "            self.may_be_stopped = self._was_maybe_stopped",
        "            self.may_be_stopped = False",
        "lease/test_watchdog.py::test_an_error_of_the_endpoint_of_a_living_instance_comes_out_as_it_is",
    ),
    Mutant(
        "takes an instance for lost that was only not visible",
        "_api/teardown.py",
        "        self.has_acted = self.asked_again = True\n        self.loss = None\n",
        "        self.has_acted = self.asked_again = True\n",
        "lease/test_watchdog.py::test_an_error_of_the_endpoint_of_a_living_instance_comes_out_as_it_is",
    ),
    Mutant(
        "asks for a minute whether a new instance that disappeared is only not visible yet",
        "_lease/watchdog.py",
        "                await self._next(known=None)\n        while True:\n",
        "                pass\n        while True:\n",
        "lease/test_watchdog.py::test_an_error_of_the_endpoint_of_a_lost_instance_comes_out_as_the_loss",
    ),
    Mutant(
        "has a reaper that imports the modules of an app instead of the standard library",
        "_recovery/reaper.py",
        'dict.fromkeys([*sys.path, *map(str, message["path"])])',
        '[str(each) for each in message["path"]]',
        "recovery/test_reaper.py::test_the_standard_library_stays_first_on_the_path_of_a_reaper",
    ),
    Mutant(
        "shows secrets in the exceptions of spans",
        "_client/wiring.py",
        "        self._observer.redact = self.http.redact\n",
        "",
        "integrations/test_opentelemetry.py::test_exceptions_of_others_show_no_secrets",
    ),
    Mutant(
        "shows an inference key that was passed in the exceptions of spans",
        "_lease/endpoint.py",
        "    remember_inference_key(key)\n",
        "",
        "integrations/test_opentelemetry.py::test_exceptions_of_others_show_no_secrets",
    ),
    Mutant(
        "keeps an instance beyond its limit in a block that cannot be cancelled",
        "_lease/watchdog.py",
        "                release()\n",
        "                pass\n",
        "lease/test_watchdog.py"
        "::TestEnteredInATaskThatHasEnded::test_the_limit_releases_the_instance_and_leaving_raises",
    ),
    Mutant(
        "does not say why a generator ended that was closed",
        "_lease/watchdog.py",
        "is_ended_by_caller = isinstance(raised, GeneratorExit) or (",
        "is_ended_by_caller = (",
        "lease/test_watchdog.py::test_in_a_closed_generator_the_limit_comes_out",
    ),
    Mutant(
        "keeps a lease alive through the task that entered it",
        "_aio/scopes.py",
        "self._task = weakref.ref(task)",
        "self._task = lambda: task",
        "lease/test_watchdog.py::TestEnteredInATaskThatHasEnded::test_a_lease_that_is_dropped_is_still_collected",
    ),
    Mutant(
        "forgets a release that its event loop has never begun",
        "_aio/background.py",
        "    def __del__(self) -> None:\n        self.give_up()\n",
        "    def __del__(self) -> None:\n        pass\n",
        "lease/test_unawaited.py"
        "::test_a_lease_that_is_dropped_in_the_last_turn_of_its_event_loop_is_left_to_others",
    ),
    Mutant(
        "leaves to the reaper what its event loop could release",
        "_lease/lease.py",
        "unawaited.start_soon(partial(self._release_unawaited, on_exit), self._abandon)",
        "unawaited.start_soon(partial(anyio.sleep, 0), self._abandon) or self._abandon()",
        "lease/test_unawaited.py::test_a_lease_that_cannot_be_awaited_is_released_in_the_background",
    ),
    Mutant(
        "does not await the release in a generator that is closed",
        "_aio/closing.py",
        "return traceback is not None and bool(traceback.tb_frame.f_code.co_flags & inspect.CO_COROUTINE)",
        "return True",
        "lease/test_unawaited.py::test_a_generator_that_is_closed_releases_in_order",
    ),
    Mutant(
        "awaits the release in a coroutine that is closed",
        "_aio/closing.py",
        "return traceback is not None and bool(traceback.tb_frame.f_code.co_flags & inspect.CO_COROUTINE)",
        "return False",
        "lease/test_unawaited.py::test_a_lease_that_cannot_be_awaited_is_released_in_the_background",
    ),
    Mutant(
        "does not see a closed coroutine behind the error of a cancel scope",
        "_aio/closing.py",
        "        error = error.__context__\n    if not isinstance(error, GeneratorExit):",
        "        pass\n    if not isinstance(error, GeneratorExit):",
        "lease/test_unawaited.py::test_a_lease_that_cannot_be_awaited_is_released_in_the_background",
    ),
    Mutant(
        "closes a client without waiting for the releases that no caller awaits",
        "_http/client.py",
        "await self.unawaited.join()",
        "pass",
        "lease/test_unawaited.py::test_a_lease_that_cannot_be_awaited_is_released_in_the_background",
    ),
    Mutant(
        "keeps the lock of a coroutine that was closed",
        "_aio/synchronization.py",
        "        self._is_held = False\n        self._released.notify()\n",
        "        self._is_held = _[0] is GeneratorExit\n        self._released.notify()\n",
        "aio/test_synchronization.py::test_a_closed_coroutine_releases_its_mutex",
    ),
    Mutant(
        "does not leave a failed release to the reaper",
        "_lease/release.py",
        "            promises.record_abandoned(key)\n",
        "            pass\n",
        "lease/test_lease.py::test_a_release_that_times_out_is_left_to_the_reaper",
    ),
    Mutant(
        "never records a promise as kept",
        "_lease/release.py",
        "                promises.record_gone(key)\n",
        "                pass\n",
        "recovery/test_store.py::test_every_step_of_a_lease_is_in_the_journal_before_it_counts",
    ),
    Mutant(
        "closes its connections before its leases are released",
        "_http/client.py",
        "if self._closed and not self._holders:",
        "if self._closed:",
        "lease/test_lease.py::test_a_client_closed_too_early_still_lets_leases_release",
    ),
    Mutant(
        "releases a running instance that it reuses",
        "_lease/release.py",
        "            case Origin.FOUND:\n                return None",
        "            case Origin.FOUND:\n                return Goal.GONE",
        "lease/test_lease.py::test_reuse_leaves_a_running_instance_running",
    ),
    Mutant(
        "deletes an instance that it restarted",
        "_lease/release.py",
        'return None if self.on_exit == "keep" else Goal.STOPPED',
        'return None if self.on_exit == "keep" else Goal.GONE',
        "lease/test_lease.py::test_reuse_stops_again_what_it_restarted",
    ),
    Mutant(
        "sends the requests of a release again at the end of asyncio.run",
        "_aio/tasks.py",
        "asyncio._unregister_task(task)",
        "_ = task",
        "lease/test_cancellation.py::TestByTheMeansOfAsyncio::test_a_cancellation_of_every_task_does_not_repeat_a_request",
    ),
    Mutant(
        "reads a file of any size in the state directory",
        "_state_directory.py",
        "            _check_size(name, status)\n",
        "",
        "test_state_directory.py::TestFile::test_a_file_that_would_fill_the_memory_is_not_opened",
    ),
    Mutant(
        "sends a key to a URL with a space or a backslash",
        "_environment.py",
        "if _NOT_IN_URL.search(url):",
        "if False:",
        "lease/test_endpoint_urls.py::test_a_lease_with_an_unsafe_url_is_an_error_and_released",
    ),
    Mutant(
        "keeps line breaks in undocumented objects of the service",
        "_api/wire.py",
        "return {_one_line(name): _cleaned(each) for name, each in value.items()}",
        "return dict(value)",
        "api/test_wire.py::test_no_text_has_line_breaks_or_control_characters",
    ),
    Mutant(
        "deletes a kept instance when the lease of another one expires",
        "_lease/lease.py",
        "isinstance(self._watchdog.verdict, LeaseExpiredError)",
        "isinstance(__import__('sys').exception(), LeaseExpiredError)",
        "lease/test_pricing.py::test_the_expiry_of_an_inner_lease_does_not_end_a_kept_instance",
    ),
    Mutant(
        "keeps using a pool that may have lost a connection",
        "_http/transport.py",
        "            self.connections.retire(pool)\n",
        "",
        "http/test_transport.py::TestOwnPools::test_a_pool_with_a_cancelled_request_takes_no_more_and_is_closed",
    ),
    Mutant(
        "does not enforce max_cost while a start hangs",
        "_lease/provisioning.py",
        "        attempt.on_sent = partial(_limit, state, scope)\n",
        "",
        "lease/test_pricing.py::test_max_cost_also_counts_while_a_start_hangs",
    ),
    Mutant(
        "lets a price list for receipts take the slot of a start",
        "_api/resources.py",
        "            priority=Priority.POLL,\n",
        "",
        "lease/test_pricing.py::test_a_price_list_that_hangs_takes_no_slot_of_the_starts",
    ),
    Mutant(
        "forgets an open start beside an instance that was restarted",
        "_lease/release.py",
        "if self.held.key is not None and start.key is not None:",
        "if False:",
        "lease/test_hanging_start.py::test_a_start_that_hangs_after_a_lost_restart_is_left_to_the_reaper",
    ),
    Mutant(
        "unlocks no journal that a forked child has a copy of",
        "_recovery/journal.py",
        "            unlock(self._fd)\n        self.close_copy()",
        "            pass\n        self.close_copy()",
        "recovery/test_journal.py::TestFile::test_a_copy_in_a_forked_child_does_not_keep_it_locked",
    ),
    Mutant(
        "gives the reaper a secret before the service has accepted it",
        "_recovery/promises.py",
        "if credentials == self._credentials or not (proven or self._credentials is None):",
        "if credentials == self._credentials:",
        "recovery/test_mutations.py::test_a_secret_that_the_service_refuses_does_not_replace_the_one_of_the_reaper",
    ),
    Mutant(
        "begins all rehearsals at the same time",
        "_recovery/rehearsal.py",
        "if len(self._children) >= _MAX_CHILDREN:",
        "if False:",
        "recovery/test_rehearsal.py::test_at_most_two_rehearsals_run_at_a_time",
    ),
    Mutant(
        "forks while it imports",
        "_recovery/rehearsal.py",
        "                with import_lock:\n                    pid = os.fork()",
        "                if True:\n                    pid = os.fork()",
        "recovery/test_rehearsal.py::test_the_reaper_forks_no_child_while_it_imports",
    ),
    Mutant(
        "shows a part of a secret at the end of what it decodes",
        "_http/transport.py",
        "if len(body) == _MAX_DECODED:",
        "if False:",
        "test_secrets.py::test_no_error_shows_a_secret",
    ),
    Mutant(
        "reads certificates from a pipe",
        "_environment.py",
        "            _check_regular(self.cafile)\n",
        "",
        "test_environment.py::TestCertificates::test_a_pipe_is_refused_because_it_might_never_end",
    ),
    Mutant(
        "tries a promise that failed again at once",
        "_recovery/reaper.py",
        "self._retry_at[promise.key] = self._wall_clock() + _RETRY_DELAY",
        "self._retry_at[promise.key] = 0.0",
        "recovery/test_reaper.py::test_a_promise_whose_thread_failed_is_tried_again_a_minute_later",
    ),
    Mutant(
        "tells a new reaper times of before the wall clock was set",
        "_recovery/store.py",
        "state = map(self._by_clock, self.state.snapshot())",
        "state = self.state.snapshot()",
        "recovery/test_mutations.py::test_a_new_reaper_gets_times_by_the_wall_clock_as_it_is_set_now",
    ),
    Mutant(
        "replaces the network of the reaper by that of another client",
        "_recovery/store.py",
        "                record = self._merged(record)\n",
        "",
        "recovery/test_mutations.py::test_another_client_of_the_account_does_not_take_the_reaper_off_its_proven_network",
    ),
    Mutant(
        "does not enforce max_lifetime",
        "_lease/watchdog.py",
        "if math.isfinite(self._state.lifetime):",
        "if False:",
        "lease/test_pricing.py::test_the_block_ends_when_its_lifetime_is_up",
    ),
    Mutant(
        "leaves no reserve in a budget",
        "_lease/pricing.py",
        "return affordable * _interval_seconds(args.billing_interval) - _RESERVE",
        "return affordable * _interval_seconds(args.billing_interval)",
        "lease/test_pricing.py::TestArithmetic::test_a_budget_lasts_as_long_as_its_intervals_but_for_a_reserve",
    ),
    Mutant(
        "computes costs without the number of workers",
        "_lease/pricing.py",
        "else price.per_minute) * args.num_workers",
        "else price.per_minute)",
        "lease/test_pricing.py::TestArithmetic::test_a_budget_lasts_as_long_as_its_intervals_but_for_a_reserve",
    ),
    Mutant(
        "counts a lifetime by a clock that stops while the machine is suspended",
        "_lease/watchdog.py",
        "await anyio.sleep(min(remaining, _MAX_SLEEP))",
        "await anyio.sleep(remaining)",
        "lease/test_pricing.py::test_the_lifetime_counts_the_time_for_which_the_machine_is_suspended",
    ),
    Mutant(
        "reports a lost instance after one unexpected answer",
        "_lease/watchdog.py",
        "                found = await self._next(known=None, absence=0.0)\n",
        "",
        "lease/test_watchdog.py::test_one_odd_answer_is_not_believed",
    ),
    Mutant(
        "does not notice the loss of its instance",
        "_lease/watchdog.py",
        "                if _is_lost(found):\n                    return",
        "                if False:\n                    return",
        "lease/test_watchdog.py::test_the_block_is_cancelled_with_a_typed_error",
    ),
    Mutant(
        "does not promise the release of an acquired instance",
        "_lease/release.py",
        "        await services.promises.flush()\n        await release.run()",
        "        await release.run()",
        "lease/test_acquire.py::test_the_release_of_an_acquired_instance_is_promised_before_it_begins",
    ),
    Mutant(
        "repeats a delete whose response cannot be read, and looks at nothing else",
        "_api/teardown.py",
        "                    if action is not Action.DELETE:\n",
        "                    if True:\n",
        "lease/test_lease.py::test_after_a_delete_whose_response_cannot_be_read_the_instance_is_read",
    ),
    # Ctrl-C
    Mutant(
        "leaves Ctrl-C to asyncio during a release",
        "_aio/sigint.py",
        "signal.signal(signal.SIGINT, current.handle)",
        "pass",
        "aio/test_sigint.py::test_every_one_is_a_cancellation",
    ),
    Mutant(
        "keeps its Ctrl-C handler after its last release",
        "_aio/sigint.py",
        "if signal.getsignal(signal.SIGINT) == self.handle:",
        "if False:",
        "aio/test_sigint.py::test_it_is_taken_only_while_something_is_held",
    ),
    Mutant(
        "ignores Ctrl-C while the event loop is blocked",
        "_aio/sigint.py",
        "            raise KeyboardInterrupt\n",
        "            pass\n",
        "aio/test_sigint.py::test_code_that_blocks_the_loop_is_still_reached",
    ),
    Mutant(
        "makes asyncio mistake a second Ctrl-C for another cancellation",
        "_aio/sigint.py",
        "            self._main.uncancel()\n",
        "            pass\n",
        "aio/test_sigint.py::test_every_one_is_a_cancellation",
    ),
    Mutant(
        "does not wake the event loop for SIGTERM",
        "signals.py",
        "self._wakeup.enter_context(woken_by_signals())",
        "pass",
        "aio/test_sigterm.py::test_a_signal_that_another_thread_receives_ends_the_wait",
    ),
    Mutant(
        "disconnects the event loop from its own signal handlers",
        "_aio/wakeup.py",
        "            if current != writer.fileno():",
        "            if False:",
        "aio/test_sigterm.py::test_the_event_loops_own_signal_handlers_work_beside_it",
    ),
    Mutant(
        "lets Ctrl-C interrupt a release on trio",
        "_aio/tasks.py",
        "trio.lowlevel.enable_ki_protection(function)",
        "pass",
        "lease/test_hardening.py::TestOnTrio::test_ctrl_c_is_kept_out_of_the_frames_of_the_release_but_not_of_the_body",
    ),
    # Retries
    Mutant(
        "repeats a start that may have worked",
        "_http/retry.py",
        "return failure.status != 503 and not may_have_taken_effect(method, failure)",
        "return True",
        "http/test_retry.py::TestTable::test_which_requests_are_repeated",
    ),
    Mutant(
        "treats a start as idempotent",
        "_http/retry.py",
        '{"/oauth2/token", "/instances/restart",',
        '{"/oauth2/token", "/instances/start", "/instances/restart",',
        "http/test_retry.py::TestTable::test_which_requests_are_repeated",
    ),
    Mutant(
        "treats a 408 as proof that a request had no effect",
        "_http/retry.py",
        " or failure.status == 408\n",
        "\n",
        "http/test_retry.py::TestTable::test_how_each_outcome_is_classified",
    ),
    Mutant(
        "ignores Retry-After",
        "_http/retry.py",
        "retry_after = failure.retry_after or 0.0",
        "retry_after = 0.0",
        "http/test_client.py::TestTime::test_retry_after_is_waited_for",
    ),
    Mutant(
        "retries without a backoff",
        "_http/retry.py",
        "return rng.uniform(0.0, bound)",
        "return 0.0",
        "http/test_retry.py::TestBackoff::test_the_jitter_is_full",
    ),
    Mutant(
        "ignores max_retry_after",
        "_http/retry.py",
        "if retry_after > policy.max_retry_after:",
        "if False:",
        "http/test_retry.py::TestNextWait::test_a_long_retry_after_is_refused",
    ),
    Mutant(
        "retries past the total timeout of a call",
        "_http/retry.py",
        "return wait if elapsed + wait < policy.total_timeout else None",
        "return wait",
        "http/test_retry.py::TestNextWait::test_the_deadline_counts_the_wait",
    ),
    Mutant(
        "ignores max_retries",
        "_http/retry.py",
        "policy.max_retries == 0 or counted > policy.max_retries or not",
        "policy.max_retries == 0 or not",
        "http/test_retry.py::TestNextWait::test_as_often_as_the_policy_says",
    ),
    Mutant(
        "sends its token to another host on a redirect",
        "_http/transport.py",
        "return target if is_same_origin and not target.userinfo else None",
        "return target",
        "http/test_client.py::TestRedirects::test_nothing_is_sent_to_another_origin",
    ),
    Mutant(
        "lets calls take the connections of releases",
        "_http/limiter.py",
        "calls = max(1, size - max(1, size // 5))",
        "calls = size",
        "http/test_limiter.py::test_calls_leave_a_fifth_to_releases",
    ),
    Mutant(
        "loses a slot to a cancellation",
        "_http/limiter.py",
        "                self.release(priority)\n            else:",
        "                pass\n            else:",
        "http/test_limiter.py::test_a_slot_given_in_the_moment_of_a_cancellation_goes_on",
    ),
    # Credentials
    Mutant(
        "does not renew a refused token",
        "_http/client.py",
        "if outcome.status == 401 and token is not None and not attempts.has_renewed_token:",
        "if False:",
        "http/test_auth.py::TestRefusedToken::test_is_renewed_and_the_request_repeated",
    ),
    Mutant(
        "fetches a token for each caller",
        "_http/auth.py",
        "return await self._fetches.get()",
        "return await self._fetch()",
        "http/test_auth.py::test_one_fetch_serves_a_hundred_callers",
    ),
    Mutant(
        "drops a new token when a late answer refuses the old one",
        "_http/auth.py",
        "        if self._token is token:\n",
        "        if True:\n",
        "http/test_auth.py::TestRefusedToken::test_is_not_renewed_again_for_one_who_hears_of_it_late",
    ),
    Mutant(
        "uses a token until the moment it expires",
        "_http/auth.py",
        " - min(60.0, 0.1 * expires_in)",
        "",
        "http/test_auth.py::TestRenewal::test_a_tenth_before_the_end_at_most_a_minute",
    ),
    Mutant(
        "shows a secret in its repr",
        "_secrets.py",
        "return f\"{type(self).__name__}('***')\"",
        'return f"{type(self).__name__}({self._value!r})"',
        "test_config.py::TestSecret::test_never_shows_itself",
    ),
    Mutant(
        "shows the client secret when the service echoes it",
        "_http/client.py",
        "        self._redactor.remember(credentials.client_secret)\n",
        "",
        "test_secrets.py::test_an_echo_in_any_encoding_is_redacted",
    ),
    Mutant(
        "shows the token when the service echoes it",
        "_http/client.py",
        "        self._redactor.remember(value)\n",
        "",
        "test_secrets.py::test_no_error_shows_a_secret",
    ),
    Mutant(
        "shows a URL-encoded secret",
        "_secrets.py",
        '        urllib.parse.quote(secret, safe=""),\n',
        "",
        "test_secrets.py::test_every_encoding_is_redacted",
    ),
    Mutant(
        "leaves the token in the traceback of a cancellation",
        "_http/transport.py",
        "            cancelled.__traceback__ = None\n",
        "",
        "test_secrets.py::test_no_cancellation_of_the_caller_shows_a_secret",
    ),
    Mutant(
        "uses the client id as the name of the account",
        "_recovery/promises.py",
        'return hashlib.sha256(f"{api_base_url}\\n{client_id}".encode()).hexdigest()[:16]',
        "return client_id",
        "recovery/test_mutations.py::test_the_fingerprint_of_an_account_does_not_reveal_it",
    ),
    Mutant(
        "sends credentials over plain http",
        "_config.py",
        'if parts.scheme == "http" and not is_loopback_host(parts.hostname) and not allow_insecure_http:',
        "if False:",
        "test_config.py::TestBaseURL::test_plain_http_beyond_this_machine_takes_insisting",
    ),
    Mutant(
        "accepts a base URL with a password",
        "_config.py",
        '    if "@" in url:\n',
        "    if False:\n",
        "test_config.py::TestBaseURL::test_what_may_hold_a_secret_is_refused_and_not_shown",
    ),
    Mutant(
        "sends loopback requests through a proxy",
        "_config.py",
        "return None if self.is_loopback else self.environment.proxy_for(self.api_base_url)",
        "return self.environment.proxy_for(self.api_base_url)",
        "http/test_client.py::TestOwnPool::test_a_proxy_of_the_environment_does_not_see_loopback",
    ),
    Mutant(
        "has a reaper that opens the file of certificates only when it needs it",
        "_recovery/reaper.py",
        "                self._keep_certificates(settings)\n",
        "",
        "recovery/test_reaper.py::test_certificates_that_were_deleted_since_the_reaper_got_the_account_are_still_used",
    ),
    Mutant(
        "does not tell the reaper its proxies and certificates",
        "_recovery/accounts.py",
        'environment=Environment.from_data(account["environment"]),',
        "environment=Environment(),",
        "recovery/test_trust.py::test_the_reaper_gets_the_environment_of_its_parent",
    ),
    Mutant(
        "leaves a relative path of certificates relative",
        "_environment.py",
        "return os.path.abspath(path)  # noqa: PTH100  (`Path.absolute` keeps `..`)",
        "return path",
        "test_environment.py::TestCertificates::test_of_a_relative_path_are_those_of_the_working_directory",
    ),
    Mutant(
        "lets an unreadable entry of NO_PROXY pass",
        "_environment.py",
        "        except ValueError:\n            # What precedes",
        "        except KeyError:\n            # What precedes",
        "test_environment.py::TestNoProxy::test_skips_an_entry_that_it_cannot_read",
    ),
    Mutant(
        "reads responses of any size",
        "_http/body.py",
        "if self._size > self._limit:",
        "if False:",
        "http/test_body.py::test_a_response_that_cannot_be_read_is_a_typed_error",
    ),
    Mutant(
        "decompresses first and measures then",
        "_http/body.py",
        "self._decompressor.decompress(chunk, self._limit - self._size + 1)",
        "self._decompressor.decompress(chunk)",
        "http/test_body.py::test_a_bomb_takes_no_more_memory_than_the_limit",
    ),
    Mutant(
        "reads JSON of any depth",
        "_http/transport.py",
        "if is_too_deep(body, data)",
        "if False",
        "http/test_body.py::test_a_response_that_cannot_be_read_is_a_typed_error",
    ),
    Mutant(
        "keeps line breaks in the texts of the service",
        "_api/wire.py",
        '"a string", value)\n    return _one_line(value)\n',
        '"a string", value)\n    return value\n',
        "api/test_wire.py::test_no_text_has_line_breaks_or_control_characters",
    ),
    Mutant(
        "does not know the errors of httpx2",
        "_http/connections.py",
        "libraries.append(httpx2)",
        "pass",
        "http/test_httpx2.py::test_failures_are_the_same",
    ),
    Mutant(
        "leaves the token in the locals of an error that is not of HTTP",
        "_http/transport.py",
        "                forget_locals(error)\n",
        "",
        "http/test_httpx2.py::test_another_error_of_the_callers_client_shows_no_token",
    ),
    Mutant(
        "sends a secret with its line break",
        "_secrets.py",
        'return value.strip() if hasattr(value, "strip") else value',
        "return value",
        "http/test_auth.py::test_a_secret_of_any_text_arrives_as_it_is",
    ),
    # Arguments
    Mutant(
        "accepts a route name as an instance id",
        "_api/validation.py",
        "if instance_id.casefold() in _ROUTES:",
        "if False:",
        "api/test_validation.py::TestInstanceId::test_an_id_that_could_reach_another_route_is_rejected",
    ),
    Mutant(
        "accepts dots as an instance id",
        "_api/validation.py",
        ' or set(value) == {"."} or ".." in value:',
        ":",
        "api/test_validation.py::TestInstanceId::test_an_id_that_could_reach_another_route_is_rejected",
    ),
    Mutant(
        "accepts an instance id with a slash",
        "_api/validation.py",
        '_SEGMENT = re.compile(r"[A-Za-z0-9._~:-]+")',
        '_SEGMENT = re.compile(r"[A-Za-z0-9._~:/-]+")',
        "api/test_validation.py::TestInstanceId::test_an_id_that_could_reach_another_route_is_rejected",
    ),
    Mutant(
        "checks only the beginning of an instance id",
        "_api/validation.py",
        "_SEGMENT.fullmatch(value)",
        "_SEGMENT.match(value)",
        "api/test_validation.py::TestInstanceId::test_an_id_that_could_reach_another_route_is_rejected",
    ),
    Mutant(
        "lets client.request start an instance",
        "_client/with_options.py",
        'if path.strip("/").casefold() == "instances/start":',
        "if False:",
        "client/test_with_options.py::TestRequest::test_bad_arguments",
    ),
    Mutant(
        "accepts a path with a segment of dots",
        "_client/with_options.py",
        "(/(?!\\.+(/|$))[A-Za-z0-9._~:-]+)+/?",
        "(/[A-Za-z0-9._~:-]+)+/?",
        "client/test_with_options.py::TestRequest::test_bad_arguments",
    ),
    # Waiting
    Mutant(
        "polls separately for each wait",
        "_api/polling.py",
        "                if self._has_leader:\n                    await",
        "                if False:\n                    await",
        "api/test_polling.py::test_one_request_per_poll_serves_all_waits",
    ),
    Mutant(
        "always polls at max_interval",
        "_api/intervals.py",
        "return min(max(policy.min_interval, policy.growth * scale), policy.max_interval)",
        "return policy.max_interval",
        "api/test_polling.py::test_the_interval_stays_within_its_bounds",
    ),
    Mutant(
        "treats an instance as deleted without checking the list",
        "_api/polling.py",
        "reading = (await self._read_listed()).get(instance_id)",
        "reading = None",
        "api/test_polling.py::test_gone_needs_both_the_instance_and_the_list",
    ),
    Mutant(
        "treats an unlisted instance as deleted without checking its id",
        "_api/polling.py",
        "known = listed.keys() | trusting",
        "known = wanted",
        "api/test_polling.py::test_an_instance_that_the_list_lacks_is_requested_by_id",
    ),
    Mutant(
        "leaves other waits without a poller after a cancellation",
        "_api/polling.py",
        (
            "            # This task may have been cancelled just before it would have become the leader.\n"
            "            self._wake_next_leader()"
        ),
        "",
        "api/test_polling.py::test_cancelling_the_leader_and_its_successor_stops_no_other_wait",
    ),
    Mutant(
        "polls before Retry-After has elapsed",
        "_api/polling.py",
        "pause = max(pause, min(retry_after or 0.0, _MAX_RETRY_AFTER))",
        "pass",
        "api/test_polling.py::test_retry_after_also_delays_new_waits",
    ),
    Mutant(
        "waits twice as long as allowed during an outage",
        "_api/polling.py",
        "now - self.failing_since > max_outage:",
        "now - self.failing_since > 2 * max_outage:",
        "api/test_polling.py::test_a_long_outage_ends_the_wait",
    ),
    Mutant(
        "waits until the timeout for an instance that vanished right after its start",
        "_api/waiting.py",
        "            has_reading = subscription.has_reading = False\n",
        "            pass\n",
        "lease/test_lease.py::test_an_instance_that_vanishes_after_its_start_is_given_up_after_settle",
    ),
    Mutant(
        "treats a new instance that is not visible yet as deleted",
        "_api/expected.py",
        "return now < until and (reading is None or (",
        "return now < until and ((",
        "lease/test_lease.py::test_a_new_instance_may_not_be_visible_yet",
    ),
    # Sweep and owners
    Mutant(
        "sweeps the instances of a living process",
        "_recovery/journal.py",
        "        journal = try_lock(path)\n",
        "        journal = JournalFile(path, os.open(path, _OPEN_FLAGS))\n",
        "recovery/test_sweep.py::test_an_instance_of_a_living_process_is_not_touched",
    ),
    Mutant(
        "sweeps the instances of other credentials",
        "_recovery/sweep.py",
        "if is_mine and pending.promise.needs_recovery(now):",
        "if pending.promise.needs_recovery(now):",
        "recovery/test_sweep.py::test_promises_of_other_credentials_are_not_touched",
    ),
    Mutant(
        "sweeps an acquired instance before its deadline",
        "_recovery/sweep.py",
        "if is_mine and pending.promise.needs_recovery(now):",
        "if is_mine:",
        "lease/test_acquire.py::test_what_was_acquired_for_a_time_is_swept_after_it",
    ),
    Mutant(
        "releases instances in a dry run of sweep",
        "_recovery/sweep.py",
        "        if dry_run:\n",
        "        if False:\n",
        "recovery/test_sweep.py::test_a_created_instance_is_released_and_the_journal_removed",
    ),
    Mutant(
        "removes a journal in sweep while it still has promises",
        "_recovery/dead_journals.py",
        "journal.close_or_remove(state, keeps_past_ids=keeps_past_ids)",
        "journal.remove()",
        "recovery/test_sweep.py::test_a_failing_service_leaves_a_promise_for_the_next_sweep",
    ),
    Mutant(
        "releases without force what a reaper is working on",
        "_recovery/dead_journals.py",
        "(self.found if force else self.in_progress)",
        "self.found",
        "recovery/test_sweep.py::test_what_the_reaper_of_a_dead_process_has_is_listed_and_released_only_with_force",
    ),
    Mutant(
        "does not say what a reaper is working on",
        "_recovery/sweep.py",
        "if pending.promise.needs_recovery(now) and pending.is_open():",
        "if False:",
        "recovery/test_sweep.py::test_what_the_reaper_of_a_dead_process_has_is_listed_and_released_only_with_force",
    ),
    Mutant(
        "says that a reaper is working on what it has released",
        "_recovery/sweep.py",
        "if pending.promise.needs_recovery(now) and pending.is_open():",
        "if pending.promise.needs_recovery(now):",
        "recovery/test_sweep.py::test_what_a_reaper_has_done_meanwhile_is_not_listed",
    ),
    Mutant(
        "releases by force what a living process owns",
        "_recovery/dead_journals.py",
        "        if promise.abandoned and promise.instance_id is not None\n",
        "",
        "recovery/test_sweep.py::test_a_forced_sweep_touches_nothing_of_a_living_process_but_what_it_gave_up_on",
    ),
    Mutant(
        "does not read again what a living process owns while it releases by force what that gave up on",
        "_recovery/sweep.py",
        "for each in journals.found if each.is_whole}",
        "for each in journals.found}",
        "recovery/test_sweep.py::test_a_forced_sweep_knows_what_a_living_process_has_started_meanwhile",
    ),
    Mutant(
        "does not record what a forced sweep has released",
        "_recovery/dead_journals.py",
        "os.write(fd, encode(records))",
        "pass",
        "recovery/test_sweep.py::test_what_the_reaper_of_a_dead_process_has_is_listed_and_released_only_with_force",
    ),
    Mutant(
        "deletes an instance that it should only stop",
        "_recovery/recover.py",
        "goal=Goal.STOPPED if promise.goal == Goal.STOPPED.value else Goal.GONE,",
        "goal=Goal.GONE,",
        "recovery/test_sweep.py::test_an_instance_that_was_to_be_stopped_is_not_deleted",
    ),
    Mutant(
        "does not record that a reading has shown an instance",
        "_lease/provisioning.py",
        "state.services.promises.record_seen(state.held.key)",
        "pass",
        "recovery/test_sweep.py::test_a_lease_records_that_a_reading_has_shown_its_instance",
    ),
    Mutant(
        "records that a reading has shown an instance, although nothing was read",
        "_lease/provisioning.py",
        "if state.held.key is not None and expected.visible_at(instance_id) < anyio.current_time():",
        "if state.held.key is not None:",
        "recovery/test_sweep.py::test_a_lease_records_that_a_reading_has_shown_its_instance",
    ),
    Mutant(
        "waits for an instance that a reading has shown as if it were new",
        "_recovery/pending.py",
        "return 0.0 if promise.seen else max(",
        "return max(",
        "recovery/test_sweep.py::test_a_missing_instance_that_a_reading_has_shown_is_gone_at_once",
    ),
    Mutant(
        "sweeps an instance that a living process may be starting",
        "_recovery/claims.py",
        "claims.in_progress.append(unresolved_start_of(state, promise))",
        "pass",
        "recovery/test_sweep.py::test_an_instance_that_a_living_process_may_be_starting_is_not_touched",
    ),
    Mutant(
        "sweeps an instance that was started long after a crash",
        "_recovery/search.py",
        "_MAX_UNCONFIRMED_AGE = 3600.0",
        "_MAX_UNCONFIRMED_AGE = 1e12",
        "recovery/test_sweep.py::test_an_instance_started_long_after_the_crash_is_not_touched",
    ),
    Mutant(
        "matches one instance to two starts of dead processes",
        "_recovery/search.py",
        "            self.claimed.add(instance.instance_id)\n",
        "",
        "recovery/test_mutations.py::test_sweep_matches_an_instance_to_only_one_start",
    ),
    Mutant(
        "closes the start of a dead process before its instance can appear",
        "_recovery/search.py",
        "elif not is_certain or now < end + (_CONTESTED_GRACE if isinstance(outcome, Contested) else 0.0):",
        "elif False:",
        "recovery/test_sweep.py::test_the_instance_of_an_intent_is_waited_for_before_it_is_closed",
    ),
    Mutant(
        "treats an acquired instance as deleted after one status check",
        "_recovery/recover.py",
        "_REQUIRED_ABSENCES = 2",
        "_REQUIRED_ABSENCES = 1",
        "recovery/test_recover.py::test_a_held_instance_that_only_seems_to_be_missing_is_kept",
    ),
    Mutant(
        "reports a dead owner as alive while its reaper runs",
        "_recovery/owners.py",
        "    is_living = is_living and not state.is_orphaned\n",
        "",
        "recovery/test_owners.py::test_journals_of_living_and_dead_processes",
    ),
    Mutant(
        "reports every owner as alive",
        "_recovery/owners.py",
        "is_living = is_owned(path) if named else None",
        "is_living = True if named else None",
        "recovery/test_owners.py::test_journals_of_living_and_dead_processes",
    ),
    # Batches
    Mutant(
        "writes answers under another custom_id",
        "_batch/format.py",
        "return Request(number, custom_id, ",
        "return Request(number, str(number), ",
        "batch/test_format.py::TestRequests::test_a_request_is_parsed",
    ),
    Mutant(
        "takes an error with the status 200 for an answer",
        "_batch/endpoints.py",
        '    if error or data.get("object") == "error":',
        '    if data.get("object") == "error":',
        "batch/test_format.py::TestAnswers::test_a_success_that_says_it_failed_is_an_error_line",
    ),
    Mutant(
        "takes an answer without content for an answer",
        "_batch/endpoints.py",
        "(answer or endpoint.may_be_empty)",
        "(answer or not answer)",
        "batch/test_format.py::TestAnswers::test_a_success_that_says_it_failed_is_an_error_line",
    ),
    Mutant(
        "drops an answer that has NaN",
        "_batch/answers.py",
        "except _ConstantError:\n",
        "except ZeroDivisionError:\n",
        "batch/test_format.py::TestAnswers::test_constants_that_are_not_json_become_null",
    ),
    Mutant(
        "replaces NaN in the texts of an answer",
        "_batch/answers.py",
        'lambda match: match[1] or "null"',
        'lambda match: "null" if "NaN" in match[0] else match[1] or "null"',
        "batch/test_format.py::TestAnswers::test_constants_that_are_not_json_become_null",
    ),
    Mutant(
        "sends text as escapes",
        "_batch/format.py",
        '"" if "\\\\u" in written else written',
        "written",
        "batch/test_format.py::TestWire::test_text_is_sent_as_utf8",
    ),
    Mutant(
        "takes a request for another one if its keys have another order",
        "_batch/canonical.py",
        "for key in sorted(value):",
        "for key in value:",
        "batch/test_format.py::TestSameRequest::test_it_may_be_written_in_any_way",
    ),
    Mutant(
        "takes 1 for true",
        "_batch/canonical.py",
        " and isinstance(value, bool) is isinstance(default, bool)",
        "",
        "batch/test_format.py::TestSameRequest::test_these_are_different",
    ),
    Mutant(
        "takes the default temperature of OpenAI for that of every model",
        "_batch/endpoints.py",
        '_NOT_STREAMED = {"stream": False}',
        '_NOT_STREAMED = {"stream": False, "temperature": 1}',
        "batch/test_format.py::TestSameRequest::test_these_are_different",
    ),
    Mutant(
        "changes the ids of requests",
        "_batch/canonical.py",
        'parts.append(f"{value},")',
        'parts.append(f"{value};")',
        "batch/test_format.py::TestSameRequest::test_the_ids_of_this_version_are_stable",
    ),
    Mutant(
        "does not continue the output of an earlier version",
        "_batch/plan.py",
        "has_legacy = has_legacy or is_legacy_id(answer.request_id)",
        "has_legacy = False",
        "batch/test_files.py::TestPreflight::test_the_output_of_an_earlier_version_is_continued",
    ),
    Mutant(
        "overrides the limit of a request by the default",
        "_batch/format.py",
        "all(body.get(key) is None for key in endpoint.limit_keys)",
        "True",
        "batch/test_format.py::TestDefaults::test_they_do_not_override_what_the_line_says",
    ),
    Mutant(
        "counts answers before they are synced to disk",
        "_batch/output.py",
        "            if sync:\n                os.fsync(self._fd)\n",
        "",
        "batch/test_files.py::TestOutput::test_every_line_is_synced_before_append_returns",
    ),
    Mutant(
        "sends requests that are already answered",
        "_batch/request_queue.py",
        "if not is_done(done, line.number):",
        "if line.text:",
        "batch/test_run.py::test_a_run_resumes_where_the_last_one_stopped",
    ),
    Mutant(
        "does not lower its concurrency after a refusal",
        "_batch/concurrency.py",
        "            self._set(now, int(self.value * max(0.5, accepted_share)))\n",
        "",
        "batch/test_concurrency.py::test_many_rejections_of_one_moment_are_one_decrease",
    ),
    Mutant(
        "lowers its concurrency after random rejections",
        "_batch/concurrency.py",
        "\n_REJECTED_SHARE = 0.3",
        "\n_REJECTED_SHARE = 0.01",
        "batch/test_concurrency.py::test_random_rejections_do_not_lower_the_limit",
    ),
    Mutant(
        "grows slowly after a decrease of concurrency",
        "_batch/concurrency.py",
        "self._accept(0.0, _FAST)  # to return",
        "self._accept(0.0, _LOWER)  # to return",
        "batch/test_concurrency.py::test_the_limit_returns_at_once_after_a_short_time_of_rejections",
    ),
    Mutant(
        "raises its concurrency although a server is saturated",
        "_batch/concurrency.py",
        "if rate is not None and rate >= self._rate * (self.value / self._proven) ** _GAIN:",
        "if rate is not None:",
        "batch/test_concurrency.py::test_a_saturated_server_gets_few_more_requests",
    ),
    Mutant(
        "gives up an endpoint after requests that hung used up its capacity",
        "_batch/workers.py",
        "            health.record_end(now, began)\n",
        "            pass\n",
        "batch/test_workers.py::TestOutages::test_an_endpoint_whose_capacity_hung_is_not_given_up",
    ),
    Mutant(
        "gives up an endpoint because one request made many time out",
        "_batch/workers.py",
        "_MIN_HANGS = 5",
        "_MIN_HANGS = 1",
        "batch/test_suspects.py::TestHangs::test_no_other_request_is_blamed_for_a_hang",
    ),
    Mutant(
        "sends a request again that is too large for a proxy",
        "_batch/outcome.py",
        "    if status in _CLEAR_REQUEST_ERRORS:\n",
        "    if False:\n",
        "batch/test_workers.py::TestOutages::test_a_proxy_may_refuse_requests",
    ),
    Mutant(
        "never gives up a request that is always rejected",
        "_batch/isolation.py",
        "elif step is NextStep.RETRY and alone and stayed_up and self._is_hopeless(request, reason):",
        "elif False:",
        "batch/test_workers.py::TestOutages::test_last_requests_that_are_always_rejected_get_error_lines",
    ),
    Mutant(
        "takes a change while the disk writes for its own",
        "_batch/output.py",
        "            if sync:\n                os.fsync(self._fd)\n        except",
        "            if sync:\n                os.fsync(self._fd)\n"
        "            self._mtime = os.fstat(self._fd).st_mtime_ns\n        except",
        "batch/test_rescue.py::TestOutput::test_a_change_while_the_disk_writes_is_noticed",
    ),
    Mutant(
        "rejects an output whose first page is zeros",
        "_batch/reader.py",
        "or (line.has_zeros and (is_output or _is_answer(following)))",
        "or (line.has_zeros and is_output)",
        "batch/test_reader.py::TestPowerFailures::test_zeros_in_place_of_the_beginning_are_removed",
    ),
    Mutant(
        "takes a null in a message for part of the request",
        "_batch/canonical.py",
        '_without_nulls(value) if key == "messages" else value',
        "value",
        "batch/test_format.py::TestSameRequest::test_these_are_the_same",
    ),
    Mutant(
        "counts error lines that are sent again as done",
        "_batch/index.py",
        "                elif offset != _IS_RETRIED:\n",
        "                else:\n",
        "batch/test_run.py::test_a_plan_bounds_what_is_sent_again",
    ),
    Mutant(
        "opens hundreds of connections to a server that answers at once",
        "_batch/concurrency.py",
        "_QUICK = 4.0",
        "_QUICK = 16.0",
        "batch/test_concurrency.py::test_a_server_that_answers_at_once_gets_few_connections_at_first",
    ),
    Mutant(
        "uses connections again after an answer with another response",
        "_batch/sender.py",
        "if protocol._buffer:",
        "if False:",
        "batch/test_unasked_bytes.py::test_after_unasked_bytes_no_connection_is_used_again",
    ),
    Mutant(
        "keeps a concurrency of one for good",
        "_batch/concurrency.py",
        "if self.value == self._proven:  # the lowest",
        "if False:  # the lowest",
        "batch/test_concurrency.py::test_the_limit_does_not_stay_at_one",
    ),
    Mutant(
        "takes timeouts for no sign of too many requests",
        "_batch/workers.py",
        "            self.limit.record_rejection(now, began)\n            self._timeouts += 1\n",
        "            self._timeouts += 1\n",
        "batch/test_workers.py::test_timeouts_lower_the_concurrency",
    ),
    Mutant(
        "uses a connection again that has more to read",
        "_batch/sender.py",
        "and not connection.closed and not _has_unread(connection):",
        "and not connection.closed:",
        "batch/test_unasked_bytes.py::test_unasked_bytes_are_no_answer",
    ),
    Mutant(
        "lets a parser collect what arrives between two requests",
        "_batch/sender.py",
        "protocol._parser = None",
        "protocol._parser = protocol._parser",
        "batch/test_unasked_bytes.py::test_unasked_bytes_are_no_answer",
    ),
    Mutant(
        "sends a request on a connection on which something arrived first",
        "_batch/sender.py",
        'if connection.transport.get_extra_info("ssl_object") is None and _has_unread(connection):',
        "if False:",
        "batch/test_unasked_bytes.py::test_bytes_before_the_first_request_are_no_answer",
    ),
    Mutant(
        "leaves a line of zero bytes in the output",
        "_batch/reader.py",
        'if (text := strip_line(raw)) or b"\\0" in raw:',
        "if text := strip_line(raw):",
        "batch/test_reader.py::test_a_line_of_zeros_is_removed_from_the_output",
    ),
    Mutant(
        "does not count the lines that have no request",
        "_batch/plan.py",
        "        index.last_line = line.number\n",
        "",
        "batch/test_reader.py::test_the_queue_finds_every_line_that_the_check_has_read",
    ),
    Mutant(
        "saves answers only on the disk that is full",
        "_batch/rescue.py",
        "                saved = self._save(path, Path(tempfile.gettempdir()), source, end, data)",
        "                raise",
        "batch/test_rescue.py::TestOutput::test_answers_are_saved_elsewhere_if_the_disk_of_the_output_is_full",
    ),
    Mutant(
        "estimates what is left by the whole input",
        "_batch/plan.py",
        "    if plan.left == plan.total:",
        "    if True:",
        "batch/test_run.py::test_a_plan_bounds_what_is_left",
    ),
    Mutant(
        "starts a batch whose inference key is the client secret",
        "_lease/endpoint.py",
        '    for name in ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"):',
        "    for name in ():",
        "batch/test_run.py::test_a_key_that_cannot_be_right_starts_nothing",
    ),
    Mutant(
        "appends options after the end of options",
        "_cli/runtime.py",
        'arguments.index("--") if "--" in arguments else len(arguments)',
        "len(arguments)",
        "cli/test_batch.py::test_the_command_that_continues_is_the_one_that_was_typed",
    ),
    Mutant(
        "uses connections again although an endpoint sends more than its answers",
        "_batch/sender.py",
        "        self._keeps_alive = self._keeps_alive and not unread\n",
        "",
        "batch/test_unasked_bytes.py::test_after_unasked_bytes_no_connection_is_used_again",
    ),
    Mutant(
        "uses a connection again after a 408",
        "_batch/sender.py",
        "if self._keeps_alive and message.code != _REQUEST_TIMEOUT:",
        "if self._keeps_alive:",
        "batch/test_unasked_bytes.py::test_a_connection_is_not_used_again_after_a_408",
    ),
    Mutant(
        "opens more connections than it has requests in flight",
        "_batch/sender.py",
        "if self._num_busy + len(self._idle) <= self._most_busy:",
        "if True:",
        "batch/test_unasked_bytes.py::test_there_are_not_more_connections_than_requests",
    ),
    Mutant(
        "takes an answer whose content is null for an answer",
        "_batch/endpoints.py",
        "    return value is not None and value not in ([], {})\n",
        "    return True\n",
        "batch/test_format.py::TestAnswers::test_an_answer_may_fail_in_other_places",
    ),
    Mutant(
        "gives up an answer with a control character in it",
        "_batch/answers.py",
        "        found = _read_answer(_mend_answer(body))\n",
        "        pass\n",
        "batch/test_format.py::TestAnswers::test_an_answer_that_is_almost_json_is_mended",
    ),
    Mutant(
        "lets httpx read the next answer from what followed the last one",
        "_batch/sender.py",
        "                        await self._end_reuse_if_unread(response)\n",
        "",
        "batch/test_unasked_bytes.py::test_unasked_bytes_are_no_answer",
    ),
    Mutant(
        "takes an interim response for the answer",
        "_batch/sender.py",
        "while message.code < 200 and message.code != 101:",
        "while False:",
        "batch/test_unasked_bytes.py::test_answers_in_every_form_are_read",
    ),
    Mutant(
        "gives up an unavailable endpoint ten times too late",
        "_batch/health.py",
        "\nOUTAGE_TIMEOUT = 180.0",
        "\nOUTAGE_TIMEOUT = 1800.0",
        "batch/test_workers.py::TestOutages::test_an_endpoint_is_given_up_after_a_long_outage",
    ),
    Mutant(
        "lets a map's items block the event loop without a turn for others",
        "_aio/feeds.py",
        "        await anyio.lowlevel.checkpoint()\n",
        "",
        "lease/test_mapping.py::test_a_synchronous_source_lets_other_tasks_run",
    ),
    Mutant(
        "leaves the items of a map open",
        "_aio/feeds.py",
        "if aclose is not None:",
        "if False:",
        "lease/test_mapping.py::test_items_with_an_aclose_are_closed_once",
    ),
    Mutant(
        "cancels the closing of a map's items",
        "_aio/tasks.py",
        "            result.error, _ = await self._block.leave(result.error)\n",
        "",
        "lease/test_mapping.py::test_a_close_is_not_cancelled",
    ),
    Mutant(
        "cancels a call of a map again when the event loop ends",
        "_lease/mapping.py",
        "            self._failed = True\n        error =",
        "            self.stop()\n        error =",
        "lease/test_mapping.py::test_the_end_of_the_loop_cancels_each_call_once",
    ),
    Mutant(
        "takes an error of a map's items for a cancellation",
        "_aio/tasks.py",
        "            result.error = explain_cancelled_error(self._name, result.error)\n",
        "",
        "lease/test_mapping.py::test_a_cancelled_error_of_the_items_is_not_a_cancellation",
    ),
    Mutant(
        "leaves the calls of a map behind in a cancelled scope",
        "_lease/mapping.py",
        "            with anyio.move_on_after(_JOIN_TIMEOUT, shield=True):\n                await",
        "            with anyio.move_on_after(_JOIN_TIMEOUT):\n                await",
        "lease/test_mapping.py::test_a_cancelled_aclose_waits_for_five_more_seconds",
    ),
    Mutant(
        "starts all leases of a fleet with the first item",
        "integrations/_fan_out.py",
        "self._queue.num_waiting <= self._room",
        "not self._queue.num_waiting",
        "integrations/test_fleets.py::test_as_many_leases_start_as_there_is_work_for",
    ),
    Mutant(
        "starts no lease of a fleet in place of one that failed",
        "integrations/_fan_out.py",
        "        finally:\n            self._starting.discard(scope)\n",
        "        finally:\n",
        "integrations/test_fleets.py::test_the_next_lease_takes_over_from_one_that_fails_or_is_lost",
    ),
    Mutant(
        "ends a fleet because an exception cannot be unpickled",
        "integrations/_worker.py",
        "if _find_problem(error, dumps) is None:",
        "if True:",
        "integrations/test_fleets.py::test_an_exception_of_work_that_cannot_be_unpickled_is_the_error_of_its_items",
    ),
    Mutant(
        "sends chunks in parallel to an instance of a fleet that may be down",
        "integrations/_fan_out.py",
        "        inst.is_probing |= is_probe\n",
        "",
        "integrations/test_fleets.py::test_an_outage_fails_no_item_and_gets_one_chunk_at_a_time",
    ),
    Mutant(
        "blames the items of a fleet for an outage",
        "integrations/_fan_out.py",
        "task.own_failures += answered_others",
        "task.own_failures += 1",
        "integrations/test_fleets.py::test_an_outage_fails_no_item_and_gets_one_chunk_at_a_time",
    ),
    Mutant(
        "gives up an instance of a fleet because of its last items",
        "integrations/_fan_out.py",
        "(task.failures if is_blamed else task.own_failures)",
        "task.own_failures",
        "integrations/test_fleets.py::test_items_that_never_succeed_do_not_fail_the_instance",
    ),
    Mutant(
        "blames an item of a fleet although another instance may answer it",
        "integrations/_fan_out.py",
        " or any(each.health.down_since is None for each in self._in_use)",
        "",
        "integrations/test_fleets.py::test_an_instance_that_is_down_fails_no_item_of_another_one",
    ),
    Mutant(
        "sends a failed item of a fleet again at once",
        "integrations/_fan_out.py",
        "delay = retry_delay(max(task.failures for task in chunk))",
        "delay = 0.0",
        "integrations/test_fleets.py::test_an_item_is_sent_again_after_a_growing_delay",
    ),
    Mutant(
        "waits for minutes for a fleet's instance that rejects the key",
        "integrations/_fan_out_queue.py",
        "if failure.status in {401, 403} else",
        "if failure.status == 403 else",
        "integrations/test_fleets.py::test_an_instance_that_does_not_answer_is_given_up",
    ),
    Mutant(
        "takes a success without an answer for one on a fleet",
        "integrations/jsonl.py",
        "if problem is not None:",
        "if False:",
        "integrations/test_fleets.py::test_a_success_without_an_answer_is_not_one",
    ),
    Mutant(
        "writes two answers of a fleet to a request",
        "integrations/jsonl.py",
        "        del self._taken[custom_id]\n",
        "",
        "integrations/test_fleets.py::test_an_answer_is_written_once",
    ),
    Mutant(
        "yields a request of a fleet again that was answered meanwhile",
        "integrations/jsonl.py",
        "        mark_done(self._preflight.done, request.number)\n",
        "",
        "integrations/test_fleets.py::test_an_answer_is_written_once",
    ),
    Mutant(
        "does not notice that the answers of a fleet are gone",
        "integrations/jsonl.py",
        "                is_unchanged = output.check_unchanged()\n                output.append([])\n",
        "                is_unchanged = True\n",
        "integrations/test_fleets.py::test_a_replaced_file_is_noticed_and_its_answers_are_saved",
    ),
    Mutant(
        "leaves the answers of a fleet in the memory of the machine",
        "integrations/jsonl.py",
        "                output.append([])\n",
        "",
        "integrations/test_fleets.py::test_answers_are_synced_at_the_end_and_not_one_by_one",
    ),
    Mutant(
        "syncs each answer of a fleet",
        "integrations/jsonl.py",
        ", sync=False)",
        ")",
        "integrations/test_fleets.py::test_answers_are_synced_at_the_end_and_not_one_by_one",
    ),
    Mutant(
        "does not read answers of a fleet again that others changed",
        "integrations/jsonl.py",
        "if not is_unchanged:",
        "if False:",
        "integrations/test_fleets.py::test_answers_that_others_changed_in_place_are_read_again",
    ),
    Mutant(
        "rejects answers of fleets from earlier versions",
        "_batch/plan.py",
        "request_id = None if is_unnamed else answer.request_id",
        "request_id = answer.request_id",
        "integrations/test_fleets.py::test_answers_of_earlier_versions_are_recognized",
    ),
    Mutant(
        "accepts answers in a batch that say not what they answer",
        "_batch/plan.py",
        "is_unnamed = not options.model and answer",
        "is_unnamed = answer",
        "batch/test_files.py::TestPreflight::test_an_answer_of_a_fleet_is_not_of_a_batch",
    ),
    Mutant(
        "does not cut off the torn line of a fleet from an earlier version",
        "_batch/reader.py",
        """(b'{"id":"batch_req_', b'{"id": "fleet_req_')""",
        """(b'{"id":"batch_req_',)""",
        "integrations/test_fleets.py::test_answers_of_earlier_versions_are_recognized",
    ),
    Mutant(
        "sends requests at full concurrency during an outage",
        "_batch/workers.py",
        "if self._test is None and self._attempts.health.down_since is None else 0",
        "if self._test is None else 0",
        "batch/test_run.py::TestFailures::test_an_outage_fails_no_request",
    ),
    Mutant(
        "continues the output of another input",
        "_batch/index.py",
        "if found is None or request not in (_ANY_REQUEST, found[0], legacy.get(key)):",
        "if found is None:",
        "batch/test_files.py::TestPreflight::test_the_output_of_a_changed_request_is_an_error",
    ),
    Mutant(
        "writes to an output that another process is writing",
        "_batch/output.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "batch/test_files.py::TestOutput::test_two_processes_cannot_write_one_file",
    ),
    Mutant(
        "leaves a torn line in an output",
        "_batch/output.py",
        "            if self._end > end:",
        "            if False:",
        "batch/test_files.py::TestPreflight::test_an_incomplete_last_line_is_cut_off",
    ),
    Mutant(
        "leaves a partial line in an output when the disk is full",
        "_batch/output.py",
        "os.ftruncate(self._fd, self._end)",
        "os.fstat(self._fd)",
        "batch/test_files.py::TestOutput::test_a_full_disk_leaves_complete_lines",
    ),
    Mutant(
        "does not notice that another program has removed the output",
        "_batch/output.py",
        "                self._check(data)\n",
        "",
        "batch/test_rescue.py::TestOutput::test_a_change_is_an_error_that_names_the_saved_answers",
    ),
    Mutant(
        "completes a batch whose output was removed at the end",
        "_batch/output.py",
        '            if not self._is_closed:\n                self._check(b"")\n',
        "",
        "batch/test_rescue.py::TestBatch::test_a_changed_output_ends_the_batch_at_once",
    ),
    Mutant(
        "completes a batch whose answers were overwritten in place",
        "_batch/run.py",
        "    if await threads.run_in_thread(output.check_unchanged):",
        "    if True:",
        "batch/test_rescue.py::TestBatch::test_answers_that_were_overwritten_are_missed",
    ),
    Mutant(
        "sorts over an output that another program has replaced",
        "_batch/output.py",
        '            self._check(b"")\n            draft.replace(self._location)',
        "            draft.replace(self._location)",
        "batch/test_rescue.py::TestOutput::test_a_rewrite_does_not_replace_a_changed_file",
    ),
    Mutant(
        "loses the earlier answers of an output that was removed",
        "_batch/rescue.py",
        "            saved = _copy_lines(source, self._fd, end) + ",
        "            saved = ",
        "batch/test_rescue.py::TestOutput::test_a_change_is_an_error_that_names_the_saved_answers",
    ),
    Mutant(
        "loses the last answers after an output was removed",
        "_batch/output.py",
        "            self._rescue.append(data)\n",
        "",
        "batch/test_rescue.py::TestOutput::test_a_change_is_an_error_that_names_the_saved_answers",
    ),
    Mutant(
        "does not say where the answers are when a batch is cancelled",
        "_batch/run.py",
        "                if self._error is not None:\n                    log(",
        "                if False:\n                    log(",
        "batch/test_rescue.py::TestBatch::test_a_removed_output_is_reported_when_the_batch_is_cancelled",
    ),
    Mutant(
        "writes a draft through a prepared link",
        "_batch/rescue.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC",
        "os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC",
        "batch/test_rescue.py::TestDrafts::test_a_draft_is_never_a_file_that_exists",
    ),
    Mutant(
        "gives drafts a predictable name",
        "_batch/output.py",
        "{secrets.token_hex(16)}.new",
        "{'0' * 32}.new",
        "batch/test_rescue.py::TestDrafts::test_names_cannot_be_predicted",
    ),
    Mutant(
        "leaves the drafts of killed processes",
        "_batch/output.py",
        "                        Path(entry).unlink()",
        "                        pass",
        "batch/test_rescue.py::TestDrafts::test_drafts_of_killed_processes_are_deleted",
    ),
    Mutant(
        "deletes files of others that are named like its drafts",
        "_batch/output.py",
        "if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():",
        "if not stat.S_ISDIR(status.st_mode):",
        "batch/test_rescue.py::TestDrafts::test_drafts_of_other_users_are_kept",
    ),
    Mutant(
        "deletes an empty file that has replaced its output",
        "_batch/output.py",
        "                    if self._find_change() is None:\n",
        "                    if True:\n",
        "batch/test_rescue.py::TestOutput::test_an_empty_file_of_another_program_is_not_deleted",
    ),
    Mutant(
        "takes zero bytes for a part of a line",
        "_batch/reader.py",
        '_PADDING = b" \\t\\n\\v\\f\\r\\0"',
        '_PADDING = b" \\t\\n\\v\\f\\r"',
        "batch/test_reader.py::TestBothFiles::test_blank_lines_are_skipped",
    ),
    Mutant(
        "leaves zero bytes in an output",
        "_batch/plan.py",
        "if output is None or not (retries or has_zeros):",
        "if output is None or not retries:",
        "batch/test_reader.py::TestPowerFailures::test_zeros_before_other_lines_are_removed",
    ),
    Mutant(
        "sends a request again because its answer has no line break",
        "_batch/reader.py",
        " or _is_json(line.text):",
        ":",
        "batch/test_reader.py::TestBothFiles::test_a_last_line_without_a_line_break_is_read",
    ),
    Mutant(
        "removes lines of another file that contains zero bytes",
        "_batch/reader.py",
        "or (line.has_zeros and (is_output or _is_answer(following)))",
        "or line.has_zeros",
        "batch/test_reader.py::TestPowerFailures::test_another_file_is_not_changed",
    ),
    Mutant(
        "rejects an output whose last lines lost their beginning in a power failure",
        "_batch/reader.py",
        "or (line.has_zeros and (is_output or _is_answer(following)))",
        "or False",
        "batch/test_reader.py::TestPowerFailures::test_no_synced_answer_is_lost",
    ),
    Mutant(
        "joins a new answer to a line without a line break",
        "_batch/output.py",
        "            if not is_terminated:",
        "            if False:",
        "batch/test_reader.py::TestBothFiles::test_a_last_line_without_a_line_break_is_read",
    ),
    Mutant(
        "takes a truncated compressed input for a complete one",
        "_batch/reader.py",
        'raise _DamagedError("the compressed data is truncated") from None',
        "return 0",
        "batch/test_reader.py::TestCompressedInputs::test_a_truncated_file_is_an_error_with_its_line",
    ),
    Mutant(
        "does not count the lines before the damage of a compressed input",
        "_batch/reader.py",
        "                number = line.number\n",
        "                pass\n",
        "batch/test_reader.py::TestCompressedInputs::test_a_damaged_file_is_an_error_with_its_line",
    ),
    Mutant(
        "does not notice that the link to the output was replaced",
        "_batch/output.py",
        "os.path.samestat(status, self._name.stat())",
        "os.path.samestat(status, self._location.stat())",
        "batch/test_reader.py::TestPaths::test_an_output_whose_link_is_replaced_is_saved",
    ),
    Mutant(
        "forgets that the output was changed in place",
        "_batch/output.py",
        "self._is_doubtful |= status.st_mtime_ns != self._mtime",
        "self._is_doubtful = status.st_mtime_ns != self._mtime",
        "batch/test_rescue.py::TestOutput::test_a_change_in_place_is_noticed_until_it_is_read",
    ),
    Mutant(
        "loses answers when a batch is cancelled",
        "_batch/run.py",
        "            try:\n                await self._flush(writer)\n",
        "            try:\n                pass\n",
        "batch/test_run.py::TestCancellation::test_answers_are_written_before_a_cancellation",
    ),
    Mutant(
        "loses the requests under way on a lost instance",
        "_batch/workers.py",
        "            self.queue.put_back(request)\n            raise",
        "            raise",
        "batch/test_workers.py::test_requests_in_flight_on_a_lost_instance_are_sent_to_another",
    ),
    Mutant(
        "counts an outage of the endpoint against its requests",
        "_batch/attempts.py",
        "request.own_failures += not (is_joint or is_timeout)",
        "request.own_failures += 1",
        "batch/test_suspects.py::TestCulprits::test_a_proxy_may_answer_for_a_server_that_stops",
    ),
    Mutant(
        "takes an answer to a later request for a sign that the server has not stopped",
        "_batch/suspects.py",
        "while self._failures and self._failures[-1][0] > attempt:",
        "while self._failures:",
        "batch/test_suspects.py::TestInFlight::test_an_answer_to_a_later_attempt_shows_nothing",
    ),
    Mutant(
        "never tests requests that fail together",
        "_batch/suspects.py",
        "\n_MAX_JOINT_FAILURES = 2",
        "\n_MAX_JOINT_FAILURES = 1000",
        "batch/test_suspects.py::TestCulprits::test_a_culprit_is_found_within_the_bound",
    ),
    Mutant(
        "blames all requests in flight for a hang",
        "_batch/attempts.py",
        "                request.timeouts += answered_at_once\n"
        "                request.joint_failures += not answered_at_once\n",
        "                request.timeouts += 1\n",
        "batch/test_suspects.py::TestHangs::test_no_other_request_is_blamed_for_a_hang",
    ),
    Mutant(
        "blames requests for a hang that ended before their timeout",
        "_batch/attempts.py",
        "is_timeout and attempt <= self._last_doubted",
        "False",
        "batch/test_suspects.py::TestHangs::test_no_other_request_is_blamed_for_a_hang",
    ),
    Mutant(
        "takes requests that take too long for a hang",
        "_batch/attempts.py",
        "                request.timeouts += answered_at_once\n"
        "                request.joint_failures += not answered_at_once\n",
        "                request.joint_failures += 1\n",
        "batch/test_suspects.py::TestHangs::test_requests_that_take_too_long_are_not_tested_alone",
    ),
    Mutant(
        "tests suspects in halves",
        "_batch/suspects.py",
        "\n_DIVISOR = 8",
        "\n_DIVISOR = 2",
        "batch/test_suspects.py::TestSteps::test_groups_are_an_eighth_and_at_most_the_limit",
    ),
    Mutant(
        "tests suspects while other requests are in flight",
        "_batch/workers.py",
        "            while self._size or self._is_probing:\n                await self._stopped.wait()\n",
        "",
        "batch/test_suspects.py::TestCulprits::test_no_other_request_is_in_flight_during_a_test",
    ),
    Mutant(
        "blames a lost connection on a request without a test",
        "_batch/suspects.py",
        "return NextStep.SUSPECT if reason in _MAY_BE_CRASH else NextStep.GIVE_UP",
        "return NextStep.GIVE_UP",
        "batch/test_suspects.py::TestCulprits::test_one_of_several_processes_may_stop",
    ),
    Mutant(
        "does not wait for answers that were sent before the server stopped",
        "_batch/attempts.py",
        "await anyio.sleep(_SETTLE_SECONDS)",
        "pass",
        "batch/test_suspects.py::TestCulprits::"
        "test_an_answer_that_is_read_late_does_not_show_that_the_server_runs",
    ),
    Mutant(
        "loses the suspects of a lost instance",
        "_batch/request_queue.py",
        "        for request in untested:\n            self.add_suspect(request)\n",
        "",
        "batch/test_suspects.py::TestCulprits::test_suspects_of_a_lost_instance_are_tested_on_another",
    ),
    Mutant(
        "lets a request wait for ever for the verdict of a lost instance",
        "_batch/workers.py",
        "            self._attempts.end()\n",
        "            pass\n",
        "batch/test_suspects.py::test_a_request_does_not_wait_for_the_verdict_of_a_lost_instance",
    ),
    Mutant(
        "gives up a request after one failure alone",
        "_batch/suspects.py",
        "\n_MAX_CRASHES = 2",
        "\n_MAX_CRASHES = 1",
        "batch/test_suspects.py::TestSteps::test_the_next_step_after_a_failure_in_a_test",
    ),
    Mutant(
        "sends a request without a verdict again and again",
        "_batch/suspects.py",
        "        return NextStep.AWAIT_VERDICT\n    return",
        "        return NextStep.RETRY\n    return",
        "batch/test_workers.py::TestPoison::test_max_retries_limits_the_attempts",
    ),
    Mutant(
        "counts a refused connection against a request",
        "_batch/outcome.py",
        "    FailureKind.NOT_SENT: FailureReason.NOT_SENT,\n",
        "    FailureKind.NOT_SENT: FailureReason.LOST,\n",
        "batch/test_outcome.py::test_the_reason_of_a_failure",
    ),
    Mutant(
        "tries again what a model server has refused in its own words",
        "_batch/outcome.py",
        '_ERROR_KEYS = ("error", "errors", "detail", "message", "msg", "title")',
        '_ERROR_KEYS = ("error",)',
        "batch/test_outcome.py::test_a_refusal_in_the_words_of_any_server_ends_a_request",
    ),
    Mutant(
        "takes the error of a proxy for a refusal",
        "_batch/outcome.py",
        "isinstance(each, dict) and any(_has_text(each.get(key)) for key in _ERROR_KEYS) for each in errors",
        "isinstance(each, dict) for each in errors",
        "batch/test_outcome.py::test_a_400_that_a_proxy_may_have_sent_is_no_refusal",
    ),
    Mutant(
        "takes an error inside a successful response for an answer",
        "_batch/outcome.py",
        "    if line.problem is not None:\n",
        "    if False:\n",
        "batch/test_workers.py::TestErrorsInAnswers::test_a_request_gets_its_retries",
    ),
    Mutant(
        "writes error lines for a whole batch behind a broken gateway",
        "_batch/attempts.py",
        "\n_MAX_ANSWERED_ERRORS = 8",
        "\n_MAX_ANSWERED_ERRORS = 1000000",
        "batch/test_workers.py::TestErrorsInAnswers::test_a_broken_gateway_is_given_up_without_error_lines",
    ),
    Mutant(
        "pays for an endpoint that answers only probes",
        "_batch/workers.py",
        "if not health.rejects_all(now):",
        "if True:",
        "batch/test_workers.py::TestOutages::test_an_endpoint_that_answers_only_probes_is_given_up",
    ),
    Mutant(
        "never blames many requests in a row for errors in answers",
        "_batch/attempts.py",
        "request.own_failures += answered_at_once",
        "pass",
        "batch/test_workers.py::TestErrorsInAnswers::test_requests_at_the_end_that_always_fail_get_error_lines",
    ),
    Mutant(
        "counts an outage that is answered as a success against the requests",
        "_batch/attempts.py",
        "request.own_failures += answered_at_once",
        "request.own_failures += 1",
        "batch/test_workers.py::TestErrorsInAnswers::test_all_requests_are_answered_after_an_outage",
    ),
    Mutant(
        "counts one answer for each prompt in an estimate",
        "_batch/estimate.py",
        "            answers = max(answers, number)",
        "            pass",
        "batch/test_estimate.py::test_the_answers_of_a_chat",
    ),
    Mutant(
        "counts a list of prompts as one in an estimate",
        "_batch/estimate.py",
        "self.limited += prompts * answers * limit",
        "self.limited += answers * limit",
        "batch/test_estimate.py::test_each_prompt_of_a_list_has_its_answers_and_its_own_context",
    ),
    Mutant(
        "leaves answers without a limit out of an estimate",
        "_batch/estimate.py",
        "return self.limited + self.unlimited * (context_length or 0)",
        "return self.limited",
        "batch/test_estimate.py::test_an_answer_without_a_usable_limit_can_fill_the_context",
    ),
    Mutant(
        "does not say that a prompt has attachments in an estimate",
        "_batch/estimate.py",
        "                attachments += 1\n",
        "                pass\n",
        "batch/test_estimate.py::test_attachments_are_counted_and_not_measured",
    ),
    Mutant(
        "does not say how far a cancelled batch came",
        "_batch/run.py",
        "                self._report(counter).attach(error)\n",
        "",
        "batch/test_ends.py::test_a_cancellation_says_how_far_the_batch_came",
    ),
    Mutant(
        "calls an instance released whose release failed",
        "_lease/release.py",
        "released=failure is None and release.goal is not None",
        "released=True",
        "batch/test_ends.py::test_an_instance_that_could_not_be_released_is_named",
    ),
    Mutant(
        "says after a batch that nothing is left running when something may be",
        "_cli/batch.py",
        "    if report.unreleased:\n        ids",
        "    if False:\n        ids",
        "cli/test_batch.py::test_the_facts_of_an_early_end",
    ),
    Mutant(
        "starts a batch without a usable inference key",
        "_cli/batch.py",
        '    """Run the batch, print how it ended, and return the exit code."""\n    check_inference_key()\n',
        '    """Run the batch, print how it ended, and return the exit code."""\n',
        "cli/test_batch.py::test_nothing_is_started_without_a_usable_inference_key",
    ),
    Mutant(
        "prints a traceback at a Ctrl-C while Python exits",
        "__main__.py",
        "        _exit_at_interrupt(exit_code)\n",
        "",
        "cli/test_batch_ends.py::test_ctrl_c_while_python_exits_does_not_change_the_exit_code",
    ),
    # Telemetry and layers
    Mutant(
        "lets an exception in telemetry end a lease",
        "_telemetry.py",
        "            self._observer.failed(call)\n",
        "            raise error\n",
        "test_telemetry.py::test_telemetry_that_always_raises_changes_nothing",
    ),
    Mutant(
        "lets an exception in telemetry end a request",
        "_telemetry.py",
        '            self.failed("retry")\n',
        "            raise\n",
        "test_telemetry.py::test_telemetry_that_always_raises_changes_nothing",
    ),
    Mutant(
        "swallows a signal that interrupts telemetry",
        "_telemetry.py",
        "            self.interruption = error\n        else:",
        "            pass\n        else:",
        "test_telemetry.py::test_a_signal_that_hits_telemetry_ends_the_program_after_the_release",
    ),
    Mutant(
        "shares code with the emulator",
        "emulator/_instance.py",
        "import math\n",
        "import math\n\nfrom cortecs_async._api import matching as _matching\n",
        "test_layers.py::test_the_package_keeps_its_layers",
    ),
    Mutant(
        "imports httpx in a module that must not depend on it",
        "_http/limiter.py",
        "import anyio\n",
        "import anyio\nimport httpx as httpx\n",
        "test_layers.py::test_the_package_keeps_its_layers",
    ),
    Mutant(
        "does not poll on a spare connection when the caller's http_client has none free",
        "_http/transport.py",
        "call.priority is not Priority.CALL",
        "call.priority is Priority.RELEASE",
        "http/test_transport.py::test_only_the_callers_own_requests_wait_for_a_free_connection",
    ),
    Mutant(
        "forgets the client secret after some dozens of tokens",
        "_secrets.py",
        "            self._secrets.remove(secret)\n",
        "            return\n",
        "test_secrets.py::test_the_secret_is_redacted_after_many_tokens",
    ),
    Mutant(
        "never wakes its reaper for an instance that it has given up",
        "_recovery/records.py",
        "        if self.abandoned:\n            return 0.0",
        "        if False:\n            return 0.0",
        "recovery/test_mutations.py::test_a_reaper_does_not_begin_twice_with_the_same_instance",
    ),
    # The command line, which can reach the whole account
    Mutant(
        "deletes running instances with `rm --all`",
        "_cli/instances.py",
        "if stop_first or has_ended(instance)]",
        "if True]",
        "cli/test_instances.py::TestStopAndRemove::test_rm_all_without_force_skips_running_instances",
    ),
    Mutant(
        "stops or deletes the whole account although it cannot ask for confirmation",
        "_cli/instances.py",
        "        if not _is_terminal():\n",
        "        if False:\n",
        "cli/test_instances.py::TestStopAndRemove::test_all_needs_a_confirmation",
    ),
    Mutant(
        "stops what was started after the list was shown",
        "_cli/instances.py",
        "    return tuple(instance.instance_id for instance in instances)\n",
        "    return tuple(instance.instance_id for instance in _list())\n",
        "cli/test_instances.py::TestStopAndRemove::test_all_spares_instances_started_after_the_list",
    ),
    # The rules of evidence
    Mutant(
        "has a sweep that does not notice what the living reaper of its process has done",
        "_recovery/sweep.py",
        "            promises.store.commit()  # what the reaper has done meanwhile\n",
        "",
        "recovery/test_search.py::test_a_search_ends_when_another_process_has_closed_the_promise",
    ),
    Mutant(
        "closes a start of long ago because its last list lacks the instances",
        "_recovery/search.py",
        "RecentLists(3 * _SLOW_LIST_INTERVAL)",
        "RecentLists(ABSENCE_SPAN)",
        "recovery/test_search.py::test_no_single_list_of_a_search_long_after_the_start_closes_it",
    ),
    Mutant(
        "takes an equal tag as proof",
        "_api/matching.py",
        "    group, candidates = _connected(start, starts, instances, fits)\n",
        "    if len(own := [each for each in instances if start.has_tag_of(each)]) == 1:\n"
        "        return own[0]\n"
        "    group, candidates = _connected(start, starts, instances, fits)\n",
        "lease/test_starter.py::TestJudging::test_an_equal_tag_is_no_proof",
    ),
    Mutant(
        "explains a new instance by a start of long ago",
        "_api/matching.py",
        "latest - start.order[1] > LATE_WINDOW\n",
        "False\n",
        "lease/test_starter.py::TestJudging::test_a_start_of_long_ago_explains_no_new_instance",
    ),
    Mutant(
        "loses the oldest baselines when it rewrites its journal",
        "_recovery/records.py",
        "records.append(baselines.pop(promise.baseline))",
        "records.insert(0, baselines.pop(promise.baseline))",
        "recovery/test_search.py::test_a_snapshot_keeps_the_baselines_of_all_starts",
    ),
    Mutant(
        "takes any instance if it has lost its baseline",
        "_recovery/records.py",
        'return self.baselines.get(promise.baseline or "")',
        'return self.baselines.get(promise.baseline or "", frozenset())',
        "recovery/test_search.py::test_without_its_baseline_no_instance_is_attributed_to_a_start",
    ),
    Mutant(
        "closes a lost start on the first list after an outage",
        "_recovery/search.py",
        "grace = _AFTER_OUTAGE if is_outage else 0.0 if self._appears_until else ABSENCE_SPAN",
        "grace = 0.0",
        "recovery/test_search.py::test_one_list_after_a_long_outage_closes_nothing",
    ),
    Mutant(
        "searches on for a start that another process has closed",
        "_recovery/search.py",
        "            self._drop_decided()\n",
        "",
        "recovery/test_search.py::test_a_search_ends_when_another_process_has_closed_the_promise",
    ),
    Mutant(
        "believes a stopped state of before a restart",
        "_api/teardown.py",
        "if state is ObservedState.STOPPED and self.goal is Goal.STOPPED and self.stopped_at is None:",
        "if False:",
        "api/test_teardown.py::test_a_reading_of_before_a_restart_does_not_count_as_stopped",
    ),
    Mutant(
        "decides about a lost start on the last list alone",
        "_api/listing.py",
        "if now - value.last < self.span}",
        "if now == value.last}",
        "lease/test_starter.py::test_the_last_list_alone_does_not_decide_that_nothing_was_started",
    ),
    Mutant(
        "takes the first instance that a list shows after a cancelled start",
        "_lease/start_search.py",
        "seconds = span if is_over or to_release else math.inf",
        "seconds = -1.0 if is_over or to_release else math.inf",
        "lease/test_starter.py::test_cancelled_while_it_is_looked_for_it_does_not_take_the_first_that_is_listed",
    ),
    Mutant(
        "takes an instance long after its lost start",
        "_lease/start_search.py",
        "while self.promises.is_late(key) and ",
        "while ",
        "recovery/test_search.py::test_the_end_of_a_block_takes_nothing_that_appears_more_than_five_minutes_after_its_lost_start",
    ),
    Mutant(
        "only queues the record that a start was refused",
        "_recovery/promises.py",
        "        (await run_uncancellable(self.flush, restart_if_cancelled=True)).unwrap()\n",
        "",
        "recovery/test_evidence.py::test_a_refused_start_leaves_no_promise",
    ),
    Mutant(
        "does not sync the record that a start was refused to disk",
        "_recovery/promises.py",
        '{"kind": "GONE", "entry": key, "durable": True}',
        '{"kind": "GONE", "entry": key}',
        "recovery/test_evidence.py::test_a_refused_start_leaves_no_promise",
    ),
    Mutant(
        "lets a cancellation interrupt the record that a start was refused",
        "_recovery/promises.py",
        "(await run_uncancellable(self.flush, restart_if_cancelled=True)).unwrap()",
        "await self.flush()",
        "recovery/test_evidence.py::test_a_start_that_is_cancelled_while_its_refusal_is_recorded_leaves_no_promise",
    ),
    Mutant(
        "leaves the promise of a start whose coroutine was closed",
        "_recovery/promises.py",
        "        except GeneratorExit:\n            self.close_soon(key)\n            raise\n",
        "        except GeneratorExit:\n            raise\n",
        "recovery/test_evidence.py::test_a_start_whose_coroutine_is_closed_after_its_intent_leaves_no_promise",
    ),
    Mutant(
        "considers a refusal in JSON as a lost response",
        "_http/retry.py",
        "return not failure.reason and (",
        "return (",
        "recovery/test_evidence.py::test_a_refused_start_leaves_no_promise",
    ),
    Mutant(
        "considers a 500 in JSON as a refusal",
        "_http/retry.py",
        "frozenset({500, 504})",
        "frozenset()",
        "lease/test_starter.py::test_the_block_runs_as_if_nothing_had_happened",
    ),
    Mutant(
        "forgets the instances of closed promises",
        "_recovery/records.py",
        "            self.add_past(promise.instance_id, promise.api)\n",
        "            pass\n",
        "recovery/test_evidence.py::test_the_instance_of_a_closed_promise_stays_known",
    ),
    Mutant(
        "drops the instances of closed promises when it rewrites its journal",
        "_recovery/records.py",
        '            records.append({"kind": "PAST", "api": api, "ids": ids})\n',
        "            pass\n",
        "recovery/test_evidence.py::test_the_instance_of_a_closed_promise_stays_known",
    ),
    Mutant(
        "takes the id of another service's instance for a claim",
        "_recovery/claims.py",
        " if service in {None, api}",
        "",
        "recovery/test_evidence.py::test_the_ids_of_another_service_are_no_claims",
    ),
    Mutant(
        "reads the claims of other processes only after the list",
        "_recovery/claims.py",
        "ids=self.ids | earlier.ids,",
        "ids=self.ids,",
        "recovery/test_evidence.py::test_a_claim_that_was_given_up_after_the_list_was_read_counts",
    ),
    Mutant(
        "decides about a lost start without the lock",
        "_recovery/promises.py",
        "            with self.store.decision_lock():\n",
        "            with contextlib.nullcontext():\n",
        "recovery/test_evidence.py::test_only_one_process_decides_at_a_time",
    ),
    Mutant(
        "decides about the starts of dead processes without the lock",
        "_recovery/search.py",
        "        with self.decision_lock():\n",
        "        if True:\n",
        "recovery/test_evidence.py::test_only_one_process_decides_at_a_time",
    ),
    Mutant(
        "does not include instances that it cannot read in the baseline",
        "_lease/starter.py",
        "existing_ids(listing.instances)",
        "{each.instance_id for each in listing.instances}",
        "recovery/test_evidence.py::test_an_instance_that_could_not_be_read_before_the_start_is_not_taken",
    ),
    Mutant(
        "ignores timestamps",
        "_api/matching.py",
        "return -_MAX_BEFORE_START <= age <= _MAX_AFTER_START",
        "return True",
        "recovery/test_evidence.py::test_a_hidden_instance_that_a_colleague_restarts_is_not_touched",
    ),
    Mutant(
        "believes timestamps that are ahead of the service's clock",
        "_api/matching.py",
        "if is_ahead or age < -_MAX_STAMP_AGE:",
        "if age < -_MAX_STAMP_AGE:",
        "recovery/test_evidence.py::test_a_lost_start_is_found_whatever_the_timestamp_means",
    ),
    Mutant(
        "believes timestamps that are years old",
        "_api/matching.py",
        "if is_ahead or age < -_MAX_STAMP_AGE:",
        "if is_ahead:",
        "recovery/test_evidence.py::test_a_lost_start_is_found_whatever_the_timestamp_means",
    ),
    Mutant(
        "compares timestamps with its own clock",
        "_recovery/records.py",
        "promise.service_at = None if service_at is None else float(service_at)",
        "promise.service_at = promise.at",
        "recovery/test_evidence.py::test_a_lost_start_is_found_whatever_the_timestamp_means",
    ),
    Mutant(
        "gives up on an instance that its timestamp contradicts",
        "_recovery/search.py",
        "and start.is_contradicted_by(each, listing.date)\n",
        "and False\n",
        "recovery/test_evidence.py::test_a_hidden_instance_that_a_colleague_restarts_is_not_touched",
    ),
    Mutant(
        "does not exclude instances without the tag of a start",
        "_api/matching.py",
        "is_unlikely = has_other_length or self.is_confirmed_by",
        "is_unlikely = self.is_confirmed_by",
        "lease/test_tags.py::test_an_instance_without_the_tag_is_not_taken",
    ),
    Mutant(
        "does not consider a tag as proof",
        "_api/matching.py",
        "return self._is_new(instance) and (\n            self.has_tag_of(instance) or",
        "return self._is_new(instance) and (",
        "lease/test_starter.py::TestJudging::test_a_tag_is_proof_and_other_tags_are_proof_to_the_contrary",
    ),
    Mutant(
        "takes an instance with the tag of another start",
        "_api/matching.py",
        "            and (instance.instance_id not in tagged or start.has_tag_of(instance))\n",
        "",
        "lease/test_starter.py::TestJudging::test_a_tag_is_proof_and_other_tags_are_proof_to_the_contrary",
    ),
    Mutant(
        "lowers a context length by more than a percent",
        "_api/matching.py",
        "MAX_TAG_SHARE = 0.01",
        "MAX_TAG_SHARE = 0.02",
        "lease/test_tags.py::test_a_tag_is_less_than_a_percent_and_more_than_nothing",
    ),
    Mutant(
        "records no tag in the intent",
        "_recovery/promises.py",
        '            "tag": tag,\n',
        '            "tag": None,\n',
        "lease/test_tags.py::test_the_tag_is_in_the_intent_before_the_start_is_sent",
    ),
    Mutant(
        "continues to tag starts although the service does not return the tag",
        "_lease/tags.py",
        "            self.enabled = False\n",
        "            pass\n",
        "lease/test_tags.py::test_a_service_that_does_not_return_the_tag_is_noted_once",
    ),
    Mutant(
        "does not let starts that a lease waits for come first",
        "_recovery/claims.py",
        "return start.as_last() if state.is_orphaned or promise.abandoned else start",
        "return start",
        "recovery/test_evidence.py::test_starts_that_no_lease_waits_for_come_last",
    ),
    Mutant(
        "does not look for an earlier lost start at the release",
        "_lease/release.py",
        "            await self._find_not_seen()\n",
        "",
        "recovery/test_evidence.py::test_a_lease_that_started_again_does_not_leave_its_first_instance",
    ),
    Mutant(
        "closes a lost start whose instance has not appeared",
        "_lease/start_search.py",
        "self.promises.record_abandoned(start.key)",
        "self.promises.record_gone(start.key)",
        "recovery/test_evidence.py::test_a_lease_that_started_again_does_not_leave_its_first_instance",
    ),
    Mutant(
        "has a reaper that searches for a minute only",
        "_api/matching.py",
        "LATE_WINDOW = 300.0",
        "LATE_WINDOW = 60.0",
        "recovery/test_evidence.py::test_a_lost_start_of_a_killed_process_that_is_carried_out_late_is_released",
    ),
    Mutant(
        "has a reaper that takes the first candidate at once",
        "_recovery/search.py",
        "outcome = agreed(outcome, self._recent, seconds=_MIN_LISTED)",
        "pass",
        "recovery/test_mutations.py::test_the_reaper_looks_for_the_instance_of_a_lost_start_for_five_minutes",
    ),
    Mutant(
        "ends a watch after one reading without the instance",
        "_api/polling.py",
        "and now - self.missing_since > self.absence - 1e-6",
        "",
        "recovery/test_evidence.py::test_one_reading_without_the_instance_does_not_end_a_watch",
    ),
    Mutant(
        "considers an instance as released after one reading without it",
        "_api/teardown.py",
        "if self.asked_again and now >= max(agree_at, self.visible_at):",
        "if True:",
        "recovery/test_evidence.py::test_a_release_is_not_done_because_the_instance_cannot_be_seen",
    ),
    Mutant(
        "does not ask for a second stop before an instance counts as gone",
        "_api/teardown.py",
        "if self.asked_again and now",
        "if now",
        "recovery/test_evidence.py::test_a_release_is_not_done_because_the_instance_cannot_be_seen",
    ),
    Mutant(
        "removes a journal while another process needs its instances",
        "_recovery/journal.py",
        "if not (state.past_ids and keeps_past_ids):",
        "if True:",
        "recovery/test_evidence.py::test_the_journal_that_names_a_kept_instance_is_removed_once_no_start_needs_it",
    ),
    Mutant(
        "has a sweep that believes one list",
        "_recovery/sweep.py",
        "                tasks.start_soon(read, instance_id)\n",
        "                pass\n",
        "recovery/test_evidence.py::test_no_list_alone_settles_an_ambiguous_start",
    ),
    # Files that are not ours
    Mutant(
        "removes a file that it does not understand",
        "_recovery/journal.py",
        "if not state.promises and self._is_understood():",
        "if not state.promises:",
        "recovery/test_foreign_files.py::test_a_file_that_is_not_understood_is_kept_and_named",
    ),
    Mutant(
        "removes a journal with lines that it does not understand",
        "_recovery/records.py",
        "        if record is None or not state.apply(record):\n",
        "        if record is not None and not state.apply(record) and False:\n",
        "recovery/test_foreign_files.py::test_a_file_that_is_not_understood_is_kept_and_named",
    ),
    Mutant(
        "takes any end of a journal for a torn record",
        "_recovery/records.py",
        "return _begins_like(rest, _RECORD_START)",
        "return True",
        "recovery/test_foreign_files.py::test_a_file_that_is_not_understood_is_kept_and_named",
    ),
    Mutant(
        "keeps a journal whose last record is torn",
        "_recovery/records.py",
        "return _begins_like(rest, _RECORD_START)",
        "return not rest",
        "recovery/test_foreign_files.py::test_a_journal_without_promises_is_removed_if_all_of_it_is_understood",
    ),
    Mutant(
        "takes any .jsonl for a journal",
        "_recovery/journal.py",
        '_NAME = re.compile(r"[0-9a-f]{32}\\.jsonl")',
        '_NAME = re.compile(r".*\\.jsonl")',
        "recovery/test_foreign_files.py::test_only_exact_names_and_regular_files_of_this_user_are_used",
    ),
    Mutant(
        "takes any .new for a draft",
        "_recovery/journal.py",
        '_DRAFT_NAME = re.compile(r"[0-9a-f]{32}\\.new")',
        '_DRAFT_NAME = re.compile(r".*\\.new")',
        "recovery/test_foreign_files.py::test_only_exact_names_and_regular_files_of_this_user_are_used",
    ),
    Mutant(
        "removes an old draft that it does not understand",
        "_recovery/journal.py",
        "if is_draft(_read(fd)):",
        "if True:",
        "recovery/test_foreign_files.py::test_an_old_draft_that_is_not_understood_is_kept",
    ),
    Mutant(
        "removes the draft of a living process",
        "_recovery/journal.py",
        "                lock(fd)  # which fails while its process lives\n",
        "",
        "recovery/test_journal.py::TestFile::test_a_draft_that_is_still_written_is_kept_at_any_age",
    ),
    Mutant(
        "sweeps the journal of a newer version",
        "_recovery/journal.py",
        "        if state.has_other_format:\n",
        "        if False:\n",
        "recovery/test_foreign_files.py::TestNewerFormat::test_its_instances_are_reported_and_not_touched",
    ),
    Mutant(
        "does not read the format of a journal",
        "_recovery/records.py",
        'return bool(self.owner.get("format", FORMAT) != FORMAT)',
        "return False",
        "recovery/test_foreign_files.py::TestNewerFormat::test_its_instances_are_reported_and_not_touched",
    ),
    Mutant(
        "takes an instance that a newer version has recorded",
        "_recovery/records.py",
        "                if isinstance(each, str):\n                    state.add_past(each)\n",
        "                pass\n",
        "recovery/test_foreign_files.py::TestNewerFormat::test_no_start_takes_its_instances",
    ),
    Mutant(
        "locks journals to list orphans",
        "_recovery/dead_journals.py",
        "for journal, state in orphaned_journals(self._directory) if lock else ():",
        "for journal, state in orphaned_journals(self._directory):",
        "recovery/test_foreign_files.py::test_orphans_does_not_look_like_an_owner",
    ),
    Mutant(
        "writes its first record to the end of a torn one",
        "_recovery/dead_journals.py",
        "                _end_torn_line(journal)\n",
        "                pass\n",
        "recovery/test_foreign_files.py::test_a_record_after_a_torn_line_can_be_read",
    ),
    Mutant(
        "has a cancelled sweep that keeps the locks",
        "_recovery/dead_journals.py",
        "            self._is_closed = True\n",
        "            pass\n",
        "recovery/test_sweep.py::test_a_sweep_that_ends_while_it_reads_the_journals_keeps_no_lock",
    ),
    Mutant(
        "has a sweep whose releases may exceed its timeout",
        "_recovery/sweep.py",
        "    with anyio.CancelScope(deadline=deadline):\n        await recovery.run(undecided)",
        "    if True:\n        await recovery.run(undecided)",
        "recovery/test_sweep.py::test_a_sweep_whose_later_lists_hang_ends_within_its_timeout",
    ),
    Mutant(
        "has a sweep whose first list may exceed its timeout",
        "_recovery/sweep.py",
        "        with anyio.CancelScope(deadline=deadline) as scope:\n",
        "        with anyio.CancelScope() as scope:\n",
        "recovery/test_sweep.py::test_a_sweep_whose_list_hangs_ends_within_its_timeout",
    ),
    Mutant(
        "says that there are no orphans if it cannot read the journals",
        "_recovery/dead_journals.py",
        "        check_state_directory(self._directory)\n",
        "",
        "recovery/test_foreign_files.py::test_a_directory_that_is_refused_is_an_error_of_what_needs_it",
    ),
    Mutant(
        "uses a state directory that others can write",
        "_state_directory.py",
        "    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):\n",
        "    if status.st_mode & stat.S_IWGRP & stat.S_IWOTH:\n",
        "test_state_directory.py::TestDirectory::test_one_that_others_can_write_is_refused",
    ),
    Mutant(
        "uses the state directory of another user",
        "_state_directory.py",
        "    if status.st_uid != os.geteuid():\n        raise PermissionError(\n",
        "    if False:\n        raise PermissionError(\n",
        "test_state_directory.py::TestDirectory::test_one_of_another_user_is_refused",
    ),
    Mutant(
        "leaves the mode of its directories to the umask",
        "_state_directory.py",
        "        os.mkdir(path, 0o700)",
        "        os.mkdir(path)",
        "test_state_directory.py::TestDirectory::test_whatever_is_created_belongs_to_its_user_alone",
    ),
    Mutant(
        "opens a file that is no regular file",
        "_state_directory.py",
        "    if not is_expected(status.st_mode):\n",
        "    if False:\n",
        "test_state_directory.py::TestFile::test_anything_else_is_neither_opened_nor_followed",
    ),
    Mutant(
        "does not check a file again once it is open",
        "_state_directory.py",
        "            _check(name, status, *_REGULAR_FILE)\n",
        "",
        "test_state_directory.py::TestFile::test_a_file_that_is_replaced_before_it_is_opened_is_refused",
    ),
    Mutant(
        "uses a file of another user",
        "_state_directory.py",
        '    if status.st_uid != os.geteuid():\n        raise PermissionError(f"{name} belongs',
        '    if False:\n        raise PermissionError(f"{name} belongs',
        "test_state_directory.py::TestFile::test_a_file_of_another_user_is_refused",
    ),
    Mutant(
        "talks to any user about a shared instance",
        "integrations/_shared_server.py",
        "        if not is_of_this_user(stream):\n",
        "        if False:\n",
        "integrations/test_web.py::test_the_owner_closes_the_connection_of_another_user",
    ),
    Mutant(
        "imports modules of the app's folder in the owner of a shared instance",
        "integrations/_owner_process.py",
        "path = [*sys.path, *sys.argv[4:]]",
        "path = [*sys.argv[4:], *sys.path]",
        "integrations/test_shared_owner.py"
        "::test_the_standard_library_comes_first_and_then_the_path_of_the_process",
    ),
    Mutant(
        "shares an instance with processes that have another secret",
        "integrations/_shared.py",
        '"CORTECS_CLIENT_SECRET", "CORTECS_API_BASE_URL"',
        '"CORTECS_API_BASE_URL"',
        "integrations/test_web.py::test_which_processes_share",
    ),
    Mutant(
        "counts an owner as frozen as soon as it is silent",
        "integrations/_shared.py",
        "_MISSED_UNTIL_UNRESPONSIVE, _MISSED_UNTIL_FROZEN = 3, 12",
        "_MISSED_UNTIL_UNRESPONSIVE, _MISSED_UNTIL_FROZEN = 3, 4",
        "integrations/test_shared_owner.py"
        "::test_a_silent_owner_is_noticed_then_killed_and_heals_if_it_speaks",
    ),
    Mutant(
        "lets two tasks enter a shared instance",
        "integrations/_managed.py",
        "        self._is_entered = True\n",
        "",
        "integrations/test_web.py::test_only_one_of_two_tasks_enters_it",
    ),
    Mutant(
        "lets a cancellation end the release of a background instance",
        "integrations/_managed.py",
        "        ended = await run_uncancellable(",
        "        await self._end()\n        ended = await run_uncancellable(",
        "integrations/test_web.py::test_cancelling_the_task_that_leaves_does_not_stop_the_release",
    ),
    Mutant(
        "tells strangers what the service said",
        "integrations/_managed.py",
        "        super().__init__(_MESSAGES[reason])\n",
        "        super().__init__(detail or _MESSAGES[reason])\n",
        "integrations/test_web.py::test_a_503_says_why_in_words_for_strangers",
    ),
    Mutant(
        "hands out a reported instance that does not run",
        "integrations/_background.py",
        "                if is_running is False:\n",
        "                if False:\n",
        "integrations/test_web.py::test_one_reading_withholds_a_handle_but_does_not_end_the_lease",
    ),
    Mutant(
        "starts again and again after refusals",
        "integrations/_background.py",
        "        return None if self._refusals >= _MAX_REFUSALS else",
        "        return",
        "integrations/test_web.py::test_refusals_are_final_after_five_in_a_row",
    ),
    Mutant(
        "lets a .env choose the state directory",
        "_cli/environment.py",
        "        del new[name]\n    if others",
        "        pass\n    if others",
        "cli/test_environment.py::TestEnvFile::test_file_of_the_working_directory_sets_only_credentials",
    ),
]


class Outcome(NamedTuple):
    """The result of a pytest run.

    Attributes:
        code: pytest's exit code; None if the run timed out.
        seconds: The elapsed time.
        output: The output of pytest.
    """

    code: int | None
    seconds: float
    output: str


class Copy:
    """A copy of the package and its tests, which Python imports instead of the installed package.

    Args:
        folder: An empty directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Replace PYTHONPATH, so that nothing else comes before the copy.
        self._env = {**os.environ, "PYTHONPATH": str(folder)}
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        # Hashes, because two versions of a file may have the same date and size.
        mode = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(folder / PACKAGE, quiet=1, invalidation_mode=mode)
        # Check with the same options that tests use to start programs.
        program = f"import {PACKAGE}; print({PACKAGE}.__file__)"
        found = subprocess.run(
            [sys.executable, "-P", "-c", program], env=self._env, capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_relative_to(folder):
            raise RuntimeError(f"Python imports {found} instead of the copy in {folder}")

    def run(self, tests: Sequence[str], timeout: float, *options: str) -> Outcome:
        """Run tests, and kill them after `timeout` seconds."""
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
                code = process.wait(timeout)
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
        """Apply the mutant, run its test, and restore the file."""
        path = self._folder / PACKAGE / mutant.file
        source = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutant.applied(source), encoding="utf-8")
        except ValueError as error:
            return Outcome(None, 0.0, f"{error}\n")
        try:
            return self.run([mutant.test], TIMEOUT, "-x")
        finally:
            path.write_text(source, encoding="utf-8")


def verdict(mutant: Mutant, outcome: Outcome) -> str:
    """Describe the problem; empty if the test detects the mutant."""
    if outcome.code == FAILED:
        return ""
    if outcome.code == PASSED:
        return "SURVIVES"
    ending = "did not end" if outcome.code is None else f"ended with exit code {outcome.code}"
    return f"ERROR: the test {ending}\n{outcome.output}"


def main(words: Sequence[str]) -> int:
    """Run the mutants with one of these words in their names; return 0 if all are detected."""
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
        # No share may be empty: without arguments, pytest would run every test.
        shares = [tests[number::workers] for number in range(min(workers, len(tests)))]
        before = pool.map(lambda share: with_copy(lambda copy: copy.run(share, LONG_TIMEOUT)), shares)
        bad = [outcome for outcome in before if outcome.code != PASSED]
        if bad:
            print(*(outcome.output for outcome in bad), sep="\n")
            print("some tests fail without a mutant, or are in another tier")
            return 1
        print(f"{len(tests)} tests pass without a mutant; {len(chosen)} mutants:", flush=True)
        outcomes = pool.map(lambda each: with_copy(lambda copy: copy.run_mutated(each)), chosen)
        wrong: list[str] = []
        for mutant, outcome in zip(chosen, outcomes, strict=True):
            problem = verdict(mutant, outcome)
            print(f"{mutant.name} | {mutant.test} | {outcome.seconds:.1f} s", problem, flush=True)
            wrong += [mutant.name] if problem else []
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} mutants are detected")
    for name in wrong:
        print(f"not detected: a client that {name}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
