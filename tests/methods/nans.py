"""Images whose training split is NaN throughout, though every file is whole and verified."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item, Strict

SHAPE = (1, 16, 12)


class Make(Strict):
    """How many images per group and split."""

    items: int = Field(6, ge=2)


class Params(Strict):
    """Where the files are."""

    root: Path
    make: Make | None = None
    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})


def files(params: Params) -> list[Path]:
    """All files below the root."""
    found = sorted(params.root.glob("*/*/*.npy"))
    if not found:
        raise DataError(f"{params.root}: no data here")
    return found


def verify(path: Path) -> None:
    """Accept any array, NaN too."""
    np.load(path)


def write(make: Make, root: Path) -> None:
    """Groups x and y; only training images are NaN, and every other test image is anomalous."""
    random = np.random.default_rng(0)
    for group in ("x", "y"):
        for split in ("train", "validation", "test"):
            (root / group / split).mkdir(parents=True)
            for n in range(make.items):
                image = random.random(SHAPE, dtype=np.float32)
                if split == "train":
                    image[:] = np.nan
                np.save(root / group / split / f"{n:03d}.npy", image)


def read(item: Item) -> NDArray[np.float32]:
    """The image as it is."""
    image: NDArray[np.float32] = np.load(item.path)
    return image


def load(params: Params) -> Data:
    """Two groups of each split, which may pass for words of two writers."""
    items = {"train": [], "validation": [], "test": []}  # type: dict[str, list[Item]]
    for path in files(params):
        split, group = path.parent.name, path.parent.parent.name
        is_anomaly = split == "test" and int(path.stem) % 2 == 1
        name = path.relative_to(params.root).as_posix()
        facts = {"writer": f"{split} {group}", "word": path.stem, "repetition": int(path.stem)}
        items[split].append(Item(name, group, is_anomaly, path, facts=facts))
    return Data(
        tuple(items["train"]),
        tuple(items["test"]),
        ("x", "y"),
        read,
        validation=tuple(items["validation"]),
    )


def check(params: Params) -> Check:
    """Counts only."""
    return Check(rows=({"files": len(files(params))},))


DATASET = Dataset(Params, files, verify, load, check, Generator(Make, write))
