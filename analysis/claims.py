"""A published table held against the records that it is said to come from, number by number.

Means and standard deviations are recomputed from one value per seed. ``wrong`` is said only of what
neither rounding, nor either divisor of the standard deviation, nor the digits of imported records
can explain; what the records cannot decide is said to be not recomputable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import frame as frames
from analysis.cells import VERDICTS, Claim, Verdict, as_most, claims_of, notes_on
from analysis.matching import Place, configuration, places
from analysis.naming import Named, Names, columns_of, metric_in, metric_of, short
from analysis.pairing import Configuration, configurations
from analysis.printed import PrintedTable, read_tables
from analysis.recomputed import Recomputed
from analysis.theirs import Theirs, beside
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import parse_metric
from hdsweep.planned import PlannedSweep
from hdsweep.store import Store

_SHOWN_NAMES = 8
_SEEDS = {"seed", "randomseed", "replicate"}
"""Columns of a file that has a row per seed, in short."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a table is to be read.

    Args:
        named: What its names mean.
        percent: Whether its rates are in percent; by default what fits the records better.
        seeds: Only these; by default all of the sweep.
        theirs: Label of a row with another paper's results -> a configuration of ours.
        n: Of how many runs such results are the mean, where the table does not say it.
    """

    named: Named = field(default_factory=Named)
    percent: bool | None = None
    seeds: tuple[int, ...] = ()
    theirs: Mapping[str, str] = field(default_factory=dict)
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """All that a file claims.

    Args:
        file: Its name.
        sweep: That it was held against.
        claims: In the order of the file; mean and standard deviation of a cell follow each other.
        theirs: Results of other papers.
        fits: Divisor -> how many of the printed standard deviations hold with it.
        notes: What else a reader must know, a sentence each.
    """

    file: str
    sweep: str
    claims: tuple[Claim, ...]
    theirs: tuple[Theirs, ...]
    fits: Mapping[int, int]
    notes: tuple[str, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many numbers hold and so on."""
        found = Counter(claim.verdict for claim in self.claims)
        return {verdict: found[verdict] for verdict in VERDICTS}


def check(store: Store, sweep: PlannedSweep, path: Path, asked: Asked | None = None) -> Checked:
    """Hold every number that a file prints against the records of a sweep.

    Args:
        store: Where the records are.
        sweep: What was planned, or imported.
        path: A table, or several, as Markdown, LaTeX or CSV.
        asked: How it is to be read.

    Raises:
        DataError: The file cannot be read or holds no table.
        SpecError: Nothing in it has a name that the sweep knows, or an option names what there is
            not.
        StoreError: A record cannot be read.
    """
    asked = asked or Asked()
    tables = read_tables(path)
    names = _names(store, sweep, asked)
    read = [(table, columns_of(table, names, asked.named)) for table in tables]
    known_columns = [(table, columns) for table, columns in read if columns is not None]
    if not known_columns:
        raise _no_column(path, tables[0], names)
    metrics = _metrics([table for table, _ in known_columns], names, asked)
    frame, runs = frames.read(store, sweep, metrics)
    if asked.seeds:
        frame = _of_seeds(frame, asked.seeds)
    known = configurations(frame)
    theirs = {
        short(label): configuration(name, known)
        for label, name in asked.theirs.items()
        if short(label)
    }
    rows = {**asked.named.rows, **dict.fromkeys(asked.theirs, known[0].name)}
    named = replace(asked.named, rows=rows)
    for told in asked.named.rows.values():
        if told != "-":
            configuration(told, known)
    _refuse_unmatched(path, tables, asked)
    found = [
        place
        for table, columns in known_columns
        for place in places(table, columns, names, known, named)
    ]
    passed = [table.line for table, columns in read if columns is None]
    notes = [_passed_over(passed)] if passed else []
    for table, columns in known_columns:
        if _SEEDS & {short(label) for label in columns.ignored}:
            raise SpecError(
                f"{path}:{table.line}: has a row per seed, and claims are about means over seeds; "
                "hdsweep import reads such a file"
            )
        if columns.ignored:
            listed = ", ".join(columns.ignored[:_SHOWN_NAMES])
            notes.append(f"line {table.line}: columns that were not read: {listed}")
    values = Recomputed.of(store, frame, runs)
    own = [place for place in found if short(place.row) not in theirs]
    _refuse_unknown(path, own, found, known)
    scales = _scales(found, values, names, asked)
    claims = list(claims_of(own, values, scales))
    fits = {
        ddof: sum(c.verdict == "holds" and ddof in c.ddof for c in claims if c.what == "std")
        for ddof in (1, 0)
    }
    claims = [as_most(claim, fits) for claim in claims]
    notes += notes_on(claims, fits)
    return Checked(
        file=path.name,
        sweep=sweep.name,
        claims=tuple(claims),
        theirs=tuple(
            beside(place, theirs[short(place.row)], values, scales.get(place.metric, 1.0), asked.n)
            for place in found
            if short(place.row) in theirs and place.printed.mean is not None
        ),
        fits=fits,
        notes=tuple(notes),
    )


# --- what is asked for ----------------------------------------------------------------------------


def _names(store: Store, sweep: PlannedSweep, asked: Asked) -> Names:
    plain: list[str] = []
    scalars: list[str] = []
    for text in sweep.metrics:
        found = parse_metric(text, (text,))
        (scalars if found.definition is None else plain).append(found.key)
    record = next(
        (
            record
            for cell in sweep.cells
            for trial in cell.trials.values()
            if trial and (record := store.record(trial)) is not None and record.status == "ok"
        ),
        None,
    )
    scalars += [] if record is None else list(record.scalars)
    names = Names(
        groups=sweep.groups,
        knobs=list(dict.fromkeys(knob for cell in sweep.cells for knob in cell.knobs)),
        scalars=list(dict.fromkeys(scalars)),
        metrics=list(dict.fromkeys(plain)),
    )
    if asked.named.metric and metric_of(asked.named.metric, names) is None:
        parse_metric(asked.named.metric, names.scalars)  # raises, and says what it may be
    return names


def _no_column(path: Path, table: PrintedTable, names: Names) -> SpecError:
    printed = ", ".join(f"'{' '.join(column)}'" for column in table.columns[:_SHOWN_NAMES])
    known = ", ".join([*names.groups, *names.metrics][:_SHOWN_NAMES])
    return SpecError(
        f"{path}:{table.line}: no column is a metric or a group of the sweep ({known}), found "
        f"{printed}; say what one is by --map 'LABEL=WHAT'"
    )


def _passed_over(lines: Sequence[int]) -> str:
    where = ", ".join(map(str, lines[:_SHOWN_NAMES]))
    more = ", ..." if len(lines) > _SHOWN_NAMES else ""
    what = "a table" if len(lines) == 1 else f"{len(lines)} tables"
    return f"passed over {what} without a column that is a metric or a group: line {where}{more}"


def _metrics(tables: Sequence[PrintedTable], names: Names, asked: Asked) -> list[str]:
    """Those that the tables print."""
    found: dict[str, None] = {}
    for table in tables:
        columns = columns_of(table, names, asked.named)
        told: list[str | None] = [metric_in(table.title, names)]
        if columns is not None:
            told += [metric for metric, _ in columns.values.values()]
            if (place := columns.roles.get("metric")) is not None:
                written = {row.cells[place].strip() for row in table.rows}
                told += [one[0] for text in sorted(written) if (one := metric_of(text, names))]
        found |= dict.fromkeys(metric for metric in told if metric)
    if asked.named.metric and (one := metric_of(asked.named.metric, names)):
        found[one[0]] = None
    return list(found) or [*names.metrics] or [*names.scalars]


def _of_seeds(frame: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    there = set(frame["seed"].tolist())
    for seed in seeds:
        if seed not in there:
            listed = ", ".join(map(str, sorted(there)[:_SHOWN_NAMES]))
            raise SpecError(f"--seeds: no seed {seed} in the sweep; it has {listed}")
    return frame[frame["seed"].isin(seeds)]


def _refuse_unmatched(path: Path, tables: Sequence[PrintedTable], asked: Asked) -> None:
    """A label that is nowhere in the file is a slip."""
    rows = [cell for table in tables for row in table.rows for cell in row.cells[:3]]
    rows += [" ".join(row.cells[:2]) for table in tables for row in table.rows]
    labels = [name for table in tables for column in table.columns for name in column]
    labels += [" ".join(column) for table in tables for column in table.columns]
    for option, told, printed in (
        ("--map", asked.named.columns, labels),
        ("--rows", asked.named.rows, rows),
        ("--published", asked.theirs, rows),
    ):
        known = {short(text) for text in printed}
        for label in told:
            if short(label) not in known:
                near = did_you_mean(label, {text for text in printed if text})
                raise SpecError(f"{option} '{label}': {path} prints no such label{near}")


def _refuse_unknown(
    path: Path, own: Sequence[Place], found: Sequence[Place], known: Sequence[Configuration]
) -> None:
    if not found:
        raise SpecError(f"{path}: no cell of its tables holds a number")
    if any(not place.metric and not place.why for place in own):
        raise SpecError(
            f"{path}: its columns are groups of which metric? say --metric, as in --metric auroc"
        )
    if own and all(place.configuration is None for place in own):
        rows = ", ".join(f"'{row}'" for row in list(dict.fromkeys(p.row for p in own))[:5])
        listed = ", ".join(f"'{one.name}'" for one in known[:5])
        raise SpecError(
            f"{path}: no row has the name of a configuration: found {rows}, the sweep has {listed}"
            f"{', ...' if len(known) > 5 else ''}; say which by --rows 'LABEL=CONFIGURATION'"
        )


def _scales(
    found: Sequence[Place], values: Recomputed, names: Names, asked: Asked
) -> dict[str, float]:
    """Metric -> what its stored values are multiplied by to be those of the table."""
    apart: dict[str, list[tuple[float, float]]] = {}
    percent: set[str] = set()
    for place in found:
        if place.metric in names.scalars or place.printed.mean is None:
            continue
        if place.printed.percent:
            percent.add(place.metric)
        seeds = values.at(place)
        if len(seeds.values):
            mean = float(np.mean(seeds.values))
            printed = float(place.printed.mean)
            both = abs(printed - mean), abs(printed / 100 - mean)
            apart.setdefault(place.metric, []).append(both)
    scales = dict.fromkeys(names.scalars, 1.0)
    for metric in {place.metric for place in found} - scales.keys():
        of_fraction, of_percent = np.sum(apart.get(metric, [(1.0, 0.0)]), axis=0)
        fits = metric in percent or bool(of_percent < of_fraction)
        scales[metric] = 100.0 if (fits if asked.percent is None else asked.percent) else 1.0
    return scales
