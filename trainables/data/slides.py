"""Whole-slide images, cut into tiles that are read one by one.

Any format that OpenSlide opens (.mrxs, .svs, tiled pyramids in .tif or .tiff, .ndpi, .scn, .bif)::

    ROOT/train/normal/<slide>.<ext>
         test/normal/<slide>.<ext>
         test/anomalous/<slide>.<ext>
                        <slide>.xml       its boundaries, of ASAP or Aperio ImageScope

The pixels of an .mrxs file are in a folder beside it, ``<slide>/``, which belongs to the data.

A slide is cut into squares of ``tile`` x ``downsample`` level-0 pixels, from its upper left corner,
side by side; what is left over at the right and lower edges is no tile. A tile is used when at
least ``min_tissue`` of it is tissue. In an anomalous slide it is anomalous when at least
``min_anomalous`` of it lies within the boundaries, and normal otherwise: tiles on a border are not
left out, but go to the side that the share says. So that each tile has a label, an anomalous slide
must have its boundaries. The facts of a tile are ``x`` and ``y``, of its upper left corner in
level-0 pixels. The test slides themselves are the wholes, labelled by their folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from hdsweep.errors import did_you_mean
from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item, Strict
from trainables.data import pyramids
from trainables.data.annotations import read_annotations, shares
from trainables.data.folders import (
    Root,
    files_in,
    is_folder,
    listing,
    make_hint,
    require_file,
    require_root,
)
from trainables.data.pyramids import KIND, SUFFIXES, State, parts_of, state_of
from trainables.data.synthetic import slides as synthetic

Split = Literal["train/normal", "test/normal", "test/anomalous"]
SPLITS: tuple[Split, ...] = get_args(Split)
GROUP = "tile"

_THREADS = 4
_SELF = "the layout is train/normal, test/normal and test/anomalous"


class Params(Strict):
    """Tiles of whole-slide images, or of synthetic ones.

    Args:
        root: Folder that holds ``train`` and ``test``.
        tile: Side of a tile in pixels, as a method sees it.
        downsample: Level-0 pixels per pixel of a tile: 1 is the full resolution. It is read from
            the smallest level that is large enough, and averaged down where none has the scale.
        min_tissue: Share of a tile that must be tissue.
        min_anomalous: Share of a tile within boundaries from which on it is anomalous.
        holes: Groups of ASAP whose boundaries are holes in the others.
        train_tiles: Largest number of training tiles of one slide, drawn at random; null takes all.
        tiles_seed: Of that draw, which is the same for every trial.
        make: How to make synthetic slides at ``root`` when nothing is there.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})

    root: Root
    tile: int = Field(256, ge=16, le=2048)
    downsample: int = Field(1, ge=1, le=64)
    min_tissue: float = Field(0.5, gt=0, le=1)
    min_anomalous: float = Field(0.5, gt=0, le=1)
    holes: tuple[str, ...] = ()
    train_tiles: int | None = Field(1000, ge=1)
    tiles_seed: int = Field(0, ge=0)
    make: synthetic.Params | None = None

    @field_validator("holes")
    @classmethod
    def _in_order(cls, holes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(holes)))

    @property
    def side(self) -> int:
        """Of a tile, in level-0 pixels."""
        return self.tile * self.downsample


@dataclass(frozen=True, slots=True)
class Place:
    """A slide of the layout.

    Args:
        name: ``<split>/<class>/<slide>``.
        path: The file that OpenSlide opens.
        parts: Every file of it, with ``path`` and without ``boundaries``.
        boundaries: The XML file of an anomalous slide.
    """

    name: str
    split: Split
    path: Path
    parts: tuple[Path, ...]
    boundaries: Path | None


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a slide holds, as far as its small levels and its boundaries tell.

    Args:
        size: Width and height of level 0.
        levels: Their number.
        corners: Shape (n, 2), x and y of the tiles that are tissue, row by row.
        anomalous: Shape (n,).
        squares: Tiles of the whole slide, with those of glass.
        marked_glass: Tiles that are within boundaries and have too little tissue.
        boundaries: How many are drawn.
        unmarked: Names of the boundaries that no tile is anomalous by.
        marks: Annotations that enclose nothing.
        groups: Of the boundaries, those of holes among them.
        most_tissue: Largest share of tissue in a tile.
    """

    size: tuple[int, int]
    levels: int
    corners: NDArray[np.intp]
    anomalous: NDArray[np.bool_]
    squares: int
    marked_glass: int = 0
    boundaries: int = 0
    unmarked: tuple[str, ...] = ()
    marks: int = 0
    groups: tuple[str, ...] = ()
    most_tissue: float = 0.0


def files(params: Params) -> list[Path]:
    """Every file of every slide, and the boundaries of the anomalous ones, sorted.

    Raises:
        DataError: A folder of the layout is missing or holds no slide, an anomalous slide has no
            boundaries, or a file cannot be reached.
    """
    places = [place for split in SPLITS for place in places_in(params.root, split)]
    return sorted({path for one in places for path in (*one.parts, one.boundaries) if path})


def verify(path: Path) -> None:
    """Raise DataError unless a slide is whole, or an XML file has boundaries."""
    if path.suffix.lower() == ".xml":
        read_annotations(path)
    else:
        pyramids.verify(path)


def load(params: Params) -> Data:
    """Tiles of tissue: train on those of normal slides, test on those of all test slides.

    No slide is read but for a small level of each, and that once in a process.

    Raises:
        DataError: As ``files`` does; or a slide cannot be opened, has no tile of tissue, or its
            boundaries are damaged or not its own.
    """
    places = [place for split in SPLITS for place in places_in(params.root, split)]
    with ThreadPoolExecutor(max_workers=min(_THREADS, os.cpu_count() or 1)) as pool:
        looks = list(pool.map(partial(look, params), places))
    require_holes(params, looks)
    train: list[Item] = []
    test: list[Item] = []
    wholes: list[Item] = []
    for place, found in zip(places, looks, strict=True):
        if place.split == "train/normal":
            train += _items(place, found, params.train_tiles, params.tiles_seed)
        else:
            wholes.append(Item(place.name, "slide", place.split == "test/anomalous", place.path))
            test += _items(place, found, None, 0)
    return Data(
        train=tuple(train),
        test=tuple(test),
        groups=(GROUP,),
        read=partial(read, tile=params.tile, downsample=params.downsample),
        wholes=tuple(wholes),
    )


def read(item: Item, tile: int, downsample: int) -> NDArray[np.float32]:
    """RGB of one tile, shape (3, tile, tile), in [0, 1]; what is transparent is white.

    Raises:
        DataError: The slide cannot be opened, or not read there.
    """
    x, y = int(item.facts["x"]), int(item.facts["y"])
    return pyramids.read_square(item.path, x, y, tile, downsample)


def places_in(root: Path, split: Split) -> list[Place]:
    """The slides of one split. Raises DataError as ``files`` does."""
    require_root(
        root, f"set 'root' to the folder that holds train and test, or {make_hint('slides', root)}"
    )
    folder = root / split
    for part in (folder.parent, folder):
        if not is_folder(part):
            raise DataError(
                f"{part}: no such folder, {part.parent} holds {listing(part.parent)}; {_SELF}, or "
                f"{make_hint('slides', root)}"
            )
    found: dict[str, Place] = {}
    for path in files_in(folder, SUFFIXES, KIND):
        if path.stem in found:
            raise DataError(
                f"{path}: {found[path.stem].path.name} has the same stem, so that their tiles and "
                "boundaries cannot be told apart; rename one"
            )
        boundaries = path.with_suffix(".xml") if split == "test/anomalous" else None
        if boundaries is not None and not boundaries.exists():
            raise DataError(
                f"{boundaries}: no such file, and without the boundaries of {path.name} its tiles "
                "have no label; export them there, or remove the slide"
            )
        if boundaries is not None:
            require_file(boundaries, "an XML file")
        name = f"{split}/{path.stem}"
        found[path.stem] = Place(name, split, path, tuple(parts_of(path)), boundaries)
    if not found:
        raise DataError(
            f"{folder}: no slide ({', '.join(SUFFIXES)}), the folder holds {listing(folder)}; put "
            f"slides there, or {make_hint('slides', root)}"
        )
    return list(found.values())


def require_holes(params: Params, looks: Sequence[Look]) -> None:
    """Raise DataError when 'holes' names a group that no boundary is in."""
    known = {group for found in looks for group in found.groups}
    for name in params.holes:
        if name not in known:
            raise DataError(
                f"{params.root / SPLITS[-1]}: no boundary is in the group '{name}' of 'holes'"
                f"{did_you_mean(name, known)}"
            )


def look(params: Params, place: Place) -> Look:
    """Which tiles of a slide are used, and their labels. Raises DataError as ``load`` does."""
    extra = [place.boundaries] if place.boundaries else []
    found = _look(
        place.path,
        place.boundaries,
        state_of([*place.parts, *extra]),
        params.tile,
        params.downsample,
        params.min_tissue,
        params.min_anomalous,
        params.holes,
    )
    if not len(found.corners):
        width, height = found.size
        why = (
            f"the most that one of them has is {100 * found.most_tissue:.0f} %; lower 'min_tissue'"
            if found.squares
            else f"it is {height} x {width} pixels (height x width); lower 'tile' or 'downsample'"
        )
        raise DataError(
            f"{place.path}: no tile of {params.side} x {params.side} pixels has "
            f"{100 * params.min_tissue:g} % of tissue, {why}, or remove the slide"
        )
    return found


@lru_cache(maxsize=4096)
def _look(
    path: Path,
    boundaries: Path | None,
    _state: State,
    tile: int,
    downsample: int,
    min_tissue: float,
    min_anomalous: float,
    holes: tuple[str, ...],
) -> Look:
    pyramids.require_scale(path, tile, downsample)
    width, height, levels = pyramids.size_of(path)
    side = tile * downsample
    x, y = (np.arange(length // side) * side for length in (width, height))
    squares = len(x) * len(y)
    tissue = pyramids.find_tissue(path).shares(x, y, side) if squares else np.zeros((0, 0))
    used = tissue >= min_tissue
    rows, columns = np.nonzero(used)
    drawn = read_annotations(boundaries) if boundaries else None
    most = float(tissue.max(initial=0))
    if drawn is None:
        corners = np.stack([x[columns], y[rows]], axis=1)
        normal = np.zeros(len(rows), np.bool_)
        return Look((width, height), levels, corners, normal, squares, most_tissue=most)
    drawn.require_within(width, height)
    where = (x.astype(np.float64), y.astype(np.float64), float(side))
    marked = shares(drawn.boundaries, holes, *where) >= min_anomalous
    positive = [b for b in drawn.boundaries if not b.is_hole and b.group not in holes]
    if not positive:
        raise DataError(
            f"{boundaries}: every boundary is in a group of 'holes' ({', '.join(holes)}), so "
            "nothing is anomalous; leave the group out, or move the slide to test/normal"
        )
    lost = tuple(
        b.name for b in positive if not (shares((b,), (), *where)[marked & used] > 0).any()
    )
    return Look(
        size=(width, height),
        levels=levels,
        corners=np.stack([x[columns], y[rows]], axis=1),
        anomalous=marked[used],
        squares=squares,
        marked_glass=int((marked & ~used).sum()),
        boundaries=len(drawn.boundaries),
        unmarked=lost,
        marks=drawn.marks,
        groups=tuple(sorted({b.group for b in drawn.boundaries})),
        most_tissue=most,
    )


@lru_cache(maxsize=4096)
def _items(place: Place, found: Look, most: int | None, seed: int) -> tuple[Item, ...]:
    """The tiles of a slide, or ``most`` of them drawn at random; in the order of the slide."""
    chosen = np.arange(len(found.corners))
    if most is not None and most < len(chosen):
        name = hashlib.sha256(place.name.encode()).digest()
        stream = np.random.SeedSequence(seed, spawn_key=(int.from_bytes(name[:4], "big"),))
        drawn = np.random.default_rng(stream).permutation(len(chosen))[:most]
        chosen = np.sort(drawn)  # a larger number adds tiles to those of a smaller one
    whole = None if place.split == "train/normal" else place.name
    return tuple(
        Item(
            name=f"{place.name}/x{x}_y{y}",
            group=GROUP,
            is_anomaly=is_anomaly,
            path=place.path,
            facts={"x": x, "y": y},
            part_of=whole,
        )
        for (x, y), is_anomaly in zip(
            found.corners[chosen].tolist(), found.anomalous[chosen].tolist(), strict=True
        )
    )


def check(params: Params) -> Check:
    """A look at every slide: sizes, tiles, tissue, labels, damage, and slides in two splits.

    Raises:
        DataError: The root is not there.
    """
    from trainables.data.slide_inspection import inspect

    return inspect(params)


DATASET = Dataset(
    params=Params,
    files=files,
    verify=verify,
    load=load,
    check=check,
    generator=Generator(params=synthetic.Params, write=synthetic.write),
)
