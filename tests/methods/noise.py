"""A method without torch that scores items by seeded noise, to test the engine with."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from hdsweep.method import (
    Data,
    Diverged,
    Method,
    MethodError,
    Outcome,
    Predictions,
    Strict,
    TrialContext,
)


class Params(Strict):
    """Separation of the classes, and ways to go wrong."""

    strength: float = Field(1.0, ge=0, le=100)
    sleep_s: float = Field(0.0, ge=0)
    fault: Literal["none", "raise", "request", "diverge", "nan", "kill"] = "none"
    level: int = Field(0, ge=0)


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Score = strength x label + standard normal noise of the seed."""
    if counted := os.environ.get("NOISE_RUNS"):  # a line for each time that it runs
        with Path(counted).open("a") as runs:
            runs.write(f"{params.level} {context.seed}\n")
    time.sleep(params.sleep_s)
    context.report(1, {"loss": 1.0 / (1 + params.strength)})
    if params.fault == "raise":
        raise RuntimeError("the method has a bug")
    if params.fault == "request":
        raise MethodError("crop=100: not a multiple of the patch, 14; use 98 or 112")
    if params.fault == "diverge":
        raise Diverged(7)
    if params.fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    random = np.random.default_rng([context.seed, params.level])
    label = np.array([item.is_anomaly for item in data.test])
    score = params.strength * label + random.standard_normal(len(label))
    if params.fault == "nan":
        score[:] = np.nan
    return Outcome(Predictions.of(data.test, score), scalars={"strength_seen": params.strength})


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="none",
    uses_torch=False,
    scalars=("strength_seen",),
    curve=("loss",),
)
