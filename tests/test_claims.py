"""A printed number is called wrong only where no rounding and no convention can give it."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import render
from analysis.claimed import json_of, sheets_of
from analysis.claims import Asked, Checked, check
from analysis.compare import unpaired
from analysis.naming import Named, Names, metric_in, metric_of
from analysis.report import sheets_of as report_sheets
from analysis.rounding import agreement, std_range
from analysis.summary import summarize
from hdsweep.errors import HdsweepError, SpecError
from hdsweep.imported import Columns, keep, read_results
from hdsweep.planned import PlannedSearch
from hdsweep.store import Store
from tests.conftest import Invoke
from tests.reported import HOSTILE, Arm, report_on

GOLDEN = Path(__file__).parent / "golden"
TABLE = GOLDEN / "published_table.csv"

WRONG_MEANS = {
    ("baseline", "auroc", "D"), ("topk", "tpr@1", "C"), ("topk", "tpr@1", "D"),
    ("topk", "tpr@5", "B"), ("topk", "tpr@5", "C"), ("topk", "tpr@5", "D"),
}  # fmt: skip
WRONG_STDS = {
    ("baseline", "auroc", "D"), ("baseline", "tpr@1", "A"), ("baseline", "tpr@1", "B"),
    ("baseline", "tpr@1", "C"), ("baseline", "tpr@1", "D"), ("baseline", "tpr@5", "C"),
    ("topk", "auroc", "A"), ("topk", "auroc", "C"), ("topk", "auroc", "D"),
    ("topk", "tpr@1", "A"), ("topk", "tpr@1", "C"), ("topk", "tpr@1", "D"),
    ("topk", "tpr@5", "A"), ("topk", "tpr@5", "C"), ("topk", "tpr@5", "D"),
    ("topk", "tpr@5", "mean"),
}  # fmt: skip
ROUNDED_MEANS = {
    ("topk", "auroc", "D"), ("topk", "tpr@1", "A"), ("topk", "tpr@1", "mean"),
    ("topk", "tpr@5", "A"), ("topk", "tpr@5", "mean"),
}  # fmt: skip
ROUNDED_STDS = {("topk", "auroc", "mean"), ("topk", "tpr@1", "B"), ("topk", "tpr@5", "B")}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("published") / "results")
    rows = read_results(GOLDEN / "published_rows.csv", Columns())
    keep(store, "published", rows, baseline="baseline")
    return store


def checked(store: Store, path: Path, **asked: object) -> Checked:
    return check(store, store.sweep(None), path, Asked(**asked))  # type: ignore[arg-type]


def of(found: Checked, what: str, *verdicts: str) -> set[tuple[str, str, str]]:
    return {
        (c.configuration.partition(" ")[0], c.metric, c.group)
        for c in found.claims
        if c.what == what and c.verdict in verdicts
    }


def written(tmp_path: Path, text: str, name: str = "t.md") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


# --- the published table --------------------------------------------------------------------------


def test_every_number_of_the_published_table_that_nothing_can_give_is_found_and_no_other(
    published: Store,
) -> None:
    found = checked(published, TABLE)
    assert len(found.claims) == 60
    assert of(found, "mean", "wrong") == WRONG_MEANS
    assert of(found, "std", "wrong") == WRONG_STDS
    assert of(found, "mean", "rounding") == ROUNDED_MEANS
    assert of(found, "std", "rounding") == ROUNDED_STDS
    assert found.counts == {"holds": 30, "rounding": 8, "wrong": 22, "not recomputable": 0}
    assert found.fits == {1: 2, 0: 10}


HALF = Fraction(1, 200)


def by_fractions() -> Iterator[tuple[str, tuple[str, str, str], bool]]:
    """What is printed, where, and whether anything can give it: exactly, and by brute force.

    Squares stand for roots, and every corner of what five rounded values may be is tried.
    """
    rows: dict[tuple[str, str, str], list[Fraction]] = {}
    for line in lines_of("published_rows.csv"):
        key = (line["method"], line["metric"], line["domain"])
        rows.setdefault(key, []).append(Fraction(line["value"]))
    for line in lines_of("published_table.csv"):
        key = (line["method"], line["metric"], line["domain"])
        x = rows[key]
        # Off by half a digit of the inputs and half of its own, or cut off: a digit in all.
        yield "mean", key, abs(Fraction(line["mean"]) - sum(x) / len(x)) <= 2 * HALF
        printed = Fraction(line["std"])
        above, below = (printed + HALF) ** 2, max(printed - HALF, Fraction(0)) ** 2
        cut = (max(printed - 2 * HALF, Fraction(0)) ** 2, (printed + 2 * HALF) ** 2)
        high = max(
            squares([value + HALF * sign for value, sign in zip(x, signs, strict=True)])
            for signs in itertools.product((-1, 1), repeat=len(x))
        )
        low = min(filter(None, map(partial(drawn, x), itertools.product((-1, 0, 1), repeat=5))))
        yield (
            "std",
            key,
            any(
                (low / n <= above and below <= high / n) or cut[0] < squares(x) / n < cut[1]
                for n in (len(x), len(x) - 1)
            ),
        )


def drawn(x: list[Fraction], signs: tuple[int, ...]) -> Fraction | None:
    """Squares where values with a sign move by half a digit and the others to the mean of these.

    The least is among them: there every value is at an end of its range or at the mean.
    """
    ends = [value + HALF * sign for value, sign in zip(x, signs, strict=True) if sign]
    if not ends:
        return None  # none of the five agree to the last digit
    mean = sum(ends, Fraction(0)) / len(ends)
    still = [value for value, sign in zip(x, signs, strict=True) if not sign]
    return squares(ends) if all(abs(value - mean) <= HALF for value in still) else None


def squares(x: list[Fraction]) -> Fraction:
    mean = sum(x, Fraction(0)) / len(x)
    return sum(((value - mean) ** 2 for value in x), Fraction(0))


def lines_of(name: str) -> list[dict[str, str]]:
    with (GOLDEN / name).open() as file:
        return list(csv.DictReader(file))


def values_of(arm: str, metric: str, group: str) -> np.ndarray:
    wanted = (arm, metric, group)
    return np.array(
        [
            float(line["value"])
            for line in lines_of("published_rows.csv")
            if (line["method"], line["metric"], line["domain"]) == wanted
        ]
    )


def test_exact_fractions_call_the_same_numbers_wrong() -> None:
    judged = list(by_fractions())
    assert {key for what, key, right in judged if what == "mean" and not right} == WRONG_MEANS
    assert {key for what, key, right in judged if what == "std" and not right} == WRONG_STDS


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("form", ["md", "tex", "csv"])
def test_what_a_report_prints_holds_in_every_format(
    published: Store, tmp_path: Path, form: str, ddof: int
) -> None:
    summary = summarize(published, published.sweep(None), ddof=ddof)
    text = (
        render.render(summary.tables, "csv")
        if form == "csv"
        else render.write(report_sheets(summary, ("results", "comparison", "costs")), form)
    )
    found = checked(published, written(tmp_path, text, f"own.{form}"))
    assert found.counts == {"holds": 60, "rounding": 0, "wrong": 0, "not recomputable": 0}
    assert found.fits[ddof] == 30
    assert found.fits[1 - ddof] < 30


# --- papers ---------------------------------------------------------------------------------------

PAPER = """TPR@FPR=1 % on four domains

| Method | A | B | C | D | Avg. |
|---|---|---|---|---|---|
| Baseline | 94.1 | 94.6 | 76.4 | 93.4 | 89.6 |
| Top-K (q=5) | **94.63±0.13** | 94.9 | 79.2 | 93.5 | 90.5 |
| PatchCore [12] | 91.0±1.0 | 90±2 | 70.1 | — | 84.0 ± 0.9 |
"""


def test_names_of_papers_are_understood_and_what_is_unknown_is_not_called_wrong(
    published: Store, tmp_path: Path
) -> None:
    found = checked(published, written(tmp_path, PAPER))
    ours = [c for c in found.claims if c.configuration]
    assert [c.verdict for c in ours] == ["holds"] * 11
    assert {c.configuration for c in ours} == {"baseline", "topk q=5"}
    assert {(c.column, c.group) for c in ours} >= {("A", "A"), ("Avg.", "mean")}
    others = [c for c in found.claims if not c.configuration]
    assert {c.verdict for c in others} == {"not recomputable"}
    assert {c.why for c in others} == {
        "no configuration 'PatchCore [12]'; known: baseline, topk q=5"
    }


def test_the_same_table_holds_as_latex_with_spanning_headers(
    published: Store, tmp_path: Path
) -> None:
    text = r"""\begin{table}\caption{Ours}\begin{tabular}{lcrrrr}\toprule
 & & \multicolumn{2}{c}{AUROC $\uparrow$} & \multicolumn{2}{c}{TPR@1\%} \\ \cmidrule(lr){3-4}
Method & $q$ & A & Mean & A & Mean \\ \midrule
\textsc{Baseline} & --- & $98.7$ & 98.2 & $94.12_{\pm 0.13}$ & \underline{89.6} \\
\textsc{TopK} & 5 & 99.1 & \textbf{98.6} & 94.63 (0.13) & 90.5 \\
\bottomrule\end{tabular}\end{table}"""
    found = checked(published, written(tmp_path, text, "t.tex"))
    assert len(found.claims) == 10
    assert {c.verdict for c in found.claims} == {"holds"}
    assert [c.metric for c in found.claims[:4]] == ["auroc", "auroc", "tpr@1", "tpr@1"]


def test_fractions_and_percent_are_told_apart_by_the_records(
    published: Store, tmp_path: Path
) -> None:
    text = "auroc\n\n| arm | A | mean |\n|-|-|-|\n| baseline | 0.9874±0.0010 | 0.982 |\n"
    found = checked(published, written(tmp_path, text))
    assert [c.verdict for c in found.claims] == ["holds"] * 3
    assert found.claims[0].recomputed == pytest.approx(0.98742, abs=1e-12)
    forced = checked(published, written(tmp_path, text), percent=True)
    assert forced.claims[0].verdict == "wrong"


def test_what_the_caller_says_of_labels_goes_before_what_they_look_like(
    published: Store, tmp_path: Path
) -> None:
    text = "| x | Score | A |\n|-|-|-|\n| Ours=best | 94.63 | 1.0 |\n| Mystery | 5 | 2.0 |\n"
    named = Named(
        columns={"Score": "tpr@1[domain=A]", "A": "-"},
        rows={"Ours=best": "topk", "Mystery": "-"},
    )
    (claim,) = checked(published, written(tmp_path, text), named=named).claims
    assert (claim.configuration, claim.metric, claim.group) == ("topk q=5", "tpr@1", "A")
    assert claim.verdict == "holds"


def test_a_column_of_groups_needs_a_metric(published: Store, tmp_path: Path) -> None:
    path = written(tmp_path, "| arm | A |\n|-|-|\n| baseline | 98.7 |\n")
    with pytest.raises(SpecError, match="say --metric"):
        checked(published, path)
    (claim,) = checked(published, path, named=Named(metric="AUROC")).claims
    assert claim.verdict == "holds"


def test_results_of_another_paper_are_compared_unpaired_and_judged_by_nobody(
    published: Store, tmp_path: Path
) -> None:
    path = written(tmp_path, PAPER)
    found = checked(published, path, theirs={"PatchCore": "topk q=5"}, n=3)
    assert len(found.claims) == 11
    first, *_ = found.theirs
    topk = values_of("topk", "tpr@1", "A")
    test = unpaired(topk.mean(), topk.std(ddof=1), 5, 91.0, 1.0, 3)
    assert first.found is not None
    assert first.found.p == pytest.approx(test.p, rel=1e-9)  # sums of floats in another order
    assert first.found.difference == pytest.approx(topk.mean() - 91, abs=1e-9)
    by_column = {one.column: one for one in found.theirs}
    assert by_column.keys() == {"A", "B", "C", "Avg."}
    assert by_column["C"].why == "the table prints no standard deviation"
    text = render.write(sheets_of(found))
    assert "unpaired: other seeds, and maybe other data and code" in text


def test_a_difference_without_the_number_of_their_runs_has_no_test(
    published: Store, tmp_path: Path
) -> None:
    found = checked(published, written(tmp_path, PAPER), theirs={"PatchCore [12]": "baseline"})
    assert {one.why for one in found.theirs if one.std} == {
        "the table prints no number of runs; say it by --n"
    }
    assert all(one.found and one.found.p is None for one in found.theirs)


# --- holes ----------------------------------------------------------------------------------------


def test_a_table_over_seeds_that_are_not_there_is_not_called_wrong(tmp_path: Path) -> None:
    rows = "arm,seed,domain,auroc\n" + "".join(
        f"x,{seed},A,{value}\n" for seed, value in enumerate(("90.0", "92.0", "", "94.0"))
    )
    store = Store(tmp_path / "results")
    keep(store, "holes", read_results(written(tmp_path, rows, "r.csv"), Columns()))

    def verdict(cell: str, **asked: object) -> tuple[str, str]:
        text = f"auroc\n\n| arm | A |\n|-|-|\n| x | {cell} |\n"
        claim = checked(store, written(tmp_path, text), **asked).claims[0]
        return claim.verdict, claim.why

    lacks = "1 of 4 seeds have no value: not in the file"
    assert verdict("92.0") == ("holds", lacks)
    assert verdict("93.0") == ("not recomputable", lacks)
    assert verdict("93.0 (n=3/4)")[0] == "wrong"
    assert verdict("92.0 (n=4)") == ("holds", "printed over 4 seeds, and the records have 3")
    assert verdict("91.0", seeds=(0, 1)) == ("holds", "")
    assert verdict("91.4", seeds=(0, 1))[0] == "wrong"


def test_one_seed_has_a_mean_and_no_spread(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    rows = written(tmp_path, "arm,seed,domain,auroc\nx,1,A,90.0\n", "r.csv")
    keep(store, "one", read_results(rows, Columns()))
    found = checked(store, written(tmp_path, "auroc\n\n|arm|A|\n|-|-|\n|x|90.0±0.3|\n"))
    assert [c.verdict for c in found.claims] == ["holds", "not recomputable"]


def test_trials_that_were_run_are_exact_so_only_the_table_rounds(tmp_path: Path) -> None:
    store = report_on(tmp_path / "results", (Arm("weak", 0.5), Arm("strong", 3.0, knobs={"k": 1})))
    summary = summarize(store, store.sweep(None))
    path = written(tmp_path, render.render(summary.tables, "md"))
    found = checked(store, path)
    assert (found.counts["holds"], len(found.claims)) == (24, 24)
    # An auroc that is a digit off is wrong: nothing excuses it.
    text = path.read_text()
    mean = next(c.printed for c in found.claims if c.what == "mean" and c.metric == "auroc")
    off = str(Decimal(mean) + Decimal("0.02"))
    path.write_text(text.replace(mean, off, 1))
    assert [c.printed for c in checked(store, path).claims if c.verdict == "wrong"] == [off]


def test_reports_of_names_that_are_markup_hold_too(tmp_path: Path) -> None:
    arms = [
        Arm(name, 1 + place / 4, knobs={"k": place, "lr": place / 3} if place % 2 else {})
        for place, name in enumerate(HOSTILE)
    ]
    arms += [Arm("same", 1.5, knobs={"k": 1}), Arm("Same", 1.7, knobs={"k": 1}, ends={2: "boom"})]
    groups = ("A|1", "mean of B", "_c_")
    store = report_on(tmp_path / "results", arms, groups=groups)
    summary = summarize(store, store.sweep(None), ("auroc", "latency_ms"))
    sheets = report_sheets(summary, ("results", "comparison", "criteria", "costs"))
    for form in ("md", "tex", "csv"):
        text = render.render(summary.tables, "csv")
        text = text if form == "csv" else render.write(sheets, form)
        found = checked(store, written(tmp_path, text, f"own.{form}"))
        assert len({claim.configuration for claim in found.claims}) == len(arms)
        assert [c for c in found.claims if c.verdict != "holds"] == []
        assert len(found.claims) >= len(arms) * 10


def test_what_a_search_drew_is_found_by_its_number_or_its_knobs(tmp_path: Path) -> None:
    arms = [Arm("base")] + [Arm("tuned", 1 + n / 5, knobs={"lr": 0.01 / 3**n}) for n in range(3)]
    store = report_on(tmp_path / "results", arms)
    sweep = store.sweep(None)
    cells = [
        replace(cell, study="s", number=place - 1) if place else cell
        for place, cell in enumerate(sweep.cells)
    ]
    search = PlannedSearch("s", "tuned", {}, 3, ("auroc",), (True,), "mean", "tpe")
    sweep = replace(sweep, cells=tuple(cells), searches=(search,))
    rows = "| tuned #1 | 1 |\n| Tuned (lr=0.003333) | 1 |\n| tuned | 1 |\n"
    text = f"auroc\n\n| arm | A |\n|-|-|\n{rows}"
    first, second, third = check(store, sweep, written(tmp_path, text)).claims
    assert first.configuration == second.configuration == "tuned #1 lr=0.003333"
    assert third.why.startswith("'tuned' may be 'tuned #0 lr=0.01', 'tuned #1 lr=0.003333', ")
    tables = summarize(store, sweep).tables
    found = check(store, sweep, written(tmp_path, render.render(tables, "csv"), "own.csv"))
    assert found.counts["holds"] == len(found.claims) == 4 * 2 * 3 * 2


# --- rounding -------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(9000, 9999), min_size=2, max_size=8),
    st.integers(1, 4),
    st.sampled_from([0, 1]),
)
def test_a_number_that_is_rounded_from_its_values_always_holds(
    values: list[int], digits: int, ddof: int
) -> None:
    x = np.array(values) / 100
    for value in (float(np.mean(x)), float(np.std(x, ddof=ddof))):
        assert agreement(Decimal(f"{value:.{digits}f}"), value, value, value)[0] == "holds"


@given(
    st.lists(st.integers(9000, 9040), min_size=2, max_size=8),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 1]),
)
def test_a_spread_of_exact_values_lies_in_the_range_of_their_roundings(
    values: list[int], random: object, ddof: int
) -> None:
    rounded = np.array(values) / 100
    half = 0.005
    low, high = std_range(rounded, half, ddof)
    for _ in range(20):
        exact = rounded + [random.uniform(-half, half) for _ in values]  # type: ignore[attr-defined]
        assert low - 1e-12 <= np.std(exact, ddof=ddof) <= high + 1e-12  # floats of size 90
    corners = [
        np.std(rounded + half * np.array(signs), ddof=ddof)
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    assert high == pytest.approx(max(corners), abs=1e-10)  # sums of squares of numbers near 90


@pytest.mark.parametrize(
    ("printed", "value", "verdict"),
    [
        ("0.12", 0.125, "holds"), ("0.13", 0.125, "holds"), ("0.12", 0.1251, "rounding"),
        ("0.12", 0.1299, "rounding"), ("0.12", 0.1301, "wrong"), ("0.13", 0.1201, "rounding"),
        ("0.13", 0.1199, "wrong"), ("90", 90.4, "holds"), ("90", 91.0, "wrong"),
        ("0.00", 0.004, "holds"), ("-0.5", -0.46, "holds"),
    ],
)  # fmt: skip
def test_ties_go_either_way_and_digits_may_be_cut_off(
    printed: str, value: float, verdict: str
) -> None:
    assert agreement(Decimal(printed), value, value, value)[0] == verdict


def test_spreads_that_are_standard_errors_are_told_as_such(
    published: Store, tmp_path: Path
) -> None:
    lines = ["tpr@1", "", "| arm | A | B | C | D |", "|-|-|-|-|-|"]
    for arm in ("baseline", "topk"):
        of_groups = [values_of(arm, "tpr@1", group) for group in "ABCD"]
        texts = [f"{x.mean():.3f}±{x.std(ddof=1) / np.sqrt(5):.3f}" for x in of_groups]
        lines.append(f"| {arm} | " + " | ".join(texts) + " |")
    found = checked(published, written(tmp_path, "\n".join(lines)))
    assert any("8 of them are standard errors of the mean" in note for note in found.notes)


# --- names ----------------------------------------------------------------------------------------

NAMES = Names(("A", "B"), ("q",), ("latency_ms",), ("auroc",))


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("AUROC", "auroc"), ("AUROC ↑", "auroc"), ("I-AUROC (%)", "auroc"), ("AUC", "auroc"),
        ("TPR@FPR=1%", "tpr@1"), ("TPR @ 1 %", "tpr@1"), ("TPR@1%FPR", "tpr@1"),
        ("tpr@FPR=0.5 %", "tpr@0.5"), ("Pixel AUROC", "pixel_auroc"), ("PRO", "aupro"),
        ("Latency ms", "latency_ms"), ("F1-max", "f1"), ("Acc.", "accuracy"),
    ],
)  # fmt: skip
def test_metrics_are_known_by_the_names_of_papers(text: str, metric: str) -> None:
    assert metric_of(text, NAMES) == (metric, None)


def test_a_title_names_a_metric_only_if_it_names_one() -> None:
    assert metric_in("Results: TPR@FPR=1 % on all domains", NAMES) == "tpr@1"
    assert metric_in("auroc in %, larger is better", NAMES) == "auroc"
    assert metric_in("AUROC and TPR@1%", NAMES) is None
    assert metric_in("Main results", NAMES) is None


# --- what is told ---------------------------------------------------------------------------------


def test_claims_for_programs_hold_all_that_people_are_shown(published: Store) -> None:
    found = checked(published, TABLE)
    value = json.loads(json.dumps(json_of(found)))
    assert value["counts"]["wrong"] == 22
    assert len(value["claims"]) == 60
    assert value["claims"][0] | {"recomputed": 0} == {
        "line": 2, "row": "baseline", "column": "auroc A", "what": "mean",
        "configuration": "baseline", "metric": "auroc", "group": "A", "printed": "98.74",
        "recomputed": 0, "ddof": [], "n": 5, "verdict": "holds", "why": "",
    }  # fmt: skip
    text = render.write(sheets_of(found, all_cells=False), "md")
    assert "22 wrong" in text
    assert text.count("| **wrong") == len(WRONG_MEANS | WRONG_STDS)


def test_a_table_without_any_known_name_is_refused_with_those_there_are(
    published: Store, tmp_path: Path
) -> None:
    for text, message in (
        ("auroc\n\n|arm|A|\n|-|-|\n|other|90.0|\n", "no row has the name of a configuration"),
        ("|arm|foo|\n|-|-|\n|baseline|90.0|\n", "no column is a metric or a group"),
        ("auroc\n\n|arm|A|\n|-|-|\n|baseline|—|\n", "no cell of its tables holds a number"),
    ):
        with pytest.raises(HdsweepError, match=message):
            checked(published, written(tmp_path, text))
    path = written(tmp_path, PAPER)
    for asked, message in (
        (Asked(named=Named(columns={"E": "A"})), "--map 'E'.* prints no such label"),
        (Asked(named=Named(columns={"A": "bb"})), "neither a metric, a group"),
        (Asked(named=Named(rows={"Baselin": "topk"})), "did you mean 'Baseline'"),
        (Asked(named=Named(rows={"Baseline": "topp"})), "no configuration 'topp'"),
        (Asked(named=Named(metric="foo")), "unknown metric 'foo'"),
        (Asked(theirs={"Patch": "topk"}), "--published 'Patch'.* prints no such label"),
        (Asked(seeds=(7,)), "no seed 7 in the sweep"),
    ):
        with pytest.raises(SpecError, match=message):
            check(published, published.sweep(None), path, asked)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_ends_with_1_where_a_number_is_wrong(
    published: Store, invoke: Invoke, tmp_path: Path
) -> None:
    status, out, _ = invoke("claims", TABLE, "--store", published.root)
    assert status == 1
    assert "30 of 60 printed numbers hold, 8 rounding, 22 wrong" in out
    paper = written(tmp_path, PAPER)
    options = ("--rows", "Top-K (q=5)=topk q=5", "--published", "PatchCore=baseline", "--n", "3")
    status, out, _ = invoke("claims", paper, "--store", published.root, "--brief", *options)
    assert status == 0
    assert out.startswith("t.md against the records of published: 11 of 11 printed numbers hold\n")
    assert "baseline  94.12±0.1304 (n=5)" in out
    told = ("--map", "Avg.=tpr@1[domain=A]", "--format", "json")
    status, out, _ = invoke("claims", paper, "--store", published.root, *told)
    assert (status, json.loads(out)["counts"]["wrong"]) == (1, 2)


def test_mistakes_are_one_message_and_exit_2(
    published: Store, invoke: Invoke, tmp_path: Path
) -> None:
    paper = written(tmp_path, PAPER)
    for arguments, message in (
        (("none.md",), "none.md: cannot be read"),
        ((tmp_path,), "cannot be read: Is a directory"),
        ((paper, "--sweep", "other"), "no sweep 'other'"),
        ((paper, "--seeds", "a"), "--seeds a: write numbers"),
        ((paper, "--map", "A"), "--map A: write LABEL=WHAT"),
        ((paper, "--rows", "=topk"), "--rows =topk: write LABEL=WHAT"),
    ):
        status, out, err = invoke("claims", *arguments, "--store", published.root)
        assert (status, out) == (2, "")
        assert message in err
        assert "Traceback" not in err


def test_a_file_with_a_row_per_seed_is_no_table_of_claims(published: Store) -> None:
    rows = Path(__file__).parent / "golden" / "published_rows.csv"
    with pytest.raises(SpecError, match=r"has a row per seed.*hdsweep import"):
        checked(published, rows)
