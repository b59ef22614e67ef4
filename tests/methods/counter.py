"""A method that counts, checkpoints, shares a stage and leaves artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from hdsweep.method import (
    ContentPath,
    Data,
    Method,
    Outcome,
    Predictions,
    Stage,
    Strict,
    TrialContext,
)


class Params(Strict):
    """Steps, and an interruption after the third one while ``interrupt_file`` does not exist."""

    steps: int = Field(5, ge=1)
    interrupt_file: str = ""
    stage: bool = False
    scalar: str = "count"
    twice: bool = False
    given: ContentPath | None = None
    spoil: str = ""  # a file that something else changes while the stage is built
    outside_identity: ClassVar[frozenset[str]] = frozenset({"interrupt_file", "spoil"})


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Each step adds a draw to a total that the scores depend on."""
    print(f"counting to {params.steps}")
    random = np.random.default_rng(context.seed)
    total, step = 0.0, 0
    if params.stage:

        def build(folder: Path) -> None:
            (folder / "half").write_text("x")
            if params.spoil:
                with Path(params.spoil).open("a") as file:
                    file.write(" 1")
            if params.steps == 13:
                raise RuntimeError("unlucky")

        context.stage(Stage("count", 1, {"steps": params.steps}, __name__), build)
    found = context.resume()
    if found is not None:
        saved = np.load(found / "state.npz")
        total, step = float(saved["total"]), int(saved["step"])
        random.standard_normal(step)
    while step < params.steps:
        total += float(random.standard_normal())
        step += 1
        context.report(step, {"total": total})
        if params.interrupt_file:
            now = {"total": total, "step": step}
            for _ in range(1 + params.twice):
                context.checkpoint(
                    step, lambda folder, now=now: np.savez(folder / "state.npz", **now)
                )
            stop = Path(params.interrupt_file)
            if step == 3 and not stop.exists():
                stop.touch()
                raise KeyboardInterrupt
    text, notes = context.scratch / "steps.txt", context.scratch / "notes"
    text.write_text(str(step))
    notes.mkdir()
    (notes / "a.txt").write_text("a")
    score = total + np.arange(len(data.test))
    return Outcome(
        Predictions.of(data.test, score),
        scalars={params.scalar: float(step)},
        artifacts={"steps.txt": text, "notes": notes},
    )


METHOD = Method(
    version=1, params=Params, run=run, source="none", uses_torch=False, scalars=("count",)
)
