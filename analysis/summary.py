"""Everything a report says of one sweep, as data; ``render`` and ``page`` write it down."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from analysis import ablations as over_knobs
from analysis import frame as frames
from analysis import verdicts
from analysis.ablations import Ablation
from analysis.answers import answer
from analysis.best import marked
from analysis.criteria import Criterion, held
from analysis.runs import Cost, Differs, Run, costs, differences, origin
from analysis.tables import Table, main_table
from analysis.verdicts import Comparisons
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import parse_metric
from hdsweep.planned import Part, PlannedSweep
from hdsweep.store import Store
from hdsweep.strategy import criterion

__all__ = ["Ablation", "Comparisons", "Cost", "Criterion", "Differs", "Summary", "summarize"]


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
    ablations: tuple[Ablation, ...]
    comparisons: Comparisons
    criteria: tuple[Criterion, ...]
    costs: tuple[Cost, ...]
    differs: tuple[Differs, ...]
    counts: Mapping[str, int]
    provenance: Mapping[str, str] = field(default_factory=dict)
    imported: tuple[str, ...] = ()
    yaml: str = ""
    commands: tuple[str, ...] = ()

    def for_people(self) -> Summary:
        """Without the configurations of searches that people are not shown.

        Their comparisons and costs stay where tables show them.
        """
        tables = tuple(table.for_people() for table in self.tables)
        shown = {(row.arm, row.number) for table in tables for row in table.rows}
        rows = tuple(r for r in self.comparisons.rows if (r.arm, r.number) in shown)
        return replace(
            self,
            tables=tables,
            comparisons=replace(self.comparisons, rows=rows),
            criteria=tuple(one for one in self.criteria if (one.arm, one.number) in shown),
            costs=tuple(one for one in self.costs if (one.arm, one.number) in shown),
        )


def summarize(
    store: Store,
    sweep: PlannedSweep,
    metrics: Sequence[str] = (),
    *,
    ddof: int = 1,
    part: Part | None = None,
    baseline: str | None = None,
    margins: Mapping[str, float] | None = None,
    knobs: Sequence[str] = (),
    images: bool = False,
    per_group: bool = True,
    ablate: bool = True,
) -> Summary:
    """Read a sweep and judge it.

    Args:
        store: Where its records are.
        sweep: What was planned.
        metrics: As ``analysis.frame.load`` takes them; by default those of the sweep.
        ddof: Of standard deviations in tables.
        part: Only configurations of that part.
        baseline: In place of the sweep's own.
        margins: Metric -> difference that does not matter, over those of the sweep.
        knobs: One or two that ablation tables are made over; by default as the arms suggest.
        images: Whether to ask how far the choice of test items may explain a difference, from
            stored predictions.
        per_group: Whether to compare in each group too; of many configurations that takes longer.
        ablate: Whether to make ablation tables.

    Raises:
        SpecError: What is not in the sweep was asked for, or a margin of what is not reported.
        StoreError: A record cannot be read.
    """
    metrics = list(metrics or sweep.metrics)
    asked = [found.metric for text in sweep.expect if (found := criterion(text))]
    judged = list(dict.fromkeys([*metrics, *sweep.metrics]))
    for name in margins or {}:
        if _key(name) not in (known := dict.fromkeys(_key(one) for one in judged)):
            raise SpecError(
                f"margin of '{name}': the report has no such metric{did_you_mean(name, known)}"
            )
    frame, runs = frames.read(store, sweep, list(dict.fromkeys([*judged, *asked])), part=part)
    directions = _directions(sweep)
    tables = tuple(
        marked(_directed(main_table(frame, name, ddof), directions), frame) for name in metrics
    )
    compared = frame[frame["metric"].isin({_key(name) for name in judged})]
    # A group that is asked for is judged among all of them, as it is in every report.
    if not per_group and all(parse_metric(name, (name,)).group is None for name in judged):
        compared = compared[compared["group"] == frames.MEAN]
    comparisons = verdicts.compare(
        compared,
        baseline=sweep.baseline if baseline is None else baseline,
        margins={**sweep.margins, **{_key(name): m for name, m in (margins or {}).items()}},
        directions=directions,
        store=store if images else None,
        checked=baseline is None,
    )
    # Tests are corrected for all metrics of the sweep, however few of them are looked at.
    shown = {_key(name) for name in metrics}
    rows = tuple(row for row in comparisons.rows if row.metric in shown)
    comparisons = replace(comparisons, rows=rows)
    cells = [cell for cell in sweep.cells if part is None or cell.part == part]
    criteria = held(frame, sweep.expect)
    differs = differences(cells, runs)
    counts = _counts(frame)
    yaml = _kept_yaml(store, sweep)
    return Summary(
        sweep=sweep.name,
        question=sweep.question,
        answer=answer(comparisons, criteria, differs, counts, metrics),
        frame=frame,
        tables=tables,
        ablations=over_knobs.ablations(tables, frame, knobs) if ablate or knobs else (),
        comparisons=comparisons,
        criteria=criteria,
        costs=costs(cells, runs),
        differs=differs,
        counts=counts,
        provenance=origin(runs.values()),
        imported=tuple(dict.fromkeys(run.imported for run in runs.values() if run.imported)),
        yaml=yaml,
        commands=_commands(sweep, runs),
    )


def _key(name: str) -> str:
    """A metric without its group."""
    return parse_metric(name, (name,)).key


def _directions(sweep: PlannedSweep) -> dict[str, bool]:
    """Scalar -> whether larger is better, as far as the sweep says what it seeks or expects."""
    found: dict[str, bool] = {}
    for search in sweep.searches:
        found |= dict(zip(search.objectives, search.maximize, strict=True))
    for text in sweep.expect:
        if asked := criterion(text):
            found[asked.metric] = asked.at_least
    return {
        name: up for name, up in found.items() if parse_metric(name, (name,)).definition is None
    }


def _directed(table: Table, directions: Mapping[str, bool]) -> Table:
    if table.larger_is_better is not None or table.metric not in directions:
        return table
    return replace(table, larger_is_better=directions[table.metric])


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    """Of planned trials, each once."""
    trials = frame.drop_duplicates(["cell", "seed"])
    # A trial that none is chosen for yet has no id and is planned all the same.
    named = trials[trials["trial"] != ""].drop_duplicates("trial")
    every = pd.concat([named, trials[trials["trial"] == ""]])
    found = every["status"].value_counts(sort=False)
    return {str(status): int(n) for status, n in found.items() if n}


def _kept_yaml(store: Store, sweep: PlannedSweep) -> str:
    path = store.root / "sweeps" / sweep.name / "sweep.yaml"
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # it was removed; the records stand without it


def _commands(sweep: PlannedSweep, runs: Mapping[str, Run]) -> tuple[str, ...]:
    if any(run.imported for run in runs.values()):
        return ()
    commits = {run.facts["commit"] for run in runs.values() if "commit" in run.facts}
    clean = [commit for commit in commits if " " not in commit]
    checkout = [f"git checkout {clean[0]}"] if len(commits) == 1 and clean else []
    name = shlex.quote(sweep.name)
    return (
        *checkout,
        f"hdsweep run {name}.yaml  # the file as it was run",
        f"hdsweep report {name}",
    )
