"""Synthetic pictures of objects and textures with defects of known place, in two layouts.

A twin of MVTec AD and VisA for a machine that has neither, and for tests that need masks. A
category, named by seed and name, is either an object on a background or a texture that fills the
picture, with parts at fixed places. Every picture of it is turned by up to 4 degrees, shifted,
lit from one side, and has its own phase of the texture, grain, and a few specks that are normal:
some are brighter or darker than any defect, so that a single pixel tells little. Kinds of defects:

- ``missing``: one part has faded into what is around it;
- ``scratch``: a thin, slightly bowed line, lighter or darker than its ground;
- ``spot``: a blob with a wobbly edge, of another colour.

The constants are chosen so that with the default parameters, over the categories of MVTec AD, a
simple statistic (a 3 x 3 mean, each pixel z-scored on the training pictures, the largest of the
root mean squares over colours) reaches a mean AUROC of .84 (.97 missing, .73 scratch, .84 spot)
and .88 over pixels, and the brightest or darkest pixel .53: neither trivial nor hopeless.
``tests/test_pictures_generator.py`` holds them.

Every picture has a random stream of its own, named by seed, category, split, kind and index: a
longer split begins with the same pictures as a shorter one, and both layouts hold the same.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Strict
from trainables.data.folders import MARKER, FolderName

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train normal", "test normal", "test anomalous"]
Kind = Literal["missing", "scratch", "spot"]
Floats = NDArray[np.float64]

KINDS: tuple[Kind, ...] = get_args(Kind)
VISA_TABLE = "split_csv/1cls.csv"
VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_JPEG_QUALITY = 95

_TEXTURE_SHARE = 0.4  # of categories
_TURN = 0.07  # largest, in radians
_SHIFT = 0.05  # largest, of half the shorter side
_GAIN = 0.06  # standard deviation
_LIGHT = 0.10  # largest rise towards one side
_GRAIN = 0.025  # standard deviation, of full scale
_SPECKS = 5.0  # mean number of normal specks
_SPECK = 0.16  # standard deviation, of full scale
_SCRATCH = 0.17  # of full scale, at severity 1
_SPOT = 0.13

_Pixels = Annotated[int, Field(ge=16, le=2048)]


class Params(Strict):
    """Synthetic pictures: objects and textures with defects of known place.

    Args:
        categories: Names of the categories; each draws its own look from its name.
        size: Height and width in pixels, or one number for both.
        train: Normal training pictures per category.
        good: Normal test pictures per category.
        defect: Anomalous test pictures per category and kind of defect.
        severity: How far a defect departs from normal; 0 cannot be seen.
        seed: Names the categories, the noise and the defects.
    """

    categories: tuple[FolderName, ...] = Field(min_length=1)
    size: _Pixels | tuple[_Pixels, _Pixels] = 64
    train: int = Field(40, ge=1, le=10_000)
    good: int = Field(20, ge=1, le=10_000)
    defect: int = Field(8, ge=1, le=10_000)
    severity: float = Field(1.0, ge=0, le=3)
    seed: int = Field(1, ge=0)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture.

    Args:
        kind: Of its defect; None for a normal one.
        index: From 0, within its split and kind.
        pixels: Shape (height, width, 3), uint8.
        mask: Shape (height, width), True where it is anomalous.
    """

    kind: Kind | None
    index: int
    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def write_mvtec(params: Params, root: Path) -> None:
    """Write ``<category>/{train,test,ground_truth}/<good or kind>/*.png`` below ``root``.

    The same ``params`` write the same bytes.
    """
    for category in params.categories:
        home = root / category
        for split in get_args(Split):
            for made in pictures(params, category, split):
                name = f"{made.index:03d}"
                folder = home / split.split()[0] / (made.kind or "good")
                folder.mkdir(parents=True, exist_ok=True)
                _image(made.pixels).save(folder / f"{name}.png")
                if made.kind:
                    folder = home / "ground_truth" / made.kind
                    folder.mkdir(parents=True, exist_ok=True)
                    _image(made.mask * np.uint8(255)).save(folder / f"{name}_mask.png")
    _mark(params, root)


def write_visa(params: Params, root: Path) -> None:
    """Write ``<category>/Data/{Images,Masks}`` and ``split_csv/1cls.csv`` below ``root``.

    Pictures are JPEG files of high quality, and masks hold 1, 2, 3 for the kinds of defects. The
    same ``params`` write the same bytes.
    """
    rows: list[tuple[str, ...]] = []
    for category in params.categories:
        data = root / category / "Data"
        for folder in ("Images/Normal", "Images/Anomaly", "Masks/Anomaly"):
            (data / folder).mkdir(parents=True)
        count = {"normal": 0, "anomaly": 0}
        for split in get_args(Split):
            for made in pictures(params, category, split):
                label = "anomaly" if made.kind else "normal"
                name = f"{count[label]:0{3 if made.kind else 4}d}"
                count[label] += 1
                path = data / "Images" / label.title() / f"{name}.JPG"
                _image(made.pixels).save(path, quality=_JPEG_QUALITY, subsampling=0)
                mask = data / "Masks" / "Anomaly" / f"{name}.png"
                if made.kind:
                    _image(made.mask * np.uint8(1 + KINDS.index(made.kind))).save(mask)
                named = [path, mask] if made.kind else [path]
                names = [one.relative_to(root).as_posix() for one in named]
                rows.append((category, split.split()[0], label, names[0], "".join(names[1:])))
    table = root / VISA_TABLE
    table.parent.mkdir()
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([VISA_COLUMNS, *rows])
    _mark(params, root)


def _image(pixels: NDArray[np.uint8]) -> Image:
    import PIL.Image

    return PIL.Image.fromarray(pixels)


def _mark(params: Params, root: Path) -> None:
    (root / MARKER).write_text(params.model_dump_json(indent=2) + "\n", encoding="utf-8")


def pictures(params: Params, category: str, split: Split) -> Iterator[Picture]:
    """Pictures of one split, kind after kind."""
    style = _style(_stream(params.seed, category, 0))
    counts: dict[Split, int] = {"train normal": params.train, "test normal": params.good}
    if split != "test anomalous":
        for index in range(counts[split]):
            rng = _stream(params.seed, category, 1 + list(counts).index(split), index)
            yield Picture(None, index, *_draw(params, style, rng, None))
        return
    for kind in KINDS:
        for index in range(params.defect):
            rng = _stream(params.seed, category, 3 + KINDS.index(kind), index)
            yield Picture(kind, index, *_draw(params, style, rng, kind))


def _stream(seed: int, category: str, *key: int) -> np.random.Generator:
    name = hashlib.sha256(category.encode()).digest()
    spawn_key = (int.from_bytes(name[:4], "big"), int.from_bytes(name[4:8], "big"), *key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


@dataclass(frozen=True, slots=True)
class _Style:
    """What the pictures of a category share. Lengths are in halves of the shorter side.

    Args:
        ground, body, part: RGB, in [0, 1].
        half: Height and width of the body, from its centre; infinite for a texture.
        power: Of the superellipse that is the body's outline: 2 is an ellipse, 6 almost a box.
        waves: Shape (2, 2), texture of the body: radians per length, down and across.
        depth: Amplitude of the texture.
        places: Shape (n, 2), centres of the parts.
        radius: Of a part.
    """

    ground: Floats
    body: Floats
    part: Floats
    half: Floats
    power: float
    waves: Floats
    depth: float
    places: Floats
    radius: float


def _style(rng: np.random.Generator) -> _Style:
    is_texture = rng.random() < _TEXTURE_SHARE
    ground, body = rng.uniform(0.15, 0.4, 3), rng.uniform(0.4, 0.7, 3)
    if rng.random() < 0.5:
        ground, body = body, ground
    part = np.clip(body + rng.choice([-0.2, 0.2]) + rng.uniform(-0.1, 0.1, 3), 0.05, 0.85)
    if is_texture:
        half = np.array([np.inf, np.inf])
        grid = np.array([-0.6, 0.0, 0.6])
        places = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    else:
        half = rng.uniform(0.6, 0.82, 2)
        count = int(rng.integers(3, 7))
        angle = 2 * np.pi * (np.arange(count) / count + rng.random())
        places = 0.55 * half * np.stack([np.sin(angle), np.cos(angle)], -1)
    waves = rng.uniform(4.0, 20.0, (2, 1)) * _directions(rng, 2)
    return _Style(
        ground=ground,
        body=body,
        part=part,
        half=half,
        power=float(rng.uniform(2.0, 6.0)),
        waves=waves,
        depth=float(rng.uniform(0.02, 0.05)),
        places=places,
        radius=float(rng.uniform(0.10, 0.14)),
    )


def _directions(rng: np.random.Generator, count: int) -> Floats:
    """Unit vectors, shape (count, 2)."""
    angle = rng.uniform(0, 2 * np.pi, count)
    return np.stack([np.sin(angle), np.cos(angle)], -1)


def _draw(
    params: Params, style: _Style, rng: np.random.Generator, kind: Kind | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels and mask of one picture."""
    height, width = params.shape
    unit = min(height, width) / 2  # pixels
    grid = np.moveaxis(np.indices((height, width)), 0, -1) + 0.5
    seen = (grid - np.array([height, width]) / 2) / unit
    turn, shift = rng.uniform(-_TURN, _TURN), rng.uniform(-_SHIFT, _SHIFT, 2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    at = (seen - shift) @ rotation  # where each pixel is on the body

    part_of_kind = int(rng.integers(len(style.places)))
    cover = _within(_superellipse(at, style), unit)
    waves = np.sin(at @ style.waves.T + rng.uniform(0, 2 * np.pi, 2)).sum(-1)
    rgb = style.ground + cover[..., None] * (
        style.body + style.depth * waves[..., None] - style.ground
    )
    mask = np.zeros((height, width), np.bool_)
    for index, place in enumerate(style.places):
        disc = _within(_distance(at - place) - style.radius, unit)
        share = 1.0
        if kind == "missing" and index == part_of_kind:
            mask = disc > 0.5
            share = max(0.0, 1.0 - params.severity)
        rgb += share * disc[..., None] * (style.part - rgb)
    if kind in ("scratch", "spot"):
        shape, colour = (_scratch if kind == "scratch" else _spot)(rng, style, at, unit)
        mask = shape > 0.5
        rgb += params.severity * shape[..., None] * colour

    light = 1 + rng.uniform(0, _LIGHT) * (seen @ _directions(rng, 1)[0])
    rgb *= (light * rng.normal(1.0, _GAIN))[..., None]
    rgb += _specks(rng, seen, unit)[..., None]
    rgb += rng.normal(0.0, _GRAIN, rgb.shape)
    return np.rint(255 * np.clip(rgb, 0, 1)).astype(np.uint8), mask


def _within(distance: Floats, unit: float) -> Floats:
    """1 inside an outline, 0 outside, and a ramp of one pixel between; distances in lengths."""
    return np.clip(0.5 - distance * unit, 0.0, 1.0)


def _superellipse(at: Floats, style: _Style) -> Floats:
    """Distance from the outline of the body, about; negative inside."""
    if not np.isfinite(style.half).all():
        return np.full(at.shape[:2], -np.inf)
    radius: Floats = (np.abs(at / style.half) ** style.power).sum(-1) ** (1 / style.power)
    return (radius - 1) * float(style.half.min())


def _centre(rng: np.random.Generator, style: _Style) -> Floats:
    """A place well on the body."""
    return rng.uniform(-0.6, 0.6, 2) * np.minimum(style.half, 1.0)


def _scratch(
    rng: np.random.Generator, style: _Style, at: Floats, unit: float
) -> tuple[Floats, Floats]:
    along = _directions(rng, 1)[0]
    across = np.array([along[1], -along[0]])
    away = at - _centre(rng, style)
    reach = rng.uniform(0.2, 0.4)
    t = (away @ along) / reach
    bow = rng.uniform(-0.15, 0.15) * reach * (1 - t**2)
    beyond = np.maximum(np.abs(t) - 1, 0) * reach
    half_width = max(0.6 / unit, rng.uniform(0.018, 0.03))
    shape = _within(np.hypot(away @ across - bow, beyond) - half_width, unit)
    colour = rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.3) * _SCRATCH * np.ones(3)
    return shape, colour


def _spot(
    rng: np.random.Generator, style: _Style, at: Floats, unit: float
) -> tuple[Floats, Floats]:
    away = at - _centre(rng, style)
    angle = np.arctan2(away[..., 0], away[..., 1])
    radius = max(1.5 / unit, rng.uniform(0.08, 0.16))
    edge = 1 + 0.2 * np.sin(int(rng.integers(2, 5)) * angle + rng.uniform(0, 2 * np.pi))
    shape = _within(_distance(away) - radius * edge, unit)
    colour = rng.normal(size=3)
    colour *= rng.uniform(0.7, 1.3) * _SPOT * np.sqrt(3) / np.linalg.norm(colour)
    return shape, colour


def _specks(rng: np.random.Generator, seen: Floats, unit: float) -> Floats:
    """Normal grains of about a pixel, lighter or darker, anywhere in the picture."""
    specks = np.zeros(seen.shape[:2])
    for _ in range(int(rng.poisson(_SPECKS))):
        place = rng.uniform(-1, 1, 2) * np.abs(seen[0, 0])
        away = _distance(seen - place) * unit
        specks += rng.normal(0.0, _SPECK) * np.clip(1.2 - away, 0.0, 1.0)
    return specks


def _distance(away: Floats) -> Floats:
    distance: Floats = np.hypot(away[..., 0], away[..., 1])
    return distance
