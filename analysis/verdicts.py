"""Verdicts: each configuration against the baseline, in words that the numbers support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analysis.compare import Paired

Verdict = Literal["better", "worse", "equivalent", "inconclusive", "not testable"]
Family = Literal["aggregate", "per group"]


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """How far the difference may be due to the test items that happen to be in the test set.

    Args:
        method: ``paired DeLong`` or ``stratified bootstrap (B = 1000)``.
        se: Standard error of the difference over test items, the trained models given.
        ci_low, ci_high: 95 % interval of the difference.
        items: How many test items.
    """

    method: str
    se: float
    ci_low: float
    ci_high: float
    items: int


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
