"""What a check finds, and how it is mended: moved away, or removed where it never was whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from hdsweep.errors import HdsweepError
from hdsweep.store import Store

Level = Literal["problem", "leftover", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Args:
        where: A path, or a part of the machine.
        what: Was found there.
        to_do: By the user; what ``mend`` does where there is one.
        level: ``problem``; ``leftover`` of a process that was killed, which costs space only; or
            ``note``, of what may be meant so.
        mend: Does it.
        mended: Whether that was done.
    """

    where: str
    what: str
    to_do: str
    level: Level = "problem"
    mend: Callable[[], object] | None = field(default=None, compare=False, repr=False)
    mended: bool = False


def move_away(store: Store, path: Path) -> None:
    """Move a damaged file or folder below ``damaged``, where nothing looks for it."""
    target = store.root / "damaged" / path.relative_to(store.root)
    target.parent.mkdir(parents=True, exist_ok=True)
    place, n = target, 0
    while os.path.lexists(place):
        n += 1
        place = target.with_name(f"{target.name}.{n}")
    os.rename(path, place)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing to do where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def moved_aside(store: Store) -> str:
    """What to do, in words, of which ``move_away`` is the deed."""
    return f"move it to {store.root / 'damaged'}"


def half(path: Path, whose: str, mend: Callable[[], object] | None = None) -> Finding:
    """What a process that was killed left half made; ``mend`` is how it is removed."""
    return Finding(
        str(path), f"is a leftover of {whose}", "remove it", "leftover",
        mend or partial(remove, path),
    )  # fmt: skip


def said(error: HdsweepError, path: Path) -> str:
    """What an error says, without the path that a finding has of its own."""
    return str(error).removeprefix(f"{path}: ").partition(";")[0]
