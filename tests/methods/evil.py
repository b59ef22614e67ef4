"""A method that returns what it should not, in every way a contract can be broken."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hdsweep.method import (
    Data,
    DataError,
    Method,
    MethodError,
    Outcome,
    Predictions,
    Stage,
    Strict,
    TrialContext,
)


class Params(Strict):
    """Which way; ``way: none`` behaves."""

    way: str = "none"


def run(params: Params, data: Data, context: TrialContext) -> Any:
    """Scores are the positions of the items."""
    found = Predictions.of(data.test, np.arange(len(data.test)))
    context.report(1, {"loss": float("nan")})

    def stage(folder: Path) -> None:
        (folder / "x").write_text("x")
        Path("/nope/nope").read_bytes()

    ways = {
        "none": lambda: Outcome(found),
        "own labels": lambda: Outcome(replace(found, is_anomaly=np.arange(len(data.test)) > 5)),
        "own groups": lambda: Outcome(replace(found, group=("z",) * len(data.test))),
        "some items": lambda: Outcome(Predictions.of(data.test[:9], np.arange(9))),
        "no items": lambda: Outcome(Predictions.of((), np.zeros(0))),
        "two dimensions": lambda: Outcome(replace(found, score=np.zeros((len(data.test), 2)))),
        "words": lambda: Outcome(replace(found, score=np.array(["a"] * len(data.test)))),
        "nothing": lambda: None,
        "no predictions": lambda: Outcome(None),  # type: ignore[arg-type]
        "lost artifact": lambda: Outcome(found, artifacts={"a": Path("/nope")}),
        "artifact path": lambda: Outcome(found, artifacts={"../a": Path(__file__)}),
        "unnamed artifact": lambda: Outcome(found, artifacts={"": Path(__file__)}),
        "undeclared": lambda: Outcome(found, scalars={"x": 1.0}),
        "exit": lambda: sys.exit(0),
        "silent": lambda: _raise(MethodError("")),
        "surrogate": lambda: _raise(RuntimeError(os.fsdecode(b"\xff"))),
        "memory": lambda: _raise(MemoryError()),
        "stage": lambda: context.stage(Stage("broken", 1, {}, __name__), stage),
        "disk": lambda: _raise(OSError(28, "No space left on device", "/x")),
        "edit data": lambda: data.test[0].path.write_text("x 0 1\n") and Outcome(found),
        "lose data": lambda: [item.path.unlink() for item in data.test] and Outcome(found),
        "miss data": lambda: data.test[0].path.unlink() or _raise(DataError("no such file")),
    }
    if params.way.endswith(" data"):
        context.checkpoint(1, lambda _folder: None)
    return ways[params.way]()


def _raise(error: Exception) -> None:
    raise error


METHOD = Method(version=1, params=Params, run=run, source="none", uses_torch=False)
