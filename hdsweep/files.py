"""Files of the store, written so that a crash at any moment leaves no half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from hdsweep.errors import StoreError


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file so that at every moment, a crash included, it is the old or the new one.

    The content is on disk when this returns; the name may still be lost with the machine's power,
    but for ``Store.put``, which makes all names of a trial's folder durable with its record.
    """
    temporary = _temporary(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files; a store is read by colleagues
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where its filesystem can."""
    with contextlib.suppress(OSError):  # some network filesystems refuse it, and need it less
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cannot_write(path: Path, error: OSError) -> StoreError:
    """The message for a part of the store that cannot be written."""
    return StoreError(
        f"{path}: cannot be written: {error.strerror}; free space or mend permissions and run the "
        "same command again, finished trials are kept"
    )
