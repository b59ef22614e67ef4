"""Synthetic whole-slide images: pyramids of tiles with islands of tissue, and their boundaries.

A slide is glass with a few islands of synthetic tissue (``tissue.py``). In an anomalous slide some
islands hold regions of altered tissue; the polygons that bound them are written beside the slide as
ASAP does, and are exact: what lies inside is altered.

Slides are written tile by tile, and each smaller level from the one above as that passes by, so
that memory is bounded whatever a slide's size: a few tiles, a row of tiles of each smaller level
and their compressed bytes. Glass costs nothing to paint.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Strict
from trainables.data.folders import MARKER
from trainables.data.synthetic.tissue import WHITE, Floats, blob_edge, key_of, paint

Split = Literal["train/normal", "test/normal", "test/anomalous"]
Pixels = NDArray[np.uint8]

REDUCTION = 4  # from one level to the next, as in many scanners' files
_SMALLEST = 128  # pixels on the longer side of the last level, at least
_WAVES = (2, 3, 5)  # along an outline
_WOBBLE = 0.20  # largest sum of their amplitudes
_RIM = 6.0  # pixels over which tissue ends
_CORNERS = 120  # of a boundary
_PIXELS_PER_CM = 20_000  # 0.5 µm each

_Side = Annotated[int, Field(ge=256, le=200_000)]


class Params(Strict):
    """Synthetic whole-slide images.

    Args:
        train: Normal training slides.
        normal: Normal test slides.
        anomalous: Anomalous test slides, each with its boundaries.
        size: Height and width in pixels, or one number for both.
        tissue: About the share of a slide that is tissue.
        tile: Side of the tiles that a file is made of; not of those that a method sees.
        severity: How far altered tissue departs from normal; 0 cannot be seen.
        seed: Names the slides.
    """

    train: int = Field(4, ge=1, le=1000)
    normal: int = Field(2, ge=1, le=1000)
    anomalous: int = Field(2, ge=1, le=1000)
    size: _Side | tuple[_Side, _Side] = 2048
    tissue: float = Field(0.25, ge=0.01, le=0.3)
    tile: int = Field(256, ge=64, le=1024, multiple_of=16)
    severity: float = Field(1.0, ge=0, le=3)
    seed: int = Field(1, ge=0)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def count(self, split: Split) -> int:
        """Slides of one split."""
        return {"train/normal": self.train, "test/normal": self.normal}.get(split, self.anomalous)


@dataclass(frozen=True, slots=True)
class Blob:
    """A region with a wobbly outline.

    Args:
        y, x: Its centre.
        radius: Mean distance of the outline.
        waves: As ``tissue.blob_edge`` takes them.
    """

    y: float
    x: float
    radius: float
    waves: tuple[tuple[int, float, float], ...]

    def depth(self, y: Floats, x: Floats) -> Floats:
        """How far a place lies inside the outline, along the line to the centre; in pixels."""
        v, u = y - np.float32(self.y), x - np.float32(self.x)
        depth: Floats = blob_edge(np.arctan2(v, u), self.radius, self.waves) - np.hypot(v, u)
        return depth

    def corners(self) -> NDArray[np.float64]:
        """The outline as a polygon, shape (n, 2): x and y."""
        angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        edge = self.radius * (1 + sum(a * np.sin(n * angle + phase) for n, a, phase in self.waves))
        return np.stack([self.x + edge * np.cos(angle), self.y + edge * np.sin(angle)], axis=1)

    def touches(self, corner: tuple[int, int], side: int) -> bool:
        """Whether it may reach into a square."""
        away_y = self.y - min(max(self.y, corner[0]), corner[0] + side)
        away_x = self.x - min(max(self.x, corner[1]), corner[1] + side)
        return bool(np.hypot(away_y, away_x) < self.radius * (1 + _WOBBLE) + _RIM)


@dataclass(frozen=True, slots=True)
class Slide:
    """What is on one slide.

    Args:
        key: Names its texture.
        shape: Height and width.
        islands: Where there is tissue.
        lesions: Where it is altered, each within an island.
        severity: As in ``Params``.
    """

    key: int
    shape: tuple[int, int]
    islands: tuple[Blob, ...]
    lesions: tuple[Blob, ...]
    severity: float

    def square(self, corner: tuple[int, int], side: int) -> Pixels | None:
        """Pixels of a square, shape (side, side, 3); None where it is glass only."""
        here = [island for island in self.islands if island.touches(corner, side)]
        if not here:
            return None
        down = (corner[0] + 0.5 + np.arange(side)).astype(np.float32)
        across = (corner[1] + 0.5 + np.arange(side)).astype(np.float32)
        y, x = np.meshgrid(down, across, indexing="ij")
        depth = np.max([island.depth(y, x) for island in here], axis=0)
        cover = np.clip(depth / np.float32(_RIM), 0, 1)
        if not cover.any():
            return None

        def altered(at_y: Floats, at_x: Floats) -> NDArray[np.bool_]:
            inside = np.zeros(at_y.shape, np.bool_)
            for lesion in self.lesions:
                inside |= lesion.depth(at_y, at_x) > 0
            return inside

        made = paint(self.key, corner, (side, side), altered, cover=cover, severity=self.severity)
        made[cover == 0] = WHITE  # glass has no grain
        return made


def slide_of(params: Params, split: Split, index: int) -> Slide:
    """What is on slide ``index`` of a split."""
    place = get_args(Split).index(split)
    rng = np.random.default_rng(np.random.SeedSequence(params.seed, spawn_key=(2, place, index)))
    height, width = params.shape
    rows, columns = max(2, round(2 * height / width)), max(2, round(2 * width / height))
    cell = (height / rows, width / columns)
    count = rows * columns // 2
    mean = np.sqrt(params.tissue * height * width / (count * np.pi))
    islands = []
    for spot in sorted(rng.permutation(rows * columns)[:count].tolist()):
        largest = 0.5 * min(cell) / (1 + _WOBBLE) - _RIM
        radius = float(min(mean * rng.uniform(0.85, 1.15), largest))
        free = [side / 2 - radius * (1 + _WOBBLE) - _RIM for side in cell]
        y = (spot // columns + 0.5) * cell[0] + rng.uniform(-1, 1) * free[0]
        x = (spot % columns + 0.5) * cell[1] + rng.uniform(-1, 1) * free[1]
        islands.append(Blob(y, x, radius, _waves(rng)))
    lesions = []
    if split == "test/anomalous":
        for island in islands[: max(1, len(islands) // 2)]:
            # Within the island even where that is narrowest.
            radius, away = island.radius * rng.uniform(0.52, 0.58), island.radius * 0.1
            angle = rng.uniform(0, 2 * np.pi)
            y, x = island.y + away * np.sin(angle), island.x + away * np.cos(angle)
            lesions.append(Blob(float(y), float(x), float(radius), _waves(rng)))
    key = key_of(params.seed, 3, place, index)
    return Slide(key, params.shape, tuple(islands), tuple(lesions), params.severity)


def _waves(rng: np.random.Generator) -> tuple[tuple[int, float, float], ...]:
    share = rng.dirichlet(np.ones(len(_WAVES))) * rng.uniform(0.4, 1) * _WOBBLE
    phase = rng.uniform(0, 2 * np.pi, len(_WAVES))
    return tuple((n, float(a), float(p)) for n, a, p in zip(_WAVES, share, phase, strict=True))


def write(params: Params, root: Path) -> None:
    """Write ``train/normal``, ``test/normal`` and ``test/anomalous``, slides and boundaries.

    The same ``params`` write the same bytes.
    """
    for split in get_args(Split):
        folder = root / split
        folder.mkdir(parents=True)
        for index in range(params.count(split)):
            slide = slide_of(params, split, index)
            write_pyramid(folder / f"slide_{index:03d}.tiff", slide, params.tile)
            if slide.lesions:
                text = asap(slide)
                (folder / f"slide_{index:03d}.xml").write_text(text, encoding="utf-8")
    (root / MARKER).write_text(params.model_dump_json(indent=2) + "\n", encoding="utf-8")


def asap(slide: Slide) -> str:
    """The boundaries of a slide's lesions, as ASAP writes them."""
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    for number, lesion in enumerate(slide.lesions):
        lines.append(
            f'\t\t<Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="lesion">'
        )
        lines.append("\t\t\t<Coordinates>")
        lines += [
            f'\t\t\t\t<Coordinate Order="{order}" X="{x:.2f}" Y="{y:.2f}" />'
            for order, (x, y) in enumerate(lesion.corners())
        ]
        lines += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    lines += ['\t\t<Group Name="lesion" PartOfGroup="None" />', "\t</AnnotationGroups>"]
    return "\n".join([*lines, "</ASAP_Annotations>", ""])


def write_pyramid(path: Path, slide: Slide, tile: int) -> None:
    """Write a slide as a tiled TIFF with a page for each level."""
    import tifffile

    height, width = slide.shape
    levels = _levels(slide.shape, tile)
    big = height * width * 3 > 2**31
    with tifffile.TiffWriter(path, byteorder="<", bigtiff=big) as file:
        streams = [_painted(slide, tile, levels[0] if levels else None)]
        streams += [iter(level.tiles) for level in levels]  # which fill while the first is read
        shapes = [slide.shape, *(level.shape for level in levels)]
        for number, (shape, tiles) in enumerate(zip(shapes, streams, strict=True)):
            per_cm = _PIXELS_PER_CM / REDUCTION**number
            file.write(
                tiles,
                shape=(*shape, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(tile, tile),
                compression="adobe_deflate",
                subfiletype=int(number > 0),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,  # nothing but the pixels: no software, no shape comment
                software=False,
            )


def _levels(shape: tuple[int, int], tile: int) -> list[_Level]:
    """Those below the first, each knowing the next."""
    shapes = []
    height, width = (side // REDUCTION for side in shape)
    while max(height, width) >= _SMALLEST and min(height, width) >= 16:
        shapes.append((height, width))
        height, width = height // REDUCTION, width // REDUCTION
    levels: list[_Level] = []
    for one in reversed(shapes):
        levels.insert(0, _Level(one, tile, levels[0] if levels else None))
    return levels


def _painted(slide: Slide, tile: int, below: _Level | None) -> Iterator[bytes]:
    """Compressed tiles of level 0, which are handed to the next level too."""
    rows, columns = (-(-side // tile) for side in slide.shape)
    glass = _compressed(_glass(tile, tile))
    for row in range(rows):
        for column in range(columns):
            square = slide.square((row * tile, column * tile), tile)
            if below is not None and square is not None:
                below.add(square, row, column)
            if below is not None and column == columns - 1:
                # Before the last tile is handed out: nobody asks for one after it.
                below.end_row(row, last=row == rows - 1)
            yield glass if square is None else _compressed(square)


class _Level:
    """A smaller level, made from the tiles of the one above.

    Args:
        shape: Height and width.
        tile: Side of its tiles.
        below: The next level.
    """

    def __init__(self, shape: tuple[int, int], tile: int, below: _Level | None) -> None:
        self.shape = shape
        self.tiles: list[bytes] = []
        self._tile, self._below = tile, below
        self._rows, self._columns = (-(-side // tile) for side in shape)
        self._row = 0
        self._band = _glass(tile, self._columns * tile)
        self._empty = _compressed(_glass(tile, tile))

    def add(self, square: Pixels, row: int, column: int) -> None:
        """Take in one tile of the level above."""
        side = self._tile // REDUCTION
        parts = square.reshape(side, REDUCTION, side, REDUCTION, 3).astype(np.uint16)
        small = (parts.sum(axis=(1, 3)) + REDUCTION**2 // 2) // REDUCTION**2
        top, left = (row % REDUCTION) * side, column * side
        bottom = min(top + side, self.shape[0] - self._row * self._tile)
        right = min(left + side, self.shape[1])
        if bottom > top and right > left:
            self._band[top:bottom, left:right] = small[: bottom - top, : right - left]

    def end_row(self, row: int, *, last: bool) -> None:
        """A row of tiles of the level above is over."""
        if (row % REDUCTION != REDUCTION - 1 and not last) or self._row == self._rows:
            return
        for column in range(self._columns):
            left = column * self._tile
            square = self._band[:, left : left + self._tile]
            if (square == WHITE).all():
                self.tiles.append(self._empty)
                continue
            self.tiles.append(_compressed(square))
            if self._below is not None:
                self._below.add(square, self._row, column)
        self._band[:] = WHITE
        self._row += 1
        if self._below is not None:
            self._below.end_row(self._row - 1, last=self._row == self._rows)


def _glass(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), WHITE, np.uint8)


def _compressed(square: Pixels) -> bytes:
    return zlib.compress(square.tobytes(), 6)
