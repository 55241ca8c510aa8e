"""The properties of a world, checked at its end.

1. No instance of a process is left, unless the process wants it.
2. No instance of another machine or of the other user is stopped, restarted, deleted or used.
3. No start is doubled while its first instance may still appear, without that being said.
4. Every wait ends within its time.
5. No two leases have the same instance.
6. No promise remains in a journal, except for what is left and was said to be.
7. No lease tries the next hardware type after a start whose outcome it does not know.
8. A client that waits for capacity sends one start request at a time, and promises nothing before it has seen
   capacity.
9. A lease ends as idle if it was not used, and only then. The instance of a program that hangs ends, too.
10. The cost ledger has one entry for each instance that was released, and none for others.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import anyio
import trio
from attrs import define, evolve, field

from cortecs_async import errors
from cortecs_async._api.subscription import ABSENCE_SPAN
from cortecs_async._recovery.cost_lines import LeaseCost
from cortecs_async._recovery.journal import read_journals
from cortecs_async._recovery.ledger import CostLedger, ledger_directory
from cortecs_async._recovery.reaper import GRACE

from .data import ADOPTION_WINDOW, Lease, StartSpec
from .history import OTHER_USER, LeaseHistory, SentStart, notes
from .program import (
    SLACK,
    Program,
    most_seconds,
    most_seconds_after_cancel,
    most_seconds_to_release,
    most_seconds_to_start,
)

if TYPE_CHECKING:
    from .run import Simulation

# Seconds after a request in which its instance is attributed to it: by a process or a reaper, or by `sweep`,
# which may run much later and then relies on the service's timestamps.
SEARCH, SWEEP_SEARCH = 300.0, 1800.0
# Seconds by which a timestamp may differ from the time of the start: the tolerance of clients, and the time
# that an instance in these worlds takes until it is running.
STAMP_TOLERANCE = 120.0 + 48.0
# Seconds after which `sweep` trusts only timestamps.
SWEEP_SEARCH_WITHOUT_STAMPS = 3600.0
# Seconds for which a client first searches for the instance of a lost start.
WINDOW = ADOPTION_WINDOW / 6
# The same, for a lease that ends before its block begins.
RELEASE_WINDOW = ABSENCE_SPAN
# The maximum age of a baseline when its start is requested, not counting delays of the request.
BASELINE_AGE = 1.0
# Seconds that a process needs to record a response.
TO_RECORD = 0.5

# Seconds for which a turn keeps other waiting leases of the client waiting.
LONGEST_TURN = 60.0

# Seconds by which a lease may end as idle too early or too late.
IDLE_TOLERANCE = 5.0

# Errors that a lease can raise before its body because of the service.
_START_ERRORS = (errors.RequestError, errors.StartTimeoutError, errors.AmbiguousStartError)


@define
class _Instance:
    """The checks' view of an instance.

    Attributes:
        machine: The machine of its owner, or `OTHER_USER`.
        context_length: The instance's context length.
        appeared_at: The times when it was started and restarted.
        sent: Its start, unless it belongs to the other user.
    """

    spec: StartSpec
    machine: int
    context_length: int
    appeared_at: list[float]
    sent: SentStart | None = None


@define
class Excuses:
    """The cases that no client can decide.

    Attributes:
        pairs: Instances that a machine may mistake for its own: machine and instance.
        ids: Instances in such a pair, and the real instances of the starts they are mistaken for.
        leases: The leases that such an instance was taken from, or whose instance it was mistaken for.
        late: Instances that appeared too late for any search.
    """

    pairs: set[tuple[int, str]] = field(factory=set)
    ids: set[str] = field(factory=set)
    leases: set[LeaseHistory] = field(factory=set)
    late: set[str] = field(factory=set)


class Checker:
    """Checks a run after its end."""

    def __init__(self, run: Simulation) -> None:
        self._run = run
        self._lag = max(run.plan.service.list_lag)
        self._created = {each.instance_id: each for each in run.starts if each.instance_id is not None}
        self._ledger = {each.instance_id: each for each in run.emulator.ledger}
        account = run.emulator._account
        lengths = {
            each.instance_id: each.args.context_length
            for each in [*account.instances.values(), *account.deleted.values()]
        }
        self._instances = {
            each.instance_id: _Instance(each.spec, OTHER_USER, lengths[each.instance_id], each.appeared_at)
            for each in run.foreign
        }
        for name, sent in self._created.items():
            lease = sent.lease
            spec = evolve(lease.plan.spec, hardware=_hardware_of(sent))
            own = _Instance(spec, lease.machine, lengths[name], [sent.executed_at], sent)
            self._instances[name] = own
        self._excuses = self._find_excuses()
        self._ambiguous: set[str] = set()

    def check(self) -> None:
        """Record all violations."""
        run = self._run
        if set(self._ledger) != set(self._instances):
            run.problem("the emulator has instances that no process and no other user started")
        self._check_ambiguity()
        self._check_touches()
        self._check_foreign()
        for history in run.histories:
            if self._was_left(history):
                self._check_exception(history)
                self._check_timeouts(history)
                self._check_body(history)
        self._check_own_instances()
        self._check_duplicates()
        self._check_candidates()
        self._check_waits()
        self._check_idle()
        self._check_clean_exits()
        self._check_journals()
        self._check_costs()
        for program in run.programs:
            if program.actor.is_alive:
                self._check_end(program)
        self._count()

    def _count(self) -> None:
        run, plan = self._run, self._run.plan
        touched = {each.instance_id for each in run.touches}
        run.outcome.tally.update({
            "worlds": 1,
            "with faults": bool(plan.faults or plan.outages),
            "with several processes": len(plan.processes) > 1,
            "with a kill": any(not each.is_alive for each in run.processes),
            "with a reaper at work": any(
                each.reaper.state.is_orphaned for process in run.processes for each in process.reapers
            ),
            "with a foreign instance": bool(run.foreign),
            "with a wait for capacity": any(each.turns for each in run.histories),
            "with an idle lease": any(
                isinstance(each.exit_error, errors.LeaseIdleError) for each in run.histories
            ),
            "with a probe": any(each.probed for each in run.processes),
            "bodies": sum(each.body_at is not None for each in run.histories),
            "starts without a response": sum(each.response is None for each in run.starts),
            "swept": sum(orphan.state == "released" for orphans in run.orphans for orphan in orphans),
            "said ambiguous": bool(self._ambiguous),
            "undecidable": bool(self._excuses.pairs),
            "undecidable, and mistaken": any(
                self._instances[each].machine != machine and each in touched
                for machine, each in self._excuses.pairs
            ),
            "too late": bool(self._excuses.late),
        })  # fmt: skip

    def _was_left(self, history: LeaseHistory) -> bool:
        """Return whether a lease ended or lasts and was not cut off by a kill."""
        killed_at = self._killed_at(history)
        return math.isinf(killed_at) or history.left_at < killed_at

    def _killed_at(self, history: LeaseHistory) -> float:
        return self._run.processes[history.process].killed_at

    # -- cases that no client can decide

    def _find_excuses(self) -> Excuses:
        excuses = Excuses()
        unresolved = [each for each in [*self._run.starts, *self._never_sent()] if self._is_unresolved(each)]
        count = -1
        # A lease whose instance is taken by mistake may take another one.
        while count != len(excuses.ids):
            count = len(excuses.ids)
            for sent in unresolved:
                ended_at = min(sent.ended_at, self._killed_at(sent.lease))
                # An identical earlier start may decide for both as soon as this one is unresolved.
                is_alone = all(each is sent or not self._may_swap(each, sent) for each in unresolved)
                window = WINDOW if sent.lease.body_at is not None else RELEASE_WINDOW
                window = 0.0 if sent.was_given_up else window
                is_listed = sent.executed_at + self._lag <= ended_at + (window if is_alone else 0.0)
                if not is_listed or sent.instance_id in excuses.ids:
                    self._excuse(sent, excuses)
        # Identical starts without a response may swap their instances, and with them the mistake.
        excuses.leases.update(
            [
                sent.lease
                for sent in unresolved
                for other in unresolved
                if other.lease in excuses.leases and self._may_swap(sent, other)
            ]
        )
        return excuses

    def _may_swap(self, one: SentStart, other: SentStart) -> bool:
        return (
            one.lease.machine == other.lease.machine
            and one.lease.plan.spec.model_id == other.lease.plan.spec.model_id
            and one.at <= other.at + self._search(other)
            and other.at <= one.at + self._search(one)
        )

    def _excuse(self, sent: SentStart, excuses: Excuses) -> None:
        """Add the instances that a start may be mistaken for, because its own is not visible."""
        until = sent.at + self._search(sent)
        if sent.instance_id is not None and sent.executed_at + self._lag > until:
            excuses.late.add(sent.instance_id)
        earliest = sent.after - BASELINE_AGE - self._baseline_gap()
        for instance_id, instance in self._instances.items():
            # An instance of this machine counts only if its own start has taken another one.
            is_known = instance.machine == sent.lease.machine and instance_id not in excuses.ids
            if is_known or instance_id == sent.instance_id or not _fits(instance, sent):
                continue
            if any(earliest <= each <= until for each in instance.appeared_at):
                if instance.machine != sent.lease.machine:
                    excuses.pairs.add((sent.lease.machine, instance_id))
                excuses.ids.update({instance_id, sent.instance_id or instance_id})
                excuses.leases.add(sent.lease)
                if instance.sent is not None:
                    excuses.leases.add(instance.sent.lease)

    def _baseline_gap(self) -> float:
        """Return the maximum age in seconds of an instance missing from a baseline."""
        if not any(each.kind == "omit" and each.route != "get" for each in self._run.plan.faults):
            return self._lag
        return self._lag + (STAMP_TOLERANCE if self._has_stamps() else math.inf)

    def _has_stamps(self) -> bool:
        """Return whether instances' timestamps show when they were started."""
        service = self._run.plan.service
        return service.date_header and service.started_at in {"running", "accepted", "initialized"}

    def _never_sent(self) -> Iterable[SentStart]:
        """Return the starts recorded but not sent, because their process was killed."""
        run = self._run
        for history in run.histories:
            killed_at = self._killed_at(history)
            if math.isinf(killed_at) or history.body_at is not None or history.left_at < killed_at:
                continue
            after = run.last_end_of(history)
            if after <= killed_at:
                yield SentStart(history, after, killed_at, ended_at=killed_at)

    def _is_unresolved(self, sent: SentStart) -> bool:
        """Return whether the process did not read or did not record the outcome of a start."""
        return sent.response is None or self._killed_at(sent.lease) < sent.ended_at + TO_RECORD

    def _search(self, sent: SentStart) -> float:
        return SEARCH if math.isinf(self._killed_at(sent.lease)) else SWEEP_SEARCH

    # -- 1 and 6: what is left

    def _check_ambiguity(self) -> None:
        """Check that starts are ambiguous only if others have identical instances.

        Such an instance does not need to be a candidate. With three instances and two starts, one of which
        matches only one instance, even that match is not proven.
        """
        run = self._run
        found = [
            (machine.index, each.candidates)
            for machine, orphans in zip(run.machines, run.orphans, strict=False)
            for each in orphans
            if each.state == "ambiguous"
        ]
        found += [
            (each.machine, each.exit_error.candidates)
            for each in run.histories
            if isinstance(each.exit_error, errors.AmbiguousStartError)
        ]
        for machine, candidates in found:
            self._ambiguous.update(candidates)
            if self._are_old_and_unstamped(candidates):
                continue
            others = {each.spec.model_id for each in self._instances.values() if each.machine != machine}
            if not others & {self._ledger[each].model_id for each in candidates if each in self._ledger}:
                run.problem(f"ambiguous without another user: {candidates}")
        for orphans in run.orphans:
            for orphan in orphans:
                if orphan.state not in {"released", "gone", "ambiguous"}:
                    run.problem(f"the last sweep says of {orphan.instance_id}: {orphan.state}")

    def _are_old_and_unstamped(self, candidates: Iterable[str]) -> bool:
        """Return whether a sweep came too late to trust anything but timestamps, with no usable ones."""
        started_at = min((self._instances[each].appeared_at[0] for each in candidates), default=0.0)
        return not self._has_stamps() and anyio.current_time() - started_at > SWEEP_SEARCH_WITHOUT_STAMPS

    def _check_own_instances(self) -> None:
        holders = {each.instance_id: each for each in self._run.histories if each.instance_id is not None}
        for instance_id, sent in self._created.items():
            status = self._ledger[instance_id].status
            expected = self._expected(holders.get(instance_id), sent)
            known = self._excuses.ids | self._excuses.late
            if status == "stopped" and self._may_agree_wrongly():
                continue
            if sent.context_length is None:
                known |= self._ambiguous  # tags are not ambiguous
            if status not in expected and instance_id not in known:
                self._run.problem(
                    f"{instance_id} is ours, and {status} at the end, not {' or '.join(sorted(expected))}"
                )

    def _may_agree_wrongly(self) -> bool:
        """Return whether readings seconds apart may wrongly agree that an existing instance is missing.

        After a delete without a response, two wrong readings are enough. By then, the instance is stopped, so
        it is not billed.
        """
        plan = self._run.plan
        loses = bool(plan.outages) or any(each.route == "delete" for each in plan.faults)
        return self._lag > 0 and max(plan.service.get_lag) > 0 and loses

    def _expected(self, holder: LeaseHistory | None, sent: SentStart) -> set[str]:
        """Return the states that an instance may have at the end."""
        if holder is None:
            # Killed right before the body began, when the end is already recorded.
            was_killed = not math.isinf(self._killed_at(sent.lease))
            kept = {"stop": {"stopped"}, "keep": {"running"}, None: {"running"}, "delete": set[str]()}
            return {"deleted"} | (kept[sent.lease.plan.on_exit] if was_killed else set[str]())
        match holder.plan.on_exit:
            case "delete":
                return {"deleted"}
            case "stop":
                return {"stopped"}
            case "keep":
                # A lease that ends as idle deletes its instance, and so does the reaper of a hung program.
                may_end = _may_be_idle(holder) or self._may_have_been_reaped(holder)
                return {"deleted", "running"} if may_end else {"running"}
            case None:
                is_limited = holder.plan.max_lifetime is not None
                return {"deleted"} if is_limited or holder.has_released else {"deleted", "running", "stopped"}

    def _check_journals(self) -> None:
        for machine in self._run.machines:
            for path, state in read_journals(machine.state / "journal"):
                for promise in state.promises.values():
                    if not set(promise.candidates) & self._ambiguous:
                        name = promise.instance_id or promise.args
                        self._run.problem(
                            f"a promise remains in {path.name} of machine {machine.index}: {name}"
                        )

    # -- 10: the cost ledger

    def _check_costs(self) -> None:
        for machine in self._run.machines:
            ledger = CostLedger(ledger_directory(machine.state / "journal"))
            content = ledger.read(self._run.emulator.api_base_url)
            if content.num_unreadable:
                self._run.problem(f"the ledger of machine {machine.index} has unreadable lines")
            entries: dict[str, list[LeaseCost]] = {}
            for each in content.leases:
                entries.setdefault(each.instance_id, []).append(each)
            for instance_id in {*entries, *self._created}:
                self._check_cost(machine.index, instance_id, entries.get(instance_id, []))

    def _check_cost(self, machine: int, instance_id: str, entries: Sequence[LeaseCost]) -> None:
        run = self._run
        instance = self._instances.get(instance_id)
        if self._may_mistake(machine, instance_id) or instance_id in self._excuses.ids | self._excuses.late:
            return
        sent = None if instance is None or instance.machine != machine else instance.sent
        if sent is None:
            if entries:
                run.problem(f"machine {machine} has a cost for {instance_id}, which it did not start")
            return
        status = self._ledger[instance_id].status
        if status not in {"stopped", "deleted"} or instance_id in self._ambiguous:
            return
        if len(entries) != 1:
            run.problem(f"{instance_id} has {len(entries)} costs in the ledger of machine {machine}")
            return
        entry = entries[0]
        holder = next((each for each in run.histories if each.instance_id == instance_id), None)
        project = (holder or sent.lease).plan.project or ""
        # Without a holder, it was never usable, or its start was repeated before it appeared.
        outcomes = {"failed", "cancelled", "expired", "lost", "recovered"}
        if holder is not None or not self._was_left(sent.lease):
            outcomes = self._outcomes(holder or sent.lease)
        if entry.project != project and not self._is_shared(sent):
            run.problem(f"the cost of {instance_id} is for project {entry.project!r}, not {project!r}")
        if entry.outcome not in outcomes and not self._is_shared(sent):
            run.problem(f"the cost of {instance_id} has the outcome {entry.outcome}, not {sorted(outcomes)}")

    def _is_shared(self, sent: SentStart) -> bool:
        """Return whether another start may have got this one's instance."""
        unresolved = [each for each in [*self._run.starts, *self._never_sent()] if self._is_unresolved(each)]
        return any(each.lease is not sent.lease and self._may_swap(each, sent) for each in unresolved)

    def _outcomes(self, history: LeaseHistory) -> set[str]:
        """Return the outcomes that the ledger may have for an instance that is no longer billed."""
        others = {"recovered", "lost"}
        error = history.exit_error
        if not self._was_left(history) or math.isinf(history.left_at):
            return {*others, "released", "stopped", "cancelled", "failed", "idle", "expired"}
        if history.body_at is None:
            return {*others, "failed", "cancelled", "expired"}
        if history.plan.on_exit is None:
            limits = set[str]() if history.plan.max_lifetime is None else {"expired"}
            return {*others, *limits, "released"}
        outcomes = {"stopped" if history.plan.on_exit == "stop" else "released"}
        if isinstance(error, errors.LeaseIdleError):
            outcomes = {"idle"}
        elif _may_be_idle(history) or (history.plan.idle_timeout and self._hung_seconds(history)):
            outcomes.add("idle")
        if self._may_have_been_reaped(history):
            outcomes |= {"idle", *others}
        return outcomes | others if history.may_leave_instance else outcomes

    # -- 2: instances that are not ours

    def _check_touches(self) -> None:
        for touch in self._run.touches:
            instance = self._instances.get(touch.instance_id)
            if instance is None:
                self._run.problem(f"{touch.route} of {touch.instance_id!r}, which never existed")
            elif instance.machine != touch.machine and not self._may_mistake(
                touch.machine, touch.instance_id
            ):
                self._run.problem(
                    f"machine {touch.machine} sent {touch.route} of {touch.instance_id} at {touch.at:g} s, "
                    f"which is {_owner_name(instance.machine)}"
                )

    def _may_mistake(self, machine: int, instance_id: str) -> bool:
        return (machine, instance_id) in self._excuses.pairs

    def _check_foreign(self) -> None:
        for each in self._run.foreign:
            status = self._ledger[each.instance_id].status
            is_as_left = {"pending": "running", "stopping": "stopped"}.get(status, status) == each.status
            if not is_as_left and each.instance_id not in self._excuses.ids:
                self._run.problem(
                    f"{each.instance_id} is the other user's, who left it {each.status}: {status}"
                )
        for history in self._run.histories:
            instance = self._instances.get(history.instance_id or "")
            if (
                instance is not None
                and instance.machine != history.machine
                and not self._may_mistake(history.machine, history.instance_id or "")
            ):
                self._run.problem(
                    f"{history.name} used {history.instance_id}, which is {_owner_name(instance.machine)}"
                )

    # -- 3 and 5: the number of instances

    def _check_duplicates(self) -> None:
        """Check that each lease started one instance and that no two leases have the same one.

        Two leases that search for identical instances at the same time may get each other's, which is
        correct. So overlapping leases are checked together.
        """
        run = self._run
        held = [
            each.instance_id
            for each in run.histories
            # A process killed as soon as its block begins may not have recorded its instance.
            if each.instance_id is not None
            and self._killed_at(each) >= (each.body_at or each.entered_at) + TO_RECORD
        ]
        if twice := {each for each in held if held.count(each) > 1} - self._excuses.ids:
            run.problem(f"two leases have the same instance: {sorted(twice)}")
        for cluster in self._clusters():
            created = self._created_by(cluster)
            if len(created) > len(cluster) + sum(map(_said_doubles, cluster)):
                run.problem(f"{[each.name for each in cluster]} started {created}, and did not say so")

    def _check_clean_exits(self) -> None:
        """Check that instances are released when their leases end, unless the leases report otherwise."""
        for history in self._run.histories:
            if history.instance_id is None or history.may_leave_instance:
                continue
            if history.plan.on_exit in {"delete", "stop"} or history.has_released:
                self._check_released(history, history.instance_id)
        for cluster in self._clusters():
            sole = cluster[0]
            if (
                len(cluster) > 1
                or sole.instance_id is not None
                or sole.may_leave_instance
                or _said_doubles(sole)
            ):
                continue
            for instance_id in self._created_by(cluster):
                self._check_released(sole, instance_id)

    def _check_released(self, history: LeaseHistory, instance_id: str) -> None:
        entry = self._ledger[instance_id]
        is_stop = history.plan.on_exit == "stop" and history.instance_id is not None
        ended_at = entry.stopped_at if is_stop else entry.deleted_at
        if instance_id in self._excuses.ids or not self._was_left(history):
            return
        if entry.stopped_at is not None and self._may_agree_wrongly():
            return
        # An accepted stop that takes long ends once no reading shows the instance any longer.
        is_blind = is_stop and self._lag > 0 and max(self._run.plan.service.get_lag) > 0
        slack = self._run.plan.service.stop_seconds if is_blind else 0.0
        if ended_at is None or ended_at > history.left_at + slack:
            self._run.problem(f"{history.name} ended before {instance_id} did, without an error")

    def _created_by(self, histories: Sequence[LeaseHistory]) -> list[str]:
        """Return the instances that these leases started, except those that no client could find."""
        left_out = self._excuses.ids | self._excuses.late
        return [
            each for each, sent in self._created.items() if sent.lease in histories and each not in left_out
        ]

    def _clusters(self) -> list[list[LeaseHistory]]:
        """Group leases with the same machine and model whose times overlap, directly or through others."""
        clusters: list[list[LeaseHistory]] = []
        kinds = {(each.machine, each.plan.spec.model_id) for each in self._run.histories}
        for kind in sorted(kinds):
            until = -math.inf
            same = [each for each in self._run.histories if (each.machine, each.plan.spec.model_id) == kind]
            for history in sorted(same, key=lambda each: each.entered_at):
                if history.entered_at > until:
                    clusters.append([])
                clusters[-1].append(history)
                is_open = history.may_leave_instance or not self._was_left(history)
                until = max(until, math.inf if is_open else history.left_at)
        return clusters

    # -- 7 to 9: the next hardware type, capacity, and idle leases

    def _check_candidates(self) -> None:
        for history in self._run.histories:
            starts = [each for each in self._run.starts if each.lease is history]
            for number, sent in enumerate(starts):
                unknown = [each for each in starts[:number] if each.response != "refused"]
                if any(each.hardware != sent.hardware for each in unknown):
                    self._run.problem(
                        f"{history.name} tried {sent.hardware} after a start with an unknown outcome"
                    )

    def _check_waits(self) -> None:
        run = self._run
        turns = [(each, at) for each in run.histories for at in each.turns]
        for (one, at), (other, later) in itertools.permutations(turns, 2):
            # After a minute, a turn no longer keeps others waiting.
            starts = [each for each in run.starts if each.lease is one and at <= each.at <= later]
            if (
                one.process == other.process
                and at < later < at + LONGEST_TURN
                and any(later < each.ended_at for each in starts)
                and any(each.lease is other and later <= each.at for each in run.starts)
            ):
                run.problem(f"{one.name} and {other.name} sent start requests in the same turn")

    def _check_idle(self) -> None:
        for history in self._run.histories:
            timeout = history.plan.idle_timeout if history.plan.on_exit is not None else None
            if timeout is None or history.body_ended_at is None or self._is_excused(history):
                continue
            ended_at = history.body_ended_at
            idle = ended_at - history.used_at
            if self._hung_seconds(history) > 0:
                # A program cannot use an instance while it hangs, nor afterward if it was idle too long.
                self._check_hung(history, timeout)
                continue
            is_idle = isinstance(history.exit_error, errors.LeaseIdleError)
            if is_idle and idle < timeout - IDLE_TOLERANCE:
                self._run.problem(f"{history.name} ended as idle {idle:g} s after it was used")
            # A cancelled body ends once the leases in it are released.
            waits = any(
                each is not history and each.process == history.process and ended_at - 1.0 < each.left_at
                for each in self._run.histories
            )
            if idle > timeout + IDLE_TOLERANCE and self._was_left(history) and not waits:
                self._run.problem(f"{history.name} was idle for {idle:g} s")

    def _check_hung(self, history: LeaseHistory, timeout: float) -> None:
        """Check that the reaper ends the instance of a program that hangs."""
        run, instance_id = self._run, history.instance_id or ""
        # The reaper may hear of the last use late, by a quarter of the timeout, and waits for the owner.
        due_at = history.hung_at + timeout * 1.25 + GRACE + IDLE_TOLERANCE
        may_fail = (
            bool(run.plan.faults or run.plan.outages or run.plan.kills) or run.plan.rotated_at is not None
        )
        has_reaper = run.processes[history.process].plan.guard
        if history.hung_until <= due_at or may_fail or not has_reaper:
            return
        stopped_at = self._ledger[instance_id].stopped_at
        if stopped_at is None or stopped_at > due_at + run.plan.service.stop_seconds + self._lag:
            run.problem(
                f"{instance_id} of a program that hung at {history.hung_at:g} s stopped at {stopped_at}"
            )

    # -- 4, and the exceptions

    def _check_exception(self, history: LeaseHistory) -> None:  # noqa: C901  (one case a line)
        """Check the exception that the lease raised."""
        raised, body_error = history.exit_error, history.body_error
        cancelled = asyncio.CancelledError if self._run.backend == "asyncio" else trio.Cancelled
        if self._is_excused(history):
            problem = ""
        elif math.isinf(history.left_at):
            problem = "was never exited"
        elif history.body_at is None:
            is_expected = isinstance(raised, (cancelled, *_expected_at_start(history.plan)))
            problem = "" if is_expected else "failed to start"
        elif isinstance(body_error, Exception):
            problem = "" if raised is body_error else f"had {body_error!r} in its body"
        elif isinstance(raised, errors.LeaseIdleError) and history.plan.idle_timeout is not None:
            problem = ""  # see `_check_idle`
        elif isinstance(raised, errors.InstanceLostError) and self._may_have_been_reaped(history):
            problem = ""
        elif body_error is not None:
            problem = "" if isinstance(raised, cancelled) or raised is body_error else "was cancelled"
        elif isinstance(raised, errors.TeardownError):
            elapsed = history.left_at - (history.body_ended_at or 0.0)
            problem = "" if elapsed > history.plan.teardown_timeout - SLACK else "gave up too early"
        elif history.plan.on_exit is None and isinstance(raised, errors.RequestError):
            problem = ""  # `release` could not list the instances
        else:
            problem = "" if raised is None or isinstance(raised, cancelled) else "finished"
        if problem:
            self._run.problem(f"{history.name} {problem}, and raised {raised!r}")

    def _is_excused(self, history: LeaseHistory) -> bool:
        return history in self._excuses.leases or history.instance_id in self._excuses.ids

    def _check_body(self, history: LeaseHistory) -> None:
        if not self._is_excused(history):
            for problem in history.problems:
                self._run.problem(f"{history.name}: {problem}")

    def _check_timeouts(self, history: LeaseHistory) -> None:
        plan = history.plan
        start = most_seconds_to_start(plan) + SLACK + self._hung_seconds(history)
        if history.body_at is None:
            late = history.left_at - history.entered_at - start - plan.teardown_timeout
        else:
            late = max(
                history.body_at - history.entered_at - start,
                history.left_at
                - (history.body_ended_at or math.inf)
                - most_seconds_to_release(plan)
                - self._hung_seconds(history),
            )
        if late > 0:
            self._run.problem(f"{history.name}: it took {late:g} s longer than its timeouts allow")

    def _hung_seconds(self, history: LeaseHistory) -> float:
        """Return the seconds for which all bodies of a process may have blocked its event loop."""
        return sum(each.hangs for each in self._run.processes[history.process].plan.leases)

    def _may_have_been_reaped(self, history: LeaseHistory) -> bool:
        """Return whether the reaper may have ended the instance, because the program hung for too long."""
        return history.plan.idle_timeout is not None and self._hung_seconds(history) > 0

    def _check_end(self, program: Program) -> None:
        run, name = self._run, f"process {program.actor.index}"
        ended_at = program.ended_at
        if ended_at - program.began_at > most_seconds(program.roots) + SLACK:
            run.problem(f"{name} took {ended_at - program.began_at:g} s")
        if isinstance(program.end, BaseException) and not isinstance(program.end, Exception):
            run.problem(f"{name} ended with {program.end!r}")
        cancel, cancelled_at = program.plan.cancel, program.cancelled_at
        if cancel is None or cancelled_at is None:
            return
        limit = max(
            (most_seconds_after_cancel(node) for group in program.roots for node in group), default=0.0
        )
        # Before 3.13, a cancellation during the release after a body's exception is only a note on it.
        is_only_noted = any(
            "was received while the instance was being released" in notes(each.exit_error)
            for each in run.histories
            if each.process == program.actor.index
        )
        if is_only_noted and sys.version_info < (3, 13):
            return
        if ended_at > cancelled_at + limit + SLACK:
            run.problem(f"{name} ended {ended_at - cancelled_at:g} s after its cancellation")
        if program.continued_at is not None and program.continued_at > cancelled_at:
            run.problem(f"{name} continued after its cancellation")


def _expected_at_start(plan: Lease) -> tuple[type[Exception], ...]:
    """Return the errors that a lease can raise before its body."""
    expected: list[type[Exception]] = [*_START_ERRORS]
    if plan.max_lifetime is not None:
        expected.append(errors.LeaseExpiredError)
    if plan.hardware or plan.max_price_per_hour is not None:
        expected += [errors.InvalidArgumentError, errors.PriceUnknownError]
    if plan.capacity_timeout is not None:
        expected.append(errors.CapacityTimeoutError)
    if plan.ready != "status":
        expected += [errors.EndpointError, errors.ConfigurationError]
    return tuple(expected)


def _may_be_idle(history: LeaseHistory) -> bool:
    """Return whether a lease was not used for so long that it may have ended as idle."""
    timeout = history.plan.idle_timeout
    ended_at = math.inf if history.body_ended_at is None else history.body_ended_at
    return timeout is not None and ended_at - history.used_at >= timeout - IDLE_TOLERANCE


def _fits(instance: _Instance, sent: SentStart) -> bool:
    """Return whether a start could have created an instance, judging by the arguments."""
    actual, wanted = instance.spec, _hardware_of(sent)
    return (
        actual.model == sent.lease.plan.spec.model
        and (None in {actual.hardware, wanted} or actual.hardware == wanted)
        and sent.context_length in {None, instance.context_length}
    )


def _hardware_of(sent: SentStart) -> str | None:
    """Return the hardware type of a start, or None for any."""
    return sent.hardware if sent.lease.plan.hardware else sent.lease.plan.spec.hardware


def _said_doubles(history: LeaseHistory) -> int:
    """Return how often a lease reported starting again while its first instance might still appear."""
    return sum("appears later" in text for text in history.said)


def _owner_name(machine: int) -> str:
    return "the other user's" if machine == OTHER_USER else f"machine {machine}'s"
