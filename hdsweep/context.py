"""What the engine lends to a running trial: curve, stages, checkpoints, a log."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from hdsweep import provenance, stages
from hdsweep.curve import Curve
from hdsweep.errors import DataChanged, Stopped
from hdsweep.identity import digest
from hdsweep.machine import Machine
from hdsweep.method import Stage, dataset_module
from hdsweep.stopping import Watch, points_of, shared_rungs
from hdsweep.storage import Patience, require_room
from hdsweep.store import Store
from hdsweep.trial import Trial

CHECKPOINT_INTERVAL_S = 60.0  # what a kill may cost; writing one takes well under a second
_CHECKPOINT = "HDSWEEP_CHECKPOINT_S"  # in the environment: another interval, in seconds


LEAVING = threading.Event()
"""Set once this process was told to end: the next checkpoint is kept, and is the last."""


def interval_between_checkpoints() -> float:
    """Least time between two checkpoints, as the environment has it."""
    with contextlib.suppress(ValueError):
        return float(os.environ.get(_CHECKPOINT, ""))
    return CHECKPOINT_INTERVAL_S


def _nothing() -> None:
    pass


def _require_code(stage: Stage, build: Callable[[Path], None]) -> None:
    module: str = getattr(build, "__module__", stage.code)
    if not f"{module}.".startswith(f"{stage.code}."):
        raise ValueError(
            f"stage '{stage.name}' is said to be built by {stage.code}, and its builder is in "
            f"{module}: an edit there would not make it anew"
        )


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
        machine: The trial's place among others that run here.
        share: Whether stages are taken from and left in the store; else they are the trial's own.
        watch: How the trial may be stopped early.
        patience: With storage that refuses what is written.
        stopped: What ``report`` has raised, for methods that catch it.
    """

    trial: Trial
    threads: int
    store: Store
    device: str
    scratch: Path
    log: logging.Logger
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S
    require_the_same: Callable[[], None] = _nothing
    machine: Machine = field(default_factory=Machine)
    share: bool = True
    watch: Watch | None = None
    patience: Patience = field(default_factory=Patience)
    stopped: Stopped | None = field(default=None, init=False)
    _last_s: float = field(default_factory=time.monotonic)
    _began_s: float = field(default_factory=time.monotonic)
    _curve: Curve | None = None
    _held: dict[str, tuple[Path, int]] = field(default_factory=dict)
    _building: list[Path] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The replicate."""
        return self.trial.seed

    @property
    def _folder(self) -> Path:
        return self.store.trial_dir(self.trial.id)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a point to the curve; raises Stopped where that, or another seed, shows enough."""
        if self._curve is None:
            self._curve = self.patience.insist(self._open_curve)
        self._curve.add(step, metrics)
        # Others may find a stage built whose builder reports.
        if self.watch is None or self._building or not self.watch.counts(step):
            return
        rungs, here = shared_rungs(self.store.root, self.watch), self.watch.configuration
        if self.watch.stop.metric in metrics:
            value = float(metrics[self.watch.stop.metric])
            reason = rungs.report(here, self.watch.order, self.seed, step, value)
        else:
            reason = rungs.why_stopped(here)
        if reason is not None:
            self.stopped = Stopped(reason, self.watch.rule)
            raise self.stopped

    def _open_curve(self, last_step: int = 0) -> Curve:
        return Curve(
            self._folder, self._began_s, self.log, last_step=last_step, patience=self.patience
        )

    def require_going(self) -> None:
        """Raise Stopped where other seeds have stopped the configuration."""
        if self.watch is not None:
            reason = shared_rungs(self.store.root, self.watch).why_stopped(self.watch.configuration)
            if reason is not None:
                raise Stopped(reason, self.watch.rule)

    def stage(self, stage: Stage, build: Callable[[Path], None]) -> Path:
        """Folder of work that trials share."""
        key, checked = self._named(stage, build)
        if key not in self._held:
            root, idle = self._stage_root, self.machine.idle
            self._held[key] = stages.obtain(root, stage, key, checked, idle=idle)
        return self._held[key][0]

    def prepare(self, wanted: Sequence[tuple[Stage, Callable[[Path], None]]]) -> None:
        """Build those of several stages that nobody has built or is building."""
        for stage, build in wanted:
            key, checked = self._named(stage, build)
            if key not in self._held:
                stages.offer(self._stage_root, stage, key, checked)

    def has(self, stage: Stage) -> bool:
        """Whether a stage is there already."""
        key = key_of(stage, self.trial)
        return key in self._held or stages.is_whole(stages.folder_of(self._stage_root, stage, key))

    def alone(self) -> AbstractContextManager[bool]:
        """Time in which no other trial computes on this machine."""
        return self.machine.alone()

    @property
    def _stage_root(self) -> Path:
        return self.store.root if self.share else self.scratch

    def _named(
        self, stage: Stage, build: Callable[[Path], None]
    ) -> tuple[str, Callable[[Path], None]]:
        """A stage's key, and its builder with a look at the data behind it."""
        _require_code(stage, build)
        key = key_of(stage, self.trial)
        place = stages.folder_of(self._stage_root, stage, key)
        if place in self._building:
            raise ValueError(f"stage '{stage.name}' is asked for while it is being built")

        # A stage is what its inputs say only if they were the same all the while it was built.
        def build_from_the_same(folder: Path) -> None:
            self._building.append(place)
            try:
                try:
                    build(folder)
                finally:
                    self._building.pop()
                self.require_the_same()
            except DataChanged:  # checkpoints may be of the data as they were meanwhile
                shutil.rmtree(stages.progress_of(place), ignore_errors=True)
                raise

        return key, build_from_the_same

    def checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """Keep a checkpoint, if one is due."""
        leaves = LEAVING.is_set()
        if not leaves and time.monotonic() - self._last_s < self.checkpoint_interval_s:
            return
        self.patience.insist(lambda: self._checkpoint(step, save))
        if leaves:
            raise KeyboardInterrupt

    def _checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        home = self._checkpoint_home
        home.mkdir(exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
        whole = home / f"{step:09d}"
        try:
            try:
                save(partial)
            except Exception:
                require_room(home)  # torch.save says of a full disk what it says of others
                raise
            partial.chmod(stat.S_IMODE(home.stat().st_mode))  # who shares a store goes on with it
            _put(partial, whole)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in _checkpoints(home)[:-1]:
            shutil.rmtree(old, ignore_errors=True)
        self._last_s = time.monotonic()

    def resume(self) -> Path | None:
        """The last whole checkpoint; the curve of a trial goes on from it."""
        whole = _checkpoints(self._checkpoint_home)
        if not whole:
            return None
        if self._building:
            self.log.info("continues from step %d of a stage half built", int(whole[-1].name))
            return whole[-1]
        if self._curve is not None:
            self._curve.close()  # of a method that has reported before it asks
        step = int(whole[-1].name)
        self._curve = self.patience.insist(lambda: self._open_curve(step))
        if self.watch is not None:  # averages go on, and the kill may have come before a decision
            rungs, watch = shared_rungs(self.store.root, self.watch), self.watch
            for at, value in points_of(self._folder, watch.stop.metric):
                if watch.counts(at):
                    rungs.report(watch.configuration, watch.order, self.seed, at, value)
        self.log.info("continues from step %d", step)
        return whole[-1]

    def forget(self) -> None:
        """Remove the checkpoints of the trial."""
        shutil.rmtree(self._folder / "checkpoint", ignore_errors=True)

    @property
    def _checkpoint_home(self) -> Path:
        """Of the stage that is being built, or of the trial."""
        if self._building:
            return stages.progress_of(self._building[-1])
        return self._folder / "checkpoint"

    def close(self) -> None:
        """Leave nothing open."""
        if self._curve is not None:
            self._curve.close()
        while self._held:
            stages.let_go(self._held.popitem()[1][1])


def key_of(stage: Stage, trial: Trial) -> str:
    """What names a stage's folder, for data of this content that are read in this way."""
    source = provenance.source_digest(dataset_module(trial.data_name), stage.code)
    # With the data's parameters: items of one name and files may be cut at another scale.
    read = trial.identity.get("data", {"content": trial.fingerprint})
    return stages.stage_key(stage, digest(read), source)


def reached(store: Store, trial_id: str, folders: Sequence[str]) -> tuple[int, ...]:
    """How far a trial has come: its last checkpoint, then stages that are there, then theirs.

    Args:
        store: Where its files are.
        trial_id: Its id.
        folders: Of its stages, below the store.
    """
    places = [store.root / folder for folder in folders]
    homes = [store.trial_dir(trial_id) / "checkpoint", *map(stages.progress_of, places)]
    own, *of_stages = [int(found[-1].name) if (found := _checkpoints(h)) else 0 for h in homes]
    return own, sum(stages.is_whole(place) for place in places), sum(of_stages)


def _put(partial: Path, whole: Path) -> None:
    try:
        os.rename(partial, whole)
    except OSError:
        if not whole.is_dir():  # else one that lost its lease has taken the same step
            raise


def _checkpoints(home: Path) -> list[Path]:
    """Whole checkpoints, the oldest first."""
    return sorted(p for p in home.glob("[0-9]*") if p.is_dir()) if home.is_dir() else []
