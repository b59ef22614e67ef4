"""Published tables as text: what a Markdown, LaTeX or CSV file prints, without its markup.

Nothing is interpreted here but what a cell says as a number. A number keeps its digits, for how
many a table prints is what decides whether it may be right.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from analysis.markup import from_latex, from_markdown, split_cells, split_rows
from hdsweep.errors import DataError, did_you_mean

_MOST_BYTES = 5_000_000
_FORMATS = (".md", ".markdown", ".tex", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """A row below the header.

    Args:
        line: Of the file, from 1.
        cells: Texts without markup, as many as the table has columns.
    """

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrintedTable:
    """A table as it is printed.

    Args:
        line: Of its header, from 1.
        title: What stands above it, or its caption; empty where there is none.
        columns: Labels of each column, those that span it and others first.
        rows: From top to bottom.
    """

    line: int
    title: str
    columns: tuple[tuple[str, ...], ...]
    rows: tuple[PrintedRow, ...]


@dataclass(frozen=True, slots=True)
class Printed:
    """What a cell says.

    Args:
        mean: With all digits that are printed; None where no number is.
        spread: What follows ±, or stands in parentheses.
        n: Of how many runs, where the cell says so.
        percent: Whether it has a percent sign.
    """

    mean: Decimal | None
    spread: Decimal | None = None
    n: int | None = None
    percent: bool = False


_SIGNED = r"[-+−]?(?:\d+(?:[.,]\d+)*\.?|\.\d+)(?:[eE][-+−]?\d+)?"
_CELL = re.compile(
    rf"(?P<mean>{_SIGNED})\s*%?\s*"
    rf"(?:(?:±|\+/[-−]|\+[-−])\s*(?P<spread>{_SIGNED})\s*%?"
    rf"|\(\s*(?:±\s*)?(?P<inside>\d*\.\d+)\s*%?\s*\)"
    rf"|\((?P<last>\d+)\))?"
    r"\s*(?:\(n\s*=\s*(?P<n>\d{1,9})(?:/\d+)?\))?"
)
_MARKS = re.compile(r"[†‡§¶*↑↓△▲▼⬆⬇✓]|\^[a-z0-9*]\b|\([-+−][\d.]+\s*%?\)|\[[^\]]*\]\s*$")


def read_cell(text: str) -> Printed:
    """A cell as numbers: 94.12±0.17, 94.12 (0.17), 94.12(17), 94.12 % and the like.

    Signs of significance, signed gains and intervals in brackets are left out; a text that is no
    number has no mean.
    """
    plain = _MARKS.sub("", text).strip()
    match = _CELL.fullmatch(plain)
    if match is None:
        return Printed(None)
    mean = decimal(match["mean"])
    spread = None if match["spread"] is None else decimal(match["spread"])
    if match["inside"] is not None:
        spread = decimal(match["inside"])
    if match["last"] is not None and mean is not None and _exponent(mean) < 0:
        spread = Decimal(match["last"]).scaleb(_exponent(mean))  # 94.12(17): of the last digits
    n = None if match["n"] is None else int(match["n"])
    return Printed(mean, spread, n, "%" in plain)


def decimal(text: str) -> Decimal | None:
    """A number with the digits that it has, or None; 98,2 has a decimal comma, 1,234 has none."""
    plain = text.strip().replace("−", "-")
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    try:
        value = Decimal(plain.replace(",", ".") if plain.count(",") == 1 else plain)
    except InvalidOperation:
        return None
    # Nobody prints more digits than that, and powers of ten without bound take for ever.
    return (
        value if value.is_finite() and -100 < _exponent(value) <= value.adjusted() < 100 else None
    )


def unit_of(value: Decimal) -> Decimal:
    """One unit of the last digit that is printed."""
    return Decimal(1).scaleb(_exponent(value))


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0


def read_tables(path: Path) -> list[PrintedTable]:
    """Every table of a file, in its order.

    Raises:
        DataError: The file cannot be read, has another format, or holds no table.
    """
    form = path.suffix.lower()
    if form not in _FORMATS and not path.is_dir():
        raise DataError(
            f"{path}: a table is read from .md, .tex or .csv{did_you_mean(form, _FORMATS)}"
        )
    text = text_of(path, "a table as .md, .tex or .csv", _MOST_BYTES)
    if form == ".tex":
        found = list(_latex(path, text))
    elif form in (".csv", ".tsv"):
        found = list(_csv(path, text))
    else:
        found = list(_markdown(path, text))
    if not any(table.rows for table in found):
        raise DataError(f"{path}: holds no table with a header and rows")
    return [table for table in found if table.rows]


def text_of(path: Path, wanted: str, most_bytes: int) -> str:
    """A text file's content.

    Args:
        path: Of the file.
        wanted: What to give instead, for messages.
        most_bytes: Larger files are refused.

    Raises:
        DataError: It cannot be read, is too large, or is no text in UTF-8.
    """
    try:
        if path.is_file() and (size := path.stat().st_size) > most_bytes:
            raise DataError(
                f"{path}: {size / 1e6:.0f} MB are too many, at most {most_bytes / 1e6:.0f} are "
                f"read; give {wanted}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text in UTF-8; give {wanted}") from None
    if "\0" in text:
        raise DataError(f"{path}: is no text file; give {wanted}")
    return text


def _row(path: Path, line: int, cells: Iterable[str], width: int) -> PrintedRow:
    found = tuple(cells)
    if any(found[width:]):
        raise DataError(f"{path}:{line}: {len(found)} cells where the header has {width} columns")
    return PrintedRow(line, (*found[:width], *[""] * (width - len(found))))


# --- CSV ------------------------------------------------------------------------------------------


def _csv(path: Path, text: str) -> Iterator[PrintedTable]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line, rows = 1, []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                line, header = reader.line_num, [cell.strip() for cell in cells]
            else:
                texts = (_plain_csv(cell) for cell in cells)
                rows.append(_row(path, reader.line_num, texts, len(header)))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: no CSV file: {error}") from None
    if header is not None:
        yield PrintedTable(line, "", tuple((name,) for name in header), tuple(rows))


def _plain_csv(cell: str) -> str:
    """A name may hold any sign; only what is about numbers is markup."""
    text = cell.strip()
    return from_markdown(text) if any(c.isdigit() for c in text) and text[0] in "*$_<" else text


# --- Markdown -------------------------------------------------------------------------------------

_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*")


def _markdown(path: Path, text: str) -> Iterator[PrintedTable]:
    lines = text.splitlines()
    at = 1
    while at < len(lines):
        ruled = "|" in lines[at] and _RULE.fullmatch(lines[at])
        if not ruled or "|" not in lines[at - 1]:
            at += 1
            continue
        header = [from_markdown(cell) for cell in split_cells(lines[at - 1], "|")]
        title = next((line for line in reversed(lines[: at - 1]) if line.strip()), "")
        if "|" in title.replace(r"\|", ""):
            title = ""  # the end of a table that stands above
        first, rows = at, []
        at += 1
        while at < len(lines) and "|" in lines[at] and lines[at].strip():
            cells = (from_markdown(cell) for cell in split_cells(lines[at], "|"))
            rows.append(_row(path, at + 1, cells, len(header)))
            at += 1
        yield PrintedTable(
            first, from_markdown(title.strip().lstrip("#").strip()),
            tuple((name,) for name in header), tuple(rows),
        )  # fmt: skip


# --- LaTeX ----------------------------------------------------------------------------------------

_COMMENT = re.compile(r"(?<!\\)%.*")
_TABULAR = re.compile(r"\\begin\{(tabular[xy*]?|longtable|array|tabulary)\}")
_FLOAT = re.compile(r"\\begin\{(table\*?|longtable)\}")
_CAPTION = re.compile(r"\\caption\s*(?:\[[^\]]*\])?\s*(\{.{0,2000})", re.DOTALL)
_RULES = re.compile(
    r"\\(?:toprule|midrule|bottomrule|hline|hhline\{[^}]*\}|addlinespace|endhead|endfirsthead"
    r"|endfoot|cmidrule(?:\([^)]*\))?\{[^}]*\}|cline\{[^}]*\}|specialrule(?:\{[^}]*\}){3}"
    r"|rowcolor(?:\[[^\]]*\])?\{[^}]*\})(?:\[[^\]]*\])?"
)
_BREAKING = (r"\midrule", r"\hline", r"\endhead")
_SPAN = re.compile(r"\s*\\multicolumn\s*\{(\d+)\}\s*\{(?:[^{}]|\{[^{}]*\})*\}\s*(.*)", re.DOTALL)
_DOWN = re.compile(r"\s*\\multirow\s*(?:\[[^\]]*\])?\{(\d+)\}")
_MOST_SPAN = 1000


def _latex(path: Path, text: str) -> Iterator[PrintedTable]:
    plain = "\n".join(_COMMENT.sub("", line) for line in text.splitlines())
    floats = list(_environments(_FLOAT, plain))
    starts = [start for start, _ in floats]
    line, counted = 1, 0
    for first, last in _environments(_TABULAR, plain):
        line, counted = line + plain.count("\n", counted, first), first
        place = bisect_right(starts, first) - 1
        inside = place >= 0 and first < floats[place][1]
        caption = _CAPTION.search(plain, *floats[place]) if inside else None
        title = from_latex(_braced(caption[1])) if caption else ""
        yield from _tabular(path, plain[first:last], line, title)


def _environments(begin: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Where the content of each begins and ends; what never ends is none."""
    unended: set[str] = set()
    at = 0
    while found := begin.search(text, at):
        at = found.end()
        end = -1 if found[1] in unended else text.find(rf"\end{{{found[1]}}}", at)
        if end < 0:
            unended.add(found[1])
            continue
        yield at, end
        at = end


def _braced(text: str) -> str:
    """What stands in the braces that a text begins with."""
    depth = 0
    for at, char in enumerate(text):
        escaped = at > 0 and text[at - 1] == "\\"
        depth += 0 if escaped else (char == "{") - (char == "}")
        if depth == 0:
            return text[1:at]
    return text[1:]


def _tabular(path: Path, body: str, start: int, title: str) -> Iterator[PrintedTable]:
    spec = re.match(r"\s*(\[[^\]]*\])?\s*", body)
    at = spec.end() if spec else 0
    while at < len(body) and body[at] == "{":  # widths and columns
        at += len(_braced(body[at:])) + 2
    unruled = not any(word in body for word in _BREAKING)
    above: list[list[str]] = []
    rows: list[PrintedRow] = []
    below = False
    line, counted = start, 0
    down: dict[int, tuple[int, str]] = {}
    for offset, raw in split_rows(body[at:]):
        row = raw.lstrip()
        while ruled := _RULES.match(row):
            below = below or (bool(above) and any(word in ruled[0] for word in _BREAKING))
            row = row[ruled.end() :].lstrip()
        if not row:
            continue
        begins = at + offset + len(raw) - len(row)
        line, counted = line + body.count("\n", counted, begins), begins
        below = below or (unruled and bool(above))
        cells = list(_spanned(path, line, row, spread=not below))
        if below:
            width = max(map(len, above))
            rows.append(_row(path, line, _inherited(row, cells, down), width))
        else:
            above.append(cells)
    if above:
        width = max(map(len, above))
        columns = zip(*(names + [""] * (width - len(names)) for names in above), strict=True)
        labels = tuple(tuple(filter(None, dict.fromkeys(names))) for names in columns)
        yield PrintedTable(start, title, labels, tuple(rows))


def _spanned(path: Path, line: int, row: str, *, spread: bool) -> Iterator[str]:
    """Cells of a row; one that spans several is in each of a header, and in the first of a row."""
    for cell in split_cells(row, "&"):
        span = _SPAN.fullmatch(cell)
        text = from_latex(span[2] if span else cell)
        yield text
        width = int(span[1][:9]) if span else 1
        if width > _MOST_SPAN:
            raise DataError(f"{path}:{line}: a cell spans {width} columns")
        for _ in range(width - 1):
            yield text if spread else ""


def _inherited(row: str, cells: Sequence[str], down: dict[int, tuple[int, str]]) -> list[str]:
    """Fills in what a cell above reaches down to."""
    found = list(cells)
    for place, (left, text) in list(down.items()):
        if place < len(found) and not found[place]:
            found[place] = text
        down[place] = (left - 1, text)
        if left <= 1:
            del down[place]
    for place, cell in enumerate(split_cells(row, "&")):
        if (spans := _DOWN.match(cell)) and int(spans[1][:9]) > 1 and place < len(found):
            down[place] = (int(spans[1][:9]) - 1, found[place])
    return found
