"""Checks of trials: records, predictions, artifacts, and what attempts left."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hdsweep.doctor.finding import Finding, half, move_away, moved_aside, remove, said
from hdsweep.errors import HdsweepError, StoreError
from hdsweep.metrics import STORED, evaluate
from hdsweep.store import Store
from hdsweep.trial import TrialRecord, require_own_id

_ID = re.compile(r"[0-9a-f]{20}")
_START = re.compile(r"[0-9a-f]{2}")
_TOLERANCE = 1e-9  # of metrics that are computed again; a numpy of another year may round otherwise


def examine(store: Store, *, deep: bool) -> Iterator[Finding]:
    """Look at all trials; those that are running are passed by."""
    home = store.root / "trials"
    bare = 0
    for start in sorted(home.iterdir()) if home.is_dir() else ():
        if start.is_symlink() or not start.is_dir() or not _START.fullmatch(start.name):
            yield _stranger(store, start)
            continue
        for folder in sorted(start.iterdir()):
            try:
                expected = store.trial_dir(folder.name)
            except StoreError:
                expected = None
            if folder != expected or folder.is_symlink() or not folder.is_dir():
                yield _stranger(store, folder)
            elif not store.is_running(folder.name):
                yield from _trial(store, folder, deep)
                bare += _lacks_predictions(store, folder)
    if bare:
        what = f"{bare} finished trials have no predictions, only the metrics in their records"
        to_do = "import them from where they ran, or run them again, if other metrics are wanted"
        yield Finding(str(home), what, to_do, "note")


def _stranger(store: Store, path: Path) -> Finding:
    if _ID.fullmatch(path.name) and not path.is_symlink():
        mend = partial(move_away, store, path)
        return Finding(str(path), "is a trial in a wrong place", moved_aside(store), mend=mend)
    return Finding(str(path), "is no folder of a trial", "see what it is", "note")


def _trial(store: Store, folder: Path, deep: bool) -> Iterator[Finding]:
    for path in (*folder.glob(".*-*"), *folder.glob(".curve.jsonl"), *folder.glob("*/.partial-*")):
        yield half(path, "an attempt that was killed", _alone(store, folder, path))
    path = folder / "record.json"
    if not os.path.lexists(path):
        return
    try:
        if path.is_symlink():
            raise StoreError(f"{path}: is a link")
        record = store.record(folder.name)
        if record is None:
            return
        require_own_id(record, folder.name, str(path))
        _require_shape(record, path)
    except StoreError as error:
        yield Finding(
            str(path), said(error, path),
            f"{moved_aside(store)}; the next run of its sweep runs it again",
            mend=partial(_move_trial_away, store, folder.name),
        )  # fmt: skip
        return
    if (folder / "checkpoint").exists() and (record.error or {}).get("kind") != "timeout":
        path = folder / "checkpoint"
        yield half(path, "a trial that has finished", _alone(store, folder, path))
    yield from _artifacts(record, folder)
    yield from _predictions(store, record, folder, deep)


def _require_shape(record: TrialRecord, path: Path) -> None:
    """Raise StoreError where what reports read of a record is not of the kind that they need."""
    mappings = (record.trial, record.metrics, record.missing, record.scalars, record.provenance)
    inner = (*record.metrics.values(), *record.missing.values()) if _are(dict, mappings) else ()
    names = ("method", "params", "data_name", "data_params", "seed")
    if not _are(dict, mappings) or not _are(dict, inner) or not record.trial.keys() >= {*names}:
        raise StoreError(f"{path}: is not of a record's shape")


def _are(kind: type, values: tuple[object, ...]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _artifacts(record: TrialRecord, folder: Path) -> Iterator[Finding]:
    names: tuple[object, ...] = record.artifacts  # as somebody has written them
    for name in names:
        where = str(folder / "record.json")
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            yield Finding(
                where, f"names an artifact {name!r}, which is no file name", "distrust it"
            )
        elif not os.path.lexists(folder / "artifacts" / name):
            yield Finding(
                str(folder / "artifacts" / name), "is missing, and its record names it",
                f"run the trial again by --rerun {record.id}",
            )  # fmt: skip


def _lacks_predictions(store: Store, folder: Path) -> bool:
    with contextlib.suppress(StoreError):
        record = None if (folder / "predictions.parquet").exists() else store.record(folder.name)
        return record is not None and record.status == "ok" and not _is_imported(record)
    return False


def _is_imported(record: TrialRecord) -> bool:
    return "imported" in record.provenance


def _predictions(store: Store, record: TrialRecord, folder: Path, deep: bool) -> Iterator[Finding]:
    path = folder / "predictions.parquet"
    if not os.path.lexists(path):
        return
    try:
        if path.is_symlink():
            raise StoreError(f"{path}: is a link")
        if deep:
            wrong = _disagreement(store, record)
        else:
            _read_schema(path)
            wrong = None
    except HdsweepError as error:
        yield Finding(
            str(path), said(error, path),
            f"{moved_aside(store)}; its record keeps its metrics, --rerun {record.id} makes it "
            "anew",
            mend=partial(move_away, store, path),
        )  # fmt: skip
        return
    if wrong is not None:
        yield Finding(
            str(path), wrong, f"find out which is right, or run it again by --rerun {record.id}"
        )


def _read_schema(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: not a table of predictions: {error}") from None
    if not {"item", "group", "is_anomaly", "score"} <= names:
        raise StoreError(f"{path}: not a table of predictions: it has columns {sorted(names)}")


def _disagreement(store: Store, record: TrialRecord) -> str | None:
    """What predictions say otherwise than the record that stands beside them."""
    found = store.predictions(record.id)
    if found is None or record.status != "ok":
        return None
    asked = [metric for metric in STORED if metric in record.metrics]
    values, _ = evaluate(asked, found.group, found.is_anomaly, found.score, record.threshold)
    for metric in asked:
        for group, kept in record.metrics[metric].items():
            value = values.get(metric, {}).get(group)
            same = value is kept or (
                None not in (value, kept)
                and np.isclose(float(value or 0), float(kept or 0), rtol=0, atol=_TOLERANCE)
            )
            if not same:
                return f"give {metric} {value} in {group}, and the record says {kept}"
    return None


def _alone(store: Store, folder: Path, path: Path) -> Callable[[], None]:
    """How something of a trial is removed: not while it is being run."""

    def mend() -> None:
        with store.running(folder.name, wait=False):
            remove(path)

    return mend


def _move_trial_away(store: Store, trial_id: str) -> None:
    with store.running(trial_id, wait=False):
        move_away(store, store.trial_dir(trial_id))
