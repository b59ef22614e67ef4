"""A trial's curve: the lines of ``curve.jsonl``, and the same points for TensorBoard.

The lines are the truth, and what a resumed trial goes on from. The event file is a mirror: it is
made anew from them whenever a curve is opened, and what goes wrong with it fails no trial.

The mirror is written with parts of ``tensorboard``, imported with the first curve that a process
opens: 0.2 s, and neither TensorFlow nor torch. Its own ``EventFileWriter`` gives each file a thread
and a queue; so does tensorboardX, which also imports torch where it is installed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hdsweep.storage import Patience, refusal

_NO_PATIENCE = Patience()
_OWN = ("step", "time_s")  # of a point's keys, those that are no metric


class Curve:
    """The points a trial reports, each readable by others as soon as it was added.

    Args:
        folder: The trial's; holds ``curve.jsonl`` and ``tensorboard/``.
        began_s: When this attempt began, on the monotonic clock.
        log: Told once when the mirror is given up.
        last_step: What an earlier attempt reported up to this step stays, in both files; all else
            is dropped.
        patience: With storage that refuses a point.
    """

    def __init__(
        self,
        folder: Path,
        began_s: float,
        log: logging.Logger,
        *,
        last_step: int = 0,
        patience: Patience = _NO_PATIENCE,
    ) -> None:
        self._patience = patience
        self._began_s = began_s
        self._log = log
        path, fresh = folder / "curve.jsonl", folder / ".curve.jsonl"
        kept = list(_points(path, last_step)) if last_step else []
        written_s = path.stat().st_mtime if kept else 0.0
        # By rename: a kill loses no point, and a dying attempt may still hold the old file.
        fresh.unlink(missing_ok=True)
        self._file = fresh.open("a", encoding="utf-8", buffering=1)
        try:
            self._file.write("".join(line for line, _ in kept))
            os.replace(fresh, path)
        except BaseException:
            self._close_file()
            raise
        self._events: _EventFile | None = None
        try:
            home = folder / "tensorboard"
            known_s = _wall_times(home) if kept else {}
            self._events = _EventFile(home)
            for _, point in kept:
                step = point["step"]
                values = {name: float(v) for name, v in point.items() if name not in _OWN}
                self._events.add(known_s.get(step, written_s), step, values)
            self._events.start()
        except Exception as error:  # whatever it is, a mirror fails no trial
            self._give_up(error)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a point.

        Raises:
            ValueError: A metric has the name of a point's own key.
            OSError: The disk is full, or the like.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if not values.keys().isdisjoint(_OWN):
            raise ValueError(f"a reported metric is named as one of {_OWN}; name it otherwise")
        point: dict[str, Any] = {"step": step, "time_s": round(time.monotonic() - self._began_s, 3)}
        for name, value in values.items():  # JSON has no NaN; the words are what float() reads
            point[name] = value if math.isfinite(value) else str(value)
        try:
            self._file.write(json.dumps(point) + "\n")
        except OSError as error:
            if refusal(error) is None:
                raise
            self._patience.insist(self._file.flush)  # which still has what was not written
        if self._events is not None:
            try:
                self._events.add(time.time(), step, values)
                self._events.flush()
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Leave nothing open; every point was flushed, or its failure raised, by ``add``."""
        self._close_file()
        if self._events is not None:
            self._events.close()

    def _close_file(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _give_up(self, error: Exception) -> None:
        self._log.warning("no more points for TensorBoard: %s: %s", type(error).__name__, error)
        if self._events is not None:
            self._events.close()
        self._events = None


def read_points(folder: Path) -> list[dict[str, Any]]:
    """Points of the curve in a trial's folder, in their order, with NaN and infinity as numbers."""
    points = (point for _, point in _points(folder / "curve.jsonl", math.inf))
    return [
        {name: v if name in _OWN else float(v) for name, v in point.items()} for point in points
    ]


def _points(path: Path, last_step: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines up to a step, and what they say; not those that a kill cut."""
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                point = json.loads(line)
                if point["step"] <= last_step:
                    yield line.decode() + "\n", point


# --- TensorBoard's event files --------------------------------------------------------------------


class _EventFile:
    """A new file of scalars in ``home``, in the place of those that are there.

    What is added reaches others by ``flush``. A TensorBoard that is watching the folder sees the
    change too: file names sort by time and none is used twice, and the old files are emptied, for
    it reads a run's files in turn and is stuck at one that was removed.
    """

    def __init__(self, home: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        home.mkdir(exist_ok=True)
        self._old = list(home.glob(_PATTERN))
        now = time.time()
        heads = (
            Event(wall_time=now, file_version="brain.Event:2"),
            # A session's start: one that is watching forgets the steps it was shown before.
            Event(wall_time=now, session_log={"status": "START"}),
        )
        path = home / f"events.out.tfevents.{now:017.6f}.{os.getpid()}"
        self._writer = RecordWriter(path.open("xb"))
        for head in heads:
            self._writer.write(head.SerializeToString())

    def start(self) -> None:
        """Show what was added so far, and only that."""
        self._writer.flush()
        for old in self._old:
            os.truncate(old, 0)

    def add(self, wall_s: float, step: int, values: Mapping[str, float]) -> None:
        """Write a point; what is too large for 32 bits is infinite there."""
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        event = self._event(wall_time=wall_s, step=step, summary={"value": scalars})
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        """Show what was added."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file, written or not."""
        with contextlib.suppress(OSError):
            self._writer.close()


_PATTERN = "*tfevents*"


def _wall_times(home: Path) -> dict[int, float]:
    """Step -> when it was reported, of the event files in a folder; up to damage in them."""
    # Not by an EventFileLoader, which imports TensorFlow where it is installed.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    found = {}
    for path in sorted(home.glob(_PATTERN)):
        reader = PyRecordReader_New(str(path))
        with contextlib.suppress(Exception):  # it raises at the end and at any damage
            while True:
                reader.GetNext()
                event = Event.FromString(reader.record())
                if event.HasField("summary"):
                    found[event.step] = event.wall_time
    return found


# --- Event files by name --------------------------------------------------------------------------

_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]|^\.")  # in the name of a link
_NAME_BYTES = 200  # most filesystems take 255, and a trial's id may follow
_TRIALS = "../../../trials/"


def link_curves(home: Path, labels: Mapping[str, str]) -> None:
    """Make links to trials' event files, by readable names; what else is there is let be.

    Args:
        home: A folder three below the one that holds ``trials``.
        labels: Trial id -> name, not necessarily one that a file can have.
    """
    home.mkdir(exist_ok=True)
    wanted: dict[str, str] = {}
    for trial_id, label in labels.items():
        name = _UNSAFE.sub("_", label).encode(errors="replace").decode()
        if name in wanted or len(name.encode()) > _NAME_BYTES:
            name = f"{name.encode()[:_NAME_BYTES].decode(errors='ignore')} {trial_id}"
        wanted[name] = f"{_TRIALS}{trial_id[:2]}/{trial_id}/tensorboard"
    with os.scandir(home) as entries:
        links = {e.name: os.readlink(e.path) for e in entries if e.is_symlink()}
    for name, target in links.items():
        if target.startswith(_TRIALS) and wanted.get(name) != target:
            os.unlink(home / name)
    for name, target in wanted.items():
        if links.get(name) != target:
            with contextlib.suppress(OSError):  # another's file, or a filesystem without links
                os.symlink(target, f"{home}/{name}")
