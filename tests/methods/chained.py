"""A method of two stages, one made from the other, that some data are too few for."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from hdsweep.method import (
    Data,
    Infeasible,
    Method,
    Outcome,
    Predictions,
    Stage,
    Strict,
    TrialContext,
)


class Params(Strict):
    """Which chain, where it branches, and what is asked of the data."""

    chain: int = Field(0, ge=0)
    branch: int = Field(0, ge=0)
    parts: int = Field(1, ge=1)
    build_s: float = Field(0.0, ge=0)
    late: bool = False


def base_stage(params: Params) -> Stage:
    """Shared by all branches of a chain, and asked for only while one of them is built."""
    return Stage("base", 1, {"chain": params.chain}, __name__)


def branch_stage(params: Params, seed: int) -> Stage:
    """Made from the base, one for each seed."""
    inputs = {"chain": params.chain, "branch": params.branch, "seed": seed}
    return Stage("branch", 1, inputs, __name__, (base_stage(params),))


def stages(params: Params, data: Data, seed: int) -> Sequence[Stage]:
    """The branch."""
    return [branch_stage(params, seed)]


def infeasible(params: Params, data: Data) -> str | None:
    """So many parts need so many items."""
    if params.parts > len(data.test) and not params.late:
        return f"parts={params.parts} needs as many items, the data have {len(data.test)}"
    return None


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Score = a draw from the base, plus one from the branch."""
    if params.parts > len(data.test):
        raise Infeasible("it turned out to be too few")

    def base(folder: Path) -> None:
        _note(f"base {params.chain}")
        time.sleep(params.build_s)
        np.save(folder / "draw.npy", np.random.default_rng(params.chain).random(len(data.test)))

    def branch(folder: Path) -> None:
        _note(f"branch {params.chain} {params.branch} {context.seed}")
        below = np.load(context.stage(base_stage(params), base) / "draw.npy")
        random = np.random.default_rng([params.branch, context.seed])
        np.save(folder / "draw.npy", below + random.random(len(data.test)))

    found = context.stage(branch_stage(params, context.seed), branch)
    return Outcome(Predictions.of(data.test, np.load(found / "draw.npy")))


def _note(what: str) -> None:
    if path := os.environ.get("CHAINED_BUILDS"):  # a line for each time that something is built
        with Path(path).open("a") as built:
            built.write(f"{what}\n")


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="none",
    uses_torch=False,
    stages=stages,
    infeasible=infeasible,
)
