"""Everything a report says of one sweep, as data; ``render`` and ``page`` write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from analysis.tables import Table
from analysis.verdicts import Comparisons

Met = Literal["met", "not met", "open"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A success criterion of the sweep file, held against one configuration.

    Args:
        text: As in the file: ``tpr@1[domain=C] >= 0.80``.
        arm, knobs, number: The configuration.
        mean: Over its seeds; None where there is none.
        ci_low, ci_high: 95 % interval of the mean over seeds, by Student's t; None for n < 2.
        n, planned: Seeds that have a value, and that were planned.
        met: ``open`` while a planned seed is missing.
        sure: Whether the whole interval lies on the side on which the mean is.
    """

    text: str
    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    mean: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    planned: int
    met: Met
    sure: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """What one configuration took, as medians over its trials with a record, or sums.

    Args:
        arm, knobs, number: The configuration.
        n, planned: Trials with a record, and planned.
        wall_s: Sum over trials, of the attempts that finished.
        gpu_hours: Sum of wall time times GPUs held; None where records do not say how many.
        scalars: A method's own measurements of cost (latency_ms, memory_mb, speed_up, ...), median
            over its trials that are ok.
    """

    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    n: int
    planned: int
    wall_s: float
    gpu_hours: float | None
    scalars: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Differs:
    """Something other than the knobs in which configurations or trials differ.

    Args:
        what: ``max_steps``, ``data``, ``git commit``, ``source``, ``torch``, ``gpu`` ...
        values: Value as text -> names of the arms (or ``arm seed=1``) that have it.
        serious: Whether it may explain a difference of results: steps, data, method version,
            source, commit; a different host is not.
    """

    what: str
    values: Mapping[str, tuple[str, ...]]
    serious: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """A report.

    Args:
        sweep: Its name.
        question: In the author's words.
        answer: The verdicts in a few sentences, for people.
        frame: What everything below was made from.
        tables: The main ones, one per metric.
        ablations: Over one or two knobs.
        comparisons: With the baseline.
        criteria: By criterion, then configuration.
        costs: By configuration.
        differs: Configuration differences beyond the knobs that are swept.
        counts: Status -> planned trials.
        provenance: ``what`` -> text; git commit, packages, machines, when.
        imported: Names of files that records were imported from.
        yaml: The sweep file as it was last run.
        commands: How to reproduce, shell lines.
    """

    sweep: str
    question: str
    answer: tuple[str, ...]
    frame: pd.DataFrame
    tables: tuple[Table, ...]
    ablations: tuple[Table, ...]
    comparisons: Comparisons
    criteria: tuple[Criterion, ...]
    costs: tuple[Cost, ...]
    differs: tuple[Differs, ...]
    counts: Mapping[str, int]
    provenance: Mapping[str, str] = field(default_factory=dict)
    imported: tuple[str, ...] = ()
    yaml: str = ""
    commands: tuple[str, ...] = ()
