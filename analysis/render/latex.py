"""Sheets as LaTeX tables with booktabs; no name is a command.

What is written compiles with pdflatex and the packages of HEADER as long as names are in Latin
letters; others take a font that has them, with lualatex or xelatex.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis.render.plain import visible
from analysis.sheets import DAGGER, Sheet, Shown

_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "'": r"\textquotesingle{}",
    '"': r"{\ttfamily\char34}",  # \textquotedbl is not in the fonts that LaTeX begins with
    "`": r"\textasciigrave{}", "±": r"$\pm$", "×": r"$\times$",
    "—": r"\textemdash{}", "–": r"\textendash{}", "−": "$-$", "·": r"$\cdot$",
    DAGGER: r"$\dagger$", "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip
_LIGATURE = re.compile(r"([-,])(?=\1)")  # of what is not escaped
_LATIN = frozenset(map(chr, range(0x180))) - frozenset("ĦħĸĿŀŉŦŧſ") | frozenset("‘’“”„…€•™")
"""What pdflatex sets with the packages of HEADER."""


def latex(sheet: Sheet, label: str) -> str:
    """A ``table`` that needs the packages of HEADER.

    Args:
        sheet: To write.
        label: Follows ``tab:``; letters, digits, colon and dash only.
    """
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_escaped(sheet.title)}}}",
        f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{{'l' * sheet.left}{'r' * (len(sheet.header) - sheet.left)}}}",
        r"    \toprule",
        f"    {_line([_escaped(text) for text in sheet.header])}",
        r"    \midrule",
        *(f"    {_line([_cell(cell) for cell in row])}" for row in sheet.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
    ]
    if sheet.caption:
        notes = " \\\\\n    ".join(_escaped(text.strip()) for text in sheet.caption)
        lines += ["", r"  \smallskip", r"  \begin{minipage}{\linewidth}\footnotesize",
                  f"    {notes}", r"  \end{minipage}"]  # fmt: skip
    text = "\n".join([*lines, r"\end{table}"]) + "\n"
    if not _LATIN.issuperset(text):
        return _OTHER_LETTERS + text
    return text


HEADER = (
    "% \\usepackage{booktabs,textcomp}\n"
    "% \\usepackage[T1]{fontenc}  % with pdflatex, where names have other letters than a to z\n"
)
_OTHER_LETTERS = (
    "% letters that are not Latin: compile with lualatex or xelatex, package fontspec, and\n"
    "% \\setmainfont{a font that has them}; others leave them out without a word\n"
)


def _cell(cell: Shown) -> str:
    text = _escaped(cell.text)
    mark = rf"$^{{{_RAISED.get(cell.mark, _escaped(cell.mark))}}}$" if cell.mark else ""
    return (rf"\textbf{{{text}}}" if cell.best and text else text) + mark


_RAISED = {DAGGER: r"\dagger"}


def _escaped(text: str) -> str:
    made = _LIGATURE.sub(r"\1{}", "".join(_ESCAPED.get(c, c) for c in visible(text)))
    # After a line end, [ would be an argument and * a part of the command.
    return "{}" + made if made[:1] in ("[", "*") else made


def _line(texts: Sequence[str]) -> str:
    return f"{' & '.join(texts)} " + r"\\"
