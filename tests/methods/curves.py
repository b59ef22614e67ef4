"""A method without torch whose curve is a formula, to test early stopping with."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from hdsweep.method import Data, Method, Outcome, Predictions, Strict, TrialContext


class Params(Strict):
    """How good it becomes, and how fast: as exp(-lr x step) goes to 0."""

    quality: float = Field(0.8, ge=0, le=1)
    lr: float = Field(0.1, gt=0)
    steps: int = Field(20, ge=1)
    step_s: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0)
    silent: bool = False


def auroc_at(params: Params, seed: int, step: int) -> float:
    """The curve, a function of knobs, seed and step only."""
    noise = params.noise * np.random.default_rng([seed, step]).standard_normal()
    plateau = 0.5 + params.quality / 2
    return float(plateau - (plateau - 0.5) * math.exp(-params.lr * step) + noise)


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Report each step; the scores separate the classes the better the higher the quality."""
    if counted := os.environ.get("CURVES_RUNS"):  # a line for each time that it runs
        with Path(counted).open("a") as runs:
            runs.write(f"{params.quality} {params.lr} {context.seed}\n")
    found = context.resume()
    done = json.loads((found / "step.json").read_text()) if found else 0
    for step in range(done + 1, params.steps + 1):
        time.sleep(params.step_s)
        if not params.silent:
            context.report(step, {"auroc": auroc_at(params, context.seed, step)})

        def save(folder: Path, step: int = step) -> None:
            (folder / "step.json").write_text(json.dumps(step))

        context.checkpoint(step, save)
    label = np.array([item.is_anomaly for item in data.test])
    score = np.random.default_rng(context.seed).standard_normal(len(label))
    reached = 4 * params.quality * (1 - math.exp(-params.lr * params.steps))
    return Outcome(
        Predictions.of(data.test, score + reached * label),
        scalars={"cost": params.steps * params.lr},
    )


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="none",
    uses_torch=False,
    scalars=("cost",),
    curve=("auroc",),
    steps=lambda params: params.steps,
    unreported=lambda params: ("auroc",) if params.silent else (),
)
