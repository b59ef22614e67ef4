"""Racing on seeds: a configuration that is significantly worse than the best gets no more of them.

At a look, each configuration is compared with the one of the best mean by a one-sided t-test of the
differences of their values, seed by seed; what seeds have in common cancels. In all looks together
the truly best configuration is dropped with probability at most the level. For that the level is
divided by the looks, and by the configurations that began the race, less one: which configuration
looks best is chosen on the data, so the truly best one must survive a comparison with each of the
others. Each comparison is a test of two configurations only, so the bound holds for normal noise of
whatever variances, whichever configurations are left, and with Holm's steps it would not: whether
others were dropped says nothing of the one that looks best.

A variance pooled over configurations (randomised blocks, as in Hsu's comparisons with the best)
has many more degrees of freedom, and saves more; but it drops the best more often than it may
where variances differ, and those of good and bad configurations do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a configuration is dropped.

    Args:
        best: The configuration of the best mean.
        difference: By how much the mean is worse, above 0.
        seeds: That were compared.
        p: One-sided, of the paired t-test.
        threshold: That ``p`` had to fall below.
        level: Of the whole race.
        looks: Of the whole race.
    """

    best: str
    difference: float
    seeds: int
    p: float
    threshold: float
    level: float
    looks: int

    @property
    def reason(self) -> str:
        """In words."""
        return (
            f"race: worse than '{self.best}' by {self.difference:.3g} (paired over {self.seeds} "
            f"seeds, p = {self.p:.1g} < {self.threshold:.1g}, level {self.level:g} over "
            f"{self.looks} look{'s' if self.looks > 1 else ''})"
        )


def look(
    values: Mapping[str, Sequence[float]],
    *,
    larger_is_better: bool,
    level: float,
    looks: int,
    started: int,
) -> dict[str, Verdict]:
    """Compare configurations after some seeds.

    Args:
        values: Configuration -> its values by seed, the same seeds in the same order for all, two
            or more of them; of the configurations that were not dropped before.
        larger_is_better: Of the values.
        level: Bound on the probability that the best is dropped, in all looks together.
        looks: How many there are in the race.
        started: Configurations that began the race, those dropped since included.

    Returns:
        Configuration -> verdict, of those to drop.

    Raises:
        ValueError: A value is not finite, or the numbers of seeds differ or are below two.
    """
    names = list(values)
    if not names:
        return {}
    counts = {len(values[name]) for name in names}
    if len(counts) > 1 or min(counts) < 2:
        raise ValueError(f"{sorted(counts)} values; compare the same two seeds or more of each")
    table = np.array([values[name] for name in names], dtype=np.float64)
    if not np.isfinite(table).all():
        raise ValueError("a value is not finite; a configuration without one cannot race")
    if not larger_is_better:
        table = -table
    seeds = table.shape[1]
    best = int(table.mean(axis=1).argmax())
    threshold = level / looks / max(started - 1, len(names) - 1, 1)
    found = {}
    for name, behind in zip(names, table[best] - table, strict=True):
        difference, p = float(behind.mean()), _p_value(behind)
        if p < threshold:
            found[name] = Verdict(names[best], difference, seeds, p, threshold, level, looks)
    return found


def _p_value(behind: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """That differences of mean 0 or less look like these."""
    mean, error = float(behind.mean()), float(behind.std(ddof=1)) / math.sqrt(len(behind))
    # Metrics that take few values give equal differences by chance, and t would call them certain.
    if error <= 1e-12 * float(np.abs(behind).max()):
        return 1.0
    return float(stats.t.sf(mean / error, len(behind) - 1))
