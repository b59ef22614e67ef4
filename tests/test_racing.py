"""Who is given no more seeds: on simulated races whose truth is known, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from hdsweep.racing import look

LOOKS, LEVEL, CONFIGURATIONS, SEEDS = (3, 5, 7), 0.05, 20, 10
SPREAD = 0.95 - 0.01 * np.arange(CONFIGURATIONS)
TIED = np.r_[0.95, np.full(CONFIGURATIONS - 1, 0.949)]
EQUAL = np.full(CONFIGURATIONS, 0.01)
# The best one of these is ten times as noisy as the rest; a pooled variance drops it in 3 of 10.
BEST_NOISY = np.r_[0.1, EQUAL[1:]]
UNEQUAL = np.geomspace(0.04, 0.0025, CONFIGURATIONS)


def race(values: NDArray[np.float64]) -> tuple[set[str], float]:
    """Survivors of a race, and the share of trials that it saved."""
    alive, run, before = {str(n): row for n, row in enumerate(values)}, 0, 0
    for seeds in LOOKS:
        run, before = run + len(alive) * (seeds - before), seeds
        dropped = look(
            {name: row[:seeds].tolist() for name, row in alive.items()},
            larger_is_better=True, level=LEVEL, looks=len(LOOKS), started=CONFIGURATIONS,
        )  # fmt: skip
        alive = {name: row for name, row in alive.items() if name not in dropped}
    run += len(alive) * (values.shape[1] - before)
    return set(alive), 1 - run / values.size


@pytest.mark.parametrize(
    ("mean", "deviation", "saved"),
    [(SPREAD, EQUAL, 0.4), (TIED, EQUAL, 0), (TIED, BEST_NOISY, 0), (SPREAD, UNEQUAL, 0.2)],
    ids=["spread", "near ties", "ties, the best is noisy", "spread, unequal variances"],
)
def test_the_best_survives_and_trials_are_saved(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], saved: float
) -> None:
    random, races = np.random.default_rng(np.random.SeedSequence(7)), []
    for _ in range(200):
        of_seed = random.normal(0, 0.02, SEEDS)  # what seeds do to all alike
        noise = random.standard_normal((CONFIGURATIONS, SEEDS)) * deviation[:, None]
        races.append(race(mean[:, None] + of_seed + noise))
    assert np.mean(["0" in alive for alive, _ in races]) >= 1 - LEVEL
    assert np.mean([share for _, share in races]) >= saved


def one_look(larger_is_better: bool = True, **values: list[float]) -> dict[str, str]:
    found = look(
        values, larger_is_better=larger_is_better, level=0.05, looks=1, started=len(values)
    )
    return {name: verdict.best for name, verdict in found.items()}


def test_a_verdict_is_the_paired_t_test_and_says_so() -> None:
    values = {
        "good": [0.90, 0.80, 0.85, 0.95],
        "bad": [0.80, 0.71, 0.74, 0.86],
        "near": [0.91, 0.80, 0.84, 0.94],
    }
    found = look(values, larger_is_better=True, level=0.06, looks=3, started=5)
    assert found.keys() == {"bad"}
    verdict = found["bad"]
    p = stats.ttest_rel(values["good"], values["bad"], alternative="greater").pvalue
    assert verdict.p == pytest.approx(p)
    assert verdict.threshold == pytest.approx(0.06 / 3 / 4)
    assert verdict.reason == (
        "race: worse than 'good' by 0.0975 (paired over 4 seeds, p = 0.0001 < 0.005, "
        "level 0.06 over 3 looks)"
    )
    mirrored = {name: [-v for v in row] for name, row in values.items()}
    assert look(mirrored, larger_is_better=False, level=0.06, looks=3, started=5) == found


def test_the_threshold_counts_those_that_were_dropped_before() -> None:
    values = {"good": [0.90, 0.80, 0.85, 0.95], "bad": [0.80, 0.71, 0.74, 0.86]}
    kept = look(values, larger_is_better=True, level=0.05, looks=1, started=1000)
    assert kept == {}
    assert look(values, larger_is_better=True, level=0.05, looks=1, started=2).keys() == {"bad"}


def test_two_seeds_suffice_where_the_difference_is_plain() -> None:
    assert one_look(a=[0.9, 0.8], b=[0.4, 0.301]) == {"b": "a"}
    assert one_look(a=[0.9, 0.8], b=[0.4, 0.5]) == {}


def test_differences_without_variance_are_no_evidence() -> None:
    assert one_look(a=[0.9, 0.9, 0.9], b=[0.5, 0.5, 0.5]) == {}
    assert one_look(a=[0.9, 0.8, 0.7], b=[0.8, 0.7, 0.6]) == {}  # equal but for rounding
    assert one_look(a=[0.5, 0.5], b=[0.5, 0.5], c=[0.5, 0.5]) == {}


def test_one_configuration_or_none_is_kept() -> None:
    assert one_look(a=[0.9, 0.8]) == {}
    assert one_look() == {}


@pytest.mark.parametrize(
    "values",
    [
        {"a": [0.9], "b": [0.8]},
        {"a": [0.9, 0.8], "b": [0.8, 0.7, 0.6]},
        {"a": [0.9, 0.8], "b": [float("nan"), 0.7]},
    ],
)
def test_values_that_cannot_be_compared_are_refused(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match=r"compare the same two seeds|is not finite"):
        one_look(**values)


@given(st.data(), st.integers(1, 6), st.integers(2, 5))
def test_the_best_looking_is_never_dropped_and_names_do_not_matter(
    data: st.DataObject, configurations: int, seeds: int
) -> None:
    row = st.lists(st.floats(-1e6, 1e6), min_size=seeds, max_size=seeds)
    rows = data.draw(st.lists(row, min_size=configurations, max_size=configurations))
    values = {str(n): row for n, row in enumerate(rows)}
    found = look(values, larger_is_better=True, level=0.3, looks=1, started=len(values))
    best = max(values, key=lambda name: np.mean(values[name]))
    assert best not in found
    assert all(v.difference > 0 and v.p < v.threshold for v in found.values())
