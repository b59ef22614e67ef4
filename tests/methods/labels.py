"""A data set of plain files, for methods that look at labels only."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item, Strict


class Make(Strict):
    """How many files."""

    items: int = Field(8, ge=2)


class Params(Strict):
    """Where the files are."""

    root: Path
    make: Make | None = None
    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})


def files(params: Params) -> list[Path]:
    """All files below the root."""
    found = sorted(params.root.glob("*/*.txt"))
    if not found:
        raise DataError(f"{params.root}: no data here")
    return found


def verify(path: Path) -> None:
    """Refuse an empty file."""
    if path.stat().st_size == 0:
        raise DataError(f"{path}: empty")


def write(make: Make, root: Path) -> None:
    """Groups x and y, alternating labels."""
    for group in ("x", "y"):
        (root / group).mkdir()
        for n in range(make.items):
            (root / group / f"{n:03d}.txt").write_text(f"{group} {n} {n % 2}\n")


def read(item: Item) -> NDArray[np.float32]:
    """No image here: one zero."""
    return np.zeros((1, 1, 1), dtype=np.float32)


def load(params: Params) -> Data:
    """Everything is a test item."""
    items = tuple(
        Item(f"{p.parent.name}/{p.name}", p.parent.name, p.read_text().split()[2] == "1", p)
        for p in files(params)
    )
    return Data(train=(), test=items, groups=("x", "y"), read=read)


def check(params: Params) -> Check:
    """Counts only."""
    return Check(rows=({"files": len(files(params))},))


DATASET = Dataset(Params, files, verify, load, check, Generator(Make, write))
