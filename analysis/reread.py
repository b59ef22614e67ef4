"""Reports as ``hdsweep report --format json`` wrote them, checked as they are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.tables import Cell, Missing
from hdsweep.errors import DataError
from hdsweep.trial import FORMAT

_MOST_BYTES = 2**30


class _Read(BaseModel):
    """A part of a report; keys that nobody compares are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, strict=True)


class _Head(_Read):
    format: int


class _Missing(_Read):
    seed: int
    trial: str
    status: str
    reason: str


class CellRead(_Read):
    """A cell of a table."""

    mean: float | None
    std: float | None
    n: int = Field(ge=0)
    planned: int = Field(ge=0)
    ddof: int = Field(ge=0, le=1)
    missing: list[_Missing]

    def cell(self, ddof: int) -> Cell:
        """As in a table, its spread by another convention where that is asked."""
        std = self.std
        if std is not None and ddof != self.ddof and self.n > 1:
            std *= math.sqrt((self.n - self.ddof) / (self.n - ddof))
        missing = tuple(Missing(m.seed, m.trial, m.status, m.reason) for m in self.missing)
        return Cell(self.mean, std, self.n, self.planned, ddof, missing)


class RowRead(_Read):
    """A configuration of a table."""

    arm: str
    knobs: dict[str, Any]
    cells: dict[str, CellRead]
    number: int | None = None
    part: str = "run"


class TableRead(_Read):
    """The table of a metric."""

    metric: str
    definition: str
    ddof: int = Field(ge=0, le=1)
    is_rate: bool
    rows: list[RowRead]


class Comparison(_Read):
    """What was said of a configuration against the baseline."""

    metric: str
    group: str
    arm: str
    knobs: dict[str, Any]
    number: int | None = None
    verdict: str
    why: str


class Criterion(_Read):
    """A success criterion, held against a configuration."""

    text: str
    arm: str
    knobs: dict[str, Any]
    number: int | None = None
    met: str


class Report(_Read):
    """What of a report is compared."""

    format: int
    tables: list[TableRead]
    sweep: str = ""
    baseline: str | None = None
    alpha: float | None = None
    comparisons: list[Comparison] = []
    criteria: list[Criterion] = []
    provenance: dict[str, Any] = {}


def read_report(path: Path) -> Report:
    """Read what ``hdsweep report --format json`` wrote.

    Raises:
        DataError: It cannot be read, or is no such report.
    """
    mend = "write one with hdsweep report SWEEP --format json --out FILE.json"
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path}: is larger than 1 GiB, and no report that can be compared")
    try:
        head = _Head.model_validate_json(content)
        if head.format != FORMAT:
            raise DataError(
                f"{path}: is a report of format {head.format}, and this version reads {FORMAT}; "
                "write it again from its store"
            )
        found = Report.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise DataError(f"{path}: is not JSON: {first['ctx']['error']}; {mend}") from None
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: is no report of hdsweep: {place}: {first['msg'].lower()}; {mend}"
        ) from None
    if not any(row.cells for table in found.tables for row in table.rows):
        raise DataError(f"{path}: has no table with a cell to compare; {mend}")
    return found
