"""A sweep in the store as Optuna studies: what its searches drew, and its grids.

Made from the kept sweep file, the log of decisions and the records; the data are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hdsweep.configure import configurations
from hdsweep.curve import read_points
from hdsweep.errors import HdsweepError, SpecError, StoreError
from hdsweep.identity import canonical_json
from hdsweep.knobs import Choice, Drawn
from hdsweep.method import load_method
from hdsweep.metrics import Metric, parse_metric
from hdsweep.planned import PlannedCell, PlannedSearch, PlannedSweep, cell_name, draws_of
from hdsweep.search import Asked, Evaluator, Exported, Told, importance
from hdsweep.spec import SweepSpec
from hdsweep.store import Store
from hdsweep.strategy import Mode, Search
from hdsweep.trial import TrialRecord
from hdsweep.values import value_of

_EVALUATORS: Mapping[Evaluator, str] = {"ped_anova": "PED-ANOVA", "fanova": "fANOVA"}


@dataclass(frozen=True, slots=True)
class _Drew:
    """One search of the sweep.

    Args:
        search: As planned.
        space: What it draws.
        events: Number -> the last line about its draw, and about what became of it.
    """

    search: PlannedSearch
    space: Mapping[str, Drawn]
    events: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any] | None]]

    def asked(self) -> list[Asked]:
        """In the order of drawing."""
        return [Asked(number, event["knobs"]) for number, (event, _) in self.events.items()]


def _drew(store: Store, planned: PlannedSweep, spec: SweepSpec) -> list[_Drew]:
    """Every search of a sweep.

    Raises:
        HdsweepError: The kept sweep file is none of this plan's, or its method has changed.
    """
    if not planned.searches:
        return []
    spaces = {
        (one.arm, canonical_json(dict(one.knobs))): one.setting.drawn
        for one in configurations(spec, resolve=False).open
    }
    events = store.decisions(planned.name)
    asked = draws_of(events, store.log_of(planned.name))
    told = {(e["study"], e["number"]): e for e in events if e["event"] == "told"}
    found = []
    for search in planned.searches:
        space = spaces.get((search.arm, canonical_json(dict(search.knobs))))
        if space is None:
            raise HdsweepError(
                f"{spec.source.path}: has no search '{cell_name(search.arm, search.knobs)}', which "
                "the plan beside it has; run the sweep again to write both anew"
            )
        own = asked.get(search.key, {}).items()
        found.append(
            _Drew(search, space, {n: (event, told.get((search.key, n))) for n, event in own})
        )
    return found


# --- importance -----------------------------------------------------------------------------------


def importance_lines(
    store: Store, planned: PlannedSweep, spec: SweepSpec, evaluator: Evaluator = "ped_anova"
) -> list[str]:
    """How much each drawn knob mattered: a line for each search and objective; none without any.

    Args:
        store: Has the log of what was drawn.
        planned: The sweep.
        spec: Of its kept sweep file.
        evaluator: As of ``search.importance``.
    """
    lines = []
    for one in _drew(store, planned, spec):
        block = _block(spec)
        history: list[Asked | Told] = [*one.asked()]
        for number, (asked, event) in one.events.items():
            if event is not None and "same_as" not in asked:  # what is drawn twice counts once
                history.append(Told(number, event["state"], tuple(event["values"])))
        for n, objective in enumerate(one.search.objectives):
            found = importance(one.space, block, history, evaluator, n)
            name = cell_name(one.search.arm, one.search.knobs)
            what = f" of {objective}" if len(one.search.objectives) > 1 else ""
            shares = ", ".join(f"{knob} {_share(value)}" for knob, value in found.values.items())
            lines.append(
                f"importance for {name}{what}: {found.reason}"
                if found.reason
                else f"importance for {name}{what} by {_EVALUATORS[evaluator]} over {found.trials} "
                f"configurations: {shares}"
            )
    return lines


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _block(spec: SweepSpec) -> Search:
    if spec.search is None:
        raise SpecError(f"{spec.source.path}: has no search, and the plan beside it has one")
    return spec.search


# --- export ---------------------------------------------------------------------------------------


def exported(
    store: Store, planned: PlannedSweep, spec: SweepSpec, mode: Mode | None = None
) -> list[Exported]:
    """Each search, and for each arm what it lists.

    What is listed has the mean over seeds of the report's first metric, and its swept knobs are
    choices; one that does not apply is null.

    Args:
        store: Has records, curves and the log.
        planned: The sweep.
        spec: Of its kept sweep file.
        mode: Whether large or small values of the report's first metric are good.

    Raises:
        HdsweepError: The direction of that metric is not known, or the file is not the plan's.
    """
    found = [
        _search_study(_Reader(store, planned, spec, one.search.arm), one)
        for one in _drew(store, planned, spec)
    ]
    for arm in planned.arm_names():
        cells = [
            cell for cell in planned.cells
            if cell.arm == arm and cell.study is None and cell.part != "confirm"
        ]  # fmt: skip
        if cells:
            reader = _Reader(store, planned, spec, arm)
            found.append(_grid_study(reader, cells, _first_metric(planned, spec, mode)))
    return found


class _Reader:
    """Looks up the trials of an arm.

    Args:
        store: Has their records.
        planned: The sweep.
        spec: Of its file.
        arm: Whose trials.
    """

    def __init__(self, store: Store, planned: PlannedSweep, spec: SweepSpec, arm: str) -> None:
        self._store = store
        self.planned, self.spec, self.arm = planned, spec, arm
        method = next((one.method for one in spec.arms if one.name == arm), None)
        if method is None:  # somebody has edited one of them
            raise StoreError(
                f"{store.root / 'sweeps' / planned.name}: plan.json has an arm '{arm}' that "
                "sweep.yaml has not; run the sweep again, finished trials are kept"
            )
        self._curve = load_method(method).curve
        self.records: dict[str, TrialRecord] = {}

    def read(self, ids: Sequence[str]) -> None:
        """Have the records of these trials."""
        self.records |= self._store.records(ids)

    def name(self, knobs: Mapping[str, Any]) -> str:
        """Of a study."""
        return f"{self.planned.name}/{cell_name(self.arm, knobs)}"

    def value(self, trial_id: str, metric: Metric) -> float:
        """NaN where it has none."""
        record = self.records.get(trial_id)
        return value_of(self._store, record, metric, self.planned.groups)[0]

    def watched(self, objective: str) -> str | None:
        """Of what its curve is shown: what the rule watches, or else the objective."""
        stop = self.spec.stop
        wanted = objective if stop is None else stop.metric
        return wanted if wanted in self._curve else None

    def curve(self, ids: Sequence[str], metric: str | None) -> dict[int, float]:
        """Mean over trials at each step, of those that have reached it."""
        points: dict[int, list[float]] = {}
        for trial_id in ids if metric is not None else ():
            for point in read_points(self._store.trial_dir(trial_id)):
                if metric in point:
                    points.setdefault(int(point["step"]), []).append(point[metric])
        means = {step: math.fsum(values) / len(values) for step, values in sorted(points.items())}
        return {step: mean for step, mean in means.items() if math.isfinite(mean)}


def _search_study(reader: _Reader, one: _Drew) -> Exported:
    search, block = one.search, _block(reader.spec)
    metrics = [parse_metric(text, (text,)) for text in search.objectives]
    watched = reader.watched(search.objectives[0])
    history: list[Asked | Told] = [*one.asked()]
    of_each: dict[int, dict[str, Any]] = {}
    for number, (asked, told) in one.events.items():
        ids: dict[str, str] = asked["trials"]
        reader.read(list(ids.values()))
        of_each[number] = {"trials": ids, "configuration": asked["cell"]}
        if asked.get("refused"):
            of_each[number]["refused"] = asked["refused"]
        if told is not None:
            curve = reader.curve(list(ids.values()), watched)
            limits = told.get("constraints", {})
            seeds = _of_seeds(reader, ids, metrics)
            values = tuple(told["values"])
            history.append(Told(number, told["state"], values, limits, curve, seeds))
    return Exported(
        reader.name(search.knobs),
        one.space,
        block,
        history,
        _attributes(reader, search.knobs, watched),
        of_each,
    )


def _grid_study(reader: _Reader, cells: Sequence[PlannedCell], sought: _Sought) -> Exported:
    names = list(dict.fromkeys(name for cell in cells for name in cell.knobs))
    space = {name: Choice(tuple(_distinct(cell.knobs.get(name) for cell in cells)))
             for name in names}  # fmt: skip
    watched = reader.watched(sought.metric.text)
    history: list[Asked | Told] = []
    of_each: dict[int, dict[str, Any]] = {}
    for number, cell in enumerate(cells):
        ids = {str(seed): trial_id for seed, trial_id in cell.trials.items()}
        reader.read(list(ids.values()))
        of_each[number] = {"trials": ids} | ({"skipped": cell.skipped} if cell.skipped else {})
        history.append(Asked(number, {name: cell.knobs.get(name) for name in names}))
        told = _told(reader, number, cell, sought.metric, watched)
        if told is not None:
            history.append(told)
    name = sought.metric.text
    search = Search.model_validate(
        {"trials": len(cells), "maximize" if sought.larger_is_better else "minimize": name}
    )
    # Nothing was drawn: in the place of a sampler's name stands what it was.
    attributes = {**_attributes(reader, {}, watched), "hdsweep": {"sampler": "grid"}}
    return Exported(reader.name({}), space, search, history, attributes, of_each)


def _told(
    reader: _Reader, number: int, cell: PlannedCell, metric: Metric, watched: str | None
) -> Told | None:
    """What became of a listed configuration; None while trials are to come."""
    ids = list(cell.trials.values())
    endings = {reader.records[i].ending for i in ids if i in reader.records}
    curve = reader.curve(ids, watched)
    seeds = _of_seeds(reader, {str(seed): i for seed, i in cell.trials.items()}, [metric])
    if endings - {"ok", "pruned"}:
        return Told(number, "failed", seeds=seeds)
    if "pruned" in endings or cell.skipped:
        return Told(number, "pruned", curve=curve, seeds=seeds)
    values = [reader.value(i, metric) for i in ids]
    if any(i not in reader.records for i in ids):
        return None
    mean = math.fsum(values) / len(values)
    return Told(number, "complete", (mean,), curve=curve, seeds=seeds)


def _of_seeds(
    reader: _Reader, ids: Mapping[str, str], metrics: Sequence[Metric]
) -> dict[str, list[float | None]]:
    """Seed -> one value per metric, of the seeds that have a record."""
    found = {
        seed: [reader.value(i, metric) for metric in metrics]
        for seed, i in ids.items()
        if i in reader.records
    }
    return {
        seed: [value if math.isfinite(value) else None for value in values]
        for seed, values in found.items()
    }


def _attributes(reader: _Reader, knobs: Mapping[str, Any], watched: str | None) -> dict[str, Any]:
    named: dict[str, Any] = {"sweep": reader.planned.name, "arm": reader.arm}
    if knobs:
        named["knobs"] = dict(knobs)
    return named if watched is None else {**named, "curves of": watched}


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({canonical_json(value): value for value in values}.values())


@dataclass(frozen=True, slots=True)
class _Sought:
    """What listed configurations are compared by."""

    metric: Metric
    larger_is_better: bool


def _first_metric(planned: PlannedSweep, spec: SweepSpec, mode: Mode | None) -> _Sought:
    text = planned.metrics[0]
    scalars = {name for arm in spec.arms for name in load_method(arm.method).scalars}
    metric = parse_metric(text, scalars)
    known = metric.definition.larger_is_better if metric.definition else None
    if mode is None and known is None:
        raise HdsweepError(
            f"sweep {planned.name}: say whether large or small values of '{text}' are good: "
            "--mode max, or --mode min"
        )
    return _Sought(metric, mode == "max" if mode else bool(known))
