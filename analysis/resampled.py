"""Image metrics of many resamples at once, from counts at the thresholds of one ranking.

A resample changes how often an item counts, never how items are ranked, so scores are sorted once
and every resample is a row of counts. Values are those that ``hdsweep.metrics`` gives for the items
written out as often as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hdsweep.metrics import Metric
from hdsweep.roc import share_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Items of one group by descending score.

    Args:
        order: Shape (n,), columns of the counts.
        last: Shape (k,), of each distinct score the position of its last item in ``order``.
        is_anomaly: Shape (n,), in ``order``.
        threshold: Shape (k,), the distinct scores.
    """

    order: NDArray[np.intp]
    last: NDArray[np.intp]
    is_anomaly: Bools
    threshold: Floats

    @classmethod
    def of(
        cls, is_anomaly: Bools, score: Floats, column: NDArray[np.intp] | None = None
    ) -> Ranking:
        """Rank items.

        Args:
            is_anomaly: Shape (n,).
            score: Shape (n,), without NaN.
            column: Shape (n,), where counts of the items will stand; by default as they are here.
        """
        order = np.argsort(-score, kind="stable")
        value = score[order]
        last = np.append(np.flatnonzero(value[1:] != value[:-1]), len(value) - 1)
        where = order if column is None else column[order]
        return cls(where, last, is_anomaly[order], value[last])


@dataclass(frozen=True, slots=True)
class Curves:
    """ROC curves of b resamples of p anomalous and n normal items.

    Args:
        tp: Shape (b, k + 1), true positives from the strictest threshold, which calls none.
        fp: Shape (b, k + 1), false positives.
        p: Anomalous items.
        n: Normal items.
        called: Position of the threshold that the method chose; None for that of the largest F1.
    """

    tp: Counts
    fp: Counts
    p: int
    n: int
    called: int | None


def evaluate(
    metrics: Mapping[str, Metric],
    ranking: Ranking,
    counts: NDArray[np.unsignedinteger | np.signedinteger],
    threshold: float | None,
) -> dict[str, Floats]:
    """Metrics of one group's items in every resample.

    Args:
        metrics: By name; ``supports`` must hold for each.
        ranking: Of the items.
        counts: Shape (b, m), how often each item was drawn; each row has the same sum over the
            anomalous items of the ranking, and over its normal ones.
        threshold: Scores of at least this are called anomalous; None where nobody chose one.

    Returns:
        Name -> shape (b,), NaN where the metric is undefined.
    """
    drawn = counts[:, ranking.order].astype(np.int64)  # sums that convert as they go are slow
    tp, every = (np.zeros((len(drawn), drawn.shape[1] + 1), dtype=np.int64) for _ in range(2))
    np.cumsum(drawn, axis=1, out=every[:, 1:])
    np.cumsum(drawn * ranking.is_anomaly, axis=1, out=tp[:, 1:])
    if len(ranking.last) < len(ranking.order):
        shown = np.append(0, ranking.last + 1)
        every, tp = every[:, shown], tp[:, shown]
    fp = every - tp
    called = None
    if threshold is not None:  # thresholds descend, and the first point calls none
        called = int(np.searchsorted(-ranking.threshold, -threshold, side="right"))
    curves = Curves(tp, fp, int(tp[0, -1]), int(fp[0, -1]), called)
    return {
        key: _FUNCTIONS[metric.variant](curves, metric.percent or 0.0)
        for key, metric in metrics.items()
    }


def supports(metric: Metric) -> bool:
    """Whether a metric can be computed from counts."""
    return metric.variant in _FUNCTIONS


# --- metrics; definitions are those of ``hdsweep.roc`` --------------------------------------------


def _at(values: Counts, index: NDArray[np.intp]) -> Counts:
    return np.take_along_axis(values, index[:, None], axis=1)[:, 0]


def _auroc(c: Curves, _percent: float) -> Floats:
    up = c.tp[:, 1:] + c.tp[:, :-1]
    area: Counts = (np.diff(c.fp, axis=1) * up).sum(axis=1)
    return area / (2 * c.p * c.n)


def _ap(c: Curves, _percent: float) -> Floats:
    tp, called = c.tp[:, 1:], c.tp[:, 1:] + c.fp[:, 1:]
    precision = tp / np.maximum(called, 1)  # where none is called, no recall is added
    total: Floats = (np.diff(c.tp, axis=1) * precision).sum(axis=1)
    return total / c.p


def _tpr(c: Curves, percent: float) -> Floats:
    allowed = int(share_of(percent, c.n))
    return _at(c.tp, np.count_nonzero(c.fp <= allowed, axis=1) - 1) / c.p


def _tpr_nearest(c: Curves, percent: float) -> Floats:
    return _at(c.tp, np.argmin(np.abs(c.fp / c.n - percent / 100), axis=1)) / c.p


def _fpr(c: Curves, percent: float) -> Floats:
    needed = -int(-share_of(percent, c.p) // 1)
    return _at(c.fp, np.count_nonzero(c.tp < needed, axis=1)) / c.n


def _eer(c: Curves, _percent: float) -> Floats:
    excess = c.fp * c.p + c.tp * c.n - c.n * c.p
    after = np.count_nonzero(excess < 0, axis=1)
    low, high = _at(excess, after - 1), _at(excess, after)
    fp, next_fp = _at(c.fp, after - 1), _at(c.fp, after)
    return np.asarray((fp - low / (high - low) * (next_fp - fp)) / c.n, dtype=np.float64)


def _called(c: Curves, *, oracle: bool) -> tuple[Counts, Counts]:
    """True and false positives at the threshold that is meant."""
    if c.called is not None and not oracle:
        return c.tp[:, c.called], c.fp[:, c.called]
    at = np.argmax(2 * c.tp / (c.tp + c.fp + c.p), axis=1)
    return _at(c.tp, at), _at(c.fp, at)


def _precision(tp: Counts, fp: Counts, _c: Curves) -> Floats:
    called = tp + fp
    return np.where(called == 0, np.nan, tp / np.maximum(called, 1))


_THRESHOLDED: dict[str, Callable[[Counts, Counts, Curves], Floats]] = {
    "precision": _precision,
    "recall": lambda tp, _fp, c: tp / c.p,
    "f1": lambda tp, fp, c: 2 * tp / (tp + fp + c.p),
    "accuracy": lambda tp, fp, c: (tp + c.n - fp) / (c.p + c.n),
    "balanced_accuracy": lambda tp, fp, c: (tp / c.p + (c.n - fp) / c.n) / 2,
}


def _thresholded(name: str, *, oracle: bool) -> Callable[[Curves, float], Floats]:
    function = _THRESHOLDED[name]
    return lambda c, _percent: function(*_called(c, oracle=oracle), c)


_FUNCTIONS: dict[str, Callable[[Curves, float], Floats]] = {
    "auroc": _auroc,
    "ap": _ap,
    "tpr": _tpr,
    "tpr:nearest": _tpr_nearest,
    "fpr": _fpr,
    "eer": _eer,
    **{name: _thresholded(name, oracle=False) for name in _THRESHOLDED},
    **{f"{name}:oracle": _thresholded(name, oracle=True) for name in _THRESHOLDED},
}
