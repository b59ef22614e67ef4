"""Coresets: the patches that anomalib would take, in its order, whatever the data are like."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trainables.bank import bank_size, coreset
from trainables.bank.coreset import (
    Projected,
    Rows,
    Selection,
    k_center,
    permuted,
    project,
    variance_k_center,
    variances,
)

Features = np.ndarray[Any, np.dtype[np.float32]]


def _rectified(rng: np.random.Generator) -> Features:
    """As of a residual network, in half precision, a third of the patches there twice or more."""
    places = rng.normal(size=(40, 24))[rng.integers(40, size=1200)]
    found = (places + 0.4 * rng.normal(size=places.shape)) @ rng.normal(size=(24, 96))
    found[rng.integers(1200, size=400)] = found[0]
    return np.maximum(found, 0).astype(np.float16).astype(np.float32)


def _clustered(rng: np.random.Generator) -> Features:
    """Ten places, their patches a ten-thousandth apart."""
    places = rng.normal(size=(10, 64))[rng.integers(10, size=900)]
    return (places + 1e-4 * rng.normal(size=places.shape)).astype(np.float32)


def _far_off(rng: np.random.Generator) -> Features:
    """Differences are nearly lost in what all patches have in common."""
    return (1000 + 0.01 * rng.normal(size=(900, 64))).astype(np.float32)


def _on_a_lattice(rng: np.random.Generator) -> Features:
    """Small integers: many distances are equal, and many patches."""
    return rng.integers(0, 2, size=(700, 8)).astype(np.float32)


def _noise(rng: np.random.Generator) -> Features:
    return rng.normal(size=(1500, 128)).astype(np.float32)


def _constant(rng: np.random.Generator) -> Features:
    return np.full((50, 16), rng.normal(), dtype=np.float32)


KINDS = [_rectified, _clustered, _far_off, _on_a_lattice, _noise, _constant]
each_kind = pytest.mark.parametrize("kind", KINDS)
Kind = Callable[[np.random.Generator], Features]


def made(kind: Kind, seed: int = 0) -> Rows:
    """Rows of two groups."""
    features = kind(np.random.default_rng(seed))
    half = len(features) // 2
    return Rows([features[None, :half], features[None, half:]])


def seed_globally(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that anomalib draws from


def drawn_globally() -> list[float]:
    return [*torch.rand(4).tolist(), *np.random.random(4)]  # noqa: NPY002 - as above


def one_by_one(projected: Projected, size: int) -> Selection:
    """Greedy k-center as anomalib writes it: all distances, in every step."""
    features, nearest, taken = projected.features, None, [projected.first]
    for _ in range(size - 1):
        distances = torch.linalg.norm(features - features[taken[-1]], ord=2, dim=1)
        nearest = distances if nearest is None else torch.minimum(nearest, distances)
        taken.append(int(nearest.max(dim=0).indices))
        nearest[taken[-1]] = 0
    return Selection(np.array(taken), np.empty(0, np.float32), size)


# --- As anomalib does -----------------------------------------------------------------------------


@pytest.mark.slow  # importing anomalib takes 10 s
@pytest.mark.parametrize("threads", [1, 2])
def test_order_and_projection_are_those_of_anomalib(threads: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that timm, and anomalib itself, have moved
        from anomalib.models.components.sampling.k_center_greedy import KCenterGreedy

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kind in KINDS:
            rows = made(kind, seed=threads)
            whole = torch.from_numpy(rows.take(np.arange(len(rows))))
            for seed, percent in ((42, 2.0), (123, 10.0), (7, 60.0)):
                seed_globally(seed)
                theirs = KCenterGreedy(whole, percent / 100)
                expected = theirs.select_coreset_idxs()
                ours = project(rows, seed)
                assert torch.equal(ours.features, theirs.features), (kind.__name__, seed)
                found = k_center(ours, bank_size(len(rows), percent))
                assert found.order.tolist() == expected, (kind.__name__, seed)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "dimension"), [(9000, 384), (8193, 1024), (12_289, 64), (40, 1)])
def test_a_projection_in_blocks_is_one_of_the_whole(n: int, dimension: int) -> None:
    """To the last bit, also where the last block would have been a single patch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.models.components.dimensionality_reduction import SparseRandomProjection

    whole = torch.randn(n, dimension, generator=torch.Generator().manual_seed(n)).relu()
    seed_globally(5)
    theirs = SparseRandomProjection(eps=0.9)
    expected = theirs.fit(whole).transform(whole)
    assert torch.equal(project(Rows([whole.numpy()[None]]), 5).features, expected)


@each_kind
def test_looking_at_few_patches_takes_the_same_as_looking_at_all(kind: Kind) -> None:
    """Duplicates, near-duplicates and ties among them: rounding may not decide otherwise."""
    for seed in range(3):
        projected = project(made(kind, seed), seed)
        size = len(projected.features) * 2 // 3
        expected = one_by_one(projected, size)
        assert np.array_equal(k_center(projected, size).order, expected.order)


def test_the_first_patch_is_taken_again_where_no_others_are_left() -> None:
    """As anomalib does."""
    projected = project(made(_on_a_lattice), 0)
    order = k_center(projected, len(projected.features)).order
    distinct = len(np.unique(projected.features.numpy(), axis=0))
    assert len(np.unique(order[:distinct])) == distinct
    assert set(order[distinct:].tolist()) == {0}


def test_no_global_random_state_is_touched() -> None:
    seed_globally(3)
    expected = drawn_globally()
    seed_globally(3)
    rows = made(_noise)
    first = k_center(project(rows, 11), 20).order
    assert drawn_globally() == expected
    assert np.array_equal(k_center(project(rows, 11), 20).order, first)
    assert not np.array_equal(k_center(project(rows, 12), 20).order, first)


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        k_center(project(made(_noise), 0), 400)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- Nested ---------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("weighed", [False, True])
def test_a_selection_goes_on_where_a_shorter_one_ended(kind: Kind, weighed: bool) -> None:
    rows = made(kind)
    projected, variance = project(rows, 1), variances(rows)

    def choose(size: int, start: Selection | None = None) -> Selection:
        if weighed:
            return variance_k_center(projected, variance, size, start)
        return k_center(projected, size, start)

    last = len(rows) * 3 // 4
    straight, found = choose(last).order, None
    for size in (1, 2, last // 7, last // 2, last):
        found = choose(size, found)
        assert np.array_equal(found.order, straight[:size])


def test_what_is_kept_of_distances_is_what_the_definition_gives() -> None:
    projected = project(made(_rectified), 0)
    found = k_center(projected, 2 * coreset.CATCH_UP)
    assert 1 < found.compared <= len(found.order)
    features = projected.features.numpy().astype(np.float64)

    def to_nearest(of: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        return np.min([np.linalg.norm(features - features[one], axis=1) for one in of], axis=0)

    slack = 1e-4  # float32 sums of a hundred squares
    assert (found.distances <= to_nearest(found.order[: found.compared]) * (1 + slack)).all()
    assert (found.distances >= to_nearest(found.order) * (1 - slack)).all()


def test_a_random_coreset_is_the_start_of_a_larger_one() -> None:
    assert sorted(permuted(100, 1)) == list(range(100))
    assert np.array_equal(permuted(100, 1), permuted(100, 1))
    assert not np.array_equal(permuted(100, 1), permuted(100, 2))


@pytest.mark.parametrize(
    ("patches", "percent", "size"), [(50, 1, 1), (1000, 0.5, 5), (199, 1, 1), (7, 100, 7)]
)
def test_a_bank_holds_the_share_rounded_down_but_at_least_one(
    patches: int, percent: float, size: int
) -> None:
    assert bank_size(patches, percent) == size


# --- Weighed by variance --------------------------------------------------------------------------


def as_defined(projected: Projected, variance: Any, size: int) -> list[int]:
    """The docstring's definition, with all patches in every step."""

    def spread(values: Any) -> float:
        low, high = np.percentile(values, [25, 75])
        return high - low or values.mean() or 1.0

    def to_one(row: int) -> Any:
        return torch.linalg.norm(projected.features - projected.features[row], dim=1).double()

    v = variance / spread(variance)
    weight = v * (1 + 0.5 * (v.std() / v.mean() if v.mean() else 0))
    first = to_one(projected.first).numpy()
    nearest, taken = first, [projected.first]
    while len(taken) < size:
        d = nearest / spread(first)
        total = np.where(d + weight > 0, d + weight, 1)
        taken.append(int((2 * d * weight / total).argmax()))
        nearest = np.minimum(nearest, to_one(taken[-1]).numpy())
    return taken


@pytest.mark.parametrize("kind", [_noise, _clustered])
def test_the_variance_weighed_choice_is_as_its_docstring_defines(kind: Kind) -> None:
    rows = made(kind)
    projected, variance = project(rows, 2), variances(rows)
    expected = rows.take(np.arange(len(rows))).astype(np.float64).var(axis=1)
    np.testing.assert_allclose(variance, expected, rtol=1e-4)  # float32 against float64
    found = variance_k_center(projected, variance, 100).order
    assert found.tolist() == as_defined(projected, variance, 100)
    assert not np.array_equal(found, k_center(projected, 100).order)


def test_patches_without_any_variance_can_be_chosen_from() -> None:
    rows = made(_constant)
    found = variance_k_center(project(rows, 0), variances(rows), 5).order
    assert len(found) == 5


# --- Rows -----------------------------------------------------------------------------------------


def test_rows_of_several_maps_are_one_matrix(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 6, 4)).astype(np.float16) for n in (3, 1, 5)]
    for n, part in enumerate(parts):
        np.save(tmp_path / f"{n}.npy", part)
    rows = Rows([np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in range(3)])
    whole = np.concatenate(parts).reshape(-1, 4).astype(np.float32)
    assert (len(rows), rows.dimension) == (54, 4)
    some = rng.integers(54, size=40)
    assert np.array_equal(rows.take(some), whole[some])
    for size in (1, 5, 7, 27, 28, 100):
        blocks = [(start, block.clone()) for start, block in rows.blocks(size)]
        assert np.array_equal(torch.cat([block for _, block in blocks]).numpy(), whole)
        lengths = [len(block) for _, block in blocks]
        assert [start for start, _ in blocks] == [sum(lengths[:n]) for n in range(len(lengths))]
        assert min(lengths) >= min(size, 54)
        assert max(lengths) < 2 * size or len(rows) < size
