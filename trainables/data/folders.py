"""Folders of a data set as they lie on disk, and what to say when they do not.

Whatever cannot be reached is named, never left out: left out in silence it would make another,
smaller data set.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from hdsweep.method import DataError

NAMED = 5  # of a kind are spelt out, the rest are counted
MARKER = "synthetic.json"  # tells generated data from measured data


def _expanded(root: Path) -> Path:
    try:
        return root.expanduser()
    except RuntimeError:
        raise ValueError(f"{root}: there is no such user; write the path") from None


def _one_folder(name: str) -> str:
    # A group's name also stands in the brackets of a metric: auroc[category=bottle].
    if name.strip(" .") != name or not name.isprintable() or not name or set(name) & set("/\\[]"):
        raise ValueError(
            f"{name!r} cannot name a category: write the name of one folder, without slashes, "
            "brackets, or a dot or space at an end"
        )
    return name


Root = Annotated[Path, AfterValidator(_expanded)]
"""A data set's folder; ``~`` is the user's home."""

FolderName = Annotated[str, AfterValidator(_one_folder)]
"""One folder that is reported as a group."""


def require_root(root: Path, todo: str) -> None:
    """Raise DataError, which ends with ``todo``, unless ``root`` is a folder."""
    try:
        found = "this is a file" if root.exists() else "no such folder"
    except OSError as error:  # a name too long, a folder that may not be entered
        raise unreadable(root, error) from None
    if not is_folder(root):
        raise DataError(f"{root}: {found}; {todo}")


def make_hint(dataset: str, root: Path) -> str:
    """What to do without the published data, as the end of a message."""
    return f"make a synthetic twin in an empty folder with 'hdsweep data make {dataset} {root}'"


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; raises DataError when that cannot be known."""
    try:
        return path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from None


def names_in(folder: Path) -> list[str]:
    """Sorted names in ``folder``, without those that begin with a dot: a file manager's."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from None


def files_in(folder: Path, suffixes: tuple[str, ...], kind: str) -> list[Path]:
    """Sorted files with one of ``suffixes`` in any case; raises DataError as require_file does."""
    paths = [folder / name for name in names_in(folder) if name.lower().endswith(suffixes)]
    for path in paths:
        require_file(path, kind)
    return paths


def require_file(path: Path, kind: str) -> None:
    """Raise DataError unless ``path`` is a file that can be reached.

    Args:
        path: With a suffix that says it is one.
        kind: What it should be, as in ``a TIFF``.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: cannot be read as {kind} (it is no file); move it elsewhere")
    if not path.name.isprintable():
        raise DataError(f"{str(path)!a}: the name is not printable UTF-8; rename the file")


def unreadable(path: Path, error: OSError) -> DataError:
    """The error to raise when the system refuses ``path``."""
    what = "the target of this link cannot be read" if os.path.islink(path) else "cannot be read"
    return DataError(f"{path}: {what} ({error.strerror}); mend, copy again or remove it")


def listing(folder: Path) -> str:
    """What ``folder`` holds, for a message."""
    return some(names_in(folder)) or "nothing"


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def first(lines: Sequence[str], rest: str) -> list[str]:
    """The first lines, and one that says of the others: ``<count> <rest>``."""
    more = [f"{len(lines) - NAMED} {rest}"] if len(lines) > NAMED else []
    return [*lines[:NAMED], *more]
