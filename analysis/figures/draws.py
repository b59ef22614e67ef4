"""What searches drew: each knob alone, and all of them as lines across parallel axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from analysis.figures.ablation import MOST_PANELS
from analysis.figures.drawing import Drawing
from analysis.figures.style import (
    BASELINE,
    LOOKS,
    legend,
    literal,
    metric_axis,
    name_ticks,
    number,
    number_ticks,
    panels,
    plain_ticks,
    slug,
)
from analysis.figures.view import (
    INTERVAL,
    Configuration,
    Shown,
    View,
    interval,
    is_number,
    seeds_text,
)

_MOST_DRAWN = 300  # lines or points of a study
_MOST_AXES = 7


def draws(view: View, seeds: str = "") -> list[Drawing]:
    """Of each study and the first metric: a panel per drawn knob, and parallel axes from two on.

    Args:
        view: Of the sweep.
        seeds: Which seeds they are, in words; empty where there are no others.
    """
    found = []
    if not view.metrics:
        return []
    metric = view.metrics[0]
    studies = dict.fromkeys(c.study for c in view.configurations if c.drawn)
    for place, study in enumerate(studies):
        drawn = [c for c in view.configurations if c.drawn and c.study == study]
        # A search counts what lacks a seed as failed, and so it is never the best here either.
        cells = [c for c in drawn if len(metric.whole.get(c.cell, ())) == c.planned]
        knobs = _drawn_knobs(cells)
        if len(cells) < 2 or not knobs:
            continue
        kept = _best(cells, metric)
        words = _words(drawn, cells, kept, metric) + seeds
        arm = cells[0].arm
        parts = [arm, metric.key, *([str(place)] if len(studies) > 1 else [])]
        found.append(_slices(view, metric, kept, knobs, parts, words))
        whole = [c for c in kept if all(knob in c.knobs for knob in knobs)]
        if len(knobs) > 1 and len(whole) > 1:
            found.append(_parallel(view, metric, whole, len(kept), knobs, parts, words))
    return found


def _drawn_knobs(cells: Sequence[Configuration]) -> list[str]:
    seen: dict[str, set[str]] = {}
    for one in cells:
        for knob, value in one.knobs.items():
            seen.setdefault(knob, set()).add(repr(value))
    return [knob for knob, values in seen.items() if len(values) > 1][:_MOST_AXES]


def _best(cells: Sequence[Configuration], metric: Shown) -> list[Configuration]:
    """The best first, by mean over seeds."""
    sign = 1 if metric.larger_is_better is False else -1
    ranked = sorted(cells, key=lambda c: sign * float(metric.whole[c.cell].mean()))
    return ranked[:_MOST_DRAWN]


def _words(
    drawn: Sequence[Configuration], cells: Sequence[Configuration],
    kept: Sequence[Configuration], metric: Shown,
) -> str:  # fmt: skip
    counts = seeds_text(len(metric.whole[c.cell]) for c in kept)
    words = f"{len(kept)} of {len(drawn)} drawn configurations, means over {counts}"
    if len(kept) < len(cells):
        return f"{words}, the best"
    without = len(drawn) - len(cells)
    return f"{words} (without the {without} of which not every seed finished)" if without else words


def _slices(
    view: View, metric: Shown, kept: Sequence[Configuration], knobs: Sequence[str],
    parts: Sequence[str], words: str,
) -> Drawing:  # fmt: skip
    shown = knobs[:MOST_PANELS]
    figure, axes = panels(len(shown), sharey=True)
    reference = None if view.baseline is None else metric.whole.get(view.baseline.cell)
    handles: dict[str, Any] = {}
    for axis, knob in zip(axes, shown, strict=True):
        having = [c for c in kept if knob in c.knobs]
        if reference is not None and view.baseline is not None:
            mean, low, high = interval(reference)
            handles[view.baseline.label] = axis.axhline(mean, **BASELINE.curve(linewidth=1.2))
            if np.isfinite(low):
                axis.axhspan(low, high, color=BASELINE.color, alpha=0.1, linewidth=0)
        scale = _Scale([c.knobs[knob] for c in having], view, knob)
        at = [scale.raw(c.knobs[knob]) for c in having]
        means = [float(metric.whole[c.cell].mean()) for c in having]
        look = LOOKS[0]
        handles["drawn"] = axis.plot(
            at, means, linestyle="", marker="o", color=look.color, alpha=0.6, markeredgewidth=0
        )[0]
        if having and having[0] is kept[0]:
            handles["the best"] = axis.plot(
                at[:1], means[:1], linestyle="", marker="*", markersize=11, color=LOOKS[1].color,
                markeredgecolor="black", markeredgewidth=0.6,
            )[0]  # fmt: skip
        if scale.log:
            axis.set_xscale("log")
        if scale.names:
            name_ticks(axis, scale.names)
        else:
            number_ticks(axis.xaxis, at, log=scale.log)
        axis.margins(y=0.08)  # a star is large
        metric_axis(axis, is_rate=metric.is_rate)
        axis.set_xlabel(literal(knob, 30))
    figure.supylabel(literal(metric.label), fontsize=9)
    legend(figure, list(handles.values()), list(handles))
    caption = f"{metric.key} against each drawn knob of {parts[0]}: {words}. The best is "
    caption += f"{kept[0].name}."
    if reference is not None and view.baseline is not None:
        caption += f" Dashed across: {view.baseline.name}"
        caption += f", with the {INTERVAL}." if len(reference) > 1 else "."
    if len(shown) < len(knobs):
        caption += f" Shown are {len(shown)} of {len(knobs)} knobs."
    return Drawing(
        name=slug("draws", *parts),
        title=f"{metric.key} of what the search of {parts[0]} drew",
        caption=caption,
        kind="draws",
        figure=figure,
    )


class _Scale:
    """Where a knob's values lie on an axis: numbers, logarithms, or names side by side."""

    def __init__(self, values: Sequence[Any], view: View, knob: str) -> None:
        self.names: list[str] = []
        self.log = False
        if all(map(is_number, values)):
            self.log = view.is_log(knob, [float(v) for v in values])
            self.low, self.high = min(map(float, values)), max(map(float, values))
        else:
            self.names = list(dict.fromkeys(map(str, values)))
            self.names.sort()
            self.low, self.high = 0.0, float(len(self.names) - 1)

    def raw(self, value: Any) -> float:
        """In the unit of the axis."""
        return float(self.names.index(str(value))) if self.names else float(value)

    def share(self, raw: float) -> float:
        """From 0 at the lowest to 1 at the highest."""
        if self.high == self.low:
            return 0.5
        if self.log:
            return float(np.log(raw / self.low) / np.log(self.high / self.low))
        return (raw - self.low) / (self.high - self.low)

    def ticks(self) -> Mapping[float, str]:
        """Share -> label."""
        if self.names:
            return {self.share(i): literal(n, 12) for i, n in enumerate(self.names[:12])}
        if self.high == self.low:
            return {0.5: number(self.low)}
        middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
        return {self.share(v): f"{v:.3g}" for v in (self.low, middle, self.high)}


def _parallel(
    view: View, metric: Shown, whole: Sequence[Configuration], kept: int, knobs: Sequence[str],
    parts: Sequence[str], words: str,
) -> Drawing:  # fmt: skip
    figure = Figure(figsize=(min(1.35 * (len(knobs) + 1) + 1.2, 8.4), 3.2), layout="constrained")
    axis = figure.subplots()
    means = np.array([float(metric.whole[c.cell].mean()) for c in whole])
    scales = [_Scale([c.knobs[knob] for c in whole], view, knob) for knob in knobs]
    last = _Scale(means.tolist(), view, metric.key)
    last.log = False
    shade = Normalize(last.low, last.high if last.high > last.low else last.low + 1)
    reach = np.linspace(0, 0.88, 256)[:: -1 if metric.larger_is_better is False else 1]
    # Without the yellow end of cividis, which is hard to see on white.
    colours = ScalarMappable(norm=shade, cmap=ListedColormap(colormaps["cividis"](reach)))
    for rank in reversed(range(len(whole))):  # the best on top
        knob_values = [
            scale.share(scale.raw(whole[rank].knobs[knob]))
            for scale, knob in zip(scales, knobs, strict=True)
        ]
        axis.plot(
            [*knob_values, last.share(means[rank])], color=colours.to_rgba(means[rank]),
            linewidth=3.0 if rank == 0 else 0.9, alpha=1.0 if rank == 0 else 0.7,
            marker="o" if rank == 0 else "", zorder=3 if rank == 0 else 2,
            path_effects=[withStroke(linewidth=4.4, foreground="black")] if rank == 0 else None,
        )  # fmt: skip
    _rails(axis, [*zip(knobs, scales, strict=True), (metric.label, last)])
    bar = figure.colorbar(colours, ax=axis, label=literal(metric.label), pad=0.06)
    plain_ticks(bar.ax.yaxis)
    bar.outline.set_visible(False)
    caption = (
        f"What the search of {parts[0]} drew, a line each: {words}. Colour and the last axis are "
        f"{metric.key}; the best is thick."
    )
    if len(whole) < kept:
        caption += f" {kept - len(whole)} that lack a knob are left out."
    return Drawing(
        name=slug("parallel", *parts),
        title=f"Knobs and {metric.key} of what the search of {parts[0]} drew",
        caption=caption,
        kind="parallel",
        figure=figure,
    )


def _rails(axis: Axes, rails: Sequence[tuple[str, _Scale]]) -> None:
    """An upright axis for each knob, with its own ticks."""
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.yaxis.set_major_locator(NullLocator())
    axis.set_xticks(range(len(rails)), [literal(name, 18) for name, _ in rails])
    axis.tick_params(axis="x", length=0, pad=8)
    axis.set_ylim(-0.04, 1.04)
    axis.set_xlim(-0.25, len(rails) - 0.6)
    for at, (_, scale) in enumerate(rails):
        axis.axvline(at, color="#444444", linewidth=0.8, zorder=1)
        for share, text in scale.ticks().items():
            axis.text(
                at - 0.04, share, text, ha="right", va="center", fontsize=7, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            )  # fmt: skip
