"""What people are shown, as rows of short texts: one model that every format writes down.

A ``Sheet`` is made of a table, comparisons, criteria or costs once; terminal, Markdown, LaTeX and
the page differ in how they write it, never in what it says. Texts are as they are meant: each
format escapes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["results", "comparison", "ablation", "criteria", "costs", "differences", "claims"]

BEST = "*"
"""Follows the best of a column where bold may not be seen."""

DAGGER = "†"
"""Follows what is not significantly different from the best of its column."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell that is read by people.

    Args:
        text: What it says, not escaped; without ``mark``.
        value: What it is sorted by; None where there is nothing to sort by but the text.
        best: Whether it is set in bold.
        mark: Follows the text, raised where a format can: a dagger.
        hint: More of it, in words; for formats that can show it on demand.
    """

    text: str
    value: float | None = None
    best: bool = False
    mark: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table that is read by people.

    Args:
        kind: What it shows.
        title: One line.
        header: Of each column.
        left: How many columns, from the first, name the row.
        rows: Cells, as many as the header has columns.
        caption: Lines below it; what starts with two spaces belongs to the line before.
        metric: Canonical name of the metric it is about; empty where it is about several.
    """

    kind: Kind
    title: str
    header: tuple[str, ...]
    left: int
    rows: tuple[tuple[Shown, ...], ...]
    caption: tuple[str, ...] = ()
    metric: str = ""


def precision(value: float, is_rate: bool) -> tuple[float, int]:
    """How a value is printed: what it is multiplied by, and its decimals.

    Args:
        value: To print.
        is_rate: Rates are in percent with two decimals, others have four significant digits.
    """
    return (100.0, 2) if is_rate else (1.0, significant(value))


def significant(value: float) -> int:
    """Decimals that show four significant digits, whatever the unit."""
    return min(max(3 - math.floor(math.log10(abs(value))), 0), 12) if value else 2
