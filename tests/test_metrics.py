"""Metrics agree with scikit-learn where it has them, and with hand counts where it has not."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from hdsweep import metrics, roc
from hdsweep.errors import HdsweepError, SpecError, UndefinedMetric
from hdsweep.metrics import (
    METRICS,
    STORED,
    STORED_PIXEL,
    Metric,
    definitions,
    evaluate,
    evaluate_pixels,
    parse_metric,
)

Case = tuple[np.ndarray, np.ndarray]

# A deadline would fail on a busy machine; 50 draws of mostly tied scores meet every branch.
sampled = settings(max_examples=50, deadline=None)

# Few distinct values make ties the rule; floats of any size make them the exception.
SCORES = st.one_of(
    st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1.0]),
    st.floats(-1e9, 1e9).filter(lambda x: x == 0 or abs(x) > 1e-9),
)
PERCENTS = st.one_of(st.integers(1, 100).map(float), st.sampled_from([0.1, 0.29, 0.7, 2.9, 12.5]))


@st.composite
def cases(draw: st.DrawFn, scores: st.SearchStrategy[float] = SCORES) -> Case:
    n = draw(st.integers(2, 60))
    label = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(label.any() and not label.all())
    return label, np.array(draw(st.lists(scores, min_size=n, max_size=n)))


def all_values(label: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    names = [*STORED, "tpr@7.5:nearest", "fpr@90"]
    values, _ = evaluate(names, ["A"] * len(score), label, score)
    return {name: value["A"] for name, value in values.items()}


@sampled
@given(cases())
def test_auroc_and_average_precision_are_those_of_scikit_learn(case: Case) -> None:
    # Both sum up to 60 products of numbers below 1: 1e-12 is far above their rounding.
    assert metrics.auroc(*case) == pytest.approx(roc_auc_score(*case), abs=1e-12)
    assert metrics.ap(*case) == pytest.approx(average_precision_score(*case), abs=1e-12)


@sampled
@given(cases())
def test_the_roc_curve_has_every_point_of_scikit_learn(case: Case) -> None:
    fpr, tpr, threshold = roc_curve(*case, drop_intermediate=False)
    curve = roc.roc(*case)
    assert np.array_equal(curve.false_positives / curve.normal, fpr)
    assert np.array_equal(curve.true_positives / curve.anomalous, tpr)
    assert np.array_equal(curve.threshold, threshold)


@sampled
@given(cases(), PERCENTS)
def test_tpr_at_fpr_is_the_best_point_of_the_curve_within_the_limit(
    case: Case, percent: float
) -> None:
    label, score = case
    best = Fraction(0)
    for threshold in score:
        flagged = score >= threshold
        fpr = Fraction(int((flagged & ~label).sum()), int((~label).sum()))
        tpr = Fraction(int((flagged & label).sum()), int(label.sum()))
        if fpr <= Fraction(str(percent)) / 100:
            best = max(best, tpr)
    assert metrics.tpr_at_fpr(label, score, percent) == float(best)


@sampled
@given(cases(), PERCENTS)
def test_fpr_at_tpr_is_the_least_of_the_curve_that_reaches_the_rate(
    case: Case, percent: float
) -> None:
    label, score = case
    least = Fraction(1)
    for threshold in score:
        flagged = score >= threshold
        tpr = Fraction(int((flagged & label).sum()), int(label.sum()))
        if tpr >= Fraction(str(percent)) / 100:
            least = min(least, Fraction(int((flagged & ~label).sum()), int((~label).sum())))
    assert metrics.fpr_at_tpr(label, score, percent) == float(least)


@sampled
@given(cases(), PERCENTS)
def test_the_nearest_rule_is_the_published_code(case: Case, percent: float) -> None:
    fpr, tpr, _ = roc_curve(*case, drop_intermediate=False)
    expected = tpr[np.argmin(np.abs(fpr - percent / 100))]
    assert metrics.tpr_at_fpr_nearest(*case, percent) == expected


@sampled
@given(cases(), st.integers(0, 10**6), st.sampled_from([0.0, 1e-9, -1e-9]))
def test_scores_of_at_least_a_threshold_are_called(case: Case, place: int, beside: float) -> None:
    label, score = case
    threshold = float(score[place % len(score)]) + beside  # at a score, and right beside it
    flagged = score >= threshold
    p, r, f, _ = precision_recall_fscore_support(
        label, flagged, average="binary", zero_division=np.nan
    )
    assert metrics.recall(label, score, threshold) == pytest.approx(r)
    assert metrics.accuracy(label, score, threshold) == pytest.approx(np.mean(flagged == label))
    specificity = np.mean(~flagged[~label])
    expected = (r + specificity) / 2
    assert metrics.balanced_accuracy(label, score, threshold) == pytest.approx(expected)
    if flagged.any():
        assert metrics.precision(label, score, threshold) == pytest.approx(p)
        assert metrics.f1(label, score, threshold) == pytest.approx(f)
    else:
        assert metrics.f1(label, score, threshold) == 0
        with pytest.raises(UndefinedMetric, match="no item reaches"):
            metrics.precision(label, score, threshold)


@sampled
@given(cases())
def test_the_oracle_threshold_has_the_largest_f1_of_all_thresholds(case: Case) -> None:
    label, score = case
    tried = []
    for threshold in sorted(set(score), reverse=True):
        flagged = score >= threshold
        p, r, f, _ = precision_recall_fscore_support(label, flagged, average="binary")
        tried.append((f, p, r, np.mean(flagged == label)))
    best = max(f for f, *_ in tried)
    first = next(values for values in tried if values[0] >= best - 1e-12)
    found = [m(label, score) for m in (metrics.f1, metrics.precision, metrics.recall)]
    assert [*found, metrics.accuracy(label, score)] == pytest.approx(first, abs=1e-12)


@sampled
@given(cases())
def test_the_equal_error_rate_lies_on_the_curve_where_both_errors_are_equal(case: Case) -> None:
    fpr, tpr, _ = roc_curve(*case, drop_intermediate=False)
    x, y = metrics.eer(*case), 1 - metrics.eer(*case)
    beside = np.diff(fpr) * (y - tpr[:-1]) - np.diff(tpr) * (x - fpr[:-1])  # twice an area
    inside = (fpr[:-1] - 1e-12 <= x) & (x <= fpr[1:] + 1e-12)
    inside &= (tpr[:-1] - 1e-12 <= y) & (y <= tpr[1:] + 1e-12)
    assert np.any(inside & (np.abs(beside) < 1e-12))  # rounding of numbers below 1


@sampled
@given(cases(st.integers(-50, 50).map(float)))
def test_an_increasing_transformation_changes_no_bit_of_any_metric(case: Case) -> None:
    label, score = case
    before = all_values(label, score)
    for transformed in (np.exp(score / 10), score**3, 1e-3 * score - 7, np.arctan(score)):
        assert all_values(label, transformed) == before


@sampled
@given(cases())
def test_every_metric_is_a_rate(case: Case) -> None:
    assert all(value is not None and 0 <= value <= 1 for value in all_values(*case).values())


@sampled
@given(cases(st.integers(-5, 5).map(float)), st.randoms())
def test_the_order_of_items_does_not_matter(case: Case, random: object) -> None:
    label, score = case
    order = np.arange(len(label))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert all_values(label[order], score[order]) == all_values(label, score)


def test_one_percent_of_1000_normal_items_allows_exactly_ten_false_positives() -> None:
    label = np.repeat([False, True], [1000, 100])
    score = np.concatenate([np.arange(1000.0), np.full(100, 989.5)])  # ten normal items above
    assert metrics.tpr_at_fpr(label, score, 1) == 1
    score[:1000] += 1  # the eleventh, at 990, is above now
    assert metrics.tpr_at_fpr(label, score, 1) == 0


@pytest.mark.parametrize(("percent", "n", "allowed"), [(0.7, 1000, 7), (2.9, 1000, 29)])
def test_a_limit_that_binary_fractions_miss_is_met_exactly(
    percent: float, n: int, allowed: int
) -> None:
    assert allowed / n > percent / 100  # what a naive comparison would find
    label = np.repeat([False, True], [n, 1])
    for false_positives, expected in ((allowed, 1), (allowed + 1, 0)):
        score = np.concatenate([np.arange(float(n)), [n - false_positives - 0.5]])
        assert metrics.tpr_at_fpr(label, score, percent) == expected


def test_items_of_equal_score_are_taken_together() -> None:
    label = np.array([True, True, False, False])
    assert metrics.auroc(label, np.ones(4)) == 0.5
    assert metrics.ap(label, np.ones(4)) == 0.5
    assert metrics.tpr_at_fpr(label, np.ones(4), 99) == 0
    assert metrics.fpr_at_tpr(label, np.ones(4), 1) == 1
    assert metrics.eer(label, np.ones(4)) == 0.5
    score = np.array([2.0, 1.0, 1.0, 0.0])
    assert metrics.tpr_at_fpr(label, score, 49) == 0.5
    assert metrics.tpr_at_fpr(label, score, 50) == 1
    assert metrics.auroc(label, score) == 0.875


def test_a_perfect_and_an_inverted_ranking() -> None:
    label = np.array([False, False, True, True])
    score = np.array([0.0, 1.0, 2.0, 3.0])
    perfect, inverted = all_values(label, score), all_values(label, -score)
    assert {k: perfect[k] for k in ("auroc", "ap", "tpr@1", "fpr@100", "f1", "eer")} == {
        "auroc": 1, "ap": 1, "tpr@1": 1, "fpr@100": 0, "f1": 1, "eer": 0,
    }  # fmt: skip
    assert {k: inverted[k] for k in ("auroc", "tpr@1", "fpr@100", "eer", "recall")} == {
        "auroc": 0, "tpr@1": 0, "fpr@100": 1, "eer": 1, "recall": 1,
    }  # fmt: skip


def test_among_thresholds_of_equal_f1_the_strictest_counts() -> None:
    label = np.array([True, False, False, True])
    score = np.array([4.0, 3.0, 2.0, 1.0])  # F1 is 2/3 at the first and at the last
    assert metrics.f1(label, score) == pytest.approx(2 / 3)
    assert (metrics.precision(label, score), metrics.recall(label, score)) == (1, 0.5)


def test_the_nearest_rule_fails_on_few_normal_items_where_the_definition_does_not() -> None:
    label = np.repeat([False, True], [30, 30])
    score = np.arange(60.0)  # a perfect ranking
    assert metrics.tpr_at_fpr(label, score, 1) == 1
    assert metrics.tpr_at_fpr_nearest(label, score, 1) == 0


def test_an_infinite_score_is_the_most_extreme_one() -> None:
    label = np.array([True, True, False, False])
    score = np.array([np.inf, 1.0, 0.0, -np.inf])
    assert all_values(label, score) == all_values(label, np.array([9.0, 1.0, 0.0, -9.0]))
    both = np.array([np.inf, 1.0, np.inf, -np.inf])
    assert all_values(label, both) == all_values(label, np.array([9.0, 1.0, 9.0, -9.0]))


@pytest.mark.parametrize("name", [name for name in METRICS if not METRICS[name].pixel])
@pytest.mark.parametrize(
    ("label", "score", "reason"),
    [
        ([True, True], [1.0, 2.0], "no normal item among 2"),
        ([False, False], [1.0, 2.0], "no anomalous item among 2"),
        ([], [], "no anomalous item among 0"),
        ([True, False], [1.0, math.nan], "1 of 2 scores are NaN"),
    ],
)
def test_without_both_classes_or_with_nan_every_metric_is_undefined(
    name: str, label: list[bool], score: list[float], reason: str
) -> None:
    definition = METRICS[name]
    percent = (1.0,) if definition.takes_percent else ()
    with pytest.raises(UndefinedMetric, match=reason):
        definition.function(np.array(label, dtype=bool), np.array(score), *percent)


def test_labels_and_scores_of_different_length_are_a_bug_and_not_a_missing_value() -> None:
    with pytest.raises(ValueError, match="not two equal rows"):
        metrics.auroc(np.array([True, False]), np.array([1.0]))
    with pytest.raises(ValueError, match="percent"):
        metrics.tpr_at_fpr(np.array([True, False]), np.array([1.0, 0.0]), 0)


def test_a_group_without_a_value_is_none_with_a_reason_and_spares_the_others() -> None:
    group = np.array(["B", "B", "A", "A", "C", "C"])
    label = np.array([True, False, True, True, False, True])
    score = np.array([1.0, 0.0, 1.0, 0.0, math.nan, 1.0])
    values, missing = evaluate(["auroc", "tpr@1.0"], group, label, score)
    assert values == {
        "auroc": {"B": 1.0, "A": None, "C": None},
        "tpr@1": {"B": 1.0, "A": None, "C": None},
    }
    reasons = {"A": "no normal item among 2", "C": "1 of 2 scores are NaN"}
    assert missing == {"auroc": reasons, "tpr@1": reasons}
    assert list(values["auroc"]) == ["B", "A", "C"]  # as they first appear
    assert all(type(v) is float for v in (values["auroc"]["B"], values["tpr@1"]["B"]))


def test_no_warning_is_given_on_any_ordinary_input() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_values(np.array([True, False, False]), np.array([np.inf, -np.inf, np.inf]))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical", "key"),
    [
        ("auroc", "auroc", "auroc"),
        (" tpr@1 ", "tpr@1", "tpr@1"),
        ("tpr@1.0", "tpr@1", "tpr@1"),
        ("tpr@.50", "tpr@0.5", "tpr@0.5"),
        ("tpr@1e-1", "tpr@0.1", "tpr@0.1"),
        ("tpr@1:nearest", "tpr@1:nearest", "tpr@1:nearest"),
        ("tpr@1[domain=C]", "tpr@1[group=C]", "tpr@1"),
        ("fpr@100[ category = metal nut ]", "fpr@100[group=metal nut]", "fpr@100"),
        ("latency_ms", "latency_ms", "latency_ms"),
        ("aupro", "aupro", "aupro"),
        ("aupro@30.0", "aupro", "aupro"),
        ("aupro@3e1[category=bottle]", "aupro[group=bottle]", "aupro"),
        ("aupro@5", "aupro@5", "aupro@5"),
        ("pixel_auroc[category=bottle]", "pixel_auroc[group=bottle]", "pixel_auroc"),
    ],
)
def test_a_name_has_one_canonical_form(text: str, canonical: str, key: str) -> None:
    metric = parse_metric(text, scalars=["latency_ms"])
    assert (metric.text, metric.key, str(metric)) == (canonical, key, canonical)
    assert parse_metric(metric.text, scalars=["latency_ms"]) == metric


@sampled
@given(
    st.sampled_from([n for n in METRICS if METRICS[n].takes_percent]),
    st.one_of(st.integers(1, 100), st.floats(0, 100, exclude_min=True)),
    st.none() | st.text("abc xyz-_09", min_size=1).map(str.strip).filter(bool),
)
def test_every_metric_is_read_back_from_its_name(
    variant: str, percent: float, group: str | None
) -> None:
    name, _, rule = variant.partition(":")
    metric = Metric(name, float(percent), rule or None, group)
    assert parse_metric(metric.text) == metric


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aurco", "unknown metric 'aurco'; did you mean 'auroc'?"),
        ("AUROC", "unknown metric 'AUROC'; did you mean 'auroc'?"),
        ("latency", "unknown metric 'latency'; did you mean 'latency_ms'?"),
        ("tpr", "'tpr': metric 'tpr' needs a percent, as in 'tpr@1'"),
        ("tpr@", "'tpr@': '' is not a number above 0 and up to 100"),
        ("tpr@0", "'tpr@0': '0' is not a number above 0 and up to 100"),
        ("tpr@100.1", "'tpr@100.1': '100.1' is not a number above 0 and up to 100"),
        ("tpr@nan", "'tpr@nan': 'nan' is not a number above 0 and up to 100"),
        ("tpr@1%", "'tpr@1%': '1%' is not a number above 0 and up to 100"),
        ("auroc@1", "'auroc@1': metric 'auroc' takes no percent; write it as 'auroc'"),
        ("aupro@0", "'aupro@0': '0' is not a number above 0 and up to 100"),
        ("aupro@", "'aupro@': '' is not a number above 0 and up to 100"),
        ("pixel_ap@5", "metric 'pixel_ap' takes no percent; write it as 'pixel_ap'"),
        ("pixel_auc", "unknown metric 'pixel_auc'; did you mean 'pixel_auroc'?"),
        ("auroc:fast", "'auroc:fast': unknown rule 'fast' of metric 'auroc'; write it without"),
        ("tpr@1:near", "'tpr@1:near': unknown rule 'near' of metric 'tpr'; did you mean 'nearest'"),
        ("latency_ms[domain=A]", "'latency_ms' is one number per trial; write it as 'latency_ms'"),
        ("tpr@1[C]", "'tpr@1[C]' is not a metric; write it as auroc, tpr@1 or tpr@1[domain=C]"),
        ("tpr@1[domain=]", "'tpr@1[domain=]' is not a metric"),
        ("", "'' is not a metric"),
    ],
)
def test_a_wrong_name_is_refused_in_one_sentence_that_helps(text: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_metric(text, scalars=["latency_ms"])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@sampled
@given(st.text())
def test_no_text_is_refused_by_another_error(text: str) -> None:
    with contextlib.suppress(HdsweepError):
        parse_metric(text)


def test_definitions_name_the_percent_and_the_oracle() -> None:
    words = definitions([*STORED, "tpr@2.50"])
    assert list(words) == [*STORED, "tpr@2.5"]
    assert "at most 2.5 %" in words["tpr@2.5"]
    assert all("oracle" in words[name] for name in ("precision", "recall", "f1", "accuracy"))
    assert parse_metric("eer").definition is METRICS["eer"]
    assert parse_metric("latency_ms", ["latency_ms"]).definition is None


def test_what_is_stored_is_written_canonically() -> None:
    stored = STORED + STORED_PIXEL
    assert tuple(parse_metric(name).text for name in stored) == stored


def test_what_is_stored_says_whether_it_needs_maps() -> None:
    assert not any(METRICS[parse_metric(name).variant].pixel for name in STORED)
    assert all(METRICS[parse_metric(name).variant].pixel for name in STORED_PIXEL)


def test_a_pixel_metric_names_its_limit_and_how_regions_are_joined() -> None:
    words = definitions(["aupro", "aupro@5.0"])
    assert "up to a false-positive rate of 30 %" in words["aupro"]
    assert "up to a false-positive rate of 5 %" in words["aupro@5"]
    assert all("8-connected" in text for text in words.values())
    assert parse_metric("aupro") == parse_metric("aupro@30")


def test_pixel_metrics_are_not_computed_from_predictions_nor_image_metrics_from_maps() -> None:
    label, score = np.array([True, False]), np.array([1.0, 0.0])
    with pytest.raises(ValueError, match="'aupro' is computed from anomaly maps"):
        evaluate(["auroc", "aupro@30"], ["A", "A"], label, score)
    with pytest.raises(ValueError, match="'auroc' is computed from predictions"):
        evaluate_pixels(["auroc"], ["a", "b"], ["A", "A"], label, [None, None], np.ones((2, 1, 1)))


# --- cost -----------------------------------------------------------------------------------------


def test_all_stored_metrics_of_four_groups_of_2000_take_less_than_50_ms() -> None:
    random = np.random.default_rng(0)
    group, label = np.repeat(list("ABCD"), 2000), np.arange(8000) % 2 == 0
    score = random.normal(size=8000) + label
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        evaluate(STORED, group, label, score)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05  # 7 ms when measured; the best of five, as others use the machine


def test_importing_the_module_loads_no_heavy_library() -> None:
    code = (
        "import sys, hdsweep.metrics; "
        "print([m for m in ('scipy', 'sklearn', 'pandas', 'pyarrow', 'torch', 'pydantic') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
