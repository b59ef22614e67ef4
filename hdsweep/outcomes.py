"""What a method hands back: whether it can be trusted, what it measures, and where it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hdsweep import metrics, pixels
from hdsweep.method import AnomalyMaps, Data, Item, Method, Outcome, Predictions
from hdsweep.store import Store


def check(outcome: object, method: Method, tested: Sequence[Item]) -> None:
    """Refuse an outcome that metrics could not be trusted on."""
    if not isinstance(outcome, Outcome):
        raise TypeError(f"run returned a {type(outcome).__name__}, not an Outcome")
    found = outcome.predictions
    if not isinstance(found, Predictions):
        raise TypeError(f"predictions are a {type(found).__name__}, not Predictions")
    if found.score.ndim != 1 or not np.issubdtype(found.score.dtype, np.floating):
        raise ValueError(
            f"scores have shape {found.score.shape} and type {found.score.dtype}; give one float "
            "per test item"
        )
    _require_rows(found, tested)
    if outcome.threshold is not None and not np.isfinite(outcome.threshold):
        raise ValueError(f"the threshold is {outcome.threshold}; give None where there is none")
    for name, value in outcome.scalars.items():
        if name not in method.scalars:
            raise ValueError(f"scalar '{name}' is not declared in METHOD.scalars")
        if not np.isfinite(value):
            raise ValueError(f"scalar '{name}' is {value}; leave out what was not measured")
    for name in outcome.artifacts:
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"artifact '{name}' is not a plain file name")


def _require_rows(found: Predictions, tested: Sequence[Item]) -> None:
    rows = zip(found.item, found.group, strict=True)
    given = dict(zip(rows, found.is_anomaly.tolist(), strict=True))
    wanted = {(item.name, item.group): item.is_anomaly for item in tested}
    if given != wanted:
        differ = [row for row in wanted if given.get(row) != wanted[row]]
        differ += [row for row in given if row not in wanted]
        wrong = list(dict.fromkeys(name for name, _ in differ))
        raise ValueError(
            f"predictions are not one row per test item with the data's own group and label: "
            f"{len(wrong)} of {len(tested)} differ, '{wrong[0]}' first; use Predictions.of"
        )


def measured(outcome: Outcome, data: Data) -> dict[str, Any]:
    """The fields of a record that follow from an outcome; reads the masks of the data."""
    found = outcome.predictions
    threshold = None if outcome.threshold is None else float(outcome.threshold)
    values, missing = metrics.evaluate(
        metrics.STORED, found.group, found.is_anomaly, found.score, threshold
    )
    of_pixels, undefined = _of_pixels(outcome.maps, data)
    values |= of_pixels
    return {
        "metrics": values,
        "missing": missing | undefined,
        "definitions": metrics.definitions(values),
        "threshold": threshold,
        "scalars": {name: float(value) for name, value in outcome.scalars.items()},
        "artifacts": tuple(sorted(outcome.artifacts)),
    }


def _of_pixels(maps: object, data: Data) -> metrics.Evaluated:
    """Pixel metrics; none at all without maps, or where the data have no masks."""
    if maps is None:
        return {}, {}
    if not isinstance(maps, AnomalyMaps):
        raise TypeError(f"maps are a {type(maps).__name__}, not AnomalyMaps")
    opened = pixels.open_maps(maps.path, len(data.test))
    read, items = data.read_mask, data.test
    if read is None or all(item.mask is None for item in items):
        return {}, {}

    def mask_of(item: Item) -> Callable[[], NDArray[np.bool_]]:
        return lambda: maps.to_grid(read(item))

    return metrics.evaluate_pixels(
        metrics.STORED_PIXEL,
        [item.name for item in items],
        [item.group for item in items],
        np.array([item.is_anomaly for item in items]),
        [None if item.mask is None else mask_of(item) for item in items],
        opened,
    )


def keep(outcome: Outcome, trial_id: str, store: Store) -> None:
    """Write all of a finished trial but its record."""
    store.put_predictions(trial_id, outcome.predictions)
    home = store.trial_dir(trial_id) / "artifacts"
    shutil.rmtree(home, ignore_errors=True)
    for name, path in outcome.artifacts.items():
        home.mkdir(exist_ok=True)
        if Path(path).is_dir():
            shutil.copytree(path, home / name)
        else:
            shutil.copyfile(path, home / name)
