"""Results from elsewhere: rows of a CSV file as records of a sweep, marked as imported.

What another program measured is kept like a trial of ours, with one record per configuration and
seed, so tables, tests and claims read it in the same way. It is no trial that can be run again: its
record says which file it came from, and its id is the digest of what it says.

A file's own means over groups are kept beside its groups and stand for the trial, for they were
made from more digits than the file prints.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdsweep.errors import DataError, SpecError, StoreError, did_you_mean
from hdsweep.identity import digest
from hdsweep.metrics import definitions, parse_metric
from hdsweep.planned import PlannedCell, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord

MARK = "# imported from "
"""How the file begins that the store keeps of such a sweep."""

OWN_MEAN = "mean"
"""Group under which a record keeps a mean that its file gave."""

_ONLY = "all"  # the group of a file that has none
_ROLES = {
    "arm": ("arm", "method", "model", "variant", "config", "configuration", "name"),
    "seed": ("seed", "random_seed", "replicate", "run"),
    "group": ("group", "domain", "category", "class", "dataset"),
    "metric": ("metric", "measure"),
    "value": ("value", "result"),
}
_LONG = ("metric", "value")  # in a file with a row per value
_MEANS = ("mean", "average", "avg", "overall")
_EMPTY = ("", "nan", "na", "n/a", "none", "null", "-", "—")
_MOST_SEED = 2**32


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a file are; what is not said is guessed from their names.

    Args:
        arm, seed, group, metric, value: Names of columns.
        knobs: Columns that hold knobs; by default all that are nothing else.
        ignore: Columns that are left out.
        wide: Metric -> column that holds it, in place of ``metric`` and ``value``.
        scalars: Names in the file that are no metrics of the grammar but numbers per trial.
        percent: Whether rates are in percent; by default they are if one is above 1.
    """

    arm: str | None = None
    seed: str | None = None
    group: str | None = None
    metric: str | None = None
    value: str | None = None
    knobs: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    wide: Mapping[str, str] = field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    percent: bool | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """What a file says.

    Args:
        file: Its name, without folders.
        sha256: Of its content.
        cells: Configurations in their order: arm, knobs, seed -> trial.
        records: By trial id.
        metrics: Canonical names, in their order.
        groups: In their order, without the file's own mean.
        percent: Whether its rates were read as percent.
        columns: What -> the column that it was read from.
    """

    file: str
    sha256: str
    cells: tuple[PlannedCell, ...]
    records: Mapping[str, TrialRecord]
    metrics: tuple[str, ...]
    groups: tuple[str, ...]
    percent: bool
    columns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Row:
    """One value of the file; ``digits`` of its fraction, None where the cell says nothing."""

    line: int
    arm: str
    knobs: Mapping[str, Any]
    seed: int
    group: str
    metric: str
    value: float | None
    digits: int


def read_results(path: Path, columns: Columns) -> Results:
    """Read a CSV file: a row per value, or a row per trial and group with a column per metric.

    Raises:
        DataError: The file cannot be read, or a row of it is wrong; with its line.
        SpecError: A column or a metric that there is not.
    """
    content, table = _table(path)
    header = table[0][1]
    roles = _roles(path, header, columns)
    rows = [row for line, cells in table[1:] for row in _rows(path, line, header, cells, roles)]
    if not rows:
        raise DataError(f"{path}: no row holds a value; a header and rows below it are needed")
    rates = [row for row in rows if row.metric not in columns.scalars]
    percent = columns.percent
    if percent is None:
        percent = any(row.value is not None and row.value > 1 for row in rates)
    return _results(path, content, rows, roles, percent)


def _table(path: Path) -> tuple[bytes, list[tuple[int, list[str]]]]:
    """The file, and its lines that are not empty, with their numbers."""
    content, text = _text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t|", key=first.count)  # the first of them where there is none at all
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV file: {error}") from None
    table = [(line, cells) for line, cells in lines if any(cells)]
    if not table:
        raise DataError(f"{path}: is empty; give a CSV file with a header")
    header = table[0][1]
    for n, name in enumerate(header):
        if name in header[:n]:
            raise DataError(f"{path}:1: two columns are named '{name}'; rename one")
    if delimiter != ",":  # decimals as half of Europe writes them
        table = [(line, [_COMMA.sub(r"\1.\2", cell) for cell in cells]) for line, cells in table]
    return content, table


def _text(path: Path) -> tuple[bytes, str]:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as a CSV file in UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: is not a text file; give a CSV file")
    return content, text


_COMMA = re.compile(r"^([-+]?\d+),(\d+ ?%?)$")


@dataclass(frozen=True, slots=True)
class _Roles:
    """Positions of columns."""

    of: Mapping[str, int]  # of those of _ROLES that the file has
    knobs: Mapping[str, int]
    wide: Mapping[str, int]  # canonical name -> position
    scalars: tuple[str, ...]
    said: Mapping[str, str]  # what -> names of columns


def _roles(path: Path, header: Sequence[str], asked: Columns) -> _Roles:
    free = {name: n for n, name in enumerate(header) if name not in asked.ignore}

    def take(name: str, what: str) -> int:
        if name not in free:
            raise SpecError(f"{path}: no column '{name}' for {what}{did_you_mean(name, header)}")
        return free.pop(name)

    wide = {text: take(column, text) for text, column in asked.wide.items()}
    knobs = {name: take(name, "a knob") for name in asked.knobs}
    told = {role: getattr(asked, role) for role in _ROLES}
    found = {role: take(name, role) for role, name in told.items() if name is not None}
    for role, names in _ROLES.items():
        guess = next((name for name in free if name.lower() in names), None)
        if role not in found and guess is not None and not (wide and role in _LONG):
            found[role] = free.pop(guess)
    if not wide and "metric" not in found:
        wide = {n: free.pop(n) for n in list(free) if n in asked.scalars or _is_metric(n)}
    if "metric" in found and "value" not in found:
        raise SpecError(f"{path}: which column holds the values? say --value COLUMN")
    if "metric" not in found and not wide:
        raise SpecError(
            f"{path}: no column holds metrics; say --metric and --value COLUMN, or for a column "
            "per metric --wide auroc=COLUMN"
        )
    named = {_canonical(path, 1, text, asked.scalars): n for text, n in wide.items()}
    swept = {re.sub(r"[\s=]+", "_", name): n for name, n in (knobs or free).items()}
    said = {role: header[n] for role, n in found.items()}
    said |= {metric: header[n] for metric, n in named.items()}
    if swept:
        said["knobs"] = ", ".join(swept)
    return _Roles(found, swept, named, asked.scalars, said)


def _is_metric(text: str) -> bool:
    try:
        return parse_metric(text).group is None
    except SpecError:
        return False


def _canonical(path: Path, line: int, text: str, scalars: Sequence[str]) -> str:
    if text in scalars:
        return text
    try:
        metric = parse_metric(text)
    except SpecError as error:
        raise SpecError(
            f"{path}:{line}: {error}; a number per trial that is no such metric is told by "
            f"--scalar '{text}'"
        ) from None
    if metric.group is not None:
        raise SpecError(f"{path}:{line}: '{text}' names a group; groups have a column of their own")
    return metric.key


def _rows(
    path: Path, line: int, header: Sequence[str], cells: Sequence[str], roles: _Roles
) -> Iterator[_Row]:
    if len(cells) != len(header):
        raise DataError(
            f"{path}:{line}: {len(cells)} cells where the header has {len(header)} columns"
        )

    def at(role: str, default: str) -> str:
        return (cells[roles.of[role]] if role in roles.of else "") or default

    seed = at("seed", "0")
    if not re.fullmatch(r"\d+(\.0+)?", seed) or int(float(seed)) >= _MOST_SEED:
        raise DataError(f"{path}:{line}: seed '{seed}' is not a whole number below 2^32")
    arm = at("arm", "imported")
    group = at("group", _ONLY)
    knobs = {name: _knob(cells[n]) for name, n in roles.knobs.items() if cells[n]}
    if "metric" not in roles.of:
        values = [(metric, cells[n]) for metric, n in roles.wide.items()]
    else:
        name = _canonical(path, line, at("metric", ""), roles.scalars)
        values = [(name, at("value", ""))]
    for metric, text in values:
        value, digits = _number(path, line, text)
        yield _Row(line, arm, knobs, int(float(seed)), group, metric, value, digits)


def _knob(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            found = kind(text)
        except ValueError:
            continue
        return found if math.isfinite(found) else text
    return text


def _number(path: Path, line: int, text: str) -> tuple[float | None, int]:
    plain = text.rstrip("% ").replace("\u2212", "-")
    if plain.lower() in _EMPTY:
        return None, 0
    try:
        value = float(plain)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}:{line}: '{text}' is no number; leave a cell empty that has none")
    mantissa, _, exponent = plain.lower().partition("e")
    return value, len(mantissa.partition(".")[2]) - int(exponent or 0)


def _results(
    path: Path, content: bytes, rows: Sequence[_Row], roles: _Roles, percent: bool
) -> Results:
    metrics = list(dict.fromkeys(row.metric for row in rows if row.metric not in roles.scalars))
    groups = list(dict.fromkeys(row.group for row in rows if row.metric in metrics))
    means = {group for group in groups if group.lower() in _MEANS} if len(groups) > 1 else set()
    if len(means) > 1:
        raise DataError(f"{path}: groups {' and '.join(sorted(means))} both stand for a mean")
    groups = [group for group in groups if group not in means]
    if groups and groups[0].lower() in _MEANS:
        groups = [_ONLY]
    sha256 = hashlib.sha256(content).hexdigest()
    origin = {
        "file": path.name,
        "sha256": sha256,
        "percent": percent,
        "resolution": _resolution(rows, metrics, percent),
    }
    trials: dict[str, dict[int, list[_Row]]] = {}
    for row in rows:
        key = digest({"arm": row.arm, "knobs": dict(row.knobs)})
        trials.setdefault(key, {}).setdefault(row.seed, []).append(row)
    records: dict[str, TrialRecord] = {}
    cells = []
    for by_seed in trials.values():
        first = next(iter(by_seed.values()))[0]
        ids = {}
        for seed, own in by_seed.items():
            record = _record(path, own, metrics, groups, means, roles.scalars, percent, origin)
            records[record.id] = record
            ids[seed] = record.id
        cells.append(PlannedCell(first.arm, first.knobs, ids))
    return Results(
        path.name, sha256, tuple(cells), records, (*metrics, *_told(rows, roles.scalars)),
        tuple(groups), percent, roles.said,
    )  # fmt: skip


def _told(rows: Sequence[_Row], scalars: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(row.metric for row in rows if row.metric in scalars))


def _resolution(rows: Sequence[_Row], metrics: Sequence[str], percent: bool) -> dict[str, float]:
    """Metric -> half a unit of the last digit that the file prints, in the unit of records."""
    scale = 100 if percent else 1
    digits = {
        metric: max((row.digits for row in rows if row.metric == metric), default=0)
        for metric in metrics
    }
    return {metric: 0.5 * 10.0**-most / scale for metric, most in digits.items()}


def _record(
    path: Path,
    rows: Sequence[_Row],
    metrics: Sequence[str],
    groups: Sequence[str],
    means: set[str],
    scalars: Sequence[str],
    percent: bool,
    origin: Mapping[str, Any],
) -> TrialRecord:
    values: dict[str, dict[str, float | None]] = {metric: {} for metric in metrics}
    measured: dict[str, float] = {}
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        place = (row.metric, row.group)
        if place in seen:
            raise DataError(
                f"{path}:{row.line}: {row.metric} of {row.arm}, seed {row.seed}, group {row.group} "
                f"is in line {seen[place]} already; name the column that tells them apart, by "
                "--knob, --seed or --group"
            )
        seen[place] = row.line
        if row.metric in scalars:
            if row.value is not None:
                measured[row.metric] = row.value
            continue
        group = OWN_MEAN if row.group in means else row.group
        if row.group.lower() in _MEANS and not means:
            group = groups[0]
        value = None if row.value is None else row.value / 100 if percent else row.value
        if value is not None and not 0 <= value <= 1:
            unit = "percent" if percent else "a fraction"
            raise DataError(f"{path}:{row.line}: {row.metric} {row.value:g} is no rate in {unit}")
        values[row.metric][group] = value
    first = rows[0]
    missing = {
        metric: {group: "not in the file" for group in groups if found.get(group) is None}
        for metric, found in values.items()
    }
    said = {"arm": first.arm, "params": dict(first.knobs), "metrics": values, "scalars": measured}
    trial_id = digest({"imported": said, "seed": first.seed})
    trial = Trial(
        id=trial_id, method=first.arm, version=0, params=first.knobs, data_name="imported",
        data_params={}, fingerprint=str(origin["sha256"]), seed=first.seed, identity={},
    )  # fmt: skip
    return TrialRecord(
        id=trial_id,
        status="ok",
        trial=trial.to_json(),
        metrics=values,
        missing={metric: why for metric, why in missing.items() if why},
        scalars=measured,
        definitions=definitions(metrics),
        provenance={"imported": {**origin, "rows": len(rows)}},
    )


def keep(
    store: Store, name: str, found: Results, *, question: str = "", baseline: str | None = None
) -> PlannedSweep:
    """Put results into a store as a sweep; the same ones again change nothing.

    Raises:
        StoreError: A sweep of that name was run here.
    """
    store.create()
    if name in store.sweeps() and not is_imported(store, name):
        raise StoreError(
            f"{store.root}: sweep '{name}' was run here; import the file under another name"
        )
    planned = PlannedSweep(
        name, question, found.metrics, baseline, (), found.groups, found.cells,
        arms=tuple(dict.fromkeys(cell.arm for cell in found.cells)),
    )  # fmt: skip
    for record in found.records.values():
        store.put(record)
    written = f"{MARK}{found.file!r}, SHA-256 {found.sha256}\n"
    store.put_sweep(planned, written.encode(errors="backslashreplace"))
    return planned


def is_imported(store: Store, name: str) -> bool:
    """Whether a sweep of the store was imported and not run."""
    try:
        kept = store.root / "sweeps" / name / "sweep.yaml"
        return kept.read_bytes().startswith(MARK.encode())
    except OSError:
        return False
