"""Data sets of pictures in categories, with masks of their anomalous pixels.

What the layouts of MVTec AD and VisA have in common: parameters, splits, and how a file becomes
an array. A layout only says which items a split of a category has.

Pictures are read as stored: an orientation noted by a camera is not applied, since masks are
drawn on the stored pixels, and nothing is resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from hdsweep.method import Data, DataError, Item, Strict
from trainables.data.folders import FolderName, Root
from trainables.data.synthetic import pictures as synthetic

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train normal", "test normal", "test anomalous"]
SPLITS: tuple[Split, ...] = get_args(Split)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
KIND = "a picture"

Items = Callable[[str, Split], tuple[Item, ...]]
"""Category and split -> its items; raises DataError when the layout is not there."""


class Params(Strict):
    """Pictures of objects and textures, in categories.

    Args:
        root: Folder that holds the categories.
        categories: Which of them to use. Published ones are reported first, in alphabetical order;
            others after them, in the order given.
        make: How to make synthetic pictures at ``root`` when nothing is there.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})
    published: ClassVar[tuple[str, ...]] = ()

    root: Root
    categories: tuple[FolderName, ...] = Field(min_length=1)
    make: synthetic.Params | None = None

    @field_validator("categories")
    @classmethod
    def _once_in_order(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({c for c in categories if categories.count(c) > 1})
        if twice:
            raise ValueError(
                f"category {', '.join(twice)} is listed twice; list each category once"
            )
        others = (c for c in categories if c not in cls.published)
        return (*(c for c in cls.published if c in categories), *others)

    @model_validator(mode="after")
    def _are_made(self) -> Self:
        never = [] if self.make is None else sorted({*self.categories} - {*self.make.categories})
        if never:
            raise ValueError(
                f"'make' writes no category {', '.join(never)}; list it in make.categories too"
            )
        return self


def collect(categories: tuple[str, ...], items: Items) -> Data:
    """Data with a group for each category. Raises DataError as ``items`` does."""
    train = [item for c in categories for item in items(c, "train normal")]
    test = [item for c in categories for split in SPLITS[1:] for item in items(c, split)]
    masked = any(item.mask for item in test)
    return Data(tuple(train), tuple(test), categories, read, read_mask if masked else None)


def paths_of(data: Data) -> list[Path]:
    """Every picture and mask of ``data``, sorted; a mask may serve several pictures."""
    items = (*data.train, *data.test)
    return sorted({item.path for item in items} | {item.mask for item in items if item.mask})


def verify(path: Path) -> None:
    """Raise DataError unless ``path`` is a picture or a mask that can be decoded to its end."""
    decode(path)


def read(item: Item) -> NDArray[np.float32]:
    """RGB of ``item``, shape (3, height, width), in [0, 1]. Raises DataError that names the file.

    Gray becomes three equal channels, a palette its colours, and 16 bits keep their depth where
    Pillow does (in gray). Alpha is dropped: colours are taken as if opaque.
    """
    return decode(item.path)[0]


def read_mask(item: Item) -> NDArray[np.bool_]:
    """Anomalous pixels of ``item``, shape (height, width): those not black in its mask.

    Raises:
        DataError: The item has no mask, or its mask is damaged or of another size than its picture.
    """
    if item.mask is None:
        raise DataError(f"{item.path}: there is no mask of this picture; leave pixel metrics out")
    mask = decode_mask(item.mask)
    require_size(item.mask, mask, size_of(item.path))
    return mask


def require_size(path: Path, mask: NDArray[np.bool_], size: tuple[int, int]) -> None:
    """Raise DataError unless ``mask``, read from ``path``, has ``size``: height and width."""
    if mask.shape != size:
        raise DataError(
            f"{path}: the mask is {shown(mask.shape)} pixels and its picture {shown(size)} (height "
            "x width); export the mask in the size of the picture"
        )


def shown(size: Iterable[int]) -> str:
    """A size as people write it."""
    return "x".join(map(str, size))


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture, from its header. Raises DataError that names the file."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # a damaged file makes the reader fail in many ways
        raise _damaged(path, error) from error


def decode(path: Path) -> tuple[NDArray[np.float32], str]:
    """RGB of shape (3, height, width) in [0, 1], and Pillow's name of how it is stored.

    Raises:
        DataError: The file is no picture, is damaged, holds several, or has values of no known
            range.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            if count > 1 and image.format != "MPO":  # a camera's, whose further frames are previews
                raise DataError(f"{path}: it holds {count} pictures; keep one per file")
            image.load()
            pixels = _rgb(path, image)
            return np.ascontiguousarray(pixels.transpose(2, 0, 1)), image.mode
    except DataError:
        raise
    except Exception as error:  # a damaged file makes the reader fail in many ways
        raise _damaged(path, error) from error


def decode_mask(path: Path) -> NDArray[np.bool_]:
    """Shape (height, width), True where a picture is not black. Raises DataError as decode does."""
    mask: NDArray[np.bool_] = decode(path)[0].max(axis=0) > 0
    return mask


def _rgb(path: Path, image: Image) -> NDArray[np.float32]:
    """Shape (height, width, 3), in [0, 1]."""
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's conversion would clip to 255
        gray = np.asarray(image).astype(np.float32)
        largest = 1.0 if image.mode == "F" else 65535.0
        low, high = float(gray.min()), float(gray.max())
        if not 0 <= low <= high <= largest:  # a NaN is not either
            raise DataError(
                f"{path}: values from {low:g} to {high:g} in Pillow's mode {image.mode}, where a "
                f"picture has 0 to {largest:g}; export it with 8 or 16 bits"
            )
        return np.repeat((gray / np.float32(largest))[..., None], 3, axis=2)
    if image.mode in ("P", "PA"):  # by way of alpha, which Pillow asks for where there is some
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")).astype(np.float32) / np.float32(255)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if reason.startswith("cannot identify image file"):  # and Pillow names the file once more
        reason = "the file is of no known format, or its beginning is damaged"
    return DataError(f"{path}: cannot be read as {KIND} ({reason}); copy it again from its source")
