"""MVTec AD, and other data in its layout.

MVTec AD (Bergmann, Fauser, Sattlegger, Steger, CVPR 2019; IJCV 129, 2021) has pictures of ten
kinds of objects and five textures, and masks of every defect::

    ROOT/<category>/train/good/*.png
                    test/good/*.png
                    test/<kind of defect>/*.png
                    ground_truth/<kind of defect>/<stem>_mask.png

A mask may also have the very name of its picture, as in some data that copy the layout, and
anomalous pictures may lack one. Formats other than PNG are read as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from hdsweep.errors import did_you_mean
from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item
from trainables.data import pictures
from trainables.data.folders import (
    FolderName,
    files_in,
    first,
    is_folder,
    listing,
    make_hint,
    names_in,
    require_root,
    some,
)
from trainables.data.inspection import inspect
from trainables.data.pictures import KIND, SUFFIXES, Split, verify
from trainables.data.synthetic import pictures as synthetic

PUBLISHED: dict[str, tuple[int, int, int]] = {  # pictures: train, test normal, test anomalous
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
CATEGORIES = tuple(PUBLISHED)
_GOOD = "good"


class Make(synthetic.Params):
    """Synthetic pictures in the layout of MVTec AD, of all its categories unless told otherwise."""

    categories: tuple[FolderName, ...] = Field(CATEGORIES, min_length=1)


class Params(pictures.Params):
    """MVTec AD, other data in its layout, or a synthetic twin.

    Args:
        root: Folder that holds the categories.
        categories: Which of them to use, and those of your own. The published ones are reported
            first, in alphabetical order; others after them, in the order given.
        make: How to make synthetic pictures at ``root`` when nothing is there.
    """

    published: ClassVar[tuple[str, ...]] = CATEGORIES

    categories: tuple[FolderName, ...] = Field(CATEGORIES, min_length=1)
    make: Make | None = None


def files(params: Params) -> list[Path]:
    """Every picture and every mask of the chosen categories, sorted. Raises as ``load`` does."""
    return pictures.paths_of(load(params))


def load(params: Params) -> Data:
    """The chosen categories, one group each: train on ``train/good``, test on all of ``test``.

    Raises:
        DataError: A folder of the layout is missing or holds no picture, or a file cannot be
            reached.
    """
    return pictures.collect(params.categories, partial(_items, params.root))


def check(params: Params) -> Check:
    """A look at every file: counts, sizes, damage, masks, and pictures in two splits.

    Raises:
        DataError: The root is not there.
    """
    _require_root(params.root)
    found = inspect(
        params,
        partial(_items, params.root),
        PUBLISHED,
        "name a mask ground_truth/<kind of defect>/<stem>_mask.png",
    )
    homes = [home for c in params.categories if is_folder(home := params.root / c)]
    return Check(
        rows=found.rows,
        problems=(*found.problems, *(line for home in homes for line in _outside(home))),
        warnings=(*found.warnings, *(line for home in homes for line in _strays(home))),
    )


def _require_root(root: Path) -> None:
    require_root(
        root, f"set 'root' to the folder that holds the categories, or {make_hint('mvtec', root)}"
    )


def _items(root: Path, category: str, split: Split) -> tuple[Item, ...]:
    _require_root(root)
    home = root / category
    if not is_folder(home):
        known = [name for name in names_in(root) if is_folder(root / name)]
        hint = did_you_mean(category, known) or f"; {root} holds {listing(root)}"
        raise DataError(
            f"{home}: no such folder{hint}; list in 'categories' what is there, or "
            f"{make_hint('mvtec', root)}"
        )
    part = split.split()[0]
    kinds = [_GOOD] if split != "test anomalous" else _defects(home)
    items = []
    for kind in kinds:
        folder = home / part / kind
        masks = {} if kind == _GOOD else _masks(home, kind)
        for path in _pictures(home, folder):
            name = path.relative_to(root).as_posix()
            items.append(Item(name, category, kind != _GOOD, path, _mask_of(path, masks)))
    return tuple(items)


def _defects(home: Path) -> list[str]:
    """Folders of ``test`` that are not ``good``; raises DataError when there are none."""
    test = home / "test"
    _require_folder(home, test)
    kinds = [name for name in names_in(test) if name != _GOOD and is_folder(test / name)]
    if not kinds:
        raise DataError(
            f"{test}: no folder of a defect, {test} holds {listing(test)}; put anomalous pictures "
            "in test/<kind of defect>"
        )
    return kinds


def _pictures(home: Path, folder: Path) -> list[Path]:
    """Sorted pictures of one folder; raises DataError when there are none."""
    _require_folder(home, folder)
    found = files_in(folder, SUFFIXES, KIND)
    if not found:
        raise DataError(
            f"{folder}: no picture ({', '.join(SUFFIXES)}), the folder holds {listing(folder)}; "
            "put pictures there or remove the folder"
        )
    return found


def _require_folder(home: Path, folder: Path) -> None:
    if not is_folder(folder):
        raise DataError(
            f"{folder}: no such folder, {home} holds {listing(home)}; the layout is train/good, "
            "test/good and test/<kind of defect>"
        )


def _masks(home: Path, kind: str) -> dict[str, Path]:
    """Masks of one kind of defect, by their stem."""
    folder = home / "ground_truth" / kind
    if not is_folder(folder):
        return {}
    return {path.stem: path for path in files_in(folder, SUFFIXES, KIND)}


def _mask_of(path: Path, masks: dict[str, Path]) -> Path | None:
    return masks.get(f"{path.stem}_mask") or masks.get(path.stem)


def _outside(home: Path) -> list[str]:
    """One sentence for each place whose pictures nothing reads."""
    train = home / "train"
    lines = [
        f"{train / kind}: training pictures are normal, and only train/good is read; move them to "
        f"test/{kind}, or to train/good if they are normal"
        for kind in (names_in(train) if is_folder(train) else [])
        if kind != _GOOD and is_folder(train / kind)
    ]
    for part in (train, home / "test"):
        if not is_folder(part):
            continue
        loose = [name for name in names_in(part) if name.lower().endswith(SUFFIXES)]
        if loose:
            lines.append(
                f"{part}: {some(loose)} in no folder, so without a label; move each to "
                f"{part.name}/good or to test/<kind of defect>"
            )
    return lines


def _strays(home: Path) -> list[str]:
    """One sentence for each mask that no picture has."""
    truth = home / "ground_truth"
    strays = []
    for kind in names_in(truth) if is_folder(truth) else []:
        folder = home / "test" / kind
        if kind == _GOOD or not is_folder(truth / kind):
            continue
        try:
            masks = _masks(home, kind)
            paths = files_in(folder, SUFFIXES, KIND) if is_folder(folder) else []
        except DataError:  # among the problems already
            continue
        used = {_mask_of(path, masks) for path in paths}
        strays += [
            f"{mask}: no picture in {folder} has this mask; rename or remove it"
            for mask in masks.values()
            if mask not in used
        ]
    return first(strays, f"more masks in {truth} have no picture")


DATASET = Dataset(
    params=Params,
    files=files,
    verify=verify,
    load=load,
    check=check,
    generator=Generator(params=Make, write=synthetic.write_mvtec),
)
