"""Verdicts: each configuration against the baseline, in words that the numbers support.

``docs/statistics.md`` says what is computed and why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compare import Paired, Pairs, holm, optional, pairs
from analysis.frame import MEAN, SKIPPED
from analysis.pairing import Matrix, NoBaseline, configurations, find_baseline, matrix
from analysis.power import detectable, seeds_needed, smallest_margin, tost
from analysis.reasons import CHOSEN, Case, Unit, Verdict
from analysis.testset import Asked, ImageNoise, image_noise
from hdsweep.errors import SpecError
from hdsweep.metrics import POOLED, parse_metric
from hdsweep.store import Store

__all__ = ["Comparison", "Comparisons", "Family", "ImageNoise", "Verdict", "compare"]

Floats = NDArray[np.float64]

Family = Literal["aggregate", "per group"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One configuration against the baseline, for one metric and one group.

    Args:
        metric: Canonical, without group.
        group: A group of the data, POOLED or MEAN.
        cell: Of the frame; names the configuration.
        arm: Its arm.
        knobs: Its swept and drawn knobs.
        number: Its place in its search, None for what is listed.
        larger_is_better: None where nobody knows.
        seeds: That both have a value for, in the order of the plan.
        unpaired: That only one has a value for.
        paired: Differences ``configuration - baseline`` over ``seeds``.
        family: In which p is corrected.
        family_size: How many tests were made in it.
        p_holm: p corrected by Holm within the family; None where there is no test.
        margin: Differences up to this are declared not to matter; None where none was declared.
        p_tost: Larger p of the two one-sided tests against the margin.
        p_tost_holm: The same, corrected by Holm within the family.
        smallest_margin: The smallest margin that two one-sided tests at level .05 would pass.
        detectable: Difference that n pairs with this spread find with power .8 at level .05.
        seeds_needed: Pairs for power .8 to find ``margin``, or ``difference`` where there is none.
        std_ratio: Standard deviation of the configuration over that of the baseline.
        p_variance: Of the test of Pitman and Morgan that they are equal.
        images: Noise of the test items, where it was computed.
        images_why: Why it was not, in words.
        verdict: What may be said.
        why: Of the verdict, in one sentence for people.
    """

    metric: str
    group: str
    cell: int
    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    larger_is_better: bool | None
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    paired: Paired
    family: Family
    family_size: int
    p_holm: float | None
    margin: float | None
    p_tost: float | None
    p_tost_holm: float | None
    smallest_margin: float | None
    detectable: float | None
    seeds_needed: int | None
    std_ratio: float | None
    p_variance: float | None
    images: ImageNoise | None
    images_why: str
    verdict: Verdict
    why: str


@dataclass(frozen=True, slots=True)
class Comparisons:
    """All that a sweep compares.

    Args:
        baseline: Name of the configuration that others are compared with; empty where none is.
        baseline_cell: Of the frame; None where there is none.
        alpha: Level of every test, and 1 - coverage of every interval.
        rows: By metric, configuration and group, in the order of the frame; MEAN last of a group.
        why_none: Why there are no rows, in words.
        notes: What a reader must know of all of them, a sentence each.
    """

    baseline: str
    baseline_cell: int | None
    alpha: float
    rows: tuple[Comparison, ...]
    why_none: str = ""
    notes: tuple[str, ...] = ()


# --- comparing ------------------------------------------------------------------------------------


def compare(
    frame: pd.DataFrame,
    *,
    baseline: str | None,
    margins: Mapping[str, float] | None = None,
    directions: Mapping[str, bool] | None = None,
    alpha: float = 0.05,
    store: Store | None = None,
    checked: bool = False,
) -> Comparisons:
    """Compare every configuration with the baseline, by metric and group.

    A pair's numbers do not depend on the order of rows, on names, or on what else is in the frame;
    only what Holm's method makes of its p does.

    Args:
        frame: What ``analysis.frame.load`` returns.
        baseline: An arm with one configuration, or a configuration as in ``topk q_percent=5``.
        margins: Metric without group -> difference that does not matter, in the metric's unit.
        directions: Whether larger is better, of scalars: only their method knows.
        alpha: Level of tests, and 1 - coverage of intervals.
        store: Where predictions are, for the noise of the test items; by default it is left out.
        checked: Whether the baseline is known to be in the sweep file. It may have no rows all the
            same, where another configuration of its arm was confirmed; that is told in
            ``why_none``, and no mistake.

    Raises:
        SpecError: No configuration has the name of the baseline.
        StoreError: Predictions cannot be read.
    """
    known = configurations(frame)
    try:
        base = find_baseline(known, baseline)
    except NoBaseline as why:
        return Comparisons("", None, alpha, (), str(why))
    except SpecError:
        if not checked:
            raise
        why_none = f"the baseline '{baseline}' is not among the configurations that are reported"
        return Comparisons("", None, alpha, (), why_none)
    data = matrix(frame, known, base)
    declared = [(margins or {}).get(metric, math.nan) for metric in data.metrics]
    tests = _Tests.of(data, np.array(declared), alpha)
    rows = _rows(data, tests, _directions(data.metrics, directions or {}), alpha)
    if store is not None:
        rows = _with_noise(rows, frame, known[base].cell, alpha, store)
    return Comparisons(
        baseline=known[base].name,
        baseline_cell=known[base].cell,
        alpha=alpha,
        rows=rows,
        why_none="" if rows else "there is no other configuration than the baseline",
        notes=tuple(_notes(frame, rows, alpha)) if rows else (),
    )


@dataclass(frozen=True, slots=True)
class _Tests:
    """What is computed of all rows at once, each of shape (k,), NaN where there is none."""

    found: Pairs
    optimistic: NDArray[np.bool_]
    margin: Floats
    p_holm: Floats
    p_tost: Floats
    p_tost_holm: Floats
    smallest: Floats
    detectable: Floats
    needed: Floats
    sizes: tuple[int, int]
    """Tests among the aggregate and the other rows."""

    @classmethod
    def of(cls, data: Matrix, margins: Floats, alpha: float) -> _Tests:
        found = pairs(data.value, data.base, alpha)
        chosen = np.array([one.optimistic for one in data.configurations])
        optimistic = chosen[data.configuration]
        margin = margins[data.metric]
        # What was chosen by these very values has no valid p, and would cost the others power.
        p = np.where(optimistic, math.nan, found.p)
        p_tost = np.where(optimistic, math.nan, tost(found, margin))
        p_holm, p_tost_holm = np.full(len(p), math.nan), np.full(len(p), math.nan)
        for family in (data.aggregate, ~data.aggregate):
            p_holm[family], p_tost_holm[family] = holm(p[family]), holm(p_tost[family])
        wanted = np.where(np.isnan(margin), found.difference, margin)
        std = np.where(np.isnan(found.t), math.nan, found.std)
        made = ~np.isnan(p)
        sizes = (int(np.sum(made & data.aggregate)), int(np.sum(made & ~data.aggregate)))
        return cls(
            found=found,
            optimistic=optimistic,
            margin=margin,
            p_holm=p_holm,
            p_tost=p_tost,
            p_tost_holm=p_tost_holm,
            smallest=smallest_margin(found, alpha),
            detectable=detectable(std, found.n, alpha=alpha),
            needed=seeds_needed(std, wanted, alpha=alpha),
            sizes=sizes,
        )


def _directions(metrics: Sequence[str], told: Mapping[str, bool]) -> list[bool | None]:
    definitions = [parse_metric(metric, (metric,)).definition for metric in metrics]
    return [
        told.get(metric) if definition is None else definition.larger_is_better
        for metric, definition in zip(metrics, definitions, strict=True)
    ]


def _rows(
    data: Matrix, tests: _Tests, directions: Sequence[bool | None], alpha: float
) -> tuple[Comparison, ...]:
    seeds = _Seeds(data)
    units = [Unit(parse_metric(name, (name,)).definition is not None) for name in data.metrics]
    columns = zip(
        data.metric.tolist(),
        data.configuration.tolist(),
        data.group.tolist(),
        data.aggregate.tolist(),
        tests.found.each(),
        tests.optimistic.tolist(),
        optional(tests.margin),
        optional(tests.p_holm),
        optional(tests.p_tost),
        optional(tests.p_tost_holm),
        optional(tests.smallest),
        optional(tests.detectable),
        optional(tests.needed),
        optional(tests.found.std_ratio),
        optional(tests.found.p_variance),
        strict=True,
    )
    rows = []
    for row, (
        metric, configuration, group, aggregate, pair, optimistic, margin, p_holm, p_tost,
        p_tost_holm, smallest, find, needed, ratio, p_variance,
    ) in enumerate(columns):  # fmt: skip
        one = data.configurations[configuration]
        name, larger = data.metrics[metric], directions[metric]
        used, unpaired = seeds.of(row)
        case = Case(
            name, units[metric], pair, larger, p_holm, margin, p_tost_holm, find, needed,
            optimistic, unpaired, alpha,
        )  # fmt: skip
        verdict = case.verdict()
        rows.append(
            Comparison(
                metric=name,
                group=data.groups[group],
                cell=one.cell,
                arm=one.arm,
                knobs=one.knobs,
                number=one.number,
                larger_is_better=larger,
                seeds=used,
                unpaired=unpaired,
                paired=pair,
                family="aggregate" if aggregate else "per group",
                family_size=tests.sizes[0 if aggregate else 1],
                p_holm=p_holm,
                margin=margin,
                p_tost=p_tost,
                p_tost_holm=p_tost_holm,
                smallest_margin=smallest,
                detectable=find,
                seeds_needed=None if needed is None else int(needed),
                std_ratio=ratio,
                p_variance=p_variance,
                images=None,
                images_why="the noise of the test items was not asked for",
                verdict=verdict,
                why=case.why(verdict),
            )
        )
    return tuple(rows)


def _with_noise(
    rows: tuple[Comparison, ...], frame: pd.DataFrame, base: int, alpha: float, store: Store
) -> tuple[Comparison, ...]:
    trials: dict[int, dict[int, str]] = {}
    planned = frame.drop_duplicates(["cell", "seed"])
    for cell, seed, trial in zip(planned["cell"], planned["seed"], planned["trial"], strict=True):
        trials.setdefault(int(cell), {})[int(seed)] = trial
    asked = [
        Asked(row.metric, row.group, row.cell, row.seeds, row.paired.difference or 0.0)
        for row in rows
    ]
    groups = [group for group in frame["group"].cat.categories if group not in (POOLED, MEAN)]
    found = image_noise(store, asked, trials, base, groups, alpha=alpha)
    return tuple(
        replace(row, images_why=noise, images=None)
        if isinstance(noise, str)
        else replace(row, images_why="", images=noise)
        for row, noise in zip(rows, found, strict=True)
    )


class _Seeds:
    """Which seeds of a row both have, and which only one; few patterns serve most rows."""

    def __init__(self, data: Matrix) -> None:
        one, other = ~np.isnan(data.value), ~np.isnan(data.base)
        order, self._names = data.planned, data.seeds[data.planned].tolist()
        self._both, self._single = (one & other)[:, order], (one ^ other)[:, order]
        self._known: dict[bytes, tuple[int, ...]] = {}

    def of(self, row: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._named(self._both[row]), self._named(self._single[row])

    def _named(self, mask: NDArray[np.bool_]) -> tuple[int, ...]:
        key = mask.tobytes()
        if key not in self._known:
            chosen = zip(self._names, mask.tolist(), strict=True)
            self._known[key] = tuple(seed for seed, there in chosen if there)
        return self._known[key]


def _notes(frame: pd.DataFrame, rows: Sequence[Comparison], alpha: float) -> Iterator[str]:
    level = f"{alpha:g}"
    yield (
        "Differences are configuration less baseline, one value per seed, paired by seed; their "
        f"standard deviation has ddof = 1, and intervals are by Student's t, each by itself at "
        f"{100 * (1 - alpha):g} %."
    )
    sizes = {row.family: row.family_size for row in rows}
    told = (("aggregate", "of whole trials"), ("per group", "of single groups"))
    each = [
        f"{sizes[family]} test{'s' * (sizes[family] != 1)} {words}"
        for family, words in told
        if family in sizes
    ]
    yield (
        f"p is corrected by Holm's method at level {level} within each family: {', '.join(each)}; "
        "margins are tested in the same families."
    )
    fewest = min((row.paired.n for row in rows if row.paired.p is not None), default=0)
    if fewest and 2.0 ** (1 - fewest) > alpha:
        yield (
            f"With {fewest} seeds the sign-flip test cannot give less than {2.0 ** (1 - fewest)}, "
            f"so what is below {level} rests on differences being about normal."
        )
    if any(row.verdict == "inconclusive" for row in rows):
        yield (
            "What so many seeds could show, and how many would, is of a test that stands alone, "
            "with power 80 % and the spread that was seen; after Holm it takes more."
        )
    optimistic = {row.cell for row in rows if CHOSEN in row.why}
    if optimistic:
        yield (
            f"{_many(optimistic)} drawn by a search on the seeds that are compared: such numbers "
            "are optimistic, and count in no family."
        )
    unequal = {row.cell for row in rows if row.unpaired}
    if unequal:
        yield (
            f"{_many(unequal)} compared on some of the seeds, for the others are not in the "
            "baseline or in them; those are left out of differences, though not of means."
        )
    skipped = frame["status"] == SKIPPED
    if skipped.any() and frame.loc[skipped, "reason"].str.startswith("race:").any():
        yield (
            "A race gave some configurations fewer seeds because of how the first ones did; their "
            "differences look larger than they are."
        )
    unknown = Counter(row.metric for row in rows if row.larger_is_better is None)
    if unknown:
        yield f"Nobody said whether larger is better of {', '.join(unknown)}."


def _many(cells: Collection[int]) -> str:
    return "1 configuration was" if len(cells) == 1 else f"{len(cells)} configurations were"
