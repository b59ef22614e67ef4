"""What the encoder takes of a training step, with its tokens kept and without.

    python -m benchmarks.dinomaly_step settings.json result.json

For ``dinomaly_sweep``. Two trials of the baseline in one process and one thread, each step of one
after the same step of the other: ``tokens: float16``, whose tokens come from the stage, and
``tokens: none``, which reads, resizes and encodes its images again.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from hdsweep.context import Context
from hdsweep.data import fingerprint
from hdsweep.store import Store
from hdsweep.trial import Trial
from trainables.data import hdmap
from trainables.dinomaly import Params

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # names that timm, and anomalib itself, have moved
    from trainables.dinomaly.training import DinomalyTrial

WARM_UP = 3  # steps that are not counted: buffers of the optimiser, first look at the tokens


class Timed(DinomalyTrial):
    """A trial that notes for each step the seconds of its tokens and of the whole."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.net.train()
        self.tokens_s: list[float] = []
        self.step_s: list[float] = []

    def _tokens_of(self, *arguments: Any) -> torch.Tensor:
        began = time.perf_counter()
        found = super()._tokens_of(*arguments)
        self.tokens_s.append(time.perf_counter() - began)
        return found

    def timed_step(self, step: int) -> None:
        """One training step."""
        began = time.perf_counter()
        self._step(step)
        self.step_s.append(time.perf_counter() - began)


def main() -> None:
    """Run the steps of both trials in turn and write their seconds."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # as hdsweep runs a trial
    root = hdmap.Params.model_validate({"root": settings["data"]})
    data = hdmap.load(root)
    with tempfile.TemporaryDirectory() as name:
        content = fingerprint(hdmap.DATASET, root)
        planned = Trial("0" * 20, "dinomaly", 1, {}, "hdmap", {}, content, 42, {})
        log = logging.getLogger("step")
        context = Context(planned, 1, Store(Path(name)), "cpu", Path(name), log)
        trials = {}
        for kept in ("float16", "none"):
            knobs = settings["params"] | settings["arms"]["baseline"] | {"tokens": kept}
            trials[kept] = Timed(Params.model_validate(knobs), data, context)
        for step in range(1, WARM_UP + settings["timed_steps"] + 1):
            for trial in trials.values():
                trial.timed_step(step)
    result = {
        kept: {"tokens_s": trial.tokens_s[WARM_UP:], "step_s": trial.step_s[WARM_UP:]}
        for kept, trial in trials.items()
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
