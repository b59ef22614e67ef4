"""Synthetic stained tissue, painted piece by piece.

A picture of a slide is too large to be drawn at once, so every pixel is a function of a key and of
its place: nuclei and glands sit on jittered lattices whose cells draw their content from a hash of
key and cell, and smooth fields are interpolated between hashed lattice points. Neighbouring pieces
fit together whatever their size, and any piece can be painted without the others. Only the grain
is drawn for a piece as a whole.

Tissue looks as haematoxylin and eosin stain it: dark nuclei, pink stroma with fibres, and glands,
which are a pale lumen in a ring of close nuclei. *Altered* tissue has more and larger nuclei and
wider glands with a serrated outline. Density and stain also drift over a slide and differ between
slides, so that no single pixel and no mean colour tells the two apart for certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Altered = Callable[[Floats, Floats], NDArray[np.bool_]]
"""Level-0 coordinates down and across, of one shape -> where tissue is altered."""

WHITE = (243, 242, 245)  # of the glass around the tissue

_HAEMATOXYLIN = np.array([0.62, 0.90, 0.36], np.float32)  # absorbed red, green, blue
_EOSIN = np.array([0.13, 0.62, 0.34], np.float32)
_NUCLEUS_CELL = 14  # pixels; a nucleus reaches no further than the neighbouring cells
_GLAND_CELL = 88
_LUMEN = 0.42  # of a gland's radius
_GRAIN = 0.022  # standard deviation, of full scale


@dataclass(frozen=True, slots=True)
class _Look:
    """What one kind of tissue is made of.

    Args:
        nuclei: Share of the lattice's cells in the stroma that hold a nucleus.
        nucleus: Its radius in pixels.
        gland: Radius of a gland in pixels.
        serration: Of its outline, relative to the radius.
    """

    nuclei: float
    nucleus: float
    gland: float
    serration: float


_NORMAL = _Look(nuclei=0.38, nucleus=3.6, gland=27.0, serration=0.04)
_ALTERED = _Look(nuclei=0.62, nucleus=4.8, gland=35.0, serration=0.20)


def key_of(seed: int, *parts: int) -> int:
    """A key of 64 bits for one slide or picture."""
    sequence = np.random.SeedSequence(seed, spawn_key=tuple(parts))
    return int(sequence.generate_state(1, np.uint64)[0])


def paint(
    key: int,
    corner: tuple[int, int],
    shape: tuple[int, int],
    altered: Altered,
    *,
    cover: Floats | float = 1.0,
    severity: float = 1.0,
) -> NDArray[np.uint8]:
    """Pixels of one piece, shape (height, width, 3).

    Args:
        key: Of the slide or picture.
        corner: Level-0 coordinates of the piece's first pixel, down and across.
        shape: Height and width.
        altered: Where the tissue is altered.
        cover: How much tissue lies on the glass, from 0 to 1; a number or of ``shape``.
        severity: How far altered tissue departs from normal; 0 cannot be seen.
    """
    y, x = _places(corner, shape)
    drift = _smooth(key, 1, corner, shape, 420) - np.float32(0.5)
    fibres = _fibres(key, corner, shape)
    rho = _glands(key, y, x, altered, severity)
    lumen = np.clip((_LUMEN - rho) * 9 + 0.5, 0, 1)
    ring = np.clip((1 - rho) * 12 + 0.5, 0, 1)  # 1 within a gland

    stain = _hash(key, 2, np.zeros(1, np.int64), np.zeros(1, np.int64), 2)[:, 0] - 0.5
    haematoxylin = 0.10 + 0.12 * ring + 1.15 * _nuclei(key, corner, shape, altered, severity)
    haematoxylin *= (1 + 0.22 * stain[0] + 0.30 * drift) * (1 - 0.95 * lumen)
    eosin = (0.42 + 0.28 * fibres) * (1 - 0.45 * ring) * (1 - 0.92 * lumen)
    eosin *= 1 + 0.22 * stain[1] - 0.20 * drift

    absorbed = haematoxylin[..., None] * _HAEMATOXYLIN + eosin[..., None] * _EOSIN
    absorbed *= cover if isinstance(cover, float) else cover[..., None]
    rgb = np.asarray(WHITE, np.float32) * np.exp(-absorbed)
    rng = np.random.default_rng(np.random.SeedSequence([key, corner[0], corner[1]]))
    rgb += 255 * _GRAIN * rng.standard_normal(rgb.shape, np.float32)
    pixels: NDArray[np.uint8] = np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)
    return pixels


def _places(corner: tuple[int, int], shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Coordinates of the middle of each pixel, each of ``shape``."""
    down = (corner[0] + 0.5 + np.arange(shape[0])).astype(np.float32)
    across = (corner[1] + 0.5 + np.arange(shape[1])).astype(np.float32)
    y, x = np.meshgrid(down, across, indexing="ij")
    return y, x


def _hash(
    key: int, use: int, y: NDArray[np.int64], x: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1) for each cell, shape (count, *y.shape); splitmix64 of its place."""
    start = np.asarray([(key + 0x9E3779B97F4A7C15 * use) % 2**64], np.uint64)
    state = _mix(start + y.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
    state = _mix(state + x.astype(np.uint64) * np.uint64(0x8CB92BA72F3D8DD7))
    step = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = _mix(state[None] + step.reshape(-1, *(1,) * state.ndim))
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _smooth(
    key: int, use: int, corner: tuple[int, int], shape: tuple[int, int], spacing: int
) -> Floats:
    """A field in [0, 1] whose bumps are about ``spacing`` pixels wide, of ``shape``."""
    weights, cells = [], []
    for start, length in zip(corner, shape, strict=True):
        place = (start + 0.5 + np.arange(length)) / spacing
        low = np.floor(place).astype(np.int64)
        cells.append(np.arange(low[0], low[-1] + 2))
        t = (place - low).astype(np.float32)
        t = t * t * (3 - 2 * t)
        weight = np.zeros((length, len(cells[-1])), np.float32)
        rows = np.arange(length)
        weight[rows, low - low[0]] = 1 - t
        weight[rows, low - low[0] + 1] = t
        weights.append(weight)
    y, x = np.meshgrid(*cells, indexing="ij")
    values = _hash(key, use, y, x, 1)[0]
    # Not by BLAS, whose sums depend on the number of threads.
    across = np.einsum("ij,wj->iw", values, weights[1])
    field: Floats = np.einsum("hi,iw->hw", weights[0], across)
    return field


def _fibres(key: int, corner: tuple[int, int], shape: tuple[int, int]) -> Floats:
    """Wavy bundles of about nine pixels, in [0, 1]."""
    bend = _smooth(key, 3, corner, shape, 64)
    wave = np.sin(np.float32(24) * bend + np.float32(9) * _smooth(key, 4, corner, shape, 15))
    fibres: Floats = np.float32(0.5) + np.float32(0.5) * wave
    return fibres


def _between(where: NDArray[np.bool_], severity: float, name: str) -> Floats:
    """The value of a look at each place."""
    normal, other = getattr(_NORMAL, name), getattr(_ALTERED, name)
    value: Floats = np.where(where, normal + severity * (other - normal), normal).astype(np.float32)
    return value


def _glands(key: int, y: Floats, x: Floats, altered: Altered, severity: float) -> Floats:
    """Distance to the nearest gland's centre over its radius in that direction, of y's shape."""
    nearest = np.full(y.shape, np.inf, np.float32)
    row, column = (np.floor(v / _GLAND_CELL).astype(np.int64) for v in (y, x))
    top, left = int(row.min()) - 1, int(column.min()) - 1
    cells = np.meshgrid(
        np.arange(top, int(row.max()) + 2), np.arange(left, int(column.max()) + 2), indexing="ij"
    )
    draw = _hash(key, 5, cells[0], cells[1], 6)
    cy = ((cells[0] + 0.28 + 0.44 * draw[0]) * _GLAND_CELL).astype(np.float32)
    cx = ((cells[1] + 0.28 + 0.44 * draw[1]) * _GLAND_CELL).astype(np.float32)
    where = altered(cy, cx)
    radius = _between(where, severity, "gland") * (0.82 + 0.36 * draw[2])
    radius *= np.where(draw[3] < 0.85, np.float32(1), np.float32(0.01))  # some cells have none
    serration = _between(where, severity, "serration")
    teeth = np.floor(5 + 4 * draw[4]).astype(np.float32)
    phase = np.float32(2 * np.pi) * draw[5]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = (row - top + dy, column - left + dx)
            v, u = y - cy[at], x - cx[at]
            edge = 1 + serration[at] * np.sin(teeth[at] * np.arctan2(v, u) + phase[at])
            np.minimum(nearest, np.hypot(v, u) / (radius[at] * edge), out=nearest)
    return nearest


def _nuclei(
    key: int, corner: tuple[int, int], shape: tuple[int, int], altered: Altered, severity: float
) -> Floats:
    """How much of a nucleus covers each pixel, from 0 to about 1, of ``shape``."""
    starts = [c // _NUCLEUS_CELL - 1 for c in corner]
    stops = [(c + n - 1) // _NUCLEUS_CELL + 2 for c, n in zip(corner, shape, strict=True)]
    cells = np.meshgrid(*map(np.arange, starts, stops), indexing="ij")
    draw = _hash(key, 6, cells[0], cells[1], 7)
    cy = ((cells[0] + 0.1 + 0.8 * draw[0]) * _NUCLEUS_CELL).astype(np.float32)
    cx = ((cells[1] + 0.1 + 0.8 * draw[1]) * _NUCLEUS_CELL).astype(np.float32)
    where = altered(cy, cx)
    rho = _glands(key, cy, cx, altered, severity)
    share = _between(where, severity, "nuclei")
    share = np.where(rho < 1.08, np.float32(0.95), share)
    share = np.where(
        rho < _LUMEN + 0.28, np.float32(0), share
    )  # the inner half of the ring is pale
    radius = _between(where, severity, "nucleus") * (0.8 + 0.5 * draw[3])
    squeeze = np.exp2(0.9 * draw[4])  # long over broad, squared
    dark = (0.65 + 0.35 * draw[6]) * (draw[2] < share)
    turn = np.float32(np.pi) * draw[5]
    long, broad = 1 / (radius**2 * squeeze), squeeze / radius**2
    cos, sin = np.cos(turn), np.sin(turn)
    a = long * cos**2 + broad * sin**2
    b = 2 * (long - broad) * cos * sin
    c = long * sin**2 + broad * cos**2

    y, x = _places(corner, shape)
    row = np.arange(corner[0], corner[0] + shape[0]) // _NUCLEUS_CELL - starts[0]
    column = np.arange(corner[1], corner[1] + shape[1]) // _NUCLEUS_CELL - starts[1]
    covered = np.zeros(shape, np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = np.ix_(row + dy, column + dx)
            v, u = y - cy[at], x - cx[at]
            inside = np.clip(
                np.float32(1.3) - (a[at] * u * u + b[at] * u * v + c[at] * v * v), 0, 1
            )
            np.maximum(covered, dark[at] * inside, out=covered)
    return covered


def blob_edge(angle: Floats, radius: float, waves: Sequence[tuple[int, float, float]]) -> Floats:
    """Distance of a wobbly outline from its centre in a direction.

    Args:
        angle: Radians.
        radius: Mean distance.
        waves: Order, relative amplitude and phase of each wave along the outline.
    """
    wobble = sum(amplitude * np.sin(order * angle + phase) for order, amplitude, phase in waves)
    edge: Floats = radius * (1 + wobble)
    return edge
