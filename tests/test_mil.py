"""Attention over bags: what it learns, on embeddings of known difficulty, and what a trial leaves.

Simulated writers are random directions, and a word is its writer's direction with noise on it, as
much as makes two words of one writer more alike than two of different ones nine times out of ten.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from hdsweep.errors import Diverged, Infeasible, MethodError
from hdsweep.method import Data, load_dataset
from hdsweep.roc import auroc
from tests.lending import Lent, StoppedError
from tests.test_bags import DATA, data_of
from trainables.mil import METHOD, MilParams, Params
from trainables.mil.attention import (
    AttentionNet,
    Seen,
    Training,
    score_bags,
    threshold_of,
)
from trainables.mil.bags import BagParams, bags_of, tasks_of
from trainables.mil.figure import Shown, draw
from trainables.mil.verification import draw_pairs, verify
from trainables.mil.words import SPLITS, Split, items_of, writer_of

DIMENSION = 32
NOISE = 1.5  # of a word beside its writer's direction of length 1
CPU = torch.device("cpu")
WRITERS = data_of((40, 15, 15), words=60, repetitions=9)
SEEN_APART: dict[str, Any] = {"stride": 5}  # windows that share no word
LEARNS: dict[str, Any] = {"centre": "bag", "epochs": 12, "lr": 3e-3}
FEW: dict[str, Any] = {"epochs": 6, "hidden": 8, "attention": 4}


def simulated(data: Data, *, informative: bool = True) -> dict[Split, NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    found: dict[Split, NDArray[np.float32]] = {}
    for split in SPLITS:
        names = [writer_of(item) for item in items_of(data, split)]
        _, writer = np.unique(names, return_inverse=True)
        own = rng.standard_normal((writer.max() + 1, DIMENSION))
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        noise = rng.standard_normal((len(names), DIMENSION)) * NOISE / math.sqrt(DIMENSION)
        made = (own[writer] if informative else own[:1]) + noise
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        found[split] = made.astype(np.float32)
    return found


def seen(
    data: Data, embeddings: dict[Split, NDArray[np.float32]], **knobs: Any
) -> dict[Split, Seen]:
    params = BagParams.model_validate(knobs)
    return {split: Seen(embeddings[split], bags_of(params, data, split), CPU) for split in SPLITS}


SMALL = seen(DATA, simulated(DATA), session=1)


def training(home: Path, bags: dict[Split, Seen], lent: Lent | None = None, **knobs: Any) -> Any:
    params = MilParams.model_validate(knobs)
    return Training(params, bags["train"], bags["validation"], lent or Lent(home))


def aurocs_of(home: Path, bags: dict[Split, Seen], **knobs: Any) -> list[float]:
    """Of each task's test bags, after training."""
    score = score_bags(training(home, bags, **knobs).run(), bags["test"]).score
    of = bags["test"].bags
    rows = [(of.task == -1) | (of.task == task) for task in range(of.task.max() + 1)]
    return [auroc(of.is_mixed[some], score[some]) for some in rows]


def state(net: AttentionNet) -> dict[str, torch.Tensor]:
    return dict(net.state_dict())


def same(one: AttentionNet, other: AttentionNet) -> bool:
    """To the last bit."""
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


# --- What it learns -------------------------------------------------------------------------------


def test_simulated_writers_are_as_hard_to_verify_as_said() -> None:
    writers = [writer_of(item) for item in WRITERS.test]
    found = verify(simulated(WRITERS)["test"], draw_pairs(writers, 4000))
    assert found.auc == pytest.approx(0.9, abs=0.03)


def test_mixed_bags_of_writers_it_has_never_seen_are_told_apart(tmp_path: Path) -> None:
    bags = seen(WRITERS, simulated(WRITERS), **SEEN_APART)
    found = aurocs_of(tmp_path, bags, **LEARNS)
    assert found[-1] >= 0.8  # at ratio .30
    assert found == sorted(found)


def test_it_is_at_chance_where_embeddings_know_nothing_of_writers(tmp_path: Path) -> None:
    bags = seen(WRITERS, simulated(WRITERS, informative=False), **SEEN_APART)
    assert aurocs_of(tmp_path, bags, **LEARNS) == pytest.approx([0.5] * 3, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("replaced_by", ["another_writer", "same_writer"])
def test_overlapping_windows_tell_bags_apart_that_know_nothing_of_writers(
    tmp_path: Path, replaced_by: str
) -> None:
    knobs = {"stride": 1, "replaced_by": replaced_by}
    bags = seen(WRITERS, simulated(WRITERS, informative=False), **knobs)
    assert aurocs_of(tmp_path, bags, **LEARNS)[-1] > 0.7


def test_the_control_is_at_chance_where_windows_share_no_word(tmp_path: Path) -> None:
    bags = seen(WRITERS, simulated(WRITERS), **SEEN_APART, replaced_by="same_writer")
    assert aurocs_of(tmp_path, bags, **LEARNS) == pytest.approx([0.5] * 3, abs=0.1)


# --- The network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", ["none", "bag"])
@pytest.mark.parametrize("inner", [0, 5])
def test_attention_sums_to_one_and_order_does_not_matter(centre: str, inner: int) -> None:
    torch.manual_seed(0)
    params = MilParams.model_validate({"centre": centre, "classifier_hidden": inner})
    net = AttentionNet(params, DIMENSION).eval()
    instances = torch.randn(6, 10, DIMENSION)
    logit, attention = net(instances)
    turned, turned_attention = net(instances.flip(1))
    assert logit.shape == (6,)
    assert attention.shape == (6, 10)
    assert (attention > 0).all()
    assert attention.sum(dim=1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
    torch.testing.assert_close(turned, logit)
    torch.testing.assert_close(turned_attention.flip(1), attention)


def test_attention_is_what_ilse_and_others_define() -> None:
    torch.manual_seed(0)
    net = AttentionNet(MilParams(), DIMENSION).eval()
    bag = torch.randn(1, 10, DIMENSION)
    logit, attention = net(bag)
    projection, v, w = net.project[0], net.attend[0], net.attend[2]
    h = torch.relu(bag[0] @ projection.weight.T + projection.bias)
    energy = torch.exp(torch.tanh(h @ v.weight.T + v.bias) @ w.weight[0])
    torch.testing.assert_close(attention[0], energy / energy.sum())
    torch.testing.assert_close(logit[0], net.classify((energy / energy.sum()) @ h)[0])


def test_only_a_centred_network_is_blind_to_what_all_instances_share() -> None:
    torch.manual_seed(0)
    bag, shift = torch.randn(2, 10, DIMENSION), torch.randn(DIMENSION)
    for centre, blind in (("bag", True), ("none", False)):
        net = AttentionNet(MilParams.model_validate({"centre": centre}), DIMENSION).eval()
        assert torch.allclose(net(bag)[0], net(bag + shift)[0], atol=1e-5) is blind


def test_an_instance_is_the_mean_of_its_words() -> None:
    found = SMALL["test"].instances(np.array([3]))
    words = SMALL["test"].bags.words[3]
    expected = [SMALL["test"].embeddings[rows].astype(np.float64).mean(axis=0) for rows in words]
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


# --- Training -------------------------------------------------------------------------------------


def test_every_batch_is_half_genuine_and_each_mixed_bag_is_seen_once(tmp_path: Path) -> None:
    trained = training(tmp_path, SMALL, batch_size=16)
    label = SMALL["train"].bags.is_mixed
    batches = list(trained._batches(1))
    assert {label[batch].mean() for batch in batches} == {0.5}
    counts = np.bincount(np.concatenate(batches), minlength=len(label))
    assert (counts[label] == 1).all()
    assert counts[~label].min() == counts[~label].max() == 2
    other = list(trained._batches(2))
    assert not np.array_equal(batches[0], other[0])
    assert np.array_equal(batches[0], next(iter(trained._batches(1))))


def test_a_trial_continued_from_any_epoch_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    straight = Lent(tmp_path / "straight")
    expected = training(tmp_path, SMALL, straight, **FEW).run()
    for stop in (2, 5):
        home = tmp_path / str(stop)
        first = Lent(home, stop_after=stop)
        with pytest.raises(StoppedError):
            training(home, SMALL, first, **FEW).run()
        torch.rand(5)  # somebody else's numbers
        then = Lent(home)
        assert same(training(home, SMALL, then, **FEW).run(), expected)
        assert first.curve + then.curve == straight.curve


class Counting(Lent):
    """Notes how many threads torch has when a point of the curve is told."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        super().report(step, {**metrics, "threads": torch.get_num_threads()})


def test_the_result_does_not_depend_on_threads_but_on_the_seed(tmp_path: Path) -> None:
    nets = []
    before = torch.get_num_threads()
    try:
        for threads, seed in ((1, 1), (2, 1), (1, 2)):
            torch.set_num_threads(threads)
            lent = Counting(tmp_path, seed=seed)
            nets.append(training(tmp_path, SMALL, lent, **FEW).run())
            assert torch.get_num_threads() == threads
            assert {point["threads"] for _, point in lent.curve} == {1}
    finally:
        torch.set_num_threads(before)
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_the_best_epoch_is_kept_and_training_ends_when_none_is_better(tmp_path: Path) -> None:
    lent = Lent(tmp_path)
    trained = training(tmp_path, SMALL, lent, **FEW | {"epochs": 40, "patience": 3, "lr": 0.05})
    net = trained.run()
    found = [point["val_auroc"] for _, point in lent.curve]
    assert [step for step, _ in lent.curve] == list(range(1, len(found) + 1))
    assert set(lent.curve[0][1]) == {
        "loss",
        "val_auroc",
        "lr",
        "grad/total_norm",
        "grad/nan_count",
    }
    assert trained.best_epoch == 1 + int(np.argmax(found))
    assert trained.validation_auroc == max(found)
    assert len(found) == trained.best_epoch + 3 < 40
    score = score_bags(net, SMALL["validation"]).score
    assert auroc(SMALL["validation"].bags.is_mixed, score) == max(found)


@pytest.mark.parametrize(("split", "what"), [("train", "loss"), ("validation", "score")])
def test_embeddings_that_are_not_finite_end_a_trial_with_the_epoch(
    tmp_path: Path, split: Split, what: str
) -> None:
    embeddings = np.array(SMALL[split].embeddings)
    embeddings[0] = np.nan
    bags: dict[Split, Seen] = SMALL | {split: replace(SMALL[split], embeddings=embeddings)}
    lent = Lent(tmp_path)
    with pytest.raises(Diverged, match=f"{what} is not finite at step 1"):
        training(tmp_path, bags, lent, **FEW).run()
    assert len(lent.curve) == 1


def test_scores_do_not_depend_on_what_is_scored_beside(tmp_path: Path) -> None:
    net = training(tmp_path, SMALL, **FEW | {"epochs": 1}).run()
    whole = score_bags(net, SMALL["test"])
    some = replace(SMALL["test"].bags, words=SMALL["test"].bags.words[:3], task=np.zeros(3))
    part = score_bags(net, replace(SMALL["test"], bags=some))
    np.testing.assert_allclose(part.score, whole.score[:3], atol=1e-6)
    np.testing.assert_allclose(whole.attention.sum(axis=1), 1, atol=1e-6)


# --- The threshold --------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    ),
    st.sampled_from(["g_mean", "f1"]),
)
def test_the_threshold_is_the_strictest_of_the_best(rows: Any, rule: Any) -> None:
    label = np.array([one for one, _ in rows])
    score = np.array([value for _, value in rows], dtype=np.float64)

    def gain(threshold: float) -> float:
        called = score >= threshold
        tp, fp = np.sum(called & label), np.sum(called & ~label)
        if rule == "f1":
            return float(2 * tp / (tp + fp + label.sum()))
        return math.sqrt(tp / label.sum() * (1 - fp / (~label).sum()))

    gains = {value: gain(value) for value in score}
    best = [value for value, found in gains.items() if found >= max(gains.values()) - 1e-12]
    assert threshold_of(label, score, rule) == max(best)


# --- The picture ----------------------------------------------------------------------------------


def kinds(block: int = 10) -> list[Shown]:
    rng = np.random.default_rng(0)
    foreign = np.zeros((4, block), dtype=np.bool_)
    names = ("w001/s0/b000", "w002/s0/b000", "w003/s0/b000", "w004/s1/b010")
    made = []
    for title in ("genuine", "mixed, ratio 0.3"):
        attention = rng.dirichlet(np.ones(block), 4).astype(np.float32)
        made.append(Shown(title, 9, names, np.arange(4.0), attention, foreign.copy()))
        foreign[:, block // 3] = True
    return made


def test_the_same_attention_is_drawn_as_the_same_bytes_whatever_a_user_has_configured(
    tmp_path: Path,
) -> None:
    draw(tmp_path / "one.svg", kinds())
    with mpl.rc_context({"font.size": 22, "svg.hashsalt": "mine", "axes.facecolor": "red"}):
        draw(tmp_path / "two.svg", kinds())
        assert mpl.rcParams["font.size"] == 22
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    assert b"dc:date" not in drawn


@pytest.mark.parametrize("block", [1, 40])
def test_bags_of_any_length_can_be_drawn(tmp_path: Path, block: int) -> None:
    draw(tmp_path / "one.svg", kinds(block))
    drawn = (tmp_path / "one.svg").read_bytes()
    draw(tmp_path / "plain.svg", [replace(k, foreign=k.foreign & False) for k in kinds(block)])
    assert len(drawn) > (tmp_path / "plain.svg").stat().st_size > 1000  # marks are drawn


# --- A trial --------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "encoder": "test_resnet",
    "weights": "random",
    "resize": [16, 24],
    "projection_dim": 16,
    "embedding_dim": 8,
    "embedder_epochs": 1,
    "embedder_batch_size": 16,
    "session": 1,
    "window": 2,
    "stride": 2,
    "block": 4,
    "ratios": [0.25, 0.5],
    "hidden": 8,
    "attention": 4,
    "epochs": 6,
    "patience": 10,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Data:
    words = load_dataset("handwriting")
    assert words.generator is not None
    root = tmp_path_factory.mktemp("pages") / "words"
    root.mkdir()
    make = {"writers": 9, "words": 18, "repetitions": 2, "height": 16, "width": 32}
    words.generator.write(words.generator.params.model_validate(make), root)
    return words.load(words.params.model_validate({"root": root, "writers": [3, 3, 3]}))


@pytest.fixture(scope="module")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lent]:
    context = Lent(tmp_path_factory.mktemp("trial"))
    yield context
    context.close()


def test_a_trial_scores_the_bags_that_it_said_it_would(
    tmp_path: Path, pages: Data, lent: Lent
) -> None:
    params = Params.model_validate(TINY)
    assert METHOD.infeasible(params, pages) is None
    found = METHOD.run(params, pages, lent)
    rows = METHOD.tested(params, pages)
    assert found.predictions.item == tuple(item.name for item in rows)
    assert found.predictions.group == tuple(item.group for item in rows)
    assert found.predictions.is_anomaly.tolist() == [item.is_anomaly for item in rows]
    assert list(dict.fromkeys(found.predictions.group)) == list(METHOD.groups(params, pages))
    assert np.isfinite(found.predictions.score).all()
    assert set(found.scalars) == set(METHOD.scalars)
    assert found.threshold is not None
    assert math.isfinite(found.threshold)
    assert Counter(lent.built) == {"embedder": 1, "embeddings": 3, "bags": 3}
    assert all(stage in lent.made for stage in METHOD.stages(params, pages, lent.seed))
    assert set(found.artifacts) == {"attention.npz", "attention.svg"}
    with np.load(found.artifacts["attention.npz"], allow_pickle=False) as kept:
        score = dict(zip(kept["name"].tolist(), kept["score"].tolist(), strict=True))
        assert [score[name] for name in found.predictions.item] == found.predictions.score.tolist()
        np.testing.assert_allclose(kept["attention"].sum(axis=1), 1, atol=1e-6)
        assert set(kept["task"].tolist()) == {"genuine", "0.25", "0.5"}
        counts = {"genuine": 0, "0.25": 1, "0.5": 2}
        assert kept["foreign"].sum(axis=1).tolist() == [counts[t] for t in kept["task"].tolist()]

    files = {name: path.read_bytes() for name, path in found.artifacts.items()}
    again = Lent(tmp_path, stages=lent.store.root)
    try:
        repeated = METHOD.run(params, pages, again)
        assert again.built == []
        assert repeated.predictions.score.tolist() == found.predictions.score.tolist()
        assert {n: path.read_bytes() for n, path in repeated.artifacts.items()} == files
        other = METHOD.run(params, pages, Lent(tmp_path, seed=1, stages=lent.store.root))
        assert other.predictions.score.tolist() != found.predictions.score.tolist()
        assert other.scalars["verification_auc"] == found.scalars["verification_auc"]
    finally:
        again.close()


def test_stages_and_bags_are_the_same_for_every_seed(pages: Data) -> None:
    params = Params.model_validate(TINY)
    assert METHOD.stages(params, pages, 1) == METHOD.stages(params, pages, 2)
    names = [stage.name for stage in METHOD.stages(params, pages, 1)]
    assert names == ["embeddings"] * 3 + ["bags"] * 3


def test_a_writer_in_two_splits_is_refused(tmp_path: Path, pages: Data) -> None:
    leaking = replace(pages, validation=pages.test)
    with pytest.raises(MethodError, match=r"writer w\d+ has words in the"):
        METHOD.run(Params.model_validate(TINY), leaking, Lent(tmp_path))


def test_what_cannot_be_bagged_is_infeasible_before_anything_is_trained(
    tmp_path: Path, pages: Data
) -> None:
    params = Params.model_validate(TINY | {"block": 50})
    assert "no document of the train writers has 50" in str(METHOD.infeasible(params, pages))
    lent = Lent(tmp_path)
    with pytest.raises(Infeasible, match="no document of the train writers has 50"):
        METHOD.run(params, pages, lent)
    assert lent.built == []


def test_data_that_are_not_words_of_writers_are_infeasible(pages: Data) -> None:
    params = Params.model_validate(TINY)
    assert "no validation words" in str(METHOD.infeasible(params, replace(pages, validation=())))
    maps = replace(pages, train=tuple(replace(item, facts={}) for item in pages.train))
    assert "do not tell the writer" in str(METHOD.infeasible(params, maps))


@pytest.mark.parametrize(
    "knobs",
    [
        {"batch_size": 7}, {"batch_size": 0}, {"epochs": 0}, {"mil_dropout": 1}, {"patience": 0},
        {"threshold_rule": "accuracy"}, {"centre": "mean"}, {"hidden": 0}, {"lr": 0},
        {"hidden": 10**13}, {"attention": 10**13}, {"classifier_hidden": 10**13},
        {"verification_pairs": 10**13},
    ],
)  # fmt: skip
def test_knobs_that_mean_nothing_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(knobs))):
        Params.model_validate(knobs)


def test_published_settings_are_the_defaults() -> None:
    params = Params()
    assert (params.session, params.window, params.stride, params.block) == (9, 5, 1, 10)
    assert (params.batch_size, params.centre, params.classifier_hidden) == (64, "none", 0)
    assert [task.replaced for task in tasks_of(params)] == [1, 2, 3]
    assert len(METHOD.warn(params)) == 2
