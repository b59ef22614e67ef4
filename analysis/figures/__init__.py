"""Figures of a report: drawn with matplotlib, written as SVG for a page and PDF for a paper.

Every figure says in its caption what it shows, of how many seeds, and what it leaves out; what the
records do not support is not drawn. Importing this imports matplotlib, which takes 0.4 s.
"""

from __future__ import annotations

from dataclasses import replace

from analysis.figures.ablation import ablations
from analysis.figures.curves import curves
from analysis.figures.drawing import Drawing, Kind, pdf, settings, svg, write
from analysis.figures.draws import draws
from analysis.figures.heatmaps import heatmaps
from analysis.figures.ranks import ranks
from analysis.figures.scores import scores
from analysis.figures.tradeoffs import tradeoffs
from analysis.figures.view import View, look
from analysis.frame import load
from analysis.summary import Summary
from hdsweep.errors import StoreError
from hdsweep.store import Store

__all__ = ["Drawing", "Kind", "drawings", "pdf", "svg", "write"]


def drawings(summary: Summary, store: Store | None) -> list[Drawing]:
    """Draw what a report's records support.

    Args:
        summary: Of the sweep; its frame, baseline and costs are used.
        store: Where curves and predictions are; without one these are not drawn.

    Returns:
        In the order in which a reader wants them; none where no trial has a value.
    """
    view = look(summary.sweep, summary.frame, summary.comparisons.baseline_cell, summary.yaml)
    if not view.metrics:
        return []
    with settings():
        found = [*ablations(view), *heatmaps(view), *_searches(view, summary, store)]
        if store is not None:
            found += [*scores(view, store), *curves(view, store)]
        found += [*tradeoffs(view, summary.costs), *ranks(view)]
    return _named_apart(found)


def _searches(view: View, summary: Summary, store: Store | None) -> list[Drawing]:
    """What searches drew; where others are reported, on the seeds that these were chosen by."""
    if not summary.frame.attrs.get("select"):
        return draws(view)
    if store is None:
        return []
    try:
        sweep = store.sweep(view.sweep)
    except StoreError:  # it is not that of the report
        return []
    metric = [view.metrics[0].key]
    drawn = look(view.sweep, load(store, sweep, metric, part="select"), text=summary.yaml)
    return draws(drawn, ", on the seeds to choose by")


def _named_apart(found: list[Drawing]) -> list[Drawing]:
    """Names that differ only in what a file's name cannot hold get a number."""
    taken: set[str] = set()
    named = []
    for drawing in found:
        name, again = drawing.name, 2
        while name in taken:
            name, again = f"{drawing.name}-{again}", again + 1
        taken.add(name)
        named.append(replace(drawing, name=name))
    return named
