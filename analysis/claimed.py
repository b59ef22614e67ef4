"""Claims for people, as sheets; and for programs, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from itertools import groupby
from typing import Any

from analysis.cells import VERDICTS, Claim
from analysis.claims import Checked
from analysis.rounding import decimals
from analysis.sheets import Sheet, Shown
from analysis.theirs import Theirs
from hdsweep.trial import FORMAT


def sheets_of(checked: Checked, *, all_cells: bool = True) -> list[Sheet]:
    """A sheet of claims, unless it is empty, and one of other papers' results if there are any.

    Args:
        checked: What was found.
        all_cells: Whether cells that hold are shown too.
    """
    found = []
    if all_cells or any(claim.verdict != "holds" for claim in checked.claims):
        found = [_claims(checked, all_cells)] if checked.claims else []
    return [*found, *([_theirs(checked.theirs)] if checked.theirs else [])]


def title(checked: Checked) -> str:
    """Which file was held against what, and all its numbers in one sentence."""
    return f"{checked.file} against the records of {checked.sweep}: {said(checked)}"


def said(checked: Checked) -> str:
    """All numbers in one sentence."""
    counts = checked.counts
    total = len(checked.claims)
    held, *others = VERDICTS
    told = [f"{counts[verdict]} {verdict}" for verdict in others if counts[verdict]]
    plural = "" if total == 1 else "s"
    return f"{counts[held]} of {total} printed number{plural} hold" + "".join(
        f", {text}" for text in told
    )


def _claims(checked: Checked, all_cells: bool) -> Sheet:
    cells = [
        list(of_cell)
        for _, of_cell in groupby(checked.claims, key=lambda c: (c.line, c.row, c.column))
    ]
    shown = [cell for cell in cells if all_cells or any(c.verdict != "holds" for c in cell)]
    left_out = len(cells) - len(shown)
    return Sheet(
        kind="claims",
        title=title(checked),
        header=("line", "row", "column", "verdict", "printed", "recomputed", "why"),
        left=7,
        rows=tuple(
            (
                Shown(str(cell[0].line), cell[0].line),
                Shown(cell[0].row),
                Shown(cell[0].column),
                _verdict(cell),
                Shown("±".join(c.printed for c in cell)),
                Shown("±".join(_recomputed(c) for c in cell)),
                Shown("; ".join(dict.fromkeys(_why(cell)))),
            )
            for cell in shown
        ),
        caption=(
            *([f"{left_out} cells hold and are not shown"] if left_out else []),
            *checked.notes,
        ),
    )


def _verdict(cell: Sequence[Claim]) -> Shown:
    """The worst of a cell, and of what it is said."""
    worst = max((claim.verdict for claim in cell), key=VERDICTS.index)
    if any(claim.verdict == "wrong" for claim in cell):
        worst = "wrong"
    which = [claim.what for claim in cell if claim.verdict == worst]
    where = f" ({which[0]})" if len(which) < len(cell) else ""
    return Shown(worst + where, VERDICTS.index(worst), best=worst == "wrong")


def _recomputed(claim: Claim) -> str:
    if claim.recomputed is None:
        return "—"
    return f"{claim.recomputed:.{min(decimals(Decimal(claim.printed)) + 2, 12)}f}"


def _why(cell: Sequence[Claim]) -> Iterator[str]:
    several = len({claim.why for claim in cell}) > 1
    for claim in cell:
        if claim.why:
            yield f"{claim.what}: {claim.why}" if several and len(cell) > 1 else claim.why


def _theirs(found: Sequence[Theirs]) -> Sheet:
    rows = []
    for one in found:
        test = one.found
        interval = "—"
        if test is not None and test.ci_low is not None and test.ci_high is not None:
            interval = f"[{test.ci_low:.2f}, {test.ci_high:.2f}]"
        rows.append(
            (
                Shown(str(one.line), one.line),
                Shown(one.row),
                Shown(one.column),
                Shown(_summary(one.mean, one.std, one.n)),
                Shown(one.configuration),
                Shown(_summary(one.ours_mean, one.ours_std, one.ours_n)),
                Shown("—" if test is None else f"{test.difference:+.2f}"),
                Shown(interval),
                Shown("—" if test is None or test.p is None else f"{test.p:.2g}"),
                Shown(one.why),
            )
        )
    return Sheet(
        kind="claims",
        title="results of other papers, unpaired: other seeds, and maybe other data and code",
        header=(
            "line", "row", "column", "theirs", "against", "ours", "ours - theirs", "95 % CI", "p",
            "why no test",
        ),
        left=10,
        rows=tuple(rows),
        caption=(
            "Welch's test of two means from what is printed, each row by itself",
            "what follows ± in theirs is taken as a sample standard deviation (ddof = 1)",
        ),
    )  # fmt: skip


def _summary(mean: float | None, std: float | None, n: int | None) -> str:
    if mean is None:
        return "—"
    spread = "" if std is None else f"±{std:.4g}"
    return f"{mean:.6g}{spread}" + ("" if n is None else f" (n={n})")


def json_of(checked: Checked) -> dict[str, Any]:
    """One object; keys are only ever added."""
    return {
        "format": FORMAT,
        "file": checked.file,
        "sweep": checked.sweep,
        "counts": checked.counts,
        "ddof": {str(ddof): count for ddof, count in checked.fits.items()},
        "claims": [asdict(claim) for claim in checked.claims],
        "unpaired": [asdict(one) for one in checked.theirs],
        "notes": list(checked.notes),
    }
