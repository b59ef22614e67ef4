"""What the columns of a printed table are: configurations, knobs, metrics and groups.

Papers name things more freely than a sweep file does: ``TPR@FPR=1 %`` for ``tpr@1``, ``Domain A``
for ``A``. What is not understood is left out and told, and may be said by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from analysis.frame import MEAN
from analysis.printed import PrintedTable
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import POOLED, parse_metric

ROLES = {
    "arm": ("arm", "method", "model", "variant", "config", "configuration", "name", "approach"),
    "metric": ("metric", "measure"),
    "group": ("group", "domain", "category", "class", "dataset", "subset"),
    "number": ("number",),
    "mean": ("mean", "value", "result", "average", "avg"),
    "std": (
        "std",
        "sd",
        "stddev",
        "stdev",
        "spread",
        "standarddeviation",
        "stddeviation",
        "pm",
        "±",
    ),
    "n": ("n", "runs", "nseeds", "nruns"),
}
_BY_NAME = ("arm", "metric", "group", "number", "n")
"""Roles that a column has wherever it stands; mean and std depend on the others."""

_MEANS = ("mean", "average", "avg", "overall", "all", "avgs", "macro", "meanovergroups")
_ALIASES = {
    "auc": "auroc", "rocauc": "auroc", "aucroc": "auroc", "iauroc": "auroc", "imageauroc": "auroc",
    "imagelevelauroc": "auroc", "pauroc": "pixel_auroc", "pixelauroc": "pixel_auroc",
    "pixellevelauroc": "pixel_auroc", "pro": "aupro", "aupr": "ap", "auprc": "ap",
    "averageprecision": "ap", "f1score": "f1", "f1max": "f1", "acc": "accuracy",
}  # fmt: skip
NOTHING = ("", "-", "--", "---", "—", "–", "n/a", "na", "nan", "none", "·")
MARKS = "†‡§¶*↑↓"


@dataclass(frozen=True, slots=True)
class Named:
    """What the caller says of a table's names.

    Args:
        columns: Label -> what it is: a metric with or without a group, a group, a knob, one of
            arm, metric, group, mean, std and n, or - for nothing.
        rows: Label -> a configuration, as in ``topk q=5``, or - for nothing.
        metric: Of tables that name none.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """What there is to be named.

    Args:
        groups: Of the data.
        knobs: That are swept or drawn.
        scalars: The methods' own measurements.
        metrics: Those of the sweep.
    """

    groups: Sequence[str]
    knobs: Sequence[str]
    scalars: Sequence[str]
    metrics: Sequence[str]


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table are.

    Args:
        roles: Role -> position: arm, metric, group, number, mean, std, n.
        knobs: Position -> knob.
        values: Position -> metric and group, None where rows say it.
        spreads: Position of a value -> position of its standard deviation.
        ignored: Labels of the others.
    """

    roles: Mapping[str, int]
    knobs: Mapping[int, str]
    values: Mapping[int, tuple[str | None, str | None]]
    spreads: Mapping[int, int]
    ignored: tuple[str, ...]


def columns_of(table: PrintedTable, names: Names, named: Named) -> Columns | None:
    """What the columns of a table are; None if none of them holds values of metrics.

    Raises:
        SpecError: The caller calls a column what there is not.
    """
    labels = [" ".join(column) for column in table.columns]
    plain = [short(label) for label in labels]
    if "criterion" in plain:  # of a report of ours: its mean is no column of a metric
        return None
    found = _Sorted()
    for place, column in enumerate(table.columns):
        told = _told(column, named.columns)
        if told is None:
            _guess(found, place, column, names)
        elif told in ROLES:
            found.roles[told] = place
        elif told in names.knobs:
            found.knobs[place] = told
        elif told != "-":
            found.values[place] = _said(labels[place], told, names)
    _one_value_per_row(found, plain)
    spreads = dict(_spreads(found, plain))
    if not found.values:
        return None
    used = {*found.roles.values(), *found.values, *spreads.values()}
    others = [place for place in found.others if place not in used]
    if "arm" not in found.roles and others and others[0] < min(found.values):
        found.roles["arm"] = others.pop(0)
    ignored = tuple(labels[place] or f"column {place + 1}" for place in others)
    return Columns(found.roles, found.knobs, found.values, spreads, ignored)


@dataclass(slots=True)
class _Sorted:
    """Columns while they are sorted."""

    roles: dict[str, int] = field(default_factory=dict)
    knobs: dict[int, str] = field(default_factory=dict)
    values: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)
    others: list[int] = field(default_factory=list)


def _guess(found: _Sorted, place: int, column: Sequence[str], names: Names) -> None:
    label = " ".join(column)
    name = short(label.removeprefix("knob."))
    knob = next((knob for knob in names.knobs if short(knob) == name), None)
    role = next((role for role in _BY_NAME if name in ROLES[role]), None)
    if knob is not None:
        found.knobs[place] = knob
    elif role is not None and role not in found.roles:
        found.roles[role] = place
    elif (meant := _meaning(column, names)) is not None:
        found.values[place] = meant
        found.others.append(place)
    else:
        found.others.append(place)


def _one_value_per_row(found: _Sorted, plain: Sequence[str]) -> None:
    """Where rows name metric or group, ``mean`` is over seeds and not over groups."""
    if "mean" in found.roles:
        found.values.setdefault(found.roles["mean"], (None, None))
        return
    called = [place for place in found.others if plain[place] in ROLES["mean"]]
    named = "metric" in found.roles or "group" in found.roles
    if named and called and not set(found.values) - set(called):
        found.roles["mean"] = called[0]
        found.values = {called[0]: (None, None)}


def _told(column: Sequence[str], told: Mapping[str, str]) -> str | None:
    known = {short(label): what for label, what in told.items()}
    for label in (" ".join(column), *column):
        if (found := known.get(short(label))) is not None:
            return found
    return None


def _said(label: str, told: str, names: Names) -> tuple[str | None, str | None]:
    if (meant := _meaning((told,), names)) is None:
        what = [*names.groups, *names.metrics, *names.knobs, *ROLES, MEAN]
        raise SpecError(
            f"--map '{label}={told}': neither a metric, a group, a knob nor a kind of column"
            f"{did_you_mean(told, what)}"
        )
    return meant


def _spreads(found: _Sorted, plain: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Columns of standard deviations: of the mean, or else of what stands on their left."""
    if {"std", "mean"} <= found.roles.keys():
        yield found.roles["mean"], found.roles["std"]
        return
    for place in found.others:
        if place in found.values or not plain[place].endswith(ROLES["std"]):
            continue
        value = found.roles.get("mean", place - 1)
        if value in found.values:
            yield value, place


def _meaning(labels: Sequence[str], names: Names) -> tuple[str | None, str | None] | None:
    """Metric and group that labels speak of, as far as they do."""
    metric: str | None = None
    group: str | None = None
    for label in labels:
        found = _one(label, names)
        if found is None:
            continue
        metric, group = found[0] or metric, found[1] or group
    return None if metric is None and group is None else (metric, group)


def _one(label: str, names: Names) -> tuple[str | None, str | None] | None:
    if (group := group_of(label, names)) is not None:
        return None, group
    if (metric := metric_of(label, names)) is not None:
        return metric
    words = re.sub(r"[()\[\]:,]", " ", label).split()
    for cut in range(1, len(words)):
        front, back = " ".join(words[:cut]), " ".join(words[cut:])
        for one, other in ((front, back), (back, front)):
            metric, group = metric_of(one, names), group_of(other, names)
            if metric is not None and group is not None:
                return metric[0], group
    return None


def group_of(label: str, names: Names) -> str | None:
    """The group of that name, POOLED or MEAN; None if there is none."""
    if label in names.groups:
        return label
    plain = short(label)
    known = {short(group): group for group in (*names.groups, POOLED)}
    if plain in known:
        return known[plain]
    first, _, rest = label.strip().partition(" ")
    if short(first) in ROLES["group"] and short(rest) in known:
        return known[short(rest)]
    return MEAN if plain in _MEANS else None


def metric_of(label: str, names: Names) -> tuple[str, str | None] | None:
    """Canonical name of a metric and its group, from how people write it; None if it is none."""
    text = label.strip(f" {MARKS}")
    if text in names.scalars:
        return text, None
    bare = re.sub(r"\((?:in )?%\)|\[%\]|\bin %|\(↑\)|\(↓\)", "", text).strip(f" {MARKS}")
    for scalar in names.scalars:
        if short(bare) == short(scalar) and short(scalar):
            return scalar, None
    told = re.sub(r"\s*@\s*", "@", bare.lower())
    told = re.sub(r"@(?:fpr|tpr)\s*=?\s*", "@", told)
    told = re.sub(r"(@\d+(?:\.\d+)?)\s*%(?:\s*(?:fpr|tpr))?", r"\1", told)
    for written in (bare, told, _ALIASES.get(short(told), "")):
        try:
            found = parse_metric(written)
        except SpecError:
            continue
        if found.group is not None and found.group not in (*names.groups, POOLED):
            continue
        return found.key, found.group
    return None


def metric_in(title: str, names: Names) -> str | None:
    """The one metric that a title speaks of."""
    text = re.sub(r"\s*@\s*", "@", title)
    text = re.sub(r"(@[A-Za-z]*\s*=?\s*\d+(?:\.\d+)?)\s+%", r"\1%", text)
    found = {metric_of(word.strip(".;:()'\""), names) for word in re.split(r"[\s,;:()]+", text)}
    metrics = {one[0] for one in found if one is not None}
    return metrics.pop() if len(metrics) == 1 else None


def short(text: str) -> str:
    """A name without what people add to it: case, spaces, dashes and marks."""
    stripped = re.sub(
        r"\[\d+(?:\s*[,–-]\s*\d+)*\]|[^\w±@.+]|_", "", text.lower()
    )  # [12]: a citation
    return re.sub(r"[.+]+$", "", stripped)
