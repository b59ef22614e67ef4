"""Propose Noising: influence is a derivative, scales are the training set's, maps are kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hdsweep.method import Data, Outcome, Stage, load_dataset
from tests.lending import Lent
from trainables.bank.memory import Bank
from trainables.encoders.features import PatchFeatures
from trainables.noising import METHOD, Params, Proposer, Scale, infeasible, influence, most

SMALL: dict[str, Any] = {
    "encoder": "resnet18",
    "weights": "random",
    "resize": 40,
    "crop": 32,
    "pretrain_embed_dimension": 32,
    "target_embed_dimension": 32,
    "features": "float32",
    "coreset_percent": 50,
}
MVTEC = load_dataset("mvtec")


def params(**knobs: Any) -> Params:
    return Params.model_validate({**SMALL, **knobs})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("pictures") / "mvtec"
    root.mkdir()
    assert MVTEC.generator is not None
    make = {"categories": ["bottle", "wood"], "size": 40, "train": 8, "good": 4, "defect": 2}
    MVTEC.generator.write(MVTEC.generator.params.model_validate(make), root)
    return MVTEC.load(MVTEC.params(root=root, categories=("bottle", "wood")))


def run(home: Path, data: Data, **knobs: Any) -> Outcome:
    context = Lent(home, 1)
    try:
        return METHOD.run(params(**knobs), data, context)
    finally:
        context.close()


def proposer(home: Path, data: Data, **knobs: Any) -> tuple[Proposer, PatchFeatures, Bank]:
    made, context = params(**knobs), Lent(home, 1)
    features = PatchFeatures(made, data, context)
    bank = Bank(made, data, features, 1, context)
    return Proposer(made, bank, "bottle", context), features, bank


# --- Influence ------------------------------------------------------------------------------------


def test_influence_is_the_finite_difference_of_the_mean_distance() -> None:
    """Central differences in float64; their error falls with the square of the step."""
    rng = np.random.default_rng(0)
    patches, neighbours = rng.normal(size=(5, 12)), rng.normal(size=(5, 9, 12))
    step = 1e-5

    def distance(of: Any) -> Any:
        return np.linalg.norm(of[:, None] - neighbours, axis=2).mean(axis=1)

    moved = [
        np.abs(distance(patches + step * unit) - distance(patches - step * unit)) / (2 * step)
        for unit in np.eye(12)
    ]
    found = influence(patches.astype(np.float32), neighbours.astype(np.float32))
    np.testing.assert_allclose(found, np.stack(moved, axis=1), atol=1e-6)


def test_a_neighbour_equal_to_the_patch_has_no_direction() -> None:
    patch = np.ones((1, 3), dtype=np.float32)
    other = np.array([[[1, 1, 1], [1, 1, 3]]], dtype=np.float32)
    np.testing.assert_array_equal(influence(patch, other), [[0, 0, 0.5]])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_influence_is_at_most_one_and_knows_no_unit(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    patches = rng.normal(size=(3, 8)).astype(np.float32)
    neighbours = rng.normal(size=(3, 4, 8)).astype(np.float32)
    found = influence(patches, neighbours)
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    scaled = influence(patches * np.float32(unit), neighbours * np.float32(unit))
    np.testing.assert_allclose(found, scaled, atol=1e-4)


def test_the_most_influential_features_are_averaged() -> None:
    values = np.array([[1, 5, 3, 2], [0, 0, 0, 8]], dtype=np.float32)
    np.testing.assert_array_equal(most(values, 0.5), [4, 4])
    np.testing.assert_array_equal(most(values, 0.01), [5, 8])
    np.testing.assert_array_equal(most(values, 1), [2.75, 2])


# --- Scales ---------------------------------------------------------------------------------------


def test_a_scale_puts_the_bulk_between_0_and_1_and_clips_nothing() -> None:
    scale = Scale.of(np.arange(101, dtype=np.float32))
    np.testing.assert_allclose(scale(np.array([5, 50, 95, 185], dtype=np.float32)), [0, 0.5, 1, 2])
    constant = Scale.of(np.full(9, 3, dtype=np.float32))
    np.testing.assert_array_equal(constant(np.array([3, 4], dtype=np.float32)), [0, 1])


def test_a_score_does_not_depend_on_the_other_patches(tmp_path: Path, data: Data) -> None:
    made, features, _ = proposer(tmp_path, data)
    patches = np.array(features.of("test", "bottle"))[0]
    together = made.propose(patches).score
    alone = np.concatenate([made.propose(one[None]).score for one in patches])
    # A matrix product of another number of rows rounds otherwise.
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_training_patches_are_compared_with_the_bank_without_themselves(
    tmp_path: Path, data: Data
) -> None:
    """All of them are in this bank, so each would be its own neighbour at distance 0."""
    made, _, bank = proposer(tmp_path, data, coreset_percent=100, n_neighbors=1)
    vectors = np.array(bank.vectors("bottle"), dtype=np.float64)
    between = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(between, np.inf)
    low, high = np.quantile(between.min(axis=1), [0.05, 0.95])
    np.testing.assert_allclose([made.distance.low, made.distance.high], [low, high], rtol=1e-3)


def test_normal_training_patches_lie_mostly_between_0_and_1(tmp_path: Path, data: Data) -> None:
    made, _, bank = proposer(tmp_path, data)
    rows = bank.rows("bottle")
    inside = set(bank.order("bottle").tolist())
    fresh = [n for n in range(len(rows)) if n not in inside]
    found = made.propose(rows.take(np.array(fresh)))
    assert np.median(found.score) < 1.2
    assert ((found.noise_std >= 0.01) & (found.noise_std <= 0.5 + 1e-6)).all()


# --- The trial ------------------------------------------------------------------------------------


def test_a_trial_leaves_scores_and_maps_of_influence(tmp_path: Path, data: Data) -> None:
    outcome = run(tmp_path, data)
    found = outcome.predictions
    assert found.score[found.is_anomaly].mean() > found.score[~found.is_anomaly].mean()
    maps = np.load(outcome.artifacts["influence.npy"])
    assert maps.shape == (len(data.test), 4, 4)
    assert ((maps > 0) & (maps <= 1)).all()
    assert 0.01 <= outcome.scalars["noise_std_mean"] <= 0.5
    assert outcome.maps is not None


def test_with_the_weight_on_the_distance_it_ranks_as_nearest_neighbours_do(
    tmp_path: Path, data: Data
) -> None:
    only = {"influence_weight": 0, "distance_weight": 1, "noise_weight": 0}
    found = run(tmp_path, data, n_neighbors=1, **only).predictions
    made, features, bank = proposer(tmp_path, data, n_neighbors=1)
    vectors = np.array(bank.vectors("bottle"), dtype=np.float64)
    queries = np.array(features.of("test", "bottle"), dtype=np.float64)
    nearest = [
        np.linalg.norm(image[:, None] - vectors[None], axis=2).min(axis=1).max()
        for image in queries
    ]
    expected = (np.array(nearest) - made.distance.low) / (made.distance.high - made.distance.low)
    own = [n for n, group in enumerate(found.group) if group == "bottle"]
    np.testing.assert_allclose(found.score[own], expected, rtol=1e-3, atol=1e-3)


def test_it_shares_the_bank_of_patchcore(tmp_path: Path, data: Data) -> None:
    from trainables.patchcore import METHOD as PATCHCORE

    context = Lent(tmp_path, 1)
    PATCHCORE.run(PATCHCORE.params.model_validate(SMALL), data, context)
    before = len(context.made)
    context.close()
    other = Lent(tmp_path, 1)
    METHOD.run(params(), data, other)
    other.close()
    assert (before > 0, other.built) == (True, [])


@pytest.mark.parametrize("coreset", ["k_center", "random"])
def test_what_is_declared_is_asked_for_where_the_bank_is_there(
    tmp_path: Path, data: Data, coreset: str
) -> None:
    """The scales are of training patches, so a kept bank is not all that is needed."""
    run(tmp_path, data, coreset=coreset)
    for name in ("features", "coreset"):
        shutil.rmtree(tmp_path / "stages" / name, ignore_errors=True)
    context = Lent(tmp_path, 1)
    METHOD.run(params(coreset=coreset), data, context)
    context.close()
    declared = METHOD.stages(params(coreset=coreset), data, 1)
    asked = {repr((s.name, s.inputs)) for s in declared if s.name != "bank"}
    steps = {repr((n.name, n.inputs)) for s in declared for n in walked(s) if s.name == "coreset"}
    assert {repr((s.name, s.inputs)) for s in context.made} == asked | steps


def walked(stage: Stage) -> Iterator[Stage]:
    for need in stage.needs:
        yield from walked(need)
    yield stage


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"noise_std_range": [0.5, 0.01]}, "from 0.5 to 0.01"),
        ({"noise_std_range": [-1, 0.01]}, "not below 0"),
        ({"influence_weight": 0, "distance_weight": 0, "noise_weight": 0}, "all three weights"),
        ({"influence_ratio": 0}, "influence_ratio"),
        ({"n_neighbors": 0}, "n_neighbors"),
    ],
)
def test_knobs_that_cannot_be_are_refused(knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as raised:
        params(**knobs)
    assert told in str(raised.value)


def test_more_neighbours_than_vectors_are_infeasible(data: Data) -> None:
    reason = infeasible(params(coreset_percent=1), data)
    assert reason is not None
    assert "n_neighbors" in reason
    assert infeasible(params(), data) is None
