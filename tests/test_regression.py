"""Two reports are compared as they were written: what changed, appeared and vanished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.regression import Differences, differences
from analysis.reread import read_report
from hdsweep.errors import DataError, SpecError
from tests.conftest import Invoke
from tests.reported import HOSTILE, Arm, report_on

Edit = Mapping[str, Any]
TWO = (Arm("weak", 0.5), Arm("strong", 3.0, knobs={"k": 1}))


def reported(
    invoke: Invoke, name: str, *arms: Arm, options: tuple[str, ...] = (), **study: Any
) -> Path:
    """What the command writes of a study; as strong arms with as many items give it again."""
    store = report_on(Path(name).absolute(), arms, **study)
    target = Path(f"{name}.json").absolute()
    status, _, err = invoke(
        "report", "--store", store.root, "--format", "json", "--out", target, *options
    )
    assert status == 0, err
    return target


def edited(path: Path, name: str, **edits: Edit) -> Path:
    """The report with other values in ``arm_metric_group=`` cells."""
    report = json.loads(path.read_bytes())
    for place, fields in edits.items():
        arm, metric, group = place.split("_")
        (table,) = [t for t in report["tables"] if t["metric"] == metric.replace("at", "@")]
        (row,) = [r for r in table["rows"] if r["arm"] == arm]
        row["cells"][group] |= fields
    other = path.with_name(name)
    other.write_text(json.dumps(report))
    return other


def between(first: Path, second: Path, **options: Any) -> Differences:
    return differences(read_report(first), read_report(second), **options)


def test_a_report_does_not_differ_from_itself_nor_from_one_of_the_same_results(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "first", *TWO)
    second = reported(invoke, "second", *TWO)
    status, out, _ = invoke("diff", first, second)
    assert (status, out) == (0, "no difference in 12 cells\n")
    # Nor if its mean was added up in another order, or in one place only is k: 1 written as 1.0.
    mean = json.loads(first.read_bytes())["tables"][0]["rows"][0]["cells"]["A"]["mean"]
    nudged = edited(first, "n.json", weak_auroc_A={"mean": mean * (1 + 1e-15)})
    nudged.write_text(nudged.read_text().replace('{"k": 1}', '{"k": 1.0}'))
    assert not between(first, nudged, tolerance=0)


def test_cells_that_print_differently_differ_and_the_largest_comes_first(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = edited(
        reported(invoke, "r", *TWO), "a.json", weak_auroc_A={"mean": 0.5, "std": 0.01},
        weak_auroc_B={"mean": 0.6, "std": 0.01}, strong_tprat5_A={"mean": 0.7, "std": 0.01},
    )  # fmt: skip
    second = edited(
        first, "b.json", weak_auroc_A={"mean": 0.50004}, weak_auroc_B={"mean": 0.61},
        strong_tprat5_A={"mean": 0.65, "std": 0.02},
    )  # fmt: skip
    found = between(first, second)
    assert [(one.metric, one.arm, one.group) for one in found.cells] == [
        ("tpr@5", "strong", "A"),
        ("auroc", "weak", "B"),
    ]
    assert [one.difference for one in found.cells] == pytest.approx([-0.05, 0.01], abs=1e-12)
    # 50.00 and 50.004 print alike: not counted, and not kept quiet.
    assert found.below == 1
    assert found.largest_below == pytest.approx(4e-5, abs=1e-12)
    status, out, _ = invoke("diff", first, second)
    assert status == 1
    assert "70.00±1.00  65.00±2.00" in out
    assert "-5.00" in out
    assert "2 of 12 cells differ" in out
    assert "not tested for significance" in out


def test_a_tolerance_holds_for_rates_or_for_a_metric_and_for_spreads_too(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = edited(
        reported(invoke, "r", *TWO), "a.json", weak_auroc_A={"mean": 0.5, "std": 0.01},
        strong_tprat5_A={"mean": 0.7, "std": 0.01},
    )  # fmt: skip
    second = edited(first, "b.json", weak_auroc_A={"mean": 0.51}, strong_tprat5_A={"std": 0.02})
    assert not between(first, second, tolerance=0.01)
    assert [one.arm for one in between(first, second, tolerance=0.009).cells] == ["weak", "strong"]
    found = between(first, second, tolerance=0.009, tolerances={"auroc": 0.02})
    assert [one.metric for one in found.cells] == ["tpr@5"]
    found = between(first, edited(first, "c.json", weak_auroc_A={"mean": 0.500001}), tolerance=0)
    assert len(found.cells) == 1
    with pytest.raises(SpecError, match="no report has 'aurok'; did you mean 'auroc'"):
        between(first, second, tolerances={"aurok": 0.1})


def test_a_scalar_is_sorted_by_its_relative_difference_after_the_rates(
    invoke: Invoke, tmp_path: Path
) -> None:
    asked = ("--metric", "auroc", "--metric", "latency_ms")
    first = edited(
        reported(invoke, "r", *TWO, options=asked), "a.json", weak_auroc_A={"mean": 0.5},
    )  # fmt: skip
    report = json.loads(first.read_bytes())
    for row in report["tables"][1]["rows"]:
        for cell in row["cells"].values():
            cell["mean"] *= 1.5
    report["tables"][0]["rows"][0]["cells"]["A"]["mean"] = 0.51
    second = tmp_path / "b.json"
    second.write_text(json.dumps(report))
    found = between(first, second)
    assert [one.metric for one in found.cells] == ["auroc", "latency_ms", "latency_ms"]
    assert "+2.75" in invoke("diff", first, second)[1]  # half of 5.5 ms, and no percent


def test_another_count_of_seeds_is_a_difference_where_means_are_equal(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "r", *TWO)
    lost = {"seed": 3, "trial": "t", "status": "failed", "reason": "killed"}
    second = edited(first, "b.json", weak_auroc_A={"n": 2, "missing": [lost]})
    assert [one.group for one in between(first, second, tolerance=1).cells] == ["A"]
    # Why a seed is missing is part of the count: it failed, or has not been run.
    third = edited(
        first, "c.json", weak_auroc_A={"n": 2, "missing": [lost | {"status": "not run"}]}
    )
    assert [one.group for one in between(second, third, tolerance=1).cells] == ["A"]


def test_a_cell_that_lost_its_mean_comes_before_every_number(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "first", *TWO)
    broken = Arm("weak", 0.5, ends=dict.fromkeys((1, 2, 3), "out of disk"))
    second = reported(invoke, "second", broken, Arm("strong", 0.5, knobs={"k": 1}))
    found = between(first, second)
    lost = [one for one in found.cells if one.arm == "weak"]
    assert found.cells[: len(lost)] == tuple(lost)
    assert {one.difference for one in lost} == {None}
    assert "— (failed)" in invoke("diff", first, second)[1]
    assert {one.before: one.after for one in found.verdicts} == {"better": "not testable"}


def test_configurations_that_one_report_has_alone_are_told_once_with_their_verdicts_left_out(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "first", *TWO)
    second = reported(invoke, "second", TWO[0], Arm("strong", 3.0, knobs={"k": 2}))
    found = between(first, second)
    assert {(one.kind, one.knobs["k"]) for one in found.cells} == {("vanished", 1), ("appeared", 2)}
    assert found.verdicts == ()
    status, out, _ = invoke("diff", first, second)
    assert status == 1
    assert "0 of 6 cells differ, 6 appeared, 6 vanished" in out
    assert out.count("A, B, mean  strong k=1") == 2  # a line for each metric


def test_verdicts_and_criteria_that_turn_are_told_with_their_reasons(
    invoke: Invoke, tmp_path: Path
) -> None:
    study: dict[str, Any] = {"seeds": range(1, 7), "expect": ["auroc >= 0.9"]}
    first = reported(invoke, "first", *TWO, **study)
    weaker = Arm("strong", 0.5, knobs={"k": 1})
    second = reported(invoke, "second", TWO[0], weaker, **study)
    found = between(first, second)
    [verdict] = [one for one in found.verdicts if one.what == "auroc mean"]
    assert (verdict.before, verdict.name) == ("better", "strong k=1")
    assert verdict.after != "better"
    assert "95 % CI" in verdict.before_why
    assert [(one.before, one.after) for one in found.criteria] == [("met", "not met")]
    out = invoke("diff", first, second)[1]
    assert "1 success criterion differs" in out
    assert f"  first: {verdict.before_why}" in out


def test_spreads_of_both_conventions_are_compared_as_one(invoke: Invoke, tmp_path: Path) -> None:
    first = reported(invoke, "r", *TWO)
    other = tmp_path / "other.json"
    status, _, _ = invoke(
        "report", "--store", "r", "--format", "json", "--ddof", "0", "--out", other
    )
    assert status == 0
    found = between(first, other)
    assert not found
    assert found.context == (
        "the second report has another ddof; its spreads are given for 1 here",
    )


def test_other_definitions_and_baselines_are_differences_and_provenance_is_context(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "r", *TWO)
    report = json.loads(first.read_bytes())
    report["tables"][0]["definition"] = "another"
    report["baseline"] = "strong k=1"
    report["provenance"] = {"commit": "abc"}
    second = tmp_path / "b.json"
    second.write_text(json.dumps(report))
    found = between(first, second)
    assert "became 'another'" in found.others[0]
    assert "the baseline was weak and is strong k=1" in found.others[1]
    assert "commit: not told -> abc" in found.context
    assert invoke("diff", first, second)[0] == 1


def test_a_metric_that_was_asked_for_in_one_group_is_compared_with_that_column(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "r", *TWO)
    second = reported(invoke, "one", *TWO, options=("--metric", "auroc[domain=B]"))
    found = between(first, second)
    assert found.compared == 2
    assert {one.kind for one in found.cells} == {"vanished"}


def test_json_holds_what_differs_at_full_precision(invoke: Invoke, tmp_path: Path) -> None:
    first = reported(invoke, "r", *TWO)
    second = edited(first, "b.json", weak_auroc_A={"mean": 0.123456789012})
    status, out, _ = invoke("diff", first, second, "--format", "json")
    found = json.loads(out)
    assert status == 1
    assert found["format"] == 1
    [cell] = found["cells"]
    assert (cell["arm"], cell["after"]["mean"]) == ("weak", 0.123456789012)


def test_names_are_shown_as_they_are(invoke: Invoke, tmp_path: Path) -> None:
    names = (*HOSTILE, "b\x1b[31m")
    first = reported(invoke, "r", *map(Arm, names))
    second = reported(invoke, "s", *(Arm(name, 2.0) for name in names))
    status, out, _ = invoke("diff", first, second)
    assert status == 1
    for name in HOSTILE:
        assert name in out
    assert "b\\x1b[31m" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"[1", "is not JSON"),
        (b"\xff\xfe\x00binary", "is not JSON"),
        (b"[" * 100_000, "is not JSON: recursion limit"),
        (b"{}", "is no report of hdsweep: format: field required"),
        (b"[]", "is no report of hdsweep: the file"),
        (b'{"format": 2}', "is a report of format 2, and this version reads 1"),
        (b'{"format": 1, "tables": []}', "has no table with a cell"),
        (b'{"format": 1, "tables": [{"metric": "auroc"}]}', "tables.0.definition: field required"),
    ],
)
def test_what_is_no_report_is_refused_with_what_to_do(
    invoke: Invoke, tmp_path: Path, content: bytes, words: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    status, out, err = invoke("diff", bad, bad)
    assert (status, out) == (2, "")
    assert words in err
    assert "bad.json" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("value", ["NaN", "1e999", '"0.5"', "true"])
def test_a_mean_that_is_no_number_is_refused_at_its_place(
    invoke: Invoke, tmp_path: Path, value: str
) -> None:
    first = edited(reported(invoke, "r", *TWO), "a.json", weak_auroc_A={"mean": 0.123456789})
    bad = tmp_path / "bad.json"
    bad.write_text(first.read_text().replace("0.123456789", value))
    with pytest.raises(DataError, match=r"bad\.json: is no report.*tables\.0\.rows\.0\.cells\.A"):
        read_report(bad)


def test_files_that_cannot_be_read_and_tolerances_that_are_none_are_refused(
    invoke: Invoke, tmp_path: Path
) -> None:
    first = reported(invoke, "r", *TWO)
    for path, words in ((tmp_path / "gone.json", "No such file"), (tmp_path, "Is a directory")):
        status, out, err = invoke("diff", first, path)
        assert (status, out) == (2, "")
        assert f"{path}: cannot be read: {words}" in err
    for text in ("-1", "x", "auroc=", "nan", "auroc=-0.1"):
        status, _, err = invoke("diff", first, first, "--tolerance", text)
        assert status == 2
        assert f"--tolerance {text}: write X or METRIC=X" in err
