"""Checks of stages: whether they are what their notes say, and what builders left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from hdsweep import cache
from hdsweep.doctor.finding import Finding, half, move_away, moved_aside
from hdsweep.lease import Lease
from hdsweep.stages import NOTE, Note, remove_if_abandoned, size_of
from hdsweep.store import Store

_KEY = re.compile(r"[0-9a-f]{20}")


def examine(store: Store) -> Iterator[Finding]:
    """Look at all stages."""
    root = store.root
    for folder in cache.leftovers(root):
        yield half(folder, "a builder that was killed", partial(remove_if_abandoned, folder))
    for path in root.glob("stages/*/.*.lease"):
        target = path.with_name(path.name[1:].removesuffix(".lease"))
        if not path.is_symlink() and not Lease(target).is_held():
            yield half(path, "a builder that was killed", Lease(target).remove_if_dead)
    for path in cache.strangers(root):
        if _KEY.fullmatch(path.name) and not path.is_symlink():
            yield Finding(
                str(path), f"has lost its {NOTE}", moved_aside(store),
                mend=partial(move_away, store, path),
            )  # fmt: skip
        else:
            yield Finding(str(path), "is no stage", "see what it is", "note")
    for one in cache.kept(root):
        if (why := _of_stage(one)) is not None:
            yield Finding(
                str(one.folder), why, f"{moved_aside(store)}; a trial that needs it builds it",
                mend=partial(_move_stage_away, store, one),
            )  # fmt: skip


def _of_stage(one: cache.Kept) -> str | None:
    """What is wrong with a stage that looks whole."""
    try:
        note = Note.model_validate_json((one.folder / NOTE).read_bytes())
    except (OSError, ValueError):
        return f"its {NOTE} is damaged"
    if note.name != one.name:
        return f"its {NOTE} is of a stage {note.name!r}"
    size = size_of(one.folder) - (one.folder / NOTE).stat().st_size
    if size != note.size_bytes:
        return f"holds {size:,} bytes, and was built with {note.size_bytes:,}"
    return None


def _move_stage_away(store: Store, one: cache.Kept) -> None:
    """Unless a running trial reads it."""
    if not cache.is_used(one):
        move_away(store, one.folder)
