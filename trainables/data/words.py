"""A table of handwritten words, and whether the files it names are there.

A form of many writers has 350,000 words, and every plan asks for them: a row is looked at once,
and a folder is listed once instead of each of its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from hdsweep.errors import did_you_mean
from hdsweep.method import DataError
from trainables.data.folders import make_hint, require_file, unreadable
from trainables.data.pictures import KIND, SUFFIXES
from trainables.data.synthetic.handwriting import COLUMNS
from trainables.data.tables import WHOLE, read_rows, require_once

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
FEWEST = 2  # writers: one cannot be told from another


class Row(NamedTuple):
    """One word of the table; ``line`` is where its row begins."""

    line: int
    name: str
    writer: str
    word: str
    repetition: int
    split: Split | None


def read_table(path: Path) -> list[Row]:
    """All rows; raises DataError with file and line where one does not have the right form."""
    rows = list(_rows(path))
    require_once(path, "image_path", ((row.line, row.name) for row in rows))
    splits: dict[str, Row] = {}
    for row in rows:
        known = splits.setdefault(row.writer, row)
        if known.split != row.split:
            raise DataError(
                f"{path}:{row.line}: writer '{row.writer}' is in split '{row.split}', and in "
                f"'{known.split}' by line {known.line}: a method would be tested on a hand it "
                "knows; put all words of a writer into one split"
            )
    if len(splits) < FEWEST:
        found = f"one writer only, '{next(iter(splits))}'" if splits else "no row"
        raise DataError(f"{path}: {found}; list the words of {FEWEST} writers at least")
    return rows


def _rows(path: Path) -> Iterator[Row]:
    for line, (name, label, word, number, *split) in read_rows(path, COLUMNS, "split", ended=True):
        where = f"{path}:{line}"
        writer = _writer_of(where, name)
        if label != writer:
            raise DataError(
                f"{where}: label '{label}', and '{name}' is in the folder of writer '{writer}'; "
                "mend one of them"
            )
        if not WHOLE.fullmatch(number):
            raise DataError(
                f"{where}: repetition '{number}' is no whole number from 0; count the repetitions"
            )
        own = _split_of(where, split[0]) if split else None
        yield Row(line, name, writer, word, int(number), own)


def _writer_of(where: str, name: str) -> str:
    """The folder of an image; raises DataError unless it is in one, below the root."""
    parts = name.split("/")
    if len(parts) != 2 or not {"", ".", ".."}.isdisjoint(parts) or "\\" in name:
        out = name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name)
        what = "leads out of the root" if out else "is not a file in a folder"
        raise DataError(
            f"{where}: image_path '{name}' {what}; write <writer>/<file>, a path below the root"
        )
    if not name.isprintable():
        raise DataError(f"{where}: image_path {name!a} is not printable; rename the file")
    if not name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{where}: image_path '{name}' is no picture: none of {', '.join(SUFFIXES)}"
        )
    return parts[0]


def _split_of(where: str, text: str) -> Split:
    for split in SPLITS:
        if text == split:
            return split
    raise DataError(f"{where}: unknown split '{text}'{did_you_mean(text, SPLITS)}")


def require_pictures(table: Path, rows: Sequence[Row]) -> None:
    """Raise DataError, with file and line, unless each row has its file."""
    lines = list(missing(table, rows).values())
    if lines:
        more = f" ({len(lines) - 1} more rows have no file)" if len(lines) > 1 else ""
        raise DataError(lines[0] + more)


def missing(table: Path, rows: Sequence[Row]) -> dict[int, str]:
    """By line, what is wrong with the file of each row that has none."""
    there: dict[str, set[str] | str] = {}
    lines = {}
    for row in rows:
        writer, name = row.name.split("/")
        if writer not in there:
            there[writer] = _files_of(table.parent, writer)
        found = there[writer]
        if isinstance(found, str):
            lines[row.line] = f"{table}:{row.line}: image_path '{row.name}': {found}"
        elif name not in found:
            lines[row.line] = f"{table}:{row.line}: {_why_not(table.parent / row.name)}"
    return lines


def _files_of(root: Path, writer: str) -> set[str] | str:
    """Names of the files in a writer's folder, or why there are none."""
    folder = root / writer
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        hint = make_hint("handwriting", root)
        return f"{folder}: no such folder; copy it there, remove its rows, or {hint}"
    except OSError as error:
        return str(unreadable(folder, error))


def _why_not(path: Path) -> str:
    if not os.path.lexists(path):
        return f"{path}: no such file; copy it there, or remove the row"
    try:
        require_file(path, KIND)
    except DataError as error:
        return str(error)
    return f"{path}: cannot be reached; copy it again"
