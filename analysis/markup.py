"""Markdown and LaTeX as the text that they show; enough of both for the cells of tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_SHOWS = {
    "pm": "±", "textpm": "±", "times": "×", "cdot": "·", "textemdash": "—", "textendash": "–",
    "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<",
    "textgreater": ">", "textbar": "|", "textquotedbl": '"', "textasciigrave": "`",
    "textquotesingle": "'",
    "dagger": "†", "dag": "†", "textdagger": "†", "ddagger": "‡", "ddag": "‡", "ast": "*",
    "star": "*", "uparrow": "↑", "downarrow": "↓", "geq": "≥", "leq": "≤", "ge": "≥", "le": "≤",
    "quad": " ", "qquad": " ", "textunderscore": "_", "alpha": "α", "beta": "β", "gamma": "γ",
    "lambda": "λ", "mu": "μ", "sigma": "σ", "tau": "τ", "infty": "∞", "sim": "~", "newline": " ",
}  # fmt: skip
_HIDDEN = {  # command -> how many arguments it takes, all of which are not shown
    "cite": 1, "citep": 1, "citet": 1, "cellcolor": 1, "color": 1, "label": 1, "footnote": 1,
    "ref": 1, "vspace": 1, "hspace": 1, "phantom": 1, "textsuperscript": 1, "tnote": 1,
    "rule": 2, "footnotemark": 0,
}  # fmt: skip
_WRAPS = {"textcolor": 1, "multirow": 2, "multicolumn": 2, "scalebox": 1, "rotatebox": 1,
          "raisebox": 1, "resizebox": 2, "href": 1, "colorbox": 1}  # fmt: skip
"""Command -> how many arguments come before the one that is shown."""

_MOST_CHARS, _MOST_DEPTH = 10_000, 40  # of a cell; more is no cell of a table


def from_latex(text: str) -> str:
    """What a piece of LaTeX shows: without commands, braces and dollar signs."""
    return re.sub(r"\s+", " ", _Latex(text).all()).strip()


class _Latex:
    def __init__(self, text: str, depth: int = 0) -> None:
        self._text, self._at, self._depth = text[:_MOST_CHARS], 0, depth

    def all(self) -> str:
        """Everything that is left."""
        found = []
        while self._at < len(self._text):
            found.append(self._next())
        return "".join(found)

    def _next(self) -> str:
        char = self._text[self._at]
        if char == "{":
            return self._argument()
        self._at += 1
        if char == "\\":
            return self._command()
        if char == "_" and self._text[self._at : self._at + 1] == "{":
            return " " + self._argument()
        if char == "^":  # raised marks say nothing of a value
            self._argument()
            return ""
        return {"$": "", "}": "", "~": " "}.get(char, char)

    def _argument(self) -> str:
        """The next braces as text, or else the next sign."""
        rest = self._text[self._at :]
        stripped = rest.lstrip()
        self._at += len(rest) - len(stripped)
        if not stripped:
            return ""
        if stripped[0] != "{":
            return self._next()
        depth, at = 0, 0
        while at < len(stripped):
            if stripped[at] == "\\":
                at += 2
                continue
            depth += (stripped[at] == "{") - (stripped[at] == "}")
            at += 1
            if depth == 0:
                break
        self._at += at
        inner = stripped[1 : at - 1] if depth == 0 else stripped[1:]
        return inner if self._depth > _MOST_DEPTH else _Latex(inner, self._depth + 1).all()

    def _command(self) -> str:
        match = re.compile(r"[A-Za-z]+\*?").match(self._text, self._at)
        if match is None:
            char = self._text[self._at : self._at + 1]
            self._at += 1
            return {",": " ", ";": " ", ":": " ", "!": "", "\\": " ", "(": "", ")": ""}.get(
                char, char
            )
        self._at = match.end()
        name = match[0].rstrip("*")
        if name == "char" and (code := re.compile(r"\d{1,5}").match(self._text, self._at)):
            self._at = code.end()
            return chr(int(code[0]))
        if name in _SHOWS:
            if self._text.startswith("{}", self._at):
                self._at += 2
            return _SHOWS[name]
        if option := re.compile(r"\s*\[[^\]]*\]").match(self._text, self._at):
            self._at = option.end()
        for _ in range(_HIDDEN.get(name, _WRAPS.get(name, 0))):
            self._argument()
        if name in _HIDDEN:
            return ""
        if self._text[self._at : self._at + 1] == "{":
            return self._argument()
        self._at += len(self._text[self._at :]) - len(self._text[self._at :].lstrip())
        return self._argument() if name in _WRAPS else ""


_MATH = re.compile(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$")
_TAG = re.compile(r"<(sup)>.*?</\1>|</?(?:b|i|strong|em|code|span|sub|u|br|p|td|th)\b[^>]*>")


def from_markdown(text: str) -> str:
    """What a piece of Markdown shows, formulas in dollar signs included."""
    parts = _MATH.split(text[:_MOST_CHARS])
    shown = [from_latex(part) if place % 2 else _plain(part) for place, part in enumerate(parts)]
    return re.sub(r"\s+", " ", "".join(shown)).strip()


_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_EMPHASIS = re.compile(r"\*{1,3}|`|~~|(?<![A-Za-z0-9])_{1,2}(?=\S)|(?<=\S)_{1,2}(?![A-Za-z0-9_])")
_KEPT = 0xF0000  # private code points, for what was escaped and is not markup


def _plain(text: str) -> str:
    kept = _ESCAPE.sub(lambda match: chr(_KEPT + ord(match[1])), text)
    kept = re.sub(r"\[\^[^\]]*\]", "", kept)
    kept = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", kept)
    kept = html.unescape(_TAG.sub("", kept))
    kept = _EMPHASIS.sub("", kept)
    if "\\" in kept:  # \pm without dollar signs
        kept = re.sub(r"\\[A-Za-z]+", lambda match: from_latex(match[0]), kept)
    return re.sub(
        f"[{chr(_KEPT)}-{chr(_KEPT + 127)}]", lambda match: chr(ord(match[0]) - _KEPT), kept
    )


def split_cells(text: str, sign: str) -> list[str]:
    """Cells of a row; a sign that is escaped, or in braces, parts nothing."""
    cells, depth, last, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        if sign == "&":
            depth += (text[at] == "{") - (text[at] == "}")
        if text[at] == sign and depth <= 0:
            cells.append(text[last:at])
            last = at + 1
        at += 1
    cells.append(text[last:])
    if sign == "|":  # those outside of the table
        cells = cells[1:] if not cells[0].strip() else cells
        cells = cells[:-1] if cells and not cells[-1].strip() else cells
    return cells


def split_rows(text: str) -> Iterator[tuple[int, str]]:
    r"""Rows of a LaTeX table, each with where it begins; ``\\`` in braces parts nothing."""
    depth = last = at = 0
    while at < len(text):
        if text.startswith(r"\\", at) and depth <= 0:
            yield last, text[last:at]
            end = re.compile(r"\\\\\*?(?:\s*\[[^\]]*\])?").match(text, at)
            at = last = end.end() if end else at + 2
            continue
        if text.startswith(r"\tabularnewline", at) and depth <= 0:
            yield last, text[last:at]
            at = last = at + len(r"\tabularnewline")
            continue
        if text[at] == "\\":
            at += 2
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        at += 1
    if text[last:].strip():
        yield last, text[last:]
