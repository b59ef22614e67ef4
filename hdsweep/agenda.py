"""What is to be run next, decided as results come in.

The launchers take jobs from here and bring records back. In between, searches draw configurations
and are told what became of them, a race drops configurations, and the chosen ones are confirmed.
Whatever is decided follows from records and from the log of what was drawn, so a driver that was
killed decides the same again; a simulator runs this very code on recorded curves.

A static trial and a search's next configuration are ordered by how far each part has come, so all
parts of a sweep advance together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Self

from hdsweep import racing
from hdsweep.entries import Entry, World
from hdsweep.execute import Job
from hdsweep.plan import Plan
from hdsweep.planner import Cell, State, is_pending
from hdsweep.retries import Retries
from hdsweep.searching import Searches
from hdsweep.spec import SweepSpec
from hdsweep.targets import Targets, non_dominated
from hdsweep.trial import TrialRecord

_PATIENCE_S = 1.0  # for a configuration that is being drawn, while other trials run
_AGAIN_PLACE = -1.0  # of what lost its worker: before all others
_CONFIRM_PLACE = 10.0  # after all that is chosen from
_LOST = "a worker died too often"  # others go on without it; it is for the next run


class Agenda:
    """The jobs of a sweep, as far as they are known; a context manager.

    Args:
        spec: The sweep.
        plan: Its trials so far.
        targets: What is sought, raced for and chosen by.
        world: Where they run.
        rerun: Finished trials that are to be run again, as of ``Plan.pending``.
        again: Ids of further ones.
        ahead: Whether to draw ahead, in a thread, while trials run.
        clock: In seconds, for what waits to be tried again.
    """

    def __init__(
        self,
        spec: SweepSpec,
        plan: Plan,
        targets: Targets,
        world: World,
        rerun: Sequence[State] = (),
        again: Collection[str] = (),
        *,
        ahead: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._plan, self._targets, self._world = spec, plan, targets, world
        self._rerun, self._again = rerun, again
        self._queue = world.queue()
        self._capacity = 1
        self._entries: list[Entry] = []
        self._of: dict[str, list[Entry]] = {}  # by trial id
        self._queued: set[str] = set()  # waiting or running
        self._running: dict[str, tuple[Job, TrialRecord | None]] = {}
        self._retries = Retries(clock)
        self._looks_done = 0
        self._racing: list[Entry] = []
        self._awaited: list[Entry] = []  # by the next look; some may be there already
        self._started = 0  # the race with so many
        # Counted as things change: somebody asks after every trial.
        self._known: set[str] = set()  # trials that ended or may still run
        self._before: set[str] = set()  # those that had ended before this run
        self.ran: set[str] = set()  # trials that ended in this run
        self._unchosen = [arm.name for arm in spec.arms] if spec.confirmed else []
        self._candidates: dict[str, list[Entry]] = {arm: [] for arm in self._unchosen}
        self._unsettled: dict[str, list[Entry]] = {arm: [] for arm in self._unchosen}
        self._searches = Searches(spec, plan, targets, world, ahead=ahead)
        kept = self._searches.begin()  # first, for what is entered may be dropped at once
        for cell in plan.cells:
            if cell.study is None:
                self._enter(cell, plan.state, plan.refused)
        static = list(self._entries)
        self._searches.rebuild(kept, self._enter)
        self._queue_static(static)
        for entry in self._entries:
            if entry.cell.study is not None:
                self._queue_drawn(entry)
        self._go_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._searches.close()

    # --- for launchers ----------------------------------------------------------------------------

    def open(self, capacity: int) -> None:
        """Say how many trials run at once."""
        self._capacity = capacity

    def has_work(self) -> bool:
        """Whether there is anything to run; draws until there is."""
        while not len(self._queue):
            self._top_up()
            if not len(self._queue) and not self._searches.drawing:
                return bool(self._retries)
            self._receive(None)
        return True

    def next(self) -> Job | None:
        """A job to start now; None when none can be, for good if nothing runs."""
        while True:
            for again in self._retries.ready():
                if again.trial.id in self._queued:  # else nobody needs it any more
                    self._queue.add(again, _AGAIN_PLACE)
            self._receive(0)
            self._top_up()
            job = self._queue.next()
            if job is not None:
                self._running[job.trial.id] = job, self._world.record(job.trial.id)
                self._top_up()
                return job
            if self._searches.drawing:
                drew = self._receive(_PATIENCE_S if self._running else None)
                if drew or not self._running:
                    continue
            elif len(self._queue) or self._race_ahead():
                continue
            return None

    @property
    def is_done(self) -> bool:
        """Whether nothing runs, waits or will come; after ``next`` gave None."""
        waits = len(self._queue) or len(self._retries)
        return not (self._running or self._searches.drawing or waits)

    def running(self, trial_id: str) -> Job:
        """The job of a trial that was handed out."""
        return self._running[trial_id][0]

    def finished(self, job: Job, record: TrialRecord) -> None:
        """A job has a record."""
        trial_id = job.trial.id
        self.ran.add(trial_id)
        self._running.pop(trial_id, None)
        self._leave(trial_id)
        self._queue.finished(job)
        for entry in self._of[trial_id]:
            self._keep(entry, record)
            self._review(entry)
        self._recount([trial_id])
        self._go_on()

    def lost(self, job: Job) -> bool:
        """A job's worker is gone; whether that was once too often, and it is for the next run."""
        trial_id = job.trial.id
        self._running.pop(trial_id, None)
        self._queue.finished(job)
        entries = self._of[trial_id]
        needed = not all(entry.dropped for entry in entries)
        if needed and self._retries.lost(job, self._world.reached(job)):
            return False
        self._leave(trial_id)
        for entry in entries:
            if needed:
                entry.lost.add(trial_id)
            self._review(entry)
        if not needed:
            self._log_skipped([trial_id], entries[0].dropped)
        self._go_on()
        return needed

    def starved(self, job: Job, more: Job) -> None:
        """A job ran out of memory; it is tried again as ``more``, which is given more."""
        if all(entry.dropped for entry in self._of[job.trial.id]):
            self.lost(job)  # nobody needs it any more
            return
        self._running.pop(job.trial.id, None)
        self._queue.finished(job)
        self._queue.add(more, _AGAIN_PLACE)

    def recover(self) -> list[tuple[Job, TrialRecord | None]]:
        """Take back what a launcher that gave up was running.

        Returns:
            Each job with its record where it finished after all; those without are still to be
            said to be lost.
        """
        found: list[tuple[Job, TrialRecord | None]] = []
        for job, before in list(self._running.values()):
            record = self._world.record(job.trial.id)
            new = record != before or (record is not None and record.status == "ok")
            if record is None or not new or (job.rerun and record == before):
                found.append((job, None))
            else:
                self.finished(job, record)
                found.append((job, record))
        return found

    @property
    def expected(self) -> int:
        """Trials that the sweep has or will have, as far as can be told."""
        to_draw = self._searches.to_draw() * len(self._spec.seeds)
        confirmed = self._spec.confirmed
        each = confirmed.top * len(confirmed.confirm) if confirmed else 0
        return len(self._known) + to_draw + len(self._unchosen) * each

    @property
    def cached(self) -> int:
        """Trials that had ended before."""
        return len(self._before)

    def _recount(self, ids: Iterable[str]) -> None:
        """Keep the counts of these trials right."""
        for trial_id in ids:
            entries = self._of[trial_id]
            ended = any(trial_id in e.ending for e in entries)
            known = ended or any(e.dropped in ("", _LOST) for e in entries)
            (self._known.add if known else self._known.discard)(trial_id)
            before = ended and trial_id not in self.ran
            (self._before.add if before else self._before.discard)(trial_id)

    # --- what waits -------------------------------------------------------------------------------

    def _enter(self, cell: Cell, state: Mapping[str, State], refused: Mapping[str, str]) -> Entry:
        """Take in a configuration."""
        order = cell.number if cell.number is not None else len(self._entries)
        entry = Entry(cell, order)
        self._entries.append(entry)
        for trial in cell.trials:
            self._of.setdefault(trial.id, []).append(entry)
            if trial.id in refused:
                entry.ending[trial.id] = "infeasible"
            elif not (trial.id in self._again or is_pending(state[trial.id], self._rerun)):
                record = self._world.record(trial.id)
                if record is not None:
                    self._keep(entry, record)
                    if record.ending == "ok":
                        self._world.ended(cell, trial, order)
        if cell.part == "select":
            self._candidates[cell.arm].append(entry)
            self._unsettled[cell.arm].append(entry)
        self._drop_if_bad(entry)
        self._recount(trial.id for trial in cell.trials)
        return entry

    def _queue_static(self, entries: Sequence[Entry]) -> None:
        race = self._spec.race
        rounds = race.looks[0] if race else len(self._spec.seeds)
        self._racing = list(entries) if race else []
        self._awaited = list(self._racing)
        self._started = len(self._racing)
        many = sum(len(entry.cell.trials) for entry in entries) or 1
        for round_ in range(rounds):
            for n, entry in enumerate(entries):
                self._add(entry, round_, (round_ * len(entries) + n + 0.5) / many)

    def _queue_drawn(self, entry: Entry) -> None:
        search = self._searches.all[entry.cell.study or ""]
        for round_ in range(len(entry.cell.trials)):
            self._add(entry, round_, search.place_of(entry.order))
        self._review(entry)

    def _add(self, entry: Entry, round_: int, place: float) -> None:
        trial = entry.cell.trials[round_]
        if entry.dropped or trial.id in entry.ending:
            return
        if trial.id not in self._queued:
            self._queued.add(trial.id)
            self._queue.add(self._world.job(entry.cell, trial, entry.order), place)
        entry.waits.add(trial.id)

    def _leave(self, trial_id: str) -> None:
        """A trial neither waits nor runs."""
        self._queued.discard(trial_id)
        for entry in self._of[trial_id]:
            entry.waits.discard(trial_id)

    # --- results ----------------------------------------------------------------------------------

    def _keep(self, entry: Entry, record: TrialRecord) -> None:
        entry.ending[record.id] = record.ending
        method = entry.cell.trials[0].method
        is_bug = (record.error or {}).get("kind") == "method"
        # What was mended since may well run with the other seeds.
        if is_bug and self._plan.planner.is_of_today(record, method):
            entry.bugs.add(record.id)
        if record.ending == "ok":
            entry.values[record.id] = tuple(
                self._world.value(record, target) for target in self._targets.all
            )

    def _review(self, entry: Entry) -> None:
        self._drop_if_bad(entry)
        self._searches.review(entry)

    def _drop_if_bad(self, entry: Entry) -> None:
        """Give no more seeds to a configuration that one of them has failed."""
        if entry.dropped or not entry.open_ids:
            return
        bad = entry.ended_badly
        if bad is not None and bad[1] == "pruned":
            self._drop(entry, f"its configuration was stopped early, see seed {bad[0].seed}")
            return
        if entry.bug is not None:
            self._drop(entry, f"seed {entry.bug.seed} of its configuration: an error in its method")
            return
        # The other seeds of a configuration that is only listed are replicates to be reported.
        searched = entry.cell.study is not None
        if entry.cell.part == "confirm" or not (searched or self._spec.race):
            return
        # What was run ahead of a look counts after it, whenever it ended.
        due = None if searched else self._race_until(self._looks_done)
        bad = entry.bad_among(due)
        if bad is not None:
            self._drop(entry, f"seed {bad[0].seed} of its configuration: {bad[1]}")
        elif any(trial.id in entry.lost for trial in entry.cell.trials[:due]):
            self._drop(entry, _LOST)

    def _drop(self, entry: Entry, why: str) -> None:
        entry.dropped = why
        ids = [
            i for i in entry.open_ids
            if i not in self._running and all(e.dropped for e in self._of[i])
        ]  # fmt: skip
        self._queue.drop(ids)
        for trial_id in ids:
            self._leave(trial_id)
        self._log_skipped(ids, why)
        self._recount(trial.id for trial in entry.cell.trials)

    def _log_skipped(self, ids: Sequence[str], why: str) -> None:
        if ids and why != _LOST:
            self._world.log({"event": "skipped", "trials": list(ids), "why": why})

    def _go_on(self) -> None:
        """What follows for other configurations."""
        while self._race():
            pass
        for arm in list(self._unchosen):
            self._choose(arm)

    # --- searches ---------------------------------------------------------------------------------

    def _top_up(self) -> None:
        """Draw what is to be run soon."""
        limit = self._spec.search.parallel if self._spec.search else None
        while (search := self._searches.next(limit)) is not None:
            soon = len(self._queue) + len(self._running)
            soon += self._searches.drawing * len(self._spec.seeds)
            short = soon < self._capacity + (self._capacity > 1)  # one waits, so no GPU idles
            first = self._queue.first_place
            if not short and (first is None or first < search.place):
                return
            entry = self._searches.draw(search, self._enter)
            if entry is not None:
                self._queue_drawn(entry)
        self._go_on()

    def _receive(self, timeout_s: float | None) -> bool:
        """Take what was drawn meanwhile; whether there was any."""
        found = self._searches.receive(timeout_s, self._enter)
        for entry in found:
            self._queue_drawn(entry)
        return bool(found)

    # --- the race ---------------------------------------------------------------------------------

    def _race(self) -> bool:
        """Look at the race if all that it takes is there; whether it was."""
        race, target = self._spec.race, self._targets.raced
        if race is None or target is None or self._looks_done == len(race.looks):
            return False
        seeds = race.looks[self._looks_done]
        # What is there stays there, so each is looked at once and not after every trial.
        while self._awaited and _has_come(self._awaited[-1], seeds):
            self._awaited.pop()
        if self._awaited:
            return False
        alive = [entry for entry in self._racing if not entry.dropped]
        at = self._targets.all.index(target)
        whole = {e.cell.name: e for e in alive if e.bad_among(seeds) is None}
        # Where the metric is undefined nothing is significant, and nothing is dropped.
        values = {
            name: found for name, entry in whole.items()
            if all(map(math.isfinite, found := entry.of(at, seeds)))
        }  # fmt: skip
        verdicts = racing.look(
            values, larger_is_better=target.larger_is_better, level=race.level,
            looks=len(race.looks), started=self._started,
        )  # fmt: skip
        for name, verdict in verdicts.items():
            self._drop(whole[name], verdict.reason)
        self._looks_done += 1
        for entry in alive:
            self._drop_if_bad(entry)  # by what was run ahead
        alive = [entry for entry in self._racing if not entry.dropped]
        self._awaited = list(alive)
        for round_ in range(seeds, self._race_until(self._looks_done)):
            for n, entry in enumerate(alive):
                self._add(entry, round_, round_ + (n + 0.5) / len(alive))
        return True

    def _race_until(self, looks_done: int) -> int:
        """How many seeds each may have before the next look."""
        looks = self._spec.race.looks if self._spec.race else ()
        return looks[looks_done] if looks_done < len(looks) else len(self._spec.seeds)

    def _race_ahead(self) -> bool:
        """While a round ends, give the next seed to who leads: it will hardly be dropped."""
        target = self._targets.raced
        if target is None or not self._running:
            return False
        at = self._targets.all.index(target)
        sign = -1.0 if target.larger_is_better else 1.0
        ready = [
            e for e in self._racing
            if e.values and not (e.dropped or e.ended_badly or e.lost)
        ]  # fmt: skip
        for entry in sorted(ready, key=lambda e: sign * e.mean(at)):
            for round_ in range(self._race_until(self._looks_done + 1)):
                trial = entry.cell.trials[round_]
                if trial.id not in entry.ending and trial.id not in self._queued:
                    self._add(entry, round_, 0.0)
                    return True
        return False

    # --- the choice -------------------------------------------------------------------------------

    def _choose(self, arm: str) -> None:
        """Confirm the best of an arm, once all of it is known."""
        searches = [s for s in self._searches.all.values() if s.plan.open.arm == arm]
        if any(s.left > 0 or s.asking for s in searches):
            return
        unsettled = self._unsettled[arm]
        while unsettled and _is_settled(unsettled[-1]):
            unsettled.pop()
        if unsettled:
            return
        entries = [entry for entry in self._candidates[arm] if entry.same_as is None]
        self._unchosen.remove(arm)
        targets = self._targets.chosen_by
        values = {n: self._chosen_by(entry) for n, entry in enumerate(entries) if entry.is_whole}
        values = {n: found for n, found in values.items() if all(map(math.isfinite, found))}
        allowed = {n: found for n, found in values.items() if self._searches.keeps(entries[n])}
        if not allowed:
            limits = " and ".join(target.text for target in self._targets.constraints)
            why = f"none keeps {limits}" if values else "none has a value with every seed"
            why = f"arm {arm}: {why}, of {len(entries)} configurations"
            self._world.log({"event": "unchosen", "arm": arm, "why": why})
        values = allowed
        larger = [target.larger_is_better for target in targets]
        if len(targets) > 1:
            best = non_dominated(values, larger)
        else:
            top = self._spec.confirmed.top if self._spec.confirmed else 0
            best = sorted(values, key=lambda n: values[n], reverse=larger[0])[:top]
        for rank, n in enumerate(best):
            pairs = zip(targets, values[n], strict=True)
            words = ", ".join(f"{target.text} {value:.4g}" for target, value in pairs)
            self._confirm(entries[n], f"{words}, among {len(entries)}", rank)

    def _chosen_by(self, entry: Entry) -> list[float]:
        places = (self._targets.all.index(target) for target in self._targets.chosen_by)
        return [self._searches.aggregated(entry, place) for place in places]

    def _confirm(self, entry: Entry, why: str, rank: int) -> None:
        seeds = self._spec.confirmed.confirm if self._spec.confirmed else ()
        planner = self._plan.planner
        cell = planner.again(entry.cell, seeds, "confirm")
        ids = {str(trial.seed): trial.id for trial in cell.trials}
        self._world.log(
            {"event": "chosen", "arm": cell.arm, "knobs": dict(cell.knobs), "trials": ids,
             "why": why}
        )  # fmt: skip
        # Nothing is stopped while it is confirmed, nor was: these seeds may have been to choose on.
        found, _ = planner.look(cell.trials)
        state: dict[str, State] = {i: "new" if s == "pruned" else s for i, s in found.items()}
        made = self._enter(cell, state, {})
        for round_ in range(len(seeds)):
            self._add(made, round_, _CONFIRM_PLACE + round_ + rank / 100)


def _has_come(entry: Entry, seeds: int) -> bool:
    """Whether a look after so many seeds need not wait for a configuration."""
    return bool(entry.dropped) or all(t.id in entry.ending for t in entry.cell.trials[:seeds])


def _is_settled(entry: Entry) -> bool:
    """Whether no more comes of a configuration that may be chosen."""
    if entry.same_as is not None:
        return True
    return not entry.waits and (bool(entry.dropped) or not set(entry.open_ids) - entry.lost)
