"""What is wrong with a store, and how it is mended without losing what has finished.

Every check names a place, what was found there, and what to do. What can be mended without a
decision of a person is: what is damaged is moved to ``damaged/`` below the store and never removed;
only what killed processes left half made is. Trials and sweeps that are being run are passed by.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from hdsweep import unpack
from hdsweep.doctor import stages, sweeps, trials
from hdsweep.doctor.finding import Finding, half
from hdsweep.errors import Busy
from hdsweep.files import cannot_write, write_whole
from hdsweep.store import Store
from hdsweep.trial import FORMAT

__all__ = ["Finding", "examine"]

_PARTS = ("trials", "sweeps", "stages")
_LITTLE_BYTES = 1 << 30  # of free space


def examine(store: Store, *, deep: bool = False, repair: bool = False) -> Iterator[Finding]:
    """Look at all of a store.

    Args:
        store: To be looked at; nothing is written to it unless it is repaired.
        deep: Whether predictions are read whole and metrics computed from them again.
        repair: Whether what can be mended is, as it is found.

    Raises:
        StoreError: The store cannot be repaired because it cannot be written.
    """
    parts = (
        _root(store),
        trials.examine(store, deep=deep),
        sweeps.examine(store),
        stages.examine(store),
    )
    for found in (finding for part in parts for finding in part):
        if not repair or found.mend is None:
            yield found
            continue
        try:
            found.mend()
        except OSError as error:
            raise cannot_write(Path(found.where), error) from None
        except Busy:  # somebody has begun to run it meanwhile
            yield found
        else:
            yield replace(found, mended=True)


def _root(store: Store) -> Iterator[Finding]:
    root = store.root
    marker = root / "store.json"
    if not marker.exists() and any((root / name).exists() for name in _PARTS):
        mark = partial(write_whole, marker, json.dumps({"format": FORMAT}).encode() + b"\n")
        yield Finding(str(marker), "is missing", "write it", mend=mark)
    for path in sorted(root.iterdir()):
        if path.name.startswith(unpack.PREFIX):
            if unpack.is_abandoned(path):
                yield half(path, "an import that was killed")
        elif path.name.startswith(".store.json-"):
            yield half(path, "a process that was killed")
        elif path.name in _PARTS and path.is_symlink():
            yield Finding(str(path), "is a link", "see that it leads where you want", "note")
    free = shutil.disk_usage(root).free
    if free < _LITTLE_BYTES:
        yield Finding(str(root), f"{free >> 20:,} MiB are free", "make room before the next run")
    for path in (root, *(root / name for name in _PARTS)):
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            to_do = "mend its permissions, or use it for reports only"
            yield Finding(str(path), "cannot be written by you", to_do, "note")
