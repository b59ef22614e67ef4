"""Looks that all figures share: colours for every eye, and names that are shown as they are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

_LONGEST = 46  # characters of a name in a legend; two fit side by side
_COLUMNS = 3
_MOST_TICKS = 9
_LONGEST_TICK = 6  # characters


@dataclass(frozen=True, slots=True)
class Look:
    """How the marks of one configuration look; no two share a colour, a marker or a line."""

    color: str
    marker: str
    line: Any

    def curve(self, **more: Any) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for a line."""
        return {"color": self.color, "linestyle": self.line, **more}


# Okabe and Ito's palette (2008) without its yellow, which vanishes on white; black is the baseline.
BASELINE = Look("#000000", "X", (0, (4, 2)))
LOOKS = (
    Look("#0072B2", "o", "-"),
    Look("#D55E00", "s", (0, (6, 1.5))),
    Look("#009E73", "^", (0, (1.2, 1.2))),
    Look("#CC79A7", "D", (0, (6, 1.5, 1.2, 1.5))),
    Look("#E69F00", "v", (0, (3, 1))),
    Look("#56B4E9", "P", (0, (3, 1, 1, 1, 1, 1))),
)
MOST_LINES = len(LOOKS)

NORMAL, ANOMALOUS = "#0072B2", "#D55E00"


def looks(count: int, *, baseline: bool) -> list[Look]:
    """For so many configurations, the baseline first."""
    return ([BASELINE] if baseline else []) + list(LOOKS[: count - baseline])


def literal(text: str, most: int = _LONGEST) -> str:
    """A name as it may stand in a figure: what cannot be seen as escapes, cut in the middle."""
    seen = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )
    half = (most - 1) // 2
    return seen if len(seen) <= most else f"{seen[:half]}…{seen[-half:]}"


def slug(*parts: str) -> str:
    """A name for files, of lower-case letters, digits and dashes."""
    joined = "-".join(parts).lower().replace("@", "-at-")
    return re.sub(r"[^a-z0-9]+", "-", joined).strip("-")[:80].rstrip("-") or "figure"


def panels(
    count: int,
    *,
    width: float = 2.7,
    height: float = 2.3,
    columns: int = _COLUMNS,
    xlabel: str = "",
    **more: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes, row by row; the lowest of each column have the label."""
    columns = 2 if (count, columns) == (4, _COLUMNS) else min(count, columns)
    rows = math.ceil(count / columns)
    if count == 1:
        width, height = 4.8, 3.0
    figure = Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **more)
    axes = [axis for row in grid for axis in row]
    for empty in axes[count:]:
        empty.remove()
    for place, axis in enumerate(axes[:count]):
        if place + columns >= count:  # also above an empty place
            axis.tick_params(axis="x", labelbottom=True)
            axis.set_xlabel(literal(xlabel))
    return figure, axes[:count]


def number(value: float) -> str:
    """A tick's label, never a formula."""
    return f"{value:g}"


def plain_ticks(
    axis: Any, *, log: bool = False, ticks: Sequence[float] | None = None, most: int = 5
) -> None:
    """Give an x- or y-axis labels that are plain numbers, few enough not to touch."""
    if ticks is not None:
        axis.set_ticks(list(ticks))
        axis.set_ticks([], minor=True)
    elif log:
        low, high = axis.get_view_interval()
        between = (1.0,) if high > 200 * low else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=between, numticks=7))
    else:
        axis.set_major_locator(MaxNLocator(most))
        return
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def number_ticks(axis: Any, values: Sequence[float], *, log: bool) -> None:
    """Ticks where the values are, if these are few, short and lie apart; else as usual."""
    ticks = sorted(set(values))
    place = np.log(ticks) if log else np.asarray(ticks)
    span = float(place[-1] - place[0])
    apart = len(ticks) <= _MOST_TICKS and np.diff(place, prepend=-np.inf).min() >= 0.07 * span
    short = max(len(number(tick)) for tick in ticks) <= _LONGEST_TICK
    if span == 0 or (apart and short):
        plain_ticks(axis, ticks=ticks)
    else:
        plain_ticks(axis, log=log)


def name_ticks(axis: Axes, names: Sequence[str]) -> None:
    """Names side by side along the x-axis, aslant where they would touch."""
    axis.set_xticks(range(len(names)), [literal(name, 16) for name in names])
    if max(map(len, names)) > 5 and len(names) > 3:
        axis.tick_params(axis="x", rotation=35)
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    axis.set_xlim(-0.6, len(names) - 0.4)


def metric_axis(axis: Axes, *, is_rate: bool) -> None:
    """Finish a y-axis of a metric; one in percent shows no more than there is."""
    if is_rate:  # the band of two seeds goes far beyond
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -2.0), min(high, 102.0))
    plain_ticks(axis.yaxis)


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Names below the panels, in as many columns as they leave room for."""
    if not handles:
        return
    shown = [literal(name) for name in names]
    room = figure.get_figwidth() * 11  # characters of the legend's size, marks and gaps aside
    columns = max(1, min(len(shown), int(room // (max(map(len, shown)) + 6)), 4))
    rows = math.ceil(len(shown) / columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * (rows - 1))  # not at the panels' cost
    figure.legend(list(handles), shown, loc="outside lower center", ncols=columns, handlelength=3.2)
