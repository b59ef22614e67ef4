"""A table of handwritten words, and whether the files it names are there.

A form of many writers has 350,000 words, and every plan asks for them: a row is looked at once,
and a folder is listed once instead of each of its files.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from hdsweep.errors import did_you_mean
from hdsweep.method import DataError
from trainables.data.folders import make_hint, require_file, some, unreadable
from trainables.data.pictures import KIND, SUFFIXES
from trainables.data.synthetic.handwriting import COLUMNS

if TYPE_CHECKING:
    import _csv

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
FEWEST = 2  # writers: one cannot be told from another
_WHOLE = re.compile("[0-9]{1,9}")


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
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if file.read() not in (b"\n", b"\r", b""):
                raise DataError(
                    f"{path}: the last line does not end, so the table may have been cut; copy it "
                    "again, or end the line"
                )
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = list(_rows(path, csv.reader(text, strict=True)))
    except UnicodeDecodeError:
        raise DataError(f"{path}: cannot be read as UTF-8; export it as CSV in UTF-8") from None
    except OSError as error:
        raise unreadable(path, error) from None
    lines: dict[str, int] = {}
    splits: dict[str, Row] = {}
    for row in rows:
        where = f"{path}:{row.line}"
        before = lines.setdefault(row.name, row.line)
        if before != row.line:
            raise DataError(
                f"{where}: image_path '{row.name}' is also in line {before}; remove one row"
            )
        known = splits.setdefault(row.writer, row)
        if known.split != row.split:
            raise DataError(
                f"{where}: writer '{row.writer}' is in split '{row.split}', and in '{known.split}' "
                f"by line {known.line}: a method would be tested on a hand it knows; put all words "
                "of a writer into one split"
            )
    if len(splits) < FEWEST:
        found = f"one writer only, '{next(iter(splits))}'" if splits else "no row"
        raise DataError(f"{path}: {found}; list the words of {FEWEST} writers at least")
    return rows


def _numbered(path: Path, reader: _csv.Reader) -> Iterator[tuple[int, list[str]]]:
    """Fields of each row that is not blank, with the line in which it begins."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: {error}; mend the row that begins here or copy the table again"
            ) from None
        if fields:
            yield line, fields


def _rows(path: Path, reader: _csv.Reader) -> Iterator[Row]:
    numbered = _numbered(path, reader)
    line, heading = next(numbered, (1, []))
    columns = [name.strip() for name in heading]
    for column in COLUMNS:
        if columns.count(column) > 1:
            raise DataError(f"{path}:{line}: column '{column}' is there twice; remove one")
        if column not in columns:
            others = [name for name in columns if name and name not in COLUMNS]
            raise DataError(
                f"{path}:{line}: no column '{column}' in {some(columns) or 'an empty file'}"
                f"{did_you_mean(column, others)}; the columns are {', '.join(COLUMNS)}"
            )
    at = [columns.index(column) for column in COLUMNS]
    split_at = columns.index("split") if "split" in columns else None
    for line, fields in numbered:
        where = f"{path}:{line}"
        if len(fields) != len(columns):
            raise DataError(
                f"{where}: {len(fields)} fields, and the heading has {len(columns)}; mend the row"
            )
        name, label, word, number = (fields[place].strip() for place in at)
        writer = _writer_of(where, name)
        if label != writer:
            raise DataError(
                f"{where}: label '{label}', and '{name}' is in the folder of writer '{writer}'; "
                "mend one of them"
            )
        if not _WHOLE.fullmatch(number):
            raise DataError(
                f"{where}: repetition '{number}' is no whole number from 0; count the repetitions"
            )
        split = None if split_at is None else _split_of(where, fields[split_at].strip())
        yield Row(line, name, writer, word, int(number), split)


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
