"""A CSV table that is part of a data set, and what to say where it cannot be read.

A table may have 350,000 rows, and every plan asks for them: it is read at once, and a row is looked
at once.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hdsweep.errors import did_you_mean
from hdsweep.method import DataError
from trainables.data.folders import require_file, some, unreadable

WHOLE = re.compile("[0-9]{1,9}")  # int() refuses thousands of digits
_END = re.compile("\r\n|\r|\n")


def read_rows(
    path: Path, columns: Sequence[str], optional: str | None = None, *, ended: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Line and fields of each row that is not blank, in the order of ``columns``, stripped.

    The heading may name them in any order, and others too.

    Args:
        path: UTF-8, with or without a byte order mark.
        columns: Which fields to give.
        optional: A further column; its field comes last, where the table has it.
        ended: Refuse a last line that does not end: what remains of one that was cut may look
            whole, a 17 like a 1.

    Raises:
        DataError: The file cannot be read, or a line does not have the right form.
    """
    text = _text(path)
    if ended and text and not text.endswith(("\n", "\r")):
        raise DataError(
            f"{path}:{_lines_in(text) + 1}: the last line does not end, so the table may have been "
            "cut; copy it again, or end the line"
        )
    numbered = _numbered(path, text)
    line, heading = next(numbered, (1, []))
    found = [name.strip() for name in heading]
    for column in columns:
        if column not in found:
            others = [name for name in found if name and name not in columns]
            raise DataError(
                f"{path}:{line}: no column '{column}' in {some(found) or 'an empty table'}"
                f"{did_you_mean(column, others)}; the columns are {', '.join(columns)}"
            )
    wanted = [*columns, optional] if optional in found else list(columns)
    for column in wanted:
        if found.count(column) > 1:
            raise DataError(f"{path}:{line}: column '{column}' is there twice; remove one")
    places = [found.index(column) for column in wanted]
    for line, fields in numbered:
        if len(fields) != len(found):
            raise DataError(
                f"{path}:{line}: {len(fields)} fields, and the heading has {len(found)}; mend the "
                "row"
            )
        yield line, [fields[place].strip() for place in places]


def require_once(path: Path, column: str, named: Iterable[tuple[int, str]]) -> None:
    """Raise DataError where two rows have the same name.

    Args:
        path: Of the table.
        column: That has the names.
        named: Line and name of each row.
    """
    lines: dict[str, int] = {}
    for line, name in named:
        before = lines.setdefault(name, line)
        if before != line:
            raise DataError(
                f"{path}:{line}: {column} '{name}' is also in line {before}; remove one row"
            )


def require_named(where: str, column: str, path: Path, kind: str) -> None:
    """Raise DataError unless the file that a row names is there.

    Args:
        where: File and line of the row.
        column: That names it.
        path: Of the file.
        kind: As in ``folders.require_file``.
    """
    try:
        require_file(path, kind)
    except DataError as error:
        raise DataError(f"{where}: {column} of this row: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _lines_in(error.object[: error.start].decode()) + 1
        raise DataError(
            f"{path}:{line}: cannot be read as UTF-8; export the table as CSV in UTF-8"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _lines_in(text: str) -> int:
    """How many lines end, as ``csv`` counts them."""
    return len(_END.findall(text))


def _numbered(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Fields of each row that is not blank, with the line in which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
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
