"""What others have packed, taken over into a store.

An archive is checked as a whole before the first byte is written, then unpacked beside the trials,
and then moved trial by trial, each record last: a kill leaves whole trials, and a hidden folder.
Nothing that is ``ok`` here is replaced; what says otherwise than here is named and left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hdsweep.errors import Busy, StoreError
from hdsweep.files import cannot_write, sync_folder
from hdsweep.packed import SWEEP_FILES, TRIAL_FILES, Entry, walk
from hdsweep.planned import PlannedSweep, log_from_bytes
from hdsweep.store import Store
from hdsweep.trial import TrialRecord, require_own_id

PREFIX = ".import-"
"""How the folders begin in which a store unpacks archives."""

_LARGEST = 256 << 20  # of a record or a log, which are read whole


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of an archive in a store.

    Args:
        added: Ids of trials that had not finished here.
        replaced: Ids of trials that had failed here, or the like, and are ``ok`` in the archive.
        completed: Ids of trials that were here without some of their files.
        present: How many trials were here as they are in the archive.
        sweeps: Names of those added.
        left: Trial id or sweep -> why it was left as it is here.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    completed: tuple[str, ...]
    present: int
    sweeps: tuple[str, ...]
    left: Mapping[str, str]


def load(store: Store, path: Path) -> Loaded:
    """Take over what an archive holds.

    Args:
        store: Made where there is none.
        path: Of an archive that ``save`` wrote, or somebody says so.

    Raises:
        StoreError: It is none, is damaged, or holds what does not belong into a store, and nothing
            was written; or the store cannot be written, and what was taken over so far stays.
    """
    arriving = _checked(store, path)
    store.create()
    taken = [entry for unit in arriving for entry in unit.entries]
    _require_room(store, sum(entry.size for entry in taken))
    with _unpacked(store, path, {entry.path for entry in taken}) as staged:
        for unit in arriving:
            if unit.entries:
                _take(store, staged, unit)
    return _loaded(arriving)


@dataclass(slots=True)
class _Unit:
    """A trial or a sweep of an archive, and what is to become of it."""

    trial: str | None
    sweep: str | None
    fate: str  # added, replaced, completed, present or left
    entries: list[Entry]  # those to be unpacked
    why: str = ""

    @property
    def name(self) -> str:
        return self.trial or f"sweep {self.sweep}"


def _loaded(units: Sequence[_Unit]) -> Loaded:
    def trials(fate: str) -> tuple[str, ...]:
        return tuple(u.trial for u in units if u.trial is not None and u.fate == fate)

    return Loaded(
        added=trials("added"), replaced=trials("replaced"), completed=trials("completed"),
        present=len(trials("present")),
        sweeps=tuple(u.sweep for u in units if u.sweep is not None and u.fate == "added"),
        left={u.name: u.why for u in units if u.fate == "left"},
    )  # fmt: skip


def _checked(store: Store, path: Path) -> list[_Unit]:
    """Read an archive to its end, and decide of each part; nothing is written.

    Raises:
        StoreError: As ``load``.
    """
    found: dict[str, list[Entry]] = {}
    content: dict[str, bytes] = {}
    units = []
    for entry, pieces in walk(path):
        part = entry.trial or f"sweeps/{entry.sweep}"
        if part not in found and found:
            units.append(_decided(store, path, *found.popitem(), content))
            content.clear()
        found.setdefault(part, []).append(entry)
        name = entry.path.rpartition("/")[2]
        if name in ("record.json", *SWEEP_FILES) and entry.path.count("/") <= 3:
            if entry.size > _LARGEST:
                raise StoreError(f"{path}: {entry.path}: is far too large to be one")
            content[name] = b"".join(pieces)
        else:
            for _ in pieces:  # for its checksum
                pass
    if found:
        units.append(_decided(store, path, *found.popitem(), content))
    names = [unit.name for unit in units]
    if len(set(names)) != len(names):
        raise StoreError(f"{path}: the files of a trial or a sweep are not all in one place")
    return units


def _decided(
    store: Store, path: Path, part: str, entries: list[Entry], content: Mapping[str, bytes]
) -> _Unit:
    where = f"{path}: {entries[0].path.rpartition('/')[0]}"
    if entries[0].sweep is not None:
        return _decided_sweep(store, where, entries[0].sweep, entries, content)
    if "record.json" not in content:
        raise StoreError(f"{where}: a trial without its record")
    record = TrialRecord.from_bytes(content["record.json"], f"{where}/record.json")
    require_own_id(record, part, where)
    try:
        standing = store.record(part)
    except StoreError:
        return _Unit(part, None, "left", [], "is damaged here; mend it by hdsweep doctor --repair")
    if standing is None:
        return _Unit(part, None, "added", entries)
    if standing.to_bytes() == record.to_bytes():
        lacking = [e for e in entries if not (store.root / e.path).exists()]
        lacking = [e for e in lacking if "/earlier/" not in e.path]
        return _Unit(part, None, "completed" if lacking else "present", lacking)
    if standing.status != "ok" and record.status == "ok":
        return _Unit(part, None, "replaced", entries)
    return _Unit(part, None, "left", [], _difference(standing, record))


def _difference(here: TrialRecord, there: TrialRecord) -> str:
    if here.status != there.status:
        return f"is {here.ending} here and {there.ending} in the archive"
    for metric, values in there.metrics.items():
        for group, value in values.items():
            own = here.metrics.get(metric, {}).get(group)
            if own != value:
                return f"{metric} of {group} is {own} here and {value} in the archive"
    if here.metrics == there.metrics:
        return "was run here too, with the same metrics"
    return "has other metrics here"


def _decided_sweep(
    store: Store, where: str, name: str, entries: list[Entry], content: Mapping[str, bytes]
) -> _Unit:
    if not {"plan.json", "sweep.yaml"} <= content.keys():
        raise StoreError(f"{where}: a sweep without its plan")
    planned = PlannedSweep.from_bytes(content["plan.json"], f"{where}/plan.json")
    events = log_from_bytes(content.get("decisions.jsonl", b""), f"{where}/decisions.jsonl")
    if planned.name != name:
        raise StoreError(f"{where}: its plan is of another sweep, {planned.name!r}")
    for trial_id in planned.decided(events).labels():
        store.trial_dir(trial_id)  # raises StoreError for what is no id
    folder = store.root / "sweeps" / name
    if not (folder / "plan.json").exists():
        return _Unit(None, name, "added", entries)
    for file in SWEEP_FILES:
        own = folder / file
        if content.get(file, b"") != (own.read_bytes() if own.exists() else b""):
            return _Unit(
                None, name, "left", [], f"{file} here says otherwise; its trials are taken"
            )
    return _Unit(None, name, "present", [])


def _require_room(store: Store, size: int) -> None:
    free = shutil.disk_usage(store.root).free
    if size > free:
        raise StoreError(
            f"{store.root}: {size:,} bytes are to be unpacked and {free:,} are free; make room, or "
            "name another --store"
        )


@contextlib.contextmanager
def _unpacked(store: Store, path: Path, wanted: set[str]) -> Iterator[Path]:
    """A hidden folder of the store with the wanted files of an archive."""
    try:
        staged = Path(tempfile.mkdtemp(prefix=PREFIX, dir=store.root))
        held = os.open(staged, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(store.root, error) from None
    try:
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is in use: see is_abandoned
        for entry, pieces in walk(path) if wanted else ():
            if entry.path in wanted:
                target = staged / entry.path
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as file:
                        for piece in pieces:
                            file.write(piece)
                        file.flush()
                        os.fsync(file.fileno())
                except OSError as error:
                    raise cannot_write(target, error) from None
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(held)


def is_abandoned(staged: Path) -> bool:
    """Whether a folder that begins with PREFIX is of an import that was killed."""
    try:
        handle = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _take(store: Store, staged: Path, unit: _Unit) -> None:
    """Move a part to its place, unless another process has been faster."""
    try:
        if unit.trial is not None:
            with store.running(unit.trial, wait=False):
                _take_trial(store, staged, unit, unit.trial)
        elif unit.sweep is not None:
            with store.driving(unit.sweep):
                home = store.root / "sweeps" / unit.sweep
                if (home / "plan.json").exists():
                    unit.fate, unit.why = "left", "was run here meanwhile"
                else:
                    _move(staged / "sweeps" / unit.sweep, home, SWEEP_FILES[-1])
    except Busy:
        unit.fate, unit.why = "left", "is being run here now"
    except OSError as error:
        raise cannot_write(store.root, error) from None


def _take_trial(store: Store, staged: Path, unit: _Unit, trial_id: str) -> None:
    home, source = store.trial_dir(trial_id), staged / f"trials/{trial_id[:2]}/{trial_id}"
    standing = store.record(trial_id)
    if unit.fate == "completed":
        _move(source, home, "record.json")
        return
    if standing is not None and standing.status == "ok":
        unit.fate, unit.why = "left", "has finished here meanwhile"
        return
    if standing is not None:
        store.set_aside(trial_id)
    for name in ("checkpoint", "artifacts"):  # of an attempt that is over
        shutil.rmtree(home / name, ignore_errors=True)
    for name in TRIAL_FILES[:-1]:
        if not (source / name).exists():
            (home / name).unlink(missing_ok=True)
    earlier = source / "earlier"
    if earlier.is_dir():
        (home / "earlier").mkdir(exist_ok=True)
        for one in sorted(earlier.iterdir(), key=lambda p: int(p.name)):
            count = sum(p.name.isdigit() for p in (home / "earlier").iterdir())
            os.rename(one, home / "earlier" / str(count))
        earlier.rmdir()
    _move(source, home, "record.json")


def _move(source: Path, home: Path, last: str) -> None:
    """Move files and folders, one of them after all others are durably in place."""
    names = sorted(os.listdir(source), key=lambda name: name == last)
    for name in names:
        target = home / name
        if (source / name).is_dir() and target.is_dir():
            _move(source / name, target, "")
            continue
        if name == last:
            sync_folder(home)
        os.replace(source / name, target)
    sync_folder(home)
