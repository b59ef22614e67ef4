"""Stores to report from, written at once, with predictions and curves: any name, any ending."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hdsweep.identity import digest
from hdsweep.method import Predictions
from hdsweep.metrics import definitions, evaluate
from hdsweep.planned import PlannedCell, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b",
    "a & b &amp;",
    "_under_score_",
    "\"double\" 'single'",
    "</style></title><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "$\\alpha$ \\textbf{x}",
)
"""Names that are markup somewhere."""


@dataclass(frozen=True)
class Arm:
    """One configuration and how far it separates the classes."""

    name: str
    strength: float = 1.0
    knobs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    ends: Mapping[int, str] = field(default_factory=dict)  # seed -> why it failed; "" for not run
    steps: int = 20


def trial_of(arm: Arm, seed: int) -> Trial:
    """Its knobs are parameters, too."""
    params = {"arm": arm.name, **arm.params, **arm.knobs}
    identity = {"method": "m", "version": 1, "params": params}
    return Trial(
        id=digest({**identity, "seed": seed}),
        method="m",
        version=1,
        params=params,
        data_name="d",
        data_params={},
        fingerprint="f" * 64,
        seed=seed,
        identity=identity,
    )


def finish(
    store: Store, arm: Arm, seed: int, groups: Sequence[str], metrics: Sequence[str], items: int
) -> None:
    """Run one trial, as it were."""
    trial = trial_of(arm, seed)
    folder = store.trial_dir(trial.id)
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"host": "node1", "device": "cpu", "source": "0" * 64, "gpus": 0.5}
    if why := arm.ends.get(seed):
        error = {"kind": "RuntimeError", "message": why, "traceback": f"Traceback\n{why}"}
        store.put(TrialRecord(trial.id, "failed", trial.to_json(), error=error, provenance=origin))
        return
    random = np.random.default_rng([seed, items])  # of the seed alone: arms are paired
    label = np.tile(np.arange(items) % 2 == 1, len(groups))
    score = arm.strength * label + random.standard_normal(len(label))
    group = tuple(np.repeat(list(groups), items).tolist())
    named = tuple(f"{g}/{i}" for g in groups for i in range(items))
    store.put_predictions(trial.id, Predictions(named, group, label, score))
    values, missing = evaluate(metrics, group, label, score)
    points = [
        {"step": step, "time_s": float(step), "loss": 1 / step, "grad_norm": 2 / step}
        for step in range(1, arm.steps + 1)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    store.put(
        TrialRecord(
            id=trial.id,
            status="ok",
            trial=trial.to_json(),
            metrics=values,
            missing=missing,
            scalars={"latency_ms": 5.0 + arm.strength},
            definitions=definitions(metrics),
            provenance=origin,
            started="2026-01-02T03:04:05+00:00",
            wall_s=12.5,
        )
    )


def report_on(
    root: Path,
    arms: Sequence[Arm],
    *,
    name: str = "looked_at",
    question: str = "Does strength separate the classes?",
    seeds: Sequence[int] = (1, 2, 3),
    groups: Sequence[str] = ("A", "B"),
    metrics: Sequence[str] = ("auroc", "tpr@5"),
    expect: Sequence[str] = (),
    items: int = 60,
    yaml: str = "name: looked_at\n",
) -> Store:
    """Write a store with one sweep; the first arm is the baseline."""
    store = Store(root)
    store.create()
    for arm in arms:
        for seed in seeds:
            if arm.ends.get(seed) != "":
                finish(store, arm, seed, groups, metrics, items)
    cells = tuple(
        PlannedCell(arm.name, arm.knobs, {seed: trial_of(arm, seed).id for seed in seeds})
        for arm in arms
    )
    planned = PlannedSweep(
        name=name,
        question=question,
        metrics=tuple(metrics),
        baseline=arms[0].name,
        expect=tuple(expect),
        groups=tuple(groups),
        cells=cells,
    )
    store.put_sweep(planned, yaml.encode())
    return store
