"""Whole-slide images, which are read through OpenSlide and never as a whole.

A slide keeps its picture at several sizes, its *levels*; level 0 is the largest and gives the
coordinates. A few slides are kept open, with one bounded cache of decoded pixels for all of them,
so memory does not depend on how many or how large the slides are. Any thread may read; a process
that was forked opens slides of its own.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hdsweep.method import DataError
from trainables.data.folders import is_folder, names_in, require_file, unreadable

if TYPE_CHECKING:
    from openslide import OpenSlide

SUFFIXES = (".mrxs", ".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif")
KIND = "a whole-slide image"

_WITH_FOLDER = ".mrxs"  # whose pixels are in a folder beside it, of its stem
_OPEN = 16  # slides at a time
_CACHE_BYTES = 64 * 2**20  # of decoded pixels, for all of them
_MASK_SIDE = 2048  # largest, of a tissue mask
_READ_SIDE = 16384  # largest, of a level that may be read for it, in strips
_STRIP_PIXELS = 2**21
_SQUARE_SIDE = 8192  # that is read for one tile: 256 MiB
_SAME_SCALE = 1.01  # levels of scanners are off by a part of a pixel
_SATURATION = (0.05, 0.20)  # bounds of the threshold between glass and tissue
_DARK = 25  # of 255; below, a hue is noise: pen, dust and the black around a scan
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

State = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Tissue:
    """Where a slide holds tissue.

    Args:
        mask: Shape (rows, columns).
        cell: Level-0 pixels that one cell of the mask is high and wide.
    """

    mask: NDArray[np.bool_]
    cell: tuple[float, float]

    def shares(self, x: NDArray[np.intp], y: NDArray[np.intp], side: int) -> NDArray[np.float64]:
        """Share of each square that is tissue, in [0, 1], shape (len(y), len(x)).

        Args:
            x: Left edges of the columns of squares, in level-0 pixels.
            y: Upper edges of the rows.
            side: Of a square.
        """
        total = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1), np.int32)
        np.cumsum(self.mask, axis=0, out=total[1:, 1:], dtype=np.int32)
        np.cumsum(total, axis=1, out=total)
        low, high = (_at(total, edges / self.cell[0], 0) for edges in (y, y + side))
        bands = high - low  # tissue above and to the left, within each row of squares
        low, high = (_at(bands, edges / self.cell[1], 1) for edges in (x, x + side))
        area: NDArray[np.float64] = (high - low) * self.cell[0] * self.cell[1] / side**2
        return np.clip(area, 0.0, 1.0)


def _at(values: NDArray[Any], place: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Values between the cells along an axis, interpolated linearly."""
    last = values.shape[axis] - 1
    place = np.clip(place, 0, last)
    below = np.minimum(place.astype(np.intp), last - 1)
    t = np.expand_dims(place - below, 1 - axis)
    lower, upper = values.take(below, axis), values.take(below + 1, axis)
    found: NDArray[np.float64] = lower * (1 - t) + upper * t
    return found


def parts_of(path: Path) -> list[Path]:
    """Every file that holds a part of a slide, sorted; raises DataError as ``require_file``."""
    require_file(path, KIND)
    parts = [path]
    folders = [path.with_suffix("")] if path.suffix.lower() == _WITH_FOLDER else []
    if folders and not is_folder(folders[0]):
        raise DataError(
            f"{folders[0]}: no such folder, and {path.name} keeps its pixels there; copy it from "
            "where the slide came from"
        )
    while folders:
        folder = folders.pop()
        for name in names_in(folder):
            if is_folder(folder / name):
                folders.append(folder / name)
            else:
                require_file(folder / name, f"a part of {path.name}")
                parts.append(folder / name)
    return sorted(parts)


def state_of(paths: list[Path]) -> State:
    """What changes when a file does."""
    try:
        seen = [(path, path.stat()) for path in paths]
    except OSError as error:
        raise unreadable(Path(os.fsdecode(error.filename)), error) from None
    return tuple((str(p), s.st_size, s.st_mtime_ns, s.st_ino) for p, s in seen)


class _Pool:
    """The slides that this process has open, the last used last.

    One that is evicted is closed as soon as nobody reads from it: at once, or when the last reader
    lets go of it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._slides: OrderedDict[State, OpenSlide] = OrderedDict()
        self._cache: Any = None

    def get(self, path: Path) -> OpenSlide:
        """The slide, open; raises DataError when it cannot be."""
        require_file(path, KIND)
        key = state_of([path])
        with self._lock:
            known = self._slides.get(key)
            if known is not None:
                self._slides.move_to_end(key)
                return known
        slide = opened(path)  # not under the lock: others go on reading
        with self._lock:
            if self._cache is None:
                from openslide import OpenSlideCache

                self._cache = OpenSlideCache(_CACHE_BYTES)
            slide.set_cache(self._cache)
            slide = self._slides.setdefault(key, slide)
            while len(self._slides) > _OPEN:
                self._slides.popitem(last=False)
            return slide

    def drop(self, slide: OpenSlide) -> None:
        """Forget a slide that failed: OpenSlide answers nothing more about it."""
        with self._lock:
            for key in [k for k, known in self._slides.items() if known is slide]:
                del self._slides[key]


_pool = _Pool()
_inherited: list[_Pool] = []


def _after_fork() -> None:
    global _pool  # noqa: PLW0603 - the process is another one
    _inherited.append(_pool)  # kept, not closed: a lock in it may be held by a thread that is gone
    _pool = _Pool()


os.register_at_fork(after_in_child=_after_fork)


def opened(path: Path) -> OpenSlide:
    """The slide, opened anew. Raises DataError with OpenSlide's reason when it cannot be."""
    from openslide import OpenSlide, OpenSlideError, OpenSlideUnsupportedFormatError

    try:
        return OpenSlide(path)
    except OpenSlideUnsupportedFormatError as error:
        raise DataError(
            f"{path}: OpenSlide cannot open it ({error}); if it is whole, save it as a tiled "
            "pyramid, as 'vips tiffsave IN OUT --tile --pyramid' does"
        ) from None
    except OpenSlideError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: OpenSlide cannot read it ({reason}); copy it again from its source")


def size_of(path: Path) -> tuple[int, int, int]:
    """Width and height of level 0, and the number of levels. Raises DataError as ``opened``."""
    slide = _pool.get(path)
    width, height = slide.dimensions
    return int(width), int(height), int(slide.level_count)


def require_scale(path: Path, pixels: int, downsample: int) -> None:
    """Raise DataError where a square would have to be averaged down from too many pixels."""
    _level_of(path, _pool.get(path), pixels, downsample)


def _level_of(path: Path, slide: OpenSlide, pixels: int, downsample: int) -> tuple[int, int]:
    """The smallest level that is large enough, and the side of a square in its pixels."""
    scales = slide.level_downsamples
    level = max(n for n, scale in enumerate(scales) if scale <= downsample * _SAME_SCALE or n == 0)
    side = max(1, round(pixels * downsample / scales[level]))
    if side > _SQUARE_SIDE:
        raise DataError(
            f"{path}: its levels are {', '.join(f'1/{scale:g}' for scale in scales)}, so a tile of "
            f"{pixels} pixels at 1/{downsample} would be averaged down from {side} x {side}; take "
            "a 'downsample' that is near a level"
        )
    return level, side


def read_square(path: Path, x: int, y: int, pixels: int, downsample: int) -> NDArray[np.float32]:
    """RGB of a square of a slide, shape (3, pixels, pixels), in [0, 1].

    It is read at the smallest level that is large enough, and averaged down from there where no
    level has the very scale. What is transparent is white.

    Args:
        path: The slide.
        x: Of the square's left edge, in level-0 pixels.
        y: Of its upper edge.
        pixels: Side of what is returned.
        downsample: Level-0 pixels that one of them is wide and high.

    Raises:
        DataError: The slide cannot be opened, or not read there.
    """
    from PIL import Image

    slide = _pool.get(path)
    level, side = _level_of(path, slide, pixels, downsample)
    image = _region(path, slide, (x, y), level, (side, side))
    rgb = _on_white(np.asarray(image))
    if side != pixels:
        resized = Image.fromarray(rgb).resize((pixels, pixels), Image.Resampling.BOX)
        rgb = np.asarray(resized)
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def _region(
    path: Path, slide: OpenSlide, at: tuple[int, int], level: int, size: tuple[int, int]
) -> Any:
    from openslide import OpenSlideError

    try:
        return slide.read_region(at, level, size)
    except OpenSlideError as error:
        _pool.drop(slide)
        place = f"at x {at[0]}, y {at[1]} of level {level}: {error}"
        raise _damaged(path, place) from None


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shape (height, width, 4) -> (height, width, 3)."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return rgba[..., :3]
    over = rgba[..., :3].astype(np.uint16) * alpha + np.uint16(255) * (255 - alpha)
    return ((over + 127) // 255).astype(np.uint8)


def find_tissue(path: Path) -> Tissue:
    """Where there is tissue, from a small level: what is more colourful than the glass.

    The threshold is Otsu's, on the saturation of all pixels that are not transparent, kept between
    5 % and 20 %: a slide without tissue has none, and one without glass is all tissue. What is
    nearly black counts as glass.

    Raises:
        DataError: The slide cannot be opened or read, or has no level that is small enough.
    """
    slide = _pool.get(path)
    longer = [max(size) for size in slide.level_dimensions]
    smaller = range(1, len(longer)) or range(1)  # level 0 only where it is alone
    enough = [n for n in smaller if longer[n] >= _MASK_SIDE]
    level = max(enough, default=min(smaller))
    width, height = slide.level_dimensions[level]
    if longer[level] > _READ_SIDE:
        raise DataError(
            f"{path}: the smallest level is {height} x {width} pixels (height x width), too large "
            "to look for tissue in; save the slide as a pyramid, as 'vips tiffsave IN OUT --tile "
            "--pyramid' does"
        )
    factor = -(-longer[level] // _MASK_SIDE)
    rows = max(1, _STRIP_PIXELS // (width * factor)) * factor
    scale = slide.dimensions[1] / height
    colour, seen = [], []
    for top in range(0, height, rows):
        size = (width, min(rows, height - top))
        strip = np.asarray(_region(path, slide, (0, round(top * scale)), level, size))
        reduced = _reduced(np.dstack([_on_white(strip), strip[..., 3]]), factor)
        colour.append(_saturation(reduced[..., :3]))
        seen.append(reduced[..., 3] > 0)
    saturation, opaque = np.concatenate(colour), np.concatenate(seen)
    least, most = (255 * bound for bound in _SATURATION)
    threshold = min(max(_otsu(saturation[opaque]), least), most)
    cell = (factor * scale, factor * slide.dimensions[0] / width)
    return Tissue(saturation > threshold, cell)


def _reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means over squares; those at the far edges are filled up by repeating the last pixels."""
    if factor == 1:
        return pixels
    height, width, channels = pixels.shape
    filled = np.pad(pixels, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    cut = filled.reshape(filled.shape[0] // factor, factor, -1, factor, channels)
    means: NDArray[np.uint8] = cut.mean(axis=(1, 3), dtype=np.float32).astype(np.uint8)
    return means


def _saturation(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As HSV has it, from 0 to 255."""
    high, low = rgb.max(axis=-1).astype(np.uint16), rgb.min(axis=-1)
    found = 255 * (high - low) // np.maximum(high, 1)
    return np.where(high < _DARK, 0, found).astype(np.uint8)


def _otsu(values: NDArray[np.uint8]) -> float:
    """The threshold that parts the values best; the larger ones are above it."""
    count = np.bincount(values, minlength=256).astype(np.float64)
    below = count.cumsum()
    above = below[-1] - below
    total = (count * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = below * above * (total / below - (total[-1] - total) / above) ** 2
    apart = np.nan_to_num(apart, nan=0.0, posinf=0.0)
    best = np.flatnonzero(apart == apart.max())
    return float(best.mean())  # where none is between the two kinds, all are as good


def verify(path: Path) -> None:
    """Raise DataError unless a slide, or the slide that a file is part of, is whole.

    Every tile of a TIFF must lie within the file, and the ends of each level must decode; the
    pixels between are not read.
    """
    if path.suffix.lower() not in SUFFIXES:
        homes = (p.parent / (p.name + _WITH_FOLDER) for p in path.parents)
        path = next((slide for slide in homes if slide.exists()), path)
    _verify(path, state_of(parts_of(path)))


@lru_cache(maxsize=4096)  # a slide of many files is looked at once for all of them
def _verify(path: Path, _state: State) -> None:
    slide = opened(path)
    with slide, path.open("rb") as file:
        if file.read(4) in _TIFF:
            _require_whole(path)
        for level, (width, height) in enumerate(slide.level_dimensions):
            scale = slide.level_downsamples[level]
            side = min(64, width, height)
            for x, y in ((0, 0), (width - side, height - side)):
                _region(path, slide, (int(x * scale), int(y * scale)), level, (side, side))


def _require_whole(path: Path) -> None:
    import tifffile

    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            for page in tiff.pages:
                ends = np.asarray(page.dataoffsets, np.int64) + np.asarray(page.databytecounts)
                if len(ends) and int(ends.max()) > size:
                    shape = " x ".join(map(str, page.shape[:2]))
                    raise DataError(
                        f"{path}: the level of {shape} pixels ends at byte {ends.max()}, and the "
                        f"file has {size}; copy it again from its source"
                    )
    except DataError:
        raise
    except Exception as error:  # a damaged file makes the reader fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read as a TIFF ({reason}); copy it again from its source"
        ) from error
