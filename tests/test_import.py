"""Results from elsewhere are kept as they are printed, marked, and never mixed with runs."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis import frame, verdicts
from hdsweep.errors import DataError, HdsweepError, SpecError
from hdsweep.imported import Columns, keep, read_results
from hdsweep.metrics import parse_metric
from hdsweep.store import Store
from hdsweep.values import value_of
from tests.conftest import SWEEP, Run

GOLDEN = Path(__file__).parent / "golden" / "published_rows.csv"


def written(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def imported(path: Path, **columns: object) -> list[dict[str, object]]:
    """Arm, knobs, seed, metric, group, value of every value, in the records' units."""
    found = read_results(path, Columns(**columns))  # type: ignore[arg-type]
    return [
        {"arm": cell.arm, "knobs": dict(cell.knobs), "seed": seed, "metric": metric,
         "group": group, "value": value}
        for cell in found.cells
        for seed, trial in cell.trials.items()
        for metric, of_metric in found.records[trial].metrics.items()
        for group, value in of_metric.items()
    ]  # fmt: skip


def test_the_published_study_gives_the_comparison_that_its_rows_support(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    sweep = keep(store, "published", read_results(GOLDEN, Columns()), baseline="baseline")
    rows = frame.load(store, sweep)
    found = verdicts.compare(rows, baseline="baseline").rows
    (mean,) = [row for row in found if (row.metric, row.group) == ("tpr@1", "mean")]
    # As printed: more digits are in the independent test of the same rows.
    assert mean.paired.difference == pytest.approx(0.00914, abs=1e-12)
    assert mean.paired.ci_low == pytest.approx(0.00626, abs=5e-6)
    assert mean.paired.ci_high == pytest.approx(0.01202, abs=5e-6)
    assert mean.paired.p == pytest.approx(9.1e-4, abs=5e-6)
    assert mean.paired.sign_flip_p == 0.0625
    assert mean.verdict == "better"


def test_every_value_of_the_file_is_in_the_frame_and_its_means_are_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    sweep = keep(store, "published", read_results(GOLDEN, Columns()))
    ours = frame.load(store, sweep).set_index(["arm", "metric", "seed", "group"])["value"]
    theirs = pd.read_csv(GOLDEN)
    assert len(ours) == len(theirs)
    for row in theirs.to_dict("records"):
        value = ours[row["method"], row["metric"], row["seed"], row["domain"]]
        assert value == pytest.approx(row["value"] / 100, abs=1e-12)
    record = store.record(next(iter(sweep.cells[0].trials.values())))
    assert record is not None
    own = value_of(store, record, parse_metric("tpr@1"), sweep.groups)
    assert own == (pytest.approx(0.8945, abs=1e-12), "")  # mean of the groups: 0.8945 - 5e-5


def test_a_record_says_what_it_was_imported_from(tmp_path: Path) -> None:
    found = read_results(GOLDEN, Columns())
    origin = next(iter(found.records.values())).provenance["imported"]
    assert origin["file"] == "published_rows.csv"
    assert origin["sha256"] == found.sha256
    assert origin["percent"] is True
    # Two decimals of a percentage: half of 0.01 %.
    assert origin["resolution"] == pytest.approx(dict.fromkeys(found.metrics, 5e-5))


def test_the_same_file_twice_is_one_sweep_and_a_changed_one_takes_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    first = keep(store, "s", read_results(GOLDEN, Columns()))
    again = keep(store, "s", read_results(GOLDEN, Columns()))
    assert first == again
    text = GOLDEN.read_text().replace("baseline,,auroc,42,A,98.57", "baseline,,auroc,42,A,98.58")
    changed = keep(store, "s", read_results(written(tmp_path, text), Columns()))
    one, other = first.cells[0].trials, changed.cells[0].trials
    assert one[42] != other[42]
    assert one[43] == other[43]
    assert store.sweep("s").cells == changed.cells


def test_a_column_per_metric_is_read_too(tmp_path: Path) -> None:
    path = written(tmp_path, "model;seed;auroc;TPR1\nA;1;0,98;0,9\nA;2;0,97;\n")
    found = imported(path, wide={"auroc": "auroc", "tpr@1": "TPR1"})
    assert [(one["metric"], one["seed"], one["value"]) for one in found] == [
        ("auroc", 1, 0.98), ("tpr@1", 1, 0.9), ("auroc", 2, 0.97), ("tpr@1", 2, None),
    ]  # fmt: skip
    assert {one["group"] for one in found} == {"all"}
    with_guess = imported(written(tmp_path, "arm,seed,auroc,note\nA,1,98.5,x\n", "b.csv"))
    assert with_guess[0]["value"] == pytest.approx(0.985)
    assert with_guess[0]["knobs"] == {"note": "x"}
    without = imported(tmp_path / "b.csv", ignore=("note",))
    assert without[0]["knobs"] == {}


def test_knobs_are_numbers_words_or_truths_and_an_empty_cell_is_none(tmp_path: Path) -> None:
    text = "arm,seed,q,p,on,how,metric,value\nA,1,5,0.50,true,cosine,auroc,.9\nA,1,,,,,ap,.8\n"
    first, second = (one["knobs"] for one in imported(written(tmp_path, text)) if one["value"])
    long = written(tmp_path, f"arm,seed,q,auroc\nA,1,{'9' * 400},.9\nA,1,nan,.9\n", "long.csv")
    assert [one["knobs"] for one in imported(long)] == [{"q": "9" * 400}, {"q": "nan"}]
    assert first == {"q": 5, "p": 0.5, "on": True, "how": "cosine"}
    assert second == {}


def test_what_the_file_does_not_say_is_missing_with_the_reason(tmp_path: Path) -> None:
    text = "arm,seed,group,metric,value\nA,1,x,auroc,.9\nA,1,y,auroc,-\nA,2,x,auroc,.8\n"
    store = Store(tmp_path / "results")
    sweep = keep(store, "s", read_results(written(tmp_path, text), Columns()))
    rows = frame.load(store, sweep).set_index(["seed", "group"])
    assert rows.loc[(1, "y"), "reason"] == "not in the file"
    assert rows.loc[(2, "y"), "reason"] == "not in the file"
    assert rows.loc[(1, "mean"), "reason"] == "undefined in y"


def test_scalars_are_told_apart_from_rates(tmp_path: Path) -> None:
    text = "arm,seed,auroc,latency_ms\nA,1,.9,12.5\nA,2,.8,13.5\n"
    found = read_results(written(tmp_path, text), Columns(scalars=("latency_ms",)))
    assert [record.scalars for record in found.records.values()] == [
        {"latency_ms": 12.5}, {"latency_ms": 13.5},
    ]  # fmt: skip
    assert found.percent is False
    assert found.metrics == ("auroc", "latency_ms")


def test_a_scalar_is_one_number_per_trial_whatever_the_rows(tmp_path: Path) -> None:
    text = "arm,seed,group,AUC,ms\nA,1,x,.9,12\nA,1,y,.8,{}\nA,1,mean,.85,14\n"
    told = Columns(wide={"auroc": "AUC"}, scalars=("ms",))
    (record,) = read_results(written(tmp_path, text.format(16)), told).records.values()
    assert record.scalars == {"ms": 14.0}  # the file's own mean
    without = text.format(12).replace("A,1,mean,.85,14\n", "")
    (record,) = read_results(written(tmp_path, without), told).records.values()
    assert record.scalars == {"ms": 12.0}
    with pytest.raises(DataError, match=r":3: ms of A, seed 1 is 16, but 12 in line 2"):
        read_results(written(tmp_path, without.replace("y,.8,12", "y,.8,16")), told)
    with pytest.raises(SpecError, match=r"--scalar sm: the file has no such number; known: .*ms"):
        read_results(tmp_path / "rows.csv", Columns(wide={"auroc": "AUC"}, scalars=("sm",)))
    named = written(tmp_path, "arm,seed,auroc,Time (ms)\nA,1,.9,12\n", "named.csv")
    with pytest.raises(SpecError, match=r"--wide 'latency_ms=Time \(ms\)'"):
        read_results(named, Columns(scalars=("Time (ms)",)))
    renamed = Columns(wide={"latency_ms": "Time (ms)"}, scalars=("latency_ms",))
    (record,) = read_results(named, renamed).records.values()
    assert (record.scalars, record.metrics) == ({"latency_ms": 12.0}, {"auroc": {"all": 0.9}})
    with pytest.raises(SpecError, match="--scalar auroc: is a metric"):
        read_results(tmp_path / "rows.csv", Columns(scalars=("auroc",)))


def test_percent_signs_tell_the_unit_and_arithmetic_may_leave_a_little(tmp_path: Path) -> None:
    signed = written(tmp_path, "arm,seed,auroc\nA,1,0.9%\nA,2,0.8 %\n")
    assert [one["value"] for one in imported(signed)] == pytest.approx([0.009, 0.008])
    with pytest.raises(DataError, match=":2: a percent sign in a file that is in fractions"):
        read_results(signed, Columns(percent=False))
    full = written(tmp_path, "arm,seed,auroc\nA,1,1.0000000000000002\nA,2,.8\n")
    assert [one["value"] for one in imported(full)] == [1.0, 0.8]
    low = written(tmp_path, "arm,seed,auroc,fpr@95\nA,1,98,.5\n")
    assert [one["value"] for one in imported(low, percent=True)] == pytest.approx([0.98, 0.005])


def test_an_index_that_pandas_wrote_is_no_knob_and_metrics_are_read_as_papers_write_them(
    tmp_path: Path,
) -> None:
    table = pd.DataFrame({"Method": "A", "Seed": [1, 2], "AUROC": 98.0, "TPR@FPR=1 %": 90.0})
    table.to_csv(tmp_path / "rows.csv")
    found = read_results(tmp_path / "rows.csv", Columns())
    assert found.metrics == ("auroc", "tpr@1")
    assert [dict(cell.knobs) for cell in found.cells] == [{}]
    assert len(found.cells[0].trials) == 2
    assert found.warnings == ()


def test_a_measurement_that_is_taken_for_a_knob_is_told(tmp_path: Path) -> None:
    text = "arm,seed,auroc,wall_s\nA,1,.9,12.1\nA,2,.8,12.2\n"
    (warning,) = read_results(written(tmp_path, text), Columns()).warnings
    assert "if wall_s is no knob, import again with --ignore COLUMN" in warning
    assert read_results(tmp_path / "rows.csv", Columns(ignore=("wall_s",))).warnings == ()


def test_a_mean_that_is_not_that_of_its_groups_is_told_with_its_line(tmp_path: Path) -> None:
    # By pandas: five means are off by 0.05 to 0.095 where two decimals allow for 0.015.
    (published,) = read_results(GOLDEN, Columns()).warnings
    assert published.startswith("5 of the file's means are not those of its groups")
    assert "line 36 says 89.42, not 89.50" in published
    text = "arm,seed,group,auroc\nA,1,x,.91\nA,1,y,.80\nA,1,All,.83\n"
    (warning,) = read_results(written(tmp_path, text), Columns(mean="All")).warnings
    assert "1 of the file's means are not those of its groups" in warning
    assert "line 4 says 0.83, not 0.8" in warning  # 0.855
    # 0.855, cut off or rounded; and the last digits of its groups are worth 0.005.
    for fits in (".84", ".85", ".86", ".87"):
        path = written(tmp_path, text.replace(".83", fits))
        assert read_results(path, Columns(mean="All")).warnings == ()
    with pytest.raises(SpecError, match="--mean-group Al: no such group; did you mean 'All'"):
        read_results(tmp_path / "rows.csv", Columns(mean="Al"))


def test_a_table_says_whose_means_over_groups_it_shows(hdsweep: Run, tmp_path: Path) -> None:
    assert hdsweep("import", GOLDEN, "--sweep", "own").returncode == 0
    rows = [line for line in GOLDEN.read_text("utf-8").splitlines() if ",mean," not in line]
    without = written(tmp_path, "\n".join(rows))
    assert hdsweep("import", without, "--sweep", "ours").returncode == 0
    told = "mean: as the imported file says; where it does not, over groups, weighted equally"
    assert told in hdsweep("report", "own").stdout
    ours = hdsweep("report", "ours").stdout
    assert told not in ours
    assert "mean: over groups, weighted equally" in ours


def test_what_was_asked_for_and_is_not_there_is_told(hdsweep: Run, tmp_path: Path) -> None:
    assert hdsweep("import", GOLDEN, "--sweep", "s", "--baseline", "baseline").returncode == 0
    done = hdsweep("report", "s", "--table", "costs", "--images", "--format", "csv")
    assert "--table costs: the sweep has nothing to put into it" in done.stderr
    assert "--images: none: " in done.stderr
    assert not hdsweep("report", "s", "--table", "comparison").stderr


def test_the_digits_that_a_file_prints_are_part_of_what_it_says(tmp_path: Path) -> None:
    one = read_results(written(tmp_path, "arm,seed,auroc\nA,1,.90\n"), Columns())
    other = read_results(written(tmp_path, "arm,seed,auroc\nA,1,.9000\n", "b.csv"), Columns())
    assert one.records.keys() != other.records.keys()
    half = next(iter(other.records.values())).provenance["imported"]["resolution"]["auroc"]
    assert half == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("baselin", "the file has no such arm; did you mean 'baseline'?"),
        ("topk q=7", "the file has no such configuration; did you mean 'topk q=5'?"),
        ("topk q", "'q' is not a knob with its value"),
    ],
)
def test_a_baseline_that_the_file_has_not_is_refused_before_anything_is_kept(
    hdsweep: Run, tmp_path: Path, baseline: str, words: str
) -> None:
    store = tmp_path / "results"
    done = hdsweep("import", GOLDEN, "--sweep", "s", "--baseline", baseline, "--store", store)
    assert done.returncode == 2
    assert words in done.stderr
    assert not store.exists()


def test_what_a_file_names_cannot_steer_the_terminal(hdsweep: Run, tmp_path: Path) -> None:
    path = written(tmp_path, "arm,seed,auroc,\x1b[31mq\nA,1,.9,5\nA,2,.9,6\n")
    done = hdsweep("import", path, "--sweep", "s")
    assert done.returncode == 0
    assert "knobs: \\x1b[31mq" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_terminal_in_colour_shows_the_best_in_bold_and_names_as_they_are_spelt(
    hdsweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "arm,seed,auroc\n\x1b[31mA,1,.9\n\x1b[31mA,2,.8\nB,1,.1\nB,2,.2\n")
    assert hdsweep("import", path, "--sweep", "s").returncode == 0
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = bytearray()

    def keep(descriptor: int) -> bytes:
        shown.extend(found := os.read(descriptor, 4096))
        return found

    store = ["--store", str(tmp_path / "results")]
    pty.spawn([sys.executable, "-m", "hdsweep.cli", "report", "s", *store], keep)
    assert b"\x1b[1m85.00" in shown
    assert b"\\u001b" not in shown
    assert b"\\x1b[31mA" in shown
    assert b"\x1b[31m" not in shown


def test_a_name_that_is_no_name_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    with pytest.raises(HdsweepError, match="is not the name of a sweep"):
        keep(Store(tmp_path / "results"), "../x", read_results(GOLDEN, Columns()))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("arm,seed,metric,value\n", "no row holds a value"),
        ("arm,seed,metric,value\nA,1,auroc\n", ":2: 3 cells where the header has 4"),
        ("arm,seed,metric,value\nA,one,auroc,.9\n", ":2: seed 'one' is not a whole number"),
        ("arm,seed,metric,value\nA,1,aurco,.9\n", "did you mean 'auroc'?"),
        ("arm,seed,metric,value\nA,1,latency,9\n", "--scalar 'latency'"),
        ("arm,seed,metric,value\nA,1,auroc,high\n", ":2: 'high' is no number"),
        ("arm,seed,metric,value\nA,1,auroc,inf\n", ":2: 'inf' is no number"),
        ("arm,seed,metric,value\nA,1,auroc,120\n", ":2: auroc 120 is no rate in percent"),
        ("arm,seed,metric,value\nA,1,auroc,-.1\n", ":2: auroc -0.1 is no rate in a fraction"),
        ("arm,seed,metric,value\nA,1,auroc,.9\nA,1,auroc,.8\n", "group all is in line 2 already"),
        ("arm,arm,metric,value\nA,1,auroc,.9\n", "two columns are named 'arm'"),
        ("arm,seed,metric,score\nA,1,auroc,.9\n", "--value COLUMN"),
        ("arm,seed,x\nA,1,.9\n", "--wide auroc=COLUMN"),
        ("arm,seed,metric,value\nA,1,auroc[domain=C],.9\n", "groups have a column of their own"),
        ("arm,seed,group,metric,value\nA,1,mean,auroc,.9\nA,1,avg,auroc,.9\nA,1,x,auroc,.9\n",
         "groups mean and avg may both be means of the others; say --mean-group"),
        ("arm,seed,auroc\nA,,.9\n", ":2: seed '' is not a whole number below 2^32"),
        (f"arm,seed,auroc\nA,{'9' * 400},.9\n", "999...' is not a whole number below 2^32"),
        ("arm,run,auroc\nA,x1,.9\n", "--ignore 'run'"),
        ("arm,seed,auroc\n,1,.9\n", ":2: arm is empty"),
        ("arm,seed,group,auroc\nA,1,,.9\n", "call the mean over groups 'mean'"),
        ("arm,seed,group,auroc\nA,1,pooled,.9\n", "stands for the items of all groups together"),
        ("arm,seed,auroc\nA,1,1e400\n", ":2: '1e400' is no number"),
        (f"arm,seed,auroc\nA,1,{'9' * 400}\n", "999...' is no number"),
        ("arm,seed,auroc\nA,1,0_0.9\n", ":2: '0_0.9' is no number"),
        ("arm,seed,tpr@1,TPR@1.0\nA,1,.9,.8\n", "columns 3 and 4 are both tpr@1"),
        ("arm,seed,a b,a=b,auroc\nA,1,1,2,.9\n", "columns 3 and 4 are both a_b"),
        ("arm,seed,auroc,tpr@1\nA,1,.98,94.5\n", "say --percent if all rates are in percent"),
        ("arm,seed,auroc\nA,1,.98\nB,1,94.5\n", "of B looks like percent, but no auroc of A"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(HdsweepError) as raised:
        read_results(written(tmp_path, text), Columns())
    assert words in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00arm")
    with pytest.raises(DataError, match="UTF-8"):
        read_results(tmp_path / "x.csv", Columns())
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path, Columns())
    with pytest.raises(SpecError, match="no column 'sed' is left for seed; did you mean 'seed'"):
        read_results(GOLDEN, Columns(seed="sed"))


def test_imports_and_runs_do_not_take_each_others_names(
    hdsweep: Run, sweep_file: Callable[..., Path]
) -> None:
    path = sweep_file(SWEEP)
    assert hdsweep("run", path, "--inline").returncode == 0
    refused = hdsweep("import", GOLDEN, "--sweep", "noise")
    assert refused.returncode == 2
    assert "was run here; import the file under another name" in refused.stderr
    done = hdsweep("import", GOLDEN, "--sweep", "published", "--baseline", "baseline")
    assert done.returncode == 0
    assert "rates in percent" in done.stderr
    report = hdsweep("report", "published", "--metric", "tpr@1")
    assert "topk q=5 is better than baseline (+0.91 points" in report.stdout
    trial = hdsweep("status", "published", "--format", "json")
    assert '"ok": 10' in trial.stdout
    refused = hdsweep("replay", "published")
    assert refused.returncode == 2
    assert "published: was imported, so nothing is known of how" in refused.stderr
    path.write_text(SWEEP.replace("name: noise\n", "name: published\n", 1))
    refused = hdsweep("run", path, "--inline")
    assert refused.returncode == 2
    assert "noise.yaml:1: name: results were imported into" in refused.stderr


def test_a_configuration_that_lacks_a_seed_of_the_others_is_incomplete(tmp_path: Path) -> None:
    text = "arm,seed,auroc\nA,1,.9\nA,2,.91\nA,3,.92\nB,1,.95\nB,2,.96\n"
    store = Store(tmp_path / "results")
    sweep = keep(store, "s", read_results(written(tmp_path, text), Columns()))
    rows = frame.load(store, sweep)
    (missing,) = rows[rows["value"].isna() & (rows["group"] == "mean")].to_dict("records")
    assert (missing["arm"], missing["seed"], missing["status"]) == ("B", 3, "not run")
