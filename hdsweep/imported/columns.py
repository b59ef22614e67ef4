"""What the columns of a file of results hold, as told or as their names say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hdsweep.errors import SpecError, did_you_mean
from hdsweep.metrics import parse_metric

_ROLES = {
    "arm": ("arm", "method", "model", "variant", "config", "configuration", "name"),
    "seed": ("seed", "random_seed", "replicate", "run"),
    "group": ("group", "domain", "category", "class", "dataset"),
    "metric": ("metric", "measure"),
    "value": ("value", "result"),
}
_LONG = ("metric", "value")  # in a file with a row per value
_SHOWN = 20  # columns in a message
UNNAMED = re.compile(r"(Unnamed: \d+)?")
"""Columns that are nothing: an index that pandas wrote, or a comma at the end of each line."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a file are; what is not said is guessed from their names.

    Args:
        arm, seed, group, metric, value: Names of columns.
        knobs: Columns that hold knobs; by default all that are nothing else.
        ignore: Columns that are left out.
        wide: Metric -> column that holds it, in place of ``metric`` and ``value``.
        scalars: Names in the file that are no metrics of the grammar but numbers per trial.
        mean: Group that holds the file's own means over groups; by default one of ``_MEANS``.
        percent: Whether rates are in percent; by default they are if one is above 1 or has a sign.
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
    mean: str | None = None
    percent: bool | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """Positions of columns."""

    of: Mapping[str, int]  # of those of _ROLES that the file has
    knobs: Mapping[str, int]
    wide: Mapping[str, int]  # canonical name -> position
    scalars: tuple[str, ...]
    said: Mapping[str, str]  # what -> names of columns


def roles_of(path: Path, header: Sequence[str], asked: Columns) -> Roles:
    """Which column holds what.

    Raises:
        SpecError: A column that there is not, one that is told twice, or none for metrics.
    """
    unknown = [name for name in asked.ignore if name not in header]
    if unknown:
        raise SpecError(
            f"{path}: no column '{unknown[0]}' to ignore{did_you_mean(unknown[0], header)}"
        )
    if asked.wide and (asked.metric is not None or asked.value is not None):
        raise SpecError(f"{path}: --wide is for a column per metric, in place of --metric, --value")
    left_out = {name for name in header if name in asked.ignore or UNNAMED.fullmatch(name)}
    free = {name: n for n, name in enumerate(header) if name not in left_out}

    def take(name: str, what: str) -> int:
        if name not in free:
            raise SpecError(
                f"{path}: no column '{name}' is left for {what}{did_you_mean(name, free)}"
            )
        return free.pop(name)

    wide = [(text, take(column, text)) for text, column in asked.wide.items()]
    knobs = {name: take(name, "a knob") for name in asked.knobs}
    told = {role: getattr(asked, role) for role in _ROLES}
    found = {role: take(name, role) for role, name in told.items() if name is not None}
    for role, names in _ROLES.items():
        lower = {name.lower(): name for name in free}
        guess = next((lower[name] for name in names if name in lower), None)
        if role not in found and guess is not None and not (wide and role in _LONG):
            found[role] = free.pop(guess)
    if "metric" not in found:
        held = [name for name in free if name in asked.scalars or _is_metric(name)]
        wide += [(name, free.pop(name)) for name in held]
    _check_values(path, header, found, wide)
    named = _distinct(path, [(canonical(path, 1, text, asked.scalars), n) for text, n in wide])
    swept = _distinct(
        path, [(re.sub(r"[\s=]+", "_", name), n) for name, n in (knobs or free).items()]
    )
    said = {role: header[n] for role, n in found.items()}
    said |= {metric: header[n] for metric, n in named.items()}
    if swept:
        said["knobs"] = ", ".join(swept)
    return Roles(found, swept, named, asked.scalars, said)


def _check_values(
    path: Path,
    header: Sequence[str],
    found: Mapping[str, int],
    wide: Sequence[tuple[str, int]],
) -> None:
    if "metric" in found and "value" not in found:
        raise SpecError(f"{path}: which column holds the values? say --value COLUMN")
    if "metric" not in found and not wide:
        names = ", ".join(f"'{name}'" for name in header[:_SHOWN])
        raise SpecError(
            f"{path}: no column of {names} holds metrics; say --metric and --value COLUMN, or for "
            "a column per metric --wide auroc=COLUMN"
        )


def _distinct(path: Path, named: Sequence[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, n in named:
        if name in found:
            raise SpecError(
                f"{path}:1: columns {found[name] + 1} and {n + 1} are both {name}; --ignore one"
            )
        found[name] = n
    return found


def _is_metric(text: str) -> bool:
    try:
        return parse_metric(_plain(text)).group is None
    except SpecError:
        return False


def _plain(text: str) -> str:
    """A metric as papers write it (AUROC, TPR@1%, TPR@FPR=1 %), as hdsweep does."""
    lower = re.sub(r"[\s%]", "", text.partition("[")[0]).lower()
    for long, short in (("tpr@fpr=", "tpr@"), ("fpr@tpr=", "fpr@")):
        lower = lower.replace(long, short)
    return lower + "".join(text.partition("[")[1:])


def canonical(path: Path, line: int, text: str, scalars: Sequence[str]) -> str:
    """The name of a metric or scalar in records; what is no such name is a ``SpecError``."""
    if text in scalars:
        return text
    try:
        metric = parse_metric(_plain(text))
    except SpecError as error:
        raise SpecError(
            f"{path}:{line}: {error} Rename it in the file, or say --scalar '{text}' if it is "
            "another number of which a trial has one"
        ) from None
    if metric.group is not None:
        raise SpecError(f"{path}:{line}: '{text}' names a group; groups have a column of their own")
    return metric.key
