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
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeGuard

from platformdirs import user_cache_path
from pydantic import ValidationError

from hdsweep.errors import DataError
from hdsweep.method import Dataset
from hdsweep.strict import Strict, file_digest

MADE = ".hdsweep.json"  # in a folder that a generator wrote: the generator's parameters


def make_if_absent(dataset: Dataset, params: Any, say: Callable[[str], None]) -> bool:
    """Write the synthetic data that ``params.make`` describes, unless its folder is there.

    The folder appears whole or not at all, so that a run killed while writing leaves no half set.

    Args:
        dataset: Whose generator writes.
        params: Validated parameters with ``root`` and ``make``.
        say: Told before the work starts.

    Returns:
        Whether anything was written.

    Raises:
        DataError: It cannot be written, or it was made with other parameters.
    """
    make, root = getattr(params, "make", None), Path(params.root)
    if make is None or dataset.generator is None:
        return False
    if _exists(root):
        _refuse_other_parameters(make, root)
        return False
    say(f"making {root} (first use)")
    try:
        write_data(dataset, make, root)
    except DataError:
        if not _exists(root):  # else another process has made it since we looked
            raise
    return True


def write_data(dataset: Dataset, make: Strict, root: Path) -> None:
    """Generate a data set at ``root``, which must not exist. Raises DataError if it does."""
    if dataset.generator is None:
        raise DataError(f"{root}: this data set has no generator; copy the published data there")
    if _exists(root):
        raise DataError(f"{root}: exists already; name a new folder or remove it first")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name[:40]}-", dir=root.parent))
        try:
            dataset.generator.write(make, partial)
            (partial / MADE).write_text(json.dumps(make.model_dump(mode="json"), indent=1) + "\n")
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


def _exists(root: Path) -> bool:
    try:
        return root.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise DataError(f"{root}: cannot be looked at: {error.strerror}; name another") from None


def _refuse_other_parameters(make: Strict, root: Path) -> None:
    """A folder without a note of ours is the user's own and stays as it is."""
    made: dict[str, Any] | None
    try:
        noted = json.loads((root / MADE).read_bytes())
        made = type(make).model_validate(noted).model_dump(mode="json")
    except ValidationError:
        made = noted if isinstance(noted, dict) else None  # by a version with other parameters
    except (OSError, ValueError, RecursionError):
        made = None
    if made is None:
        return
    asked = make.model_dump(mode="json")
    for name in sorted(made.keys() | asked.keys()):
        there, wanted = made.get(name), asked.get(name)
        if there != wanted:
            raise DataError(
                f"{root}: was made with {name} = {json.dumps(there)}, and 'make' asks for "
                f"{json.dumps(wanted)}; remove the folder to make it anew, or name another root"
            )


def fingerprint(dataset: Dataset, params: Any) -> str:
    """64 hex digits over the names and contents of all files that the data set reads.

    Raises:
        DataError: The layout is not there, or a file cannot be read.
    """
    root = Path(params.root).absolute()
    try:
        files = [Path(os.path.abspath(path)) for path in dataset.files(params)]
    except OSError as error:
        raise _unreadable(Path(os.fsdecode(error.filename or root)), error) from None
    memory = user_cache_path("hdsweep") / "fingerprints" / f"{_short(root)}.json"
    known = _remembered(memory)
    state: dict[str, list[Any]] = {}
    fresh: list[tuple[str, Path]] = []
    for path in files:
        name = _name(path, root)
        try:
            seen = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from None
        now = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]
        before = known.get(name)
        if _is_digest_of(before, now):
            state[name] = before
        else:
            state[name] = [*now, ""]
            fresh.append((name, path))

    def digest_of(path: Path) -> str:
        try:
            dataset.verify(path)
            return file_digest(path)
        except OSError as error:
            raise _unreadable(path, error) from None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for (name, _), found in zip(fresh, pool.map(digest_of, (p for _, p in fresh)), strict=True):
            state[name][-1] = found
    if fresh:
        _remember(memory, known | state)
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(f"{name}\0{state[name][-1]}\n".encode())
    return whole.hexdigest()


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise DataError(f"{shown}: the file name is not UTF-8; rename the file") from None
    return name


def _unreadable(path: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    if os.path.islink(path):
        reason = f"a link to {os.readlink(path)}, {reason}"
    return DataError(f"{path}: cannot be read: {reason}; mend or remove it")


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _is_digest_of(before: object, now: list[int]) -> TypeGuard[list[Any]]:
    return (
        isinstance(before, list)
        and before[:-1] == now
        and isinstance(before[-1], str)
        and re.fullmatch("[0-9a-f]{64}", before[-1]) is not None
    )


def _remember(memory: Path, state: dict[str, list[Any]]) -> None:
    # Only a convenience: a read-only home must not stop a sweep.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=memory.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(state, file)
        os.replace(name, memory)


def _short(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
