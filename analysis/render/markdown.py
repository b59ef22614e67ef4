"""Sheets as Markdown tables; no name is markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis.render.plain import visible
from analysis.sheets import Sheet, Shown

_MARKUP = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")

_LIST = re.compile(r"^(\d*)([-+.)])(?=\s|-|$)")
"""What begins an item of a list or is a line across the page, where a caption begins with it."""


def markdown(sheet: Sheet) -> str:
    """Title, table and caption."""
    caption = [
        f"  - {escaped(text.strip())}" if text.startswith("  ") else f"- {escaped(text)}"
        for text in sheet.caption
    ]
    lines = [
        f"**{escaped(sheet.title)}**",
        "",
        _line([escaped(text) for text in sheet.header]),
        _line([":--"] * sheet.left + ["--:"] * (len(sheet.header) - sheet.left)),
        *(_line([_cell(cell) for cell in row]) for row in sheet.rows),
        "",
        *caption,
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Shown) -> str:
    text = escaped(cell.text)
    return (f"**{text}**" if cell.best and text else text) + cell.mark


def escaped(text: str) -> str:
    """A text in which nothing is markup, and nothing is hidden."""
    return _LIST.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", visible(text)))


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
