"""What two knobs do together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from analysis.figures.ablation import varied
from analysis.figures.drawing import Drawing
from analysis.figures.style import literal, panels, plain_ticks, slug
from analysis.figures.view import Configuration, Shown, View, is_number, seeds_text

_MOST_METRICS = 3
_MOST_SIDE = 14  # values of a knob


def heatmaps(view: View) -> list[Drawing]:
    """A figure per arm with two swept knobs and per metric."""
    found = []
    for arm in dict.fromkeys(c.arm for c in view.configurations):
        cells = [c for c in view.configurations if c.arm == arm and c.listed]
        knobs = varied(cells)
        if len(knobs) != 2:
            continue
        cells = [c for c in cells if all(knob in c.knobs for knob in knobs)]
        down, across = (_order([c.knobs[knob] for c in cells]) for knob in knobs)
        if not 2 <= min(len(down), len(across)) <= max(len(down), len(across)) <= _MOST_SIDE:
            continue
        found += [
            _draw(metric, arm, knobs, cells, down, across)
            for metric in view.metrics[:_MOST_METRICS]
            if any(c.cell in metric.whole for c in cells)
        ]
    return found


def _order(values: Sequence[Any]) -> list[Any]:
    """Numbers by size, names as in the plan."""
    distinct = list({repr(value): value for value in values}.values())
    return sorted(distinct) if all(map(is_number, distinct)) else distinct


def _draw(
    metric: Shown, arm: str, knobs: Sequence[str], cells: Sequence[Configuration],
    down: Sequence[Any], across: Sequence[Any],
) -> Drawing:  # fmt: skip
    figure, (axis,) = panels(1)
    figure.set_size_inches(max(3.4, 0.75 * len(across) + 1.9), max(2.4, 0.42 * len(down) + 1.2))
    rows, columns = [repr(v) for v in down], [repr(v) for v in across]
    mean = np.full((len(down), len(across)), np.nan)
    text: dict[tuple[int, int], str] = {}
    counts = []
    for one in cells:
        place = rows.index(repr(one.knobs[knobs[0]])), columns.index(repr(one.knobs[knobs[1]]))
        values = metric.whole.get(one.cell)
        if values is not None and len(values):
            counts.append(len(values))
            mean[place] = values.mean()
            text[place] = metric.text(float(mean[place]))
            if len(values) < one.planned:
                text[place] += f"\nn={len(values)}/{one.planned}"
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    scale = Normalize(low, high if high > low else low + 1)
    image = axis.pcolormesh(mean, cmap="cividis", norm=scale, edgecolors="white", linewidth=1)
    for i in range(len(down)):
        for j in range(len(across)):
            if (i, j) not in text:
                axis.add_patch(
                    Rectangle((j, i), 1, 1, facecolor="#f4f4f4", edgecolor="#999999",
                              hatch="////", linewidth=0)
                )  # fmt: skip
                continue
            dark = scale(mean[i, j]) < 0.55
            axis.text(
                j + 0.5, i + 0.5, text[i, j], ha="center", va="center", fontsize=8,
                color="white" if dark else "black", linespacing=1.0,
            )  # fmt: skip
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_xticks(np.arange(len(across)) + 0.5, [literal(str(v), 10) for v in across])
    axis.set_yticks(np.arange(len(down)) + 0.5, [literal(str(v), 14) for v in down])
    if max(len(str(v)) for v in across) > 6:
        axis.tick_params(axis="x", rotation=35)
    axis.set_xlabel(literal(knobs[1]))
    axis.set_ylabel(literal(knobs[0]))
    bar = figure.colorbar(image, ax=axis, label=literal(metric.label))
    plain_ticks(bar.ax.yaxis)
    bar.outline.set_visible(False)
    absent = mean.size - len(text)
    caption = (
        f"{metric.key} of {arm} by {knobs[0]} and {knobs[1]}: means over {seeds_text(counts)}, "
        "light is large."
    )
    if absent:
        caption += f" Hatched: {absent} without a value."
    return Drawing(
        name=slug("heatmap", arm, *knobs, metric.key),
        title=f"{metric.key} of {arm} by {knobs[0]} and {knobs[1]}",
        caption=caption,
        kind="heatmap",
        figure=figure,
    )
