"""The verdicts of a sweep in a few sentences: what a reader would say who looked at all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from analysis.criteria import Criterion
from analysis.frame import MEAN, NOT_RUN
from analysis.runs import Differs
from analysis.verdicts import Comparison, Comparisons, Verdict
from hdsweep.metrics import parse_metric
from hdsweep.planned import cell_name

_MOST_NAMED = 3
_ORDER: tuple[Verdict, ...] = ("better", "worse", "equivalent", "inconclusive", "not testable")
_SAID: Mapping[Verdict, str] = {
    "better": "better than {baseline}",
    "worse": "worse than {baseline}",
    "equivalent": "equivalent to {baseline} within the margin",
    "inconclusive": "not distinguishable from {baseline}, which does not make them equal",
    "not testable": "not testable against {baseline}",
}


def answer(
    comparisons: Comparisons,
    criteria: Sequence[Criterion],
    differs: Sequence[Differs],
    counts: Mapping[str, int],
    metrics: Sequence[str] = (),
) -> tuple[str, ...]:
    """Sentences for people: how far the sweep is, verdicts, criteria, and what casts doubt.

    Args:
        comparisons: With the baseline.
        criteria: Of the sweep file.
        differs: In what arms differ.
        counts: Status -> planned trials.
        metrics: That are reported, in the metric grammar: each has a sentence of verdicts. By
            default all that stand for whole trials.
    """
    return (
        *_progress(counts),
        *(f"Caution, arms differ in {one.text}." for one in differs if one.serious),
        *_verdicts(comparisons, metrics),
        *_criteria(criteria),
    )


def _progress(counts: Mapping[str, int]) -> list[str]:
    planned, ok = sum(counts.values()), counts.get("ok", 0)
    if ok == planned:
        return []
    others = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "ok" and n)
    if not ok:
        yet = " yet" if counts.get(NOT_RUN) else ""
        return [f"None of {planned} planned trials has a result{yet} ({others})."]
    return [
        f"{ok} of {planned} planned trials have results ({others})"
        + ("; what follows may change." if counts.get(NOT_RUN) else ".")
    ]


def _verdicts(comparisons: Comparisons, metrics: Sequence[str]) -> list[str]:
    if not comparisons.rows:
        return [f"{comparisons.why_none[:1].upper()}{comparisons.why_none[1:]}."] * bool(
            comparisons.why_none
        )
    found = []
    for name, rows in _of_metrics(comparisons.rows, metrics).items():
        said = []
        for verdict in _ORDER:
            own = [row for row in rows if row.verdict == verdict]
            if own:
                verb = "is" if len(own) == 1 else "are"
                text = _SAID[verdict].format(baseline=comparisons.baseline)
                said.append(f"{_named(own, len(rows))} {verb} {text}{_by(own)}")
        found.append(f"{name}: {'; '.join(said)}.")
    return found


def _of_metrics(rows: Sequence[Comparison], metrics: Sequence[str]) -> dict[str, list[Comparison]]:
    """Name of what is compared -> its rows, in the order of the plan."""
    found: dict[str, list[Comparison]] = {}
    for text in metrics:
        metric = parse_metric(text, (text,))
        own = [
            row
            for row in rows
            if row.metric == metric.key
            and (row.family == "aggregate" if metric.group is None else row.group == metric.group)
        ]
        if own:
            found[metric.text] = own
    for row in () if metrics else rows:
        if row.family == "aggregate":
            name = row.metric if row.group == MEAN else f"{row.metric}[{row.group}]"
            found.setdefault(name, []).append(row)
    return found


def _named(rows: Sequence[Comparison], of: int) -> str:
    if len(rows) == of and of > _MOST_NAMED:
        return f"all {of} configurations"
    names = [cell_name(row.arm, row.knobs, row.number) for row in rows]
    if len(names) <= _MOST_NAMED:
        return " and ".join([", ".join(names[:-1]), names[-1]] if names[:-1] else names)
    return f"{len(names)} of {of} configurations ({', '.join(names[:_MOST_NAMED])}, ...)"


def _by(rows: Sequence[Comparison]) -> str:
    """The numbers of a verdict that something is so, where it is about one configuration."""
    said = len(rows) == 1 and rows[0].verdict in ("better", "worse", "equivalent")
    return f" ({rows[0].why.rstrip('.')})" if said else ""


def _criteria(criteria: Sequence[Criterion]) -> list[str]:
    found = []
    for text, of_text in groupby(criteria, key=lambda one: one.text):
        rows = list(of_text)
        listed = [one for one in rows if not one.optimistic]
        met = [cell_name(one.arm, one.knobs, one.number) for one in listed if one.met == "met"]
        said = []
        if met:
            more = f" and {len(met) - _MOST_NAMED} more" if len(met) > _MOST_NAMED else ""
            said.append(
                f"met by {', '.join(met[:_MOST_NAMED])}{more}, of {_configurations(len(listed))}"
            )
        elif listed:
            said.append(f"met by none of {_configurations(len(listed))}")
        if drawn := [one for one in rows if one.optimistic]:
            also = sum(one.met == "met" for one in drawn)
            said.append(
                f"{also} of {len(drawn)} that a search drew reach it, on the seeds that it chose "
                "by, which is optimistic"
            )
        if waiting := sum(one.met == "open" for one in rows):
            said.append(f"{waiting} still open")
        found.append(f"Criterion {text}: {'; '.join(said)}.")
    return found


def _configurations(count: int) -> str:
    return f"{count} configuration{'s' * (count != 1)}"
