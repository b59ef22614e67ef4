"""What the searches of a sweep found: how far they are, and which configurations people are shown.

A search draws more configurations than anybody reads. Which are best is what the search was told of
them, not what a table says of the metric that it happens to show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hdsweep.planned import PlannedCell, PlannedSearch, cell_name, drawn_of

_BEST = 3  # of one objective
_FRONT = 10  # of several


@dataclass(frozen=True, slots=True)
class Searched:
    """How a study went.

    Args:
        study: Its key.
        arm: Name in the sweep file.
        knobs: The grid values of its cell.
        sampler: What drew.
        objectives: As in ``mean auroc``.
        trials: How many configurations it may draw.
        drawn: How many it drew.
        complete: Of those drawn.
        pruned: Of those drawn.
        failed: Of those drawn.
        front: How many are best: 1, or with several objectives all that none is better than.
        best: Numbers of those that people are shown, the best first; of several objectives, in the
            order of drawing.
    """

    study: str
    arm: str
    knobs: Mapping[str, Any]
    sampler: str
    objectives: tuple[str, ...]
    trials: int
    drawn: int
    complete: int
    pruned: int
    failed: int
    front: int
    best: tuple[int, ...]


def searched(search: PlannedSearch, cells: Iterable[PlannedCell]) -> Searched:
    """Count and rank the configurations of a study.

    Args:
        search: The study.
        cells: Among others those that it drew.
    """
    drawn = [c for c in cells if c.study == search.key and c.part != "confirm"]
    states = Counter(cell.state for cell in drawn)
    front, best = _best(search, drawn)
    how = search.aggregate.replace("_", " ")
    return Searched(
        study=search.key,
        arm=search.arm,
        knobs=search.knobs,
        sampler=search.sampler,
        objectives=tuple(f"{how} {name}" for name in search.objectives),
        trials=search.trials,
        drawn=len(drawn),
        complete=states["complete"],
        pruned=states["pruned"],
        failed=states["failed"],
        front=front,
        best=tuple(best),
    )


def _best(search: PlannedSearch, drawn: Sequence[PlannedCell]) -> tuple[int, list[int]]:
    """How many are best, and numbers of those to show."""
    sign = [-1.0 if larger else 1.0 for larger in search.maximize]
    complete = [
        cell
        for cell in drawn
        # What was told while the file had other objectives does not rank.
        if cell.state == "complete" and len(cell.values) == len(sign)
    ]
    costs = {
        cell.number: tuple(s * v for s, v in zip(sign, cell.values, strict=True))
        for cell in [c for c in complete if c.feasible] or complete
        if cell.number is not None
    }
    if len(sign) == 1:
        return min(len(costs), 1), sorted(costs, key=lambda number: (costs[number], number))[:_BEST]
    front = _front(costs)
    return len(front), front[:_FRONT]


def _front(costs: Mapping[int, tuple[float, ...]]) -> list[int]:
    """Numbers of those that no other is at least as good as in all and better in one."""
    # In ascending order nothing is dominated by what comes later.
    order = sorted(costs, key=lambda number: costs[number])
    values = np.array([costs[number] for number in order])
    front: list[int] = []  # positions in the order
    for place, cost in enumerate(values):
        kept = values[front]
        if not ((kept <= cost).all(axis=1) & (kept < cost).any(axis=1)).any():
            front.append(place)
    return sorted(order[place] for place in front)


def how_far(search: Searched, *, shown: bool) -> str:
    """A line on a study: what was drawn, how that ended, and which of it people are shown.

    Args:
        search: The study.
        shown: Whether a table shows its best configurations.
    """
    ended = {"complete": search.complete, "pruned": search.pruned, "failed": search.failed}
    ended["under way"] = search.drawn - sum(ended.values())
    counted = "".join(f", {count} {what}" for what, count in ended.items() if count)
    text = (
        f"{cell_name(search.arm, search.knobs)}: {drawn_of(search.drawn, search.trials)} "
        f"by {search.sampler}{counted}"
    )
    if not shown or not search.best:
        return text
    many = len(search.best)
    which = "the best" if many == 1 else f"the best {many}"
    by = f"by {' and '.join(search.objectives)}"
    if len(search.objectives) > 1:
        which = f"{many} of the {search.front} that no other is better than"
    text += f"; {which} {by} {'is' if many == 1 else 'are'} shown"
    return text + ("" if many == search.drawn else "; --format csv lists all")


def is_optimistic(searches: Iterable[Searched]) -> str:
    """A warning for values on the seeds that a search chose by; empty where none chose."""
    most = max((search.drawn for search in searches if search.complete > 1), default=0)
    if not most:
        return ""
    return (
        f"the best of {most} on the seeds it was chosen by: optimistic; "
        "seeds: {select: ..., confirm: ...} reports it on others"
    )
