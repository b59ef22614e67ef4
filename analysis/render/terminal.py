"""Sheets for a terminal.

The layout is our own: a table of 2000 rows takes rich two seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.style import Style

from analysis.render.plain import visible
from analysis.sheets import BEST, Sheet, Shown

_RANKED = ("results", "ablation")
"""Kinds of sheets whose best need a mark: a verdict in bold says the same in words."""

_NUMERIC = (*"0123456789+-—",)
"""With what a number begins, or the dash in its place."""


def terminal(sheet: Sheet, width: int | None = None, color: bool = False) -> str:
    """Columns under each other, numbers lined up.

    Args:
        sheet: To write.
        width: Columns of the terminal: a table that is wider is continued below with its other
            columns, never cut, and captions are broken between words. None writes each row on a
            line as long as it takes.
        color: Whether it shows ANSI styles.
    """
    columns = list(zip(*sheet.rows, strict=True)) or [()] * len(sheet.header)
    star = BEST if sheet.kind in _RANKED else ""
    lined_up = [
        _left(visible(name), column) if place < sheet.left else _right(visible(name), column, star)
        for place, (name, column) in enumerate(zip(sheet.header, columns, strict=True))
    ]
    header, *rows = map(list, zip(*lined_up, strict=True))
    widths = list(map(cell_len, header))
    bold = [[cell.best for cell in row] for row in sheet.rows]

    def styled(text: str, style: str) -> str:
        return Style.parse(style).render(text) if color and text else text

    def line(row: Sequence[str], columns: Sequence[int], best: Sequence[bool]) -> str:
        if not color or not any(best):
            return "  ".join(row[c] for c in columns).rstrip()
        return "  ".join(styled(row[c], "bold") if best[c] else row[c] for c in columns).rstrip()

    lines = [styled(visible(sheet.title), "bold"), ""]
    for shown in _blocks(widths, sheet.left, width):
        lines.append(styled("  ".join(header[c] for c in shown).rstrip(), "bold"))
        lines += [line(row, shown, best) for row, best in zip(rows, bold, strict=True)]
        lines.append("")
    lines += [
        styled(line, "dim") for text in sheet.caption for line in wrapped(visible(text), width)
    ]
    return "\n".join(lines) + "\n"


def wrapped(text: str, width: int | None) -> list[str]:
    """Lines of at most ``width`` columns, but for longer words; all but the first are indented."""
    if width is None or cell_len(text) <= width:
        return [text]
    start = text[: len(text) - len(text.lstrip())]
    lines, line = [], start
    for word in text.split():
        if line.strip() and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = f"{start}  "
        line += f" {word}" if line.strip() else word
    return [*lines, line]


def _space(width: int, text: str) -> str:
    return " " * (width - cell_len(text))


def _left(header: str, cells: Sequence[Shown]) -> list[str]:
    texts = [header, *(visible(cell.text) for cell in cells)]
    width = max(map(cell_len, texts))
    return [text + _space(width, text) for text in texts]


def _right(header: str, cells: Sequence[Shown], star: str) -> list[str]:
    """Values under values: marks, and what follows in parentheses, have a column of their own."""
    split = []
    for cell in cells:
        text = visible(cell.text)
        number, space, rest = text.partition(" (") if text[:1] in _NUMERIC else (text, "", "")
        split.append((number, (star if cell.best else "") + cell.mark + space + rest))
    value = max((cell_len(number) for number, _ in split), default=0)
    after = max((cell_len(rest) for _, rest in split), default=0)
    value = max(value, cell_len(header) - after)
    title = _space(value, header) + header
    return [
        title + _space(value + after, title),
        *(_space(value, number) + number + rest + _space(after, rest) for number, rest in split),
    ]


def _blocks(widths: Sequence[int], left: int, width: int | None) -> Iterator[list[int]]:
    """Columns of each block that fits the width; all start with the names of the rows."""
    names = list(range(left))
    block: list[int] = []
    for column in range(left, len(widths)):
        wanted = sum(widths[c] + 2 for c in [*names, *block, column]) - 2
        if block and width is not None and wanted > width:
            yield names + block
            block = []
        block.append(column)
    yield names + block
