"""Archives: a store, or some of its sweeps, packed into one file.

What is packed is what reports need and a sweep goes on from: records, predictions, curves, logs,
artifacts and earlier results of finished trials, and what sweeps asked for and decided. Locks,
checkpoints, stages and mirrors stay behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hdsweep.errors import StoreError
from hdsweep.packed import SWEEP_FILES, TRIAL_FILES, Changed, Entry, is_log, unfit, write
from hdsweep.store import Store

_RETRIES = 5


@dataclass(frozen=True, slots=True)
class Saved:
    """What an archive was made of.

    Args:
        trials: Ids, sorted.
        sweeps: Names, the one that was run last at the end.
        size_bytes: Of the archive.
        left_out: Part of the store -> why it is not in the archive.
    """

    trials: tuple[str, ...]
    sweeps: tuple[str, ...]
    size_bytes: int
    left_out: Mapping[str, str]


def save(store: Store, path: Path, names: Sequence[str] = (), *, predictions: bool = True) -> Saved:
    """Write an archive, whole or not at all; a file of that name is replaced.

    Args:
        store: May be read only.
        path: Of the archive.
        names: Sweeps, which are packed with their trials; by default all that the store holds.
        predictions: Whether they are packed: reports then know only the metrics in the records.

    Raises:
        StoreError: Nothing to pack, a sweep that is not there, or no room for the archive.
    """
    trials, sweeps = _chosen(store, names)
    left: dict[str, str] = {}
    for _ in range(len(trials) + _RETRIES):
        entries = [
            e for i in trials if i not in left for e in _of_trial(store, i, predictions, left)
        ]
        packed = tuple(dict.fromkeys(entry.trial or "" for entry in entries))
        entries += [entry for name in sweeps for entry in _of_sweep(store, name, left)]
        if not entries:
            raise StoreError(f"{store.root}: holds no finished trial and no sweep, nothing to pack")
        try:
            size = write(store.root, path, entries)
        except Changed as changed:
            if changed.entry.trial is not None:  # a sweep is planned anew within a moment
                left[changed.entry.trial] = "is being run again"
            continue
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from None
        return Saved(packed, tuple(sweeps), size, left)
    raise StoreError(f"{store.root}: changes all the while; wait until its sweeps have ended")


def _chosen(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Trials and sweeps to pack, sweeps in the order in which they were run."""
    run = store.sweeps()[::-1]
    if not names:
        return sorted(store.finished()), run
    wanted: set[str] = set()
    for name in names:
        wanted |= store.sweep(name).labels().keys()
    return sorted(wanted), [name for name in run if name in names]


def _of_trial(store: Store, trial_id: str, predictions: bool, left: dict[str, str]) -> list[Entry]:
    folder = store.trial_dir(trial_id)
    if folder.is_symlink() or folder.parent.is_symlink():
        left[trial_id] = "its folder is a link"
        return []
    if store.is_running(trial_id):
        left[trial_id] = "is being run"
        return []
    if not (folder / "record.json").is_file():
        left[trial_id] = "has not finished"
        return []
    homes = [folder]
    if (folder / "earlier").is_dir():
        homes += sorted(p for p in (folder / "earlier").iterdir() if p.name.isdigit())
    files = []
    for home in homes:
        names = [n for n in TRIAL_FILES if predictions or n != "predictions.parquet"]
        files += [*_below(home / "artifacts"), *(home / name for name in names)]
    before = (folder / "record.json").stat()
    found = _entries(store.root, files, left)
    if store.is_running(trial_id) or not os.path.samestat(before, (folder / "record.json").stat()):
        left[trial_id] = "is being run again"
        return []
    return found


def _of_sweep(store: Store, name: str, left: dict[str, str]) -> list[Entry]:
    folder = store.root / "sweeps" / name
    if folder.is_symlink() or not (folder / "sweep.yaml").is_file():
        left[f"sweep {name}"] = "is a link, or has lost its sweep.yaml"
        return []
    rungs = sorted((folder / "rungs").glob("*.jsonl"))
    return _entries(store.root, [*(folder / n for n in SWEEP_FILES), *rungs], left)


def _below(folder: Path) -> list[Path]:
    """All that is in a folder, but not beyond links in it."""
    found = []
    for home, _, names in os.walk(folder, followlinks=False):
        found += [Path(home, name) for name in names]
    return sorted(found)


def _entries(root: Path, files: Iterable[Path], left: dict[str, str]) -> list[Entry]:
    found = []
    for file in files:
        path = file.relative_to(root).as_posix()
        with contextlib.suppress(FileNotFoundError):
            within = (p for p in (file, *file.parents) if root in p.parents)
            if any(p.is_symlink() for p in within):
                left[path] = "is a link, or beyond one"
            elif not stat.S_ISREG(file.lstat().st_mode):
                left[path] = "is no plain file"
            elif why := unfit(path):
                left[path] = why
            else:
                found.append(Entry(path, *_digest(file, grows=is_log(path))))
    return found


def _digest(file: Path, *, grows: bool) -> tuple[int, str]:
    """Size and SHA-256; of a log that others add to, up to its last whole line."""
    if grows:
        content = file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        return len(content), hashlib.sha256(content).hexdigest()
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return opened.tell(), sha256
