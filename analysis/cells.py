"""Printed numbers held against the records, one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

import numpy as np
from scipy import special

from analysis.matching import Place
from analysis.recomputed import Recomputed, Seeds
from analysis.rounding import Floats, agreement, decimals, std_range

Verdict = Literal["holds", "rounding", "wrong", "not recomputable"]
VERDICTS: tuple[Verdict, ...] = ("holds", "rounding", "wrong", "not recomputable")


@dataclass(frozen=True, slots=True)
class Claim:
    """One printed number.

    Args:
        line: Of the file.
        row: Label of its row, as printed.
        column: Label of its column, as printed.
        what: ``mean``, or ``std`` for what follows ±.
        configuration: Of the sweep; empty where none was found.
        metric: Canonical, without group; empty where it is not known.
        group: One of the data, POOLED or MEAN.
        printed: As printed.
        recomputed: In the unit of the table; None where the records give nothing.
        ddof: Of a standard deviation: those with which it holds; of ``recomputed`` the first, or
            where there is none, the one that explains most of the table.
        n: Over how many seeds it was recomputed.
        verdict: What may be said.
        why: In words; empty where it holds.
    """

    line: int
    row: str
    column: str
    what: Literal["mean", "std"]
    configuration: str
    metric: str
    group: str
    printed: str
    recomputed: float | None
    ddof: tuple[int, ...]
    n: int
    verdict: Verdict
    why: str = ""


def claims_of(
    own: Sequence[Place], values: Recomputed, scales: Mapping[str, float]
) -> Iterator[Claim]:
    """Every printed number with a verdict: the mean of a cell, then what follows ±.

    Args:
        own: Cells about configurations of ours.
        values: Of the records.
        scales: Metric -> what stored values are multiplied by to be in the unit of the table.
    """
    for place in own:
        seeds = values.at(place)
        scaled = seeds.values * scales.get(place.metric, 1.0)
        half = seeds.half * scales.get(place.metric, 1.0)
        blank = Claim(
            place.line, place.row, place.column, "mean",
            "" if place.configuration is None else place.configuration.name,
            place.metric, place.group, place.text, None, (), len(scaled), "not recomputable",
        )  # fmt: skip
        mean, spread = place.printed.mean, place.printed.spread
        if mean is None:
            yield replace(blank, why=place.why or "is no number")
            continue
        why = _why_not(place, seeds)
        blank = replace(blank, printed=str(mean))
        partial = _partial(place, seeds)
        if why:
            yield replace(blank, why=why)
        else:
            yield _partly(_mean(blank, mean, scaled, half), partial)
        if spread is None:
            continue
        blank = replace(blank, what="std", printed=str(spread))
        if why or len(scaled) < 2:
            yield replace(blank, why=why or "one seed has no spread")
        else:
            yield _partly(_std(blank, spread, scaled, half), partial)


def _why_not(place: Place, seeds: Seeds) -> str:
    """Why nothing can be recomputed at all; empty where something can."""
    if place.why or place.configuration is None:
        return place.why or "no configuration"
    if not seeds.planned:
        return f"the records have no {place.metric} of {place.group}"
    return "" if len(seeds.values) else seeds.lacking or "no seed has a value"


def _partial(place: Place, seeds: Seeds) -> str:
    """What makes a recomputed number another than the printed one claims to be."""
    n, printed = len(seeds.values), place.printed.n
    if printed is not None and printed != n:
        return f"printed over {printed} seeds, and the records have {n}"
    if printed is None and n < seeds.planned:
        return f"{seeds.planned - n} of {seeds.planned} seeds have no value: {seeds.lacking}"
    return ""


def _partly(claim: Claim, partial: str) -> Claim:
    """A number over other seeds than the printed one may hold, and cannot be wrong."""
    if not partial:
        return claim
    if claim.verdict == "holds":
        return replace(claim, why=partial)
    return replace(claim, verdict="not recomputable", why=partial)


def _mean(blank: Claim, printed: Decimal, values: Floats, half: float) -> Claim:
    value = math.fsum(values) / len(values)
    verdict, why = agreement(printed, value, value - half, value + half)
    return replace(blank, recomputed=value, verdict=verdict, why=why)


def _std(blank: Claim, printed: Decimal, values: Floats, half: float) -> Claim:
    found = {}
    for ddof in (1, 0):
        value = float(np.std(values, ddof=ddof))
        found[ddof] = (value, *agreement(printed, value, *std_range(values, half, ddof)))
    best = min((verdict for _, verdict, _ in found.values()), key=VERDICTS.index)
    fitting = tuple(ddof for ddof, (_, verdict, _) in found.items() if verdict == best)
    value, _, why = found[fitting[0]]
    told = f"{why} with ddof = {fitting[0]}" if why else ""
    if best == "wrong":
        digits = decimals(printed) + 2
        told = ", ".join(f"{found[ddof][0]:.{digits}f} with ddof = {ddof}" for ddof in found)
    return replace(
        blank, recomputed=value, ddof=fitting if best != "wrong" else (), verdict=best, why=told
    )


def as_most(claim: Claim, fits: Mapping[int, int]) -> Claim:
    """A standard deviation that both divisors explain, or none, by the one of the table."""
    most = 1 if fits[1] >= fits[0] else 0
    if claim.what != "std" or claim.recomputed is None or claim.n < 2:
        return claim
    if claim.ddof and most not in claim.ddof:
        return claim
    current = claim.ddof[0] if claim.ddof else 1
    value = claim.recomputed * math.sqrt((claim.n - current) / (claim.n - most))
    return replace(claim, recomputed=value)


def notes_on(claims: Sequence[Claim], fits: Mapping[int, int]) -> Iterator[str]:
    """What the standard deviations of a file have in common, in sentences."""
    stds = [c for c in claims if c.what == "std" and c.verdict != "not recomputable"]
    if not stds:
        return
    most = 1 if fits[1] >= fits[0] else 0
    yield (
        f"of what is printed after ±, {len(stds)} in all, {fits[1]} hold with ddof = 1 and "
        f"{fits[0]} with ddof = 0; recomputed is shown with ddof = {most} where both or none do"
    )
    errors, intervals = 0, 0
    for claim in stds:
        if claim.recomputed is None:
            continue
        used = most if not claim.ddof or most in claim.ddof else claim.ddof[0]
        sample = claim.recomputed * math.sqrt((claim.n - used) / (claim.n - 1))
        error = sample / math.sqrt(claim.n)
        wide = error * float(special.stdtrit(claim.n - 1, 0.975))
        printed = Decimal(claim.printed)
        errors += agreement(printed, error, error, error)[0] == "holds"
        intervals += agreement(printed, wide, wide, wide)[0] == "holds"
    for count, what in (
        (errors, "standard errors of the mean"),
        (intervals, "half widths of 95 % intervals"),
    ):
        if count > max(fits.values()) and 2 * count > len(stds):
            yield f"{count} of them are {what}: what follows ± may be no standard deviation"
