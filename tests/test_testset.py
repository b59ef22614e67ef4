"""The noise of test items: closed forms against slow ones, resamples against metrics of copies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis import frame, resampled
from analysis.frame import MEAN
from analysis.resampled import Ranking
from analysis.testset import Asked, ImageNoise, delong, image_noise
from analysis.verdicts import compare
from hdsweep.identity import digest
from hdsweep.method import Predictions
from hdsweep.metrics import METRICS, POOLED, evaluate, parse_metric
from hdsweep.planned import PlannedCell, PlannedSweep
from hdsweep.store import Store
from hdsweep.trial import Trial, TrialRecord

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
GROUPS = ("A", "B")
# Every image metric, with a percent where it takes one.
IMAGE = {
    metric.key: metric
    for name, definition in METRICS.items()
    if not definition.pixel
    for percent in ((1, 5, 50, 100) if definition.takes_percent else (None,))
    for metric in [
        parse_metric(
            name if percent is None else f"{name.partition(':')[0]}@{percent}"
            + (f":{name.partition(':')[2]}" if ":" in name else "")
        )
    ]
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "results")
    made.create()
    return made


def put(
    store: Store,
    arm: str,
    seed: int,
    predictions: Predictions | None,
    threshold: float | None = None,
) -> str:
    identity = {"method": "m", "version": 1, "params": {"variant": arm}}
    trial = Trial(digest({**identity, "seed": seed}), "m", 1, {}, "d", {}, "f", seed, identity)
    store.put(TrialRecord(trial.id, "ok", trial.to_json(), threshold=threshold))
    if predictions is not None:
        store.put_predictions(trial.id, predictions)
    return trial.id


def items(n: int, groups: Sequence[str] = GROUPS) -> tuple[tuple[str, ...], tuple[str, ...], Bools]:
    """n items per group, one in three anomalous."""
    names = tuple(f"{group}/{i}" for group in groups for i in range(n))
    return names, tuple(name[0] for name in names), np.arange(len(names)) % 3 == 0


def study(
    store: Store, seeds: int, n: int, random: np.random.Generator, gain: float = 0.3
) -> dict[int, dict[int, str]]:
    """A baseline and a configuration on the same items, whose scores have much in common."""
    names, group, label = items(n)
    hardness = random.normal(0, 1, len(names))
    trials: dict[int, dict[int, str]] = {0: {}, 1: {}}
    for cell, of_cell in trials.items():
        for seed in range(seeds):
            noise = random.normal(0, 0.5, len(names))
            score = hardness + noise + (1.2 + gain * cell) * label
            made = Predictions(names, group, label, score)
            of_cell[seed] = put(store, str(cell), seed, made)
    return trials


def noise_of(
    store: Store, trials: Mapping[int, Mapping[int, str]], metric: str, group: str = MEAN,
    groups: Sequence[str] = GROUPS, **options: int,
) -> ImageNoise | str:  # fmt: skip
    asked = Asked(metric, group, 1, tuple(trials[1]), 0.1)
    return image_noise(store, [asked], trials, 0, groups, **options)[0]


# --- AUROC ----------------------------------------------------------------------------------------


def slow_delong(label: Bools, scores: Floats) -> Floats:
    """Covariance of the AUROCs of several scores, shape (m, n), by all pairs of items."""
    x, y = scores[:, label], scores[:, ~label]
    psi = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    v10, v01 = psi.mean(axis=2), psi.mean(axis=1)
    return np.cov(v10) / x.shape[1] + np.cov(v01) / y.shape[1]


@given(st.integers(4, 40), st.integers(0, 2**32), st.booleans())
def test_influences_give_the_covariance_of_delong(n: int, seed: int, tied: bool) -> None:
    random = np.random.default_rng(seed)
    label = np.arange(n) % 2 == 0
    scores = random.normal(0, 1, (3, n)) + label
    if tied:
        scores = np.round(scores)
    influence = np.array([delong(label, score) for score in scores])
    assert influence @ influence.T == pytest.approx(slow_delong(label, scores), abs=1e-12)


def test_seeds_share_the_items_so_their_covariances_count(store: Store) -> None:
    trials = study(store, seeds=3, n=60, random=np.random.default_rng(1))
    found = noise_of(store, trials, "auroc")
    variance = 0.0
    for group in GROUPS:  # other items, so variances add up
        rows = [store.predictions(trials[c][s]) for c in (0, 1) for s in range(3)]
        inside = np.array([name == group for name in rows[0].group])
        covariance = slow_delong(
            rows[0].is_anomaly[inside], np.array([r.score[inside] for r in rows])
        )
        weights = np.repeat([-1, 1], 3) / 3 / 2
        variance += weights @ covariance @ weights
    assert isinstance(found, ImageNoise)
    assert found.se == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert (found.ci_low, found.ci_high) == pytest.approx(
        (0.1 - 1.959964 * found.se, 0.1 + 1.959964 * found.se), rel=1e-6
    )
    assert (found.method, found.items) == ("paired DeLong", 120)


def test_an_item_in_two_groups_moves_both(store: Store) -> None:
    random, n = np.random.default_rng(2), 90
    label, names = np.arange(n) % 3 == 0, tuple(map(str, range(n)))
    twice: dict[int, dict[int, str]] = {}
    once: dict[int, dict[int, str]] = {}
    for cell in (0, 1):
        score = random.normal(0, 1, n) + label
        both = Predictions(names * 2, ("A",) * n + ("B",) * n, np.tile(label, 2), np.tile(score, 2))
        twice[cell] = {0: put(store, f"two {cell}", 0, both)}
        once[cell] = {0: put(store, f"one {cell}", 0, Predictions(names, ("A",) * n, label, score))}
    for metric, tolerance in (("auroc", 1e-9), ("tpr@5", 0.1)):  # other random resamples
        same = noise_of(store, twice, metric), noise_of(store, once, metric, groups=("A",))
        left, right = same
        assert isinstance(left, ImageNoise)
        assert isinstance(right, ImageNoise)
        # As independent items, their mean would vary by a factor of sqrt(2) less.
        assert left.se == pytest.approx(right.se, rel=tolerance)
        assert left.items == right.items == n
    pooled = noise_of(store, twice, "auroc", POOLED)
    alone = noise_of(store, once, "auroc", "A", groups=("A",))
    assert isinstance(pooled, ImageNoise)
    assert isinstance(alone, ImageNoise)
    assert pooled.se == pytest.approx(alone.se)


def test_intervals_of_auroc_cover_the_true_difference() -> None:
    # Normal scores of distance d: the true AUROC is Phi(d / sqrt 2).
    random, studies, n = np.random.default_rng(1988), 2000, 60
    label = np.arange(2 * n) < n
    truth = [0.5 * (1 + math.erf(d / 2)) for d in (1.0, 1.4)]
    covered = 0
    for _ in range(studies):
        shared = random.normal(0, 0.7, 2 * n)
        noise = random.normal(0, math.sqrt(1 - 0.49), (2, 2 * n))
        scores = [shared + e + d * label for e, d in zip(noise, (1.0, 1.4), strict=True)]
        apart = np.subtract(*[
            (np.searchsorted(np.sort(s[~label]), s[label])).mean() / n for s in scores[::-1]
        ])  # fmt: skip
        se = math.sqrt(np.sum((delong(label, scores[1]) - delong(label, scores[0])) ** 2))
        covered += abs(apart - (truth[1] - truth[0])) <= 1.959964 * se
    assert 0.93 <= covered / studies <= 0.97  # asymptotic, so a little less than 0.95 is expected


# --- resamples ------------------------------------------------------------------------------------


def drawn(label: Bools, b: int, random: np.random.Generator) -> NDArray[np.uint16]:
    """How often each item is drawn in b resamples that keep the size of each class."""
    counts = np.zeros((b, len(label)), dtype=np.uint16)
    for kind in (label, ~label):
        at = np.flatnonzero(kind)
        for row in counts:
            row[at] = np.bincount(random.integers(0, len(at), len(at)), minlength=len(at))
    return counts


def test_every_image_metric_can_be_resampled() -> None:
    assert all(resampled.supports(metric) for metric in IMAGE.values())
    assert {metric.variant for metric in IMAGE.values()} == {
        name for name, definition in METRICS.items() if not definition.pixel
    }


@given(
    st.integers(4, 30), st.integers(0, 2**32), st.sampled_from([0, 1, 4]),
    st.sampled_from([None, -0.5, 0.0, 0.7, 99.0]),
)  # fmt: skip
def test_metrics_of_counts_are_those_of_items_written_out(
    n: int, seed: int, decimals: int, threshold: float | None
) -> None:
    random = np.random.default_rng(seed)
    label = np.arange(n) % 2 == 0
    score = np.round(random.normal(0, 1, n) + label, decimals)
    counts = drawn(label, 4, random)
    found = resampled.evaluate(IMAGE, Ranking.of(label, score), counts, threshold)
    for r, row in enumerate(counts):
        copies = np.repeat(np.arange(n), row)
        values, _ = evaluate(IMAGE, [""] * len(copies), label[copies], score[copies], threshold)
        for key in IMAGE:
            theirs = values[key][""]
            assert found[key][r] == pytest.approx(
                math.nan if theirs is None else theirs, nan_ok=True
            )


def test_the_bootstrap_agrees_with_delong_about_auroc(store: Store) -> None:
    trials = study(store, seeds=3, n=150, random=np.random.default_rng(3))
    exact = noise_of(store, trials, "auroc")
    _, group, label = items(150)
    random = np.random.default_rng(4)
    scores = {(c, s): store.predictions(trials[c][s]).score for c in (0, 1) for s in range(3)}
    total = np.zeros(1000)
    for name in GROUPS:
        inside = np.flatnonzero(np.array(group) == name)
        counts = drawn(label[inside], 1000, random)
        for (cell, _), score in scores.items():
            ranking = Ranking.of(label[inside], score[inside])
            auroc = resampled.evaluate({"auroc": IMAGE["auroc"]}, ranking, counts, None)["auroc"]
            total += (auroc if cell else -auroc) / 3 / 2
    assert isinstance(exact, ImageNoise)
    # 1,000 resamples tell a standard error to 2.2 %; four times that.
    assert np.std(total, ddof=1) == pytest.approx(exact.se, rel=0.09)


def test_a_metric_without_a_closed_form_has_an_interval_around_its_difference(store: Store) -> None:
    trials = study(store, seeds=3, n=150, random=np.random.default_rng(5), gain=1.0)
    found, again = noise_of(store, trials, "tpr@5"), noise_of(store, trials, "tpr@5")
    assert found == again  # the same resamples each time
    assert isinstance(found, ImageNoise)
    assert found.method == "stratified bootstrap (B = 1000)"
    values = [
        np.mean([
            evaluate(["tpr@5"], p.group, p.is_anomaly, p.score)[0]["tpr@5"][g]
            for p in map(store.predictions, trials[cell].values()) for g in GROUPS
        ])
        for cell in (0, 1)
    ]  # fmt: skip
    assert found.ci_low < values[1] - values[0] < found.ci_high
    assert found.ci_high - found.ci_low == pytest.approx(2 * 1.96 * found.se, rel=0.1)


def test_more_seeds_do_not_take_away_the_noise_of_the_items(store: Store) -> None:
    few = study(store, seeds=2, n=150, random=np.random.default_rng(6))
    many = {cell: dict(trials) for cell, trials in few.items()}
    for cell, trials in few.items():  # the same models again, under other seeds
        for seed in range(2):
            again = store.predictions(trials[seed])
            many[cell][2 + seed] = put(store, f"again {cell}", 2 + seed, again)
    left, right = noise_of(store, few, "auroc"), noise_of(store, many, "auroc")
    assert isinstance(left, ImageNoise)
    assert isinstance(right, ImageNoise)
    assert left.se == pytest.approx(right.se)


def test_resamples_in_which_a_metric_is_undefined_are_left_out(store: Store) -> None:
    names, group, label = items(30)
    score = np.random.default_rng(13).normal(0, 1, len(names))
    score[::30] = [5.0, 5.0]  # one item of each group reaches the threshold
    base = put(store, "base", 0, Predictions(names, group, label, score), threshold=4.0)
    other = put(store, "other", 0, Predictions(names, group, label, score + label), threshold=4.0)
    found = noise_of(store, {0: {0: base}, 1: {0: other}}, "precision", "A")
    assert isinstance(found, ImageNoise)
    # An item is in 1 - (1 - 1/n)^n of all resamples of its class: 65 % for 10.
    assert 500 < int(found.method.removeprefix("stratified bootstrap (B = ").rstrip(")")) < 750


# --- what cannot be told --------------------------------------------------------------------------


def test_what_has_no_test_items_says_so(store: Store) -> None:
    trials = study(store, seeds=1, n=30, random=np.random.default_rng(7))
    assert "one number per trial" in str(noise_of(store, trials, "latency_ms"))
    assert "maps are not kept" in str(noise_of(store, trials, "aupro"))
    assert "fewer than two test items of a class in C" in str(
        noise_of(store, trials, "auroc", groups=("A", "C"))
    )
    asked = [Asked("auroc", MEAN, 1, (), 0.0)]
    assert image_noise(store, asked, trials, 0, GROUPS) == ["no common seed"]
    trials[1] = {0: put(store, "imported", 0, None)}
    assert noise_of(store, trials, "auroc") == "no predictions in the store"


def test_trials_on_other_items_or_labels_are_not_paired(store: Store) -> None:
    names, group, label = items(30)
    score = np.random.default_rng(8).normal(0, 1, len(names))
    base = {0: put(store, "base", 0, Predictions(names, group, label, score))}
    order = np.random.default_rng(9).permutation(len(names))
    shuffled = Predictions(
        tuple(names[i] for i in order), tuple(group[i] for i in order), label[order],
        score[order] + label[order],
    )  # fmt: skip
    straight = Predictions(names, group, label, score + label)
    same = [
        noise_of(store, {0: base, 1: {0: put(store, arm, 0, made)}}, "auroc")
        for arm, made in (("shuffled", shuffled), ("straight", straight))
    ]
    assert same[0] == same[1]
    fewer = Predictions(names[:-1], group[:-1], label[:-1], score[:-1])
    flipped = Predictions(names, group, ~label, score)
    for arm, made in (("fewer", fewer), ("flipped", flipped)):
        trials = {0: base, 1: {0: put(store, arm, 0, made)}}
        assert "tested on other items" in str(noise_of(store, trials, "auroc"))


def test_configurations_beyond_the_bound_go_without(store: Store) -> None:
    trials = study(store, seeds=2, n=30, random=np.random.default_rng(10))
    trials[2] = {seed: put(store, "2", seed, store.predictions(t)) for seed, t in trials[1].items()}
    asked = [Asked(m, MEAN, cell, (0, 1), 0.0) for m in ("auroc", "ap") for cell in (1, 2)]
    found = image_noise(store, asked, trials, 0, GROUPS, scores=4 * 60)
    assert [isinstance(noise, ImageNoise) for noise in found] == [True, False, True, False]
    assert "left out" in str(found[1])


def test_a_report_tells_both_noises(store: Store) -> None:
    trials = study(store, seeds=4, n=60, random=np.random.default_rng(11), gain=1.0)
    cells = tuple(PlannedCell(name, {}, trials[c]) for c, name in enumerate(("base", "better")))
    sweep = PlannedSweep(
        "s", "", ("auroc", "tpr@5", "auroc[domain=pooled]"), "base", (), GROUPS, cells
    )
    table = frame.load(store, sweep)
    found = compare(table, baseline="base", store=store)
    assert len(found.rows) == 4 + 3
    for row in found.rows:
        assert row.images is not None, row.images_why
        assert row.images.ci_low <= (row.paired.difference or 0) <= row.images.ci_high
    without = compare(table, baseline="base").rows
    assert [(r.verdict, r.paired) for r in without] == [(r.verdict, r.paired) for r in found.rows]
    assert {r.images_why for r in without} == {"the noise of the test items was not asked for"}


def test_a_group_that_a_trial_has_no_answer_for_costs_that_group_alone(store: Store) -> None:
    trials = study(store, seeds=4, n=60, random=np.random.default_rng(12))
    broken = store.predictions(trials[1][0])
    score = broken.score.copy()
    score[0] = math.nan
    trials[1][0] = put(
        store, "nan", 0, Predictions(broken.item, broken.group, broken.is_anomaly, score)
    )
    cells = tuple(PlannedCell(name, {}, trials[c]) for c, name in enumerate(("base", "other")))
    sweep = PlannedSweep("s", "", ("auroc", "tpr@5"), "base", (), GROUPS, cells)
    for row in compare(frame.load(store, sweep), baseline="base", store=store).rows:
        assert row.seeds == ((0, 1, 2, 3) if row.group == "B" else (1, 2, 3))
        assert row.images is not None
