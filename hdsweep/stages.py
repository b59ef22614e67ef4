"""Work that trials share, done once and named by what it was made from.

A stage's folder is ``ROOT/stages/<name>/<key>``; the key is the digest of name, version, inputs,
the data's fingerprint and the source of the code. It is built beside its place and renamed into it,
so that a folder of that name is always whole. Building is guarded by an operating-system file lock,
which the kernel frees when its holder dies: a killed builder never blocks the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock

from hdsweep.identity import digest


def stage_key(
    name: str, version: int, inputs: Mapping[str, object], fingerprint: str, source: str
) -> str:
    """20 hex digits that name a stage's content."""
    content = {"stage": name, "version": version, "inputs": inputs}
    return digest(content | {"data": fingerprint, "source": source})


def stage_folder(
    root: Path,
    name: str,
    *,
    version: int,
    inputs: Mapping[str, object],
    fingerprint: str,
    source: str,
    build: Callable[[Path], None],
) -> Path:
    """The finished folder of a stage, built now by this process if nobody has.

    Args:
        root: The store.
        name: A plain word; folders are grouped by it.
        version: Raised by the author when ``build`` may give another result.
        inputs: JSON values.
        fingerprint: Of the data.
        source: Digest of the code that reads the data and builds: a stage is a cache, and one of
            another source is built anew although its author did not raise ``version``.
        build: Writes into the empty folder it is given; whatever it raises is passed on and leaves
            nothing behind.

    Returns:
        A folder to be read only. Several processes that ask at once wait for the one that builds.
    """
    if not name.isidentifier():
        raise ValueError(f"a stage's name is a plain word, found {name!r}")
    key = stage_key(name, version, inputs, fingerprint, source)
    home = root / "stages" / name
    target = home / key
    if target.is_dir():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f".{key}.lock"):
        if target.is_dir():  # built while we waited
            return target
        for dead in home.glob(f".{key}-*"):  # the lock is ours, so its builder is gone
            shutil.rmtree(dead, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=home))
        began = time.monotonic()
        try:
            build(partial)
            note = {
                "name": name,
                "version": version,
                "inputs": inputs,
                "data": fingerprint,
                "source": source,
                "build_s": round(time.monotonic() - began, 3),
                "size_bytes": sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()),
            }
            (partial / "stage.json").write_text(json.dumps(note, indent=1) + "\n")
            for path in (partial, *partial.rglob("*")):  # private as temporary files are made, and
                path.chmod(0o755 if path.is_dir() else 0o644)  # colleagues read a store too
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
