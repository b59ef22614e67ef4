"""What a better value costs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from analysis.figures.drawing import Drawing
from analysis.figures.style import BASELINE, LOOKS, legend, literal, panels, plain_ticks, slug
from analysis.figures.view import Configuration, Shown, View, is_geometric
from analysis.summary import Cost

_COST = re.compile(
    r"(^|_)(latency|memory|size|flops|macs|params|parameters|cost|gpu_hours|ms|mb|gb|bytes)(_|$)"
)
_GAIN = re.compile(r"(^|_)(speed_up|speedup|throughput|fps)(_|$)|_per_s$")
_MOST_COSTS = 3
_MOST_POINTS = 400
_MOST_NAMED = 8
_LEAST_SPREAD = 0.01  # of the largest


def tradeoffs(view: View, costs: Sequence[Cost]) -> list[Drawing]:
    """A figure per cost: the first metric against it, and the front that nothing is better than."""
    known = [m for m in view.metrics if m.larger_is_better is not None]
    if not known:
        return []
    measured = _measured(view, costs)
    return [
        drawing
        for name, values in list(measured.items())[:_MOST_COSTS]
        if (drawing := _draw(view, known[0], name, values)) is not None
    ]


def _measured(view: View, costs: Sequence[Cost]) -> dict[str, Mapping[int, float]]:
    """Cost -> cell -> median over seeds, of what methods measure themselves."""
    found: dict[str, dict[int, float]] = {}
    for metric in view.metrics:
        if metric.larger_is_better is None and _is_cost(metric.key):
            found[metric.key] = {c: float(np.median(v)) for c, v in metric.whole.items()}
    cells = {(c.arm, c.number, repr(dict(c.knobs))): c.cell for c in view.configurations}
    for cost in costs:
        cell = cells.get((cost.arm, cost.number, repr(dict(cost.knobs))))
        for name, value in cost.scalars.items():
            if cell is not None and _is_cost(name) and np.isfinite(value):
                found.setdefault(name, {}).setdefault(cell, float(value))
    # Less is noise of the machine, and no choice that anybody makes.
    return {name: of for name, of in found.items() if _spread(list(of.values())) > _LEAST_SPREAD}


def _spread(values: Sequence[float]) -> float:
    largest = max(map(abs, values))
    return (max(values) - min(values)) / largest if largest else 0.0


def _is_cost(name: str) -> bool:
    return bool(_COST.search(name.lower()) or _GAIN.search(name.lower()))


def _draw(view: View, metric: Shown, name: str, cost: Mapping[int, float]) -> Drawing | None:
    able = [c for c in view.configurations if c.cell in cost and len(metric.whole.get(c.cell, ()))]
    complete = [c for c in able if len(metric.whole[c.cell]) == c.planned]
    if len(complete) < 2:
        return None
    up = 1.0 if metric.larger_is_better else -1.0
    dear = -1.0 if _GAIN.search(name.lower()) else 1.0
    worth = {c.cell: (dear * cost[c.cell], -up * float(metric.whole[c.cell].mean()))
             for c in complete}  # fmt: skip
    front = _front(complete, worth)
    on_front = {c.cell for c in front}
    rest = [c for c in complete if c.cell not in on_front][:_MOST_POINTS]
    figure, (axis,) = panels(1)
    figure.set_size_inches(5.2, 3.6)
    log = is_geometric([cost[c.cell] for c in complete])
    arms = list(dict.fromkeys(c.arm for c in complete if c != view.baseline))
    styles = {arm: LOOKS[i % len(LOOKS)] for i, arm in enumerate(arms)}
    axis.step(
        [cost[c.cell] for c in front], [float(metric.whole[c.cell].mean()) for c in front],
        where="post" if dear > 0 else "pre", color="#777777", linewidth=1.0,
    )  # fmt: skip
    handles: dict[str, Any] = {}
    for one in [*rest, *front]:
        look = BASELINE if one == view.baseline else styles[one.arm]
        label = one.label if one == view.baseline else one.arm
        handles[label] = Line2D([], [], linestyle="", marker=look.marker, color=look.color)
        strong = one.cell in on_front or one == view.baseline
        axis.plot(
            cost[one.cell], float(metric.whole[one.cell].mean()), linestyle="", marker=look.marker,
            color=look.color, markersize=7 if strong else 4, alpha=1.0 if strong else 0.45,
            markeredgecolor="black" if one.cell in on_front else look.color, markeredgewidth=0.6,
        )  # fmt: skip
    axis.set_xlabel(literal(name))
    axis.set_ylabel(literal(metric.label))
    if log:
        axis.set_xscale("log")
    plain_ticks(axis.xaxis, log=log)
    plain_ticks(axis.yaxis)
    axis.margins(0.08)
    legend(figure, list(handles.values()), list(handles))
    listed = ", ".join(c.name for c in front[:_MOST_NAMED])
    more = f" and {len(front) - _MOST_NAMED} more" if len(front) > _MOST_NAMED else ""
    caption = (
        f"{metric.key} (mean over seeds) against {name} (median over seeds) of {len(complete)} "
        f"configurations. Large marks on the line: no other is at least as good in both and better "
        f"in one; from left to right {listed}{more}."
    )
    if len(able) > len(complete):
        caption += f" Left out, as not every seed finished: {len(able) - len(complete)}."
    if len(rest) + len(front) < len(complete):
        caption += f" Of the others, {len(rest)} are shown."
    return Drawing(
        name=slug("pareto", metric.key, name),
        title=f"{metric.key} against {name}",
        caption=caption,
        kind="pareto",
        figure=figure,
    )


def _front(
    configurations: Sequence[Configuration], worth: Mapping[int, tuple[float, float]]
) -> list[Configuration]:
    """Those that no other is at least as good as in both and better in one, by rising cost."""
    best = np.inf
    front: list[Configuration] = []
    for one in sorted(configurations, key=lambda c: worth[c.cell]):
        value = worth[one.cell][1]
        if value < best or (front and worth[one.cell] == worth[front[-1].cell]):
            front.append(one)
            best = value
    return front
