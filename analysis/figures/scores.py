"""What lies behind the metrics: ROC curves, and the scores of normal and anomalous items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analysis.figures.ablation import MOST_PANELS
from analysis.figures.drawing import Drawing
from analysis.figures.style import (
    ANOMALOUS,
    NORMAL,
    legend,
    literal,
    looks,
    panels,
    plain_ticks,
    slug,
)
from analysis.figures.view import LARGEST, Configuration, View, seeds_text
from hdsweep.errors import StoreError, UndefinedMetric
from hdsweep.roc import Roc, roc
from hdsweep.store import Store

_MOST_CONFIGURATIONS = 5
_MOST_SEEDS = 10
_GRID = 160  # points of a curve
_BINS = 30

Floats = NDArray[np.float64]
Scored = tuple[NDArray[np.bool_], Floats]
"""Labels and scores of the items of one group and seed."""

Read = Mapping[int, Sequence[Mapping[str, Scored]]]
"""Cell -> seed -> group."""


def scores(view: View, store: Store) -> list[Drawing]:
    """ROC curves by group, and histograms of the scores of two configurations."""
    shown = view.chosen(_MOST_CONFIGURATIONS)
    read: dict[int, list[Mapping[str, Scored]]] = {}
    unreadable = 0
    for one in shown:
        for trial in list(one.trials.values())[:_MOST_SEEDS]:
            try:
                found = _by_group(store, trial)
            except StoreError:  # a report of the values is still right
                found, unreadable = None, unreadable + 1
            if found is not None:
                read.setdefault(one.cell, []).append(found)
    drawn = [one for one in shown if one.cell in read]
    if not drawn:
        return []
    trials = "trial" if unreadable == 1 else "trials"
    lost = f" Predictions of {unreadable} {trials} cannot be read." if unreadable else ""
    how = view.how_chosen(shown)
    groups = [g for g in view.groups if any(g in s for of in read.values() for s in of)]
    found_roc = _roc(view, drawn, read, groups, f"{how}{lost}".strip())
    pair = _pair(view, drawn)
    found_hist = _histograms(view, pair, read, groups, lost)
    return [one for one in (found_roc, found_hist) if one is not None]


def _by_group(store: Store, trial: str) -> dict[str, Scored] | None:
    stored = store.predictions(trial)
    if stored is None:
        return None
    group = np.asarray(stored.group, dtype=np.str_)
    label, score = np.asarray(stored.is_anomaly, dtype=np.bool_), np.asarray(stored.score)
    return {str(g): (label[group == g], score[group == g]) for g in np.unique(group)}


def _pair(view: View, drawn: Sequence[Configuration]) -> list[Configuration]:
    """The baseline, or the first, and the best of the others."""
    metric = view.metrics[0]
    sign = {True: -1.0, False: 1.0, None: 0.0}[metric.larger_is_better]
    first = next((c for c in drawn if c == view.baseline), None)
    others = [c for c in drawn if c is not first]
    others.sort(
        key=lambda c: (len(metric.whole[c.cell]) < c.planned, sign * metric.whole[c.cell].mean())
    )
    return ([first] if first else []) + others[: 1 if first else 2]


# --- ROC ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Curves:
    """ROC curves at the same false-positive rates.

    Args:
        fpr: Shape (k,), ascending, evenly in the logarithm.
        tpr: Group and cell -> for each seed shape (k,): the largest rate within that FPR.
    """

    fpr: Floats
    tpr: Mapping[tuple[str, int], Sequence[Floats]]


def _curves(read: Read) -> _Curves | None:
    """What can be drawn; None where no group has two classes."""
    found: dict[tuple[str, int], list[Roc]] = {}
    for cell, seeds in read.items():
        for seed in seeds:
            for group, (label, score) in seed.items():
                with suppress(UndefinedMetric):
                    found.setdefault((group, cell), []).append(roc(label, score))
    normal = max((curve.normal for of in found.values() for curve in of), default=0)
    if not normal:
        return None
    # The first false alarm of any group is within the axis, and not much that is left of it.
    grid = np.geomspace(max(10.0 ** np.floor(np.log10(0.5 / normal)), 1e-4), 1, _GRID)
    return _Curves(grid, {key: [_at(curve, grid) for curve in of] for key, of in found.items()})


def _at(curve: Roc, grid: Floats) -> Floats:
    # A hair above the limit counts as at it: the grid's numbers are not exact.
    allowed = grid * curve.normal * (1 + 1e-9)
    place = np.searchsorted(curve.false_positives, allowed, side="right") - 1
    found: Floats = curve.true_positives[place] / curve.anomalous
    return found


def _roc(
    view: View, drawn: Sequence[Configuration], read: Read, groups: Sequence[str], tail: str
) -> Drawing | None:
    curves = _curves(read)
    if curves is None:
        return None
    groups = [g for g in groups if any(place == g for place, _ in curves.tpr)]
    shown = groups[:MOST_PANELS]
    figure, axes = panels(len(shown), width=2.8, height=2.6, sharey=True, sharex=True,
                          xlabel="false-positive rate (%)")  # fmt: skip
    handles: dict[str, Any] = {}
    for axis, group in zip(axes, shown, strict=True):
        _overlay(axis, view, drawn, group, curves, handles)
        if len(view.groups) > 1:
            axis.set_title(literal(group))
    figure.supylabel("true-positive rate (%)", fontsize=9)
    legend(figure, list(handles.values()), list(handles))
    counts = [len(of_seeds) for of_seeds in curves.tpr.values()]
    caption = (
        "ROC curves by group; the axis of the false-positive rate is logarithmic, and grey is "
        "chance. At each false-positive rate stands the largest true-positive rate within it"
    )
    caption += (
        f"; thick: mean over {seeds_text(counts)}, thin: single seeds."
        if max(counts) > 1
        else ", of one seed."
    )
    if len(shown) < len(groups):
        caption += f" Shown are {len(shown)} of {len(groups)} groups."
    return Drawing(
        name=slug("roc"),
        title="ROC curves",
        caption=f"{caption} {tail}".strip(),
        kind="roc",
        figure=figure,
    )


def _overlay(
    axis: Axes, view: View, drawn: Sequence[Configuration], group: str, curves: _Curves,
    handles: dict[str, Any],
) -> None:  # fmt: skip
    x = 100 * curves.fpr
    axis.plot(x, x, color="#bbbbbb", linewidth=0.8)
    styles = looks(len(drawn), baseline=view.baseline in drawn)
    for order, (one, look) in enumerate(zip(drawn, styles, strict=True)):
        seeds = curves.tpr.get((group, one.cell), ())
        every = (4 + 6 * order, _GRID // 4)  # marks of two curves do not meet
        for tpr in seeds if len(seeds) > 1 else ():
            axis.plot(x[::2], 100 * tpr[::2], color=look.color, linewidth=0.4, alpha=0.35)
        if seeds:
            handles[one.label] = axis.plot(
                x, 100 * np.mean(seeds, axis=0),
                **look.curve(marker=look.marker, markevery=every, linewidth=1.4),
            )[0]  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(x[0], 100)
    axis.set_ylim(-2, 102)
    plain_ticks(axis.xaxis, log=True)
    plain_ticks(axis.yaxis)


# --- scores ---------------------------------------------------------------------------------------


def _histograms(
    view: View, pair: Sequence[Configuration], read: Read, groups: Sequence[str], tail: str
) -> Drawing | None:
    shown = list(groups[: MOST_PANELS - 2])
    pooled = {one.cell: {g: _pooled(read[one.cell], g) for g in shown} for one in pair}
    pair = [one for one in pair if any(len(score) for _, score in pooled[one.cell].values())]
    if not pair or not shown:
        return None
    figure, axes = panels(
        len(pair) * len(shown), width=2.1, height=1.8, columns=len(shown), xlabel="score"
    )
    dropped = 0
    for place, axis in enumerate(axes):
        one, group = pair[place // len(shown)], shown[place % len(shown)]
        label, score = pooled[one.cell][group]
        finite = np.abs(score) <= LARGEST
        dropped += int((~finite).sum())
        label, score = label[finite], score[finite]
        if len(score):
            low, high = float(score.min()), float(score.max())
            edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
            for mask, color, hatch in ((~label, NORMAL, ""), (label, ANOMALOUS, "////")):
                if mask.any():
                    height, _ = np.histogram(score[mask], edges)
                    axis.stairs(100 * height / mask.sum(), edges, fill=True, alpha=0.3,
                                color=color, linewidth=0)  # fmt: skip
                    axis.stairs(100 * height / mask.sum(), edges, edgecolor=color,
                                hatch=hatch or None, linewidth=1.1,
                                linestyle="--" if hatch else "-")  # fmt: skip
        plain_ticks(axis.yaxis)
        plain_ticks(axis.xaxis, most=3)
        if place < len(shown) and len(view.groups) > 1:
            axis.set_title(literal(group, 24))
        if place % len(shown) == 0:
            axis.set_ylabel(literal(one.label, 22), fontsize=8)
    figure.supylabel("items of the class (%)", fontsize=9)
    marks = [
        Patch(facecolor=NORMAL, alpha=0.45, edgecolor=NORMAL),
        Patch(facecolor="#f4c5a0", edgecolor=ANOMALOUS, hatch="////", linestyle="--"),
    ]
    legend(figure, marks, ["normal", "anomalous"])
    counts = [len(read[one.cell]) for one in pair]
    names = " and ".join(one.name for one in pair)
    caption = (
        f"Scores of normal and of anomalous test items by group, for {names}: the share of "
        f"each class in each bin, items of {seeds_text(counts)} together. Each panel has its own "
        "axis of scores."
    )
    if len(shown) < len(groups):
        caption += f" Shown are {len(shown)} of {len(groups)} groups."
    if dropped:
        caption += f" {dropped} scores that are NaN or infinite are left out."
    return Drawing(
        name=slug("scores"),
        title="Scores by group",
        caption=caption + tail,
        kind="scores",
        figure=figure,
    )


def _pooled(seeds: Sequence[Mapping[str, Scored]], group: str) -> Scored:
    found = [seed[group] for seed in seeds if group in seed]
    if not found:
        return np.empty(0, dtype=np.bool_), np.empty(0)
    return np.concatenate([label for label, _ in found]), np.concatenate([s for _, s in found])
