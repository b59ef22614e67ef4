"""Metrics of anomaly detection, as pure functions on labels and scores.

All of them read one thing: how many items of each class lie at or above each distinct score. Items
with equal scores cannot be told apart, so a threshold takes them all or none, and counts stay
integers until the last division. Hence only the order of the scores matters: an infinite score is
an ordinary extreme one, a NaN has no place in the order and makes the metric undefined, and a
strictly increasing transformation leaves every value the same, bit for bit.

Metrics are named by a small grammar, ``name[@percent][:rule][[group=value]]``, as in ``auroc``,
``tpr@1``, ``tpr@1:nearest`` or ``tpr@1[domain=C]``. Workers import this module: numpy only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hdsweep.errors import SpecError, UndefinedMetric, did_you_mean

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]
Counts = NDArray[np.int64]


# --- functions on labels and scores: arguments and errors are those of ``roc`` --------------------


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


def auroc(is_anomaly: Bools, score: Floats) -> float:
    """Probability that an anomalous item scores above a normal one, a tie counting one half."""
    curve = roc(is_anomaly, score)
    right, up = np.diff(curve.false_positives), curve.true_positives
    return int(np.sum(right * (up[1:] + up[:-1]))) / (2 * curve.normal * curve.anomalous)


def ap(is_anomaly: Bools, score: Floats) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    curve = roc(is_anomaly, score)
    tp, fp = curve.true_positives[1:], curve.false_positives[1:]
    return float(np.sum(np.diff(curve.true_positives) * (tp / (tp + fp)))) / curve.anomalous


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
    allowed = int(_share(percent, curve.normal))
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
    needed = -int(-_share(percent, curve.anomalous) // 1)
    index = int(np.searchsorted(curve.true_positives, needed, side="left"))
    return int(curve.false_positives[index]) / curve.normal


def precision(is_anomaly: Bools, score: Floats) -> float:
    """Precision at the threshold of ``f1``."""
    tp, fp, _, _ = _best_f1(is_anomaly, score)
    return tp / (tp + fp)


def recall(is_anomaly: Bools, score: Floats) -> float:
    """Recall at the threshold of ``f1``."""
    tp, _, anomalous, _ = _best_f1(is_anomaly, score)
    return tp / anomalous


def f1(is_anomaly: Bools, score: Floats) -> float:
    """Largest F1 over all thresholds: an oracle, as it chooses the threshold by the test labels.

    Among thresholds of equal F1 the strictest is taken.
    """
    tp, fp, anomalous, _ = _best_f1(is_anomaly, score)
    return 2 * tp / (tp + fp + anomalous)


def accuracy(is_anomaly: Bools, score: Floats) -> float:
    """Accuracy at the threshold of ``f1``."""
    tp, fp, anomalous, normal = _best_f1(is_anomaly, score)
    return (tp + normal - fp) / (anomalous + normal)


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


def _share(percent: float, n: int) -> Fraction:
    # Through the decimal that was written: in floats 7 of 1000 is more than 0.7 %.
    if not 0 < percent <= 100:
        raise ValueError(f"percent is in (0, 100], found {percent}")
    return Fraction(str(float(percent))) * n / 100


def _best_f1(is_anomaly: Bools, score: Floats) -> tuple[int, int, int, int]:
    curve = roc(is_anomaly, score)
    tp, fp = curve.true_positives, curve.false_positives
    best = int(np.argmax(2 * tp / (tp + fp + curve.anomalous)))
    return int(tp[best]), int(fp[best]), curve.anomalous, curve.normal


# --- the registry ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Definition:
    """What stands behind the name of a metric."""

    function: Callable[..., float]  # (is_anomaly, score[, percent]) to a value in [0, 1]
    words: str  # for a reader; {percent} stands for the number
    takes_percent: bool = False
    larger_is_better: bool = True


_ORACLE = "at the threshold of largest F1 on the test labels (an oracle; the strictest of several)"

METRICS: dict[str, Definition] = {
    "auroc": Definition(auroc, "area under the ROC curve by trapezoids; a tie counts one half"),
    "ap": Definition(
        ap, "average precision: sum of precision times added recall, no interpolation"
    ),
    "tpr": Definition(
        tpr_at_fpr,
        "largest true-positive rate whose false-positive rate is at most {percent} %, "
        "over all distinct thresholds, no interpolation",
        takes_percent=True,
    ),
    "tpr:nearest": Definition(
        tpr_at_fpr_nearest,
        "true-positive rate at the first threshold whose false-positive rate is nearest {percent} "
        "%, which may exceed it (for comparison with numbers published so)",
        takes_percent=True,
    ),
    "fpr": Definition(
        fpr_at_tpr,
        "smallest false-positive rate whose true-positive rate is at least {percent} %, "
        "over all distinct thresholds, no interpolation",
        takes_percent=True,
        larger_is_better=False,
    ),
    "precision": Definition(precision, f"precision {_ORACLE}"),
    "recall": Definition(recall, f"recall {_ORACLE}"),
    "f1": Definition(f1, f"F1 {_ORACLE}"),
    "accuracy": Definition(accuracy, f"accuracy {_ORACLE}"),
    "eer": Definition(
        eer,
        "error rate where false-positive and false-negative rate are equal, "
        "on the ROC curve joined by straight lines",
        larger_is_better=False,
    ),
}
"""By name, or by ``name:rule`` for a variant of one."""

STORED: tuple[str, ...] = (
    "auroc", "ap", "tpr@1", "tpr@5", "fpr@100", "precision", "recall", "f1", "accuracy", "eer",
)  # fmt: skip
"""Computed for every trial; any other is computed from its stored predictions when asked for."""


# --- names ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """A parsed name.

    Args:
        name: ``tpr``, or the name of a method's scalar.
        percent: What follows ``@``.
        rule: What follows ``:``.
        group: The one group meant, or None for all and their mean.
    """

    name: str
    percent: float | None = None
    rule: str | None = None
    group: str | None = None

    @property
    def key(self) -> str:
        """The name that records use: canonical, without the group."""
        percent = "" if self.percent is None else f"@{_plain(self.percent)}"
        return f"{self.name}{percent}{f':{self.rule}' if self.rule else ''}"

    @property
    def text(self) -> str:
        """Canonical form: ``tpr@1.0[domain=C]`` is ``tpr@1[group=C]``."""
        return self.key + ("" if self.group is None else f"[group={self.group}]")

    @property
    def definition(self) -> Definition | None:
        """Entry of METRICS; None for a method's scalar, whose unit and direction only it knows."""
        return METRICS.get(self.variant)

    @property
    def variant(self) -> str:
        """Its name in METRICS."""
        return f"{self.name}:{self.rule}" if self.rule else self.name

    def __str__(self) -> str:
        return self.text


_NAME = re.compile(
    r"^(?P<name>[A-Za-z_][\w./-]*)(@(?P<percent>[^:\[\]@]*))?(:(?P<rule>[^\[\]:@]*))?"
    r"(\[\s*\w+\s*=\s*(?P<group>[^\[\]]*[^\[\]\s])\s*\])?$"
)
_NUMBER = re.compile(r"^(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$")


def parse_metric(text: str, scalars: Collection[str] = ()) -> Metric:
    """Read the name of a metric.

    Args:
        text: ``name[@percent][:rule][[group=value]]``; any word may stand for ``group``.
        scalars: Other names that are known: the method's own measurements.

    Raises:
        SpecError: Not in the grammar, or not known.
    """
    match = _NAME.match(text.strip())
    if match is None:
        raise SpecError(f"'{text}' is not a metric; write it as auroc, tpr@1 or tpr@1[domain=C]")
    name, percent, rule, group = match.group("name", "percent", "rule", "group")
    if name not in METRICS and name in scalars:
        if (percent, rule, group) != (None, None, None):
            raise SpecError(f"'{text}': '{name}' is one number per trial; write it as '{name}'")
        return Metric(name)
    if name not in METRICS:
        known = {key.partition(":")[0] for key in METRICS} | set(scalars)
        raise SpecError(f"unknown metric '{name}'{did_you_mean(name.lower(), known)}")
    variant = name if rule is None else f"{name}:{rule}"
    if variant not in METRICS:
        rules = [key.partition(":")[2] for key in METRICS if key.startswith(f"{name}:")]
        advice = did_you_mean(rule, rules) if rules else f"; write it without ':{rule}'"
        raise SpecError(f"'{text}': unknown rule '{rule}' of metric '{name}'{advice}")
    if not METRICS[variant].takes_percent:
        if percent is not None:
            raise SpecError(f"'{text}': metric '{name}' takes no percent; write it as '{name}'")
        return Metric(name, None, rule, group)
    if percent is None:
        raise SpecError(f"'{text}': metric '{name}' needs a percent, as in '{name}@1'")
    if not _NUMBER.match(percent) or not 0 < float(percent) <= 100:
        raise SpecError(f"'{text}': '{percent}' is not a number above 0 and up to 100")
    return Metric(name, float(percent), rule, group)


def definitions(metrics: Iterable[str]) -> dict[str, str]:
    """Canonical name -> definition in words, for names in the grammar of METRICS."""
    asked = list(map(_parsed, metrics))
    words = (METRICS[m.variant].words.replace("{percent}", _plain(m.percent or 0)) for m in asked)
    return {m.key: text for m, text in zip(asked, words, strict=True)}


def evaluate(
    metrics: Iterable[str],
    group: Sequence[str] | NDArray[np.str_],
    is_anomaly: Bools,
    score: Floats,
) -> tuple[dict[str, dict[str, float | None]], dict[str, dict[str, str]]]:
    """Metrics of each group of items.

    Args:
        metrics: Names in the grammar; a group in a name is ignored.
        group: n group names.
        is_anomaly: Shape (n,).
        score: Shape (n,).

    Returns:
        Canonical name -> group -> value, None where undefined; and of those undefined,
        name -> group -> why. Groups stand in the order in which they first appear.
    """
    asked = {m.key: m for m in map(_parsed, metrics)}
    label, value = np.asarray(is_anomaly, dtype=np.bool_), np.asarray(score, dtype=np.float64)
    names = np.asarray(group, dtype=np.str_)
    values: dict[str, dict[str, float | None]] = {key: {} for key in asked}
    missing: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(names.tolist()):
        inside = names == name
        for key, metric in asked.items():
            try:
                values[key][name] = _value(metric, label[inside], value[inside])
            except UndefinedMetric as reason:
                values[key][name] = None
                missing.setdefault(key, {})[name] = str(reason)
    return values, missing


@lru_cache(maxsize=256)
def _parsed(text: str) -> Metric:
    return parse_metric(text)


def _plain(percent: float) -> str:
    return str(int(percent)) if float(percent).is_integer() else str(percent)


def _value(metric: Metric, *items: NDArray[Any]) -> float:
    percent = () if metric.percent is None else (metric.percent,)
    return METRICS[metric.variant].function(*items, *percent)
