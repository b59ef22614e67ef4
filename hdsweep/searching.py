"""The searches of a running sweep: when each draws, and what it is told.

Optuna is asked and told in one thread of its own where trials run elsewhere: the next configuration
is drawn while workers are busy, so a free GPU never waits for a sampler. Everything else, the log
included, is done by the thread that calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from hdsweep.configure import drawn
from hdsweep.entries import Entry, Event, World
from hdsweep.errors import MethodError
from hdsweep.plan import Plan, SearchPlan
from hdsweep.planned import Part
from hdsweep.planner import Cell, State
from hdsweep.search import Asked, Study, Told, aggregate
from hdsweep.spec import SweepSpec
from hdsweep.strategy import Search
from hdsweep.targets import Targets

Enter = Callable[[Cell, Mapping[str, State], Mapping[str, str]], Entry]

_SPARE = 8  # draws of what was drawn before, beyond as many as there are trials


@dataclass(slots=True, eq=False)
class OneSearch:
    """A study and what it drew.

    Args:
        plan: What it may draw.
        study: Told and asked.
        by_key: The first of each configuration: a sampler may repeat itself.
        untold: Those of which the study does not know what became, in order.
        asked: How often it was asked.
        refused: How many draws its method does not take.
        asking: Whether it is being asked.
    """

    plan: SearchPlan
    study: Study
    by_key: dict[str, Entry] = field(default_factory=dict)
    untold: dict[int, Entry] = field(default_factory=dict)
    asked: int = 0
    refused: int = 0
    asking: bool = False

    @property
    def left(self) -> int:
        """How many configurations it may still draw; a small space repeats itself before that."""
        left = self.plan.trials - len(self.by_key) - self.refused
        return left if self.asked < 2 * self.plan.trials + _SPARE else 0

    @property
    def place(self) -> float:
        """Of its next configuration among all, from 0 to 1."""
        return self.place_of(len(self.by_key) + self.refused)

    def place_of(self, number: int) -> float:
        """Of one of its configurations."""
        return (number + 0.5) / self.plan.trials


class Searches:
    """All searches of a sweep.

    Args:
        spec: The sweep.
        plan: Its trials so far, and what each search may draw.
        targets: What is sought.
        world: Where they run.
        ahead: Whether to ask in a thread.
    """

    def __init__(
        self, spec: SweepSpec, plan: Plan, targets: Targets, world: World, *, ahead: bool
    ) -> None:
        self._spec, self._plan, self._targets, self._world = spec, plan, targets, world
        self._thread = ThreadPoolExecutor(1, "search") if ahead and plan.searches else None
        self._drawing: dict[Future[Asked], OneSearch] = {}
        self._telling: list[Future[None]] = []
        self._cells = {(c.study, c.number): c for c in plan.cells if c.study is not None}
        self.all: dict[str, OneSearch] = {}

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def begin(self) -> list[Event]:
        """Make the log hold what was drawn and told; the rest is decided anew.

        That of arms without a search is kept too: the file may be changed back.
        """
        # Where a configuration was told of again, the later line is in the place of the first.
        kept: dict[tuple[str, str, int], Event] = {}
        for event in self._world.decisions():
            if event["event"] not in ("asked", "told"):
                continue
            key = event["study"], event["number"]
            kept[event["event"], *key] = _with_seeds(event, self._cells.get(key))
        self._world.begin(events := list(kept.values()))
        return events

    def rebuild(self, events: Sequence[Event], enter: Enter) -> None:
        """Make each study from the log and the records, and hand out what it drew before.

        Args:
            events: What ``begin`` kept.
            enter: Takes in a configuration.
        """
        block = self._spec.search
        if block is None:
            return
        for plan in self._plan.searches:
            space = plan.open.setting.drawn
            self.all[plan.key] = search = OneSearch(plan, Study(space, block, plan.key))
            own = [event for event in events if event["study"] == plan.key]
            history, late = self._history(search, own, enter)
            if history:
                search.study = Study(space, block, plan.key, history)
            for told in late:  # killed between a record and the line about it
                self._tell(search, told)

    def _history(
        self,
        search: OneSearch,
        events: Sequence[Event],
        enter: Enter,
    ) -> tuple[list[Asked | Told], list[Told]]:
        """A study's history in its order, and what it has not been told yet.

        What it was told is computed anew: trials may have been run again, or with more seeds.
        """
        history: list[Asked | Told] = []
        ended: dict[int, Entry | None] = {}  # None: its method refuses it
        for event in events:
            number = int(event["number"])
            if event["event"] == "told":
                if number in ended:
                    told = self._told(search, number, ended.pop(number))
                    history.append(told)
                    if any(event.get(key) != value for key, value in _outcome(told).items()):
                        self._log_told(search, told)
                continue
            history.append(Asked(number, event["knobs"]))
            search.asked += 1
            cell = self._cells.get((search.plan.key, number))
            entry = None if cell is None else self._enter(search, cell, enter)
            if entry is None:
                search.refused += 1
            if entry is None or self._is_over(entry):
                ended[number] = entry
        return history, [self._told(search, number, entry) for number, entry in ended.items()]

    def _enter(
        self,
        search: OneSearch,
        cell: Cell,
        enter: Enter,
        state: Mapping[str, State] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> Entry:
        state = self._plan.state if state is None else state
        entry = enter(cell, state, self._plan.refused if refused is None else refused)
        entry.same_as = search.by_key.get(cell.key)
        search.untold[entry.order] = entry
        search.by_key.setdefault(cell.key, entry)
        return entry

    # --- drawing ----------------------------------------------------------------------------------

    @property
    def drawing(self) -> int:
        """How many configurations are being drawn."""
        return len(self._drawing)

    def to_draw(self) -> int:
        """How many configurations are still to be drawn, at most."""
        return sum(max(0, search.left) for search in self.all.values())

    def next(self, limit: int | None) -> OneSearch | None:
        """The search to draw from next, by how far each has come.

        Args:
            limit: Configurations of one search that may be under way at once.
        """
        free = [
            s for s in self.all.values()
            if s.left > 0 and not s.asking and (limit is None or self._under_way(s) < limit)
        ]  # fmt: skip
        return min(free, key=lambda s: s.place, default=None)

    def _under_way(self, search: OneSearch) -> int:
        return sum(not (e.same_as or self._is_over(e)) for e in search.untold.values())

    def draw(self, search: OneSearch, enter: Enter) -> Entry | None:
        """Ask a search; what it drew, unless that is done ahead and comes by ``receive``."""
        search.asking = True
        if self._thread is None:
            return self._drew(search, search.study.ask(), enter)
        self._drawing[self._thread.submit(search.study.ask)] = search
        return None

    def receive(self, timeout_s: float | None, enter: Enter) -> list[Entry]:
        """What was drawn meanwhile; waits for one until the time is over, None for ever."""
        for told in [future for future in self._telling if future.done()]:
            told.result()  # an error of ours is to be seen
            self._telling.remove(told)
        if not self._drawing:
            return []
        done = wait(self._drawing, timeout_s, "FIRST_COMPLETED").done
        found = [
            self._drew(self._drawing.pop(future), future.result(), enter)
            for future in [future for future in self._drawing if future in done]
        ]
        return [entry for entry in found if entry is not None]

    def _drew(self, search: OneSearch, asked: Asked, enter: Enter) -> Entry | None:
        search.asking = False
        search.asked += 1
        open_ = search.plan.open
        event = {
            "event": "asked", "study": search.plan.key, "number": asked.number,
            "arm": open_.arm, "knobs": dict(asked.knobs),
        }  # fmt: skip
        part: Part = "run" if self._spec.confirmed is None else "select"
        try:
            one = drawn(open_, asked.knobs)
        except MethodError as error:
            search.refused += 1
            swept = {**open_.knobs, **asked.knobs}
            self._world.log({**event, "cell": swept, "trials": {}, "refused": str(error)})
            self._tell(search, self._told(search, asked.number, None))
            return None
        planner = self._plan.planner
        cell = planner.cell(one, self._spec.seeds, search.plan.key, asked.number, part)
        same = search.by_key.get(cell.key)
        again = {} if same is None else {"same_as": same.cell.number}
        ids = {str(trial.seed): trial.id for trial in cell.trials}
        self._world.log({**event, "cell": dict(cell.knobs), "trials": ids, **again})
        state, _ = planner.look(cell.trials)
        reason = self._world.refused(cell) if "new" in state.values() else None
        refused = {} if reason is None else dict.fromkeys(state, reason)
        return self._enter(search, cell, enter, state, refused)

    # --- telling ----------------------------------------------------------------------------------

    def review(self, entry: Entry) -> None:
        """Tell a search of a configuration that is over, and of others that are the same."""
        search = self.all.get(entry.cell.study or "")
        if search is None or entry.cell.part == "confirm" or not self._is_over(entry):
            return
        first = entry.same_as or entry
        for number, one in list(search.untold.items()):
            if one is first or one.same_as is first:
                self._tell(search, self._told(search, number, one))

    def _is_over(self, entry: Entry) -> bool:
        """Whether no more is to be learnt of it."""
        first = entry.same_as or entry
        return not first.open_ids or (bool(first.dropped) and not first.waits)

    def _told(self, search: OneSearch, number: int, entry: Entry | None) -> Told:
        """What a study is told of a configuration, of which nothing is known if it was refused."""
        search.untold.pop(number, None)
        if entry is None:
            return Told(number, "failed")
        first = entry.same_as or entry
        seeds = {
            str(t.seed): list(first.values[t.id]) for t in first.cell.trials if t.id in first.values
        }
        bad = first.ended_badly
        if bad is not None and bad[1] == "pruned":
            return Told(number, "pruned", curve=self._curve_of(first), seeds=seeds)
        if bad is not None or not first.is_whole:
            return Told(number, "failed", seeds=seeds)
        values = tuple(self.aggregated(first, n) for n in range(len(self._targets.sought)))
        limits = self._excess(first)
        if not all(math.isfinite(value) for value in (*values, *limits.values())):
            return Told(number, "failed", seeds=seeds)
        return Told(number, "complete", values, limits, seeds=seeds)

    def keeps(self, entry: Entry) -> bool:
        """Whether a configuration is within the constraints, which bind what is searched."""
        return entry.cell.study is None or all(v <= 0 for v in self._excess(entry).values())

    def _excess(self, entry: Entry) -> dict[str, float]:
        """Constraint -> how far the mean over seeds is beyond it."""
        before = len(self._targets.sought)
        return {
            target.text: target.excess(entry.mean(before + n))
            for n, target in enumerate(self._targets.constraints)
        }

    def aggregated(self, entry: Entry, target: int) -> float:
        """What of a configuration's seeds is compared."""
        block: Search | None = self._spec.search
        if block is None:
            return entry.mean(target)
        larger = self._targets.all[target].larger_is_better
        return aggregate(entry.of(target), block.aggregate, larger, block.confidence)

    def _curve_of(self, entry: Entry) -> dict[int, float]:
        """Mean over seeds at each step; none where it cannot be compared with the objective."""
        watched, sought = self._targets.watched, self._targets.sought
        if watched is None or len(sought) != 1 or sought[0].larger_is_better != watched:
            return {}
        points: dict[int, list[float]] = {}
        for trial in entry.cell.trials:
            for step, value in (
                self._world.curve(trial.id).items() if trial.id in entry.ending else ()
            ):
                points.setdefault(step, []).append(value)
        means = {step: math.fsum(found) / len(found) for step, found in points.items()}
        return {step: means[step] for step in sorted(means) if math.isfinite(means[step])}

    def _log_told(self, search: OneSearch, told: Told) -> None:
        event = {"event": "told", "study": search.plan.key, "number": told.number}
        self._world.log(event | _outcome(told))

    def _tell(self, search: OneSearch, told: Told) -> None:
        self._log_told(search, told)
        if self._thread is None:
            search.study.tell(told)
        else:
            self._telling.append(self._thread.submit(search.study.tell, told))


def _outcome(told: Told) -> dict[str, Any]:
    """What the log holds of it."""
    return {
        "state": told.state, "values": list(told.values), "constraints": dict(told.constraints),
    }  # fmt: skip


def _with_seeds(event: Event, cell: Cell | None) -> Event:
    """A draw with the trials of today: the file may list other seeds by now."""
    if event["event"] != "asked" or cell is None:
        return event
    return {**event, "trials": {str(trial.seed): trial.id for trial in cell.trials}}
