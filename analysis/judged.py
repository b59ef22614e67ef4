"""Sheets of what a report judges: comparisons with the baseline, success criteria, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.criteria import Criterion
from analysis.frame import MEAN
from analysis.reasons import CHOSEN, Unit, p_text
from analysis.runs import Cost
from analysis.sheets import Sheet, Shown
from analysis.tables import Table
from analysis.tabulated import number
from analysis.verdicts import Comparison, Comparisons, Verdict
from hdsweep.metrics import parse_metric
from hdsweep.planned import cell_name, knob_text

_OPEN: tuple[Verdict, ...] = ("inconclusive", "not testable")
_MOST_REASONS = 8  # below a table; formats for programs hold all
_WORTH: Mapping[Verdict, float] = {
    "better": 4, "equivalent": 3, "inconclusive": 2, "not testable": 1, "worse": 0,
}  # fmt: skip


def comparison(
    comparisons: Comparisons, table: Table, *, per_group: bool = False, brief: bool = False
) -> Sheet | None:
    """Each configuration against the baseline, for one metric.

    Args:
        comparisons: Of the sweep.
        table: Of the metric.
        per_group: Whether groups have rows beside their mean, where it is of all groups.
        brief: Whether to leave out effect sizes, power, equivalence and variances.

    Returns:
        None where the metric has no comparison.
    """
    asked = parse_metric(table.metric, (table.metric,))
    rows = [
        row
        for row in comparisons.rows
        if row.metric == asked.key
        and (
            row.group == asked.group
            if asked.group is not None
            else per_group or row.family == "aggregate"
        )
    ]
    if not rows:
        return None
    groups = asked.group is None and any(row.group != MEAN for row in rows)
    knobs = list(dict.fromkeys(name for row in rows for name in row.knobs))
    scale = 100.0 if table.is_rate else 1.0
    unit = " in points" if table.is_rate else ""
    level = f"{100 * (1 - comparisons.alpha):g} % CI"
    flips = any(row.paired.sign_flip_p is not None for row in rows)
    margins = any(row.margin is not None for row in rows)
    images = any(row.images is not None for row in rows)
    more = not brief
    header = [
        "arm", *knobs, *(["group"] if groups else []), "difference", level, "p", "Holm p",
        *(["sign-flip p"] if flips else []), *(["TOST p"] if margins else []), "verdict",
        *(["n", "d_z", "g_z", "could show", "equal within", "std ratio (p)"] if more else []),
        *([f"{level} of test items"] if images else []),
    ]  # fmt: skip
    return Sheet(
        kind="comparison",
        title=f"{table.metric}{unit} against {comparisons.baseline}",
        header=tuple(header),
        left=1 + len(knobs) + groups,
        rows=tuple(
            (
                *_named(row.arm, row.knobs, row.number, knobs),
                *([Shown(row.group)] if groups else []),
                *_tested(row, scale, flips=flips, margins=margins),
                *(_sized(row, scale) if more else []),
                *([_noise(row, scale)] if images else []),
            )
            for row in rows
        ),
        caption=tuple(_caption(rows, Unit(table.is_rate), brief=brief)),
        metric=table.metric,
    )


def _named(
    arm: str, knobs: Mapping[str, Any], drawn: int | None, names: Sequence[str]
) -> list[Shown]:
    values = [
        Shown(
            knob_text(knobs[name], drawn=drawn is not None),
            float(knobs[name]) if isinstance(knobs[name], int | float) else None,
        )
        if name in knobs
        else Shown("")
        for name in names
    ]
    return [Shown(cell_name(arm, {}, drawn)), *values]


def _tested(row: Comparison, scale: float, *, flips: bool, margins: bool) -> list[Shown]:
    paired = row.paired
    return [
        _signed(paired.difference, scale),
        _between(paired.ci_low, paired.ci_high, scale),
        _p(paired.p),
        _p(row.p_holm),
        *([_p(paired.sign_flip_p)] if flips else []),
        *([_p(row.p_tost_holm)] if margins else []),
        Shown(row.verdict, _WORTH[row.verdict], hint=row.why),
    ]


def _sized(row: Comparison, scale: float) -> list[Shown]:
    ratio = _plain(row.std_ratio)
    if row.p_variance is not None:
        ratio = Shown(f"{ratio.text} ({p_text(row.p_variance)})", ratio.value)
    return [
        Shown(f"{row.paired.n}", row.paired.n),
        _plain(row.paired.d_z),
        _plain(row.paired.g_z),
        _plain(row.detectable, scale),
        _plain(row.smallest_margin, scale),
        ratio,
    ]


def _noise(row: Comparison, scale: float) -> Shown:
    if row.images is None:
        return Shown("—", hint=row.images_why)
    return _between(row.images.ci_low, row.images.ci_high, scale)


def _caption(rows: Sequence[Comparison], unit: Unit, *, brief: bool) -> list[str]:
    lines = []
    floors = {(row.paired.n, row.paired.sign_flip_floor) for row in rows
              if row.paired.sign_flip_p is not None}  # fmt: skip
    for n, floor in sorted(floors):
        lines.append(f"sign-flip p with {n} seeds is never below {floor:.4g}")
    margins = dict.fromkeys(row.margin for row in rows if row.margin is not None)
    lines += [
        f"TOST p: two one-sided tests against the margin of {unit.declared(margin)}, by Holm"
        for margin in margins
    ]
    if not brief:
        lines.append(
            "could show: difference that so many seeds find with power 80 %; equal within: the "
            "smallest margin that a test of equivalence would pass; std ratio: to the baseline's, "
            "with p by Pitman and Morgan"
        )
    methods = {row.images.method for row in rows if row.images is not None}
    if methods:
        lines.append(f"test items: {', '.join(sorted(methods))}, trained models given")
    # Of the others the table says all, and the answer in words repeats it.
    said = [row for row in rows if row.verdict in _OPEN or row.margin is not None]
    said = [row for row in said if row.family == "aggregate"] or said
    for row in said[:_MOST_REASONS]:
        where = "" if row.group == MEAN else f", {row.group}"
        name = cell_name(row.arm, row.knobs, row.number)
        lines.append(f"{name}{where}: {row.verdict}: {row.why}")
    if len(said) > _MOST_REASONS:
        lines.append(f"and {len(said) - _MOST_REASONS} more, listed by the format json")
    return lines


def criteria(found: Sequence[Criterion]) -> Sheet | None:
    """Every criterion against every configuration; None where there are none."""
    if not found:
        return None
    rows = []
    for one in found:
        doubts = ["optimistic"] * one.optimistic + ["not sure"] * (not one.sure)
        doubt = f" ({', '.join(doubts)})" if doubts and one.met != "open" else ""
        rows.append(
            (
                Shown(one.text),
                Shown(cell_name(one.arm, one.knobs, one.number)),
                Shown(one.met + doubt, best=one.met == "met" and not one.optimistic),
                number(one.mean, 1.0),
                _range(one.ci_low, one.ci_high),
                Shown(f"{one.n}/{one.planned}", one.n),
            )
        )
    caption = ["stated in the sweep file; the mean over seeds decides, once all of them are there"]
    if any(one.met != "open" and not one.sure for one in found):
        caption.append(
            "not sure: the 95 % interval of the mean holds the bound, or one seed has none"
        )
    if any(one.met != "open" and one.optimistic for one in found):
        caption.append(f"optimistic: {CHOSEN}")
    return Sheet(
        kind="criteria",
        title="Success criteria",
        header=("criterion", "configuration", "result", "mean", "95 % CI", "n"),
        left=2,
        rows=tuple(rows),
        caption=tuple(caption),
    )


def cost(found: Sequence[Cost]) -> Sheet | None:
    """Time, GPU hours and the methods' own measurements; None where nothing was run."""
    if not found:
        return None
    names = list(dict.fromkeys(name for one in found for name in one.scalars))
    knobs = list(dict.fromkeys(name for one in found for name in one.knobs))
    rows = []
    for one in found:
        each = one.wall_s / one.n
        rows.append(
            (
                *_named(one.arm, one.knobs, one.number, knobs),
                Shown(f"{one.n}/{one.planned}", one.n),
                number(each, 1.0),
                number(one.wall_s / 3600, 1.0),
                number(one.gpu_hours, 1.0),
                *(number(one.scalars.get(name), 1.0) for name in names),
            )
        )
    caption = ["s per trial: mean; hours: sum, of the attempts that finished"]
    if names:
        caption.append("the method's measurements: median over trials that are ok")
    if any(one.gpu_hours is None for one in found):
        caption.append("GPU hours are missing where records do not say how many GPUs were held")
    return Sheet(
        kind="costs",
        title="Costs",
        header=("arm", *knobs, "n", "s per trial", "hours", "GPU hours", *names),
        left=1 + len(knobs),
        rows=tuple(rows),
        caption=tuple(caption),
    )


# --- numbers --------------------------------------------------------------------------------------


def _p(p: float | None) -> Shown:
    return Shown("—") if p is None else Shown(p_text(p), p)


def _signed(value: float | None, scale: float) -> Shown:
    shown = number(value, scale)
    return shown if value is None or value < 0 else Shown(f"+{shown.text}", value)


def _plain(value: float | None, scale: float = 1.0) -> Shown:
    return number(value, scale) if scale != 1.0 else number(value, 1.0, 2)


def _between(low: float | None, high: float | None, scale: float) -> Shown:
    if low is None or high is None:
        return Shown("—")
    return Shown(f"[{number(low, scale).text}, {number(high, scale).text}]", low)


def _range(low: float | None, high: float | None) -> Shown:
    return _between(low, high, 1.0)
