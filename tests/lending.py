"""The engine's own context, for tests that run a part of a trial."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from hdsweep.context import Context
from hdsweep.method import Stage
from hdsweep.store import Store
from hdsweep.trial import Trial


class StoppedError(Exception):
    """The trial was ended from outside."""


class Lent(Context):
    """A context that notes what is built, keeps the curve in a list, and may end its trial.

    Args:
        home: For scratch files and, unless ``stages`` is another store, for stages.
        stop_after: Step after whose checkpoint the trial ends.
    """

    def __init__(
        self,
        home: Path,
        seed: int = 42,
        threads: int = 1,
        stop_after: int | None = None,
        stages: Path | None = None,
        fingerprint: str = "f",
    ) -> None:
        data = "tests.methods.labels"
        trial = Trial("0" * 20, "tests.methods.noise", 1, {}, data, {}, fingerprint, seed, {})
        scratch = home
        scratch.mkdir(parents=True, exist_ok=True)
        log = logging.getLogger("test")
        super().__init__(trial, threads, Store(stages or home), "cpu", scratch, log)
        self.stop_after = stop_after
        self.curve: list[tuple[int, dict[str, float]]] = []
        self.made: list[Stage] = []

    @property
    def built(self) -> list[str]:
        """Names of the stages that were built for this context."""
        return [stage.name for stage in self.made]

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        self.curve.append((step, dict(metrics)))

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        if self.stop_after == step:
            folder = self.scratch / "checkpoint"
            folder.mkdir()
            save(folder)
            raise StoppedError

    def resume(self) -> Path | None:
        folder = self.scratch / "checkpoint"
        return folder if folder.exists() else None

    def _named(
        self, stage: Stage, build: Callable[[Path], None]
    ) -> tuple[str, Callable[[Path], None]]:
        key, checked = super()._named(stage, build)

        def counted(folder: Path) -> None:
            self.made.append(stage)
            checked(folder)

        return key, counted
