"""The store: records, predictions, curves and the sweeps that asked for them.

The records are the only truth. A trial's folder may hold anything while it runs; the presence of
``record.json``, made whole in one step, says that it finished. So no lock guards reading, and a
process killed at any moment leaves either a finished trial or one that was never finished.

    ROOT/store.json                          what version of the layout this is
         trials/ab/ab12.../record.json       written last
                           predictions.parquet  curve.jsonl  log.txt  checkpoint/  artifacts/
                           tensorboard/         the curve once more, see curve.py
         stages/<stage>/<key>/               shared work, see stages.py
         sweeps/<name>/sweep.yaml plan.json
                       decisions.jsonl      what was decided while it ran, see planned.py
                       tensorboard/<label>  -> the trial's; a convenience, may be deleted
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hdsweep.curve import link_curves
from hdsweep.errors import Busy, StoreError, did_you_mean
from hdsweep.files import cannot_write, sync_folder, write_whole
from hdsweep.method import Predictions
from hdsweep.planned import (
    PlannedCell,
    PlannedSearch,
    PlannedSweep,
    append_to_log,
    read_log,
    write_log,
)
from hdsweep.trial import FORMAT, TrialRecord, newer_format

__all__ = ["PlannedCell", "PlannedSearch", "PlannedSweep", "Store"]

_ID = re.compile(r"^[0-9a-f]{20}\Z")
_OURS = {"store.json", "trials", "stages", "sweeps", "damaged"}  # the last by doctor
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


class Store:
    """A folder of trials. Opening one reads nothing but its version and writes nothing."""

    def __init__(self, root: Path) -> None:
        if "://" in str(root) or re.match(r"^[a-z0-9]+:/", str(root)):
            raise StoreError(f"{root}: a store is a local folder in this version; name a path")
        try:
            self.root = root.expanduser().absolute()
            self._trials = str(self.root / "trials")
            self._marker = self.root / "store.json"
            if self.root.exists() and not self.root.is_dir():
                raise StoreError(f"{root}: is a file; a store is a folder, name another --store")
            content = self._marker.read_bytes()
        except FileNotFoundError:
            return
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~nobody
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"{root}: cannot be read as a store: {reason}") from None
        try:
            found = json.loads(content)["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f'{self._marker}: is damaged ({error}); restore it as {{"format": {FORMAT}}}'
            ) from None
        if not isinstance(found, int) or found > FORMAT:
            raise newer_format(str(self._marker), found)

    # --- writing ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise StoreError where others' files lie: such a folder is not made a store."""
        try:
            # Ours may be there before the marker is: another process may be making the store.
            inside = self.root.iterdir() if self.root.exists() else iter(())
            names = {p.name for p in inside if not p.name.startswith(".store.json-")}
            foreign = bool(names - _OURS) and not self._marker.exists()
        except OSError as error:
            raise StoreError(f"{self.root}: cannot be read: {error.strerror}") from None
        if foreign:
            raise StoreError(
                f"{self.root}: is not empty and not a hdsweep store; name a new --store"
            )

    def create(self) -> None:
        """Make the folder a store, unless it is one."""
        self.check()
        try:
            if not self._marker.exists():
                self.root.mkdir(parents=True, exist_ok=True)
                write_whole(self._marker, json.dumps({"format": FORMAT}).encode() + b"\n")
        except OSError as error:
            raise cannot_write(self.root, error) from None

    @contextlib.contextmanager
    def running(self, trial_id: str, *, wait: bool = True) -> Iterator[None]:
        """Be the one process that runs a trial; wait for another that does.

        As with ``driving``, the operating system frees the lock of a process that dies.

        Raises:
            StoreError: It cannot be locked.
            Busy: Another process runs it, and this one does not wait.
        """
        folder = self.trial_dir(trial_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            lock.acquire(blocking=wait)
        except Timeout:
            raise Busy(f"trial {trial_id}: is being run now") from None
        except OSError as error:
            raise cannot_write(folder, error) from None
        try:
            yield
        finally:
            lock.release()  # the empty file stays: who unlinks it may unlink another's lock

    def is_running(self, trial_id: str) -> bool:
        """Whether a process runs a trial; asked without a trace, for a store may be read only."""
        return _is_locked(self.trial_dir(trial_id) / ".lock")

    def is_driven(self, name: str) -> bool:
        """Whether a process runs a sweep; asked without a trace."""
        return _is_locked(self._sweep_dir(name) / ".driver.lock")

    def put(self, record: TrialRecord, *, replace: bool = False) -> TrialRecord:
        """Keep a record, durably. A record that is ``ok`` is never replaced, unless that is asked.

        Args:
            record: To be kept.
            replace: Whether it takes the place of any other; that one was ``set_aside``.

        Returns:
            The record that stands: the given one, or an ``ok`` one that was there before.
        """
        target = self.trial_dir(record.id) / "record.json"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            standing = None if replace else self.record(record.id)
            if standing is not None and standing.status == "ok":
                return standing
            write_whole(target, record.to_bytes())
            sync_folder(target.parent)
        except OSError as error:
            raise cannot_write(target, error) from None
        return record

    def set_aside(self, trial_id: str) -> None:
        """Copy what a finished trial left to ``earlier/<n>``, before it is run once more."""
        folder = self.trial_dir(trial_id)
        home = folder / "earlier"
        try:
            home.mkdir(exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
            try:
                for name in ("record.json", "predictions.parquet", "curve.jsonl", "log.txt"):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copy2(folder / name, partial / name)
                if (folder / "artifacts").is_dir():
                    shutil.copytree(folder / "artifacts", partial / "artifacts")
                partial.chmod(0o755)
                os.rename(partial, home / str(sum(p.name.isdigit() for p in home.iterdir())))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise cannot_write(folder, error) from None

    def put_predictions(self, trial_id: str, predictions: Predictions) -> None:
        """Write ``predictions.parquet`` of a trial, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = self.trial_dir(trial_id) / "predictions.parquet"
        sink = pa.BufferOutputStream()
        columns = {
            "item": pa.array(predictions.item, pa.string()),
            "group": pa.array(predictions.group, pa.string()).dictionary_encode(),
            "is_anomaly": pa.array(predictions.is_anomaly),
            "score": pa.array(predictions.score),
        }
        pq.write_table(pa.table(columns), sink)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, sink.getvalue().to_pybytes())
        except OSError as error:
            raise cannot_write(target, error) from None

    def put_sweep(self, sweep: PlannedSweep, yaml: bytes) -> None:
        """Keep what a sweep asked for, replacing what it asked before; its decisions stay.

        Its ``tensorboard`` gets a link to the curve of each trial, by name, reported or not.
        """
        folder = self._sweep_dir(sweep.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "sweep.yaml", yaml)
            write_whole(folder / "plan.json", sweep.to_bytes())
        except OSError as error:
            raise cannot_write(folder, error) from None
        with contextlib.suppress(OSError):  # a convenience; no trial needs them
            planned = sweep.decided(self.decisions(sweep.name))
            link_curves(folder / "tensorboard", planned.labels())

    def decide(self, name: str, event: Mapping[str, Any]) -> None:
        """Append to the decisions of a sweep that this process drives; see ``append_to_log``."""
        append_to_log(self.log_of(name), event)

    def put_decisions(self, name: str, events: Sequence[Mapping[str, Any]]) -> None:
        """Replace all decisions of a sweep; what is raised is that of ``decide``."""
        write_log(self.log_of(name), events)

    @contextlib.contextmanager
    def driving(self, name: str) -> Iterator[None]:
        """Be the one process that runs a sweep.

        The lock is the operating system's, so a killed driver loses it at once.

        Raises:
            Busy: Another process runs it; the message says which, where and since when.
        """
        folder = self._sweep_dir(name)
        lock, note = FileLock(folder / ".driver.lock", blocking=False), folder / "driver.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                by = json.loads(note.read_bytes())
                raise Busy(
                    f"sweep {name}: is being run already by process {by['pid']} on {by['host']} "
                    f"since {by['since']}; wait for it, or end it and run the same command again"
                ) from None
            raise Busy(f"sweep {name}: is being run already by another process") from None
        except OSError as error:
            raise cannot_write(folder, error) from None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            with contextlib.suppress(OSError):  # it only words the message of a second driver
                write_whole(note, json.dumps(holder).encode() + b"\n")
            yield
        finally:
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
            lock.release()

    # --- reading ----------------------------------------------------------------------------------

    def trial_dir(self, trial_id: str) -> Path:
        """Folder of a trial, existing or not."""
        return Path(self._folder_of(trial_id))

    def record(self, trial_id: str) -> TrialRecord | None:
        """The record of a finished trial; None when it has not finished."""
        # Plain strings: a report opens ten thousand of these, and Path costs as much as reading.
        path = f"{self._folder_of(trial_id)}/record.json"
        try:
            with open(path, "rb") as file:
                return TrialRecord.from_bytes(file.read(), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from None

    def finished(self) -> Iterator[str]:
        """Ids of all trials that have a record, in no order."""
        for folder in self._trial_folders():
            if os.path.exists(f"{folder.path}/record.json"):
                yield folder.name

    def records(self, ids: Iterable[str]) -> dict[str, TrialRecord]:
        """Records of those of ``ids`` that finished, by id."""
        found = ((i, self.record(i)) for i in dict.fromkeys(ids))
        return {i: record for i, record in found if record is not None}

    def resolve(self, prefix: str) -> str:
        """The one trial whose id starts with ``prefix``.

        Raises:
            StoreError: None or several do.
        """
        if not re.match(r"^[0-9a-f]{2,20}$", prefix):
            raise StoreError(
                f"'{prefix}' is not a trial id; give its first hex digits, two or more"
            )
        folder = self.root / "trials" / prefix[:2]
        matches = sorted(p.name for p in folder.glob(f"{prefix}*")) if folder.is_dir() else []
        if len(matches) != 1:
            found = (
                "no trial" if not matches else f"{len(matches)} trials ({', '.join(matches[:3])})"
            )
            raise StoreError(f"{self.root}: {found} with an id that starts with '{prefix}'")
        return matches[0]

    def predictions(self, trial_id: str) -> Predictions | None:
        """Stored predictions, or None where the trial has none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.trial_dir(trial_id) / "predictions.parquet"
        if not path.exists():
            return None
        try:
            table = pq.read_table(path, memory_map=True)
            return Predictions(
                item=tuple(table["item"].to_pylist()),
                group=tuple(table["group"].to_pylist()),
                is_anomaly=table["is_anomaly"].to_numpy(),
                score=table["score"].to_numpy(),
            )
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{path}: not a table of predictions: {error}") from None

    def sweeps(self) -> list[str]:
        """Names of the sweeps that were run here, the latest first."""
        plans = list((self.root / "sweeps").glob("*/plan.json"))
        return [p.parent.name for p in sorted(plans, key=lambda p: -p.stat().st_mtime_ns)]

    def sweep(self, name: str | None = None) -> PlannedSweep:
        """What a sweep asked for and decided; the latest one when no name is given."""
        known = self.sweeps()
        if not known:
            raise StoreError(f"{self.root}: no sweep was run here; run one, or name its --store")
        if name is not None and name not in known:
            raise StoreError(f"{self.root}: no sweep '{name}'{did_you_mean(name, known)}")
        path = self._sweep_dir(name or known[0]) / "plan.json"
        try:
            planned = PlannedSweep.from_bytes(path.read_bytes(), str(path))
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
        return planned.decided(self.decisions(path.parent.name))

    def decisions(self, name: str) -> list[dict[str, Any]]:
        """What was decided while a sweep ran, in order; see ``read_log``."""
        return read_log(self.log_of(name))

    def _folder_of(self, trial_id: str) -> str:
        if not _ID.match(trial_id):
            raise StoreError(f"'{trial_id}' is not a trial id: 20 hex digits")
        return f"{self._trials}/{trial_id[:2]}/{trial_id}"

    def _sweep_dir(self, name: str) -> Path:
        if not _NAME.match(name):
            raise StoreError(f"'{name}' is not the name of a sweep")
        return self.root / "sweeps" / name

    def log_of(self, name: str) -> Path:
        """Where the decisions of a sweep are."""
        return self._sweep_dir(name) / "decisions.jsonl"

    def _trial_folders(self) -> Iterator[os.DirEntry[str]]:
        try:
            prefixes = list(os.scandir(self.root / "trials"))
        except FileNotFoundError:
            return
        for prefix in prefixes:
            with contextlib.suppress(NotADirectoryError):
                yield from (e for e in os.scandir(prefix) if _ID.match(e.name))


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a filesystem without locks
        return False
    finally:
        os.close(handle)
    return False
