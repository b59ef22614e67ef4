"""Critical differences: which configurations rank apart over many groups (Demšar, 2006)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from analysis.figures.drawing import Drawing
from analysis.figures.style import BASELINE, LOOKS, literal, slug
from analysis.figures.view import Configuration, Shown, View

LEAST_GROUPS = 5
LEAST_CONFIGURATIONS = 3
_MOST_CONFIGURATIONS = 12
_MOST_METRICS = 3
_ALPHA = 0.05


def critical_difference(configurations: int, groups: int, alpha: float = _ALPHA) -> float:
    """Average ranks that differ by at least this differ by the test of Nemenyi.

    Args:
        configurations: How many are ranked, at least 2.
        groups: Over how many groups the ranks are averaged.
        alpha: Level for all pairs together.
    """
    q = float(stats.studentized_range.ppf(1 - alpha, configurations, np.inf)) / 2**0.5
    return float(q * np.sqrt(configurations * (configurations + 1) / (6 * groups)))


def ranks(view: View) -> list[Drawing]:
    """A figure per metric whose value is known for enough configurations in enough groups."""
    found = []
    for metric in view.metrics[:_MOST_METRICS]:
        if metric.larger_is_better is None or not view.metrics:
            continue
        groups = [g for g in view.groups if g in metric.values]
        able = [
            c
            for c in view.chosen(_MOST_CONFIGURATIONS)
            if all(len(metric.values[g].get(c.cell, ())) == c.planned for g in groups)
        ]
        if len(groups) >= LEAST_GROUPS and len(able) >= LEAST_CONFIGURATIONS:
            found.append(_draw(view, metric, able, groups))
    return found


def _draw(
    view: View, metric: Shown, able: Sequence[Configuration], groups: Sequence[str]
) -> Drawing:
    means = np.array([[metric.values[g][c.cell].mean() for c in able] for g in groups])
    ranked = stats.rankdata(-means if metric.larger_is_better else means, axis=1)
    average: NDArray[np.float64] = ranked.mean(axis=0)
    same = bool((ranked == ranked[:, :1]).all())
    p = 1.0 if same else float(stats.friedmanchisquare(*means.T).pvalue)
    apart = critical_difference(len(able), len(groups))
    figure = _diagram(view, able, average, apart)
    words = (
        f"Average ranks of {len(able)} configurations by {metric.key} over {len(groups)} groups "
        f"(mean over seeds in each; 1 is best). Friedman's test that all rank alike: p = {p:.2g}. "
    )
    words += (
        f"Bars join what Nemenyi's test cannot tell apart at level {_ALPHA:g} (critical difference "
        f"{apart:.2f})."
        if p < _ALPHA
        else "So nothing tells them apart, and the bars of Nemenyi's test are for orientation only."
    )
    chosen = view.how_chosen(able)
    return Drawing(
        name=slug("ranks", metric.key),
        title=f"Average ranks by {metric.key}",
        caption=f"{words} {chosen}".strip(),
        kind="ranks",
        figure=figure,
    )


def cliques(average: NDArray[np.float64], apart: float) -> list[tuple[float, float]]:
    """From the least to the largest rank of each longest run that lies closer than ``apart``.

    Args:
        average: Shape (k,), ascending.
        apart: Critical difference.
    """
    found: list[tuple[float, float]] = []
    reached = -1
    for first, rank in enumerate(average):
        last = int(np.searchsorted(average, rank + apart, side="left")) - 1
        if last > max(first, reached):
            found.append((float(rank), float(average[last])))
        reached = max(reached, last)
    return found


def _diagram(
    view: View, able: Sequence[Configuration], average: NDArray[np.float64], apart: float
) -> Figure:
    order = np.argsort(average, kind="stable")
    count = len(able)
    bars = cliques(average[order], apart)
    left = (count + 1) // 2  # names: the better half on the left, as the axis runs
    depth = 0.35 + 0.16 * len(bars)
    lines = max(left, count - left)
    figure = Figure(figsize=(6.4, 0.8 + 0.14 * len(bars) + 0.24 * lines), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    pad = 0.75 * (count - 1)
    axis.set_xlim(1 - pad, count + pad)
    axis.set_ylim(-(depth + 0.34 * lines), 0.9)
    axis.plot([1, count], [0, 0], color="#444444", linewidth=1)
    for tick in range(1, count + 1):
        axis.plot([tick, tick], [0, 0.1], color="#444444", linewidth=1)
        axis.text(tick, 0.16, str(tick), ha="center", va="bottom", fontsize=8)
    axis.plot([1, 1 + min(apart, count - 1)], [0.66, 0.66], color="black", linewidth=1.2,
              marker="|")  # fmt: skip
    axis.text(1 + min(apart, count - 1) + 0.03 * count, 0.66, f"CD = {apart:.2f}", ha="left",
              va="center", fontsize=8)  # fmt: skip
    for row, (start, end) in enumerate(bars):
        y = -0.2 - 0.16 * row
        axis.plot([start - 0.03, end + 0.03], [y, y], color="black", linewidth=3,
                  solid_capstyle="butt")  # fmt: skip
    for place, index in enumerate(order):
        one, rank = able[int(index)], float(average[index])
        is_left = place < left
        row = place if is_left else count - 1 - place
        y = -(depth + 0.34 * row)
        look = BASELINE if one == view.baseline else LOOKS[place % len(LOOKS)]
        end = 1 - 0.08 * pad if is_left else count + 0.08 * pad
        axis.plot([rank, rank, end], [0, y, y], color=look.color, linewidth=1)
        axis.plot([rank], [0], marker=look.marker, color=look.color, clip_on=False)
        name = literal(one.label, 30)
        axis.text(
            end + (-0.02 if is_left else 0.02) * count, y,
            f"{name} {rank:.2f}" if is_left else f"{rank:.2f} {name}",
            ha="right" if is_left else "left", va="center", fontsize=8,
        )  # fmt: skip
    return figure
