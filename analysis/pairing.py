"""A frame as matrices that can be compared: one row per metric, configuration and group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.frame import KNOB, MEAN
from hdsweep.errors import SpecError, did_you_mean
from hdsweep.knobs import has_setting, parse_setting
from hdsweep.planned import cell_name


@dataclass(frozen=True, slots=True)
class Configuration:
    """What has seeds.

    Args:
        cell: Of the frame.
        arm: Its arm.
        knobs: Its swept and drawn knobs.
        number: Its place in its search, None for what is listed.
        optimistic: Whether it was chosen, or may be, by the values that are here.
    """

    cell: int
    arm: str
    knobs: Mapping[str, Any]
    number: int | None
    optimistic: bool

    @property
    def name(self) -> str:
        """As in ``topk q_percent=2``."""
        return cell_name(self.arm, self.knobs, self.number)


class NoBaseline(Exception):
    """Why nothing can be compared, in words; no mistake of the user."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Values of k rows and n seeds; seeds ascend, so that numbers do not depend on an order.

    Args:
        configurations: As they are numbered in ``configuration``.
        metrics: Canonical, without group; as in ``metric``.
        groups: POOLED and MEAN among them; as in ``group``.
        seeds: Shape (n,).
        planned: The same in the order of the plan, as positions in ``seeds``.
        metric: Shape (k,), positions in ``metrics``.
        configuration: Shape (k,).
        group: Shape (k,).
        aggregate: Shape (k,), whether it is one of the values that stand for a whole trial.
        value: Shape (k, n), NaN where there is none.
        base: Shape (k, n), of the baseline.
    """

    configurations: Sequence[Configuration]
    metrics: Sequence[str]
    groups: Sequence[str]
    seeds: NDArray[np.int64]
    planned: NDArray[np.intp]
    metric: NDArray[np.intp]
    configuration: NDArray[np.intp]
    group: NDArray[np.intp]
    aggregate: NDArray[np.bool_]
    value: NDArray[np.float64]
    base: NDArray[np.float64]


def configurations(frame: pd.DataFrame) -> list[Configuration]:
    """Every configuration of a frame, in the order of the plan."""
    described = frame.drop_duplicates("cell").sort_values("cell")
    names = [name for name in frame.columns if name.startswith(KNOB)]
    settings = zip(*(described[name] for name in names), strict=True) if names else None
    return [
        Configuration(
            cell=int(cell),
            arm=arm,
            knobs={
                name.removeprefix(KNOB): value
                for name, value in zip(names, setting, strict=True)
                if value is not pd.NA
            },
            number=None if number is pd.NA else int(number),
            optimistic=number is not pd.NA and part != "confirm",
        )
        for cell, arm, number, part, setting in zip(
            described["cell"],
            described["arm"],
            described["number"],
            described["part"],
            settings or ((),) * len(described),
            strict=True,
        )
    ]


def find_baseline(known: Sequence[Configuration], name: str | None) -> int:
    """Position of the configuration that others are compared with.

    Args:
        known: What ``configurations`` returns.
        name: An arm, or a configuration as in ``topk q_percent=5``: knobs in any order, numbers by
            their value.

    Raises:
        NoBaseline: No name, or one of several configurations, or of none that can be a baseline.
        SpecError: Nothing has this name.
    """
    if not name:
        raise NoBaseline("no baseline was named; say --baseline, or report.baseline in the file")
    # The name of an arm may be anything, blanks included; what follows it are knobs.
    arms = {one.arm for one in known}
    arm, wanted = max(
        ((arm, _knobs(name, arm)) for arm in arms if name == arm or name.startswith(f"{arm} ")),
        key=lambda found: len(found[0]),
        default=(name.split()[0] if name.split() else name, {}),
    )
    of_arm = [place for place, one in enumerate(known) if one.arm == arm]
    if not of_arm:
        raise SpecError(f"baseline '{name}': no arm '{arm}'{did_you_mean(arm, arms)}")
    found = [place for place in of_arm if has_setting(known[place].knobs, wanted)]
    if not found:
        near = did_you_mean(name, [known[place].name for place in of_arm[:100]])
        raise SpecError(f"baseline '{name}': arm '{arm}' has no such configuration{near}")
    usable = [place for place in found if not known[place].optimistic]
    if not usable:
        raise NoBaseline(
            f"baseline '{name}' was drawn by a search and measured on the seeds it was chosen by; "
            "name an arm that was not, or confirm it on other seeds"
        )
    if len(usable) > 1:
        # One that is named in full is meant, even where others have further knobs.
        exact = [place for place in usable if len(known[place].knobs) == len(wanted)]
        if len(exact) == 1:
            return exact[0]
        listed = ", ".join(f"'{known[place].name}'" for place in usable[:3])
        raise NoBaseline(
            f"baseline '{name}' has {len(usable)} configurations; name one of them: {listed}"
            + (", ..." if len(usable) > 3 else "")
        )
    return usable[0]


def _knobs(name: str, arm: str) -> dict[str, str]:
    try:
        return parse_setting(f"arm {name.removeprefix(arm)}")[1]
    except ValueError as error:
        raise SpecError(f"baseline '{name}': {error}") from None


def matrix(frame: pd.DataFrame, known: Sequence[Configuration], base: int) -> Matrix:
    """Values of all configurations but the baseline, beside those of the baseline.

    Args:
        frame: What ``analysis.frame.load`` returns.
        known: What ``configurations`` returns.
        base: What ``find_baseline`` returns.
    """
    metrics, groups = (list(frame[name].cat.categories) for name in ("metric", "group"))
    metric, group = (frame[name].cat.codes.to_numpy(np.intp) for name in ("metric", "group"))
    cell = np.searchsorted([one.cell for one in known], frame["cell"].to_numpy(np.intp))
    seeds, seed = np.unique(frame["seed"].to_numpy(), return_inverse=True)
    value = frame["value"].to_numpy(dtype=np.float64)
    values = np.full((len(metrics), len(known), len(groups), len(seeds)), math.nan)
    values[metric, cell, group, seed] = np.where(np.isfinite(value), value, math.nan)
    there = np.zeros(values.shape[:3], dtype=np.bool_)
    there[metric, cell, group] = True
    is_mean = np.array([name == MEAN for name in groups], dtype=np.bool_)
    # A metric that was asked for some groups alone has no mean: these stand for the trial.
    alone = ~np.any(there[:, :, is_mean], axis=(1, 2))
    there[:, base] = False
    m, c, g = np.nonzero(there)
    return Matrix(
        configurations=known,
        metrics=metrics,
        groups=groups,
        seeds=seeds,
        planned=np.searchsorted(seeds, frame["seed"].drop_duplicates().to_numpy(np.int64)),
        metric=m,
        configuration=c,
        group=g,
        aggregate=is_mean[g] | alone[m],
        value=values[m, c, g],
        base=values[m, base, g],
    )
