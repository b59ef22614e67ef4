"""Names, definitions and evaluation of the metrics of anomaly detection.

Metrics are named by a small grammar, ``name[@percent][:rule][[group=value]]``, as in ``auroc``,
``tpr@1``, ``tpr@1:nearest`` or ``tpr@1[domain=C]``. Image metrics are functions on the labels and
scores of images (hdsweep.roc), pixel metrics on those of pixels (hdsweep.pixels).
Workers import this module: numpy only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hdsweep import pixels
from hdsweep.errors import DataError, SpecError, UndefinedMetric, did_you_mean
from hdsweep.roc import (
    Bools,
    Floats,
    accuracy,
    ap,
    auroc,
    balanced_accuracy,
    eer,
    f1,
    fpr_at_tpr,
    precision,
    recall,
    tpr_at_fpr,
    tpr_at_fpr_nearest,
)

# --- the registry ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Definition:
    """What stands behind the name of a metric."""

    function: Callable[..., float]
    """(is_anomaly, score[, percent]), or (ranking[, percent]) of pixels, to a value in [0, 1]."""
    words: str  # for a reader; {percent} stands for the number
    takes_percent: bool = False
    larger_is_better: bool = True
    default_percent: float | None = None  # what the name alone means
    pixel: bool = False  # computed from anomaly maps, which are not kept
    thresholded: bool = False  # its function takes a threshold, None for the oracle's


_PIXELS = "over all pixels of a group's test images, at the resolution of the method's maps"
_ORACLE = "at the threshold of largest F1 on the test labels (an oracle; the strictest of several)"
_CHOSEN = (
    f"at the threshold that the method chose on validation data; where it chose none, {_ORACLE}"
)
_THRESHOLDED = {
    "precision": (precision, "precision"),
    "recall": (recall, "recall"),
    "f1": (f1, "F1"),
    "accuracy": (accuracy, "accuracy"),
    "balanced_accuracy": (balanced_accuracy, "mean of recall and specificity"),
}

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
    **{
        name: Definition(function, f"{words} {_CHOSEN}", thresholded=True)
        for name, (function, words) in _THRESHOLDED.items()
    },
    **{
        f"{name}:oracle": Definition(function, f"{words} {_ORACLE}")
        for name, (function, words) in _THRESHOLDED.items()
    },
    "eer": Definition(
        eer,
        "error rate where false-positive and false-negative rate are equal, "
        "on the ROC curve joined by straight lines",
        larger_is_better=False,
    ),
    "pixel_auroc": Definition(
        pixels.auroc,
        f"area under the ROC curve by trapezoids; a tie counts one half; {_PIXELS}",
        pixel=True,
    ),
    "pixel_ap": Definition(
        pixels.ap,
        "average precision: sum of precision times added recall, no interpolation; " + _PIXELS,
        pixel=True,
    ),
    "aupro": Definition(
        pixels.aupro,
        "area under the per-region overlap curve up to a false-positive rate of {percent} %, "
        "divided by that limit; regions are 8-connected within an image and weigh the same; "
        "all distinct thresholds, joined by straight lines; " + _PIXELS,
        takes_percent=True,
        default_percent=30.0,
        pixel=True,
    ),
}
"""By name, or by ``name:rule`` for a variant of one."""

STORED: tuple[str, ...] = (
    "auroc", "ap", "tpr@1", "tpr@5", "fpr@100", "precision", "recall", "f1", "accuracy",
    "balanced_accuracy", "eer",
)  # fmt: skip
"""Computed for every trial; another image metric is computed from predictions when asked for."""

STORED_PIXEL: tuple[str, ...] = ("pixel_auroc", "pixel_ap", "aupro", "aupro@5")
"""Computed for every trial that has anomaly maps and masks; the maps are then gone."""


POOLED = "pooled"
"""The group that stands for the test items of all groups together, each item once."""


# --- names ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """A parsed name.

    Args:
        name: ``tpr``, or the name of a method's scalar.
        percent: What follows ``@``, or what the name alone means.
        rule: What follows ``:``.
        group: The one group meant, POOLED, or None for all and their mean.
    """

    name: str
    percent: float | None = None
    rule: str | None = None
    group: str | None = None

    @property
    def key(self) -> str:
        """The name that records use: canonical, without the group."""
        usual = None if self.definition is None else self.definition.default_percent
        percent = "" if self.percent in (None, usual) else f"@{_plain(self.percent or 0)}"
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
    usual = METRICS[variant].default_percent
    if percent is None and usual is None:
        raise SpecError(f"'{text}': metric '{name}' needs a percent, as in '{name}@1'")
    if percent is not None and not (_NUMBER.match(percent) and 0 < float(percent) <= 100):
        raise SpecError(f"'{text}': '{percent}' is not a number above 0 and up to 100")
    return Metric(name, usual if percent is None else float(percent), rule, group)


def definitions(metrics: Iterable[str]) -> dict[str, str]:
    """Canonical name -> definition in words, for names in the grammar of METRICS."""
    asked = list(map(_parsed, metrics))
    words = (METRICS[m.variant].words.replace("{percent}", _plain(m.percent or 0)) for m in asked)
    return {m.key: text for m, text in zip(asked, words, strict=True)}


Evaluated = tuple[dict[str, dict[str, float | None]], dict[str, dict[str, str]]]


def evaluate(
    metrics: Iterable[str],
    group: Sequence[str] | NDArray[np.str_],
    is_anomaly: Bools,
    score: Floats,
    threshold: float | None = None,
) -> Evaluated:
    """Image metrics of each group of items.

    Args:
        metrics: Names of image metrics in the grammar; a group in a name is ignored.
        group: n group names.
        is_anomaly: Shape (n,).
        score: Shape (n,).
        threshold: Scores of at least this are called anomalous; None where nobody chose one.

    Returns:
        Canonical name -> group -> value, None where undefined; and of those undefined,
        name -> group -> why. Groups stand in the order in which they first appear.
    """
    asked = _asked(metrics, pixel=False)
    label, value = np.asarray(is_anomaly, dtype=np.bool_), np.asarray(score, dtype=np.float64)
    return _by_group(asked, group, lambda inside: (label[inside], value[inside]), threshold)


def evaluate_pixels(
    metrics: Iterable[str],
    item: Sequence[str],
    group: Sequence[str],
    is_anomaly: Bools,
    masks: Sequence[Callable[[], Bools] | None],
    maps: Floats,
) -> Evaluated:
    """Pixel metrics of each group of images.

    One group is in memory at a time, as ``hdsweep.pixels.rank`` says; a map that is memory-mapped
    and a mask are read when their group's turn comes.

    Args:
        metrics: Names of pixel metrics in the grammar; a group in a name is ignored.
        item: n names, for messages.
        group: n group names.
        is_anomaly: Shape (n,). A normal image has no anomalous pixel.
        masks: For each image a function that reads its mask, of the maps' shape; None where it has
            none. A group with an anomalous image without one, or with one whose reading raises
            DataError, is undefined.
        maps: Shape (n, height, width).

    Returns:
        As ``evaluate``.

    Raises:
        ValueError: A mask is not of the maps' shape; the message names the image.
    """
    asked = _asked(metrics, pixel=True)
    label = np.asarray(is_anomaly, dtype=np.bool_)

    def mask_of(image: int) -> Bools | None:
        read = masks[image] if label[image] else None
        if read is None:
            return None
        try:
            return pixels.as_mask(read(), maps.shape[1:])
        except DataError as error:  # scores of whole images are still right
            raise UndefinedMetric(str(error)) from None
        except ValueError as error:
            raise ValueError(f"{item[image]}: {error}") from error

    def ranking(inside: NDArray[np.intp]) -> tuple[pixels.Ranking]:
        anomalous = inside[label[inside]]
        lacking = [item[i] for i in anomalous if masks[i] is None]
        if lacking:
            raise UndefinedMetric(
                f"no mask for {len(lacking)} of {len(anomalous)} anomalous images, "
                f"{lacking[0]} first"
            )
        return (pixels.rank(maps, inside.tolist(), mask_of),)

    return _by_group(asked, group, ranking)


def _asked(metrics: Iterable[str], *, pixel: bool) -> dict[str, Metric]:
    asked = {m.key: m for m in map(_parsed, metrics)}
    for key, metric in asked.items():
        if METRICS[metric.variant].pixel and not pixel:
            raise ValueError(f"'{key}' is computed from anomaly maps, by evaluate_pixels")
        if pixel and not METRICS[metric.variant].pixel:
            raise ValueError(f"'{key}' is computed from predictions, by evaluate")
    return asked


def _by_group(
    asked: Mapping[str, Metric],
    group: Sequence[str] | NDArray[np.str_],
    read: Callable[[NDArray[np.intp]], tuple[Any, ...]],
    threshold: float | None = None,
) -> Evaluated:
    """Every metric of what ``read`` makes of the positions of each group's items."""
    names = np.asarray(group, dtype=np.str_)
    values: dict[str, dict[str, float | None]] = {key: {} for key in asked}
    missing: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(names.tolist()):
        for key, found in _values(asked, read, np.flatnonzero(names == name), threshold):
            values[key][name] = None if isinstance(found, str) else found
            if isinstance(found, str):
                missing.setdefault(key, {})[name] = found
    return values, missing


def _values(
    asked: Mapping[str, Metric],
    read: Callable[[NDArray[np.intp]], tuple[Any, ...]],
    positions: NDArray[np.intp],
    threshold: float | None,
) -> Iterator[tuple[str, float | str]]:
    """Each metric's value, or why it has none."""
    try:
        items = read(positions)
    except UndefinedMetric as reason:
        yield from ((key, str(reason)) for key in asked)
        return
    for key, metric in asked.items():
        definition = METRICS[metric.variant]
        number = (threshold,) if definition.thresholded else (metric.percent,)
        try:
            yield key, definition.function(*items, *(n for n in number if n is not None))
        except UndefinedMetric as reason:
            yield key, str(reason)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Metric:
    return parse_metric(text)


def _plain(percent: float) -> str:
    return str(int(percent)) if float(percent).is_integer() else str(percent)
