"""All that people are shown of a summary: its sheets, and the page of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from analysis import judged, tabulated
from analysis.sheets import Kind, Sheet
from analysis.summary import Summary
from hdsweep.store import Store

WHOLE: tuple[Kind, ...] = ("results", "comparison", "ablation", "criteria", "costs")


def sheets_of(
    summary: Summary,
    kinds: Collection[str] = WHOLE,
    *,
    per_group: bool = False,
    brief: bool = False,
) -> list[Sheet]:
    """Of each metric its results and then its comparisons; then ablations, criteria and costs.

    Args:
        summary: All of it; of searches the best configurations are shown.
        kinds: Which of WHOLE.
        per_group: Whether comparisons have rows for groups beside the mean over them.
        brief: Whether comparisons show differences, p and verdicts alone.
    """
    shown = summary.for_people()
    found: list[Sheet | None] = []
    for table in shown.tables:
        if "results" in kinds:
            found.append(tabulated.results(table))
        if "comparison" in kinds:
            found.append(
                judged.comparison(shown.comparisons, table, per_group=per_group, brief=brief)
            )
    if "ablation" in kinds:
        found += [tabulated.ablation(one) for one in shown.ablations]
    if "criteria" in kinds:
        found.append(judged.criteria(shown.criteria))
    if "costs" in kinds:
        found.append(judged.cost(shown.costs))
    sheets = [sheet for sheet in found if sheet is not None]
    last = max((n for n, sheet in enumerate(sheets) if sheet.kind == "comparison"), default=None)
    if last is not None:  # what holds for all comparisons is said once
        notes = tuple(note.rstrip(".") for note in shown.comparisons.notes)
        sheets[last] = replace(sheets[last], caption=sheets[last].caption + notes)
    return sheets


def page_of(
    summary: Summary,
    store: Store,
    kinds: Collection[str] = WHOLE,
    *,
    refresh_s: float | None = None,
    version: str = "",
) -> str:
    """One HTML file with sheets and figures.

    Args:
        summary: All of it.
        store: Where predictions and curves are, for figures.
        kinds: Which of WHOLE.
        refresh_s: As ``analysis.page.page`` takes it.
        version: The same.
    """
    from analysis.figures import drawings  # matplotlib takes as long to load as a table to print
    from analysis.page import page

    return page(
        summary.for_people(),
        sheets_of(summary, kinds, per_group=True),
        drawings(summary, store),
        refresh_s=refresh_s,
        version=version,
    )
