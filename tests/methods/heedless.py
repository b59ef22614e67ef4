"""A method that catches what ends it, to test that early stopping does not depend on its care."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hdsweep.method import Data, Method, Outcome, Predictions, TrialContext
from tests.methods import curves


class Params(curves.Params):
    """As of ``curves``, and what it does where it is stopped."""

    then: Literal["ends", "goes on", "fails"] = "ends"


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Report each step; the scores are all alike."""
    for step in range(1, params.steps + 1):
        try:
            context.report(step, {"auroc": curves.auroc_at(params, context.seed, step)})
        except Exception as error:
            if params.then == "fails":
                raise RuntimeError("a step of the training failed") from error
            if params.then == "ends":
                break
    return Outcome(Predictions.of(data.test, np.zeros(len(data.test))))


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="none",
    uses_torch=False,
    curve=("auroc",),
    steps=lambda params: params.steps,
)
