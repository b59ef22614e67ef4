"""Images with bright squares, their masks, and a method that takes brightness for a map."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import (
    AnomalyMaps,
    Check,
    Data,
    DataError,
    Dataset,
    Generator,
    Item,
    Method,
    Outcome,
    Predictions,
    Strict,
    TrialContext,
)

SIDE = 16
EDGE = 2  # pixels that the method crops on each side


class Make(Strict):
    """How many images per group, every other one anomalous."""

    items: int = Field(8, ge=2)


class Where(Strict):
    """Where the images are, and which have masks."""

    root: Path
    make: Make | None = None
    masks: Literal["all", "some", "none", "no reader", "damaged"] = "all"
    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})


def files(params: Where) -> list[Path]:
    """All files below the root."""
    found = sorted(params.root.glob("*/*.npy"))
    if not found:
        raise DataError(f"{params.root}: no data here")
    return found


def verify(path: Path) -> None:
    """Refuse what is no array."""
    np.load(path)


def write(make: Make, root: Path) -> None:
    """Groups x and y; a square in the middle and one at the edge, which is cropped away."""
    random = np.random.default_rng(0)
    for group in ("x", "y"):
        (root / group).mkdir()
        for n in range(make.items):
            image = random.random((1, SIDE, SIDE), dtype=np.float32)
            if n % 2:
                mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
                mask[4 + n % 4 : 8 + n % 4, 5:9] = True
                mask[0, :3] = True
                image[0][mask] += 0.5
                np.save(root / group / f"{n:03d}_mask.npy", mask)
            np.save(root / group / f"{n:03d}.npy", image)


def read(item: Item) -> NDArray[np.float32]:
    """One channel."""
    image: NDArray[np.float32] = np.load(item.path)
    return image


def read_mask(item: Item) -> NDArray[np.bool_]:
    """Of the image's size."""
    assert item.mask is not None
    mask: NDArray[np.bool_] = np.load(item.mask)
    return mask


def damaged(item: Item) -> NDArray[np.bool_]:
    """A mask that cannot be read."""
    raise DataError(f"{item.mask}: not an image")


def load(params: Where) -> Data:
    """Everything is a test item; with ``some`` masks the first anomalous one of y has none."""
    items = []
    for path in files(params):
        mask = path.with_name(f"{path.stem}_mask.npy")
        if path.stem.endswith("_mask"):
            continue
        group = path.parent.name
        given = params.masks in ("all", "no reader", "damaged") or (
            params.masks == "some" and (group, path.stem) != ("y", "001")
        )
        items.append(
            Item(
                name=f"{group}/{path.name}",
                group=group,
                is_anomaly=mask.exists(),
                path=path,
                mask=mask if given and mask.exists() else None,
            )
        )
    readers = {"no reader": None, "damaged": damaged}
    return Data((), tuple(items), ("x", "y"), read, readers.get(params.masks, read_mask))


def check(params: Where) -> Check:
    """Counts only."""
    return Check(rows=({"files": len(files(params))},))


DATASET = Dataset(Where, files, verify, load, check, Generator(Make, write))


class Params(Strict):
    """Which maps to hand out; ``way: maps`` behaves."""

    way: str = "maps"


def crop(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As the method saw the image."""
    return mask[EDGE:-EDGE, EDGE:-EDGE]


def crop_to_numbers(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Zeros and ones are no booleans."""
    return crop(mask).astype(np.uint8)  # type: ignore[return-value]


GRIDS = {"uncropped": np.array, "numbers": crop_to_numbers}
ARRAYS: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "half": lambda maps: maps.astype(np.float16),
    "too few": lambda maps: maps[1:],
    "one channel": lambda maps: maps[:, None],
    "integers": lambda maps: (100 * maps).astype(np.int64),
    "objects": lambda maps: maps.astype(object),
    "nan": lambda maps: np.where(np.arange(maps.size).reshape(maps.shape) < 3, np.nan, maps),
}
FILES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "text": lambda path: path.write_text("0.1 0.2 0.3"),
    "empty": lambda path: path.write_bytes(b""),
    "archive": lambda path: zipfile.ZipFile(path, "w").close(),
    "absent": Path.unlink,
}


def run(params: Params, data: Data, context: TrialContext) -> Outcome:
    """A map is the image's brightness without its edge; its score the largest of it."""
    maps = np.stack([crop(data.read(item)[0]) for item in data.test])
    path = context.scratch / "maps.npy"
    np.save(path, ARRAYS.get(params.way, np.array)(maps))
    FILES.get(params.way, str)(path)
    handed: Any = AnomalyMaps(path, GRIDS.get(params.way, crop))
    handed = {"none": None, "array": maps}.get(params.way, handed)
    # In another order than the maps: predictions are matched by name, maps by position.
    return Outcome(Predictions.of(data.test[::-1], maps.max(axis=(1, 2))[::-1]), maps=handed)


METHOD = Method(version=1, params=Params, run=run, source="none", uses_torch=False)
