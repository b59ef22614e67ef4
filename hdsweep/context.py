"""What the engine lends to a running trial: curve, stages, checkpoints, a log."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hdsweep import provenance
from hdsweep.curve import Curve
from hdsweep.method import dataset_module
from hdsweep.stages import stage_folder
from hdsweep.store import Store
from hdsweep.trial import Trial

CHECKPOINT_INTERVAL_S = 60.0  # what a kill may cost; writing one takes well under a second


def _nothing() -> None:
    pass


def _home_of(build: Callable[[Path], None]) -> tuple[str, ...]:
    """Module that a builder's code is in, or the whole folder below ``trainables``."""
    name: str = getattr(build, "__module__", "")
    parts = name.split(".")
    return (".".join(parts[:2]) if parts[0] == "trainables" else name,) if name else ()


@dataclass(slots=True)
class Context:
    """See ``hdsweep.method.TrialContext``.

    Args:
        trial: What is run.
        threads: CPU threads it may use.
        store: Where its curve, checkpoints and stages are.
        device: A torch device name.
        scratch: A folder of its own.
        log: Its log.
        checkpoint_interval_s: Least time between two checkpoints.
        require_the_same: Raises DataChanged when the data, or a file that a knob names, are no
            longer those that name the trial.
    """

    trial: Trial
    threads: int
    store: Store
    device: str
    scratch: Path
    log: logging.Logger
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S
    require_the_same: Callable[[], None] = _nothing
    _last_s: float = field(default_factory=time.monotonic)
    _began_s: float = field(default_factory=time.monotonic)
    _curve: Curve | None = None

    @property
    def seed(self) -> int:
        """The replicate."""
        return self.trial.seed

    @property
    def _folder(self) -> Path:
        return self.store.trial_dir(self.trial.id)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a point to the curve."""
        if self._curve is None:
            self._curve = Curve(self._folder, self._began_s, self.log)
        self._curve.add(step, metrics)

    def stage(
        self,
        name: str,
        *,
        version: int,
        inputs: Mapping[str, object],
        build: Callable[[Path], None],
    ) -> Path:
        """Folder of work that trials share."""

        # A stage is what its inputs say only if they were the same all the while it was built, and
        # if the code that reads the data and the builder's own have not changed since.
        def build_from_the_same(folder: Path) -> None:
            build(folder)
            self.require_the_same()

        read_by = dataset_module(self.trial.data_name)
        return stage_folder(
            self.store.root,
            name,
            version=version,
            inputs=inputs,
            fingerprint=self.trial.fingerprint,
            source=provenance.source_digest(read_by, *_home_of(build)),
            build=build_from_the_same,
        )

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep a checkpoint, if one is due."""
        if time.monotonic() - self._last_s < self.checkpoint_interval_s:
            return
        home = self._folder / "checkpoint"
        home.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
        whole = home / f"{step:09d}"
        try:
            save(partial)
            if not whole.exists():
                os.rename(partial, whole)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in _checkpoints(home)[:-1]:
            shutil.rmtree(old, ignore_errors=True)
        self._last_s = time.monotonic()

    def resume(self) -> Path | None:
        """The last whole checkpoint; the curve goes on from it."""
        whole = _checkpoints(self._folder / "checkpoint")
        if not whole:
            return None
        self.close()  # of a method that has reported before it asks
        step = int(whole[-1].name)
        self._curve = Curve(self._folder, self._began_s, self.log, last_step=step)
        self.log.info("continues from step %d", step)
        return whole[-1]

    def close(self) -> None:
        """Leave nothing open."""
        if self._curve is not None:
            self._curve.close()


def _checkpoints(home: Path) -> list[Path]:
    """Whole checkpoints, the oldest first."""
    return sorted(p for p in home.glob("[0-9]*") if p.is_dir()) if home.is_dir() else []
