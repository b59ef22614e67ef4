"""A look at every file of a data set of pictures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hdsweep.method import Check, DataError, Item
from trainables.data.folders import MARKER, first, some
from trainables.data.pictures import (
    SPLITS,
    Items,
    Params,
    Split,
    decode,
    decode_mask,
    require_size,
    shown,
)
from trainables.data.repeats import leaks, repeats

_BLURRED = (".jpg", ".jpeg")  # compression that makes up values beside an edge
_SIZES = 3  # in one cell of the table


@dataclass(frozen=True, slots=True)
class Seen:
    """What the files of an item hold; empty where its picture is damaged."""

    name: str
    size: str = ""
    mode: str = ""
    digest: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Look:
    """What the files of one split of a category hold."""

    category: str
    split: Split
    items: tuple[Item, ...]
    seen: tuple[Seen, ...]
    problems: tuple[str, ...]

    def row(self) -> dict[str, str | int | float]:
        return {
            "category": self.category,
            "split": self.split,
            "pictures": len(self.items),
            "size": sizes_of(self.seen),
            "mode": modes_of(self.seen),
            "masks": sum(item.mask is not None for item in self.items),
            "duplicates": repeated(self.seen),
        }


def inspect(
    params: Params, items: Items, published: Mapping[str, Sequence[int]], pairing: str
) -> Check:
    """Counts, sizes, damage, masks, and pictures that are both trained and tested on.

    Args:
        params: Which categories of which root.
        items: The layout.
        published: Pictures in each split of the published categories.
        pairing: What a mask that is missing should have been called.
    """
    looks = [_look(items, category, split) for category in params.categories for split in SPLITS]
    parts = [(s, [by_digest(look.seen) for look in looks if look.split == s]) for s in SPLITS]
    warnings = [line for look in looks for line in _without_mask(look, pairing)]
    warnings += [line for split, names in parts for line in repeats(split, names, "picture")]
    warnings += synthetic(params.root) or [
        line for c in params.categories for line in _counts(c, looks, published)
    ]
    problems = [line for look in looks for line in look.problems]
    problems += leaks(parts, "picture")
    return Check(
        rows=tuple(look.row() for look in looks),
        problems=tuple(dict.fromkeys(problems)),  # each split reports the folder all of them lack
        warnings=tuple(warnings),
    )


def _look(items: Items, category: str, split: Split) -> _Look:
    try:
        found = items(category, split)
    except DataError as error:
        return _Look(category, split, (), (), (str(error),))
    seen = see(found)
    problems = first(
        [line for one in seen for line in one.problems],
        f"more problems in {category} {split}, which has {len(found)} pictures",
    )
    return _Look(category, split, found, seen, tuple(problems))


def see(items: Sequence[Item]) -> tuple[Seen, ...]:
    """Look at every picture and mask of the items, several at a time."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(_see, items))


def by_digest(seen: Sequence[Seen]) -> dict[str, list[str]]:
    """Names of pictures, by the digest of their pixels."""
    names: dict[str, list[str]] = {}
    for one in seen:
        if one.digest:
            names.setdefault(one.digest, []).append(one.name)
    return names


def repeated(seen: Sequence[Seen]) -> int:
    """How many of the pictures repeat another."""
    return sum(len(names) - 1 for names in by_digest(seen).values())


def sizes_of(seen: Sequence[Seen]) -> str:
    """The most common sizes, for a cell of a table."""
    return most_common([one.size for one in seen if one.size])


def most_common(values: Sequence[str]) -> str:
    """The most common values, for a cell of a table."""
    found = [value for value, _ in Counter(values).most_common()]
    more = f" and {len(found) - _SIZES} more" if len(found) > _SIZES else ""
    return ", ".join(found[:_SIZES]) + more or "-"


def modes_of(seen: Sequence[Seen]) -> str:
    """The modes, for a cell of a table."""
    return ", ".join(sorted({one.mode for one in seen if one.mode})) or "-"


def synthetic(root: Path) -> list[str]:
    """A warning where the pictures below ``root`` were generated."""
    marker = root / MARKER
    if not marker.is_file():
        return []
    return [f"{marker} says that these pictures are synthetic; say so where figures appear"]


def _see(item: Item) -> Seen:
    try:
        pixels, mode = decode(item.path)
    except DataError as error:
        return Seen(item.name, problems=(str(error),))
    height, width = pixels.shape[1:]
    digest = hashlib.sha256(f"{height} {width} ".encode())
    digest.update(pixels.data)
    problems = () if item.mask is None else _mask_problems(item.mask, (height, width))
    return Seen(item.name, shown((height, width)), mode, digest.hexdigest(), problems)


def _mask_problems(path: Path, size: tuple[int, int]) -> tuple[str, ...]:
    try:
        mask = decode_mask(path)
        require_size(path, mask, size)
    except DataError as error:
        return (str(error),)
    if not mask.any():
        line = "the mask marks no pixel, and its picture is labelled anomalous; draw it again, or"
        return (f"{path}: {line} remove it",)
    if path.suffix.lower() in _BLURRED:
        line = "JPEG blurs a mask, and every pixel that is not black counts as anomalous; export"
        return (f"{path}: {line} it as PNG",)
    return ()


def _without_mask(look: _Look, pairing: str) -> list[str]:
    names = [item.name for item in look.items if item.is_anomaly and item.mask is None]
    if not names:
        return []
    line = (
        f"category {look.category}: {len(names)} of {len(look.items)} anomalous pictures have no "
        f"mask ({some(names)}), which pixel metrics need; {pairing}"
    )
    return [line]


def _counts(
    category: str, looks: Sequence[_Look], published: Mapping[str, Sequence[int]]
) -> list[str]:
    found = [len(look.items) for look in looks if look.category == category]
    expected = list(published.get(category, found))
    if found == expected:
        return []

    def spelt(counts: Sequence[int]) -> str:
        return ", ".join(f"{n} {split}" for n, split in zip(counts, SPLITS, strict=True))

    return [f"category {category} has {spelt(found)}; the published data have {spelt(expected)}"]
