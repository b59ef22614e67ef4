"""Results of other papers beside ours: their means and spreads are all that is known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.compare import Unpaired, unpaired
from analysis.matching import Place
from analysis.pairing import Configuration
from analysis.recomputed import Recomputed


@dataclass(frozen=True, slots=True)
class Theirs:
    """A cell of another paper's results beside a configuration of ours.

    Args:
        line, row, column, metric, group: As of a claim.
        configuration: Ours.
        mean, std, n: Theirs, as printed; None where the table does not say it.
        ours_mean, ours_std, ours_n: Ours, ddof = 1, in the unit of the table.
        found: Of ours less theirs, in the unit of the table; None where ours has no value.
        why: Why there is no test, in words.
    """

    line: int
    row: str
    column: str
    metric: str
    group: str
    configuration: str
    mean: float
    std: float | None
    n: int | None
    ours_mean: float | None
    ours_std: float | None
    ours_n: int
    found: Unpaired | None
    why: str


def beside(
    place: Place, ours: Configuration, values: Recomputed, scale: float, n: int | None
) -> Theirs:
    """A printed cell of theirs beside ours, with Welch's test where their spreads are known.

    Args:
        place: Where it is printed; its cell holds a number.
        ours: What it is compared with.
        values: Of ours, as stored.
        scale: What these are multiplied by to be in the unit of the table.
        n: Of how many runs theirs is the mean, where the table does not say it.
    """
    seeds = values.of_configuration(place, ours)
    scaled = seeds.values * scale
    printed = place.printed
    count = printed.n or n
    mean = float(printed.mean or 0)
    std = None if printed.spread is None else float(printed.spread)
    blank = Theirs(
        place.line, place.row, place.column, place.metric, place.group, ours.name, mean, std,
        count, None, None, len(scaled), None, "",
    )  # fmt: skip
    if not len(scaled):
        lacking = seeds.lacking or f"the records have no {place.metric} of {place.group}"
        return replace(blank, why=place.why or lacking)
    our_mean = math.fsum(scaled) / len(scaled)
    our_std = float(np.std(scaled, ddof=1)) if len(scaled) > 1 else None
    blank = replace(blank, ours_mean=our_mean, ours_std=our_std)
    if std is None or count is None:
        lacks = "no standard deviation" if std is None else "no number of runs; say it by --n"
        difference = Unpaired(our_mean - mean, untestable=f"the table prints {lacks}")
    else:
        difference = unpaired(our_mean, our_std or 0.0, len(scaled), mean, std, count)
    return replace(blank, found=difference, why=difference.untestable)
