"""A method that makes its own test items of the data's, and chooses its own threshold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from hdsweep.method import Data, Item, Method, Outcome, Predictions, Strict, TrialContext


class Params(Strict):
    """Which gaps there are between the items of a couple, and ways to go wrong."""

    gaps: tuple[int, ...] = Field((1, 2), min_length=1)
    threshold: float | None = 0.5
    fault: Literal["none", "forgets", "relabels", "rescores"] = "none"


def groups(params: Params, data: Data) -> Sequence[str]:
    """One for each gap."""
    return [f"gap {gap}" for gap in params.gaps]


def tested(params: Params, data: Data) -> Sequence[Item]:
    """Couples of unequal labels by gap; single normal items are every gap's negatives."""
    normal = [item for item in data.test if not item.is_anomaly]
    found = []
    for gap, group in zip(params.gaps, groups(params, data), strict=True):
        couples = zip(data.test, data.test[gap:], strict=False)
        found += [Item(item.name, group, is_anomaly=False, path=item.path) for item in normal]
        found += [
            Item(f"{one.name}+{other.name}", group, is_anomaly=True, path=one.path)
            for one, other in itertools.islice(couples, 10)
        ]
    return found


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """Couples score 1, single items by their place from 0 to .9."""
    items = list(tested(params, data))
    normal = [item.name for item in data.test if not item.is_anomaly]
    place = dict(zip(normal, np.linspace(0, 0.9, len(normal)).tolist(), strict=True))
    score = np.array([place.get(item.name, 1.0) for item in items])
    if params.fault == "forgets":
        items, score = items[1:], score[1:]
    if params.fault == "relabels":
        items[0] = Item(items[0].name, items[0].group, is_anomaly=True, path=items[0].path)
    if params.fault == "rescores":
        score[0] += 0.05
    return Outcome(Predictions.of(items, score), threshold=params.threshold)


METHOD = Method(
    version=1,
    params=Params,
    run=run,
    source="none",
    uses_torch=False,
    tested=tested,
    groups=groups,
)
