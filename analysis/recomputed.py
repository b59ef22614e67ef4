"""What the records of a sweep give for printed cells: the values of their seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.matching import Place
from analysis.pairing import Configuration
from analysis.rounding import Floats
from analysis.runs import Run
from hdsweep.errors import StoreError
from hdsweep.metrics import POOLED
from hdsweep.store import Store


@dataclass(frozen=True, slots=True)
class Seeds:
    """Values of one configuration, metric and group.

    Args:
        values: One per seed that has one, as stored.
        half: Half a unit of their last digit where they were imported, else 0.
        planned: How many seeds were planned.
        lacking: Why others have none, in words.
    """

    values: Floats
    half: float
    planned: int
    lacking: str


NOTHING = Seeds(np.empty(0), 0.0, 0, "")


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What the records hold: metric, cell of the frame, group -> values."""

    found: Mapping[tuple[str, int, str], Seeds]

    @classmethod
    def of(cls, store: Store, frame: pd.DataFrame, runs: Mapping[str, Run]) -> Recomputed:
        """Those of every configuration, metric and group of a frame."""
        halves = _Halves(store, runs)
        found = {}
        for key, rows in frame.groupby(["metric", "cell", "group"], observed=True, sort=False):
            metric, cell, group = cast("tuple[str, int, str]", key)
            there = rows["value"].notna()
            lost = rows.loc[~there, ["status", "reason"]].drop_duplicates()
            why = "; ".join(
                reason if status in ("ok", "not run") else f"{status}: {reason}"
                for status, reason in zip(lost["status"], lost["reason"], strict=True)
            )
            trials = rows.loc[there, "trial"]
            half = 0.0 if group == POOLED else halves.of(metric, trials)
            values = rows.loc[there, "value"].to_numpy(dtype=np.float64)
            found[metric, int(cell), group] = Seeds(values, half, len(rows), why)
        return cls(found)

    def at(self, place: Place) -> Seeds:
        """Those that a printed cell is about."""
        if place.configuration is None:
            return NOTHING
        return self.of_configuration(place, place.configuration)

    def of_configuration(self, place: Place, one: Configuration) -> Seeds:
        """Those of a configuration, where another paper's row stands for it."""
        return self.found.get((place.metric, one.cell, place.group), NOTHING)


class _Halves:
    """Half a unit of the last digit of imported values."""

    def __init__(self, store: Store, runs: Mapping[str, Run]) -> None:
        self._store, self._runs = store, runs
        self._known: dict[str, Mapping[str, Any]] = {}

    def of(self, metric: str, trials: Iterable[str]) -> float:
        """The largest among some trials; 0 for what was measured here."""
        halves = (self._of(trial).get(metric) for trial in trials)
        return max(
            (float(h) for h in halves if isinstance(h, int | float) and 0 < h < math.inf),
            default=0.0,
        )

    def _of(self, trial: str) -> Mapping[str, Any]:
        if trial not in self._known:
            resolution: object = None
            if trial in self._runs and self._runs[trial].imported:
                record = self._store.record(trial)
                if record is None:
                    raise StoreError(f"{self._store.root}: trial {trial} was removed meanwhile")
                resolution = record.provenance["imported"].get("resolution")
            self._known[trial] = resolution if isinstance(resolution, dict) else {}
        return self._known[trial]
