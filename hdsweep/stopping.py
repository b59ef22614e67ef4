"""Stopping rules at work in all processes of a sweep, which share a file of what was decided.

The rules are those of ``rungs.py``. Neither Ray nor a driver is needed for them: workers on any
node that sees the store decide among themselves, and a sweep whose driver was killed loses nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from hdsweep.curve import read_points
from hdsweep.errors import StoreError
from hdsweep.files import cannot_write
from hdsweep.identity import digest
from hdsweep.rungs import Arrival, Rungs, rule_digest
from hdsweep.strategy import Stop

__all__ = [
    "Rungs",
    "SharedRungs",
    "Watch",
    "points_of",
    "rule_digest",
    "rule_of",
    "shared_rungs",
]

LOOK_S = 1.0  # how late a seed may learn that another of its configuration was stopped


@dataclass(frozen=True)
class Watch:
    """What a worker must know to have its trial stopped in time.

    Args:
        stop: The rule.
        larger_is_better: Of the rule's metric.
        sweep: Its name.
        arm: Of the sweep; configurations are compared within it.
        configuration: What the trial is a replicate of.
        order: Number of the configuration in the arm, from 0.
        last: The last step of the trial, at which nothing is saved by stopping it; None if unknown.
    """

    stop: Stop
    larger_is_better: bool
    sweep: str
    arm: str
    configuration: str
    order: int
    last: int | None = None

    @property
    def rule(self) -> str:
        """As ``rule_of``."""
        return rule_of(self.sweep, self.stop, larger_is_better=self.larger_is_better)

    def counts(self, step: int) -> bool:
        """Whether a rule looks at that step of the trial."""
        return self.last is None or step < self.last

    def to_json(self) -> dict[str, Any]:
        """JSON values from which ``from_json`` makes an equal watch."""
        return {**vars(self), "stop": self.stop.model_dump(mode="json", exclude_unset=True)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Watch:
        """Inverse of ``to_json``."""
        return cls(**{**value, "stop": Stop.model_validate(value["stop"])})


def rule_of(sweep: str, stop: Stop, *, larger_is_better: bool) -> str:
    """Names a sweep's rule, in the records of what it stopped.

    What another rule decided does not count, nor what the same one did in another sweep, where
    others were compared.
    """
    return digest([rule_digest(stop, larger_is_better=larger_is_better), sweep])


class SharedRungs:
    """A rule at work in all processes of a sweep, through a file that only grows.

    Each line is a seed's arrival at a rung and what was decided. It is decided and written under a
    lock, after all that was written before was read: so arrivals have one order, whoever looks, and
    what a killed process had decided stays decided. Lines of another rule are skipped.

    Args:
        root: The store.
        sweep: Name of the sweep.
        arm: Of the sweep, whose configurations are compared.
        stop: The rule.
        larger_is_better: Of its metric.
        look_s: Least time between two looks for what others have decided.
    """

    def __init__(
        self,
        root: Path,
        sweep: str,
        arm: str,
        stop: Stop,
        *,
        larger_is_better: bool,
        look_s: float = LOOK_S,
    ) -> None:
        folder = root / "sweeps" / sweep / "rungs"
        self._path = folder / f"{arm}.jsonl"
        self._lock = FileLock(folder / f".{arm}.lock", poll_interval=0.01)
        self._rule = rule_digest(stop, larger_is_better=larger_is_better)
        self._rungs = Rungs(stop, larger_is_better=larger_is_better)
        self._look_s = look_s
        self._mutex = threading.Lock()
        self._seen = self._inode = 0  # bytes that were read, of which file
        self._looked = -math.inf

    def report(
        self, configuration: str, order: int, seed: int, step: int, value: float
    ) -> str | None:
        """As ``Rungs.report``.

        Raises:
            StoreError: The file cannot be read or written.
        """
        with self._mutex:
            self._look()
            arrival = self._rungs.track(configuration, order, seed, step, value)
            if arrival is not None:
                self._write(lambda: [self._rungs.settle(arrival)])
            return self._rungs.stopped.get(configuration)

    def learn(
        self, configuration: str, order: int, seed: int, points: Iterable[tuple[int, float]]
    ) -> None:
        """As ``Rungs.learn``, for all processes. Raises StoreError as ``report``."""
        with self._mutex:
            self._write(lambda: self._rungs.learn(configuration, order, seed, points))

    def knows(self, configuration: str, seed: int) -> bool:
        """Whether a seed has arrived anywhere. Raises StoreError as ``stopped``."""
        with self._mutex:
            self._look()
            return self._rungs.knows(configuration, seed)

    def stopped(self) -> dict[str, str]:
        """Configuration -> why it was stopped, of those that were; at most ``look_s`` late.

        Raises:
            StoreError: The file cannot be read.
        """
        with self._mutex:
            self._look()
            return dict(self._rungs.stopped)

    def why_stopped(self, configuration: str) -> str | None:
        """As ``stopped``, of one configuration; cheap enough for every step of a trial."""
        with self._mutex:
            self._look()
            return self._rungs.stopped.get(configuration)

    def _look(self) -> None:
        """Read what others have written, unless that was done just now. Takes no lock."""
        if time.monotonic() - self._looked < self._look_s:
            return
        try:
            with self._path.open("rb") as file:
                self._read(file)
        except FileNotFoundError:
            self._anew()
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read: {error.strerror}") from None
        self._looked = time.monotonic()

    def _write(self, decide: Callable[[], Sequence[Arrival | None]]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self._path.open("a+b") as file:
                self._read(file)
                self._looked = time.monotonic()
                decided = [arrival for arrival in decide() if arrival is not None]
                if decided:
                    file.truncate(self._seen)  # a line that a kill cut
                    content = b"".join(map(self._line, decided))
                    file.write(content)
                    file.flush()
                    self._seen += len(content)
        except BaseException as error:
            self._anew()  # what was not written was not decided
            self._looked = -math.inf
            if isinstance(error, OSError):
                raise cannot_write(self._path, error) from None
            raise

    def _read(self, file: BinaryIO) -> None:
        state = os.fstat(file.fileno())
        if state.st_ino != self._inode or state.st_size < self._seen:  # it was removed meanwhile
            self._anew()
            self._inode = state.st_ino
        file.seek(self._seen)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            # Damaged by a lost disk.
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                entry = json.loads(line)
                if entry.pop("rule") == self._rule:
                    self._rungs.apply(Arrival(**entry))
        self._seen += len(whole)

    def _line(self, arrival: Arrival) -> bytes:
        return json.dumps({"rule": self._rule} | asdict(arrival)).encode() + b"\n"

    def _anew(self) -> None:
        self._rungs.forget()
        self._seen = self._inode = 0


@lru_cache(maxsize=64)
def _opened(root: Path, sweep: str, arm: str, stop: Stop, *, larger_is_better: bool) -> SharedRungs:
    return SharedRungs(root, sweep, arm, stop, larger_is_better=larger_is_better)


def shared_rungs(root: Path, watch: Watch) -> SharedRungs:
    """Those of a watch, in the store ``root``; a process reads the file once for all its trials."""
    larger = watch.larger_is_better
    return _opened(root, watch.sweep, watch.arm, watch.stop, larger_is_better=larger)


def points_of(folder: Path, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric on the curve in a trial's folder; without those that lack it."""
    return [(point["step"], point[metric]) for point in read_points(folder) if metric in point]
