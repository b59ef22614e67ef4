"""What an earlier run of a sweep left: records and curves, as a replay of it takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdsweep.curve import read_points
from hdsweep.errors import HdsweepError, did_you_mean
from hdsweep.method import load_method
from hdsweep.plan import Plan
from hdsweep.planner import Cell
from hdsweep.spec import SweepSpec
from hdsweep.store import Store
from hdsweep.strict import Strict
from hdsweep.targets import Target, watches
from hdsweep.trial import TrialRecord
from hdsweep.values import value_of


@dataclass(frozen=True, slots=True)
class Course:
    """How a recorded trial went.

    Args:
        record: Its record.
        steps: Of the points of its curve.
        times_s: When each was reported, from the start; attempts before the last count.
        values: Of what the rule watches; None where a point lacks it.
        end_s: When it ended.
    """

    record: TrialRecord
    steps: tuple[int, ...]
    times_s: tuple[float, ...]
    values: tuple[float | None, ...]
    end_s: float


def course_of(
    record: TrialRecord, points: Sequence[Mapping[str, Any]], metric: str | None
) -> Course:
    """A trial's course from its record and curve; ``metric`` is what the rule watches."""
    times: list[float] = []
    before = last = 0.0  # what was spent by attempts that a kill ended, up to their checkpoint
    for point in points:
        time_s = float(point.get("time_s", last))
        if time_s < last:
            before += last
        last = time_s
        times.append(before + time_s)
    return Course(
        record,
        tuple(int(point["step"]) for point in points),
        tuple(times),
        tuple(None if metric is None else point.get(metric) for point in points),
        max([before + record.wall_s, *times[-1:]]),
    )


class Archive:
    """What is known of finished trials.

    Args:
        store: Where predictions are, for metrics that records lack.
        groups: Of what is tested, in their order of report.
        courses: By trial id.
    """

    def __init__(self, store: Store, groups: Sequence[str], courses: Mapping[str, Course]) -> None:
        self.store, self.courses = store, courses
        self._groups = groups
        self._values: dict[tuple[str, Target], float] = {}

    def value(self, trial_id: str, target: Target) -> float:
        """One trial's value of a metric; NaN where it has none."""
        key = trial_id, target
        if key not in self._values:
            record = self.courses[trial_id].record
            self._values[key] = value_of(self.store, record, target.metric, self._groups)[0]
        return self._values[key]


def content_of(spec: SweepSpec, params: Strict, store: Store) -> tuple[str, tuple[str, ...]]:
    """Digest of the data's content, and its groups, as a run in the store had them."""
    known = store.sweeps()
    for name in sorted(known, key=lambda name: name != spec.name):
        sweep = store.sweep(name)
        ids = (i for cell in sweep.cells for i in cell.trials.values())
        record = next(filter(None, map(store.record, ids)), None)
        if record is None or record.trial["data_name"] != spec.data_name:
            continue
        if record.trial["identity"]["data"]["params"] == params.identity():
            return str(record.trial["fingerprint"]), sweep.groups
    raise HdsweepError(
        f"{store.root}: no trial on the data of sweep {spec.name} has a record; run the sweep in "
        "full first, or name its --store"
    )


def archive_of(spec: SweepSpec, made: Plan, store: Store, groups: Sequence[str]) -> Archive:
    """Read all that there is of a plan's trials. Raises HdsweepError when there is nothing."""
    ids = {trial.id for cell in made.cells for trial in cell.trials}
    metric = None if spec.stop is None else spec.stop.metric
    courses: dict[str, Course] = {}
    for trial_id, record in store.records(sorted(ids)).items():
        courses[trial_id] = course_of(record, read_points(store.trial_dir(trial_id)), metric)
    if not courses:
        raise HdsweepError(
            f"{store.root}: no trial of sweep {spec.name} has a record; run the sweep in full "
            "first, or name its --store"
        )
    return Archive(store, groups, courses)


def whole_among(spec: SweepSpec, made: Plan, archive: Archive, notes: list[str]) -> list[Cell]:
    """Configurations that can be replayed, each of a search once; notes why others cannot."""
    courses = archive.courses
    watched = {arm.name for arm in spec.arms if watches(spec, arm.name)}
    kept: list[Cell] = []
    out: Counter[str] = Counter()
    seen: set[tuple[str | None, str]] = set()
    for cell in made.cells:
        if cell.study is not None and (cell.study, cell.key) in seen:
            continue  # a sampler may repeat itself
        seen.add((cell.study, cell.key))
        found = [courses.get(trial.id) for trial in cell.trials]
        there = [one for one in found if one is not None]
        if len(there) < len(found):
            out["have trials without a record"] += 1
        elif any(one.record.status == "pruned" for one in there):
            out["were stopped early when they were recorded"] += 1
        elif cell.arm in watched and _reports(spec, cell) and not all(map(_is_watched, there)):
            out["have a trial without a curve of what the rule watches"] += 1
        else:
            kept.append(cell)
    _require_curves(spec, made, archive, watched)
    many = sum(out.values())
    if not kept:
        why = "; ".join(f"{n} {what}" for what, n in out.items())
        raise HdsweepError(
            f"{archive.store.root}: no configuration of sweep {spec.name} can be replayed: {why}; "
            "run the sweep in full first"
        )
    for what, n in out.items():
        notes.append(f"left out of both runs: {n} of {many + len(kept)} configurations {what}")
    bad = Counter(
        courses[i].record.ending for i in {t.id for cell in kept for t in cell.trials}
        if courses[i].record.ending != "ok"
    )  # fmt: skip
    for ending, n in sorted(bad.items()):
        notes.append(f"{n} recorded trials are {ending}, and end so in both runs")
    return kept


def _reports(spec: SweepSpec, cell: Cell) -> bool:
    """Whether what the rule watches is to be expected: without it, a trial runs to its end."""
    trial = cell.trials[0]
    method = load_method(trial.method)
    silent = method.unreported(method.params.model_validate(trial.params))
    return spec.stop is not None and spec.stop.metric not in silent


def _is_watched(course: Course) -> bool:
    return course.record.ending != "ok" or any(value is not None for value in course.values)


def _require_curves(spec: SweepSpec, made: Plan, archive: Archive, watched: set[str]) -> None:
    """Refuse a rule that watches what no record has."""
    if spec.stop is None:
        return
    ids = [t.id for cell in made.cells if cell.arm in watched for t in cell.trials]
    courses = [archive.courses[i] for i in ids if i in archive.courses]
    if courses and not any(value is not None for one in courses for value in one.values):
        store, found = archive.store, courses[0].record.id
        names = {n for p in read_points(store.trial_dir(found)) for n in p} - {"step", "time_s"}
        hint = did_you_mean(spec.stop.metric, names) if names else "; they have no curves at all"
        raise HdsweepError(
            f"{store.root}: the stopping rule watches '{spec.stop.metric}', which no recorded "
            f"curve of sweep {spec.name} has{hint}"
        )
