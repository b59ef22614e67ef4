"""The sentences of a report say what its numbers support, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from analysis.answers import answer
from analysis.best import marked
from analysis.judged import comparison
from analysis.runs import Differs
from analysis.sheets import Sheet
from analysis.summary import Summary, summarize
from analysis.tables import main_table
from analysis.verdicts import Comparisons, compare
from tests.framing import framed
from tests.reported import Arm, report_on

NONE = Comparisons("", None, 0.05, ())
Floats = NDArray[np.float64]


def said(frame: pd.DataFrame, **other: object) -> tuple[str, ...]:
    return answer(compare(frame, baseline="base", **other), (), (), {"ok": 1})  # type: ignore[arg-type]


def shifted(*shifts: float, seeds: int = 5, groups: int = 1, spread: float = 0.004) -> Floats:
    """Configurations (1, cells, seeds, groups) that differ from the first by about ``shifts``."""
    noise = np.random.default_rng(11).normal(0, spread, (1, len(shifts) + 1, seeds, groups))
    return 0.8 + np.array([0, *shifts])[None, :, None, None] + noise


# --- how far it is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "sentences"),
    [
        ({"ok": 6}, ()),
        ({}, ()),
        (
            {"ok": 3, "not run": 2, "failed": 1},
            ("3 of 6 planned trials have results (2 not run, 1 failed); what follows may change.",),
        ),
        (
            {"ok": 5, "diverged": 1},
            ("5 of 6 planned trials have results (1 diverged).",),
        ),
        ({"not run": 4}, ("None of 4 planned trials has a result yet (4 not run).",)),
        ({"failed": 4}, ("None of 4 planned trials has a result (4 failed).",)),
    ],
)
def test_the_first_sentence_says_what_is_missing(
    counts: dict[str, int], sentences: tuple[str, ...]
) -> None:
    assert answer(NONE, (), (), counts) == sentences


def test_what_may_explain_a_difference_is_told_before_the_verdicts_and_the_rest_is_not() -> None:
    differs = [
        Differs("max_steps", {"100": ("base",), "200": ("a", "b")}, serious=True),
        Differs("host", {"n1": ("base",), "n2": ("a",)}, serious=False),
    ]
    found = answer(compare(framed(shifted(0.1), arms=["base", "a"], groups=["A"]),
                           baseline="base"), (), differs, {"ok": 9, "failed": 1})  # fmt: skip
    assert found[1] == "Caution, arms differ in max_steps: 100 (base), 200 (a, b)."
    assert found[2].startswith("auroc: a is better than base (+9.77 points")
    assert len(found) == 3


# --- verdicts -------------------------------------------------------------------------------------


def test_each_verdict_has_its_words_and_its_numbers_when_it_is_about_one() -> None:
    frame = framed(shifted(0.1, -0.1, 0.002), arms=["base", "up", "down", "same"], groups=["A"])
    (sentence,) = said(frame)
    up, down, same = sentence.removeprefix("auroc: ").split("; ")
    assert up.startswith("up is better than base (+")
    assert "95 % CI [" in up
    assert "p = " in up
    assert down.startswith("down is worse than base (-")
    assert same == "same is not distinguishable from base, which does not make them equal."


def test_nothing_is_called_equal_but_by_a_margin_that_was_declared() -> None:
    frame = framed(shifted(0.0005, -0.0005, seeds=8), arms=["base", "a", "b"], groups=["A"])
    (without,) = said(frame)
    assert without == (
        "auroc: a and b are not distinguishable from base, which does not make them equal."
    )
    for word in ("equivalent", "same", "no effect", "no difference"):
        assert word not in without
    (within,) = said(frame, margins={"auroc": 0.02})
    assert within == "auroc: a and b are equivalent to base within the margin."


def test_of_an_error_rate_less_is_better() -> None:
    frame = framed(shifted(-0.1), arms=["base", "a"], groups=["A"], metrics=["eer"])
    assert said(frame)[0].startswith("eer: a is better than base (-")


def test_with_two_seeds_nothing_is_judged() -> None:
    frame = framed(shifted(0.1, 0.2, seeds=2), arms=["base", "a", "b"], groups=["A"])
    assert said(frame) == ("auroc: a and b are not testable against base.",)


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (1, "x q=0 is "),
        (2, "x q=0 and x q=1 are "),
        (3, "x q=0, x q=1 and x q=2 are "),
        (5, "all 5 configurations are "),
    ],
)
def test_few_are_named_and_many_are_counted(count: int, named: str) -> None:
    frame = framed(
        shifted(*[0.1] * count),
        arms=["base", *["x"] * count],
        knobs=[{}, *({"q": n} for n in range(count))],
        groups=["A"],
    )
    assert said(frame)[0].startswith(f"auroc: {named}better than base")


def test_of_many_the_first_are_named_and_all_are_counted() -> None:
    shifts = [0.1] * 4 + [-0.1]
    knobs = [{}, *({"q": n} for n in range(5))]
    frame = framed(shifted(*shifts), arms=["base", *["x"] * 5], knobs=knobs, groups=["A"])
    assert said(frame)[0].startswith(
        "auroc: 4 of 5 configurations (x q=0, x q=1, x q=2, ...) are better than base; x q=4 is "
        "worse than base ("
    )


def test_without_a_baseline_the_answer_says_why_nothing_is_compared() -> None:
    frame = framed(shifted(0.1), arms=["base", "a"], groups=["A"])
    assert answer(compare(frame, baseline=None), (), (), {"ok": 1}) == (
        "No baseline was named; say --baseline, or report.baseline in the file.",
    )


# --- metrics that were asked for some groups alone ------------------------------------------------


@pytest.fixture
def grouped(tmp_path: Path) -> tuple[Summary, Summary]:
    """A report on single groups, and one on those and the mean; no arm is alike in both groups."""
    arms = [Arm("base", 0.5), Arm("mid", 1.2), Arm("high", 3.0)]
    store = report_on(tmp_path / "results", arms, metrics=["auroc"], seeds=[1, 2, 3, 4])
    sweep = store.sweep()
    return (
        summarize(store, sweep, ["auroc[domain=A]", "auroc[domain=B]"]),
        summarize(store, sweep, ["auroc", "auroc[domain=B]"]),
    )


def against(summary: Summary, *, per_group: bool = False) -> list[Sheet | None]:
    return [comparison(summary.comparisons, t, per_group=per_group) for t in summary.tables]


def rows_of(sheet: Sheet | None) -> list[tuple[str, ...]]:
    assert sheet is not None
    width = sheet.header.index("difference") + 1
    return [tuple(cell.text for cell in row[:width]) for row in sheet.rows]


def test_a_group_that_was_asked_for_is_compared_in_that_group_and_no_other(
    grouped: tuple[Summary, Summary],
) -> None:
    for summary in grouped:
        for table, sheet in zip(summary.tables, against(summary), strict=True):
            assert sheet is not None
            column = "mean" if table.metric == "auroc" else table.metric[-2]
            (base, *others) = (row.cells[column].mean or 0 for row in table.rows)
            shown = [float(row[-1]) for row in rows_of(sheet)]
            assert shown == [round(100 * (one - base), 2) for one in others]


def test_each_group_that_was_asked_for_has_one_sentence(
    grouped: tuple[Summary, Summary],
) -> None:
    starts = [text.partition(":")[0] for text in grouped[0].answer]
    assert starts == ["auroc[group=A]", "auroc[group=B]"]


def test_groups_of_a_whole_metric_are_compared_when_that_is_asked(
    grouped: tuple[Summary, Summary],
) -> None:
    whole, single = against(grouped[1], per_group=True)
    assert [row[:2] for row in rows_of(whole)] == [
        (arm, group) for arm in ("mid", "high") for group in ("A", "B", "mean")
    ]
    assert [row[0] for row in rows_of(single)] == ["mid", "high"]


# --- the sheet of comparisons ---------------------------------------------------------------------


def test_a_sheet_of_comparisons_holds_the_numbers_of_the_comparisons() -> None:
    frame = framed(shifted(0.1, 0.001), arms=["base", "up", "same"], groups=["A"])
    found = compare(frame, baseline="base", margins={"auroc": 0.01})
    sheet = comparison(found, marked(main_table(frame, "auroc"), frame))
    assert sheet is not None
    for row, line in zip(
        [row for row in found.rows if row.group == "mean"], sheet.rows, strict=True
    ):
        told = dict(zip(sheet.header, line, strict=True))
        pair = row.paired
        assert told["difference"].text == f"{100 * (pair.difference or 0):+.2f}"
        low, high = 100 * (pair.ci_low or 0), 100 * (pair.ci_high or 0)
        assert told["95 % CI"].text == f"[{low:.2f}, {high:.2f}]"
        for name, value in [
            ("p", pair.p), ("Holm p", row.p_holm), ("sign-flip p", pair.sign_flip_p),
            ("TOST p", row.p_tost_holm),
        ]:  # fmt: skip
            assert float(told[name].text) == pytest.approx(value, rel=0.05), name
            assert told[name].value == value
        assert told["verdict"].text == row.verdict
        assert told["verdict"].hint == row.why
        assert told["n"].text == "5"
        assert float(told["d_z"].text) == pytest.approx(pair.d_z, abs=0.005)
        assert float(told["could show"].text) == pytest.approx(100 * row.detectable, abs=0.005)
    assert [row.verdict for row in found.rows if row.group == "mean"] == ["better", "equivalent"]


def test_a_metric_without_comparison_has_no_sheet_of_them() -> None:
    frame = framed(shifted(0.1), arms=["base", "up"], groups=["A"])
    assert comparison(compare(frame, baseline=None), main_table(frame, "auroc")) is None
