"""Memory banks: filled once, nested, and searched exactly or through FAISS without surprises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from hdsweep.method import Data, Infeasible, Item, MethodError
from tests.lending import Lent
from trainables.bank import BankParams, bank_size, infeasible, ivfpq, neighbours, why_infeasible
from trainables.bank.coreset import k_center, project
from trainables.bank.memory import Bank
from trainables.bank.neighbours import nearest
from trainables.bank.stages import LADDER, bank_stage, order_stage, rung_of
from trainables.encoders.features import PatchFeatures

SMALL: dict[str, Any] = {
    "encoder": "resnet18",
    "weights": "random",
    "resize": 64,
    "crop": None,
    "pretrain_embed_dimension": None,
    "target_embed_dimension": 24,
}


def pictures(groups: str = "ABC", train: str | None = None) -> Data:
    """Noise; five training images of each group in ``train``, two test images of each."""

    def read(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
        seed = sum(item.name.encode())
        return np.random.default_rng(seed).random((3, 70, 70), dtype=np.float32)

    trained = groups if train is None else train
    return Data(
        tuple(
            Item(f"{g}/train/{n}", g, is_anomaly=False, path=Path())
            for n in range(5)
            for g in trained
        ),
        tuple(Item(f"{g}/test/{n}", g, n > 0, Path()) for n in range(2) for g in groups),
        tuple(groups),
        read,
    )


def params(**knobs: Any) -> BankParams:
    return BankParams.model_validate({**SMALL, **knobs})


def bank(home: Path, data: Data | None = None, seed: int = 42, **knobs: Any) -> tuple[Bank, Lent]:
    data, context = data or pictures(), Lent(home, seed)
    features = PatchFeatures(params(**knobs), data, context)
    return Bank(params(**knobs), data, features, seed, context), context


# --- Filling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coreset", ["random", "k_center", "variance_k_center"])
@pytest.mark.parametrize("features", ["float16", "float32"])
def test_a_bank_holds_the_patches_that_were_chosen(
    tmp_path: Path, coreset: str, features: str
) -> None:
    made, _ = bank(tmp_path, coreset=coreset, coreset_percent=20, features=features)
    made.prepare(("A", "B"))
    for group in "AB":
        rows, order, vectors = made.rows(group), made.order(group), made.vectors(group)
        assert len(order) == bank_size(len(rows), 20) == len(np.unique(order))
        assert np.array_equal(vectors, rows.take(order))
        assert vectors.dtype == np.float32
        assert isinstance(vectors, np.memmap)
        assert not vectors.flags.writeable
    assert not np.array_equal(made.vectors("A"), made.vectors("B"))


def test_patches_are_taken_in_the_order_of_one_greedy_run(tmp_path: Path) -> None:
    made, _ = bank(tmp_path, coreset_percent=50)
    rows = made.rows("A")
    expected = k_center(project(rows, 42), bank_size(len(rows), 50)).order
    assert np.array_equal(made.order("A"), expected)
    other, _ = bank(tmp_path, seed=43, coreset_percent=50)
    assert not np.array_equal(other.order("A"), expected)


@pytest.mark.parametrize("coreset", ["k_center", "variance_k_center"])
def test_a_small_bank_is_the_start_of_a_large_one_that_goes_on_from_it(
    tmp_path: Path, coreset: str
) -> None:
    """Each patch is chosen once, whatever is asked first; asked at once, the order is the same."""
    small, first = bank(tmp_path / "a", coreset=coreset, coreset_percent=1)
    one = small.order("A")
    assert first.built.count("coreset") == rung_of(1) + 1
    large, second = bank(tmp_path / "a", coreset=coreset, coreset_percent=10)
    ten = large.order("A")
    assert second.built == ["coreset"] * (rung_of(10) - rung_of(1))
    assert np.array_equal(ten[: len(one)], one)
    at_once, third = bank(tmp_path / "b", coreset=coreset, coreset_percent=10)
    at_once.prepare(("A",))
    assert third.built == ["features", *["coreset"] * (rung_of(10) + 1), "bank"]
    assert np.array_equal(at_once.order("A"), ten)
    between, fourth = bank(tmp_path / "a", coreset=coreset, coreset_percent=7)
    assert np.array_equal(between.order("A"), ten[: len(between.order("A"))])
    assert fourth.built == []


def test_a_random_bank_needs_no_greedy_run(tmp_path: Path) -> None:
    made, context = bank(tmp_path, coreset="random", coreset_percent=10)
    made.prepare("ABC")
    assert set(context.built) == {"features", "bank"}
    larger, _ = bank(tmp_path, coreset="random", coreset_percent=30)
    assert np.array_equal(larger.order("A")[: len(made.order("A"))], made.order("A"))


@pytest.mark.parametrize(
    ("kind", "sources", "banks"), [("own", "A", 3), ("joint", "ABC", 1), ("others", "BC", 3)]
)
def test_whose_patches_fill_a_bank(tmp_path: Path, kind: str, sources: str, banks: int) -> None:
    made, context = bank(tmp_path, memory_bank=kind, coreset_percent=100, coreset="random")
    made.prepare("ABC")
    assert context.built.count("bank") == banks
    assert context.built.count("features") == 3
    alone, _ = bank(tmp_path, coreset="random")
    whole = [np.asarray(alone.rows(g).take(np.arange(len(alone.rows(g))))) for g in sources]
    found = made.rows("A").take(np.arange(len(made.rows("A"))))
    assert np.array_equal(found, np.concatenate(whole))
    assert sorted(map(bytes, made.vectors("A"))) == sorted(map(bytes, found))


def test_the_threads_of_the_builder_do_not_change_a_bank(tmp_path: Path) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            home = tmp_path / str(threads)
            made, _ = bank(home, coreset_percent=50, target_embed_dimension=None)
            found.append(made.order("A"))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*found)


def test_a_group_without_training_images_is_named(tmp_path: Path) -> None:
    data = pictures("ABC", train="AC")
    for kind, group in (("own", "B"), ("joint", "A"), ("others", "A")):
        made, _ = bank(tmp_path, data, memory_bank=kind)
        with pytest.raises(MethodError, match=r"no training images of group B, .*bank of"):
            made.prepare((group,))
        with pytest.raises(MethodError, match="group B"):
            made.vectors(group)
        assert "group B" in str(infeasible(params(memory_bank=kind), data))
    made, _ = bank(tmp_path, data, memory_bank="others")
    assert len(made.vectors("B"))
    assert infeasible(params(), pictures()) is None


def test_others_need_another_group(tmp_path: Path) -> None:
    data = pictures("A")
    reason = infeasible(params(memory_bank="others"), data)
    assert reason is not None
    assert "'A' is the only one" in reason
    made, _ = bank(tmp_path, data, memory_bank="others")
    with pytest.raises(MethodError, match="'A' is the only one"):
        made.vectors("A")


@pytest.mark.parametrize("left", [200, 0])  # bytes
def test_a_damaged_bank_is_named(tmp_path: Path, left: int) -> None:
    made, context = bank(tmp_path, coreset="random")
    made.vectors("A")
    context.close()
    file = next((tmp_path / "stages" / "bank").glob("*/vectors.npy"))
    file.write_bytes(file.read_bytes()[:left])
    again, _ = bank(tmp_path, coreset="random")
    with pytest.raises(MethodError, match=r"damaged .*; remove the folder"):
        again.vectors("A")


# --- Planning -------------------------------------------------------------------------------------


def test_what_decides_a_bank_names_its_stage() -> None:
    data = pictures()

    def inputs(sources: tuple[str, ...] = ("A",), seed: int = 1, **knobs: Any) -> Any:
        return bank_stage(params(**knobs), data, sources, seed).inputs

    assert inputs() == inputs()
    others = [
        inputs(("B",)), inputs(("A", "B")), inputs(("B", "A")), inputs(seed=2),
        inputs(coreset="random"), inputs(coreset_percent=5), inputs(resize=32),
        inputs(features="float32"), inputs(layers="high"),
    ]  # fmt: skip
    assert inputs() not in others
    assert all(one not in others[n + 1 :] for n, one in enumerate(others))
    fewer = Data(data.train[3:], data.test, data.groups, data.read)
    assert bank_stage(params(), fewer, ("A",), 1).inputs != inputs()


def test_rungs_are_shared_between_ratios_and_not_between_ways_to_choose() -> None:
    data = pictures()

    def order(percent: float, coreset: str = "k_center") -> Any:
        chosen = params(coreset_percent=percent, coreset=coreset)
        return order_stage(chosen, data, ("A",), 1)

    assert order(0.3).inputs == order(0.5).inputs
    assert order(1).inputs == order(5).needs[-1].inputs
    assert order(1).inputs != order(1, "variance_k_center").inputs
    assert LADDER[-1] == 100


def test_a_name_stays_short_with_many_groups() -> None:
    """``stage.json`` and a plan hold it; what it abbreviates is in the features' own."""
    groups = "ABCDEFGHIJKLMNO"
    stage = bank_stage(params(), pictures(groups), tuple(groups), 1)
    assert len(str(stage.inputs)) < 600


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys, trainables.bank, trainables.bank.stages\n"
        "assert not {'torch', 'faiss', 'sklearn', 'timm', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Exact search ---------------------------------------------------------------------------------


def patches(n: int, d: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n, d)), 0).astype(np.float32)


def agree(queries: Any, vectors: Any, k: int) -> None:
    """With scipy in float64, up to what float32 sums of many squares and matrix products round."""
    found, where = nearest(queries, vectors, k)
    assert (found.dtype, where.dtype) == (np.float32, np.int64)
    q, v = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    exact = cdist(q, v)
    k = min(k, len(vectors))
    expected = np.sort(exact, axis=1)[:, :k]
    chosen = np.take_along_axis(exact, where, axis=1)
    # Each distance is that of the vector named, to the digits of float32 ...
    np.testing.assert_allclose(found, chosen, rtol=1e-4)
    # ... and which are named is decided by squares of differences from a matrix product.
    rounding = 4e-6 * ((q**2).sum(axis=1).max() + (v**2).sum(axis=1).max())
    assert (chosen**2 <= expected**2 + rounding).all()
    assert (np.diff(found, axis=1) >= 0).all()
    assert all(len(set(row)) == k for row in where.tolist())


@pytest.mark.parametrize("k", [1, 9, 500])
def test_neighbours_are_those_of_scipy(k: int) -> None:
    agree(patches(300, 64, 0), patches(200, 64, 1), k)


def test_mapped_half_precision_and_tensors_can_be_searched(tmp_path: Path) -> None:
    queries, vectors = (patches(n, 32, n).astype(np.float16) for n in (50, 120))
    np.save(tmp_path / "q.npy", queries)
    np.save(tmp_path / "v.npy", vectors)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "qv"]
    agree(*mapped, k=5)
    expected = nearest(queries, vectors, 5)
    tensors = torch.from_numpy(queries), torch.from_numpy(vectors)
    for one, other in zip(nearest(*tensors, 5), expected, strict=True):
        assert np.array_equal(one, other)
    read_only = vectors.astype(np.float32)
    read_only.flags.writeable = False
    assert np.array_equal(nearest(queries, read_only, 5)[0], expected[0])


def test_blocks_of_queries_and_bank_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, vectors = patches(100, 16, 0), patches(333, 16, 1)
    expected = nearest(queries, vectors, 9)
    monkeypatch.setattr(neighbours, "_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_VALUES", 16 * 50)
    for one, other in zip(nearest(queries, vectors, 9), expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("offset", [0, 30])
def test_near_duplicates_keep_the_digits_of_their_distances(offset: int) -> None:
    """Nearer to each other than a matrix product can tell."""
    rng = np.random.default_rng(0)
    queries = (offset + rng.normal(size=(20, 128))).astype(np.float32)
    near = np.repeat(queries, 40, axis=0) + 1e-3 * rng.normal(size=(800, 128))
    agree(queries, rng.permutation(near).astype(np.float32), k=9)


def test_a_vector_of_the_bank_is_at_distance_zero_from_itself() -> None:
    vectors = 100 + patches(500, 64, 0)
    vectors[200:260] = vectors[0]
    distances, where = nearest(vectors, vectors, 1)
    assert (distances == 0).all()
    assert np.array_equal(vectors[where[:, 0]], vectors)


# --- Compressed search ----------------------------------------------------------------------------


def compressed(vectors: Any, threads: int = 1, **knobs: Any) -> Any:
    asked = {"n_clusters": 8, "m": 4, "nbits": 4, "seed": 3} | knobs
    return ivfpq.build(vectors, **asked, threads=threads)


def test_a_compressed_bank_answers_as_faiss_called_directly(tmp_path: Path) -> None:
    vectors, queries = patches(2000, 32, 0), patches(60, 32, 1)
    ours = compressed(vectors)
    theirs = faiss.IndexIVFPQ(faiss.IndexFlatL2(32), 32, 8, 4, 4)
    theirs.cp.seed = theirs.pq.cp.seed = 3
    theirs.train(vectors)
    theirs.add(vectors)
    theirs.nprobe = 2
    squared, expected = theirs.search(queries, 9)
    ivfpq.write(ours, tmp_path / "index")
    for index in (ours, ivfpq.read(tmp_path / "index")):
        distances, where, again = ivfpq.search(index, queries, 9, 2, threads=1)
        assert np.array_equal(where, expected)
        assert np.array_equal(distances, np.sqrt(squared))
        assert again == 0


def test_the_seed_and_nothing_else_decides_an_index() -> None:
    vectors = patches(2000, 32, 0)
    first, again, other = (
        faiss.serialize_index(compressed(v, seed=seed)).tobytes()
        for v, seed in ((vectors, 1), (vectors.astype(np.float32, order="F"), 1), (vectors, 2))
    )
    assert first == again != other
    assert len(faiss.serialize_index(compressed(vectors, seed=2**40))) == len(first)


def sparse() -> tuple[Any, Any]:
    """An index whose cells are empty but for a few, and queries in all of them."""
    rng = np.random.default_rng(0)
    places = 10 * np.eye(16, dtype=np.float32)
    vectors = np.repeat(places, 20, axis=0) + 0.01 * rng.normal(size=(320, 16)).astype(np.float32)
    index = compressed(vectors, n_clusters=16, nbits=4)
    index.reset()
    index.add(vectors[18:22])  # of two places
    return index, places


def test_a_query_that_finds_nothing_is_searched_again_in_more_cells() -> None:
    index, queries = sparse()
    missed = index.search(queries, 1)[1][:, 0] < 0
    assert 0 < missed.sum() < 16
    distances, where, again = ivfpq.search(index, queries, 5, 1, threads=1)
    assert again == missed.sum()
    assert distances.shape == (16, 4)  # no more than there are
    assert (where[:, 0] >= 0).all()
    assert np.isfinite(distances[:, 0]).all()


def test_where_fewer_are_found_the_rest_is_infinitely_far() -> None:
    index, queries = sparse()
    expected = index.search(queries, 4)[1]
    hit = expected[:, 0] >= 0
    distances, where, _ = ivfpq.search(index, queries, 4, 1, threads=1)
    assert np.array_equal(where[hit], expected[hit])
    assert (where[hit] < 0).any()
    assert np.array_equal(np.isinf(distances), where < 0)


def test_faiss_says_nothing_and_its_threads_are_given_back(capfd: Any) -> None:
    before = faiss.omp_get_max_threads()
    index = compressed(patches(40, 32, 0), threads=before + 1)  # FAISS would like 39 * 16
    ivfpq.search(index, patches(3, 32, 1), 2, 1, threads=before + 1)
    nearest(patches(3, 32, 1), patches(40, 32, 0), 1)
    assert faiss.omp_get_max_threads() == before
    out, err = capfd.readouterr()
    assert out + err == ""


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        ivfpq.write(compressed(patches(100, 32, 0)), Path("/dev/full"))
    with pytest.raises(FileNotFoundError):
        ivfpq.read(tmp_path / "none")
    (tmp_path / "index").write_bytes(os.urandom(100))
    with pytest.raises(RuntimeError):
        ivfpq.read(tmp_path / "index")


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"nbits": 0}, "nbits 0 is not from 1 to 24"),
        ({"nbits": 25}, "nbits 25 is not from 1 to 24"),
        ({"m": 48, "dimension": 1024}, "m 48 does not divide the 1024 .*; use 32 or 64$"),
        ({"m": 2000, "dimension": 1024}, "use 1024$"),
        ({"nbits": 8, "vectors": 255}, "needs at least 256 vectors .* has 255; use nbits 7"),
        ({"nbits": 1, "vectors": 1}, "has 1; raise coreset_percent"),
        ({"n_clusters": 101, "vectors": 100}, "n_clusters 101 is more than the 100 .*; use 100"),
    ],
)
def test_what_faiss_cannot_do_is_told_before(knobs: dict[str, int], told: str) -> None:
    asked = {"nbits": 4, "m": 8, "n_clusters": 4, "dimension": 64, "vectors": 1000} | knobs
    reason = why_infeasible(**asked)
    assert reason is not None
    vectors = patches(asked.pop("vectors"), asked.pop("dimension"), 0)
    with pytest.raises(Infeasible, match=told):
        ivfpq.build(vectors, **asked, seed=1, threads=1)


def test_what_is_not_known_yet_is_not_refused() -> None:
    assert why_infeasible(nbits=24, m=7, n_clusters=10**6, dimension=None, vectors=None) is None


@pytest.mark.parametrize("nbits", [1, 2, 3, 5, 7, 8, 9, 10, 11])
def test_what_is_not_refused_is_what_faiss_does(nbits: int) -> None:
    """At the least number of vectors; one less, and FAISS refuses too."""
    vectors = patches(2**nbits, 8, 0)
    index = compressed(vectors, nbits=nbits, n_clusters=1, m=2)
    distances, where, _ = ivfpq.search(index, vectors, 1, 1, threads=1)
    assert np.isfinite(distances).all()
    assert (where >= 0).all()
    theirs = faiss.IndexIVFPQ(faiss.IndexFlatL2(8), 8, 1, 2, nbits)
    with pytest.raises(RuntimeError, match="Number of training points"):
        theirs.train(vectors[:-1])


def test_what_only_faiss_knows_is_told_in_plain_words() -> None:
    vectors = patches(100, 32, 0)
    vectors[3] = np.nan
    with pytest.raises(Infeasible) as caught:
        compressed(vectors)
    said = str(caught.value)
    assert "100 vectors of dimension 32" in said
    assert "NaN" in said
    assert not any(part in said for part in ("/", ".cpp", "faiss::", "\n", "failed"))
