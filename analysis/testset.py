"""How far a difference may be due to the items that happen to be in the test set.

Seeds tell how much training varies, on one test set. Here the trained models are given and the test
items are what varies: they are the same for all seeds and for both configurations, so an item moves
all of them together, and the noise does not shrink with more seeds. AUROC has a closed form (DeLong
1988, in the O(n log n) version of Sun and Xu 2014); for other metrics the items are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from analysis import resampled
from analysis.frame import MEAN
from analysis.resampled import Ranking
from hdsweep.method import Predictions
from hdsweep.metrics import METRICS, POOLED, Metric, parse_metric
from hdsweep.store import Store

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.intp]
_Metrics = Mapping[str, Metric]

RESAMPLES = 1000
FEWEST = 200  # resamples where there are many items: a standard error that is right to 5 %
DRAWS = 20_000_000  # of items, for one trial; fewer resamples where they would be more
AT_ONCE = 400_000  # counts of items that are worked on
SCORES = 500_000  # that are resampled in all, about ten seconds; later configurations go without


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """How far the difference may be due to the test items that happen to be in the test set.

    Args:
        method: ``paired DeLong`` or ``stratified bootstrap (B = 1000)``.
        se: Standard error of the difference over test items, the trained models given.
        ci_low, ci_high: 95 % interval of the difference.
        items: How many test items.
    """

    method: str
    se: float
    ci_low: float
    ci_high: float
    items: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A difference whose noise is asked for.

    Args:
        metric: Canonical, without group.
        group: A group of the data, POOLED or MEAN.
        cell: The configuration.
        seeds: Over which its difference to the baseline is averaged.
        difference: That mean.
    """

    metric: str
    group: str
    cell: int
    seeds: tuple[int, ...]
    difference: float


def image_noise(
    store: Store,
    asked: Sequence[Asked],
    trials: Mapping[int, Mapping[int, str]],
    baseline: int,
    groups: Sequence[str],
    *,
    alpha: float = 0.05,
    scores: int = SCORES,
) -> list[ImageNoise | str]:
    """Noise of the test items, for each difference.

    Args:
        store: Where predictions are.
        asked: Differences to the baseline.
        trials: Cell -> seed -> trial.
        baseline: Its cell.
        groups: Of the data, over which MEAN is taken.
        alpha: 1 - coverage of the intervals.
        scores: Bound on the scores that are resampled; configurations that come after it was
            reached go without.

    Returns:
        For each, its noise or why there is none, in words.

    Raises:
        StoreError: Predictions cannot be read.
    """
    metrics = {one.metric: parse_metric(one.metric, (one.metric,)) for one in asked}
    reader = _Reader(
        store=store,
        trials=trials,
        baseline=baseline,
        groups=tuple(groups),
        sampled={k: m for k, m in metrics.items() if k != "auroc" and resampled.supports(m)},
        pooled=any(one.group == POOLED for one in asked),
        left=scores,
    )
    found: list[ImageNoise | str] = []
    for one in asked:
        try:
            found.append(_noise(one, metrics[one.metric], reader, alpha))
        except _NoNoise as why:
            found.append(str(why))
    return found


class _NoNoise(Exception):
    """Why the noise of a difference cannot be told, in words."""


def _noise(asked: Asked, metric: Metric, reader: _Reader, alpha: float) -> ImageNoise:
    if metric.definition is None:
        raise _NoNoise(f"{asked.metric} is one number per trial, not computed from test items")
    if METRICS[metric.variant].pixel:
        raise _NoNoise("pixel metrics are computed in the trial, and the maps are not kept")
    if not asked.seeds:
        raise _NoNoise("no common seed")
    pairs = reader.pairs(asked.cell, asked.seeds)
    layout = pairs[0][0].layout
    groups = reader.groups if asked.group == MEAN else (asked.group,)
    layout.check(groups)
    items = layout.count(groups)
    if asked.metric == "auroc":
        influence = np.zeros(layout.items)
        for one, other in pairs:
            for group in groups:
                each = one.influence(group) - other.influence(group)
                influence[layout.item_of[layout.rows[group]]] += each  # an item is there once
        # The mean of differences moves with the mean of what the item does to each of them.
        se = float(np.sqrt(np.sum(influence**2))) / (len(pairs) * len(groups))
        reach = float(special.ndtri(1 - alpha / 2)) * se
        low, high = asked.difference - reach, asked.difference + reach
        return ImageNoise("paired DeLong", se, low, high, items)
    if asked.metric not in reader.sampled:
        raise _NoNoise(f"{asked.metric} cannot be computed of resampled test items")
    reader.resample([trial for pair in pairs for trial in pair])
    apart = [
        one.resampled[group][asked.metric] - other.resampled[group][asked.metric]
        for one, other in pairs
        for group in groups
    ]
    drawn = np.mean(apart, axis=0)
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < FEWEST / 2:
        raise _NoNoise(f"{asked.metric} is undefined in most resamples of the test items")
    low, high = np.quantile(drawn, (alpha / 2, 1 - alpha / 2)).tolist()
    method = f"stratified bootstrap (B = {len(drawn)})"
    return ImageNoise(method, float(np.std(drawn, ddof=1)), low, high, items)


# --- test items -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """The test items that all trials have in common.

    Args:
        names: Item and group of each row.
        is_anomaly: Shape (r,), of each row.
        item_of: Shape (r,), position of each row's item among all items.
        items: How many items; an item may stand in several groups.
        rows: Group -> its rows; POOLED too, each item once.
    """

    names: tuple[tuple[str, ...], tuple[str, ...]]
    is_anomaly: Bools
    item_of: Ints
    items: int
    rows: Mapping[str, Ints]

    @classmethod
    def of(cls, predictions: Predictions) -> _Layout:
        place = {name: n for n, name in enumerate(dict.fromkeys(predictions.item))}
        group = np.array(predictions.group)
        rows = {str(name): np.flatnonzero(group == name) for name in np.unique(group)}
        return cls(
            names=(predictions.item, predictions.group),
            is_anomaly=np.asarray(predictions.is_anomaly, dtype=np.bool_),
            item_of=np.array([place[name] for name in predictions.item], dtype=np.intp),
            items=len(place),
            rows={**rows, POOLED: np.array(predictions.first(), dtype=np.intp)},
        )

    def aligned(self, predictions: Predictions) -> Floats | None:
        """Scores in the order of the rows; None where items, groups or labels are others."""
        label, score = np.asarray(predictions.is_anomaly), np.asarray(predictions.score)
        if (predictions.item, predictions.group) != self.names:
            own = zip(predictions.item, predictions.group, strict=True)
            at = {name: row for row, name in enumerate(own)}
            order = [at.get(name, -1) for name in zip(*self.names, strict=True)]
            if len(order) != len(at) or -1 in order:
                return None
            label, score = label[order], score[order]
        if not np.array_equal(label, self.is_anomaly):
            return None
        return np.asarray(score, dtype=np.float64)

    def has(self, group: str) -> bool:
        """Whether a group has two items or more of each class: one alone does not vary."""
        label = self.is_anomaly[self.rows.get(group, np.zeros(0, dtype=np.intp))]
        return bool(min(np.count_nonzero(label), np.count_nonzero(~label)) > 1)

    def check(self, groups: Sequence[str]) -> None:
        lacking = [group for group in groups if not self.has(group)]
        if lacking:
            raise _NoNoise(f"fewer than two test items of a class in {', '.join(lacking)}")

    def count(self, groups: Sequence[str]) -> int:
        rows = np.concatenate([self.rows[group] for group in groups])
        return len(np.unique(self.item_of[rows]))

    def strata(self) -> list[Ints]:
        """Items of one class that stand in the same groups: each group keeps its class sizes."""
        kinds: dict[tuple[object, ...], list[int]] = {}
        stands: list[list[str]] = [[] for _ in range(self.items)]
        label = np.zeros(self.items, dtype=np.bool_)
        label[self.item_of] = self.is_anomaly
        for item, group in zip(self.item_of.tolist(), self.names[1], strict=True):
            stands[item].append(group)
        for item, inside in enumerate(stands):
            kinds.setdefault((bool(label[item]), *sorted(inside)), []).append(item)
        return [np.array(items, dtype=np.intp) for items in kinds.values()]

    def resamples(self) -> list[NDArray[np.uint16]]:
        """How often each item is drawn, some resamples at a time, shape (b, items)."""
        random, strata = np.random.default_rng(1979), self.strata()
        total = min(max(DRAWS // self.items, FEWEST), RESAMPLES)
        step, found = max(1, AT_ONCE // self.items), []
        for start in range(0, total, step):
            b = min(step, total - start)
            counts = np.zeros((b, self.items), dtype=np.uint16)
            for items in strata:
                m = len(items)
                drawn = random.integers(0, m, (b, m)) + m * np.arange(b)[:, None]
                counts[:, items] = np.bincount(drawn.ravel(), minlength=b * m).reshape(b, m)
            found.append(counts)
        return found


# --- trials ---------------------------------------------------------------------------------------


class _Tested:
    """One trial's scores, and what is computed of them once."""

    def __init__(self, layout: _Layout, score: Floats, threshold: float | None) -> None:
        self.layout, self.score, self.threshold = layout, score, threshold
        self.resampled: dict[str, dict[str, Floats]] = {}
        """Group -> metric -> shape (B,)."""
        self._influence: dict[str, Floats] = {}

    def influence(self, group: str) -> Floats:
        """``delong`` of a group's items."""
        if group not in self._influence:
            rows = self.layout.rows[group]
            self._influence[group] = delong(self.layout.is_anomaly[rows], self.score[rows])
        return self._influence[group]

    def resample(
        self, counts: Sequence[NDArray[np.uint16]], groups: Sequence[str], sampled: _Metrics
    ) -> None:
        """Fill ``resampled``."""
        for group in groups:
            rows = self.layout.rows[group]
            if np.isnan(self.score[rows]).any():
                continue  # the trial has no value there, so nobody asks
            ranking = Ranking.of(
                self.layout.is_anomaly[rows], self.score[rows], self.layout.item_of[rows]
            )
            parts = [resampled.evaluate(sampled, ranking, p, self.threshold) for p in counts]
            self.resampled[group] = {
                key: np.concatenate([part[key] for part in parts]) for key in sampled
            }


@dataclass(slots=True)
class _Reader:
    """Trials that were read, each once.

    Args:
        store: Where they are.
        trials: Cell -> seed -> trial.
        baseline: Its cell.
        groups: Of the data.
        sampled: Metrics that are resampled.
        pooled: Whether all groups are asked for together.
        left: How many more scores may be read.
    """

    store: Store
    trials: Mapping[int, Mapping[int, str]]
    baseline: int
    groups: tuple[str, ...]
    sampled: _Metrics
    pooled: bool
    left: int
    known: dict[str, _Tested | str] = field(default_factory=dict)
    layout: _Layout | None = None
    counts: list[NDArray[np.uint16]] = field(default_factory=list)

    def pairs(self, cell: int, seeds: Sequence[int]) -> list[tuple[_Tested, _Tested]]:
        """A configuration's trials beside those of the baseline."""
        names = [(self.trials[cell][seed], self.trials[self.baseline][seed]) for seed in seeds]
        new = {name for pair in names for name in pair} - self.known.keys()
        if self.layout is not None and len(new) * len(self.layout.item_of) > self.left:
            raise _NoNoise("left out: those before it have as many test items as are resampled")
        return [(self._read(one), self._read(other)) for one, other in names]

    def resample(self, tested: Sequence[_Tested]) -> None:
        """Fill ``resampled`` where it is not yet."""
        for one in tested:
            if not one.resampled:
                self.counts = self.counts or one.layout.resamples()
                groups = (*self.groups, POOLED) if self.pooled else self.groups
                one.resample(self.counts, [g for g in groups if one.layout.has(g)], self.sampled)

    def _read(self, trial: str) -> _Tested:
        if trial not in self.known:
            self.known[trial] = self._fetched(trial)
        found = self.known[trial]
        if isinstance(found, str):
            raise _NoNoise(found)
        return found

    def _fetched(self, trial: str) -> _Tested | str:
        record, predictions = self.store.record(trial), self.store.predictions(trial)
        if record is None or predictions is None:
            return "no predictions in the store"
        self.left -= len(predictions.item)
        if self.layout is None:
            self.layout = _Layout.of(predictions)
        score = self.layout.aligned(predictions)
        if score is None:
            return "the two were tested on other items, groups or labels"
        return _Tested(self.layout, score, record.threshold)


# --- AUROC ----------------------------------------------------------------------------------------


def delong(is_anomaly: Bools, score: Floats) -> Floats:
    """Influence of each item on the AUROC, such that the sum of squares is DeLong's variance.

    That of a difference, or of a mean, is the sum of squares of the difference, or mean, of these.

    Args:
        is_anomaly: Shape (n,), two or more of each class.
        score: Shape (n,), without NaN.
    """
    anomalous, normal = score[is_anomaly], score[~is_anomaly]
    p, n = len(anomalous), len(normal)
    rank = stats.rankdata(score)  # ties get their mean rank
    # The share of the other class that an item outranks, a tie counting one half.
    over = (rank[is_anomaly] - stats.rankdata(anomalous)) / n
    under = 1 - (rank[~is_anomaly] - stats.rankdata(normal)) / p
    found = np.empty(len(score))
    found[is_anomaly] = (over - over.mean()) / np.sqrt(p * (p - 1))
    found[~is_anomaly] = (under - under.mean()) / np.sqrt(n * (n - 1))
    return found
