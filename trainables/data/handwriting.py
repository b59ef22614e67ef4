"""Handwritten words of many writers, in the layout they are kept in.

Every writer copies the same text several times; each word is a picture of its own::

    ROOT/<writer>/<word>_<repetition>.png
    ROOT/words.csv                          image_path,label,detected_word,repetition

``image_path`` is a path below ROOT, ``label`` its writer, ``detected_word`` what it says, and nine
repetitions (0-8, 9-17, ...) were written in one session. The rows of a writer and a repetition are
the words of the text, in the order in which they were written. Files that no row names are not
used.

Training, validation and test have different writers. A further column ``split`` (train, validation
or test) says which; without it writers are drawn, by ``writers`` and ``split_seed``. With it these
two must stay as they are: one data set is to have one name.

No word is anomalous: a method makes its own test items of them (bags of words by one writer or by
two). Each has the facts ``writer``, ``word`` and ``repetition``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from hdsweep.method import Check, Data, DataError, Dataset, Generator, Item, Strict
from trainables.data import pictures
from trainables.data.folders import (
    MARKER,
    Root,
    first,
    listing,
    make_hint,
    names_in,
    require_file,
    require_root,
    some,
)
from trainables.data.pictures import SUFFIXES, decode, shown
from trainables.data.repeats import repeats
from trainables.data.synthetic import handwriting as synthetic
from trainables.data.synthetic.handwriting import SESSION, TABLE
from trainables.data.words import FEWEST, SPLITS, Row, missing, read_table, require_pictures

GROUP = "writing"
_LEFT_OUT = "left out"


def _one_table(name: str) -> str:
    if set(name) & set("/\\") or not name.isprintable() or not name[:-4].strip(" ."):
        raise ValueError(f"{name!r} cannot name a table: write the name of one file below the root")
    if not name.lower().endswith(".csv"):
        raise ValueError(f"{name!r} does not end in .csv: name the table of the words")
    return name


_Count = Annotated[int, Field(ge=FEWEST, le=100_000)]


class Params(Strict):
    """Handwritten words, or their synthetic twin.

    Args:
        root: Folder that holds the table and a folder for each writer.
        csv: Name of the table in ``root``.
        writers: How many to train on, to validate on and to test on; others are left out.
        split_seed: Names the draw of these writers.
        make: How to make synthetic words at ``root`` when nothing is there.
    """

    outside_identity: ClassVar[frozenset[str]] = frozenset({"root", "make"})

    root: Root
    csv: Annotated[str, AfterValidator(_one_table)] = TABLE
    writers: tuple[_Count, _Count, _Count] = (180, 60, 60)
    split_seed: int = Field(0, ge=0)
    make: synthetic.Params | None = None

    @model_validator(mode="after")
    def _enough_are_made(self) -> Self:
        asked = sum(self.writers)
        if self.make is not None and self.make.writers < asked:
            raise ValueError(
                f"'make' writes {self.make.writers} writers, and 'writers' asks for {asked}; "
                "raise make.writers or lower 'writers'"
            )
        return self


def files(params: Params) -> list[Path]:
    """The table and every picture that it names, sorted.

    Raises:
        DataError: As ``load`` does.
    """
    rows = _read(params)
    _splits(params, rows)
    require_pictures(_table_of(params), rows)
    names = sorted(tuple(row.name.split("/")) for row in rows)
    pictures_of = [params.root / writer / name for writer, name in names]
    return sorted([_table_of(params), *pictures_of])


def verify(path: Path) -> None:
    """Raise DataError unless ``path`` is a whole picture, or a table of the right form."""
    if path.suffix.lower() == ".csv":
        read_table(path)
    else:
        pictures.verify(path)


def load(params: Params) -> Data:
    """Words of different writers to train, validate and test on, all normal and in one group.

    In each split they are in the order of writer, repetition and row, so that neighbours are
    neighbours in the text.

    Raises:
        DataError: The table is missing or says what cannot be, has too few writers, or a file that
            a row names is not there.
    """
    rows = _read(params)
    splits = _splits(params, rows)
    require_pictures(_table_of(params), rows)
    items: dict[str, list[Item]] = {split: [] for split in (*SPLITS, _LEFT_OUT)}
    for row in sorted(rows, key=lambda row: (row.writer, row.repetition)):  # stable: rows in order
        facts: dict[str, str | int] = {
            "writer": row.writer,
            "word": row.word,
            "repetition": row.repetition,
        }
        path = params.root / row.name
        items[splits[row.writer]].append(
            Item(row.name, GROUP, is_anomaly=False, path=path, facts=facts)
        )
    return Data(
        train=tuple(items["train"]),
        test=tuple(items["test"]),
        groups=(GROUP,),
        read=pictures.read,
        validation=tuple(items["validation"]),
    )


def check(params: Params) -> Check:
    """A look at every picture: counts, damage, one picture of two writers, files without a row.

    Raises:
        DataError: The root is not there, or the table does not have the right form.
    """
    rows = _read(params)
    problems, warnings = [], []
    try:
        splits = _splits(params, rows)
    except DataError as error:
        problems.append(str(error))
        splits = dict.fromkeys({row.writer for row in rows}, "not split")
    absent = missing(_table_of(params), rows)
    problems += first(list(absent.values()), "more rows name a file that is not there")
    there = [row for row in rows if row.line not in absent]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        seen = list(pool.map(lambda row: _see(params.root, row), there))
    damaged = [one.problem for one in seen if one.problem]
    problems += first(damaged, f"more of the {len(there)} pictures cannot be used")
    names = [split for split in (*SPLITS, _LEFT_OUT, "not split") if split in splits.values()]
    looks = {
        split: [one for one in seen if splits[one.row.writer] == split and not one.problem]
        for split in names
    }
    problems += _of_two_writers(seen, splits)
    for split, look in looks.items():
        warnings += repeats(split, _by_writer(look), "word")
    left_out = sorted(writer for writer, split in splits.items() if split == _LEFT_OUT)
    if left_out:
        warnings.append(
            f"{len(left_out)} of {len(splits)} writers are in no split ({some(left_out)}); raise "
            "'writers' to use them"
        )
    warnings += _blank(seen)
    warnings += _without_row(params, rows)
    marker = params.root / MARKER
    if marker.is_file():
        warnings.append(
            f"{marker} says that these words are synthetic; say so where figures appear"
        )
    return Check(
        rows=tuple(_summary(split, splits, look) for split, look in looks.items()),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


# --- The table ------------------------------------------------------------------------------------


def _table_of(params: Params) -> Path:
    return params.root / params.csv


def _read(params: Params) -> list[Row]:
    hint = make_hint("handwriting", params.root)
    require_root(params.root, f"set 'root' to the folder that holds {params.csv}, or {hint}")
    path = _table_of(params)
    if not os.path.lexists(path):
        raise DataError(
            f"{path}: no such file, {params.root} holds {listing(params.root)}; name the table in "
            f"'csv', or {hint}"
        )
    require_file(path, "a table")
    return read_table(path)


def _splits(params: Params, rows: Sequence[Row]) -> dict[str, str]:
    """The split of each writer, or that it is left out."""
    path = _table_of(params)
    fixed = {row.writer: row.split for row in rows}
    if None not in fixed.values():
        for knob in ("writers", "split_seed"):
            if getattr(params, knob) != Params.model_fields[knob].default:
                raise DataError(
                    f"{path}: the column 'split' says who is trained and tested on, and so does "
                    f"'{knob}'; leave out one of them"
                )
        for split in SPLITS:
            found = sorted(writer for writer, own in fixed.items() if own == split)
            if len(found) < FEWEST:
                raise DataError(
                    f"{path}: {len(found)} writers in split '{split}'; put {FEWEST} at least there"
                )
        return {writer: str(split) for writer, split in fixed.items()}
    if len(fixed) < sum(params.writers):
        asked = f"{' + '.join(map(str, params.writers))} = {sum(params.writers)}"
        raise DataError(
            f"{path}: {len(fixed)} writers, and 'writers' asks for {asked}; lower the numbers"
        )
    # By digest, so that the draw is the same on every machine and with every numpy.
    drawn = sorted(
        fixed, key=lambda name: hashlib.sha256(f"{params.split_seed} {name}".encode()).digest()
    )
    places = [split for split, n in zip(SPLITS, params.writers, strict=True) for _ in range(n)]
    return dict.fromkeys(fixed, _LEFT_OUT) | dict(zip(drawn, places, strict=False))


# --- The pictures ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a picture holds; empty where it is damaged."""

    row: Row
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: str = ""
    is_blank: bool = False
    problem: str = ""


def _see(root: Path, row: Row) -> _Seen:
    try:
        pixels, mode = decode(root / row.name)
    except DataError as error:
        return _Seen(row, problem=str(error))
    height, width = pixels.shape[1:]
    digest = hashlib.sha256(f"{height} {width} ".encode())
    digest.update(pixels.data)
    is_blank = bool(pixels.min() == pixels.max())
    return _Seen(row, (height, width), mode, digest.hexdigest(), is_blank)


def _by_writer(seen: Sequence[_Seen]) -> list[dict[str, list[str]]]:
    """For each writer, names by the digest of their pixels."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in seen:
        found.setdefault(one.row.writer, {}).setdefault(one.digest, []).append(one.row.name)
    return list(found.values())


def _of_two_writers(seen: Sequence[_Seen], splits: Mapping[str, str]) -> list[str]:
    """A sentence for each picture that two writers have; blank ones are no one's hand."""
    known: dict[str, Row] = {}
    lines = []
    for one in seen:
        if one.problem or one.is_blank:
            continue
        row, other = one.row, known.setdefault(one.digest, one.row)
        if other.writer == row.writer:
            continue
        harm = "one of them did not write it"
        if splits[other.writer] != splits[row.writer]:
            harm = f"it is in {splits[other.writer]} and in {splits[row.writer]}"
        lines.append(f"{other.name} and {row.name} are the same word: {harm}; remove one")
    return first(lines, "more words are there under two writers")


def _blank(seen: Sequence[_Seen]) -> list[str]:
    names = [one.row.name for one in seen if one.is_blank]
    return [f"{len(names)} pictures show nothing ({some(names)})"] if names else []


def _without_row(params: Params, rows: Sequence[Row]) -> list[str]:
    """Warnings of folders and of pictures that the table does not name."""
    named: dict[str, set[str]] = {}
    for row in rows:
        named.setdefault(row.writer, set()).add(row.name.split("/")[1])
    folders = [name for name in names_in(params.root) if (params.root / name).is_dir()]
    unknown = [name for name in folders if name not in named]
    unnamed = [
        f"{folder}/{name}"
        for folder in folders
        if folder in named
        for name in names_in(params.root / folder)
        if name not in named[folder] and name.lower().endswith(SUFFIXES)
    ]
    lines = []
    if unknown:
        lines.append(f"no row of {params.csv} names the folders {some(unknown)}; they are not used")
    if unnamed:
        lines.append(f"no row of {params.csv} names {some(unnamed)}; they are not used")
    return lines


def _summary(
    split: str, splits: Mapping[str, str], look: Sequence[_Seen]
) -> dict[str, str | int | float]:
    sizes = [one.size for one in look]
    size = "-"
    if sizes:
        low, high = (tuple(map(edge, zip(*sizes, strict=True))) for edge in (min, max))
        size = shown(low) if low == high else f"{shown(low)} to {shown(high)}"
    return {
        "split": split,
        "writers": sum(own == split for own in splits.values()),
        "images": len(look),
        "words": len({one.row.word for one in look}),
        "sessions": len({(one.row.writer, one.row.repetition // SESSION) for one in look}),
        "size": size,
        "mode": ", ".join(sorted({one.mode for one in look})) or "-",
        "duplicates": len(look) - len({one.digest for one in look}),
    }


DATASET = Dataset(
    params=Params,
    files=files,
    verify=verify,
    load=load,
    check=check,
    generator=Generator(params=synthetic.Params, write=synthetic.write),
)
