"""Checks of sweeps: plans, logs of decisions, and the files they were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hdsweep.doctor.finding import Finding, half, move_away, moved_aside, remove, said
from hdsweep.errors import SpecError, StoreError
from hdsweep.files import write_whole
from hdsweep.planned import PlannedSweep, draws_of, log_from_bytes
from hdsweep.store import Store
from hdsweep.yamlfile import read_yaml

_IMPORTED = b"# imported from "  # how the sweep.yaml of such a sweep begins


def examine(store: Store) -> Iterator[Finding]:
    """Look at all sweeps; those that are being run are passed by."""
    home = store.root / "sweeps"
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        try:
            log = store.log_of(folder.name)
        except StoreError:
            yield _no_sweep(folder)
            continue
        if folder.is_symlink() or not folder.is_dir():
            yield _no_sweep(folder)
            continue
        if not store.is_driven(folder.name):
            yield from _sweep(store, folder, log)


def _alone(store: Store, path: Path, mend: Callable[[Path], object]) -> None:
    """Mend a file of a sweep, not while it is being run."""
    with store.driving(path.parent.name):
        mend(path)


def _no_sweep(path: Path) -> Finding:
    return Finding(str(path), "is no folder of a sweep", "see what it is", "note")


def _sweep(store: Store, folder: Path, log: Path) -> Iterator[Finding]:
    for path in folder.glob(".*-*"):
        yield half(path, "a process that was killed", partial(_alone, store, path, remove))
    if (note := folder / "driver.json").exists():
        yield half(note, "a driver that was killed", partial(_alone, store, note, remove))
    plan = folder / "plan.json"
    if plan.exists():
        try:
            planned = PlannedSweep.from_bytes(plan.read_bytes(), str(plan))
            if planned.name != folder.name:
                raise StoreError(f"{plan}: is of another sweep, {planned.name!r}")
            for trial_id in planned.labels():
                store.trial_dir(trial_id)
        except StoreError as error:
            yield Finding(
                str(plan), said(error, plan),
                f"{moved_aside(store)}; run the sweep again to write it anew",
                mend=partial(_alone, store, plan, partial(move_away, store)),
            )  # fmt: skip
    yield from _decisions(store, log)
    kept = folder / "sweep.yaml"
    if kept.exists() and not kept.read_bytes().startswith(_IMPORTED):
        try:
            read_yaml(kept)
        except SpecError as error:
            yield Finding(str(kept), str(error), "run the sweep again, from its own file")


def _decisions(store: Store, log: Path) -> Iterator[Finding]:
    """Damage in a log of decisions; what stands before it stays."""
    if not log.exists():
        return
    content = log.read_bytes()
    lines = content.split(b"\n")[:-1]
    good = 0
    try:
        for good, line in enumerate(lines):  # noqa: B007 - how many were good is what is sought
            log_from_bytes(line + b"\n", str(log))
        good = len(lines)
        draws_of(log_from_bytes(content, str(log)), log)
    except StoreError as error:
        if good == len(lines):
            good = _before_the_gap(lines, log)
        whole = b"".join(line + b"\n" for line in lines[:good])

        def cut(path: Path) -> None:
            move_away(store, path)
            write_whole(path, whole)

        yield Finding(
            f"{log}:{good + 1}", said(error, log),
            "keep the lines before it, and move the whole log away; what was decided later is "
            "decided once more",
            mend=partial(_alone, store, log, cut),
        )  # fmt: skip


def _before_the_gap(lines: list[bytes], log: Path) -> int:
    events = log_from_bytes(b"".join(line + b"\n" for line in lines), str(log))
    for n in range(len(events)):
        try:
            draws_of(events[: n + 1], log)
        except StoreError:
            return n
    return len(events)
