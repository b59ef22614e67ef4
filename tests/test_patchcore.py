"""PatchCore: scores as published code gives them, and every piece of shared work done once."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from hdsweep.machine import Machine
from hdsweep.method import Data, Infeasible, Item, MethodError, Outcome, load_dataset
from hdsweep.stages import Stage
from tests.lending import Lent
from trainables.bank import one_per_bank
from trainables.bank.maps import anomaly_maps
from trainables.bank.memory import Bank
from trainables.encoders.features import PatchFeatures
from trainables.patchcore import METHOD, Params, infeasible, stages
from trainables.patchcore.index import Exact, open_index
from trainables.patchcore.latency import in_turn
from trainables.patchcore.scoring import score_images

SMALL: dict[str, Any] = {
    "encoder": "resnet18",
    "weights": "random",
    "resize": 40,
    "crop": 32,
    "pretrain_embed_dimension": None,
    "target_embed_dimension": None,
    "features": "float32",
    "coreset_percent": 50,
}
IVFPQ: dict[str, Any] = {"nbits": 4, "m": 16, "n_clusters": 4}
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


def run(home: Path, data: Data, seed: int = 1, **knobs: Any) -> Outcome:
    context = Lent(home, seed)
    try:
        return METHOD.run(params(**knobs), data, context)
    finally:
        context.close()


def opened(home: Path, data: Data, group: str = "bottle", seed: int = 1, **knobs: Any) -> Any:
    """Features of the group's test images, its bank, and its index."""
    made, context = params(**knobs), Lent(home, seed)
    features = PatchFeatures(made, data, context)
    bank = Bank(made, data, features, seed, context)
    return features, bank, open_index(made, data, group, bank, context), context


# --- Parts of a whole, and data too large to keep -------------------------------------------------


def in_parts(data: Data) -> Data:
    """Every four test images of a category as the parts of one whole."""
    groups = {group: [i for i in data.test if i.group == group] for group in data.groups}
    wholes, test = [], []
    for group, items in groups.items():
        for n in range(0, len(items), 4):
            name = f"{group} {n}"
            test += [dataclasses.replace(item, part_of=name) for item in items[n : n + 4]]
            anomaly = any(item.is_anomaly for item in items[n : n + 4])
            wholes.append(Item(name, "whole", anomaly, Path(group)))
    return dataclasses.replace(data, test=tuple(test), wholes=tuple(wholes))


@pytest.mark.parametrize(
    ("knobs", "pool"),
    [
        ({}, np.max),
        ({"slide_score": "top_k", "top_k": 2}, lambda score: np.sort(score)[-2:].mean()),
        ({"slide_score": "top_k", "top_k": 100}, np.mean),
    ],
)
def test_a_whole_is_scored_by_its_largest_parts(
    tmp_path: Path, data: Data, knobs: dict[str, Any], pool: Any
) -> None:
    whole = in_parts(data)
    found = run(tmp_path, whole, **knobs).predictions
    plain = run(tmp_path, data, **knobs | {"slide_score": "max", "top_k": 10}).predictions
    score = dict(zip(found.item, found.score.tolist(), strict=True))
    for name, value in zip(plain.item, plain.score.tolist(), strict=True):
        assert score[name] == value
    for one in whole.wholes:
        parts = [score[item.name] for item in whole.test if item.part_of == one.name]
        assert score[one.name] == pytest.approx(pool(np.array(parts)), rel=1e-12)
    rows = [(i.name, i.group, i.is_anomaly) for i in METHOD.tested(params(), whole)]
    assert rows == list(zip(found.item, found.group, found.is_anomaly.tolist(), strict=True))
    assert METHOD.groups(params(), whole) == ("whole", "bottle", "wood")
    assert METHOD.groups(params(), data) == data.groups


def test_the_time_of_a_whole_is_measured(tmp_path: Path, data: Data) -> None:
    scalars = run(tmp_path, in_parts(data)).scalars
    assert scalars["slide_tiles"] == 4
    assert scalars["slide_s"] > 0
    assert not {"slide_s", "slide_tiles"} & run(tmp_path, data).scalars.keys()


def test_streamed_features_give_the_same_scores_and_keep_nothing(
    tmp_path: Path, data: Data
) -> None:
    kinds: tuple[dict[str, Any], ...] = ({}, {"features": "float16"})
    for knobs in kinds:
        stored = run(tmp_path / "stored", data, **knobs)
        context = Lent(tmp_path / f"streamed {knobs}", 1)
        made = params(test_features="streamed", **knobs)
        streamed = METHOD.run(made, data, context)
        context.close()
        assert streamed.predictions.score.tobytes() == stored.predictions.score.tobytes()
        splits = [one.inputs["split"] for one in context.made if one.name == "features"]
        assert set(splits) == {"train"}
        assert made.identity() == params(**knobs).identity()
        declared = [s.inputs["split"] for s in stages(made, data, 1) if s.name == "features"]
        assert declared == []


def test_what_is_made_of_the_scores_of_parts_costs_no_new_scores(
    tmp_path: Path, data: Data
) -> None:
    whole = in_parts(data)
    settings: tuple[dict[str, Any], ...] = ({}, {"slide_score": "top_k", "top_k": 3})
    built = []
    for knobs in settings:
        context = Lent(tmp_path, 1)
        made = params(test_features="streamed", **knobs)
        found = METHOD.run(made, whole, context).predictions
        context.close()
        built.append([one.name for one in context.made])
        plain = run(tmp_path / "plain", whole, **knobs).predictions
        assert found.score.tobytes() == plain.score.tobytes()
    assert built[0].count("scores") == 2
    assert built[1] == []
    for kept in tmp_path.glob("stages/scores/*/scores.npy"):
        kept.write_bytes(b"")
    context = Lent(tmp_path, 1)
    with pytest.raises(MethodError, match="remove the folder"):
        METHOD.run(params(test_features="streamed"), whole, context)
    context.close()


def test_a_slide_score_is_refused_where_there_are_no_slides(data: Data) -> None:
    assert "these have no slides" in str(infeasible(params(slide_score="top_k"), data))
    with pytest.raises(ValidationError, match="does not use top_k"):
        params(top_k=3)


# --- Scores ---------------------------------------------------------------------------------------


def test_max_nn_is_the_largest_distance_to_the_nearest_vector(tmp_path: Path, data: Data) -> None:
    features, bank, _, _ = opened(tmp_path, data)
    found = run(tmp_path, data, score_rule="max_nn").predictions
    vectors = np.asarray(bank.vectors("bottle"), dtype=np.float64)
    queries = features.of("test", "bottle").astype(np.float64)
    expected = [cdist(image, vectors).min(axis=1).max() for image in queries]
    own = [n for n, group in enumerate(found.group) if group == "bottle"]
    # Distances are rooted differences of squares in float32.
    np.testing.assert_allclose(found.score[own], expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_softmax_k9_is_anomalibs_score(tmp_path: Path, data: Data) -> None:
    """Of the same features and the same bank, through anomalib's own code."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    features, bank, _, _ = opened(tmp_path, data)
    found = run(tmp_path, data, score_rule="softmax_k9").predictions
    theirs = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False)
    theirs.memory_bank = torch.from_numpy(np.array(bank.vectors("bottle")))
    queries = torch.from_numpy(np.array(features.of("test", "bottle")))
    distance, place = theirs.nearest_neighbors(queries.flatten(0, 1), 1)
    shape = queries.shape[:2]
    expected = theirs.compute_anomaly_score(
        distance.reshape(shape), place.reshape(shape), queries.flatten(0, 1)
    )
    own = [n for n, group in enumerate(found.group) if group == "bottle"]
    np.testing.assert_allclose(found.score[own], expected.numpy(), rtol=1e-3)


def test_softmax_k9_weighs_the_largest_distance_by_its_neighbourhood(
    tmp_path: Path, data: Data
) -> None:
    """The paper's formula, written out in float64."""
    features, bank, index, _ = opened(tmp_path, data)
    vectors = np.asarray(bank.vectors("bottle"), dtype=np.float64)
    expected = []
    for image in features.of("test", "bottle").astype(np.float64):
        to_bank = cdist(image, vectors)
        worst = to_bank.min(axis=1).argmax()
        nearest = to_bank[worst].argmin()
        around = cdist(vectors[nearest][None], vectors)[0].argsort(kind="stable")[:9]
        weights = np.exp(to_bank[worst, around] - to_bank[worst, around].max())
        own = np.exp(to_bank[worst, nearest] - to_bank[worst, around].max()) / weights.sum()
        expected.append((1 - own) * to_bank[worst, nearest])
    some = np.array(features.of("test", "bottle"))
    _, score = score_images(some, index, params(score_rule="softmax_k9"))
    np.testing.assert_allclose(score, expected, rtol=1e-3)


def test_a_score_does_not_depend_on_the_other_images(tmp_path: Path, data: Data) -> None:
    features, _, index, _ = opened(tmp_path, data)
    some = np.array(features.of("test", "bottle"))
    for rule in ("max_nn", "softmax_k9"):
        together = score_images(some, index, params(score_rule=rule))[1]
        alone = [score_images(one[None], index, params(score_rule=rule))[1][0] for one in some]
        # The processor sums a matrix product in another order for another number of rows.
        np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_maps_are_distances_enlarged_and_smoothed() -> None:
    value = np.zeros((1, 16), dtype=np.float32)
    value[0, 5] = 1
    found = anomaly_maps(value, (4, 4), (32, 32))
    assert found.shape == (1, 32, 32)
    top = np.unravel_index(found[0].argmax(), (32, 32))
    assert (np.array(top) >= 8).all()
    assert (np.array(top) < 16).all()
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(value.reshape(1, 1, 4, 4)), size=(32, 32), mode="bilinear"
    )[0, 0].numpy()
    np.testing.assert_allclose(found[0], gaussian_filter(enlarged, 4), atol=1e-6)


def test_defects_are_found_and_located(tmp_path: Path, data: Data) -> None:
    """Far above chance, with random weights: a defect is another texture."""
    outcome = run(tmp_path, data, score_rule="max_nn")
    found = outcome.predictions
    assert found.score[found.is_anomaly].mean() > found.score[~found.is_anomaly].mean()
    assert outcome.maps is not None
    maps = np.load(outcome.maps.path)
    assert maps.shape == (len(data.test), 32, 32)
    assert np.isfinite(maps).all()


def test_maps_stand_in_the_order_of_the_items_whatever_their_groups(
    tmp_path: Path, data: Data
) -> None:
    straight = run(tmp_path, data)
    turned = Data(data.train, data.test[::-1], data.groups, data.read, data.read_mask)
    other = run(tmp_path / "other", turned)
    assert straight.maps is not None
    assert other.maps is not None
    # As above: the images of a batch are others.
    np.testing.assert_allclose(
        np.load(straight.maps.path), np.load(other.maps.path)[::-1], rtol=1e-3
    )
    np.testing.assert_allclose(straight.predictions.score, other.predictions.score[::-1], rtol=1e-3)


# --- A compressed index ---------------------------------------------------------------------------


def test_ivfpq_answers_as_faiss_does_when_called_directly(tmp_path: Path, data: Data) -> None:
    features, bank, index, _ = opened(tmp_path, data, **IVFPQ, nprobe=2)
    vectors = np.array(bank.vectors("bottle"))
    d = vectors.shape[1]
    direct = faiss.IndexIVFPQ(faiss.IndexFlatL2(d), d, 4, 16, 4)
    direct.cp.seed = direct.pq.cp.seed = 1
    direct.cp.min_points_per_centroid = direct.pq.cp.min_points_per_centroid = 1
    direct.train(vectors)
    direct.add(vectors)
    direct.nprobe = 2
    queries = np.array(features.of("test", "bottle")).reshape(-1, d)
    squared, expected = direct.search(queries, 3)
    distance, found = index.search(queries, 3)
    assert (found == expected).all()
    np.testing.assert_allclose(distance, np.sqrt(squared), rtol=1e-6)


def test_one_index_serves_every_nprobe(tmp_path: Path, data: Data) -> None:
    built: list[str] = []
    for nprobe in (1, 2, 4):
        context = Lent(tmp_path)
        METHOD.run(params(**IVFPQ, nprobe=nprobe), data, context)
        context.close()
        built += context.built
    assert sorted(set(built)) == ["bank", "coreset", "features", "index"]
    assert built.count("index") == built.count("bank") == 2  # one per category
    assert built.count("features") == 4


def test_a_bank_that_is_there_asks_for_nothing_that_it_was_made_of(
    tmp_path: Path, data: Data
) -> None:
    run(tmp_path, data)
    for name in ("coreset", "features"):
        for note in tmp_path.glob(f"stages/{name}/*/stage.json"):
            if name == "coreset" or '"train"' in note.read_text():
                shutil.rmtree(note.parent)
    context = Lent(tmp_path, 1)
    METHOD.run(params(score_rule="max_nn"), data, context)
    context.close()
    assert context.built == []


def test_one_greedy_run_serves_every_ratio(tmp_path: Path, data: Data) -> None:
    vectors = {}
    for percent in (25, 5, 10):
        _, bank, _, context = opened(tmp_path, data, coreset_percent=percent)
        vectors[percent] = np.array(bank.vectors("bottle"))
        context.close()
    assert len(vectors[5]) < len(vectors[10]) < len(vectors[25])
    for less, more in itertools.pairwise((5, 10, 25)):
        assert (vectors[more][: len(vectors[less])] == vectors[less]).all()


def test_more_cells_searched_come_nearer_to_the_exact_answer(tmp_path: Path, data: Data) -> None:
    features, _, exact, _ = opened(tmp_path, data)
    queries = np.array(features.of("test", "bottle")).reshape(-1, exact.vectors.shape[1])
    truth = exact.search(queries, 1)[1]
    hits = []
    for nprobe in (1, 4):
        _, _, index, _ = opened(tmp_path, data, **IVFPQ | {"nbits": 6, "m": 48}, nprobe=nprobe)
        hits.append((index.search(queries, 1)[1] == truth).mean())
    assert hits[1] >= hits[0]
    assert isinstance(exact, Exact)


# --- What is measured -----------------------------------------------------------------------------


def test_latency_memory_and_speed_up_are_measured(tmp_path: Path, data: Data) -> None:
    exact = run(tmp_path, data).scalars
    small = run(tmp_path, data, **IVFPQ).scalars
    for found in (exact, small):
        assert found.keys() == set(METHOD.scalars) - {"slide_s", "slide_tiles"}
        assert found["latency_ms"] > found["search_ms"] > 0
        assert (found["threads"], found["measured_alone"]) == (1, 1)
    files = tmp_path.glob("stages/index/*/index.faiss")
    assert small["memory_mb"] == sum(path.stat().st_size for path in files) / 1e6
    assert small["memory_mb"] < exact["memory_mb"]
    assert exact["speed_up"] == 1
    assert small["speed_up"] == small["exact_search_ms"] / small["search_ms"]
    assert (exact["build_s"], small["build_s"] > 0) == (0, True)
    assert exact["bank_vectors"] == small["bank_vectors"]


def test_a_latency_that_was_measured_beside_a_neighbour_says_so(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdsweep.machine.BRIEF_WAIT_S", 0.05)
    locks = tmp_path / "locks"
    context = Lent(tmp_path, 1)
    context.machine = Machine(locks)
    with Machine(locks).computing():
        (locks / "in-vain").touch()  # else it would try for two minutes
        beside = METHOD.run(params(), data, context).scalars
    alone = METHOD.run(params(), data, context).scalars
    context.close()
    assert (beside["measured_alone"], alone["measured_alone"]) == (0, 1)


def test_a_bank_that_groups_share_is_counted_once(tmp_path: Path, data: Data) -> None:
    own, joint = (run(tmp_path, data, memory_bank=kind).scalars for kind in ("own", "joint"))
    assert own["bank_vectors"] == joint["bank_vectors"]
    assert len(one_per_bank(params(memory_bank="joint"), data)) == 1


@pytest.mark.parametrize("images", [1, 2])
def test_very_few_images_are_timed_too(tmp_path: Path, data: Data, images: int) -> None:
    few = Data(data.train, data.test[:images], data.groups, data.read, data.read_mask)
    assert run(tmp_path, few).scalars["latency_ms"] > 0


def test_images_of_every_group_are_timed_first(data: Data) -> None:
    """Where time runs short, only the first are."""
    small = [item for item in data.test if item.group == "wood"][:1]
    uneven = [*(item for item in data.test if item.group == "bottle"), *small]
    found = in_turn(uneven, 4)
    assert [item.group for item in found] == ["bottle", "wood", "bottle"]
    assert len(set(in_turn(data.test, 100))) == len(data.test)


# --- Banks across groups --------------------------------------------------------------------------


def test_others_holds_no_patch_of_the_group_itself(tmp_path: Path, data: Data) -> None:
    _, bank, _, _ = opened(tmp_path, data, memory_bank="others", coreset_percent=100)
    _, own, _, _ = opened(tmp_path, data, coreset_percent=100)
    theirs = {v.tobytes() for v in np.array(bank.vectors("bottle"))}
    mine = {v.tobytes() for v in np.array(own.vectors("bottle"))}
    assert not theirs & mine
    assert theirs == {v.tobytes() for v in np.array(own.vectors("wood"))}


def test_one_group_has_no_others(tmp_path: Path, data: Data) -> None:
    alone = Data(
        tuple(i for i in data.train if i.group == "wood"),
        tuple(i for i in data.test if i.group == "wood"),
        ("wood",), data.read, data.read_mask,
    )  # fmt: skip
    reason = infeasible(params(memory_bank="others"), alone)
    assert reason is not None
    assert "wood" in reason
    with pytest.raises(MethodError, match="wood"):
        run(tmp_path, alone, memory_bank="others")


# --- What cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"nbits": 10, "m": 16, "n_clusters": 4}, "1,024"),
        ({"nbits": 4, "m": 16, "n_clusters": 5000}, "5,000"),
        ({"nbits": 4, "m": 7, "n_clusters": 4, "target_embed_dimension": 64}, "7"),
        ({"coreset_percent": 0.1}, "softmax_k9"),
    ],
)
def test_what_the_data_cannot_support_is_told_before_it_is_run(
    data: Data, tmp_path: Path, knobs: dict[str, Any], told: str
) -> None:
    reason = infeasible(params(**knobs), data)
    assert reason is not None
    assert told in reason
    assert "\n" not in reason


def test_what_shows_only_in_the_trial_is_infeasible_there(tmp_path: Path, data: Data) -> None:
    """The dimension of concatenated layers is the encoder's to say."""
    assert infeasible(params(nbits=4, m=7, n_clusters=4), data) is None
    with pytest.raises(Infeasible, match=r"\bm 7\b"):
        run(tmp_path, data, nbits=4, m=7, n_clusters=4)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"nprobe": 4}, "nprobe"),
        ({"n_clusters": 8}, "n_clusters"),
        ({"m": 8}, "exact' does not use m"),
        ({"nbits": 4, "n_clusters": 4, "nprobe": 5}, "nprobe 5 is more than the 4 cells"),
        ({"nbits": "eight"}, "write 'exact' or a whole number from 1 to 24"),
        ({"nbits": 25}, "write 'exact' or a whole number from 1 to 24"),
        ({"layers": "low"}, "layers"),
    ],
)
def test_knobs_that_do_nothing_or_cannot_be_are_refused(knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as raised:
        params(**knobs)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("index.faiss", b""),
        ("index.faiss", b"IwPQ and no more"),
        ("built.json", b"{}"),
        ("built.json", b"[]"),
        ("built.json", b"{"),
    ],
)
def test_a_damaged_index_is_told_in_plain_words(
    tmp_path: Path, data: Data, file: str, content: bytes
) -> None:
    run(tmp_path, data, **IVFPQ)
    for path in tmp_path.glob(f"stages/index/*/{file}"):
        path.write_bytes(content)
    with pytest.raises(MethodError, match="the index kept there is damaged") as raised:
        run(tmp_path, data, **IVFPQ)
    assert "faiss::" not in str(raised.value)


def test_an_index_that_lacks_its_end_is_noticed(tmp_path: Path, data: Data) -> None:
    """FAISS reads it without complaint."""
    run(tmp_path, data, **IVFPQ)
    for path in tmp_path.glob("stages/index/*/index.faiss"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MethodError, match="the index kept there is damaged"):
        run(tmp_path, data, **IVFPQ)


def test_an_encoder_that_timm_cannot_build_is_one_message(tmp_path: Path, data: Data) -> None:
    with pytest.raises(MethodError, match=r"encoder 'resnet18.nonsense' cannot be built"):
        run(tmp_path, data, encoder="resnet18.nonsense")


# --- What is declared -----------------------------------------------------------------------------


def walked(wanted: Any) -> Iterator[Stage]:
    for stage in wanted:
        yield from walked(stage.needs)
        yield stage


@pytest.mark.parametrize(
    "knobs",
    [{}, IVFPQ, {"memory_bank": "joint"}, {"memory_bank": "others"}, {"coreset": "random"}],
    ids=["exact", "ivfpq", "joint", "others", "random"],
)
def test_the_stages_that_are_declared_are_those_that_are_built(
    tmp_path: Path, data: Data, knobs: dict[str, Any]
) -> None:
    context = Lent(tmp_path, 1)
    METHOD.run(params(**knobs), data, context)
    context.close()
    declared = {repr((s.name, s.inputs)) for s in walked(stages(params(**knobs), data, 1))}
    assert {repr((s.name, s.inputs)) for s in context.made} == declared
