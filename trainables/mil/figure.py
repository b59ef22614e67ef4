"""A picture of what attention looks at: bags are rows, their instances are cells.

The same numbers make the same bytes: colours and fonts are matplotlib's own, whatever a user has
configured, letters are outlines, and the file bears no date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

_ROW_IN, _PANEL_IN = 0.26, 4.6
_PUT_IN = "instance that was put in"


@dataclass(frozen=True, slots=True)
class Shown:
    """Bags of one kind, one row each.

    Args:
        title: What they are.
        of: How many there are, of which these are shown.
        names: What each is called.
        score: Shape (rows,).
        attention: Shape (rows, block).
        foreign: Shape (rows, block), instances that were put in; they are marked.
    """

    title: str
    of: int
    names: tuple[str, ...]
    score: NDArray[np.float64]
    attention: NDArray[np.float32]
    foreign: NDArray[np.bool_]


def draw(path: Path, kinds: Sequence[Shown]) -> None:
    """Draw bags of some kinds, of equal block, one kind above the other, as SVG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rc("svg", hashsalt="attention", fonttype="path")
        mpl.rc("font", size=9)
        rows = [len(kind.names) for kind in kinds]
        size = (_PANEL_IN + 2.6, _ROW_IN * sum(rows) + 0.75 * len(kinds) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(
            len(kinds), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": rows}
        )[:, 0]
        even = 1 / kinds[0].attention.shape[1]
        top = max(2 * even, *(float(kind.attention.max()) for kind in kinds))
        for place, kind in zip(axes, kinds, strict=True):
            cells = _panel(place, kind, top)
        axes[-1].set_xlabel("place of the instance in the bag")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        marks = [mark for place in axes for mark in place.get_legend_handles_labels()[0]][:1]
        if marks:
            figure.legend(handles=marks, loc="outside lower center", frameon=False)
        bar = figure.colorbar(cells, ax=list(axes), shrink=0.7, aspect=30, pad=0.02)
        bar.set_label(f"attention (all alike: {even:.3g})")
        bar.ax.axhline(even, color="black", linewidth=1)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axes: Axes, kind: Shown, top: float) -> QuadMesh:
    rows, block = kind.attention.shape
    cells = axes.pcolormesh(
        np.arange(block + 1) + 0.5, np.arange(rows + 1) - 0.5, kind.attention,
        cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=1.5,
    )  # fmt: skip
    axes.invert_yaxis()
    row, column = np.nonzero(kind.foreign)
    if len(row):
        axes.scatter(
            column + 1, row, s=min(34.0, 700 / block), marker="D", facecolor="white",
            edgecolor="black", linewidth=0.9, label=_PUT_IN,
        )  # fmt: skip
    title = f"{kind.title}: {rows} of {kind.of} bags, evenly spaced by score"
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_yticks(range(rows), kind.names)
    axes.tick_params(axis="y", length=0)
    for place, text in [(-0.85, "score"), *enumerate(f"{score:+.3g}" for score in kind.score)]:
        axes.annotate(
            text, (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    return cells
