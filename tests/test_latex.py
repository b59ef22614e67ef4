"""What a report writes in LaTeX compiles, and names are read in it as they were written."""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.render import write
from analysis.render.latex import HEADER
from analysis.report import WHOLE, sheets_of
from analysis.sheets import Kind, Sheet, Shown
from analysis.summary import Summary, summarize
from tests.reported import HOSTILE, Arm, report_on

LATIN = "École naïve façade Ångström Łódź Český ß æœ «quoted» ¿qué? 5 µm² × ±1 · – — …"
OTHERS = "αβγ 中文"
NAMES = (
    *HOSTILE,
    LATIN,
    "# % & ~ ^ \\ { } [ ] * ` ' \" < > | --- << >> ,, '' `` ?` !`",
    "[first]",
    "*starred",
    "%",
    "\\\\end{tabular}",
    "^^41",
)
PREAMBLE = r"""
\documentclass{article}
\usepackage{cmap}  % for pdftotext
\pdfpagewidth=400cm \pdfpageheight=200cm
\setlength{\textwidth}{350cm} \setlength{\textheight}{180cm}
\hyphenpenalty=10000 \sloppy
"""


def sheet(*rows: Sequence[str], kind: Kind = "results", caption: tuple[str, ...] = ()) -> Sheet:
    cells = tuple(tuple(Shown(text) for text in row) for row in rows)
    header = tuple(f"h{n}" for n in range(len(rows[0])))
    return Sheet(kind, "title", header, 1, cells, caption)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """Every kind of sheet, with names that are markup as arms, knobs, values, groups, reasons."""
    arms = [
        Arm(name, 1 + 0.2 * n, knobs={"k_n$&{": name, "x^2": n} if n else {})
        for n, name in enumerate(NAMES)
    ]
    arms += [Arm("grid_%", 2.0 + x, knobs={"k_n$&{": name, "x^2": x}) for name in ("a_b", "c~d")
             for x in (0, 1)]  # fmt: skip
    arms[3] = replace(arms[3], ends={2: "$ {unbalanced \\ % #1 _ ^ & ~ \x1b[31m"})
    store = report_on(
        tmp_path_factory.mktemp("tex") / "results",
        arms,
        groups=("A_1", "B&C%"),
        metrics=["auroc"],
        expect=["auroc >= 0.7", "latency_ms <= 6"],
        items=20,
    )
    return summarize(store, store.sweep(), images=True, margins={"auroc": 0.05})


def compiled(tmp_path: Path, text: str, program: str = "pdflatex", extra: str = "") -> str:
    """Compile what follows the packages that it names; what is read in the PDF, without spaces."""
    for needed in (program, "pdftotext"):
        assert shutil.which(needed), (
            f"{needed} is not installed: apt-get install texlive-latex-base "
            "texlive-latex-recommended poppler-utils"
        )
    packages = "\n".join(re.findall(r"^% (\\usepackage\S+)", text, re.MULTILINE))
    whole = f"{PREAMBLE}{packages}\n{extra}\n\\begin{{document}}\n{text}\n\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(whole, encoding="utf-8")
    done = subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, re.findall(r"^!.*(?:\n.*){5}", done.stdout, re.MULTILINE)
    assert "Missing character" not in done.stdout
    assert "Too many unprocessed floats" not in done.stdout
    read = subprocess.run(
        ["pdftotext", "-layout", "t.pdf", "-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return plain(read)


def plain(text: str) -> str:
    """Without spaces, which a layout adds, and with ligatures taken apart."""
    return "".join(unicodedata.normalize("NFKC", text).split())


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_of_table_compiles_and_its_texts_are_read_literally(
    hostile: Summary, kind: Kind, tmp_path: Path
) -> None:
    sheets = sheets_of(hostile, [kind], per_group=True)
    assert sheets
    read = compiled(tmp_path, write(sheets, "tex"))
    for one in sheets:
        texts = [one.title, *one.header, *one.caption]
        texts += [cell.text for row in one.rows for cell in row]
        for text in texts:
            shown = text.replace("\x1b", r"\x1b")
            assert plain(shown) in read, text
    marks = [cell.mark for one in sheets for row in one.rows for cell in row if cell.mark]
    assert read.count("†") >= len(marks)


@pytest.mark.slow
def test_ascii_compiles_with_the_fonts_that_latex_begins_with(tmp_path: Path) -> None:
    """Somebody's paper may not have T1; only letters beyond ASCII need it."""
    every = "".join(map(chr, range(0x20, 0x7F)))
    text = write([sheet([every, *(f"{c}x" for c in every)])], "tex")
    assert "[T1]" in text
    compiled(tmp_path, re.sub(r"^% .*T1.*\n", "", text, flags=re.MULTILINE))


@pytest.mark.slow
def test_a_row_or_note_after_a_line_end_is_no_argument_of_it(tmp_path: Path) -> None:
    rows = [[start + "x", "1"] for start in ("a", "[2pt]", "*", "*[3pt]", " [4pt]", "")]
    text = write([sheet(*rows, caption=("note", "[5pt]note", "*note"))], "tex")
    read = compiled(tmp_path, text)
    assert "[2pt]x" in read
    assert "*[3pt]x" in read
    assert "[5pt]note" in read


def test_letters_that_are_not_latin_are_named_with_what_they_take() -> None:
    assert "lualatex" in write([sheet([OTHERS, "1"])], "tex")
    assert "lualatex" not in write([sheet([LATIN, "1"])], "tex")


def test_packages_are_named_once_and_labels_are_unique() -> None:
    text = write([sheet(["a", "1"]), sheet(["b", "1"]), sheet(["c", "1"], kind="costs")], "tex")
    assert text.startswith(HEADER)
    assert text.count("booktabs") == 1
    assert re.findall(r"\\label\{(.*?)\}", text) == [
        "tab:results-1",
        "tab:results-2",
        "tab:costs-3",
    ]


def test_the_best_is_bold_and_a_dagger_is_raised() -> None:
    one = replace(
        sheet(["a", "1"]),
        rows=((Shown("a"), Shown("94.12±0.17", best=True)), (Shown("b"), Shown("1", mark="†"))),
    )
    text = write([one], "tex")
    assert r"a & \textbf{94.12$\pm$0.17} \\" in text
    assert r"b & 1$^{\dagger}$ \\" in text
