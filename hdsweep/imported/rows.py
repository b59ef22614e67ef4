"""The rows of a CSV file of results: read, checked one by one, and brought to one unit."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdsweep.errors import DataError, SpecError, did_you_mean
from hdsweep.imported.columns import UNNAMED, Columns, Roles, canonical, roles_of
from hdsweep.metrics import POOLED, parse_metric

ONLY = "all"
"""The group of a file that has none."""

OWN_MEAN = "mean"
"""Group under which a record keeps a mean that its file gave."""

MOST = 1 + 1e-9
"""A rate of 1 as arithmetic may leave it."""

_MEANS = ("mean", "average", "avg", "overall")
_WORD = re.compile(r"[A-Za-z_][\w./-]*")  # as in the grammar of metrics
_SEED = re.compile(r"[0-9]{1,10}(\.0+)?")  # pandas writes 42.0 where a seed is missing elsewhere
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,2})?", re.IGNORECASE)
_LONGEST = 32  # characters of a knob that is a number; what is longer names something
_EMPTY = ("", "nan", "na", "n/a", "none", "null", "-", "—")
_MOST_SEED = 2**32
_SHOWN = 40  # characters of a cell in a message


@dataclass(frozen=True, slots=True)
class Row:
    """One value of the file, as printed; None where the cell says nothing.

    ``digits`` are those of its fraction, and ``signed`` says that a percent sign follows.
    """

    line: int
    arm: str
    knobs: Mapping[str, Any]
    seed: int
    group: str
    metric: str
    value: float | None
    digits: int
    signed: bool


@dataclass(frozen=True, slots=True)
class Rows:
    """The content of a file.

    Args:
        path: As it was given.
        sha256: Of its bytes.
        rows: At least one, in the order of the file.
        scalars: Metrics of the rows that are no rates.
        knobs: Columns that were taken for knobs.
        columns: What -> the column that it was read from.
        percent: Whether rates are in percent.
        mean: Group of the file's own means over the others, if it has them.
    """

    path: Path
    sha256: str
    rows: tuple[Row, ...]
    scalars: tuple[str, ...]
    knobs: tuple[str, ...]
    columns: Mapping[str, str]
    percent: bool
    mean: str | None


def read_rows(path: Path, columns: Columns) -> Rows:
    """Read a CSV file: a row per value, or a row per trial and group with a column per metric.

    Raises:
        DataError: The file cannot be read, or a row of it is wrong; with its line.
        SpecError: A column or a metric that there is not, or units that cannot be told.
    """
    for name in columns.scalars:
        if not _WORD.fullmatch(name):
            raise SpecError(
                f"--scalar {name}: is no name of a number; for a column, say --scalar latency_ms "
                f"--wide 'latency_ms={name}'"
            )
        if parse_metric(name, {name}).definition is not None:
            raise SpecError(f"--scalar {name}: is a metric of hdsweep; leave that option out")
    content, table = _table(path)
    header = table[0][1]
    roles = roles_of(path, header, columns)
    rows = [row for line, cells in table[1:] for row in _rows(path, line, header, cells, roles)]
    if not rows:
        raise DataError(f"{path}: no row holds a value; a header and rows below it are needed")
    _check_scalars(path, {row.metric for row in rows}, header, columns.scalars)
    rates = [row for row in rows if row.metric not in columns.scalars]
    return Rows(
        path, hashlib.sha256(content).hexdigest(), tuple(rows), columns.scalars,
        tuple(roles.knobs), roles.said,
        _percent(path, rates, columns.percent), _mean(path, rates, columns.mean),
    )  # fmt: skip


def _check_scalars(
    path: Path, names: set[str], header: Sequence[str], scalars: Sequence[str]
) -> None:
    for name in scalars:
        if name not in names:
            raise SpecError(
                f"{path}: --scalar {name}: the file has no such number"
                f"{did_you_mean(name, names.union(header))}"
            )


def _percent(path: Path, rates: Sequence[Row], told: bool | None) -> bool:
    """The one unit of all rates of a file, as told or as they look."""
    signed = next((row for row in rates if row.signed), None)
    if told is False and signed is not None:
        raise DataError(f"{path}:{signed.line}: a percent sign in a file that is in fractions")
    if told is not None:
        return told
    most: dict[tuple[str, str], float] = {}
    for row in rates:
        if row.value is not None:
            place = (row.metric, row.arm)
            # What has a sign is in percent, however small.
            most[place] = max(most.get(place, 0.0), math.inf if row.signed else row.value)
    large = next((place for place, value in most.items() if value > MOST), None)
    small = next((place for place, value in most.items() if 0 < value <= MOST), None)
    if large is not None and small is not None:
        raise SpecError(
            f"{path}: {large[0]} of {large[1]} looks like percent, but no {small[0]} of {small[1]} "
            "is above 1; say --percent if all rates are in percent, or bring them to one unit"
        )
    return large is not None


def _mean(path: Path, rates: Sequence[Row], told: str | None) -> str | None:
    """The group that holds means over the others, if any does."""
    groups = list(dict.fromkeys(row.group for row in rates))
    if told is not None and told not in groups:
        raise SpecError(f"{path}: --mean-group {told}: no such group{did_you_mean(told, groups)}")
    means = [group for group in groups if group.lower() in _MEANS] if told is None else [told]
    if len(means) > 1:
        raise DataError(
            f"{path}: groups {' and '.join(means)} may both be means of the others; say "
            "--mean-group GROUP"
        )
    if OWN_MEAN in groups and OWN_MEAN not in means:
        raise DataError(f"{path}: a group is named '{OWN_MEAN}' and is no mean; rename it")
    if POOLED in groups:
        raise DataError(
            f"{path}: a group is named '{POOLED}', which stands for the items of all groups "
            "together; rename it"
        )
    return means[0] if means else None


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
        if name in header[:n] and not UNNAMED.fullmatch(name):
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


def _rows(
    path: Path, line: int, header: Sequence[str], cells: Sequence[str], roles: Roles
) -> Iterator[Row]:
    if len(cells) != len(header):
        raise DataError(
            f"{path}:{line}: {len(cells)} cells where the header has {len(header)} columns"
        )

    def at(role: str, default: str) -> str:
        return cells[roles.of[role]] if role in roles.of else default

    seed, arm, group = at("seed", "0"), at("arm", "imported"), at("group", ONLY)
    if not _SEED.fullmatch(seed) or int(float(seed)) >= _MOST_SEED:
        column = header[roles.of["seed"]]
        raise DataError(
            f"{path}:{line}: {column} '{_short(seed)}' is not a whole number below 2^32; say "
            f"--seed COLUMN if another holds seeds, or --ignore '{column}'"
        )
    if not arm:
        raise DataError(f"{path}:{line}: {header[roles.of['arm']]} is empty; which arm is it of?")
    knobs = {name: _knob(cells[n]) for name, n in roles.knobs.items() if cells[n]}
    if "metric" not in roles.of:
        values = [(metric, cells[n]) for metric, n in roles.wide.items()]
    else:
        name = canonical(path, line, at("metric", ""), roles.scalars)
        values = [(name, at("value", ""))]
    for metric, text in values:
        value, digits = _number(path, line, text)
        if not group and value is not None and metric not in roles.scalars:
            column = header[roles.of["group"]]
            raise DataError(f"{path}:{line}: {column} is empty; call the mean over groups 'mean'")
        signed = text.endswith("%")
        yield Row(line, arm, knobs, int(float(seed)), group, metric, value, digits, signed)


def _knob(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not _NUMBER.fullmatch(text) or len(text) > _LONGEST:
        return text
    return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(text)


def _number(path: Path, line: int, text: str) -> tuple[float | None, int]:
    plain = text.rstrip("% ").replace("\u2212", "-")
    if plain.lower() in _EMPTY:
        return None, 0
    if not _NUMBER.fullmatch(plain) or not math.isfinite(float(plain)):
        raise DataError(
            f"{path}:{line}: '{_short(text)}' is no number; leave a cell empty that has none"
        )
    mantissa, _, exponent = plain.lower().partition("e")
    return float(plain), len(mantissa.partition(".")[2]) - int(exponent or 0)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
