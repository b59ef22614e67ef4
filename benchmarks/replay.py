"""How long a replay of many recorded trials takes: each rule on the same store.

    python -m benchmarks.replay [CONFIGURATIONS] [SEEDS] [POINTS]

Reading the store is part of it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from hdsweep.replay import replayed
from hdsweep.spec import load_sweep
from hdsweep.store import Store
from hdsweep.strategy import Stop
from tests.recording import record

SWEEP = """\
name: many
method: tests.methods.curves
data: {{name: tests.methods.labels, root: {folder}/labels, make: {{items: 40}}}}
seeds: {seeds}
params: {{steps: {points}, noise: 0.01}}
arms: {{grid: {{quality: {{grid: {qualities}}}}}}}
resources: {{gpus: 1, cpus: 1}}
report: {{metrics: [auroc]}}
"""
RULES = (
    Stop(rule="asha", metric="auroc", grace=3, reduction=3),
    Stop(rule="hyperband", metric="auroc", grace=3, reduction=3),
    Stop(rule="median", metric="auroc", grace=10),
    Stop(rule="patience", metric="auroc", grace=10, patience=10),
)


def main(configurations: int = 400, seeds: int = 5, points: int = 100) -> None:
    """Write a full run of equal trials, and replay it under each rule."""
    with tempfile.TemporaryDirectory() as folder:
        path, root = Path(folder) / "many.yaml", Path(folder) / "store"
        qualities = np.random.default_rng(0).permutation(configurations) / configurations
        text = SWEEP.format(
            folder=folder, seeds=list(range(seeds)), points=points, qualities=qualities.tolist()
        )
        path.write_text(text)
        record(path, root)
        print(f"{configurations} configurations x {seeds} seeds x {points} points")
        for rule in RULES:
            began = time.perf_counter()
            found = replayed(replace(load_sweep(path), stop=rule), Store(root), gpus=8)
            took = time.perf_counter() - began
            saved = 1 - found.replay.steps / found.full.steps
            regret = found.choices[0].regret
            print(f"{rule.rule:10} {took:6.2f} s  saves {saved:5.1%} of the steps, regret {regret}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
