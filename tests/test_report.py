"""``hdsweep report`` in every format, and what it says when it cannot do what it was asked."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from analysis.render import said, write
from analysis.render.terminal import wrapped
from analysis.report import sheets_of
from analysis.sheets import Sheet, Shown
from analysis.summary import summarize
from hdsweep.store import Store
from tests.conftest import ROOT, Invoke
from tests.reported import HOSTILE, Arm, report_on

Write = Callable[..., Path]
KINDS = ("results", "comparison", "ablation", "criteria", "costs")
ANSI = re.compile(r"\x1b\[[0-9;]*m")

SEARCHED = """\
name: searched
method: tests.methods.noise
data: {name: tests.methods.labels, root: labels, make: {items: 24}}
seeds: [1, 2, 3]
arms:
  weak: {strength: 0.5}
  drawn: {strength: {log_uniform: [0.1, 10]}}
search: {sampler: random, trials: 6, maximize: auroc}
resources: {gpus: 0, cpus: 1}
report: {metrics: [auroc], baseline: weak, expect: ["auroc >= 0.6"]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline, three values of a knob of which the last is not complete, and criteria."""
    arms = [
        Arm("base", 0.5),
        Arm("topk", 1.0, knobs={"q": 1}),
        Arm("topk", 1.5, knobs={"q": 5}),
        Arm("topk", 2.0, knobs={"q": 50}, ends={2: "out of memory", 3: ""}),
    ]
    expect = ["auroc >= 0.75", "tpr@5[domain=A] > 0.9", "latency_ms <= 6"]
    return report_on(tmp_path_factory.mktemp("made") / "results", arms, expect=expect).root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """The same, in the folder in which a command is run."""
    return Store(Path(shutil.copytree(made, tmp_path / "results", symlinks=True)))


def strict(text: str) -> dict[str, Any]:
    """JSON as the standard has it, without NaN."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def ok(invoke: Invoke, *arguments: object) -> str:
    status, out, err = invoke("report", *arguments)
    assert (status, err) == (0, "")
    return out


# --- JSON -----------------------------------------------------------------------------------------


def test_every_key_of_the_json_is_in_the_docs(invoke: Invoke, store: Store) -> None:
    docs = (ROOT / "docs" / "output.md").read_text()
    found = strict(ok(invoke, "--format", "json", "--images", "--margin", "auroc=0.02"))
    named = set(re.findall(r"`([^`]+)`", docs.split("## Report")[1].split("## Replay")[0]))
    open_ended = {"knobs", "fixed", "values", "provenance", "scalars", "counts", "status", "cells"}

    def keys(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value)) if value else set()
        if not isinstance(value, dict):
            return set()
        inner = [keys(v) for name, v in value.items() if name not in open_ended]
        return set(value).union(*inner)

    cells = [cell for row in found["tables"][0]["rows"] for cell in row["cells"].values()]
    told = keys(found) | keys(cells)
    assert {"paired", "sign_flip_floor", "optimistic", "gpu_hours", "serious"} - told <= {"serious"}
    assert told - named == set()


def test_json_says_what_the_terminal_says(invoke: Invoke, store: Store) -> None:
    found = strict(ok(invoke, "--format", "json"))
    text = ok(invoke)
    assert found["counts"] == {"ok": 10, "failed": 1, "not run": 1}
    for sentence in found["answer"]:
        assert f"{sentence}\n" in text
    whole = [row for row in found["comparisons"] if row["group"] == "mean"]
    assert [(row["metric"], row["knobs"]["q"], row["verdict"]) for row in whole] == [
        (metric, q, verdict)
        for metric in ("auroc", "tpr@5")
        for q, verdict in ((1, "better"), (5, "better"), (50, "not testable"))
    ]
    assert found["baseline"] == "base"
    assert {cost["gpu_hours"] for cost in found["costs"][:3]} == {3 * 12.5 * 0.5 / 3600}
    assert [one["down"] for one in found["ablations"]] == [[1, 5, 50]]


def test_a_metric_that_is_not_of_the_sweep_is_corrected_along_with_those_that_are(
    invoke: Invoke, store: Store
) -> None:
    alone = strict(ok(invoke, "--format", "json", "--metric", "ap"))
    assert [table["metric"] for table in alone["tables"]] == ["ap"]
    assert {row["metric"] for row in alone["comparisons"]} == {"ap"}
    # Three metrics, of which two arms can be tested.
    sizes = {row["family"]: row["family_size"] for row in alone["comparisons"]}
    assert sizes == {"aggregate": 6, "per group": 12}
    own = strict(ok(invoke, "--format", "json", "--metric", "auroc"))
    sizes = {row["family"]: row["family_size"] for row in own["comparisons"]}
    assert sizes == {"aggregate": 4, "per group": 8}


def test_metrics_of_criteria_alone_have_no_tables(invoke: Invoke, store: Store) -> None:
    found = strict(ok(invoke, "--format", "json"))
    assert [table["metric"] for table in found["tables"]] == ["auroc", "tpr@5"]
    assert {one["text"] for one in found["criteria"]} == {
        "auroc >= 0.75",
        "tpr@5[domain=A] > 0.9",
        "latency_ms <= 6",
    }
    assert "latency_ms" not in {row["metric"] for row in found["comparisons"]}


@pytest.mark.parametrize("form", ["terminal", "md", "tex", "csv", "json", "html"])
def test_an_error_that_names_a_file_which_is_not_utf8_is_reported(
    invoke: Invoke, tmp_path: Path, form: str
) -> None:
    why = "cannot read \udcff.png"  # as Python has the byte 0xff of a file name
    report_on(tmp_path / "results", [Arm("a"), Arm("b", ends={1: why})])
    ok(invoke, "--format", form, "--out", "report")
    text = (tmp_path / "report").read_text(encoding="utf-8")
    escaped = {"tex": r"\textbackslash{}udcff.png", "md": r"\\udcff.png"}
    assert escaped.get(form, r"\udcff.png") in text
    if form == "json":
        cell = strict(text)["tables"][0]["rows"][1]["cells"]["mean"]
        assert cell["missing"][0]["reason"] == f"RuntimeError: {why}"


# --- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_table_is_a_csv_that_pandas_reads(
    invoke: Invoke, store: Store, kind: str
) -> None:
    text = ok(invoke, "--format", "csv", "--table", kind)
    found = pd.read_csv(io.StringIO(text))
    told = strict(ok(invoke, "--format", "json"))
    if kind == "results":
        assert len(found) == 2 * 4 * 3
        rows = [row for table in told["tables"] for row in table["rows"]]
        cells = [cell["mean"] for row in rows for cell in row["cells"].values()]
        assert found["mean"].tolist() == cells
        assert found["failed"].sum() == 6
    elif kind == "comparison":
        assert found["p_holm"].dropna().tolist() == [
            row["p_holm"] for row in told["comparisons"] if row["p_holm"] is not None
        ]
        assert found["paired.difference"].tolist() == [
            row["paired"]["difference"] for row in told["comparisons"]
        ]
        assert found["seeds"].tolist()[0] == "1 2 3"
    elif kind == "ablation":
        assert found["knob.q"].tolist() == [1, 1, 5, 5, 50, 50]
        assert found["metric"].tolist() == ["auroc", "tpr@5"] * 3
    elif kind == "criteria":
        assert found["text"].tolist() == [one["text"] for one in told["criteria"]]
        assert found["met"].tolist() == [one["met"] for one in told["criteria"]]
    else:
        assert found["scalars.latency_ms"].tolist() == [5.5, 6.0, 6.5, 7.0]
        assert found["wall_s"].tolist() == [one["wall_s"] for one in told["costs"]]


def test_a_csv_of_two_kinds_is_refused(invoke: Invoke, store: Store) -> None:
    arguments = ["--format", "csv", "--table", "costs", "--table", "criteria"]
    status, out, err = invoke("report", *arguments)
    assert (status, out) == (2, "")
    assert "one kind of table, found costs, criteria" in err
    twice = ok(invoke, "--format", "csv", "--table", "costs", "--table", "costs")
    assert twice == ok(invoke, "--format", "csv", "--table", "costs")


# --- for people -----------------------------------------------------------------------------------


def test_the_terminal_shows_the_tables_and_ends_with_the_answer(
    invoke: Invoke, store: Store
) -> None:
    lines = ok(invoke).splitlines()
    titles = [
        "auroc in %, larger is better", "auroc in points against base",
        "tpr@5 in %, larger is better", "tpr@5 in points against base", "Success criteria",
    ]  # fmt: skip
    assert [line for line in lines if line in titles] == titles
    assert lines[-6:] == [
        "10 of 12 planned trials have results (1 failed, 1 not run); what follows may change.",
        *(
            f"{metric}: topk q=1 and topk q=5 are better than base; topk q=50 is not testable "
            "against base."
            for metric in ("auroc", "tpr@5")
        ),
        "Criterion auroc >= 0.75: met by topk q=5, of 4 configurations; 1 still open.",
        "Criterion tpr@5[domain=A] > 0.9: met by none of 4 configurations; 1 still open.",
        "Criterion latency_ms <= 6: met by base, topk q=1, of 4 configurations; 1 still open.",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_asked_for_comes_alone_and_in_full(
    invoke: Invoke, store: Store, kind: str
) -> None:
    text = ok(invoke, "--table", kind)
    signs = {
        "results": "weighted equally", "comparison": "d_z", "ablation": "topk over q",
        "criteria": "Success criteria", "costs": "GPU hours",
    }  # fmt: skip
    assert [name for name, sign in signs.items() if sign in text] == [kind]


def test_groups_are_compared_when_asked(invoke: Invoke, store: Store) -> None:
    text = ok(invoke, "--table", "comparison", "--per-group", "--metric", "auroc")
    rows = [line.split()[2] for line in text.splitlines() if line.startswith("topk  ")]
    assert rows == ["A", "B", "mean"] * 3


def test_a_margin_brings_equivalence_in_points(invoke: Invoke, store: Store) -> None:
    text = ok(invoke, "--table", "comparison", "--metric", "auroc", "--margin", "auroc=0.005")
    assert "TOST p" in text
    assert "against the margin of 0.5 points, by Holm" in text


def test_another_baseline_is_compared_with(invoke: Invoke, store: Store) -> None:
    text = ok(invoke, "--baseline", "topk q=5", "--metric", "auroc")
    assert "auroc in points against topk q=5" in text
    assert "base and topk q=1 are worse than topk q=5" in text


def test_a_baseline_of_several_configurations_is_told_in_the_answer(
    invoke: Invoke, store: Store
) -> None:
    text = ok(invoke, "--baseline", "topk")
    assert (
        "'topk' has 3 configurations; name one of them: 'topk q=1', 'topk q=5', 'topk q=50'."
        in (text)
    )


def test_the_divisor_of_spreads_is_said_and_changes_spreads_alone(
    invoke: Invoke, store: Store
) -> None:
    sample, population = (ok(invoke, "--ddof", d, "--table", "results") for d in (1, 0))
    assert "sample standard deviation (ddof = 1)" in sample
    assert "population standard deviation (ddof = 0)" in population

    def spreads(text: str) -> list[float]:
        return [float(x) for x in re.findall(r"±(\d+\.\d+)", text)]

    # Two decimals are printed.
    assert spreads(population) == pytest.approx(
        [(2 / 3) ** 0.5 * x for x in spreads(sample)], abs=0.011
    )
    assert re.findall(r"(\d+\.\d+)±", sample) == re.findall(r"(\d+\.\d+)±", population)


def test_how_far_test_items_explain_a_difference_is_asked_for(invoke: Invoke, store: Store) -> None:
    text = ok(invoke, "--images", "--table", "comparison")
    assert "95 % CI of test items" in text
    assert "test items: paired DeLong, trained models given" in text
    assert "test items" not in ok(invoke, "--table", "comparison")


@pytest.mark.slow
def test_figures_and_reports_are_written_where_they_are_asked_for(
    invoke: Invoke, store: Store, tmp_path: Path
) -> None:
    status, out, err = invoke(
        "report", "--figures", "fig", "--out", "deep/report.md", "--format", "md"
    )
    assert (status, out) == (0, "")
    assert re.fullmatch(r"\d+ figures in fig\n", err)
    assert {path.suffix for path in (tmp_path / "fig").iterdir()} == {".svg", ".pdf"}
    assert (tmp_path / "deep" / "report.md").read_text() == ok(invoke, "--format", "md")
    page = Path(ok(invoke, "--format", "html").strip())
    assert page.name == "report.html"
    assert page.read_text(encoding="utf-8").startswith("<!")


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], "no sweep 'nosuch'; known: looked_at"),
        (["--metric", "aurc"], "unknown metric 'aurc'; did you mean 'auroc'?"),
        (["--metric", "auroc[domain=Z]"], "no group 'Z'"),
        (["--baseline", "topkk"], "no arm 'topkk'; did you mean 'topk'?"),
        (["--baseline", "topk q=6"], "no such configuration; did you mean 'topk q=5'?"),
        (["--margin", "auroc"], "write METRIC=X"),
        (["--margin", "auroc=-1"], "write METRIC=X"),
        (["--margin", "auroc=nan"], "write METRIC=X"),
        (["--margin", "auroc=5"], "half a point is 0.005"),
        (["--margin", "auroc[domain=A]=0.1"], "name the metric alone"),
        (["--margin", "aurok=0.1"], "no such metric; did you mean 'auroc'?"),
        (["--ablation", "qq"], "did you mean 'q'?"),
        (["--ablation", "q,"], "write KNOB or KNOB,KNOB"),
        (["--ablation", "q,q"], "names 'q' twice"),
        (["--ablation", "a,b,c"], "one knob or two"),
        (["--part", "select"], "has no configurations to select"),
        (["--out", "results"], "results: cannot be written"),
        (["--figures", "results/sweeps/looked_at/plan.json"], "plan.json: cannot be written"),
        (["--out", "results/sweeps/looked_at/plan.json/x"], "cannot be written"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_message_and_status_2(
    invoke: Invoke, store: Store, arguments: list[str], words: str
) -> None:
    before = (store.root / "sweeps" / "looked_at" / "plan.json").read_bytes()
    status, out, err = invoke("report", *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert (store.root / "sweeps" / "looked_at" / "plan.json").read_bytes() == before


@pytest.mark.parametrize("form", ["terminal", "md", "tex", "csv", "json", "html"])
def test_a_sweep_of_which_nothing_has_finished_is_reported(
    invoke: Invoke, tmp_path: Path, form: str
) -> None:
    arms = [Arm("base", ends={1: "", 2: ""}), Arm("a", ends={1: "", 2: ""})]
    report_on(tmp_path / "results", arms, seeds=(1, 2), expect=["auroc >= 0.5"])
    text = ok(invoke, "--format", form)
    if form in ("terminal", "md"):
        assert "None of 4 planned trials has a result yet (4 not run)." in text
        assert "not run" in text
    if form == "json":
        found = strict(text)
        assert found["counts"] == {"not run": 4}
        assert found["tables"][0]["rows"][0]["cells"]["mean"]["mean"] is None
        assert {one["verdict"] for one in found["comparisons"]} == {"not testable"}
    for kind in KINDS:  # of costs there are none, which is no mistake
        asked = ("--table", kind, "--format", "terminal" if form == "html" else form)
        status, _, err = invoke("report", *asked)
        assert status == 0
        assert err in ("", f"--table {kind}: the sweep has nothing to put into it\n")


def test_one_seed_is_reported_without_spread_best_or_verdict(
    invoke: Invoke, tmp_path: Path
) -> None:
    report_on(tmp_path / "results", [Arm("base"), Arm("a", 2.0)], seeds=(1,))
    text = ok(invoke)
    assert "one seed per value, so no spread is known" in text
    assert "±" not in text
    assert not re.search(r"\d\*", text)
    assert "auroc: a is not testable against base." in text


def test_an_empty_store_is_told(invoke: Invoke, tmp_path: Path) -> None:
    Store(tmp_path / "results").create()
    status, out, err = invoke("report")
    assert (status, out) == (2, "")
    assert "no sweep was run here" in err


# --- searches, and seeds to choose by -------------------------------------------------------------


def test_people_are_shown_the_best_of_a_search_and_programs_all(
    invoke: Invoke, sweep_file: Write
) -> None:
    assert invoke("run", sweep_file(SEARCHED, "searched.yaml"), "--inline")[0] == 0
    text = ok(invoke, "--table", "results", "--table", "comparison", "--table", "criteria",
              "--table", "costs", "--importance", "none")  # fmt: skip
    found = strict(ok(invoke, "--format", "json"))
    best = set(found["tables"][0]["searches"][0]["best"])
    assert len(best) == 3
    assert {int(n) for n in re.findall(r"^drawn #(\d)", text, re.MULTILINE)} == best
    for key in ("comparisons", "criteria", "costs"):
        assert {one["number"] for one in found[key]} == {*range(6)} | (
            set() if key == "comparisons" else {None}
        )
    assert {row["verdict"] for row in found["comparisons"]} == {"not testable"}
    assert all(row["cells"]["mean"]["best"] is False for row in found["tables"][0]["rows"][1:])
    assert "Criterion auroc >= 0.6: met by" in text
    assert (
        "of 6 that a search drew reach it, on the seeds that it chose by, which is optimistic"
        in (text)
    )
    csv_rows = list(csv.DictReader(io.StringIO(ok(invoke, "--format", "csv"))))
    assert {row["number"] for row in csv_rows} == {"", *"012345"}


def test_what_is_confirmed_on_other_seeds_is_judged_and_what_it_was_chosen_from_is_not(
    invoke: Invoke, sweep_file: Write
) -> None:
    text = SEARCHED.replace("[1, 2, 3]", "{select: [1, 2], confirm: [7, 8, 9]}")
    assert invoke("run", sweep_file(text, "searched.yaml"), "--inline")[0] == 0
    shown = strict(ok(invoke, "--format", "json"))
    assert {row["part"] for row in shown["tables"][0]["rows"]} == {"confirm"}
    assert {tuple(row["seeds"]) for row in shown["comparisons"]} == {(7, 8, 9)}
    assert {row["family_size"] for row in shown["comparisons"] if row["group"] == "mean"} == {1}
    assert not any(one["optimistic"] for one in shown["criteria"])
    assert {one["n"] for one in shown["costs"]} == {3}
    before = strict(ok(invoke, "--format", "json", "--part", "select"))
    assert {row["part"] for row in before["tables"][0]["rows"]} == {"select"}
    assert {row["number"] for row in before["tables"][0]["rows"]} == {None, *range(6)}
    assert {row["verdict"] for row in before["comparisons"]} == {"not testable"}


# --- names and widths -----------------------------------------------------------------------------


def rendered(markdown: str) -> tuple[list[list[str]], list[str]]:
    """Cells of tables by row and items of lists, as a reader of GitHub's Markdown sees them."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    rows: list[list[str]] = []
    items: list[str] = []
    for before, token in pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if token.type != "inline":
            continue
        known = {"text": "", "strong_open": "", "strong_close": ""}
        text = "".join(
            child.content if child.type == "text" else known.get(child.type, f"<{child.type}>")
            for child in token.children or []
        )
        if before.type in ("td_open", "th_open"):
            rows[-1].append(text)
        elif token.level > 1:
            items.append(text)
    return rows, items


def test_hostile_names_are_read_literally_in_markdown(tmp_path: Path) -> None:
    arms = [Arm(name, 1 + 0.2 * n, knobs={"k|*": name} if n else {})
            for n, name in enumerate((*HOSTILE, "1. first", "- item", "+", "# h"))]  # fmt: skip
    made = report_on(tmp_path / "r", arms, groups=("A|B", "_c_"), expect=["auroc >= 0.8"])
    summary = summarize(made, made.sweep())
    sheets = sheets_of(summary)
    rows, items = rendered(write(sheets, "md"))
    expected = [
        [*map(str.strip, line)]
        for sheet in sheets
        for line in (sheet.header, *([c.text + c.mark for c in row] for row in sheet.rows))
    ]
    assert rows == expected
    assert items == [line.strip() for sheet in sheets for line in sheet.caption]
    assert rendered(said(summary.answer, "md"))[1] == list(summary.answer)


@given(st.text("\\`*_{}[]()<>#+-.!|~&;:$\"'=^@/ax1 ", min_size=1, max_size=9))
def test_any_text_is_read_literally_in_markdown(text: str) -> None:
    shown = " ".join(text.split())  # Markdown joins spaces
    if not shown:
        return
    sheet = Sheet("results", "t", ("h", shown), 1, ((Shown(shown), Shown(shown, best=True)),),
                  (shown, f"  {shown}"))  # fmt: skip
    assert rendered(write([sheet], "md")) == ([["h", shown], [shown, shown]], [shown, shown])


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [60, 80, 200, None])
def test_nothing_is_cut_at_any_width_of_the_terminal(
    tmp_path: Path, width: int | None, color: bool
) -> None:
    arms = [Arm("基线", 1.0), Arm("naïve", 1.2, knobs={"学习率": 1e-4}), Arm("b", 1.5)]
    groups = [f"类别{n:02}" for n in range(12)]
    made = report_on(tmp_path / "r", arms, groups=groups, items=20, expect=["auroc >= 0.8"])
    summary = summarize(made, made.sweep())
    sheets = sheets_of(summary)
    text = write(sheets, "terminal", width=width, color=color)
    assert ("\x1b[" in text) == color
    plain = ANSI.sub("", text)
    for sheet in sheets:
        for cell in (cell for row in sheet.rows for cell in row):
            assert cell.text.split(" (")[0] in plain
        for line in (*sheet.header, sheet.title):
            assert line in plain
        for line in sheet.caption:
            assert " ".join(line.split()) in " ".join(plain.split())
    if width is not None:
        assert max(map(cell_len, plain.splitlines())) <= width


def test_sentences_are_broken_between_words_and_longer_words_are_left_whole() -> None:
    text = "  topk, seed 2: failed: 内存不足 of " + "x" * 30 + " and more"
    lines = wrapped(text, 24)
    assert lines == [
        "  topk, seed 2: failed:",
        "    内存不足 of",
        "    " + "x" * 30,
        "    and more",
    ]
    assert wrapped(text, None) == [text]
    assert said(["one two", "three"], "terminal", width=4) == "one\n  two\nthree\n"


def test_words_in_a_column_are_not_taken_apart_at_a_parenthesis() -> None:
    rows = ((Shown("a"), Shown("met (not sure)")), (Shown("b"), Shown("open")))
    text = write([Sheet("criteria", "t", ("x", "result"), 1, rows)], "terminal")
    assert text.splitlines()[3:5] == ["a  met (not sure)", "b            open"]


def test_columns_line_up_where_names_are_wide() -> None:
    rows = ((Shown("基线"), Shown("1.00±0.10", best=True)), (Shown("ab"), Shown("10.00", mark="†")))
    text = write([Sheet("results", "t", ("arm", "値"), 1, rows)], "terminal")
    assert text.splitlines()[2:5] == ["arm          値", "基线  1.00±0.10*", "ab        10.00†"]
