"""Tables are read as papers write them: a number with its digits, whatever surrounds it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from analysis import render
from analysis.markup import from_latex, from_markdown
from analysis.printed import PrintedTable, read_cell, read_tables
from analysis.sheets import Sheet, Shown
from hdsweep.errors import DataError
from tests.reported import HOSTILE


@pytest.mark.parametrize(
    "text",
    [
        "94.12±0.17", "**94.12±0.17**", "94.12 ± 0.17", "94.12 +/- 0.17", "94.12 (0.17)",
        "94.12 (±0.17)", "94.12(17)", "$94.12_{\\pm 0.17}$", "94.12 \\pm 0.17",
        "<b>94.12</b> &plusmn; 0.17", "94.12±0.17†", "94.12±0.17<sup>a</sup>", "94.12±0.17 (+0.5)",
        "94,12 ± 0,17", "94.12±0.17 [93.9, 94.3]", "$\\mathbf{94.12}\\pm0.17$", "_94.12±0.17_",
    ],
)  # fmt: skip
def test_a_mean_and_its_spread_are_read_from_every_way_of_markdown(text: str) -> None:
    found = read_cell(from_markdown(text))
    assert (found.mean, found.spread) == (Decimal("94.12"), Decimal("0.17"))


@pytest.mark.parametrize(
    "text",
    [
        r"94.12$\pm$0.17", r"$94.12 \pm 0.17$", r"$\mathbf{94.12}_{\pm 0.17}$",
        r"\textbf{94.12} {\scriptsize $\pm$ 0.17}", r"\cellcolor{blue!20}\underline{94.12±0.17}",
        r"94.12{\tiny$\pm$0.17}$^\dagger$", r"{\bf 94.12}\,(0.17)",
        r"\textcolor{red}{94.12 (0.17)}",
        r"94.12~$\pm$~0.17\footnote{of five runs}", r"94.12\textsubscript{$\pm$0.17}~\cite{x}",
    ],
)  # fmt: skip
def test_a_mean_and_its_spread_are_read_from_every_way_of_latex(text: str) -> None:
    found = read_cell(from_latex(text))
    assert (found.mean, found.spread) == (Decimal("94.12"), Decimal("0.17"))


@pytest.mark.parametrize(
    "text", ["", "—", "-", "n/a", "94.12 to 95", "5 of 6", "#3", "q=5", "1e999"]
)
def test_what_is_no_number_has_no_mean(text: str) -> None:
    assert read_cell(text).mean is None


@pytest.mark.parametrize("name", [*HOSTILE, "a -- b --- c", "x,,y", "[1] *2 ?` ``q'' << ~ ^ #%\\"])
def test_what_a_report_escapes_is_read_as_it_was(tmp_path: Path, name: str) -> None:
    sheet = Sheet("results", name, ("arm", name), 1, ((Shown(name), Shown("1.5", best=True)),))
    for form in ("md", "tex"):
        (table,) = written(tmp_path, f"t.{form}", render.write([sheet], form))
        assert (table.title, table.columns[1]) == (name, (name,))
        assert table.rows[0].cells == (name, "1.5")


def test_a_number_keeps_its_digits_and_its_sign_of_percent() -> None:
    assert str(read_cell("98.20").mean) == "98.20"
    assert read_cell("98.2 %").percent
    assert not read_cell("98.2").percent
    assert read_cell("1,234.5").mean == Decimal("1234.5")
    assert read_cell("94.12±0.17 (n=3/5)").n == 3
    assert read_cell("−0.5").mean == Decimal("-0.5")


def written(tmp_path: Path, name: str, text: str) -> list[PrintedTable]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_tables(path)


LATEX = r"""
\begin{table}\caption{Results on \emph{our} data, in \%}
\begin{tabular}{l c *{5}{r}}
\toprule
 & & \multicolumn{2}{c}{AUROC} & \multicolumn{3}{c}{TPR@1\%} \\
\cmidrule(lr){3-4}\cmidrule(lr){5-7}
Method & $q$ & A & mean & A & B & mean \\
\midrule
\multicolumn{7}{l}{\emph{Ours}} \\
\multirow{2}{*}{TopK\_x} & 5 & \textbf{94.12$\pm$0.17} & $1.2_{\pm .3}$ & 1 & 2 & 3 \\[2pt]
 & 10 & 1 & 2 & --- & 4 & 5\\ % comment \\ & &
% hidden & row \\
Base \& co & & 1 & 2 & 3 & 4 & \makecell{5\\6} \\
\bottomrule
\end{tabular}
\end{table}
"""


def test_latex_headers_span_columns_and_rows_reach_down(tmp_path: Path) -> None:
    (table,) = written(tmp_path, "t.tex", LATEX)
    assert table.title == "Results on our data, in %"
    assert table.columns == (
        ("Method",), ("q",), ("AUROC", "A"), ("AUROC", "mean"), ("TPR@1%", "A"), ("TPR@1%", "B"),
        ("TPR@1%", "mean"),
    )  # fmt: skip
    assert [(row.line, row.cells[:2]) for row in table.rows] == [
        (9, ("Ours", "")), (10, ("TopK_x", "5")), (11, ("TopK_x", "10")), (13, ("Base & co", "")),
    ]  # fmt: skip
    assert table.rows[1].cells[2:4] == ("94.12±0.17", "1.2 ± .3")


def test_a_latex_table_without_rules_has_its_first_row_as_header(tmp_path: Path) -> None:
    (table,) = written(
        tmp_path, "t.tex", "\\begin{tabular}{ll}\na & b\\\\\nx & 1\\\\\n\\end{tabular}"
    )
    assert table.columns == (("a",), ("b",))
    assert [row.cells for row in table.rows] == [("x", "1")]


def test_markdown_tables_have_the_line_above_as_title(tmp_path: Path) -> None:
    text = """# All
## Results, AUROC

| Method | A | **B** |
|---|--:|:-:|
| `top\\|x` | 1.0±0.1 | 2 |
| a\\_b \\| c_d | **3** | – |

text

A | B
--|--
x | 1
"""
    first, second = written(tmp_path, "t.md", text)
    assert (first.title, first.line, first.columns) == (
        "Results, AUROC", 4, (("Method",), ("A",), ("B",))
    )  # fmt: skip
    assert [row.cells for row in first.rows] == [
        ("top|x", "1.0±0.1", "2"), ("a_b | c_d", "3", "–")
    ]  # fmt: skip
    assert [(row.line, row.cells) for row in first.rows][1][0] == 7
    assert (second.title, second.rows[0].cells) == ("text", ("x", "1"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_with_any_delimiter_and_a_byte_order_mark(
    tmp_path: Path, delimiter: str
) -> None:
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in (("arm", "A"), ("x_y", "1.5")))
    (table,) = written(tmp_path, "t.csv", text)
    assert (table.columns, table.rows[0].cells) == ((("arm",), ("A",)), ("x_y", "1.5"))


def test_what_holds_no_table_is_refused_in_one_message(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.md", b"no table", "holds no table"),
        ("a.csv", b"", "holds no table"),
        ("a.tex", b"\\begin{tabular}{l}", "holds no table"),
        ("a.pdf", b"%PDF", "is read from .md, .tex or .csv"),
        ("b.md", b"\xff\xfe", "no text in UTF-8"),
        ("c.md", b"a\0b", "no text file"),
        ("d.md", b"|a|\n|-|\n|1|2|3|\n", "3: 3 cells where the header has 1 columns"),
        ("d.tex", b"\\begin{tabular}{l}\\multicolumn{99999999}{c}{x}\\\\", "holds no table"),
        ("e.csv", b'a,b\n"x\n', "no CSV file"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_tables(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_tables(tmp_path / "none.md")
    with pytest.raises(DataError, match="cannot be read"):
        read_tables(tmp_path)


def test_what_is_nested_or_long_without_end_is_read_in_no_time(tmp_path: Path) -> None:
    deep = "{" * 5000
    table = "\\begin{tabular}{l}a\\\\\n" + deep + "\\\\ \\end{tabular}"
    (found,) = written(tmp_path, "deep.tex", deep + table + "\\begin{tabular}" * 50_000)
    assert len(found.rows) == 1  # whatever it says: an open brace swallows what follows
    assert read_cell(from_latex("{" * 300 + "5" + "}" * 300)).mean in (None, Decimal(5))
    assert read_cell("9" * 5000).mean is None
    assert read_cell(f"1 (n={'9' * 5000})").mean is None
    with pytest.raises(DataError, match="MB are too many"):
        written(tmp_path, "long.md", "|" * 6_000_000)
