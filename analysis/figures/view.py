"""What figures read of a report: configurations, and the seeds' values of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy import stats

from analysis.frame import KNOB, MEAN
from hdsweep.metrics import POOLED, parse_metric
from hdsweep.planned import cell_name

Values = NDArray[np.float64]

LARGEST = 1e100  # beyond it, an axis overflows where it adds its margins
COVERAGE = 0.95
_RANGES = ("uniform", "log_uniform", "int")  # as the file names distributions of numbers
INTERVAL = "95 % confidence interval of the mean by Student's t"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One cell of the frame.

    Args:
        cell: Of the frame.
        arm: Name in the sweep file.
        knobs: Swept and drawn ones.
        number: Its place in its search; None where it was listed.
        study: Of the search.
        drawn: Whether a search drew it and it is not reported on seeds of its own.
        trials: Seed -> id of those that are ok.
        planned: How many seeds.
    """

    cell: int
    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    study: str | None
    drawn: bool
    trials: Mapping[int, str]
    planned: int

    @property
    def name(self) -> str:
        """For people."""
        return cell_name(self.arm, self.knobs, self.number)

    @property
    def listed(self) -> bool:
        """Whether the file names it: values that a search drew make no curve."""
        return self.number is None

    @property
    def label(self) -> str:
        """Where there is little room: what was drawn by its number alone."""
        return self.name if self.number is None else cell_name(self.arm, {}, self.number)


@dataclass(frozen=True, slots=True)
class Shown:
    """A metric with the values of every configuration, in the unit that people are shown.

    Args:
        key: Canonical name.
        label: Of an axis.
        larger_is_better: None where nobody knows.
        values: Group -> cell -> the values of its seeds, none of them NaN.
    """

    key: str
    label: str
    larger_is_better: bool | None
    values: Mapping[str, Mapping[int, Values]]

    @property
    def is_rate(self) -> bool:
        """Whether values are in percent."""
        return self.larger_is_better is not None

    def text(self, value: float) -> str:
        """A value for people, with the digits that tables have."""
        return f"{value:.2f}" if self.is_rate else f"{value:.4g}"

    @property
    def places(self) -> list[str]:
        """What stands for the whole first, then groups; of one group, the group alone."""
        groups = [g for g in self.values if g not in (MEAN, POOLED)]
        whole = [g for g in (MEAN, POOLED) if g in self.values]
        return groups if len(groups) == 1 and whole == [MEAN] else whole + groups

    @property
    def whole(self) -> Mapping[int, Values]:
        """Values by which configurations rank: the mean over groups, or what there is."""
        return self.values[self.places[0]]


@dataclass(frozen=True, slots=True)
class View:
    """A report as figures see it.

    Args:
        sweep: Its name.
        configurations: In the order of the plan.
        baseline: That others are compared with.
        metrics: In the order of the report, without those that have no value.
        groups: Of the data, in the order of report.
        drawn_log: Knob -> whether the file has it drawn evenly in its logarithm, of those drawn.
    """

    sweep: str
    configurations: tuple[Configuration, ...]
    baseline: Configuration | None
    metrics: tuple[Shown, ...]
    groups: tuple[str, ...]
    drawn_log: Mapping[str, bool]

    def is_log(self, knob: str, values: Sequence[float]) -> bool:
        """Whether a knob's axis is logarithmic: as the file says, or as the values suggest."""
        if self.drawn_log.get(knob) and min(values) >= 1 / LARGEST:
            return True
        return knob not in self.drawn_log and is_geometric(values)

    def chosen(self, most: int) -> list[Configuration]:
        """Few enough to tell apart: baseline, the best of each arm, then the best of all.

        Best is by the first metric; of what lacks seeds, the least.
        """
        if not self.metrics:
            return []
        values = self.metrics[0].whole
        sign = {True: -1.0, False: 1.0, None: 0.0}[self.metrics[0].larger_is_better]
        able = [c for c in self.configurations if len(values.get(c.cell, ()))]
        able.sort(
            key=lambda c: (len(values[c.cell]) < c.planned, sign * float(values[c.cell].mean()))
        )
        first = [c for c in able if self.baseline is not None and c.cell == self.baseline.cell]
        arms = {c.arm for c in first}
        for one in able:
            if one.arm not in arms:
                arms.add(one.arm)
                first.append(one)
        found = {c.cell for c in [*first, *(c for c in able if c not in first)][:most]}
        shown = [c for c in self.configurations if c.cell in found]
        shown.sort(key=lambda c: self.baseline is None or c.cell != self.baseline.cell)
        return shown

    def how_chosen(self, shown: Sequence[Configuration]) -> str:
        """A sentence for captions; empty where all are shown."""
        if len(shown) == len(self.configurations):
            return ""
        what = "the baseline and the best others" if self.baseline in shown else "the best"
        by = self.metrics[0].key
        if self.metrics[0].larger_is_better is None:
            what = what.replace("best", "first")
        return (
            f"Shown are {len(shown)} of {len(self.configurations)} configurations: {what} "
            f"by {by} (the best of each arm first)."
        )


def look(sweep: str, frame: pd.DataFrame, baseline: int | None = None, text: str = "") -> View:
    """Read what figures need of a sweep.

    Args:
        sweep: Its name.
        frame: As ``analysis.frame.load`` returns it.
        baseline: Cell of the frame that others are compared with.
        text: Of the sweep file.
    """
    metrics = [] if frame.empty else list(map(str, frame["metric"].cat.categories))
    configurations = _configurations(frame)
    groups = [] if frame.empty else [str(g) for g in frame["group"].cat.categories]
    shown = [_shown(frame, metric) for metric in metrics]
    return View(
        sweep=sweep,
        configurations=configurations,
        baseline=next((c for c in configurations if c.cell == baseline), None),
        metrics=tuple(m for m in shown if any(map(len, m.values.values()))),
        groups=tuple(g for g in groups if g not in (MEAN, POOLED)),
        drawn_log=_drawn_log(text),
    )


def _drawn_log(text: str) -> dict[str, bool]:
    try:
        value = yaml.safe_load(text)
        arms = [value.get("params") or {}, *(value.get("arms") or {}).values()]
    except (yaml.YAMLError, AttributeError, ValueError):  # figures do without
        return {}
    knobs = [item for arm in arms if isinstance(arm, dict) for item in arm.items()]
    return {
        str(name): "log_uniform" in knob or knob.get("log") is True
        for name, knob in knobs
        if isinstance(knob, dict) and not knob.keys().isdisjoint(_RANGES)
    }


def _configurations(frame: pd.DataFrame) -> tuple[Configuration, ...]:
    if frame.empty:
        return ()
    trials = frame.drop_duplicates(["cell", "seed"])
    ok = trials[trials["status"] == "ok"]
    ids: dict[int, dict[int, str]] = {}
    for cell, seed, trial in zip(ok["cell"], ok["seed"], ok["trial"], strict=True):
        ids.setdefault(int(cell), {})[int(seed)] = str(trial)
    planned = trials["cell"].value_counts()
    first = trials.drop_duplicates("cell")
    knobs = [name for name in frame.columns if name.startswith(KNOB)]
    settings = zip(*(first[name] for name in knobs), strict=True) if knobs else None
    found = []
    for cell, arm, number, study, part, setting in zip(
        first["cell"],
        first["arm"],
        first["number"],
        first["study"],
        first["part"],
        settings or ((),) * len(first),
        strict=True,
    ):
        given = zip(knobs, setting, strict=True)
        searched = not pd.isna(study)
        found.append(
            Configuration(
                cell=int(cell),
                arm=str(arm),
                knobs={k.removeprefix(KNOB): value for k, value in given if value is not pd.NA},
                number=None if pd.isna(number) else int(number),
                study=str(study) if searched else None,
                drawn=searched and part != "confirm",
                trials=ids.get(int(cell), {}),
                planned=int(planned[cell]),
            )
        )
    return tuple(found)


def _shown(frame: pd.DataFrame, metric: str) -> Shown:
    parsed = parse_metric(metric, (metric,))
    rate = parsed.definition is not None
    rows = frame[(frame["metric"] == metric) & (frame["value"].abs() <= LARGEST)]
    rows = rows.sort_values("cell", kind="stable")
    values: dict[str, Mapping[int, Values]] = {}
    for group in rows["group"].cat.categories:
        of_group = rows[rows["group"] == group]
        if len(of_group):
            cells = of_group["cell"].to_numpy()
            cut = np.flatnonzero(np.diff(cells)) + 1
            scaled = of_group["value"].to_numpy(dtype=np.float64) * (100 if rate else 1)
            first = cells[np.concatenate(([0], cut))]
            values[str(group)] = dict(zip(first.tolist(), np.split(scaled, cut), strict=True))
    return Shown(
        key=metric,
        label=f"{metric} (%)" if rate else metric,
        larger_is_better=parsed.definition.larger_is_better if parsed.definition else None,
        values=values,
    )


def interval(values: Values) -> tuple[float, float, float]:
    """Mean and the ends of its interval, which are NaN for one value.

    Args:
        values: Shape (n,), n >= 1.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf((1 + COVERAGE) / 2, len(values) - 1))
    half *= float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def seeds_text(counts: Iterable[int]) -> str:
    """``5 seeds``, ``3 to 5 seeds``."""
    found = sorted(set(counts))
    if not found:
        return "no seed"
    least, most = found[0], found[-1]
    few = f"{most} seed{'' if most == 1 else 's'}"
    return few if least == most else f"{least} to {few}"


def is_number(value: object) -> bool:
    """Whether it has a place on an axis."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST  # also of integers that no float holds


def is_geometric(values: Sequence[float]) -> bool:
    """Whether they are better spread on a logarithmic axis.

    Positive numbers that span a factor of 20 lie about
    evenly on one of the two axes, and there the middle one is in the middle.
    """
    found = np.unique(np.asarray(values, dtype=np.float64))
    if len(found) < 3 or found[0] < 1 / LARGEST:
        return False
    ratios = found[1:] / found[:-1]
    if ratios.min() >= 1.5 and np.allclose(ratios, ratios[0], rtol=0.01):
        return True
    if found[-1] / found[0] < 20:
        return False

    def off_centre(place: Callable[[Values], Values]) -> float:
        at = place(found)
        return abs(float((np.median(at) - at[0]) / (at[-1] - at[0])) - 0.5)

    return off_centre(np.log) < off_centre(np.asarray)
