"""What one knob does: a curve over its numbers, or a point for each of its names."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from analysis.figures.drawing import Drawing
from analysis.figures.style import (
    BASELINE,
    MOST_LINES,
    Look,
    legend,
    literal,
    looks,
    metric_axis,
    name_ticks,
    number_ticks,
    panels,
    slug,
)
from analysis.figures.view import (
    INTERVAL,
    Configuration,
    Shown,
    Values,
    View,
    interval,
    is_number,
    seeds_text,
)
from hdsweep.planned import cell_name

MOST_PANELS = 6
_MOST_METRICS = 4
_MOST_KNOBS = 4
_MOST_NAMES = 12  # on an axis
_MOST_SEEDS = 600  # points of single seeds in a figure


@dataclass(frozen=True, slots=True)
class _Line:
    """Configurations that differ in the knob alone.

    Args:
        name: What they have in common.
        cells: Of the frame, in the order of ``at``.
        at: The knob's values.
    """

    name: str
    cells: tuple[int, ...]
    at: tuple[Any, ...]


def ablations(view: View) -> list[Drawing]:
    """A figure per knob with several values and per metric, a panel per group."""
    listed = [c for c in view.configurations if c.listed]
    found = []
    for knob in varied(listed)[:_MOST_KNOBS]:
        lines = _lines(listed, knob)
        for metric in view.metrics[:_MOST_METRICS]:
            with_values = [
                line for line in lines if any(len(_of(metric.whole, cell)) for cell in line.cells)
            ]
            if with_values:
                found.append(_draw(view, knob, metric, with_values))
    return found


def varied(configurations: Iterable[Configuration]) -> list[str]:
    """Knobs that have several values within an arm, in the order of the plan."""
    seen: dict[tuple[str, str], set[str]] = {}
    for one in configurations:
        for knob, value in one.knobs.items():
            seen.setdefault((knob, one.arm), set()).add(repr(value))
    return list(dict.fromkeys(knob for (knob, _), values in seen.items() if len(values) > 1))


def _lines(configurations: Iterable[Configuration], knob: str) -> list[_Line]:
    together: dict[tuple[str, str], list[Configuration]] = {}
    for one in configurations:
        if knob in one.knobs:
            others = {name: value for name, value in one.knobs.items() if name != knob}
            name = cell_name(one.arm, others)
            together.setdefault((one.arm, name), []).append(one)
    several = {arm for (arm, _), cells in together.items() if len(cells) > 1}
    return [
        _Line(name, tuple(c.cell for c in cells), tuple(c.knobs[knob] for c in cells))
        for (arm, name), cells in together.items()
        if len(cells) > 1 or _alone(together, arm, several)
    ]


def _alone(
    together: Mapping[tuple[str, str], Sequence[Configuration]], arm: str, several: Container[str]
) -> bool:
    """Whether an arm's only point may stand beside the lines of others.

    Where several of its points differ in other knobs too, as knobs that depend on each other do,
    none of them says what this knob does.
    """
    return bool(several) and sum(of == arm for of, _ in together) == 1


def _of(values: Any, cell: int) -> Values:
    found: Values = values.get(cell, np.empty(0))
    return found


def _draw(view: View, knob: str, metric: Shown, lines: Sequence[_Line]) -> Drawing:
    kept = _best(lines, metric)
    numeric = all(is_number(value) for line in kept for value in line.at)
    places = metric.places[:MOST_PANELS]
    figure, axes = panels(len(places), sharex=True, xlabel=knob)
    names = [] if numeric else list(dict.fromkeys(str(v) for line in kept for v in line.at))
    names = names[:_MOST_NAMES]
    log = numeric and view.is_log(knob, [float(v) for line in kept for v in line.at])
    values = [_of(metric.values[p], c) for p in places for line in kept for c in line.cells]
    points = sum(map(len, values)) <= _MOST_SEEDS
    styles = looks(len(kept), baseline=False)
    handles: dict[str, Any] = {}
    for axis, place in zip(axes, places, strict=True):
        if len(places) > 1:
            axis.set_title(literal(_place(place)))
        _reference(axis, view, metric, place, handles)
        for order, (line, look) in enumerate(zip(kept, styles, strict=True)):
            found = [
                (_at(value, names), _of(metric.values[place], cell))
                for value, cell in zip(line.at, line.cells, strict=True)
                if numeric or str(value) in names
            ]
            found = sorted((pair for pair in found if len(pair[1])), key=lambda pair: pair[0])
            if not found:
                continue
            shift = 0.0 if numeric else 0.5 * ((order + 0.5) / len(kept) - 0.5)
            draw = _curve if numeric else _marks
            handles[line.name] = draw(axis, found, look, shift, points=points)
        if log:
            axis.set_xscale("log")
    for axis in axes:
        if names:
            name_ticks(axis, names)
        else:
            number_ticks(axis.xaxis, [float(v) for line in kept for v in line.at], log=log)
        metric_axis(axis, is_rate=metric.is_rate)
    figure.supylabel(literal(metric.label), fontsize=9)
    legend(figure, list(handles.values()), list(handles))
    return Drawing(
        name=slug("ablation", knob, metric.key),
        title=f"{metric.key} over {knob}",
        caption=_caption(view, knob, metric, lines, kept, numeric=numeric, log=log, points=points),
        kind="ablation",
        figure=figure,
    )


def _best(lines: Sequence[_Line], metric: Shown) -> list[_Line]:
    """As many as can be told apart, in their order."""
    if len(lines) <= MOST_LINES:
        return list(lines)
    sign = 1 if metric.larger_is_better is False else -1

    def worth(line: _Line) -> float:
        means = [float(v.mean()) for v in (_of(metric.whole, c) for c in line.cells) if len(v)]
        return min(sign * mean for mean in means)

    best = sorted(lines, key=worth)[:MOST_LINES]
    return [line for line in lines if line in best]


def _place(place: str) -> str:
    return {"mean": "mean over groups", "pooled": "all groups pooled"}.get(place, place)


def _at(value: Any, names: Sequence[str]) -> float:
    return float(names.index(str(value))) if names else float(value)


def _reference(axis: Axes, view: View, metric: Shown, place: str, handles: dict[str, Any]) -> None:
    """The baseline, as a line across with its band."""
    if view.baseline is None:
        return
    values = _of(metric.values[place], view.baseline.cell)
    if not len(values):
        return
    mean, low, high = interval(values)
    line = axis.axhline(mean, **BASELINE.curve(linewidth=1.2))
    if np.isfinite(low):
        axis.axhspan(low, high, color=BASELINE.color, alpha=0.1, linewidth=0)
    handles[view.baseline.label] = line


def _curve(
    axis: Axes, found: Sequence[tuple[float, Values]], look: Look, shift: float, *, points: bool
) -> Any:
    at = [place + shift for place, _ in found]
    mean, low, high = zip(*(interval(values) for _, values in found), strict=True)
    if np.isfinite(low).any():
        axis.fill_between(at, low, high, color=look.color, alpha=0.16, linewidth=0)
    if points:
        seeds = [(place, value) for place, (_, values) in zip(at, found, strict=True)
                 for value in values]  # fmt: skip
        axis.plot(
            *zip(*seeds, strict=True), linestyle="", marker=look.marker, markersize=2.6,
            color=look.color, alpha=0.45, markeredgewidth=0,
        )  # fmt: skip
    return axis.plot(at, mean, **look.curve(marker=look.marker))[0]


def _marks(
    axis: Axes, found: Sequence[tuple[float, Values]], look: Look, shift: float, *, points: bool
) -> Any:
    at = [place + shift for place, _ in found]
    mean, low, high = (
        np.array(column) for column in zip(*(interval(v) for _, v in found), strict=True)
    )
    if points:
        seeds = [(place - 0.07, value) for place, (_, values) in zip(at, found, strict=True)
                 for value in values]  # fmt: skip
        axis.plot(
            *zip(*seeds, strict=True), linestyle="", marker=look.marker, markersize=2.6,
            color=look.color, alpha=0.45, markeredgewidth=0,
        )  # fmt: skip
    with_bars = np.isfinite(low)
    if with_bars.any():
        bars = np.stack([mean - low, high - mean])[:, with_bars]
        axis.errorbar(
            np.array(at)[with_bars], mean[with_bars], yerr=bars, fmt="none", ecolor=look.color,
            elinewidth=1.2, capsize=3,
        )  # fmt: skip
    return axis.plot(at, mean, linestyle="", marker=look.marker, color=look.color, markersize=6)[0]


def _caption(
    view: View, knob: str, metric: Shown, lines: Sequence[_Line], kept: Sequence[_Line], *,
    numeric: bool, log: bool, points: bool,
) -> str:  # fmt: skip
    counts = [len(_of(metric.whole, c)) for line in kept for c in line.cells]
    counts = [count for count in counts if count]
    what = "Lines are means" if numeric else "Large marks are means"
    spread = "bands" if numeric else "bars"
    words = [f"{metric.key} against {knob}. {what} over {seeds_text(counts)}"]
    if max(counts) > 1:
        words[0] += f", {spread} the {INTERVAL}"
        words[0] += ", small marks single seeds." if points else "."
    else:
        words[0] += ", so there is no band."
    if view.baseline is not None and len(_of(metric.whole, view.baseline.cell)):
        words.append(f"Dashed across: {view.baseline.name}.")
    if log:
        words.append("The axis of the knob is logarithmic.")
    if len(kept) < len(lines):
        best = "highest" if metric.larger_is_better is None else "best"
        words.append(f"Shown are the {best} {len(kept)} of {len(lines)} lines.")
    if len(metric.places) > MOST_PANELS:
        words.append(f"Shown are {MOST_PANELS} of {len(metric.places)} groups.")
    values = len({str(v) for line in kept for v in line.at})
    if not numeric and values > _MOST_NAMES:
        words.append(f"Shown are the first {_MOST_NAMES} of {values} values.")
    empty = sum(not len(_of(metric.whole, c)) for line in lines for c in line.cells)
    if empty:
        words.append(f"{empty} configuration{' has' if empty == 1 else 's have'} no value yet.")
    return " ".join(words)
