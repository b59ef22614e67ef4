"""What a search asked and was told: one line of its log each, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hdsweep.knobs import Value
from hdsweep.strategy import Aggregate, Search

State = Literal["complete", "failed", "pruned"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One configuration that a study drew.

    Args:
        number: From 0, in the order of asking, without gaps.
        knobs: The drawn knobs that apply. JSON values, as the sweep file has them.
    """

    number: int
    knobs: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a configuration.

    Args:
        number: Of the configuration.
        state: How it ended.
        values: One per objective, those to maximize first; of a complete one.
        constraints: Name -> amount above the bound; 0 and below is feasible.
        curve: Step -> mean over the seeds. A pruned one is judged by it, others only show it.
        seeds: Values of each seed; no sampler sees them.
    """

    number: int
    state: State
    values: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)
    seeds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> tuple[object, ...]:
        """What a sampler learns."""
        return self.state, tuple(self.values), dict(self.constraints), dict(self.curve)

    def settled(self) -> Told:
        """The same in finite numbers: without any that it must have, it has failed."""
        needed = (*self.values, *self.constraints.values())
        if self.state == "failed" or not all(map(math.isfinite, needed)):
            return Told(self.number, "failed", seeds=self.seeds)
        finite = {step: value for step, value in self.curve.items() if math.isfinite(value)}
        return replace(self, values=self.values if self.state == "complete" else (), curve=finite)


History = Sequence[Asked | Told]


def paired(history: Iterable[Asked | Told]) -> dict[int, tuple[Asked, Told | None]]:
    """Each number with what was asked and, where it was, told.

    Raises:
        ValueError: The lines do not follow from one another.
    """
    found: dict[int, tuple[Asked, Told | None]] = {}
    for line in history:
        if isinstance(line, Asked):
            if line.number != len(found):
                raise ValueError(f"asked number {line.number} where {len(found)} was to come")
            found[line.number] = (line, None)
        elif line.number not in found:
            raise ValueError(f"told number {line.number}, which was never asked")
        else:
            asked, before = found[line.number]
            told = line.settled()
            if before is not None and before.outcome != told.outcome:
                raise ValueError(f"number {line.number} was told as {before}; found {told}")
            found[line.number] = (asked, told)
    return found


def aggregate(
    values: Sequence[float], how: Aggregate, larger_is_better: bool, confidence: float
) -> float:
    """One value for a configuration from those of its seeds.

    Args:
        values: One per seed.
        how: ``lower_bound`` is the end, on the bad side, of Student's one-sided interval.
        larger_is_better: Which side is bad.
        confidence: Of the interval, in (0.5, 1).

    Returns:
        NaN where it is undefined: no seeds, one that is not finite, and for ``lower_bound`` fewer
        than two.
    """
    n = len(values)
    if n == 0 or not all(map(math.isfinite, values)):
        return math.nan
    sample = np.asarray(values, dtype=np.float64)
    if how == "mean":
        return float(sample.mean())
    if how == "median":
        return float(np.median(sample))
    if how == "worst":
        return float(sample.min() if larger_is_better else sample.max())
    if n < 2:
        return math.nan
    from scipy.special import stdtrit  # a tenth of what importing scipy.stats takes

    margin = float(stdtrit(n - 1, confidence)) * float(sample.std(ddof=1)) / math.sqrt(n)
    return float(sample.mean()) + (-margin if larger_is_better else margin)


def best(search: Search, history: Iterable[Asked | Told]) -> tuple[int, ...]:
    """Numbers of the best configurations, in rising order.

    Of one objective it is one, the first of equals; of several all that no other one dominates.
    Only complete ones count that meet every constraint: there may be none.
    """
    told = [line.settled() for line in history if isinstance(line, Told)]
    feasible = [
        line
        for line in sorted(told, key=lambda one: one.number)
        if line.state == "complete" and all(above <= 0 for above in line.constraints.values())
    ]
    if not feasible:
        return ()
    signs = np.array([-1.0] * len(search.maximize) + [1.0] * len(search.minimize))
    loss = np.array([line.values for line in feasible]) * signs
    if loss.shape[1] == 1:
        return (feasible[int(loss[:, 0].argmin())].number,)
    front: list[int] = []
    for row in np.lexsort(loss.T[::-1]):  # what dominates a row comes before it
        beaten = (loss[front] <= loss[row]).all(axis=1) & (loss[front] < loss[row]).any(axis=1)
        if not beaten.any():
            front.append(int(row))
    return tuple(sorted(feasible[row].number for row in front))
