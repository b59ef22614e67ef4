"""Learning curves, with the norm of the gradient beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.figures.drawing import Drawing
from analysis.figures.style import legend, literal, looks, panels, plain_ticks, slug
from analysis.figures.view import LARGEST, Configuration, View, seeds_text
from hdsweep.curve import read_points
from hdsweep.store import Store

_MOST_CONFIGURATIONS = 6
_MOST_SEEDS = 10
_MEAN_POINTS = 300
_SEED_POINTS = 80
_MOST_PANELS = 3

Points = NDArray[np.float64]
"""Shape (2, n): steps, which ascend, and values."""


def curves(view: View, store: Store) -> list[Drawing]:
    """One figure: loss, gradient norm and validation, as far as methods report them."""
    shown = view.chosen(_MOST_CONFIGURATIONS)
    reported: dict[int, list[Mapping[str, Points]]] = {}
    for one in shown:
        seeds = list(one.trials.values())[:_MOST_SEEDS]
        found = [_series(read_points(store.trial_dir(trial))) for trial in seeds]
        if any(found):
            reported[one.cell] = [series for series in found if series]
    names = _panels([name for seeds in reported.values() for s in seeds for name in s])
    if not names:
        return []
    return [_draw(view, shown, reported, names)]


def _series(points: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Name -> its points, from those that report it; of a step that was run twice, the last."""
    found: dict[str, dict[float, float]] = {}
    for point in points:
        for name, value in point.items():
            if name not in ("step", "time_s"):
                shown = value if abs(value) <= LARGEST else np.nan
                found.setdefault(name, {})[float(point["step"])] = shown
    series = {
        name: np.array([list(of_name), list(of_name.values())]) for name, of_name in found.items()
    }
    return {name: s[:, np.argsort(s[0], kind="stable")] for name, s in series.items()}


def _panels(names: Sequence[str]) -> list[str]:
    """Loss, gradient norm, then what else tells how training went."""
    known = list(dict.fromkeys(names))

    def is_norm(name: str) -> bool:
        return "grad" in name.lower() and "norm" in name.lower()

    def first(of: Sequence[str]) -> list[str]:
        return list(of[:1])

    losses = [n for n in known if n == "loss"] or [n for n in known if "loss" in n.lower()]
    judged = [n for n in known if n.lower().startswith("val") and "loss" not in n.lower()]
    found = [*first(losses), *first([n for n in known if is_norm(n)]), *first(judged)]
    if not found:  # whatever it reports, but for what is a setting
        found = [n for n in known if n.lower() not in ("lr", "learning_rate", "epoch")]
    return list(dict.fromkeys(found))[:_MOST_PANELS]


def _draw(
    view: View,
    shown: Sequence[Configuration],
    reported: Mapping[int, Sequence[Mapping[str, Points]]],
    names: Sequence[str],
) -> Drawing:
    figure, axes = panels(len(names), width=2.9, height=2.5)
    drawn = [one for one in shown if one.cell in reported]
    baseline = view.baseline in drawn
    styles = looks(len(drawn), baseline=baseline)
    handles: dict[str, Any] = {}
    logs = []
    for axis, name in zip(axes, names, strict=True):
        finite = []
        for order, one in enumerate(drawn):
            look = styles[order]
            lines = [series[name] for series in reported[one.cell] if name in series]
            for line in lines:
                thin = _thinned(line, _SEED_POINTS)
                if len(lines) > 1:
                    axis.plot(*thin, color=look.color, linewidth=0.5, alpha=0.35)
                finite.append(line[1][np.isfinite(line[1])])
            mean = _mean(lines)
            if mean.size:
                step = max(1, len(mean[0]) // 5)
                every = (order * step // len(drawn), step)
                handles[one.label] = axis.plot(
                    *mean, **look.curve(marker=look.marker, markevery=every, linewidth=1.5)
                )[0]
        values = np.concatenate([*finite, np.empty(0)])
        log = bool(len(values) and values.min() > 1 / LARGEST and values.max() > 30 * values.min())
        if log:
            axis.set_yscale("log")
            logs.append(name)
        axis.set_title(literal(name))
        axis.set_xlabel("step")
        plain_ticks(axis.xaxis)
        plain_ticks(axis.yaxis, log=log)
    legend(figure, list(handles.values()), list(handles))
    return Drawing(
        name=slug("curves"),
        title="Learning curves",
        caption=_caption(view, shown, drawn, reported, names, logs),
        kind="curves",
        figure=figure,
    )


def _mean(lines: Sequence[Points]) -> Points:
    """Over the steps that every line has; empty where there is none."""
    if not lines:
        return np.empty((2, 0))
    steps = lines[0][0]
    for line in lines[1:]:
        steps = np.intersect1d(steps, line[0])
    values = [line[1][np.isin(line[0], steps)] for line in lines]
    with np.errstate(invalid="ignore", over="ignore"):
        return _thinned(np.stack([steps, np.mean(values, axis=0)]), _MEAN_POINTS)


def _thinned(line: Points, most: int) -> Points:
    """At most so many points: the least and the largest of each stretch, so no peak is lost."""
    steps, values = line
    if len(steps) <= most:
        return line
    kept: set[int] = {0, len(steps) - 1}
    for stretch in np.array_split(np.arange(len(steps)), most // 2 - 1):
        of_stretch = values[stretch]
        if np.isfinite(of_stretch).any():
            kept.add(int(stretch[np.nanargmin(of_stretch)]))
            kept.add(int(stretch[np.nanargmax(of_stretch)]))
        else:  # a gap stays a gap
            kept.add(int(stretch[0]))
    order = sorted(kept)
    return np.stack([steps[order], values[order]])


def _caption(
    view: View, shown: Sequence[Configuration], drawn: Sequence[Configuration],
    reported: Mapping[int, Sequence[Mapping[str, Points]]], names: Sequence[str],
    logs: Sequence[str],
) -> str:  # fmt: skip
    counts = [len(reported[one.cell]) for one in drawn]
    words = [f"{', '.join(names)} as reported while training, by step."]
    if max(counts) > 1:
        words.append(
            f"Thick: mean over {seeds_text(counts)} at the steps that all reported; thin: single "
            "seeds."
        )
    else:
        words.append("One seed each.")
    words.append("Of finished trials only; long curves keep each stretch's extremes.")
    if logs:
        words.append(f"Logarithmic: {', '.join(logs)}.")
    silent = len(shown) - len(drawn)
    if silent:
        words.append(f"{silent} of those chosen reported nothing.")
    words.append(view.how_chosen(shown))
    return " ".join(word for word in words if word)
