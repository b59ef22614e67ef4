"""Stores as a full run leaves them, written at once: curves are formulas, and time is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hdsweep.configure import configurations
from hdsweep.metrics import definitions
from hdsweep.plan import Plan, absolute_root, make_plan, validate_data
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord
from tests.methods import labels
from tests.methods.curves import Params, auroc_at

Points = list[dict[str, Any]]


def by_formula(trial: Trial) -> Points:
    """As ``tests.methods.curves`` reports it, a second for each step."""
    params = Params.model_validate(dict(trial.params))
    return [
        {"step": step, "time_s": float(step), "auroc": auroc_at(params, trial.seed, step)}
        for step in range(1, params.steps + 1)
    ]


def record_of(trial: Trial, points: Points, **other: Any) -> TrialRecord:
    """Its last value in both groups, two seconds after its last point."""
    value = points[-1]["auroc"] if points else 0.5
    given = {
        "status": "ok",
        "metrics": {"auroc": {"x": value, "y": value}},
        "definitions": definitions(["auroc"]),
        "scalars": {"cost": float(trial.params["steps"]) * trial.params["lr"]},
        "wall_s": points[-1]["time_s"] + 2 if points else 2.0,
    }
    return TrialRecord(id=trial.id, trial=trial.to_json(), **{**given, **other})


def record(
    path: Path,
    root: Path,
    points_of: Callable[[Trial], Points] = by_formula,
    draws: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Write all that a run of the sweep file would have left, but predictions.

    Args:
        path: The sweep file, of ``tests.methods.curves``.
        root: Of the store.
        points_of: The curve of each trial.
        draws: What each search drew.
    """
    spec, store = load_sweep(path), Store(root)
    params = absolute_root(validate_data(spec, labels.Params))
    store.create()
    checked = configurations(spec)
    empty = make_plan(spec, checked, params, "0" * 64, store)
    store.put_sweep(empty.sweep(spec, ("x", "y")), path.read_bytes())
    for search in empty.searches:
        for number, knobs in enumerate(draws):
            event = {
                "event": "asked", "study": search.key, "number": number,
                "arm": search.open.arm, "knobs": knobs, "cell": {**search.open.knobs, **knobs},
                "trials": {},
            }  # fmt: skip
            store.decide(spec.name, event)
    plan = make_plan(spec, checked, params, "0" * 64, store)
    values: dict[str, list[float]] = {}
    for cell, trial in plan.trials():
        points = points_of(trial)
        keep(store, record_of(trial, points), points)
        values.setdefault(cell.key, []).append(points[-1]["auroc"])
    for cell in plan.cells:
        if cell.study is not None:
            ids = {str(trial.seed): trial.id for trial in cell.trials}
            event = {"event": "asked", "study": cell.study, "number": cell.number,
                     "arm": cell.arm, "knobs": draws[cell.number or 0], "cell": cell.knobs,
                     "trials": ids}  # fmt: skip
            told = sum(values[cell.key]) / len(values[cell.key])
            store.decide(spec.name, event)
            store.decide(
                spec.name,
                {"event": "told", "study": cell.study, "number": cell.number,
                 "state": "complete", "values": [told]},
            )  # fmt: skip
    return plan


def keep(store: Store, record: TrialRecord, points: Points) -> None:
    """One trial, in the place of what it left before."""
    folder = store.trial_dir(record.id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    store.put(record, replace=True)
