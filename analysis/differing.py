"""Sheets of what differs between two reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from analysis.regression import CellDifference, Differences, WordDifference
from analysis.sheets import Sheet, Shown

_MOST_ROWS = 40  # people stop reading; JSON lists all
_UNSAID = "differences are not tested for significance: reports hold no values by seed"


def sheets(found: Differences) -> list[Sheet]:
    """Cells, verdicts and criteria that differ, each where there are some."""
    changed = [one for one in found.cells if one.kind == "changed"]
    rest = [one for one in found.cells if one.kind != "changed"]
    made = []
    if changed:
        made.append(_changed(changed))
    if rest:
        made.append(_rest(rest))
    if found.verdicts:
        made.append(_words("verdicts", ("metric", "configuration"), found.verdicts))
    if found.criteria:
        made.append(_words("success criteria", ("criterion", "configuration"), found.criteria))
    return made


def sentences(found: Differences) -> list[str]:
    """What there is to say beside the sheets, the count first."""
    return [_count(found), *found.others, *_below(found), *found.context]


def _count(found: Differences) -> str:
    kinds = [one.kind for one in found.cells]
    changed, appeared, vanished = (
        kinds.count(kind) for kind in ("changed", "appeared", "vanished")
    )
    counts = [f"{changed} of {found.compared} cells differ"]
    counts += [f"{appeared} appeared"] * bool(appeared)
    counts += [f"{vanished} vanished"] * bool(vanished)
    for words, name in ((found.verdicts, "verdict"), (found.criteria, "success criteri")):
        if words:
            end = ("on", "a") if name.endswith("i") else ("", "s")
            several = len(words) != 1
            counts.append(f"{len(words)} {name}{end[several]} differ{'' if several else 's'}")
    return ", ".join(counts) if found else f"no difference in {found.compared} cells"


def _below(found: Differences) -> Iterator[str]:
    if found.below:
        yield (
            f"not counted: {found.below} that print alike or differ within the tolerance, their "
            f"means by {found.largest_below:.2g} at most; --tolerance 0 shows those of rates"
        )


def _changed(found: Sequence[CellDifference]) -> Sheet:
    return Sheet(
        kind="differences",
        title="cells that differ, the largest difference first",
        header=("metric", "group", "configuration", "first", "second", "difference"),
        left=3,
        rows=tuple(
            (
                Shown(one.metric),
                Shown(one.group),
                Shown(one.name),
                Shown(one.text(one.before)),
                Shown(one.text(one.after)),
                Shown(_apart(one), one.difference),
            )
            for one in found[:_MOST_ROWS]
        ),
        caption=(*_more(len(found)), "mean±std over seeds, rates in % and points", _UNSAID),
    )


def _apart(one: CellDifference) -> str:
    if one.difference is None:
        return "—"
    if not one.is_rate:
        return f"{one.difference:+.4g}"
    points = 100 * one.difference
    return f"{points:+.2f}" if abs(points) >= 0.005 else f"{points:+.1g}"


def _rest(found: Sequence[CellDifference]) -> Sheet:
    """A row for all groups of a configuration, with the last of them, which is their mean."""
    rows = [
        list(groups) for _, groups in groupby(found, lambda one: (one.kind, one.metric, one.name))
    ]
    return Sheet(
        kind="differences",
        title="cells that one report has alone",
        header=("metric", "groups", "configuration", "", "value"),
        left=4,
        rows=tuple(
            (
                Shown(groups[-1].metric),
                Shown(", ".join(one.group for one in groups)),
                Shown(groups[-1].name),
                Shown(groups[-1].kind),
                Shown(groups[-1].text(groups[-1].after or groups[-1].before)),
            )
            for groups in rows[:_MOST_ROWS]
        ),
        caption=tuple(_more(len(rows))),
    )


def _words(title: str, left: tuple[str, str], found: Sequence[WordDifference]) -> Sheet:
    return Sheet(
        kind="differences",
        title=f"{title} that differ",
        header=(*left, "first", "second"),
        left=4,
        rows=tuple(
            (
                Shown(one.what),
                Shown(one.name),
                Shown(one.before or "—"),
                Shown(one.after or "—"),
            )
            for one in found[:_MOST_ROWS]
        ),
        caption=(*_more(len(found)), *_reasons(found[:_MOST_ROWS])),
    )


def _reasons(found: Sequence[WordDifference]) -> Iterator[str]:
    for one in found:
        whys = (("first", one.before_why), ("second", one.after_why))
        if any(why for _, why in whys):
            yield f"{one.what}, {one.name}:"
            yield from (f"  {which}: {why}" for which, why in whys if why)


def _more(rows: int) -> list[str]:
    hidden = rows - _MOST_ROWS
    return [f"and {hidden} more; --format json lists all"] if hidden > 0 else []
