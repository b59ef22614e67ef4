"""Image metrics as pure functions on labels and scores, all read from the ROC curve's counts.

A curve counts how many items of each class lie at or above each distinct score. Items with equal
scores cannot be told apart, so a threshold takes them all or none, and counts stay integers until
the last division. Hence only the order of the scores matters: an infinite score is an ordinary
extreme one, a NaN has no place in the order and makes the metric undefined, and a strictly
increasing transformation leaves every value the same, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hdsweep.errors import UndefinedMetric

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Roc:
    """Counts at every distinct threshold, from the strictest to the loosest.

    Args:
        threshold: Shape (k + 1,), descending: scores from it on are called anomalous. The first,
            infinity, stands for calling none.
        false_positives: Shape (k + 1,), from 0 to the number of normal items.
        true_positives: Shape (k + 1,), from 0 to the number of anomalous items.
    """

    threshold: NDArray[np.float64]
    false_positives: Counts
    true_positives: Counts

    @property
    def normal(self) -> int:
        """Number of normal items."""
        return int(self.false_positives[-1])

    @property
    def anomalous(self) -> int:
        """Number of anomalous items."""
        return int(self.true_positives[-1])


def roc(is_anomaly: Bools, score: Floats) -> Roc:
    """Make the ROC curve, with a point for every distinct score; none is dropped.

    Args:
        is_anomaly: Shape (n,).
        score: Shape (n,), larger means more anomalous, any monotone unit; infinities are allowed.

    Raises:
        UndefinedMetric: One class is absent, or a score is NaN.
    """
    label = np.asarray(is_anomaly, dtype=np.bool_)
    value = np.asarray(score, dtype=np.float64)
    if label.shape != value.shape or label.ndim != 1:
        raise ValueError(f"labels {label.shape} and scores {value.shape} are not two equal rows")
    if nan := np.count_nonzero(np.isnan(value)):
        raise UndefinedMetric(f"{nan} of {len(value)} scores are NaN")
    anomalous = int(np.count_nonzero(label))
    if anomalous in (0, len(label)):
        absent = "anomalous" if anomalous == 0 else "normal"
        raise UndefinedMetric(f"no {absent} item among {len(label)}")
    order = np.argsort(-value)
    value, label = value[order], label[order]
    last = np.append(np.flatnonzero(value[1:] != value[:-1]), len(value) - 1)  # of each tie
    found = np.cumsum(label, dtype=np.int64)[last]
    return Roc(
        threshold=np.concatenate(([np.inf], value[last])),
        false_positives=np.concatenate(([0], last + 1 - found)),
        true_positives=np.concatenate(([0], found)),
    )


def area(false_positives: Counts, true_positives: Counts) -> float:
    """Area under a curve of counts by trapezoids, as a share of the whole.

    Args:
        false_positives: Shape (k,), from 0 to the number of normal items, not descending. Points
            that lie on the straight line between their neighbours may be left out.
        true_positives: Shape (k,), likewise.
    """
    right, up = np.diff(false_positives), true_positives
    whole = 2 * int(false_positives[-1]) * int(true_positives[-1])
    return int(np.sum(right * (up[1:] + up[:-1]))) / whole


def average_precision(false_positives: Counts, true_positives: Counts) -> float:
    """Precision at each threshold, weighted by the recall it adds.

    Args:
        false_positives: Shape (k,), at the first k thresholds, starting with that which calls none.
            Thresholds that add no true positive may be left out.
        true_positives: Shape (k,), from 0 to the number of anomalous items.
    """
    tp, fp = true_positives[1:], false_positives[1:]
    added = np.diff(true_positives)
    return float(np.sum(added * (tp / (tp + fp)))) / int(true_positives[-1])


# --- metrics: arguments and errors are those of ``roc`` -------------------------------------------


def auroc(is_anomaly: Bools, score: Floats) -> float:
    """Probability that an anomalous item scores above a normal one, a tie counting one half."""
    curve = roc(is_anomaly, score)
    return area(curve.false_positives, curve.true_positives)


def ap(is_anomaly: Bools, score: Floats) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    curve = roc(is_anomaly, score)
    return average_precision(curve.false_positives, curve.true_positives)


def tpr_at_fpr(is_anomaly: Bools, score: Floats, percent: float) -> float:
    """Largest true-positive rate whose false-positive rate is at most ``percent``.

    Args:
        is_anomaly: Shape (n,).
        score: Shape (n,), larger means more anomalous, any monotone unit.
        percent: Bound on the false-positive rate, in (0, 100].

    Returns:
        Value in [0, 1]; no interpolation between thresholds.

    Raises:
        UndefinedMetric: One class is absent, or a score is NaN.
    """
    curve = roc(is_anomaly, score)
    allowed = int(share_of(percent, curve.normal))
    index = int(np.searchsorted(curve.false_positives, allowed, side="right")) - 1
    return int(curve.true_positives[index]) / curve.anomalous


def tpr_at_fpr_nearest(is_anomaly: Bools, score: Floats, percent: float) -> float:
    """True-positive rate at the first threshold whose false-positive rate is nearest ``percent``.

    Only for comparison with published numbers computed so: it takes the lowest of several rates at
    one false-positive rate, may exceed the bound, and falls to 0 on few normal items.
    """
    curve = roc(is_anomaly, score)
    distance = np.abs(curve.false_positives / curve.normal - percent / 100)
    return int(curve.true_positives[np.argmin(distance)]) / curve.anomalous


def fpr_at_tpr(is_anomaly: Bools, score: Floats, percent: float) -> float:
    """Smallest false-positive rate whose true-positive rate is at least ``percent``.

    At 100 it is the share of false alarms for which no anomaly is missed.
    """
    curve = roc(is_anomaly, score)
    needed = -int(-share_of(percent, curve.anomalous) // 1)
    index = int(np.searchsorted(curve.true_positives, needed, side="left"))
    return int(curve.false_positives[index]) / curve.normal


def precision(is_anomaly: Bools, score: Floats, threshold: float | None = None) -> float:
    """Precision at a threshold, or at that of ``f1``.

    Raises:
        UndefinedMetric: As ``roc``, or no score reaches the threshold.
    """
    tp, fp, _, _ = _called(is_anomaly, score, threshold)
    if tp + fp == 0:
        raise UndefinedMetric("no item reaches the threshold, so there is no precision")
    return tp / (tp + fp)


def recall(is_anomaly: Bools, score: Floats, threshold: float | None = None) -> float:
    """Recall at a threshold, or at that of ``f1``."""
    tp, _, anomalous, _ = _called(is_anomaly, score, threshold)
    return tp / anomalous


def f1(is_anomaly: Bools, score: Floats, threshold: float | None = None) -> float:
    """F1 at a threshold that was chosen elsewhere, or the largest over all thresholds.

    The latter is an oracle, as it chooses by the test labels. Among thresholds of equal F1 the
    strictest is taken.

    Args:
        is_anomaly: Shape (n,).
        score: Shape (n,).
        threshold: Scores of at least this are called anomalous; None for the oracle.
    """
    tp, fp, anomalous, _ = _called(is_anomaly, score, threshold)
    return 2 * tp / (tp + fp + anomalous)


def accuracy(is_anomaly: Bools, score: Floats, threshold: float | None = None) -> float:
    """Accuracy at a threshold, or at that of ``f1``."""
    tp, fp, anomalous, normal = _called(is_anomaly, score, threshold)
    return (tp + normal - fp) / (anomalous + normal)


def balanced_accuracy(is_anomaly: Bools, score: Floats, threshold: float | None = None) -> float:
    """Mean of recall and specificity at a threshold, or at that of ``f1``."""
    tp, fp, anomalous, normal = _called(is_anomaly, score, threshold)
    return (tp / anomalous + (normal - fp) / normal) / 2


def eer(is_anomaly: Bools, score: Floats) -> float:
    """Equal error rate: where the false-positive and the false-negative rate are the same.

    The ROC points on either side are joined by a straight line, so the value is unique.
    """
    curve = roc(is_anomaly, score)
    fp, tp, n, p = curve.false_positives, curve.true_positives, curve.normal, curve.anomalous
    excess = fp * p + tp * n - n * p  # (FPR - FNR) in units of 1 / (n p): rises from -np to np
    after = int(np.searchsorted(excess, 0))
    share = -int(excess[after - 1]) / int(excess[after] - excess[after - 1])
    return float(fp[after - 1] + share * (fp[after] - fp[after - 1])) / n


def share_of(percent: float, n: int) -> Fraction:
    """``percent`` of ``n``, exactly; raises ValueError outside of (0, 100]."""
    # Through the decimal that was written: in floats 7 of 1000 is more than 0.7 %.
    if not 0 < percent <= 100:
        raise ValueError(f"percent is in (0, 100], found {percent}")
    return Fraction(str(float(percent))) * n / 100


def _called(is_anomaly: Bools, score: Floats, threshold: float | None) -> tuple[int, int, int, int]:
    """True and false positives at a threshold or at the largest F1, and the size of each class."""
    curve = roc(is_anomaly, score)
    tp, fp = curve.true_positives, curve.false_positives
    if threshold is None:
        at = int(np.argmax(2 * tp / (tp + fp + curve.anomalous)))
    else:  # its thresholds descend
        at = int(np.searchsorted(-curve.threshold, -threshold, side="right")) - 1
    return int(tp[at]), int(fp[at]), curve.anomalous, curve.normal
