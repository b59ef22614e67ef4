"""VisA, and other data in its layout.

VisA (Zou, Jeong, Pemula, Zhang, Dabeer, ECCV 2022) has pictures of twelve kinds of objects. Which
are trained on and which are tested on says a table that is part of the data, here the split of one
class per model::

    ROOT/split_csv/1cls.csv                      object,split,label,image,mask
    ROOT/<category>/Data/Images/Normal/*.JPG
                    Data/Images/Anomaly/*.JPG
                    Data/Masks/Anomaly/*.png     0 normal, 1, 2, ... kinds of defects

``split`` is train or test, ``label`` normal or anomaly, ``image`` and ``mask`` are paths below
ROOT. Files that no row names are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pydantic import Field

from hdsweep.errors import did_you_mean
from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item
from trainables.data import pictures
from trainables.data.folders import (
    FolderName,
    files_in,
    is_folder,
    listing,
    make_hint,
    require_file,
    require_root,
    some,
)
from trainables.data.inspection import inspect
from trainables.data.pictures import KIND, SUFFIXES, Split
from trainables.data.synthetic import pictures as synthetic
from trainables.data.synthetic.pictures import VISA_COLUMNS, VISA_TABLE
from trainables.data.tables import read_rows, require_named, require_once

PUBLISHED: dict[str, tuple[int, int, int]] = {  # pictures: train, test normal, test anomalous
    "candle": (900, 100, 100),
    "capsules": (542, 60, 100),
    "cashew": (450, 50, 100),
    "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100),
    "macaroni1": (900, 100, 100),
    "macaroni2": (900, 100, 100),
    "pcb1": (904, 100, 100),
    "pcb2": (901, 100, 100),
    "pcb3": (905, 101, 100),
    "pcb4": (904, 101, 100),
    "pipe_fryum": (450, 50, 100),
}
CATEGORIES = tuple(PUBLISHED)
_SPLITS: dict[tuple[str, str], Split] = {  # by the words of the table
    ("train", "normal"): "train normal",
    ("test", "normal"): "test normal",
    ("test", "anomaly"): "test anomalous",
}


class Make(synthetic.Params):
    """Synthetic pictures in the layout of VisA, of all its categories unless told otherwise."""

    categories: tuple[FolderName, ...] = Field(CATEGORIES, min_length=1)


class Params(pictures.Params):
    """VisA, other data in its layout, or a synthetic twin.

    Args:
        root: Folder that holds ``split_csv/1cls.csv`` and the categories.
        categories: Which of them to use, and those of your own. The published ones are reported
            first, in alphabetical order; others after them, in the order given.
        make: How to make synthetic pictures at ``root`` when nothing is there.
    """

    published: ClassVar[tuple[str, ...]] = CATEGORIES

    categories: tuple[FolderName, ...] = Field(CATEGORIES, min_length=1)
    make: Make | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One picture of the table; ``line`` is where its row begins."""

    line: int
    category: str
    split: Split
    image: str
    mask: str | None


def files(params: Params) -> list[Path]:
    """The table, and every picture and mask of the chosen categories, sorted.

    Raises:
        DataError: As ``load`` does.
    """
    return sorted([params.root / VISA_TABLE, *pictures.paths_of(load(params))])


def verify(path: Path) -> None:
    """Raise DataError unless ``path`` is a whole picture or mask, or a table of the right form."""
    if path.suffix.lower() == ".csv":
        _table(path)
    else:
        pictures.verify(path)


def load(params: Params) -> Data:
    """The chosen categories, one group each, split as the table says.

    Raises:
        DataError: The table is missing or says what cannot be, a category has no rows in one of
            the splits, or a file that a row names is not there.
    """
    return pictures.collect(params.categories, _layout(params.root))


def check(params: Params) -> Check:
    """A look at every file: counts, sizes, damage, masks, and pictures in two splits.

    Raises:
        DataError: The root is not there, or the table does not have the right form.
    """
    rows = _read(params.root)
    found = inspect(
        params,
        partial(_items, params.root, rows),
        PUBLISHED,
        f"name a mask in the column 'mask' of {VISA_TABLE}",
    )
    named = {row.image for row in rows}
    unnamed = [line for c in params.categories for line in _unnamed(params.root, c, named)]
    return Check(found.rows, found.problems, (*found.warnings, *unnamed))


def _layout(root: Path) -> pictures.Items:
    return partial(_items, root, _read(root))


def _read(root: Path) -> tuple[_Row, ...]:
    hint = make_hint("visa", root)
    require_root(root, f"set 'root' to the folder that holds {VISA_TABLE}, or {hint}")
    path = root / VISA_TABLE
    if not is_folder(path.parent):
        raise DataError(
            f"{path.parent}: no such folder, {root} holds {listing(root)}; set 'root' to the "
            f"folder that holds {VISA_TABLE}, or {hint}"
        )
    require_file(path, "a table")
    return _table(path)


def _table(path: Path) -> tuple[_Row, ...]:
    """All rows; raises DataError with file and line where one does not have the right form."""
    rows = tuple(_rows(path))
    require_once(path, "image", ((row.line, row.image) for row in rows))
    return rows


def _rows(path: Path) -> Iterator[_Row]:
    for line, (category, split, label, image, mask) in read_rows(path, VISA_COLUMNS):
        where = f"{path}:{line}"
        for column, word, known in (
            ("split", split, ("train", "test")),
            ("label", label, ("normal", "anomaly")),
        ):
            if word not in known:
                raise DataError(f"{where}: unknown {column} '{word}'{did_you_mean(word, known)}")
        if (split, label) not in _SPLITS:
            raise DataError(
                f"{where}: an anomaly in split 'train'; training pictures are normal, so test on "
                "it or remove the row"
            )
        yield _Row(
            line,
            category,
            _SPLITS[split, label],
            _below_root(where, "image", image),
            _below_root(where, "mask", mask) if mask and label == "anomaly" else None,
        )


def _below_root(where: str, column: str, text: str) -> str:
    path = PurePosixPath(text)
    if not path.parts:
        raise DataError(f"{where}: no path in column '{column}'; name a file below the root")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(
            f"{where}: {column} '{text}' leads out of the root; write a path below the root"
        )
    return path.as_posix()


def _items(root: Path, rows: tuple[_Row, ...], category: str, split: Split) -> tuple[Item, ...]:
    known = sorted({row.category for row in rows})
    if category not in known:
        raise DataError(
            f"{root / VISA_TABLE}: no row of category '{category}'{did_you_mean(category, known)}; "
            f"list in 'categories' what is there, or {make_hint('visa', root)}"
        )
    items = tuple(
        Item(
            name=row.image,
            group=category,
            is_anomaly=split == "test anomalous",
            path=_named(root, row, "image", row.image),
            mask=_named(root, row, "mask", row.mask) if row.mask else None,
        )
        for row in rows
        if (row.category, row.split) == (category, split)
    )
    if not items:
        raise DataError(
            f"{root / VISA_TABLE}: no row of category '{category}' is {split}; each category needs "
            "rows of train normal, test normal and test anomaly"
        )
    return items


def _named(root: Path, row: _Row, column: str, name: str) -> Path:
    require_named(f"{root / VISA_TABLE}:{row.line}", column, root / name, KIND)
    return root / name


def _unnamed(root: Path, category: str, named: set[str]) -> list[str]:
    """A sentence when pictures of the category are in no row."""
    home = root / category / "Data" / "Images"
    try:
        paths = [
            path
            for folder in (home / "Normal", home / "Anomaly")
            if is_folder(folder)
            for path in files_in(folder, SUFFIXES, KIND)
        ]
    except DataError:  # of a file that no row names, else it is among the problems
        return []
    left = [name for path in paths if (name := path.relative_to(root).as_posix()) not in named]
    if not left:
        return []
    count = f"{len(left)} pictures are in no row of {VISA_TABLE}"
    return [f"category {category}: {count} ({some(left)}) and are not used"]


DATASET = Dataset(
    params=Params,
    files=files,
    verify=verify,
    load=load,
    check=check,
    generator=Generator(params=Make, write=synthetic.write_visa),
)
