"""What differs between two reports of the same question: cells, verdicts and success criteria.

Reports are those that ``hdsweep report --format json`` writes, so two versions of the code, two
machines or two years can be compared where one of the stores is gone. Nothing is tested for
significance: a report holds means and spreads, not the trials by seed that a test would need.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analysis.reread import Report, RowRead
from analysis.tables import Cell
from analysis.tabulated import cell_text
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.identity import canonical_json
from hdsweep.metrics import parse_metric
from hdsweep.planned import cell_name

Kind = Literal["changed", "appeared", "vanished"]

_NOISE = 1e-9  # relative; the same numbers added up in another order


# --- what differs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellDifference:
    """A cell of a table that is not the same in both reports.

    Args:
        kind: ``appeared`` is in the second report alone, ``vanished`` in the first alone.
        metric: Without group.
        is_rate: Whether it is printed in percent.
        arm, knobs, number: The configuration.
        part: Of the sweep: run, select or confirm.
        group: Column of the table.
        before, after: The cell; spreads of both by the convention of the first report.
        difference: Of the means, ``after - before``, where both have one.
    """

    kind: Kind
    metric: str
    is_rate: bool
    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    part: str
    group: str
    before: Cell | None
    after: Cell | None
    difference: float | None

    @property
    def name(self) -> str:
        """The configuration, for people."""
        part = f" ({self.part})" if self.part != "run" else ""
        return cell_name(self.arm, self.knobs, self.number) + part

    def text(self, cell: Cell | None) -> str:
        """One of the cells, for people."""
        return "" if cell is None else cell_text(cell, self.is_rate)


@dataclass(frozen=True, slots=True)
class WordDifference:
    """A verdict, or whether a criterion is met, that is not the same in both reports.

    Args:
        kind: As of cells.
        what: Metric and group of a verdict, or the criterion as the sweep file states it.
        name: The configuration, for people.
        before, after: In a word; empty where a report has none.
        before_why, after_why: Of a verdict, in words.
    """

    kind: Kind
    what: str
    name: str
    before: str
    after: str
    before_why: str = ""
    after_why: str = ""


@dataclass(frozen=True, slots=True)
class Differences:
    """All that differs.

    Args:
        cells: The largest first: those that lost or gained a mean, then rates, then scalars by
            their relative difference; what appeared and vanished last.
        compared: How many cells are in both reports.
        verdicts: In the order of the reports.
        criteria: In the order of the reports.
        others: What else makes reports differ: definitions, baselines; a sentence each.
        below: How many cells differ by less than was asked for.
        largest_below: The largest difference of means among them, in the unit of its metric.
        context: What may explain differences and is none: code, packages; a sentence each.
    """

    cells: tuple[CellDifference, ...]
    compared: int
    verdicts: tuple[WordDifference, ...]
    criteria: tuple[WordDifference, ...]
    others: tuple[str, ...]
    below: int
    largest_below: float
    context: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.cells or self.verdicts or self.criteria or self.others)


def differences(
    before: Report,
    after: Report,
    *,
    tolerance: float | None = None,
    tolerances: Mapping[str, float] | None = None,
) -> Differences:
    """Compare two reports cell by cell.

    A configuration is the same in both when its arm, knobs and part of the sweep are. Cells differ
    when they print differently or count other seeds; with a tolerance, when means or standard
    deviations differ by more than it.

    Args:
        before: The first report.
        after: The second.
        tolerance: For rates, as a fraction; None compares what is printed.
        tolerances: Metric without group -> tolerance in its unit, in place of ``tolerance``.

    Raises:
        SpecError: A tolerance for a metric that neither report has.
    """
    named = tolerances or {}
    ddof = before.tables[0].ddof if before.tables else 1
    old, new = _cells(before, ddof), _cells(after, ddof)
    known = {key[0] for key in (*old, *new)}
    for metric in named:
        if metric not in known:
            raise SpecError(f"--tolerance: no report has '{metric}'{did_you_mean(metric, known)}")
    found, below = [], []
    for key in (*old, *(key for key in new if key not in old)):
        one = _difference(key[0], old.get(key), new.get(key))
        if one.kind == "changed":
            allowed = named.get(one.metric, tolerance if one.is_rate else None)
            if not _differs(one, allowed):
                if one.difference:
                    below.append(abs(one.difference))
                continue
        found.append(one)
    both = {key[:2] for key in old} & {key[:2] for key in new}
    return Differences(
        cells=tuple(sorted(found, key=_size, reverse=True)),
        compared=len(old.keys() & new.keys()),
        verdicts=tuple(_words(_verdicts(before, both), _verdicts(after, both))),
        criteria=tuple(_words(_criteria(before), _criteria(after))),
        others=tuple(_others(before, after)),
        below=len(below),
        largest_below=max(below, default=0.0),
        context=tuple(_context(before, after)),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A cell of a report, and where it is."""

    is_rate: bool
    row: RowRead
    group: str
    cell: Cell


_Key = tuple[str, bytes, str, int, str]  # metric, configuration, part, which of the same, group


def _cells(report: Report, ddof: int) -> dict[_Key, _Found]:
    """Every cell; a metric that is asked for in one group is the same as in all."""
    found: dict[_Key, _Found] = {}
    for table in report.tables:
        metric = _without_group(table.metric)
        seen: Counter[tuple[bytes, str]] = Counter()
        for row in table.rows:
            name = _configuration(row.arm, row.knobs)
            place = seen[name, row.part]
            seen[name, row.part] += 1
            for group, cell in row.cells.items():
                key = (metric, name, row.part, place, group)
                found.setdefault(key, _Found(table.is_rate, row, group, cell.cell(ddof)))
    return found


def _without_group(metric: str) -> str:
    try:
        return parse_metric(metric, (metric,)).key
    except SpecError:  # of a version that has more metrics
        return metric


def _configuration(arm: str, knobs: Mapping[str, Any]) -> bytes:
    """Names it in both reports: ``k: 1`` and ``k: 1.0`` are one."""
    try:
        return canonical_json([arm, knobs])
    except (TypeError, ValueError):  # NaN
        return repr((arm, sorted(knobs.items()))).encode()


def _difference(metric: str, old: _Found | None, new: _Found | None) -> CellDifference:
    """Of a cell that one report has, or both."""
    kind: Kind = "vanished" if new is None else "appeared" if old is None else "changed"
    [found, *_] = [one for one in (new, old) if one is not None]
    before = None if old is None else old.cell
    after = None if new is None else new.cell
    apart = None
    if before and after and before.mean is not None and after.mean is not None:
        apart = after.mean - before.mean
    row = found.row
    return CellDifference(
        kind, metric, found.is_rate, row.arm, row.knobs, row.number, row.part, found.group,
        before, after, apart,
    )  # fmt: skip


def _differs(one: CellDifference, tolerance: float | None) -> bool:
    """Whether two cells are told apart."""
    before, after = one.before, one.after
    if before is None or after is None or before.status != after.status:
        return True
    if (before.n, before.planned) != (after.n, after.planned):
        return True
    pairs = ((before.mean, after.mean), (before.std, after.std))
    if any((old is None) != (new is None) for old, new in pairs):
        return True
    both = [(old, new) for old, new in pairs if old is not None and new is not None]
    if all(math.isclose(old, new, rel_tol=_NOISE, abs_tol=_NOISE**2) for old, new in both):
        return False
    if tolerance is None:
        return one.text(before) != one.text(after)
    return any(abs(new - old) > tolerance * (1 + _NOISE) for old, new in both)


def _size(one: CellDifference) -> tuple[int, float]:
    if one.before is None or one.after is None:
        return 0, 0.0
    if one.difference is None:
        return 3, 0.0
    if one.is_rate:
        return 2, abs(one.difference)
    scale = max(abs(one.before.mean or 0.0), abs(one.after.mean or 0.0))
    return 1, abs(one.difference) / scale if scale else 0.0


# --- words that differ ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Word:
    """A verdict or the state of a criterion; ``shared`` if both reports have what it is about."""

    what: str
    name: str
    word: str
    why: str = ""
    shared: bool = True


def _verdicts(report: Report, both: set[tuple[str, bytes]]) -> dict[object, _Word]:
    seen: Counter[object] = Counter()
    found: dict[object, _Word] = {}
    for one in report.comparisons:
        name = _configuration(one.arm, one.knobs)
        key = (one.metric, one.group, name)
        what, named = f"{one.metric} {one.group}", cell_name(one.arm, one.knobs, one.number)
        shared = (one.metric, name) in both
        found[key, seen[key]] = _Word(what, named, one.verdict, one.why, shared)
        seen[key] += 1
    return found


def _criteria(report: Report) -> dict[object, _Word]:
    seen: Counter[object] = Counter()
    found: dict[object, _Word] = {}
    for one in report.criteria:
        key = (one.text, _configuration(one.arm, one.knobs))
        named = cell_name(one.arm, one.knobs, one.number)
        found[key, seen[key]] = _Word(one.text, named, one.met)
        seen[key] += 1
    return found


def _words(old: Mapping[object, _Word], new: Mapping[object, _Word]) -> Iterator[WordDifference]:
    for key in (*old, *(key for key in new if key not in old)):
        before, after = old.get(key), new.get(key)
        if before and after:
            if before.word != after.word:
                yield WordDifference(
                    "changed", before.what, before.name, before.word, after.word, before.why,
                    after.why,
                )  # fmt: skip
        elif before and before.shared:  # else its cells say that it is gone
            yield WordDifference(
                "vanished", before.what, before.name, before.word, "", before_why=before.why
            )
        elif after and after.shared:
            yield WordDifference(
                "appeared", after.what, after.name, "", after.word, after_why=after.why
            )


# --- what else there is to say --------------------------------------------------------------------


def _others(before: Report, after: Report) -> Iterator[str]:
    words = [{_without_group(t.metric): t for t in report.tables} for report in (before, after)]
    for metric in words[0].keys() & words[1].keys():
        old, new = words[0][metric], words[1][metric]
        if old.definition != new.definition:
            yield (
                f"{metric} is defined otherwise: '{old.definition}' became '{new.definition}'; "
                "its values are not of one quantity"
            )
    if before.baseline != after.baseline:
        yield (
            f"the baseline was {before.baseline or 'none'} and is {after.baseline or 'none'}, so "
            "verdicts are not about the same pairs"
        )
    if before.alpha != after.alpha and before.comparisons and after.comparisons:
        yield f"the level of tests was {before.alpha} and is {after.alpha}"


def _context(before: Report, after: Report) -> Iterator[str]:
    if before.sweep != after.sweep:
        yield f"the sweep was {before.sweep or 'not named'} and is {after.sweep or 'not named'}"
    ddofs = [{table.ddof for table in report.tables} for report in (before, after)]
    if all(ddofs) and ddofs[0] != ddofs[1]:
        yield f"the second report has another ddof; its spreads are given for {min(ddofs[0])} here"
    for what in dict.fromkeys((*before.provenance, *after.provenance)):
        old, new = before.provenance.get(what), after.provenance.get(what)
        if old != new:
            yield f"{what}: {_told(old)} -> {_told(new)}"


def _told(value: Any) -> str:
    return "not told" if value is None else str(value)
