"""The stages of a store as a whole: what is there, and what may go.

Whatever is among them and is not a stage is left alone, and so is all beyond a link.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdsweep.errors import StoreError
from hdsweep.identity import DIGEST_CHARS
from hdsweep.lease import Lease
from hdsweep.stages import (
    NOTE,
    Note,
    is_abandoned,
    is_whole,
    locked,
    remove_if_abandoned,
    set_aside,
    size_of,
)

_KEY = re.compile(f"[0-9a-f]{{{DIGEST_CHARS}}}")
_HIDDEN = re.compile(rf"\.({_KEY.pattern}|removed)-\w+")
_LEASE = re.compile(rf"\.({_KEY.pattern})\.lease(\.(break|restore)\.(?P<pid>\d+)\.[0-9a-f]+)?")


@dataclass(frozen=True, slots=True)
class Kept:
    """A stage in the cache.

    Args:
        name: Of the stage.
        key: 20 hex digits.
        folder: Where it is.
        inputs: What it was made from; None where its note is damaged.
        size_bytes: Of all its files.
        build_s: Seconds that building it took, those of stages it asked for included.
        used_s: When it was last asked for, in seconds since the epoch.
    """

    name: str
    key: str
    folder: Path
    inputs: Mapping[str, Any] | None
    size_bytes: int
    build_s: float
    used_s: float


def kept(root: Path) -> list[Kept]:
    """All finished stages of a store, the one used last first."""
    found = []
    for folder in (path for home in _homes(root) for path in _entries(home) if _is_stage(path)):
        with contextlib.suppress(OSError):  # removed meanwhile
            used = (folder / NOTE).stat().st_mtime
            inputs, build_s = None, 0.0
            with contextlib.suppress(ValueError):  # damaged: still there, and of some size
                note = Note.model_validate_json((folder / NOTE).read_bytes())
                inputs, build_s = note.inputs, note.build_s
            size, name = size_of(folder), folder.parent.name
            found.append(Kept(name, folder.name, folder, inputs, size, build_s, used))
    return sorted(found, key=lambda one: -one.used_s)


def strangers(root: Path) -> list[Path]:
    """What lies among the stages and is none; it is left alone."""
    homes = _homes(root)
    inside = [path for home in homes for path in _entries(home)]
    ours = (_HIDDEN.fullmatch, _LEASE.fullmatch)
    return [p for p in _entries(root / "stages") if p not in homes] + [
        p for p in inside if not _is_stage(p) and not any(match(p.name) for match in ours)
    ]


def is_used(one: Kept) -> bool:
    """Whether a running trial uses a stage."""
    try:
        with locked(one.folder / NOTE) as free:
            return not free
    except FileNotFoundError:
        return False


def remove(one: Kept) -> bool:
    """Remove a stage at once as a whole; False when a running trial uses it."""
    _require_no_link(one.folder)
    try:
        with locked(one.folder / NOTE) as free:
            if not free:
                return False
            set_aside(one.folder)
    except FileNotFoundError:  # another process was faster
        pass
    return True


def trim(root: Path, size_bytes: int, *, dry_run: bool = False) -> tuple[list[Kept], list[Kept]]:
    """Remove the stages that were not used for longest, until all together fit into a size.

    Args:
        root: The store.
        size_bytes: That may stay.
        dry_run: Whether to remove nothing, and only tell.

    Returns:
        Those removed, and those that would have been but are in use.
    """
    if not dry_run:
        remove_leftovers(root)
    everything = kept(root)
    total = sum(one.size_bytes for one in everything)
    removed: list[Kept] = []
    in_use: list[Kept] = []
    for one in reversed(everything):
        if total <= size_bytes:
            break
        if not is_used(one) if dry_run else remove(one):
            removed.append(one)
            total -= one.size_bytes
        else:
            in_use.append(one)
    return removed, in_use


def leftovers(root: Path) -> list[Path]:
    """Folders that killed processes left half built or half removed."""
    hidden = (p for home in _homes(root) for p in _entries(home) if _HIDDEN.fullmatch(p.name))
    return [p for p in hidden if not p.is_symlink() and p.is_dir() and is_abandoned(p)]


def remove_leftovers(root: Path) -> None:
    """Remove what killed processes left: half a stage, or the lease to build one."""
    _require_no_link(root / "stages" / "any" / "key")
    for folder in leftovers(root):
        remove_if_abandoned(folder)
    for home in _homes(root):
        for path in _entries(home):
            lease = _LEASE.fullmatch(path.name)
            if lease and lease["pid"] and not os.path.exists(f"/proc/{lease['pid']}"):
                path.unlink(missing_ok=True)  # of one that died in the act of taking over
            elif lease and not lease["pid"]:
                Lease(home / lease[1]).remove_if_dead()


def _homes(root: Path) -> list[Path]:
    """Folders of the stages of one name."""
    found = _entries(root / "stages")
    return [p for p in found if p.name.isidentifier() and p.is_dir() and not p.is_symlink()]


def _is_stage(folder: Path) -> bool:
    links = folder.is_symlink() or (folder / NOTE).is_symlink()
    return bool(_KEY.fullmatch(folder.name)) and not links and is_whole(folder)


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _require_no_link(folder: Path) -> None:
    for path in (folder, folder.parent, folder.parent.parent):
        if path.is_symlink():
            raise StoreError(f"{path}: is a link, and nothing is removed beyond it; do it by hand")
