"""A method of steps with checkpoints that goes wrong at one of them as a machine lets it."""

from __future__ import annotations

import json
import os
import signal
import time
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from hdsweep.method import Data, Method, Outcome, Predictions, Strict, TrialContext

Way = Literal["none", "sleep", "catch", "deaf", "kill", "memory", "gpu memory", "bloat"]


class Params(Strict):
    """How long it takes, where it goes wrong and how."""

    steps: int = Field(3, ge=1)
    step_s: float = Field(0.0, ge=0)
    way: Way = "none"
    at: int = Field(1, ge=1)
    times: int = Field(1000, ge=0)
    level: int = 0


class OutOfMemoryError(RuntimeError):
    """Named as that of torch.cuda is."""


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Count the steps; scores do not depend on what went wrong."""
    found = context.resume()
    done = json.loads((found / "step.json").read_text()) if found else 0
    for step in range(done + 1, params.steps + 1):
        _note(f"{params.level} {context.seed} {step}")
        if step == params.at and _tries(params, context.seed) <= params.times:
            go_wrong(params.way)
        time.sleep(params.step_s)
        context.report(step, {"loss": 1 / step})

        def save(folder: Path, step: int = step) -> None:
            (folder / "step.json").write_text(json.dumps(step))

        context.checkpoint(step, save)
    score = np.random.default_rng(context.seed).standard_normal(len(data.test))
    return Outcome(Predictions.of(data.test, score))


def go_wrong(way: Way) -> None:
    """As asked."""
    if way == "sleep":
        time.sleep(3600)
    elif way == "catch":
        while True:
            try:
                time.sleep(3600)
            except Exception:
                time.sleep(0)
    elif way == "deaf":
        sum(repeat(1, 10**13))  # hours in C, without a look at signals
    elif way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "memory":
        raise MemoryError
    elif way == "bloat":
        kept = [bytearray(b"x" * 2**28) for _ in range(12)]  # 3 GiB
        time.sleep(3600)
        del kept
    elif way == "gpu memory":
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def _note(line: str) -> None:
    if noted := os.environ.get("STUCK_STEPS"):  # a line for each step that is begun
        with Path(noted).open("a") as file:
            file.write(f"{line}\n")


def _tries(params: Params, seed: int) -> int:
    """How often this step of the trial was begun."""
    noted = os.environ.get("STUCK_STEPS")
    lines = Path(noted).read_text().splitlines() if noted else []
    return lines.count(f"{params.level} {seed} {params.at}")


METHOD = Method(version=1, params=Params, run=run, source="none", uses_torch=False, curve=("loss",))
