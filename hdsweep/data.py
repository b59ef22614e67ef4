"""The files behind a data set: made on first use, verified once, and named by their content.

Hashing gigabytes at every ``plan`` would be felt, so digests are remembered per file under the
user's cache folder and trusted while size, times and inode are unchanged. The memory belongs to
this machine, not to the store, and may be deleted. A new or changed file is verified by its data
set before anything runs: a damaged image should cost a message, not the fourth hour of a sweep.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from hdsweep.errors import DataError
from hdsweep.method import Dataset
from hdsweep.spec import Strict, file_digest


def make_if_absent(dataset: Dataset, params: Any, say: Callable[[str], None]) -> bool:
    """Write the synthetic data that ``params.make`` describes, unless its folder is there.

    The folder appears whole or not at all, so that a run killed while writing leaves no half set.

    Args:
        dataset: Whose generator writes.
        params: Validated parameters with ``root`` and ``make``.
        say: Told before the work starts.

    Returns:
        Whether anything was written.
    """
    make, root = getattr(params, "make", None), Path(params.root)
    if make is None or dataset.generator is None or root.exists():
        return False
    say(f"making {root} (first use)")
    write_data(dataset, make, root)
    return True


def write_data(dataset: Dataset, make: Strict, root: Path) -> None:
    """Generate a data set at ``root``, which must not exist. Raises DataError if it does."""
    if dataset.generator is None:
        raise DataError(f"{root}: this data set has no generator; copy the published data there")
    if root.exists():
        raise DataError(f"{root}: exists already; name a new folder or remove it first")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            dataset.generator.write(make, partial)
            partial.chmod(0o755)
            try:
                os.rename(partial, root)
            except OSError:
                if not root.exists():  # else another process made the very same data first
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{root}: cannot be written: {error.strerror}; name another folder"
        ) from None


def fingerprint(dataset: Dataset, params: Any) -> str:
    """64 hex digits over the names and contents of all files that the data set reads.

    Raises:
        DataError: The layout is not there, or a file cannot be read.
    """
    root = Path(params.root).absolute()
    files = [Path(os.path.abspath(path)) for path in dataset.files(params)]
    memory = user_cache_path("hdsweep") / "fingerprints" / f"{_short(str(root))}.json"
    try:
        known: dict[str, list[Any]] = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        known = {}
    state: dict[str, list[Any]] = {}
    fresh: list[tuple[str, Path]] = []
    for path in files:
        name = path.relative_to(root).as_posix()
        seen = path.stat()
        now = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]
        before = known.get(name)
        if isinstance(before, list) and before[:-1] == now:
            state[name] = before
        else:
            state[name] = [*now, ""]
            fresh.append((name, path))

    def digest_of(path: Path) -> str:
        dataset.verify(path)
        return file_digest(path)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for (name, _), found in zip(fresh, pool.map(digest_of, (p for _, p in fresh)), strict=True):
            state[name][-1] = found
    if fresh:
        _remember(memory, known | state)
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(f"{name}\0{state[name][-1]}\n".encode())
    return whole.hexdigest()


def _remember(memory: Path, state: dict[str, list[Any]]) -> None:
    # Only a convenience: a read-only home must not stop a sweep.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=memory.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(state, file)
        os.replace(name, memory)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
