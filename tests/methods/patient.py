"""A method whose only stage takes steps, and whose process or data may suffer at one of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from hdsweep.method import Data, Method, Outcome, Predictions, Stage, Strict, TrialContext

STEPS = 5


class Params(Strict):
    """At which step it dies, where the environment says so; which trial it is."""

    branch: int = Field(0, ge=0)


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """One for all trials."""
    return [Stage("steps", 1, {}, __name__)]


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Noise; the stage holds the steps that were taken for it."""

    def build(folder: Path) -> None:
        found = context.resume()
        taken = json.loads((found / "taken.json").read_text()) if found else []
        for step in range(len(taken) + 1, STEPS + 1):
            with Path(os.environ["STEPS_TAKEN"]).open("a") as file:
                file.write(f"{step}\n")
            taken.append(step)
            text = json.dumps(taken)
            context.checkpoint(step, lambda to, text=text: _write(to / "taken.json", text))  # type: ignore[misc]
            if os.environ.get("SPOILS_AT") == str(step):
                _write(data.test[0].path, "x 0 1\n")
            if os.environ.get("DIES_AT") == str(step):
                os.kill(os.getpid(), signal.SIGKILL)
        _write(folder / "taken.json", json.dumps(taken))

    folder = context.stage(stages(params, data, context.seed)[0], build)
    taken = json.loads((folder / "taken.json").read_text())
    random = np.random.default_rng([context.seed, params.branch])
    return Outcome(
        Predictions.of(data.test, random.random(len(data.test))),
        scalars={"steps": float(len(taken)), "resumed": float(context.resume() is not None)},
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="none",
    uses_torch=False,
    scalars=("steps", "resumed"),
    stages=stages,
)
